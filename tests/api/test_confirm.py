"""confirm_within: changes that undo themselves."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.kernel import Kernel
from app.service.changes import confirmations, replaced_programs
from app.service.changes.changes import Changes
from app.service.changes.origin import RequestContext
from app.service.changes.plan import WritePlan
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from tests.api.conftest import ENTRY, assert_problem, client_of, started
from tests.conftest import load

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"


async def pass_time(app: FastAPI, seconds: float) -> None:
    """As if so much time had passed: what is overdue then is undone."""
    confirmations = app.state.service.changes.confirmations
    now = confirmations.uptime() + seconds
    confirmations.uptime = lambda: now
    for waiting in list(confirmations._pending.values()):
        if waiting.deadline <= now:
            await confirmations.undo(waiting)


def holds(client_answer: httpx.Response) -> dict[int, str]:
    return {entry["index"]: entry["program"]["name"] for entry in client_answer.json()["entries"]}


class TestConfirmWithin:
    async def test_the_change_waits(self, client: httpx.AsyncClient) -> None:
        response = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert (response.status_code, response.headers["change-id"]) == (201, "1")
        change = (await client.get("/changes/1")).json()
        assert change["state"] == "unconfirmed"
        assert change["confirm_by"] > change["at"]

    @pytest.mark.parametrize("seconds", ["0", "86401", "-1", "1.5", "x", ""])
    async def test_from_a_second_to_a_day(self, client: httpx.AsyncClient, seconds: str) -> None:
        refused = await client.put(f"{ENTRY}?confirm_within={seconds}", json={"program": "drop"})
        assert_problem(refused, 422, "validation")

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", ENTRY, {"program": "tx"}),
            ("DELETE", ENTRY, None),
            ("PATCH", TABLE, {"entries": [{"index": 9, "program": "drop"}, {"index": 3, "program": None}]}),
            ("PUT", TABLE, {"programs": ["drop"]}),
            ("POST", "/changes/1/revert", None),
        ],
    )
    async def test_until_then_no_other_change_of_its_entries(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        before = (await client.get(TABLE)).json()
        if path == "/changes/1/revert":  # what it put there is not there any more, waiting or not
            assert_problem(await client.request(method, path), 409, "change-conflict")
            return
        for query in ("?dry_run=true", "", "?confirm_within=5"):
            refused = await client.request(method, f"{path}{query}", json=body)
            assert_problem(refused, 409, "change-conflict")
            assert (refused.json()["index"], refused.json()["change"]) == (3, 2)
        assert (await client.get(TABLE)).json() == before
        assert (await client.put(f"{TABLE}/4", json={"program": "tx"})).status_code == 201
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 200, "it is there already"

    async def test_a_dry_run_waits_for_nothing(self, client: httpx.AsyncClient) -> None:
        dry = await client.put(f"{ENTRY}?confirm_within=60&dry_run=true", json={"program": "drop"})
        assert dry.status_code == 201
        assert (await client.get("/changes")).json()["changes"] == []
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 201


class TestConfirm:
    async def test_it_stands(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        confirmed = await client.post("/changes/1/confirm")
        assert (confirmed.status_code, confirmed.json()["state"]) == (200, "confirmed")
        assert confirmed.json() == (await client.get("/changes/1")).json()
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 200, "and can be changed"

    async def test_once(self, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        await client.put(f"{TABLE}/4", json={"program": "drop"})
        await client.post("/changes/1/confirm")
        for id_ in (1, 2):
            assert_problem(await client.post(f"/changes/{id_}/confirm"), 409, "already-confirmed")
        assert_problem(await client.post("/changes/9/confirm"), 404, "change-unknown")

    async def test_too_late(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        await pass_time(app, 61)
        assert_problem(await client.post("/changes/1/confirm"), 409, "change-conflict")


class TestExpiry:
    async def test_each_entry_gets_back_what_it_had(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass", "tx"]})
        await client.put(f"{TABLE}?confirm_within=60", json={"programs": ["pass", None, "tx", "count"]})
        await pass_time(app, 59)
        assert holds(await client.get(TABLE)) == {0: "pass", 2: "tx", 3: "count"}
        await pass_time(app, 2)
        assert holds(await client.get(TABLE)) == {0: "drop", 1: "pass", 2: "tx"}
        changes = (await client.get("/changes")).json()["changes"]
        assert [(each["kind"], each["state"]) for each in changes] == [
            ("replace", "applied"),
            ("replace", "expired"),
            ("expire", "applied"),
        ]
        assert (changes[2]["actor"], changes[2]["reverts"]) == ("jumptable", 2)
        assert (await client.get("/maps/jump_table")).json()["drift"] == []

    async def test_by_itself_when_the_time_is_over(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=1", json={"program": "drop"})
        (timer,) = app.state.service.changes.confirmations._timers.values()
        async with asyncio.timeout(20):
            await timer
        assert (await client.get(ENTRY)).status_code == 404

    async def test_what_somebody_else_has_changed_since_stays_and_is_drift(
        self, app: FastAPI, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        await client.put(TABLE, json={"programs": ["drop", "drop"]})
        await client.put(f"{TABLE}?confirm_within=60", json={"programs": ["pass", "pass"]})
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 1, tx.fd)
        await pass_time(app, 61)
        assert holds(await client.get(TABLE)) == {0: "drop", 1: "tx"}
        (drift,) = (await client.get("/maps/jump_table")).json()["drift"]
        assert (drift["index"], drift["journal"]["name"], drift["kernel"]["name"]) == (1, "drop", "tx")

    async def test_a_revert_ends_the_waiting(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert (await client.post("/changes/1/revert")).status_code == 200
        assert (await client.get("/changes/1")).json()["state"] == "reverted"
        await client.put(ENTRY, json={"program": "drop"})
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"

    async def test_a_revert_can_be_made_for_a_time(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.post("/changes/1/revert?confirm_within=60")
        assert (await client.get(ENTRY)).status_code == 404
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"


class TestBesideOthers:
    async def test_its_program_is_opened_again_meanwhile(self, registry: Registry, client: httpx.AsyncClient) -> None:
        drop = registry.programs.get("drop").opened().id
        for _ in range(5):
            answers = await asyncio.gather(
                client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"}),
                client.put("/programs/drop", json={"id": drop}),
                client.put("/programs/drop", json={"id": drop}),
            )
            assert [answer.is_success for answer in answers] == [True] * 3, answers[0].text
            await client.post(f"/changes/{answers[0].headers['change-id']}/revert")

    async def test_its_undo_is_no_drift_while_it_cannot_be_journalled(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.journal, "append_all", full)
            assert not await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get(ENTRY)).status_code == 404
        assert (await client.get("/maps/jump_table")).json()["drift"] == []
        assert await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get("/changes/1")).json()["state"] == "expired"

    async def test_confirmed_where_its_map_is_not_held_any_more(self, pinned: Registry, tmp_path: Path) -> None:
        file = tmp_path / "journal.db"
        async with started(pinned, journal=Journal(file, "process")) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0?confirm_within=60", json={"program": "safe"})
        without = Registry(pinned.kernel)
        async with started(without, journal=Journal(file, "process")) as app, client_of(app) as client:
            assert (await client.post("/changes/1/confirm")).json()["state"] == "confirmed"


class TestUndo:
    async def test_tried_again_where_the_kernel_could_not_just_then(
        self, registry: Registry, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as when no file descriptor is free; its entries stay locked, and its timer lives."""
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        with monkeypatch.context() as patch:
            patch.setattr(registry.kernel, "dup", no_fd)
            assert not await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get("/changes/2")).json()["state"] == "unconfirmed"
        assert await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"

    async def test_what_it_needs_is_kept_however_many_other_changes_come(
        self, kernel: Kernel, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replaced_programs, "_MAX_CHANGES", 3)
        with load(kernel, 1, name="loose") as loose:
            await client.put(ENTRY, json={"program": {"id": loose.id}})
            id_ = loose.id
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        for number in range(8):
            await client.put(f"{TABLE}/0", json={"program": ("drop", "pass")[number % 2]})
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["id"] == id_

    async def test_what_it_replaces_is_kept_as_well(
        self, kernel: Kernel, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        with load(kernel, 1, name="loose") as loose:
            await client.put(f"{ENTRY}?confirm_within=60", json={"program": {"id": loose.id}})
            id_ = loose.id
        await pass_time(app, 61)
        assert (await client.post("/changes/2/revert")).status_code == 200
        assert (await client.get(ENTRY)).json()["program"]["id"] == id_

    async def test_its_revert_cannot_wait_as_well(self, client: httpx.AsyncClient) -> None:
        """Else it would stand in the end, and nobody had confirmed it."""
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        refused = await client.post("/changes/1/revert?confirm_within=60")
        assert_problem(refused, 409, "change-not-revertible")


def no_fd(_: int) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


class TestInUse:
    async def test_what_an_undo_needs_is_not_released(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        for query in ("?dry_run=true", ""):
            refused = await client.delete(f"/programs/drop{query}")
            assert_problem(refused, 409, "in-use")
            assert refused.json()["change"] == 2
        assert_problem(await client.delete("/maps/jump_table?force=true"), 409, "in-use")
        assert (await client.delete("/programs/pass")).status_code == 204, "entries keep it alive"
        other = (await client.get("/programs/tx")).json()["id"]
        assert_problem(await client.put("/programs/drop", json={"id": other}), 409, "in-use")
        await client.post("/changes/2/confirm")
        assert (await client.delete("/programs/drop")).status_code == 204


@pytest.fixture
async def pinned(kernel: Kernel, pins: Path, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Registry]:
    """A map that is pinned, and the program `safe`, which is too."""
    registry = Registry(kernel, [str(pins)])
    with make_array(kernel, "table", 8) as array, load(kernel, 1, name="safe") as safe:
        kernel.obj_pin(array.fd, f"{pins}/table")
        kernel.obj_pin(safe.fd, f"{pins}/safe")
    registry.maps.add(HeldMap("table", Pinned(f"{pins}/table")))
    registry.programs.add(HeldProgram("safe", Pinned(f"{pins}/safe")))
    registry.open_unavailable()
    yield registry
    registry.close()


class TestKeepDir:
    async def test_without_it_only_pinned_programs_are_replaced(
        self, pinned: Registry, kernel: Kernel, client_without_keep_dir: httpx.AsyncClient
    ) -> None:
        client = client_without_keep_dir
        with load(kernel, 2, name="loose") as loose:
            await client.put("/maps/table/entries/0", json={"program": {"id": loose.id}})
            await client.put("/maps/table/entries/1", json={"program": "safe"})
            for query in ("?confirm_within=60&dry_run=true", "?confirm_within=60"):
                refused = await client.put(f"/maps/table/entries/0{query}", json={"program": "safe"})
                assert_problem(refused, 409, "change-not-revertible")
                assert "keep_dir" in refused.json()["detail"]
            body = {"program": {"id": loose.id}}
            assert (await client.put("/maps/table/entries/1?confirm_within=60", json=body)).status_code == 200
        assert len((await client.get("/changes")).json()["changes"]) == 3

    async def test_what_the_undo_needs_is_pinned_as_long_as_it_may_be_needed(
        self, pinned: Registry, kernel: Kernel, pins: Path
    ) -> None:
        keep = pins / "keep"
        async with started(pinned, keep_dir=str(keep)) as app, client_of(app) as client:
            with load(kernel, 2, name="loose") as loose:
                await client.put("/maps/table/entries/0", json={"program": {"id": loose.id}})
                await client.put("/maps/table/entries/1", json={"program": {"id": loose.id}})
            await client.put("/maps/table/entries/0?confirm_within=60&dry_run=true", json={"program": "safe"})
            assert kept(kernel, keep) == []
            await client.put("/maps/table/entries/0?confirm_within=60", json={"program": "safe"})
            await client.put("/maps/table/entries/1?confirm_within=90", json={"program": "safe"})
            assert len(kept(kernel, keep)) == 2
            await client.post("/changes/3/confirm")
            assert len(kept(kernel, keep)) == 1
            await pass_time(app, 91)
            assert kept(kernel, keep) == []

    async def test_a_start_removes_what_is_left_there_and_nothing_else(
        self, pinned: Registry, kernel: Kernel, pins: Path
    ) -> None:
        if kernel.name == "memory":
            return  # has no folders to be listed
        keep = pins / "keep"
        keep.mkdir()
        fd = pinned.programs.get("safe").opened().fd
        for name in ("0123456789abcdef0123456789abcdef_812", "somebody_elses"):
            kernel.obj_pin(fd, str(keep / name))
        async with started(pinned, keep_dir=str(keep)):
            assert kept(kernel, keep) == ["somebody_elses"]

    async def test_it_cannot_be_pinned(self, pinned: Registry, pins: Path) -> None:
        if pinned.kernel.name == "memory":
            keep = f"{pins}/keep/a.b/c.d"
            pinned.kernel.obj_pin = refuse  # type: ignore[method-assign]
        else:
            keep = "/proc/keep"
        async with started(pinned, keep_dir=keep) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0", json={"program": "safe"})
            refused = await client.delete("/maps/table/entries/0?confirm_within=60")
            assert_problem(refused, 409, "change-not-revertible")
            assert (await client.get("/maps/table/entries/0")).status_code == 200, "nothing is written"
            assert app.state.service.journal.pending() == []
            assert (await client.delete("/maps/table/entries/0")).status_code == 204


def refuse(fd: int, path: str) -> None:
    raise OSError(13, "refused")


def kept(kernel: Kernel, folder: Path) -> list[str]:
    """What is pinned there."""
    if kernel.name == "linux":
        return [each.name for each in folder.iterdir()] if folder.exists() else []
    return [path for path in kernel._objects.pins if path.startswith(f"{folder}/")]  # type: ignore[attr-defined]


@pytest.fixture
async def client_without_keep_dir(pinned: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with started(pinned) as app, client_of(app) as client:
        yield client


class TestCutOff:
    """The service was killed before such a change had an id: its row in the journal is all that is left of it."""

    async def test_it_is_undone_at_the_start(self, pinned: Registry, tmp_path: Path) -> None:
        async with cut_off(pinned, tmp_path / "journal.db") as changes:
            assert pinned.maps.get("table").opened().get(0) is None
            assert changes.journal.pending() == []

    async def test_but_not_what_others_changed_since(self, pinned: Registry, tmp_path: Path) -> None:
        """The same change was made again, for good, while the row could not be removed."""
        held = pinned.maps.get("table")
        async with cut_off(pinned, tmp_path / "journal.db", then=True):
            assert held.opened().get(0) == pinned.programs.get("safe").opened().id

    async def test_the_row_goes_as_soon_as_the_journal_can_be_written(
        self, registry: Registry, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(confirmations, "_RETRY_SECONDS", 0.001)
        journal = app.state.service.journal
        with monkeypatch.context() as patch:
            for name in ("append_all", "remove_pending"):
                patch.setattr(journal, name, full)
            refused = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
            assert_problem(refused, 503, "journal-unavailable")
            assert len(journal.pending()) == 1
        (retry,) = app.state.service.changes.confirmations._timers.values()
        await retry
        assert journal.pending() == []

    async def test_one_that_cannot_be_begun_leaves_nothing_behind(
        self, app: FastAPI, client: httpx.AsyncClient, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the programs that it would have replaced, nor an entry that seems to be changed for ever."""
        await client.put(ENTRY, json={"program": "pass"})
        held, kept = registry.maps.get("jump_table"), dict(app.state.service.changes.replaced_programs._uses)
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.journal, "add_pending", full)
            refused = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert_problem(refused, 503, "journal-unavailable")
        assert not held.is_changing(3)
        assert dict(app.state.service.changes.replaced_programs._uses) == kept


async def full(*_: object, **__: object) -> None:
    message = "the disk is full"
    raise JournalFailed(message)


@asynccontextmanager
async def cut_off(registry: Registry, file: Path, *, then: bool = False) -> AsyncIterator[Changes]:
    """The service after such a kill; `then`: and after the same change, made for good."""
    held, safe = registry.maps.get("table"), registry.programs.get("safe").opened()
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        changes = app.state.service.changes
        origin = RequestContext("unix", "one", confirm_within=60)
        prepared = changes.prepare(held, "set", WritePlan.one(0, None, safe), origin)
        await changes.confirmations.add(held, prepared.change, {}, 60)
        if then:
            await client.put("/maps/table/entries/0", json={"program": "safe"})
        else:
            held.opened().set(0, safe)
    async with restarted(registry, file, 0.0) as changes:
        yield changes


class TestRestart:
    @pytest.mark.parametrize("unconfirmed", [True, False], ids=["back in time", "too late"])
    async def test_what_is_overdue_is_undone_before_the_first_answer(
        self, pinned: Registry, tmp_path: Path, unconfirmed: bool
    ) -> None:
        file = tmp_path / "journal.db"
        async with started(pinned, journal=Journal(file, "process")) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0?confirm_within=60", json={"program": "safe"})
            until = app.state.service.changes.confirmations.uptime() + (30 if unconfirmed else 90)
        held = pinned.maps.get("table")
        async with restarted(pinned, file, until) as changes:
            assert (held.opened().get(0) is not None) == unconfirmed
            assert changes.get(1).state == ("unconfirmed" if unconfirmed else "expired")
            assert held.unconfirmed == ({0: 1} if unconfirmed else None)
            if unconfirmed:
                await changes.confirmations.confirm(changes.get(1))
                assert held.unconfirmed is None


@asynccontextmanager
async def restarted(registry: Registry, file: Path, uptime: float) -> AsyncIterator[Changes]:
    """The service's changes after a restart, at this time since boot."""
    for held in registry.maps:
        held.unconfirmed, held.expected = None, None
    changes = Changes(registry, Journal(file, "process"))
    changes.confirmations.uptime = lambda: uptime
    await changes.confirmations.load()
    yield changes
    await changes.finish()
    changes.close()
