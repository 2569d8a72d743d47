"""Object files on the real kernel: loaded, held, replaced by a new version, and unloaded."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.loader.client import DirectLoader
from app.loader.messages import ObjectLimits
from app.service.loading.object_files import ObjectOptions
from app.service.registry.registry import Registry
from tests.api.conftest import assert_problem, client_of, started
from tests.compiled import has_clang, object_file

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
    pytest.mark.skipif(not has_clang(), reason="clang is not installed: apt-get install clang libbpf-dev"),
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
    bounds = ObjectLimits(object_dirs=[str(files)], upload=True, **limits)
    return ObjectOptions(DirectLoader(bounds), bounds.max_bytes, upload=True, copies=files.parent / "copies")


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
        assert (await client.get("/objects")).json() == {"objects": [told.json()]}

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
