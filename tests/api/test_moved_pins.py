"""Pins that lead to other objects than those that are held: a loader ran again and pinned what is new over the old."""

import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from tests.api.conftest import assert_problem, client_on_registry
from tests.conftest import load

pytestmark = [pytest.mark.anyio, pytest.mark.field]

TABLE = "/maps/table/entries"


class Loader:
    """A loader that pins the program array `table` of 8 entries, and the programs `one` and `two`."""

    def __init__(self, kernel: Kernel, pins: Path) -> None:
        self.kernel, self.pins = kernel, pins

    def pin(self, fd: int, name: str) -> None:
        """Pin over what is there, in one step where the kernel is real."""
        if self.kernel.name == "linux":
            self.kernel.obj_pin(fd, f"{self.pins}/{name}_new")
            (self.pins / f"{name}_new").rename(self.pins / name)
            return
        with contextlib.suppress(FileNotFoundError):
            self.kernel.unpin(f"{self.pins}/{name}")
        self.kernel.obj_pin(fd, f"{self.pins}/{name}")

    def pin_array(self, entries: int = 8) -> int:
        with make_array(self.kernel, "table", entries) as array:
            self.pin(array.fd, "table")
            return array.id

    def pin_program(self, name: str, value: int) -> int:
        with load(self.kernel, value, name=name) as program:
            self.pin(program.fd, name)
            return program.id


@pytest.fixture
def loader(kernel: Kernel, pins: Path) -> Loader:
    return Loader(kernel, pins)


@pytest.fixture
async def held(client: httpx.AsyncClient, loader: Loader, pins: Path) -> dict[str, int]:
    """The ids of what the loader has pinned first, and the service holds."""
    ids = {"table": loader.pin_array(), "one": loader.pin_program("one", 1), "two": loader.pin_program("two", 2)}
    assert (await client.put("/maps/table", json={"pinned": f"{pins}/table"})).status_code == 201
    for name in ("one", "two"):
        assert (await client.put(f"/programs/{name}", json={"pinned": f"{pins}/{name}"})).status_code == 201
    return ids


async def look(app: FastAPI) -> None:
    """Do what the service does every few seconds."""
    await app.state.service.pins.check_all()


def happened(app: FastAPI, name: str) -> list[tuple[str, Any, Any]]:
    """What has happened to a held object by its events, after it was held."""
    found = [event.data for event in app.state.service.journal.events(0, 100) if event.data]
    of_it = [data for data in found if name in {data.get("map"), data.get("program")} and "happened" in data]
    return [(data["happened"], data["id"], data.get("leads_to")) for data in of_it if data["happened"] != "held"]


async def moved(client: httpx.AsyncClient) -> dict[str, float]:
    """The gauge, by kind."""
    text = (await client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {each.labels["kind"]: each.value for each in samples if each.name == "jumptable_pins_moved"}


class TestProgram:
    async def test_program_pinned_anew_is_told_everywhere_until_it_is_held_anew(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        """Field 8: a program pinned anew is stale in silence."""
        told = (await client.get("/programs/one")).json()
        assert (told["pins"], told["warnings"]) == ([f"{pins}/one"], [])
        assert (await client.get("/readyz")).status_code == 200
        new = loader.pin_program("one", 3)
        ready = await client.get("/readyz")
        assert_problem(ready, 503, "program-unavailable")
        assert f"leads to another program now (id {new})" in ready.json()["reasons"][0]
        listed = {each["name"]: each for each in (await client.get("/programs")).json()["programs"]}
        for told in ((await client.get("/programs/one")).json(), listed["one"]):
            assert (told["name"], told["id"]) == ("one", held["one"])
            assert f"leads to another program now (id {new})" in told["warnings"][0]
        await look(app)
        assert await moved(client) == {"map": 0, "program": 1}
        assert happened(app, "one") == [("moved", held["one"], new)], "once, however often it is looked at"
        opened = await client.put("/programs/one", json={"pinned": f"{pins}/one"})
        assert (opened.status_code, opened.json()["id"], opened.json()["warnings"]) == (200, new, [])
        await look(app)
        assert happened(app, "one") == [("moved", held["one"], new), ("settled", new, None)]
        assert await moved(client) == {"map": 0, "program": 0}
        assert (await client.get("/readyz")).status_code == 200

    @pytest.mark.usefixtures("both_ways")
    async def test_program_pinned_anew_is_not_put_in_by_its_name(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        """Field 8: a program pinned anew is stale in silence, also where nothing would have to be written."""
        await client.put(f"{TABLE}/0", json={"program": "one"})
        new = loader.pin_program("one", 3)
        await look(app)
        for method, path, body in (
            ("PUT", f"{TABLE}/0", {"program": "one"}),
            ("PUT", f"{TABLE}/1", {"program": "one"}),
            ("PUT", f"{TABLE}/1?dry_run=true", {"program": "one"}),
            ("PUT", TABLE, {"programs": ["one", "two"]}),
            ("PATCH", TABLE, {"entries": [{"index": 0, "program": {"name": "one"}}]}),
        ):
            refused = await client.request(method, path, json=body)
            assert_problem(refused, 409, "pin-moved")
            facts = {key: refused.json()[key] for key in ("kind", "name", "pinned", "id", "leads_to")}
            assert facts == {
                "kind": "program", "name": "one", "pinned": f"{pins}/one", "id": held["one"], "leads_to": new,
            }  # fmt: skip
        for program in ("two", {"id": held["one"]}, {"pinned": f"{pins}/one"}):
            assert (await client.put(f"{TABLE}/1", json={"program": program})).status_code in {200, 201}
        assert (await client.get(f"{TABLE}/1")).json()["program"]["id"] == new, "the pin itself leads to the new one"
        forced = await client.put(f"{TABLE}/1?force=true", json={"program": "one"})
        assert (forced.status_code, forced.json()["program"]["id"]) == (200, held["one"])
        await client.put("/programs/one", json={"pinned": f"{pins}/one"})
        again = await client.put(f"{TABLE}/1", json={"program": "one"})
        assert (again.status_code, again.json()["program"]["id"]) == (200, new)
        assert (await client.get(f"{TABLE}/0")).json()["program"]["id"] == held["one"], "entries keep the old one"


class TestMap:
    async def test_array_pinned_anew_is_told_everywhere_until_its_pin_leads_back(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        """Field 9: an array pinned anew, and no answer, event, metric or log says so."""
        new = loader.pin_array()
        await look(app)
        await look(app)
        assert happened(app, "table") == [("moved", held["table"], new)]
        assert await moved(client) == {"map": 1, "program": 0}
        assert f"(id {new})" in (await client.get("/readyz")).json()["reasons"][0]
        loader.pin(app.state.service.registry.maps.get("table").opened().fd, "table")
        assert (await client.get("/maps/table")).json()["warnings"] == []
        assert happened(app, "table")[1:] == [("settled", held["table"], None)]
        assert await moved(client) == {"map": 0, "program": 0}

    @pytest.mark.usefixtures("both_ways")
    @pytest.mark.parametrize("noticed_by", ["/readyz", "/maps/table", "/maps", None])
    async def test_change_of_an_array_pinned_anew_is_refused_unless_forced(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], noticed_by: str | None
    ) -> None:
        """Field 9: an array pinned anew, and PUT answers 201 into the superseded one."""
        await client.put(f"{TABLE}/0", json={"program": "one"})
        new = loader.pin_array()
        await (look(app) if noticed_by is None else client.get(noticed_by))
        for query in ("?dry_run=true", ""):
            for method, path, body in (
                ("PUT", f"{TABLE}/0", {"program": "one"}),
                ("PUT", f"{TABLE}/1", {"program": "two"}),
                ("DELETE", f"{TABLE}/0", None),
                ("PUT", TABLE, {"programs": ["two"]}),
                ("PATCH", TABLE, {"entries": [{"index": 0, "program": "two"}]}),
                ("POST", "/changes/1/revert", None),
                ("POST", "/maps/table/reconcile", {"to": "journal"}),
                ("POST", "/maps/table/reconcile", {"to": "kernel"}),
            ):
                refused = await client.request(method, f"{path}{query}", json=body)
                assert_problem(refused, 409, "pin-moved")
                facts = [refused.json()[key] for key in ("kind", "name", "id", "leads_to")]
                assert facts == ["map", "table", held["table"], new]
        assert len((await client.get("/changes")).json()["changes"]) == 1
        assert (await client.get(f"{TABLE}/0")).status_code == 200, "it can still be read"
        for method, path, body in (
            ("PUT", f"{TABLE}/0", {"program": "two"}),
            ("PATCH", TABLE, {"entries": [{"index": 0, "program": "one"}]}),
            ("POST", "/changes/3/revert", None),
            ("PUT", TABLE, {"programs": ["one"]}),
            ("POST", "/maps/table/reconcile", {"to": "journal"}),
            ("DELETE", f"{TABLE}/0", None),
        ):
            assert (await client.request(method, f"{path}?force=true", json=body)).status_code in {200, 204}

    async def test_unconfirmed_change_of_a_superseded_array_can_be_confirmed(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int]
    ) -> None:
        await client.put(f"{TABLE}/0?confirm_within=60", json={"program": "one"})
        loader.pin_array()
        await look(app)
        assert (await client.post("/changes/1/confirm")).status_code == 200

    async def test_pin_that_leads_to_an_object_of_another_kind_is_moved(
        self, app: FastAPI, kernel: Kernel, client: httpx.AsyncClient, loader: Loader, held: dict[str, int]
    ) -> None:
        """Field 9: an array pinned anew, by something that is no array."""
        hash_ = kernel.map_create(MapType.HASH, 4, 4, 8)
        loader.pin(hash_, "table")
        loader.pin(hash_, "one")
        kernel.close(hash_)
        await look(app)
        for name in ("table", "one"):
            assert happened(app, name) == [("moved", held[name], None)]
        assert "leads to no array" in (await client.get("/maps/table")).json()["warnings"][0]
        assert "leads to no program" in (await client.get("/programs/one")).json()["warnings"][0]
        assert_problem(await client.put(f"{TABLE}/0", json={"program": "two"}), 409, "pin-moved")

    async def test_move_that_cannot_be_journalled_is_told_later(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        new = loader.pin_array()

        async def fail(*_: object, **__: object) -> None:
            message = "the disk is full"
            raise JournalFailed(message)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append_object_event", fail)
            await look(app)
            assert_problem(await client.put(f"{TABLE}/0", json={"program": "one"}), 409, "pin-moved")
        assert happened(app, "table") == []
        await look(app)
        assert happened(app, "table") == [("moved", held["table"], new)]


class TestRecord:
    """What the entries of an array are to hold, when it is held anew."""

    async def test_array_held_anew_keeps_the_record_and_reconcile_writes_it(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        """Field 9: an array pinned anew loses what its entries are to hold, as soon as it is held anew."""
        await client.put(TABLE, json={"programs": ["one", None, "two"]})
        loader.pin_array(4)
        body = {"pinned": f"{pins}/table"}
        refused = await client.put("/maps/table", json=body)
        assert_problem(refused, 409, "last-reference")
        assert "?force=true to hold the new one" in refused.json()["detail"]
        assert "POST /maps/table/reconcile" in refused.json()["detail"]
        told = (await client.put("/maps/table?force=true", json=body)).json()
        assert [(each["index"], each["journal"]["id"], each["kernel"]) for each in told["drift"]] == [
            (0, held["one"], None), (2, held["two"], None),
        ]  # fmt: skip
        done = await client.post("/maps/table/reconcile", json={"to": "journal"})
        assert (done.status_code, done.json()["set"]) == (200, 2)
        entries = (await client.get(TABLE)).json()["entries"]
        assert {each["index"]: each["program"]["name"] for each in entries} == {0: "one", 2: "two"}
        assert (await client.get("/maps/table")).json()["drift"] == []

    async def test_program_that_only_the_old_array_held_is_restored(
        self, app: FastAPI, kernel: Kernel, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        """Field 9: an array pinned anew, and the programs that only the old one kept alive are gone."""
        with load(kernel, 3, name="loose") as loose:
            id_ = loose.id
            await client.put(f"{TABLE}/5", json={"program": {"id": id_}})
        loader.pin_array()
        await client.put("/maps/table?force=true", json={"pinned": f"{pins}/table"})
        assert (await client.post("/maps/table/reconcile", json={"to": "journal"})).status_code == 200
        assert (await client.get(f"{TABLE}/5")).json()["program"]["id"] == id_

    @pytest.mark.parametrize("programs_first", [True, False])
    async def test_loader_that_pinned_everything_anew_gets_its_new_programs(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path,
        programs_first: bool,
    ) -> None:  # fmt: skip
        """Field 9: an array and its programs pinned anew; the old programs use the old maps."""
        await client.put(f"{TABLE}/0", json={"program": "one"})
        loader.pin_array()
        new = loader.pin_program("one", 3)
        await look(app)
        paths = ["/programs/one", "/maps/table"]
        for path in paths if programs_first else paths[::-1]:
            body = {"pinned": f"{pins}/{path.rpartition('/')[2]}"}
            assert (await client.put(f"{path}{'?force=true' if 'maps' in path else ''}", json=body)).status_code == 200
        assert (await client.post("/maps/table/reconcile", json={"to": "journal"})).status_code == 200
        assert (await client.get(f"{TABLE}/0")).json()["program"]["id"] == new
        assert (await client.get("/maps/table")).json()["drift"] == []

    async def test_loader_that_fills_its_new_array_with_its_new_programs_causes_no_drift(
        self, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        await client.put(f"{TABLE}/0", json={"program": "one"})
        with make_array(loader.kernel, "table", 8) as array, load(loader.kernel, 3, name="one") as one:
            array.set(0, one)
            loader.pin(array.fd, "table")
            loader.pin(one.fd, "one")
        told = await client.put("/maps/table?force=true", json={"pinned": f"{pins}/table"})
        assert (told.status_code, told.json()["used"], told.json()["drift"]) == (200, 1, [])

    async def test_array_of_another_source_is_taken_as_it_is(
        self, kernel: Kernel, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], pins: Path
    ) -> None:
        with make_array(kernel, "other", 8) as array, load(kernel, 3) as program:
            array.set(1, program)
            kernel.obj_pin(array.fd, f"{pins}/other")
        told = (await client.put("/maps/table", json={"pinned": f"{pins}/other"})).json()
        assert (told["used"], told["drift"]) == (1, [])


class TestFollow:
    """`follow = true` in the configuration."""

    async def test_program_is_opened_by_itself_and_entries_keep_the_old_one(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int]
    ) -> None:
        """Field 8: a program pinned anew is stale until somebody opens it by hand."""
        service = app.state.service
        service.registry.programs.get("one").follow = True
        await client.put(f"{TABLE}/0", json={"program": "one"})
        new = loader.pin_program("one", 3)
        loader.pin_program("two", 3)
        await service._follow_pins()
        assert (await client.get("/programs/one")).json()["id"] == new
        assert (await client.get("/programs/two")).json()["id"] == held["two"], "it is not to follow"
        assert happened(app, "one") == [("moved", held["one"], new), ("settled", new, None)]
        assert (await client.get(f"{TABLE}/0")).json()["program"]["id"] == held["one"]
        assert (await client.put(f"{TABLE}/0", json={"program": "one"})).json()["program"]["id"] == new

    @pytest.mark.parametrize("restore", [False, True])
    async def test_array_is_opened_by_itself_and_its_entries_are_drift_or_restored(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int], restore: bool
    ) -> None:
        """Field 9: an array pinned anew is superseded until somebody opens it by hand."""
        service = app.state.service
        map_ = service.registry.maps.get("table")
        map_.follow, map_.restore = True, restore
        await client.put(TABLE, json={"programs": ["one", None, "two"]})
        new = loader.pin_array()
        await service._follow_pins()
        await service.open_unavailable()
        told = (await client.get("/maps/table")).json()
        assert (told["id"], told["used"], told["warnings"]) == (new, 2 if restore else 0, [])
        assert [each["index"] for each in told["drift"]] == ([] if restore else [0, 2])
        assert happened(app, "table") == [("moved", held["table"], new), ("settled", new, None)]
        drifts = [event.data["count"] for event in service.journal.events(0, 100) if event.type == "drift"]
        assert drifts[:1] == [2]
        assert (await client.get("/readyz")).status_code == 200

    async def test_nothing_is_followed_while_an_undo_needs_what_is_held(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int]
    ) -> None:
        service = app.state.service
        for each in (service.registry.maps.get("table"), service.registry.programs.get("one")):
            each.follow = True
        await client.put(f"{TABLE}/0", json={"program": "one"})
        await client.put(f"{TABLE}/0?confirm_within=60", json={"program": "two"})
        new_array, new_program = loader.pin_array(), loader.pin_program("one", 3)
        for _ in range(2):
            await service._follow_pins()
        assert (await client.get("/maps/table")).json()["id"] == held["table"]
        assert (await client.get("/programs/one")).json()["id"] == held["one"]
        assert_problem(await client.get("/readyz"), 503, "map-unavailable")
        assert (await client.post("/changes/2/confirm")).status_code == 200
        await service._follow_pins()
        assert (await client.get("/maps/table")).json()["id"] == new_array
        assert (await client.get("/programs/one")).json()["id"] == new_program

    async def test_pin_that_leads_to_an_object_of_another_kind_is_not_followed(
        self, app: FastAPI, client: httpx.AsyncClient, loader: Loader, held: dict[str, int]
    ) -> None:
        app.state.service.registry.maps.get("table").follow = True
        with load(loader.kernel, 3) as program:
            loader.pin(program.fd, "table")
        await app.state.service._follow_pins()
        assert (await client.get("/maps/table")).json()["id"] == held["table"]


class TestConfigured:
    async def test_configured_pin_outside_of_pin_dirs_is_opened_anew(self, kernel: Kernel, pins: Path) -> None:
        """Field 8: a program pinned anew, and PUT with the pin of the configuration is 403."""
        loader = Loader(kernel, pins)
        loader.pin_array()
        loader.pin_program("one", 1)
        registry = Registry(kernel, [f"{pins}/elsewhere"])
        registry.maps.add(HeldMap("table", Pinned(f"{pins}/table")))
        registry.programs.add(HeldProgram("one", Pinned(f"{pins}/one")))
        registry.open_unavailable()
        new_map, new_program = loader.pin_array(), loader.pin_program("one", 3)
        async with client_on_registry(registry) as client:
            opened = await client.put("/maps/table", json={"pinned": f"{pins}/table"})
            assert (opened.status_code, opened.json()["id"]) == (200, new_map)
            opened = await client.put("/programs/one", json={"pinned": f"{pins}/one"})
            assert (opened.status_code, opened.json()["id"]) == (200, new_program)
            refused = await client.put("/programs/two", json={"pinned": f"{pins}/one"})
            assert_problem(refused, 403, "pin-not-allowed")
        registry.close()
