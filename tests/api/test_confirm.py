"""confirm_within: changes that are undone unless they are confirmed in time."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from app.access.tokens import Token, TokenFile, Tokens
from app.api.authorization import Authentication
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
    """Set the time since boot ahead, and undo what is overdue then."""
    confirmations = app.state.service.changes.confirmations
    now = confirmations.uptime() + seconds
    confirmations.uptime = lambda: now
    for waiting in list(confirmations._pending.values()):
        if waiting.deadline <= now:
            await confirmations.undo(waiting)


def names_of(client_answer: httpx.Response) -> dict[int, str]:
    return {entry["index"]: entry["program"]["name"] for entry in client_answer.json()["entries"]}


@pytest.mark.usefixtures("both_ways")
class TestConfirmWithin:
    async def test_change_is_unconfirmed_until_its_deadline(self, client: httpx.AsyncClient) -> None:
        response = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert (response.status_code, response.headers["change-id"]) == (201, "1")
        change = (await client.get("/changes/1")).json()
        assert change["state"] == "unconfirmed"
        assert change["confirm_by"] > change["at"]

    @pytest.mark.parametrize("seconds", ["0", "86401", "-1", "1.5", "x", ""])
    async def test_time_outside_one_second_to_one_day_is_refused(self, client: httpx.AsyncClient, seconds: str) -> None:
        refused = await client.put(f"{ENTRY}?confirm_within={seconds}", json={"program": "drop"})
        assert_problem(refused, 422, "validation")

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", ENTRY, {"program": "tx"}),
            ("PUT", ENTRY, {"program": "pass"}),
            ("PATCH", TABLE, {"entries": [{"index": 3, "program": "pass"}]}),
            ("PUT", TABLE, {"programs": [None, None, None, "pass"]}),
            ("DELETE", ENTRY, None),
            ("PATCH", TABLE, {"entries": [{"index": 9, "program": "drop"}, {"index": 3, "program": None}]}),
            ("PUT", TABLE, {"programs": ["drop"]}),
            ("POST", "/changes/1/revert", None),
        ],
    )
    async def test_unconfirmed_entries_refuse_other_changes(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        before = (await client.get(TABLE)).json()
        if path == "/changes/1/revert":  # a later change has replaced the entry
            assert_problem(await client.request(method, path), 409, "change-conflict")
            return
        for query in ("?dry_run=true", "", "?confirm_within=5"):
            refused = await client.request(method, f"{path}{query}", json=body)
            assert_problem(refused, 409, "change-conflict")
            assert (refused.json()["index"], refused.json()["change"]) == (3, 2)
        assert (await client.get(TABLE)).json() == before
        assert (await client.put(f"{TABLE}/4", json={"program": "tx"})).status_code == 201

    @pytest.mark.field
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", ENTRY, {"program": "pass"}),
            ("PUT", f"{TABLE}/4", {"program": "pass"}),
            ("DELETE", ENTRY, None),
            ("PATCH", TABLE, {"entries": [{"index": 3, "program": None}, {"index": 5, "program": "drop"}]}),
            ("PATCH", TABLE, {"entries": [{"index": 0, "program": "drop"}, {"index": 5, "program": "drop"}]}),
            ("PUT", TABLE, {"programs": ["drop", "pass", None, None]}),
            ("POST", "/changes/1/revert", None),
        ],
    )
    async def test_repeated_request_names_the_change_that_waits(
        self, app: FastAPI, client: httpx.AsyncClient, method: str, path: str, body: Any
    ) -> None:
        """Field 1: a retry hides a waiting change, as nothing is left to write."""
        await client.put(TABLE, json={"programs": ["drop", None, None, "drop"]})
        before = (await client.get(TABLE)).json()
        first, second = [await client.request(method, f"{path}?confirm_within=60", json=body) for _ in range(2)]
        assert first.headers["change-id"] == "2"
        assert (second.status_code, second.headers["change-id"]) == (first.status_code, "2")
        assert second.content == first.content
        dry = await client.request(method, f"{path}?confirm_within=60&dry_run=true", json=body)
        assert (dry.status_code, "change-id" in dry.headers) == (first.status_code, False)
        assert len((await client.get("/changes")).json()["changes"]) == 2
        await pass_time(app, 61)
        assert (await client.get(TABLE)).json() == before

    @pytest.mark.field
    @pytest.mark.parametrize("query", ["", "?confirm_within=5", "?dry_run=true"])
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("DELETE", ENTRY, None),
            ("DELETE", f"{ENTRY}?allow_missing=true", None),
            ("PATCH", TABLE, {"entries": [{"index": 3, "program": None}]}),
            ("PUT", TABLE, {"entries": []}),
        ],
    )
    async def test_entry_that_waits_to_stay_empty_refuses_other_changes(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any, query: str
    ) -> None:
        """Field 1: a retry hides a waiting change; what is cleared for now is not cleared for good."""
        await client.put(ENTRY, json={"program": "drop"})
        await client.delete(f"{ENTRY}?confirm_within=60")
        query = query.replace("?", "&") if "?" in path else query
        refused = await client.request(method, f"{path}{query}", json=body)
        assert_problem(refused, 409, "change-conflict")
        assert (refused.json()["index"], refused.json()["change"]) == (3, 2)

    async def test_dry_run_leaves_no_unconfirmed_change(self, client: httpx.AsyncClient) -> None:
        dry = await client.put(f"{ENTRY}?confirm_within=60&dry_run=true", json={"program": "drop"})
        assert dry.status_code == 201
        assert (await client.get("/changes")).json()["changes"] == []
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 201


@pytest.mark.usefixtures("both_ways")
class TestWaiting:
    @pytest.mark.field
    async def test_entry_tells_the_change_that_waits(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        """Field 2: waiting is invisible in what is read."""
        changed = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        waiting = {"change": 1, "confirm_by": (await client.get("/changes/1")).json()["confirm_by"]}
        assert changed.json()["waiting"] == waiting
        assert (await client.get(ENTRY)).content == changed.content
        assert (await client.get(TABLE)).json()["entries"] == [changed.json()]
        refused = await client.put(ENTRY, json={"program": "pass"}, headers={"If-None-Match": "*"})
        assert refused.json()["current"] == changed.json()
        for path in ("/maps", "/maps/jump_table"):
            found = (await client.get(path)).json()
            assert (found["maps"][0] if path == "/maps" else found)["waiting"] == [{**waiting, "entries": [3]}]
        await client.post("/changes/1/confirm")
        assert (await client.get(ENTRY)).json() == {**changed.json(), "waiting": None}
        assert (await client.get("/maps/jump_table")).json()["waiting"] == []

    @pytest.mark.field
    async def test_table_tells_which_entries_wait(self, client: httpx.AsyncClient) -> None:
        """Field 2: waiting is invisible in what is read, among entries of which some wait and some do not."""
        await client.put(TABLE, json={"programs": ["drop"] * 6})
        for index in (2, 5):
            await client.put(f"{TABLE}/{index}?confirm_within=60", json={"program": "pass"})
        await client.delete(f"{TABLE}/4?confirm_within=60")
        for query in ("", "?start=1&limit=3"):
            for entry in (await client.get(f"{TABLE}{query}")).json()["entries"]:
                assert entry == (await client.get(f"{TABLE}/{entry['index']}")).json()
                assert (entry["waiting"] or {}).get("change") == {2: 2, 5: 3}.get(entry["index"])
        told = (await client.get("/maps/jump_table")).json()["waiting"]
        assert [(each["change"], each["entries"]) for each in told] == [(2, [2]), (3, [5]), (4, [4])]

    @pytest.mark.field
    async def test_what_get_answers_can_be_put_back(self, client: httpx.AsyncClient) -> None:
        """Field 2: what a read tells of waiting is ignored in a body."""
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        entry, table = (await client.get(ENTRY)).json(), (await client.get(TABLE)).json()
        await client.post("/changes/1/confirm")
        assert (await client.put(ENTRY, json=entry)).status_code == 200
        for method in ("PUT", "PATCH"):
            assert (await client.request(method, TABLE, json=table)).json()["unchanged"] == 1


class TestConfirm:
    async def test_confirmed_change_outlasts_its_deadline(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        confirmed = await client.post("/changes/1/confirm")
        assert (confirmed.status_code, confirmed.json()["state"]) == (200, "confirmed")
        assert confirmed.json() == (await client.get("/changes/1")).json()
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"
        assert (await client.put(ENTRY, json={"program": "pass"})).status_code == 200, "and can be changed"

    async def test_second_confirmation_is_refused(self, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        await client.put(f"{TABLE}/4", json={"program": "drop"})
        await client.post("/changes/1/confirm")
        for id_ in (1, 2):
            assert_problem(await client.post(f"/changes/{id_}/confirm"), 409, "already-confirmed")
        assert_problem(await client.post("/changes/9/confirm"), 404, "change-unknown")

    async def test_confirmation_after_the_deadline_is_refused(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        await pass_time(app, 61)
        assert_problem(await client.post("/changes/1/confirm"), 409, "change-conflict")


@pytest.mark.field
@pytest.mark.anyio
async def test_repeat_by_somebody_else_is_refused(registry: Registry, tmp_path: Path) -> None:
    """Field 1: a retry hides a waiting change, also from whoever sets the same by chance."""
    tokens = TokenFile(tmp_path / "tokens.json")
    mine, other = ({"Authorization": f"Bearer {tokens.add(Token(each, '', 'admin', 0.0))}"} for each in ("me", "other"))
    authentication = Authentication(tokens=Tokens(tokens))
    listed = {"entries": [{"index": 3, "program": "drop"}]}
    async with started(registry, authentication=authentication) as app, client_of(app) as client:
        await client.patch(f"{TABLE}?confirm_within=60", json=listed, headers=mine)
        refused = await client.patch(f"{TABLE}?confirm_within=60", json=listed, headers=other)
        assert_problem(refused, 409, "change-conflict")
        again = await client.patch(f"{TABLE}?confirm_within=60", json=listed, headers=mine)
        assert (again.json()["change"]["id"], again.json()["set"], again.json()["unchanged"]) == (1, 1, 0)
        assert again.json()["change"]["confirm_by"] is not None


class TestExpiry:
    async def test_expiry_restores_every_entry(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass", "tx"]})
        await client.put(f"{TABLE}?confirm_within=60", json={"programs": ["pass", None, "tx", "count"]})
        await pass_time(app, 59)
        assert names_of(await client.get(TABLE)) == {0: "pass", 2: "tx", 3: "count"}
        await pass_time(app, 2)
        assert names_of(await client.get(TABLE)) == {0: "drop", 1: "pass", 2: "tx"}
        changes = (await client.get("/changes")).json()["changes"]
        assert [(each["kind"], each["state"]) for each in changes] == [
            ("replace", "applied"),
            ("replace", "expired"),
            ("expire", "applied"),
        ]
        assert (changes[2]["actor"], changes[2]["reverts"]) == ("jumptable", 2)
        assert (await client.get("/maps/jump_table")).json()["drift"] == []

    async def test_timer_undoes_the_change(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=1", json={"program": "drop"})
        (timer,) = app.state.service.changes.confirmations._timers.values()
        async with asyncio.timeout(20):
            await timer
        assert (await client.get(ENTRY)).status_code == 404

    async def test_expiry_leaves_entries_changed_from_outside_as_drift(
        self, app: FastAPI, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        await client.put(TABLE, json={"programs": ["drop", "drop"]})
        await client.put(f"{TABLE}?confirm_within=60", json={"programs": ["pass", "pass"]})
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 1, tx.fd)
        await pass_time(app, 61)
        assert names_of(await client.get(TABLE)) == {0: "drop", 1: "tx"}
        (drift,) = (await client.get("/maps/jump_table")).json()["drift"]
        assert (drift["index"], drift["journal"]["name"], drift["kernel"]["name"]) == (1, "drop", "tx")

    @pytest.mark.field
    async def test_expiry_records_only_what_it_wrote_back(
        self, app: FastAPI, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        """Field 4: an expiry that tells what it did not do; another tool has overwritten one of the entries."""
        both = {"entries": [{"index": 0, "program": "pass"}, {"index": 1, "program": "pass"}]}
        await client.put(TABLE, json={"programs": ["drop", "drop"]})
        await client.patch(f"{TABLE}?confirm_within=60", json=both)
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 1, tx.fd)
        with capture_logs() as logs:
            await pass_time(app, 61)
        assert [each["left"] for each in logs if each["event"] == "undone, as nobody confirmed it"] == [[1]]
        expire = (await client.get("/changes/3")).json()
        assert [(each["index"], each["after"]["name"]) for each in expire["entries"]] == [(0, "drop")]
        (drift,) = (await client.get("/maps/jump_table")).json()["drift"]
        assert (drift["index"], drift["kernel"]["name"]) == (1, "tx")
        assert (await client.post("/changes/3/revert?dry_run=true")).json()["set"] == 1

    @pytest.mark.field
    async def test_expiry_that_could_write_nothing_back_has_no_entries(
        self, app: FastAPI, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        """Field 4: an expiry that tells what it did not do, of which nothing is left to revert."""
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 3, tx.fd)
        await pass_time(app, 61)
        assert [each["state"] for each in (await client.get("/changes")).json()["changes"]] == ["expired", "applied"]
        assert (await client.get("/changes/2")).json()["entries"] == []
        assert_problem(await client.post("/changes/2/revert"), 409, "change-not-revertible")

    @pytest.mark.field
    async def test_expired_change_is_not_expected_after_a_restart(
        self, app: FastAPI, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        """Field 4: what another tool wrote is drift from what was before, so that a restore never puts it in again."""
        await client.put(ENTRY, json={"program": "pass"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 3, tx.fd)
        await pass_time(app, 61)
        stored = await app.state.service.journal.expected_table("jump_table", registry.kernel.boot_id)
        assert stored[1].get(3).name == "pass"

    async def test_revert_removes_the_deadline(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert (await client.post("/changes/1/revert")).status_code == 200
        assert (await client.get("/changes/1")).json()["state"] == "reverted"
        await client.put(ENTRY, json={"program": "drop"})
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"

    async def test_revert_can_have_a_deadline(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.post("/changes/1/revert?confirm_within=60")
        assert (await client.get(ENTRY)).status_code == 404
        await pass_time(app, 61)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"


class TestConcurrency:
    async def test_program_may_be_reopened_during_an_unconfirmed_change(
        self, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        drop = registry.programs.get("drop").opened().id
        for _ in range(5):
            answers = await asyncio.gather(
                client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"}),
                client.put("/programs/drop", json={"id": drop}),
                client.put("/programs/drop", json={"id": drop}),
            )
            assert [answer.is_success for answer in answers] == [True] * 3, answers[0].text
            await client.post(f"/changes/{answers[0].headers['change-id']}/revert")

    async def test_undo_that_cannot_be_journalled_is_no_drift(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.journal, "append", raise_journal_failed)
            assert not await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get(ENTRY)).status_code == 404
        assert (await client.get("/maps/jump_table")).json()["drift"] == []
        assert await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get("/changes/1")).json()["state"] == "expired"

    async def test_change_of_a_released_map_can_be_confirmed(self, pinned: Registry, tmp_path: Path) -> None:
        file = tmp_path / "journal.db"
        async with started(pinned, journal=Journal(file, "process")) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0?confirm_within=60", json={"program": "safe"})
        without = Registry(pinned.kernel)
        async with started(without, journal=Journal(file, "process")) as app, client_of(app) as client:
            assert (await client.post("/changes/1/confirm")).json()["state"] == "confirmed"


class TestUndo:
    async def test_undo_is_retried_after_a_kernel_error(
        self, registry: Registry, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For example when no file descriptor is free. Until then the change stays unconfirmed."""
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        with monkeypatch.context() as patch:
            patch.setattr(registry.kernel, "dup", raise_no_descriptor)
            assert not await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get("/changes/2")).json()["state"] == "unconfirmed"
        assert await app.state.service.changes.confirmations.undo(waiting)
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"

    async def test_replaced_program_is_kept_despite_many_later_changes(
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

    async def test_program_removed_by_an_undo_is_kept_for_a_revert(
        self, kernel: Kernel, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        with load(kernel, 1, name="loose") as loose:
            await client.put(f"{ENTRY}?confirm_within=60", json={"program": {"id": loose.id}})
            id_ = loose.id
        await pass_time(app, 61)
        assert (await client.post("/changes/2/revert")).status_code == 200
        assert (await client.get(ENTRY)).json()["program"]["id"] == id_

    async def test_revert_of_an_unconfirmed_change_cannot_have_a_deadline(self, client: httpx.AsyncClient) -> None:
        """Otherwise the expiry of the revert would restore the change, although nobody confirmed it."""
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        refused = await client.post("/changes/1/revert?confirm_within=60")
        assert_problem(refused, 409, "change-not-revertible")


def raise_no_descriptor(_: int) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


class TestInUse:
    async def test_program_and_map_needed_for_an_undo_cannot_be_released(
        self, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
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
    """A registry with the pinned map `table` and the pinned program `safe`."""
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
    async def test_without_keep_dir_only_pinned_programs_can_be_replaced(
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

    async def test_replaced_programs_are_pinned_until_the_change_ends(
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

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    async def test_start_removes_only_stale_pins_of_the_service(
        self, pinned: Registry, kernel: Kernel, pins: Path
    ) -> None:
        keep = pins / "keep"
        keep.mkdir()
        fd = pinned.programs.get("safe").opened().fd
        for name in ("0123456789abcdef0123456789abcdef_812", "somebody_elses"):
            kernel.obj_pin(fd, str(keep / name))
        async with started(pinned, keep_dir=str(keep)):
            assert kept(kernel, keep) == ["somebody_elses"]

    async def test_change_is_refused_if_keep_dir_is_unusable(self, pinned: Registry, pins: Path) -> None:
        if pinned.kernel.name == "memory":
            keep = f"{pins}/keep/a.b/c.d"
            pinned.kernel.obj_pin = raise_pin_refused  # type: ignore[method-assign]
        else:
            keep = "/proc/keep"
        async with started(pinned, keep_dir=keep) as app, client_of(app) as client:
            await client.put("/maps/table/entries/0", json={"program": "safe"})
            refused = await client.delete("/maps/table/entries/0?confirm_within=60")
            assert_problem(refused, 409, "change-not-revertible")
            assert (await client.get("/maps/table/entries/0")).status_code == 200, "nothing is written"
            assert app.state.service.journal.pending() == []
            assert (await client.delete("/maps/table/entries/0")).status_code == 204


def raise_pin_refused(fd: int, path: str) -> None:
    raise OSError(13, "refused")


def kept(kernel: Kernel, folder: Path) -> list[str]:
    """The pins in this folder."""
    if kernel.name == "linux":
        return [each.name for each in folder.iterdir()] if folder.exists() else []
    return [path for path in kernel._objects.pins if path.startswith(f"{folder}/")]  # type: ignore[attr-defined]


@pytest.fixture
async def client_without_keep_dir(pinned: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with started(pinned) as app, client_of(app) as client:
        yield client


class TestKilledBeforeCommit:
    """The service was killed before the change had an id. Only its row of pending changes is in the journal."""

    async def test_change_is_undone_at_the_start(self, pinned: Registry, tmp_path: Path) -> None:
        async with killed_before_commit(pinned, tmp_path / "journal.db") as changes:
            assert pinned.maps.get("table").opened().get(0) is None
            assert changes.journal.pending() == []

    async def test_same_change_made_again_is_kept_at_the_start(self, pinned: Registry, tmp_path: Path) -> None:
        """The same change was made again without a deadline while the row could not be removed."""
        held = pinned.maps.get("table")
        async with killed_before_commit(pinned, tmp_path / "journal.db", then=True):
            assert held.opened().get(0) == pinned.programs.get("safe").opened().id

    async def test_row_is_removed_once_the_journal_can_be_written(
        self, registry: Registry, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(confirmations, "_RETRY_SECONDS", 0.001)
        journal = app.state.service.journal
        with monkeypatch.context() as patch:
            for name in ("append", "remove_pending"):
                patch.setattr(journal, name, raise_journal_failed)
            refused = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
            assert_problem(refused, 503, "journal-unavailable")
            assert len(journal.pending()) == 1
        (retry,) = app.state.service.changes.confirmations._timers.values()
        await retry
        assert journal.pending() == []

    async def test_change_that_cannot_be_prepared_leaves_nothing_behind(
        self, app: FastAPI, client: httpx.AsyncClient, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It keeps no replaced program, and it leaves no entry marked as being changed."""
        await client.put(ENTRY, json={"program": "pass"})
        held, kept = registry.maps.get("jump_table"), dict(app.state.service.changes.replaced_programs._uses)
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.journal, "add_pending", raise_journal_failed)
            refused = await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        assert_problem(refused, 503, "journal-unavailable")
        assert not held.is_changing(3)
        assert dict(app.state.service.changes.replaced_programs._uses) == kept


async def raise_journal_failed(*_: object, **__: object) -> None:
    message = "the disk is full"
    raise JournalFailed(message)


@asynccontextmanager
async def killed_before_commit(registry: Registry, file: Path, *, then: bool = False) -> AsyncIterator[Changes]:
    """The restarted service after such a kill. With `then` the same change was made again without a deadline."""
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
    async def test_overdue_change_is_undone_before_the_first_answer(
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
                await changes.confirmations.confirm(changes.get(1), "unix")
                assert held.unconfirmed is None


@asynccontextmanager
async def restarted(registry: Registry, file: Path, uptime: float) -> AsyncIterator[Changes]:
    """The changes of the restarted service, with this time since boot in seconds."""
    for held in registry.maps:
        held.unconfirmed, held.expected = None, None
    changes = Changes(registry, Journal(file, "process"))
    changes.confirmations.uptime = lambda: uptime
    await changes.confirmations.load()
    yield changes
    await changes.finish()
    changes.close()
