"""Drift: how it is found, how it ends, and which entries are restored at the start."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from tests.api.conftest import ENTRY, assert_problem, client_of, started
from tests.conftest import load

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"
MAP = "/maps/jump_table"


class Outside:
    """Another tool that writes the same map in the kernel."""

    def __init__(self, registry: Registry, name: str = "jump_table") -> None:
        self.registry = registry
        self.fd = registry.maps.get(name).opened().fd

    def set(self, index: int, name: str) -> None:
        self.registry.kernel.map_update(self.fd, index, self.registry.programs.get(name).opened().fd)

    def clear(self, index: int) -> None:
        self.registry.kernel.map_delete(self.fd, index)


@pytest.fixture
def outside(registry: Registry) -> Outside:
    return Outside(registry)


async def drift_of(client: httpx.AsyncClient, path: str = MAP) -> dict[int, tuple[str | None, str | None]]:
    """The drift of a map, by index: the expected name and the name in the kernel."""
    told = (await client.get(path)).json()["drift"]
    return {each["index"]: (_name(each["journal"]), _name(each["kernel"])) for each in told}


def _name(program: dict[str, str] | None) -> str | None:
    return None if program is None else program["name"]


@pytest.mark.usefixtures("both_ways")
class TestDrift:
    async def test_changes_through_the_service_cause_no_drift(self, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass", "tx"]})
        await client.put(f"{TABLE}/1", json={"program": "drop"})
        await client.delete(f"{TABLE}/2")
        await client.post("/changes/3/revert")
        assert await drift_of(client) == {}

    async def test_entries_set_replaced_or_cleared_from_outside_are_drift(
        self, client: httpx.AsyncClient, outside: Outside
    ) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass"]})
        outside.set(0, "tx")
        outside.clear(1)
        outside.set(2, "tx")
        assert await drift_of(client) == {0: ("drop", "tx"), 1: ("pass", None), 2: (None, "tx")}

    async def test_drift_ends_when_it_is_undone_from_outside(self, client: httpx.AsyncClient, outside: Outside) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        outside.set(3, "tx")
        assert await drift_of(client) == {3: ("drop", "tx")}
        outside.set(3, "drop")
        assert await drift_of(client) == {}

    async def test_change_of_the_entry_ends_drift(self, client: httpx.AsyncClient, outside: Outside) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        outside.set(3, "tx")
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 200
        assert await drift_of(client) == {}
        entries = (await client.get("/changes/2")).json()["entries"]
        assert entries[0]["before"]["name"] == "tx", "what was really replaced"

    async def test_entries_present_at_the_first_hold_are_no_drift(
        self, registry: Registry, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        with make_array(kernel, "other", 4) as array, load(kernel, 1) as program:
            array.set(0, program)
            kernel.obj_pin(array.fd, f"{pins}/other")
        assert (await client.put("/maps/other", json={"pinned": f"{pins}/other"})).json()["drift"] == []
        Outside(registry, "other").clear(0)
        assert list(await drift_of(client, "/maps/other")) == [0]

    @pytest.mark.parametrize("path", [TABLE, f"{TABLE}/3", MAP])
    async def test_any_read_finds_drift_and_one_event_tells_it(
        self, app: FastAPI, client: httpx.AsyncClient, outside: Outside, path: str
    ) -> None:
        outside.set(3, "tx")
        for _ in range(2):
            await client.get(path)
            await app.state.service.drift.finish()
        (event,) = app.state.service.journal.events(0, 10)
        assert (event.type, event.map, event.data["count"]) == ("drift", "jump_table", 1)
        assert event.data["drift"][0]["kernel"]["name"] == "tx"

    async def test_periodic_check_finds_drift(self, app: FastAPI, outside: Outside) -> None:
        outside.set(3, "tx")
        await app.state.service.drift.check_all()
        assert [event.type for event in app.state.service.journal.events(0, 10)] == ["drift"]

    async def test_drift_event_lists_at_most_100_entries(
        self, app: FastAPI, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("large", make_array(kernel, "large", 3000))
        await app.state.service.drift.begin(registry.maps.get("large"))
        other = Outside(registry, "large")
        for index in range(3000):
            other.set(index, "tx")
        assert len(await drift_of(client, "/maps/large")) == 3000
        (event,) = app.state.service.journal.events(0, 10)
        assert (event.data["count"], len(event.data["drift"])) == (3000, 100)


class TestReopenedMap:
    async def test_read_during_a_reopen_answers_the_old_or_the_new_array(
        self, registry: Registry, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        for size in (40_000, 5_000):
            with make_array(kernel, "table", size) as array:
                if size == 5_000:
                    kernel.unpin(f"{pins}/table")
                kernel.obj_pin(array.fd, f"{pins}/table")
            if size == 40_000:
                await client.put("/maps/table", json={"pinned": f"{pins}/table"})
                for index in range(0, size, 100):
                    Outside(registry, "table").set(index, "tx")
        told, opened = await asyncio.gather(
            client.get("/maps/table"), client.put("/maps/table?force=true", json={"pinned": f"{pins}/table"})
        )
        assert opened.status_code == 200
        assert (told.status_code, told.json()["max_entries"], told.json()["used"]) in {
            (200, 40_000, 400),
            (200, 5_000, 0),
        }


class TestReconcile:
    async def test_reconcile_to_the_journal_restores_the_table(
        self, client: httpx.AsyncClient, outside: Outside
    ) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass"]})
        before = (await client.get(TABLE)).json()
        outside.set(0, "tx")
        outside.clear(1)
        outside.set(2, "tx")
        dry = await client.post(f"{MAP}/reconcile?dry_run=true", json={"to": "journal"})
        assert (dry.json()["set"], dry.json()["cleared"], dry.json()["change"]) == (2, 1, None)
        done = await client.post(f"{MAP}/reconcile?note=mine", json={"to": "journal"})
        assert (done.status_code, done.json()["set"], done.json()["cleared"]) == (200, 2, 1)
        assert done.headers["change-id"] == str(done.json()["change"]["id"])
        assert (done.json()["change"]["kind"], done.json()["change"]["note"]) == ("reconcile", "mine")
        assert (await client.get(TABLE)).json() == before
        assert await drift_of(client) == {}

    async def test_reconcile_to_the_kernel_adopts_its_entries(
        self, client: httpx.AsyncClient, outside: Outside
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        outside.set(3, "tx")
        dry = await client.post(f"{MAP}/reconcile?dry_run=true", json={"to": "kernel"})
        assert (dry.json()["unchanged"], dry.json()["change"]) == (1, None)
        assert await drift_of(client) == {3: ("drop", "tx")}
        done = (await client.post(f"{MAP}/reconcile", json={"to": "kernel"})).json()
        assert (done["set"], done["cleared"], done["unchanged"], done["change"]["kind"]) == (0, 0, 1, "adopt")
        assert await drift_of(client) == {}
        assert (await client.get(ENTRY)).json()["program"]["name"] == "tx"
        await client.post(f"/changes/{done['change']['id']}/revert")
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop", "and that can be reverted"

    async def test_reconcile_without_drift_makes_no_change(self, client: httpx.AsyncClient) -> None:
        for to in ("journal", "kernel"):
            done = await client.post(f"{MAP}/reconcile", json={"to": to})
            assert done.json() == {"change": None, "set": 0, "cleared": 0, "unchanged": 0}
            assert "change-id" not in done.headers

    async def test_reconcile_changes_nothing_if_one_program_is_gone(
        self, kernel: Kernel, client: httpx.AsyncClient, outside: Outside
    ) -> None:
        with load(kernel, 1, name="loose") as loose:
            await client.put(f"{TABLE}/1", json={"program": {"id": loose.id}})
        await client.put(f"{TABLE}/0", json={"program": "drop"})
        outside.set(0, "tx")
        outside.set(1, "tx")  # removes the last reference to `loose`
        refused = await client.post(f"{MAP}/reconcile", json={"to": "journal"})
        assert_problem(refused, 409, "change-not-revertible")
        assert [each["index"] for each in refused.json()["entries"]] == [1]
        assert len(await drift_of(client)) == 2

    @pytest.mark.parametrize("body", [{"to": "me"}, {}, {"to": None}, {"to": "kernel", "from": "journal"}])
    async def test_bad_input_is_refused(self, client: httpx.AsyncClient, body: object) -> None:
        assert_problem(await client.post(f"{MAP}/reconcile", json=body), 422, "validation")
        assert_problem(await client.post("/maps/nope/reconcile", json={"to": "kernel"}), 404, "map-unknown")
        refused = await client.post(f"{MAP}/reconcile?confirm_within=5", json={"to": "kernel"})
        assert_problem(refused, 422, "validation")


@pytest.fixture
def pinned_objects(kernel: Kernel, pins: Path) -> Path:
    """A folder with a pinned array of 4 entries and the pinned programs `one` and `two`."""
    pin_all(kernel, pins)
    return pins


def pin_all(kernel: Kernel, pins: Path) -> None:
    with make_array(kernel, "table", 4) as array:
        kernel.obj_pin(array.fd, f"{pins}/table")
    for value, name in enumerate(("one", "two"), 1):
        with load(kernel, value, name=name) as program:
            kernel.obj_pin(program.fd, f"{pins}/{name}")


def unpin_all(kernel: Kernel, pins: Path) -> None:
    for name in ("table", "one", "two"):
        kernel.unpin(f"{pins}/{name}")


def service_on(kernel: Kernel, pins: Path, *, restore: bool) -> Registry:
    registry = Registry(kernel, [str(pins)])
    registry.maps.add(HeldMap("table", Pinned(f"{pins}/table"), restore=restore))
    for name in ("one", "two"):
        registry.programs.add(HeldProgram(name, Pinned(f"{pins}/{name}")))
    registry.open_unavailable()
    return registry


async def first_run(kernel: Kernel, pins: Path, file: Path) -> None:
    """Run a service that sets entries 0 and 1 and ends."""
    registry = service_on(kernel, pins, restore=False)
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        assert (await client.put("/maps/table/entries", json={"programs": ["one", "two"]})).status_code == 200
    registry.close()


class TestStart:
    @pytest.mark.parametrize("restore", [False, True])
    async def test_entries_changed_during_downtime_are_restored_or_drift(
        self, kernel: Kernel, pinned_objects: Path, tmp_path: Path, restore: bool
    ) -> None:
        file = tmp_path / "journal.db"
        await first_run(kernel, pinned_objects, file)
        registry = service_on(kernel, pinned_objects, restore=restore)
        outside = Outside(registry, "table")
        outside.set(0, "two")
        outside.clear(1)
        async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
            entries = {each["index"]: each["program"]["name"] for each in await entries_of(client)}
            changes = (await client.get("/changes")).json()["changes"]
            if restore:
                assert entries == {0: "one", 1: "two"}
                assert (changes[-1]["kind"], changes[-1]["actor"]) == ("restore", "jumptable")
                assert await drift_of(client, "/maps/table") == {}
            else:
                assert entries == {0: "two"}
                assert len(changes) == 1
                assert await drift_of(client, "/maps/table") == {0: ("one", "two"), 1: ("two", None)}
        registry.close()

    @pytest.mark.field
    async def test_restore_has_a_line_in_the_audit(self, kernel: Kernel, pinned_objects: Path, tmp_path: Path) -> None:
        """Field 11: a log that tells little: what the service does by itself is in the audit."""
        file = tmp_path / "journal.db"
        await first_run(kernel, pinned_objects, file)
        registry = service_on(kernel, pinned_objects, restore=True)
        Outside(registry, "table").set(0, "two")
        with capture_logs() as told:
            async with started(registry, journal=Journal(file, "process")):
                pass
        (line,) = [each for each in told if each["event"] == "restore"]
        assert (line["actor"], line["map"], line["change"]) == ("jumptable", "table", 2)
        assert [(each["before"]["name"], each["after"]["name"]) for each in line["entries"]] == [("two", "one")]
        registry.close()

    async def test_reloaded_programs_with_the_same_code_are_no_drift(
        self, kernel: Kernel, pinned_objects: Path, tmp_path: Path
    ) -> None:
        """The entries have other program ids, but programs with the same code."""
        file = tmp_path / "journal.db"
        await first_run(kernel, pinned_objects, file)
        unpin_all(kernel, pinned_objects)
        pin_all(kernel, pinned_objects)
        registry = service_on(kernel, pinned_objects, restore=False)
        outside = Outside(registry, "table")
        outside.set(0, "one")
        outside.set(1, "two")
        async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
            assert await drift_of(client, "/maps/table") == {}
        registry.close()

    async def test_restore_without_journal_writes_the_table_only_once(
        self, kernel: Kernel, pinned_objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "journal.db"
        await first_run(kernel, pinned_objects, file)
        registry = service_on(kernel, pinned_objects, restore=True)
        for index in (0, 1):
            Outside(registry, "table").clear(index)
        writes = 0
        update = kernel.map_update

        def counted(*arguments: int) -> None:
            nonlocal writes
            writes += 1
            update(*arguments)

        monkeypatch.setattr(kernel, "map_update", counted)
        monkeypatch.setattr(Journal, "append", raise_journal_failed)
        async with started(registry, journal=Journal(file, "process")) as app:
            for _ in range(5):
                await app.state.service.open_unavailable()
            assert writes == 2
        registry.close()

    async def test_new_array_at_the_pin_is_restored_or_drift(
        self, kernel: Kernel, pinned_objects: Path, tmp_path: Path
    ) -> None:
        """The loader ran again while the service was down."""
        file = tmp_path / "journal.db"
        await first_run(kernel, pinned_objects, file)
        kernel.unpin(f"{pinned_objects}/table")
        with make_array(kernel, "table", 4) as array:
            kernel.obj_pin(array.fd, f"{pinned_objects}/table")
        for restore in (False, True):
            registry = service_on(kernel, pinned_objects, restore=restore)
            async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
                drift = await drift_of(client, "/maps/table")
                assert drift == ({} if restore else {0: ("one", None), 1: ("two", None)})
                assert len(await entries_of(client)) == (2 if restore else 0)
            registry.close()


async def raise_journal_failed(*_: object, **__: object) -> None:
    message = "the disk is full"
    raise JournalFailed(message)


async def entries_of(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await client.get("/maps/table/entries")).json()["entries"]
    return entries


class RebootedKernel(MemoryKernel):
    """A kernel after a reboot. It has none of the earlier objects."""


class TestReboot:
    async def test_programs_are_restored_as_their_pins_appear(self, tmp_path: Path) -> None:
        pins, file = Path("/sys/fs/bpf"), tmp_path / "journal.db"
        kernel = MemoryKernel()
        pin_all(kernel, pins)
        await first_run(kernel, pins, file)
        kernel = RebootedKernel()
        registry = service_on(kernel, pins, restore=True)
        async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
            assert (await client.get("/maps/table")).json()["state"] == "unavailable"
            with (
                load(kernel, 1),
                load(kernel, 2),
                make_array(kernel, "table", 4) as array,
            ):  # take the ids that the programs had before the reboot
                kernel.obj_pin(array.fd, f"{pins}/table")
                with load(kernel, 1, name="one") as program:
                    kernel.obj_pin(program.fd, f"{pins}/one")
                await app.state.service.open_unavailable()
                assert [each["index"] for each in await entries_of(client)] == [0]
                told = (await client.get("/maps/table")).json()
                assert [each["index"] for each in told["drift"]] == [1]
                assert told["drift"][0]["journal"] == {
                    "name": "two", "id": None, "tag": told["drift"][0]["journal"]["tag"], "pinned": f"{pins}/two",
                }  # fmt: skip
                assert any("entry 1 is not restored: program 'two'" in each for each in told["warnings"])
                with load(kernel, 2, name="two") as program:
                    kernel.obj_pin(program.fd, f"{pins}/two")
                await app.state.service.open_unavailable()
                assert [each["program"]["name"] for each in await entries_of(client)] == ["one", "two"]
                told = (await client.get("/maps/table")).json()
                assert (told["drift"], told["warnings"]) == ([], [])
        registry.close()

    async def test_loader_that_fills_the_table_with_the_same_code_causes_no_drift(self, tmp_path: Path) -> None:
        pins, file = Path("/sys/fs/bpf"), tmp_path / "journal.db"
        kernel = MemoryKernel()
        pin_all(kernel, pins)
        await first_run(kernel, pins, file)
        kernel = RebootedKernel()
        with load(kernel, 9), make_array(kernel, "table", 4) as array:
            kernel.obj_pin(array.fd, f"{pins}/table")
            registry = service_on(kernel, pins, restore=False)
            async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
                assert len(await drift_of(client, "/maps/table")) == 2
                with load(kernel, 1) as one, load(kernel, 2) as two:
                    array.set(0, one)
                    array.set(1, two)
                assert await drift_of(client, "/maps/table") == {}
            registry.close()

    async def test_unconfirmed_change_expires_and_is_not_restored(self, tmp_path: Path) -> None:
        pins, file = Path("/sys/fs/bpf"), tmp_path / "journal.db"
        kernel = MemoryKernel()
        pin_all(kernel, pins)
        await first_run(kernel, pins, file)
        registry = service_on(kernel, pins, restore=False)
        async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0?confirm_within=86400", json={"program": "two"})
        registry.close()
        kernel = RebootedKernel()
        pin_all(kernel, pins)
        registry = service_on(kernel, pins, restore=True)
        async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
            assert [each["program"]["name"] for each in await entries_of(client)] == ["one", "two"]
            assert (await client.get("/changes/2")).json()["state"] == "expired"
        registry.close()


@pytest.mark.field
async def test_trouble_is_logged_when_it_begins_and_when_it_ends(registry: Registry) -> None:
    """Field 11: a log that says the same at each retry: a journal that cannot be written is said once."""
    async with started(registry) as app:
        service, table = app.state.service, registry.maps.get("jump_table").opened()
        writer = service.journal._database.writer
        writer.execute("PRAGMA query_only = 1")
        table.set(3, registry.programs.get("drop").opened())
        with capture_logs() as told:
            for _ in range(5):
                await service.drift.check_all()
                await service._settle()
            writer.execute("PRAGMA query_only = 0")
            for _ in range(5):
                await service.drift.check_all()
        events = [each["event"] for each in told]
        assert events == ["drift", "drift cannot be journalled yet", "over"]
        assert told[0]["first"]["kernel"]["name"] == "drop"
