"""Object files on the real kernel: loaded, held, replaced by a new version, and unloaded."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import MapType, ProgType
from app.cli import demo
from app.loader.client import DirectLoader
from app.loader.messages import ObjectLimits
from app.service.errors import KernelError
from app.service.loading.copies import Copies
from app.service.loading.object_files import ObjectOptions
from app.service.registry.registry import Registry
from tests import probes
from tests.api.conftest import assert_problem, client_of, started
from tests.compiled import object_file
from tests.running import WAIT_SECONDS

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
]

PARSER = "/objects/parser"
NO_ATTACH_TYPE = {name: {"attach_type": 0} for name in ("entry", "ipv4", "tcp", "drop")}
STAGES = "/maps/parser.stages/entries"
BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def kernel() -> Kernel:
    """Only the real kernel loads object files."""
    return LinuxKernel()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of objects.object_dirs, with the parser in it."""
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "parser.o").write_bytes(object_file("parser"))
    return folder


def options(files: Path, **limits: Any) -> ObjectOptions:
    """How object files are loaded: below `files`, and from requests."""
    bounds = ObjectLimits(object_dirs=[str(files)], upload=True, **{"timeout": WAIT_SECONDS, **limits})
    copies = Copies(files.parent / "copies")
    return ObjectOptions(DirectLoader(bounds), bounds.max_bytes, bounds.upload, copies, bounds.object_dirs)


@pytest.fixture
async def app(registry: Registry, files: Path, anyio_backend: str) -> AsyncIterator[FastAPI]:
    async with started(registry, objects=options(files)) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


async def send(client: httpx.AsyncClient, content: bytes, path: str = PARSER, **query: Any) -> httpx.Response:
    """PUT an object file itself."""
    return await client.put(path, content=content, headers=BINARY, params=query)


async def put(client: httpx.AsyncClient, files: Path, path: str = PARSER, **body: Any) -> httpx.Response:
    """PUT the name of the parser's file, with options. `dry_run` and other queries go into the path."""
    return await client.put(path, json={"file": str(files / "parser.o"), **body})


async def verdict(client: httpx.AsyncClient, first: int, program: str = "parser.entry") -> str:
    """What becomes of a packet that begins with this byte."""
    answer = await client.post(f"/programs/{program}/run", json={"packet": f"{first:02x}" + "00" * 63})
    meaning: str = answer.json()["meaning"]
    return meaning


async def names(client: httpx.AsyncClient, path: str = STAGES) -> dict[int, str | None]:
    """The names of the programs in a table, by index."""
    return {each["index"]: each["program"]["name"] for each in (await client.get(path)).json()["entries"]}


class TestLoading:
    async def test_programs_and_arrays_are_held_and_a_packet_runs_through_them(self, client: httpx.AsyncClient) -> None:
        answer = await send(client, object_file("parser"))
        assert (answer.status_code, answer.headers["location"]) == (201, PARSER)
        told = answer.json()["object"]
        assert {each["name"] for each in told["programs"]} == {f"parser.{n}" for n in ("entry", "ipv4", "tcp", "drop")}
        assert {each["map"]: each["name"] for each in told["maps"]} == {
            "stages": "parser.stages", "stats": None, ".rodata": None, ".bss": None,
        }  # fmt: skip
        assert await names(client) == {1: "parser.ipv4", 2: "parser.tcp", 3: "parser.drop"}
        assert [await verdict(client, first) for first in (1, 2, 3, 4)] == [
            "XDP_PASS", "XDP_PASS", "XDP_DROP", "XDP_ABORTED",
        ]  # fmt: skip

    async def test_file_that_is_sent_is_loaded_with_the_options_beside_it(self, client: httpx.AsyncClient) -> None:
        options = {"variables": {"verdict": 3}, "programs": {"drop": {"attach_type": 37}}}
        answer = await send(client, object_file("parser"), options=json.dumps(options))
        assert answer.status_code == 201
        assert await verdict(client, 2) == "XDP_TX"

    @pytest.mark.parametrize(
        ("options", "code", "told"),
        [
            pytest.param("{", "malformed-json", "", id="no-json"),
            pytest.param('{"file": "/etc/jumptable/parser.o"}', "validation", "leave `file` out", id="file"),
            pytest.param('{"colour": 1}', "validation", "colour", id="unknown"),
            pytest.param('{"variables": {"verdct": 1}}', "variable-unknown", "verdct", id="variable"),
        ],
    )
    async def test_wrong_options_beside_a_file_load_nothing(
        self, client: httpx.AsyncClient, options: str, code: str, told: str
    ) -> None:
        answer = await send(client, object_file("parser"), options=options)
        assert_problem(answer, 400 if code == "malformed-json" else 422, code)
        assert told in answer.json()["detail"]
        assert_problem(await client.get(PARSER), 404, "object-unknown")

    async def test_options_beside_a_body_of_json_are_refused(self, client: httpx.AsyncClient, files: Path) -> None:
        answer = await put(client, files, f"{PARSER}?options=%7B%7D")
        assert_problem(answer, 422, "validation")
        assert "put them into the body" in answer.json()["detail"]

    async def test_programs_of_an_object_go_into_other_tables(self, client: httpx.AsyncClient, files: Path) -> None:
        await put(client, files, programs=NO_ATTACH_TYPE)
        assert (await client.put("/maps/jump_table/entries/3", json={"program": "parser.drop"})).status_code == 201
        assert await verdict(client, 3, "entry") == "XDP_DROP"

    async def test_same_file_with_same_options_is_not_loaded_again(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        first = (await put(client, files)).json()["object"]
        again = await put(client, files)
        assert (again.status_code, again.json()["object"]) == (200, first)
        other = (await put(client, files, variables={"verdict": 3})).json()["object"]
        assert other["version"] == 2

    async def test_programs_and_maps_of_an_object_are_neither_released_nor_replaced_alone(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        await put(client, files)
        assert_problem(await client.delete("/programs/parser.drop"), 409, "in-use")
        assert_problem(await client.delete("/maps/parser.stages?force=true"), 409, "in-use")
        assert_problem(await client.put("/programs/parser.drop", json={"id": 1}), 409, "in-use")
        assert_problem(await client.put("/maps/parser.stages", json={"id": 1}), 409, "in-use")

    async def test_get_tells_what_put_told(self, client: httpx.AsyncClient, files: Path) -> None:
        assert_problem(await client.get(PARSER), 404, "object-unknown")
        loaded = await put(client, files)
        told = await client.get(PARSER)
        assert told.json() == loaded.json()["object"]
        assert told.headers["etag"] == loaded.headers["etag"] == told.json()["etag"]
        listed = (await client.get("/objects")).json()
        assert listed == {"objects": [told.json()], "upload": True, "object_dirs": [str(files)]}

    async def test_conditions_on_the_version_are_kept(self, client: httpx.AsyncClient, files: Path) -> None:
        body = {"file": str(files / "parser.o")}
        assert_problem(await client.put(PARSER, json=body, headers={"If-Match": "*"}), 412, "precondition-failed")
        tag = (await client.put(PARSER, json=body, headers={"If-None-Match": "*"})).headers["etag"]
        assert_problem(await client.put(PARSER, json=body, headers={"If-None-Match": "*"}), 412, "precondition-failed")
        assert (await client.put(PARSER, json=body, headers={"If-Match": tag})).status_code == 200
        assert_problem(await client.delete(PARSER, headers={"If-Match": '"1-0"'}), 412, "precondition-failed")
        assert (await client.delete(PARSER, headers={"If-Match": tag})).status_code == 204

    async def test_kernel_in_memory_loads_nothing(self) -> None:
        registry = Registry(MemoryKernel())
        demo.fill(registry)
        async with started(registry) as app, client_of(app) as client:
            assert_problem(await client.put(PARSER, json={"file": "/parser.o"}), 503, "loader-unavailable")
        registry.close()


class TestUnloading:
    async def test_everything_goes_with_the_object(self, client: httpx.AsyncClient, files: Path) -> None:
        await put(client, files)
        assert (await client.delete(PARSER)).status_code == 204
        assert_problem(await client.get(PARSER), 404, "object-unknown")
        assert_problem(await client.get("/programs/parser.drop"), 404, "program-unknown")
        assert_problem(await client.get("/maps/parser.stages"), 404, "map-unknown")
        assert_problem(await client.delete(PARSER), 404, "object-unknown")
        assert (await put(client, files)).json()["object"]["version"] == 1

    async def test_entries_of_other_tables_keep_an_object(self, client: httpx.AsyncClient, files: Path) -> None:
        await put(client, files, programs=NO_ATTACH_TYPE)
        await client.put("/maps/jump_table/entries/3", json={"program": "parser.drop"})
        refused = await client.delete(PARSER)
        assert_problem(refused, 409, "in-use")
        assert refused.json()["entries"] == [{"map": "jump_table", "index": 3, "program": "drop"}]
        await client.delete("/maps/jump_table/entries/3")
        assert (await client.delete(PARSER)).status_code == 204

    async def test_dry_run_unloads_nothing(self, client: httpx.AsyncClient, files: Path) -> None:
        await put(client, files)
        answer = await client.delete(f"{PARSER}?dry_run=true")
        assert (answer.status_code, answer.headers["dry-run"]) == (204, "true")
        assert await verdict(client, 3) == "XDP_DROP"


class TestDryRun:
    async def test_kernel_is_asked_and_nothing_is_kept(self, client: httpx.AsyncClient, files: Path) -> None:
        answer = await put(client, files, f"{PARSER}?dry_run=true")
        assert (answer.status_code, answer.headers["dry-run"]) == (201, "true")
        told = answer.json()
        assert (told["fit"], told["entries"], told["changes"]) == ("tried", [], [])
        assert {each["program"] for each in told["object"]["programs"]} == {"entry", "ipv4", "tcp", "drop"}
        assert_problem(await client.get(PARSER), 404, "object-unknown")
        assert_problem(await client.get("/programs/parser.drop"), 404, "program-unknown")

    async def test_it_tells_which_entries_would_change(self, client: httpx.AsyncClient, files: Path) -> None:
        body = {"maps": {"stages": {"use": "jump_table"}}, "values": "set"}
        told = (await put(client, files, f"{PARSER}?dry_run=true", **body)).json()
        assert [(each["map"], [entry["index"] for entry in each["entries"]]) for each in told["entries"]] == [
            ("jump_table", [1, 2, 3])
        ]
        after = [entry["after"] for entry in told["entries"][0]["entries"]]
        assert [(each["name"], each["id"]) for each in after] == [
            ("parser.ipv4", None), ("parser.tcp", None), ("parser.drop", None),
        ]  # fmt: skip
        assert await names(client, "/maps/jump_table/entries") == {}


class TestReplacedMaps:
    async def test_initialisers_of_a_live_array_are_refused_and_written_as_a_change_on_request(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        """libbpf by itself writes them straight into the array."""
        body: dict[str, Any] = {"maps": {"stages": {"use": "jump_table"}}}
        refused = await put(client, files, **body)
        assert_problem(refused, 422, "values-on-replaced-map")
        assert (refused.json()["map"], refused.json()["index"], refused.json()["program"]) == ("stages", 1, "ipv4")
        assert await names(client, "/maps/jump_table/entries") == {}
        await put(client, files, **body, values="ignore")
        assert await names(client, "/maps/jump_table/entries") == {}
        answer = await put(client, files, **body, values="set")
        [change] = answer.json()["changes"]
        assert answer.headers["change-id"] == str(change["id"])
        assert (change["map"], change["kind"], change["state"]) == ("jump_table", "update", "applied")
        assert await names(client, "/maps/jump_table/entries") == {
            1: "parser.ipv4", 2: "parser.tcp", 3: "parser.drop",
        }  # fmt: skip
        assert await verdict(client, 3, "entry") == "XDP_DROP", "the demo's entry jumps through it"
        assert (await client.post(f"/changes/{change['id']}/revert")).status_code == 200
        assert await names(client, "/maps/jump_table/entries") == {}

    async def test_programs_take_the_attach_type_of_the_array(self, client: httpx.AsyncClient, files: Path) -> None:
        """The section says BPF_XDP (37), and the array's owner has none (0): the kernel would refuse it."""
        probes.needs(probes.compares_attach_types())
        told = (await put(client, files, maps={"stages": {"use": "jump_table"}}, values="ignore")).json()["object"]
        assert {each["attach_type"] for each in told["programs"]} == {0}
        told = (await put(client, files, "/objects/own")).json()["object"]
        assert {each["attach_type"] for each in told["programs"]} == {37}

    async def test_programs_take_an_attach_type_that_only_the_iterators_tell(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        """Neither that of the section nor none fits."""
        probes.needs(probes.iterators())
        probes.needs(probes.compares_attach_types())
        linux, devmap = LinuxKernel(), 35
        array = linux.map_create(MapType.PROG_ARRAY, 4, 4, 16, "devmap")
        owner = linux.prog_load(ProgType.XDP, asm.returns(2), expected_attach_type=devmap)
        linux.map_update(array, 0, owner)
        await client.put("/maps/devmap", json={"id": linux.map_info(array).id})
        answer = await put(client, files, maps={"stages": {"use": "devmap"}}, values="set")
        assert {each["attach_type"] for each in answer.json()["object"]["programs"]} == {devmap}
        assert len(await names(client, "/maps/devmap/entries")) == 4
        for fd in (array, owner):
            linux.close(fd)

    async def test_maps_of_the_version_before_are_kept_with_what_is_in_them(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        first = (await put(client, files)).json()["object"]
        keep = {"stats": {"use": "previous"}, ".bss": {"use": "previous"}, "stages": {"use": "previous"}}
        answer = await put(client, files, maps=keep, values="set", variables={"verdict": 3})
        second = answer.json()["object"]
        ids = [{each["map"]: each["id"] for each in told["maps"]} for told in (first, second)]
        assert {name for name in ids[0] if ids[0][name] == ids[1][name]} == {"stats", ".bss", "stages"}
        assert [(each["map"], len(each["entries"])) for each in answer.json()["changes"]] == [("parser.stages", 3)]
        assert await verdict(client, 2) == "XDP_TX"


class TestVersions:
    async def holding(self, client: httpx.AsyncClient, files: Path) -> dict[str, int]:
        """Load a version, put two of its programs into two tables, and return the ids of its programs."""
        told = (await put(client, files, programs=NO_ATTACH_TYPE)).json()["object"]
        await client.put("/maps/jump_table/entries/3", json={"program": "parser.drop"})
        await client.put("/maps/jump_table/entries/7", json={"program": "parser.tcp"})
        return {each["program"]: each["id"] for each in told["programs"]}

    async def second_table(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        """Hold another array, with a program of the object in it."""
        kernel: Kernel = app.state.service.registry.kernel
        fd = kernel.map_create(3, 4, 4, 4, "second")
        await client.put("/maps/second", json={"id": kernel.map_info(fd).id})
        kernel.close(fd)
        await client.put("/maps/second/entries/1", json={"program": "parser.drop"})

    async def test_entries_move_to_the_new_version_and_back(self, client: httpx.AsyncClient, files: Path) -> None:
        before = await self.holding(client, files)
        kept = await put(client, files, programs=NO_ATTACH_TYPE, variables={"label": "x"})
        assert kept.json()["changes"] == []
        assert await verdict(client, 3, "entry") == "XDP_DROP", "entries keep the version before"
        moved = await put(client, files, programs=NO_ATTACH_TYPE, variables={"label": "x", "verdict": 3}, move=True)
        [change] = moved.json()["changes"]
        assert [each["index"] for each in change["entries"]] == [3, 7]
        assert {each["before"]["id"] for each in change["entries"]} == {before["drop"], before["tcp"]}
        assert {each["after"]["name"] for each in change["entries"]} == {"parser.drop", "parser.tcp"}
        assert [await verdict(client, index, "entry") for index in (3, 7)] == ["XDP_TX", "XDP_TX"]

    async def test_change_of_a_version_is_reverted_while_it_is_kept(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        await self.holding(client, files)
        body: dict[str, Any] = {"programs": NO_ATTACH_TYPE, "variables": {"label": "x"}, "move": True}
        [change] = (await put(client, files, **body)).json()["changes"]
        assert await verdict(client, 3, "entry") == "XDP_TX"
        assert (await client.post(f"/changes/{change['id']}/revert")).status_code == 200
        assert await verdict(client, 3, "entry") == "XDP_DROP"
        again = await put(client, files, **body)
        assert (again.json()["object"]["version"], len(again.json()["changes"])) == (2, 1), "what is left is moved"
        assert await verdict(client, 3, "entry") == "XDP_TX"
        assert (await put(client, files, **body)).json()["changes"] == []

    async def test_change_that_nobody_confirms_is_undone(
        self, client: httpx.AsyncClient, files: Path, app: FastAPI
    ) -> None:
        await self.holding(client, files)
        body: dict[str, Any] = {"programs": NO_ATTACH_TYPE, "variables": {"label": "x"}, "move": True}
        refused = await put(client, files, f"{PARSER}?confirm_within=60", **body)
        assert refused.json()["object"]["version"] == 2, "the array was made by the service, and ends with it"
        [change] = refused.json()["changes"]
        assert change["state"] == "unconfirmed"
        assert_problem(await client.delete(PARSER), 409, "in-use")
        assert_problem(await put(client, files, **body | {"variables": {}}), 409, "in-use")
        confirmations = app.state.service.changes.confirmations
        [pending] = confirmations._pending.values()
        assert await confirmations.undo(pending)
        assert await verdict(client, 3, "entry") == "XDP_DROP"

    async def test_entries_of_the_version_before_the_last_forbid_a_new_one(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        await self.holding(client, files)
        await put(client, files, programs=NO_ATTACH_TYPE, variables={"verdict": 1})
        refused = await put(client, files, programs=NO_ATTACH_TYPE, variables={"verdict": 0})
        assert_problem(refused, 409, "in-use")
        assert refused.json()["entries"] == [
            {"map": "jump_table", "index": 3, "program": "drop"}, {"map": "jump_table", "index": 7, "program": "tcp"},
        ] or refused.json()["entries"][::-1]  # fmt: skip
        assert (await client.get(PARSER)).json()["version"] == 2
        moved = await put(client, files, programs=NO_ATTACH_TYPE, variables={"verdict": 0}, move=True)
        assert len(moved.json()["changes"][0]["entries"]) == 2

    async def test_change_to_a_version_that_is_gone_cannot_be_reverted(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        """Its own arrays are empty, so its programs would let packets fall through."""
        await self.holding(client, files)
        body: dict[str, Any] = {"programs": NO_ATTACH_TYPE, "move": True}
        [first] = (await put(client, files, **body, variables={"verdict": 1})).json()["changes"]
        await client.delete("/maps/jump_table/entries/3")
        await client.delete("/maps/jump_table/entries/7")
        await put(client, files, **body, variables={"verdict": 0})
        answer = await client.post(f"/changes/{first['id']}/revert")
        assert answer.status_code == 409

    async def test_program_without_a_successor_forbids_the_move(self, client: httpx.AsyncClient, files: Path) -> None:
        await self.holding(client, files)
        (files / "root.o").write_bytes(object_file("root"))
        refused = await client.put(PARSER, json={"file": str(files / "root.o"), "move": True})
        assert_problem(refused, 409, "in-use")
        assert refused.json()["program"] in {"drop", "tcp"}
        assert (await client.get(PARSER)).json()["version"] == 1
        assert await verdict(client, 3, "entry") == "XDP_DROP"

    async def test_entry_that_the_kernel_refuses_takes_everything_back(
        self, client: httpx.AsyncClient, files: Path, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = await self.holding(client, files)
        await self.second_table(client, app)
        tables = [await names(client, f"/maps/{name}/entries") for name in ("jump_table", "second")]

        def fails(*_: object) -> None:
            raise KernelError("MAP_UPDATE_ELEM", "ENOMEM")

        monkeypatch.setattr(app.state.service.registry.maps.get("second").opened(), "set", fails)
        failed = await put(client, files, programs=NO_ATTACH_TYPE, variables={"label": "x"}, move=True)
        assert_problem(failed, 500, "kernel-error")
        assert (failed.json()["map"], failed.json()["index"], failed.json()["put_back"]) == ("second", 1, True)
        monkeypatch.undo()
        told = (await client.get(PARSER)).json()
        assert (told["version"], told["previous"]) == (1, None)
        assert {each["program"]: each["id"] for each in told["programs"]} == before
        assert [await names(client, f"/maps/{name}/entries") for name in ("jump_table", "second")] == tables
        assert (await client.get("/changes?order=desc&limit=1")).json()["changes"][0]["kind"] == "set"
        assert await verdict(client, 3, "entry") == "XDP_DROP"

    async def test_several_tables_change_together_or_not_at_all(
        self, client: httpx.AsyncClient, files: Path, app: FastAPI
    ) -> None:
        """A change for each map, in one transaction of the journal."""
        await self.holding(client, files)
        await self.second_table(client, app)
        body: dict[str, Any] = {"programs": NO_ATTACH_TYPE, "variables": {"label": "x"}, "move": True}
        answer = await put(client, files, f"{PARSER}?note=v2", **body)
        changes = answer.json()["changes"]
        assert sorted(each["map"] for each in changes) == ["jump_table", "second"]
        assert {each["note"] for each in changes} == {"v2"}
        assert answer.headers["change-id"] == ", ".join(str(each["id"]) for each in changes)
        told = (await client.get("/changes?order=desc&limit=2")).json()["changes"]
        assert [each["id"] for each in told] == [each["id"] for each in changes[::-1]]


class TestSwitch:
    async def test_one_entry_leads_to_the_new_version(self, client: httpx.AsyncClient, files: Path) -> None:
        switch = {"map": "jump_table", "index": 5, "program": "entry"}
        first = await put(client, files, switch=switch)
        [change] = first.json()["changes"]
        assert (change["kind"], [each["index"] for each in change["entries"]]) == ("set", [5])
        second = await put(client, files, switch=switch, variables={"label": "x"})
        [change] = second.json()["changes"]
        assert [each["index"] for each in change["entries"]] == [5]
        assert (await client.post(f"/changes/{change['id']}/revert")).status_code == 200
        told = (await client.get(PARSER)).json()
        entry = (await client.get("/maps/jump_table/entries/5")).json()["program"]
        assert entry["id"] == told["previous"]["program_ids"]["entry"]
        again = await put(client, files, switch=switch, variables={"label": "x"})
        assert (again.json()["object"]["version"], len(again.json()["changes"])) == (2, 1)

    async def test_the_table_of_the_object_itself_does_not_lead_to_it(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        await put(client, files)
        switch = {"map": "parser.stages", "index": 9, "program": "entry"}
        assert_problem(await put(client, files, switch=switch, variables={"label": "x"}), 422, "object-unsupported")
