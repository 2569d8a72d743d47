"""A table is brought to what the fleet desires: dry run, change, `unconfirmed`, checks, confirmation, `applied`."""

import time
from typing import Any

import pytest

from app.agent.local import LocalService
from app.client import Refused
from app.fleet_store import keys
from app.fleet_store.documents import MetricCheck, PacketCheck, TableState
from app.fleet_store.operations import delete
from app.fleet_store.specification import ProgramName, Specification
from tests.agent.conftest import NODE, TABLE, Fleet, Node, until

pytestmark = pytest.mark.anyio
APPLIED, REFUSED, DRIFTED = TableState.APPLIED, TableState.REFUSED, TableState.DRIFTED
PACKET = "03" + 13 * "00"  # `entry` jumps to entry 3


async def test_desired_table_is_applied_and_the_journal_names_who_asked(fleet: Fleet, node: Node) -> None:
    seen = await fleet.want({3: "drop", 4: "pass"})
    status = await fleet.said(seen)
    assert (status.state, status.revision, status.detail) == (APPLIED, 1, "")
    assert node.service.entries() == {3: "drop", 4: "pass"}
    [change] = node.service.changes()
    assert (change["actor"], change["confirmed_by"], change["state"]) == ("fleet:alice", "fleet:alice", "confirmed")
    assert change["note"] == f"fleet jump_table-1 {seen}"
    assert status.change == change["id"]


async def test_entries_outside_of_the_range_are_none_of_the_fleets_business(fleet: Fleet, node: Node) -> None:
    node.service.set(0, "tx")
    await fleet.said(await fleet.want({9: "drop"}, first=8, last=11))
    assert node.service.entries() == {0: "tx", 9: "drop"}
    node.service.set(1, "tx")
    assert (await fleet.said(await fleet.want({10: "pass"}, first=8, last=11))).state is APPLIED
    assert node.service.entries() == {0: "tx", 1: "tx", 10: "pass"}


async def test_table_that_is_as_desired_already_is_applied_without_a_change(fleet: Fleet, node: Node) -> None:
    node.service.set(3, "drop")
    status = await fleet.said(await fleet.want({3: "drop"}))
    assert (status.state, status.change, status.revision) == (APPLIED, None, 1)
    assert len(node.service.changes()) == 1, "that of somebody else"


@pytest.mark.parametrize(
    ("name", "by"),
    [("fleet:x (y)", "x (y)"), ("fleet:m?ller", "müller"), (f"fleet:{128 * 'a'}", 200 * "a"), (None, ""), (None, " ")],
)
async def test_whoever_asks_is_named_as_far_as_a_header_can(
    fleet: Fleet, node: Node, name: str | None, by: str
) -> None:
    assert (await fleet.said(await fleet.want({3: "drop"}, by=by))).state is APPLIED
    [change] = node.service.changes()
    assert change["actor"] == (name or "unix:23456 (fleet)")


class TestNo:
    """A no is an answer, it changes nothing, and it stays one until something else is desired."""

    async def test_program_that_is_not_held_is_refused(self, fleet: Fleet, node: Node) -> None:
        status = await fleet.said(await fleet.want({3: "drop", 4: "absent"}))
        assert (status.state, status.code, status.revision) == (REFUSED, "program-not-found", None)
        assert "absent" in status.detail
        assert node.service.entries() == {}
        assert node.service.changes() == []

    async def test_entry_beyond_the_end_of_the_map_is_refused(self, fleet: Fleet, node: Node) -> None:
        status = await fleet.said(await fleet.want({16: "drop"}, last=31))
        assert (status.state, status.code) == (REFUSED, "index-out-of-range")

    async def test_map_that_is_not_held_is_refused(self, fleet: Fleet, node: Node) -> None:
        seen = await fleet.desire(fleet.document({3: "drop"}, table="other"), table="other")

        async def answered() -> bool:
            status = await fleet.status("other")
            return status is not None and (status.seen, status.state, status.code) == (seen, REFUSED, "map-unknown")

        await until(answered)

    async def test_program_with_another_tag_is_refused(self, fleet: Fleet, node: Node) -> None:
        with node.service.client() as client:
            tag = client.get_program("drop")["tag"]
        assert tag is not None
        for tags, state in (((16 * "0",), REFUSED), ((16 * "0", tag), APPLIED)):
            entries = {3: ProgramName("drop", tags)}
            packed = Specification.from_entries(0, 15, entries).to_bytes()
            status = await fleet.said(await fleet.want({}, specification=packed))
            assert status.state is state
            assert status.code == (None if state is APPLIED else "program-tag-mismatch")

    @pytest.mark.parametrize(
        "wanted",
        [
            {"programs": {8: "drop", 12: "drop"}, "first": 8, "last": 12},
            {"programs": {8: "drop"}, "first": 7, "last": 11},
            {"programs": {8: "pass"}, "first": 8, "last": 11},
            {"programs": {}},
        ],
    )
    async def test_what_the_node_does_not_open_is_refused_whole(
        self, fleet: Fleet, bounded: Node, wanted: dict[str, Any]
    ) -> None:
        status = await fleet.said(await fleet.want(**wanted))
        assert (status.state, status.code) == (REFUSED, "not-open")
        assert bounded.service.changes() == []
        assert (await fleet.said(await fleet.want({8: "drop", 11: "drop"}, first=8, last=11))).state is APPLIED

    async def test_no_stays_a_no_also_for_the_next_agent_until_something_else_is_desired(
        self, fleet: Fleet, node: Node
    ) -> None:
        seen = await fleet.want({4: "later"})
        said = await fleet.said(seen)
        assert said.state is REFUSED
        with node.service.client() as client:
            client.get_program("drop")
        await node.stop_agent()
        node.service.stop()
        node.service.start()  # what was wrong may be right now, and the fleet does not care
        node.start_agent()
        other = await fleet.desire(fleet.document({3: "drop"}, table="other"), table="other")

        async def has_worked() -> bool:
            status = await fleet.status("other")
            return status is not None and status.seen == other

        await until(has_worked)
        assert await fleet.status() == said
        assert (await fleet.said(await fleet.want({4: "drop"}))).state is APPLIED

    async def test_service_that_cannot_work_for_long_is_a_no(
        self, fleet: Fleet, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[float] = []

        async def busy(*_: object) -> None:
            calls.append(time.monotonic())
            raise Refused({"status": 503, "code": "journal-unavailable", "detail": "the disk is full"})

        monkeypatch.setattr(LocalService, "try_update", busy)
        monkeypatch.setattr("app.agent.table.PATIENCE_SECONDS", 1.0)
        status = await fleet.said(await fleet.want({3: "drop"}))
        assert (status.state, status.code, status.detail) == (REFUSED, "journal-unavailable", "the disk is full")
        assert len(calls) > 2
        assert calls[-1] - calls[0] > 1

    async def test_other_change_that_waits_for_its_confirmation_is_a_no(self, fleet: Fleet, node: Node) -> None:
        with node.service.client() as client:
            client.update_entries(TABLE, {3: "tx"}, confirm_within=600)
        status = await fleet.said(await fleet.want({3: "drop"}))
        assert (status.state, status.code) == (REFUSED, "change-conflict")
        assert node.service.entries() == {3: "tx"}


class TestChecks:
    @pytest.mark.parametrize(("returned", "state"), [(1, APPLIED), (2, TableState.UNHEALTHY)])
    async def test_test_run_of_a_packet_decides(
        self, fleet: Fleet, node: Node, returned: int, state: TableState
    ) -> None:
        node.service.set(3, "pass")
        check = PacketCheck(program="entry", packet=PACKET, returned=returned)
        status = await fleet.said(await fleet.want({3: "drop"}, checks=(check,)))
        assert status.state is state
        assert node.service.entries() == {3: "drop" if state is APPLIED else "pass"}
        if state is not APPLIED:
            assert (status.code, status.revision) == ("check-failed", None)
            assert "entry returned 1" in status.detail
            assert status.change is not None

    @pytest.mark.parametrize(
        ("bounds", "state"),
        [
            ({"at_least": 1, "at_most": 1}, APPLIED),
            ({"at_least": 1.5}, TableState.UNHEALTHY),
            ({"at_most": 0}, TableState.UNHEALTHY),
        ],
    )
    async def test_metric_of_the_service_decides(
        self, fleet: Fleet, node: Node, bounds: dict[str, float], state: TableState
    ) -> None:
        check = MetricCheck(metric='jumptable_changes_total{outcome="applied",kind="update"}', **bounds)
        assert (await fleet.said(await fleet.want({3: "drop"}, checks=(check,)))).state is state

    async def test_check_that_cannot_be_made_fails(self, fleet: Fleet, node: Node) -> None:
        for check in (
            PacketCheck(program="absent", packet=PACKET, returned=1),
            PacketCheck(program="entry", packet="00", returned=1),
            MetricCheck(metric="absent", at_least=0),
            MetricCheck(metric='not{a="metric', at_least=0),
        ):
            assert (await fleet.said(await fleet.want({3: "drop"}, checks=(check,)))).state is TableState.UNHEALTHY
            assert node.service.entries() == {}


class TestUndo:
    async def test_node_is_set_back_to_an_earlier_revision_at_once(self, fleet: Fleet, node: Node) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        await fleet.said(await fleet.want({3: "pass", 4: "tx"}))
        back = fleet.document({3: "drop"}, revision=1, rollout="jump_table-2", undo=True, by="bob",
                              checks=(PacketCheck(program="entry", packet=PACKET, returned=77),))  # fmt: skip
        status = await fleet.said(await fleet.desire(back))
        assert (status.state, status.revision) == (APPLIED, 1)
        assert node.service.entries() == {3: "drop"}
        last = node.service.changes()[-1]
        assert (last["confirm_by"], last["actor"]) == (None, "fleet:bob")

    async def test_node_takes_back_what_the_rollout_has_changed(self, fleet: Fleet, node: Node) -> None:
        node.service.set(3, "tx")
        await fleet.said(await fleet.want({3: "drop", 4: "drop"}))
        undo = fleet.document({}, revision=None, specification=None, rollout="jump_table-1", undo=True)
        status = await fleet.said(await fleet.desire(undo))
        assert (status.state, status.revision) == (APPLIED, None)
        assert node.service.entries() == {3: "tx"}

    async def test_node_that_never_had_it_takes_nothing_back(self, fleet: Fleet, node: Node) -> None:
        node.service.set(3, "tx")
        undo = fleet.document({}, revision=None, specification=None, rollout="jump_table-1", undo=True)
        assert (await fleet.said(await fleet.desire(undo))).state is APPLIED
        assert node.service.entries() == {3: "tx"}

    async def test_what_somebody_else_has_changed_since_is_not_taken_back(self, fleet: Fleet, node: Node) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        node.service.set(3, "tx")
        undo = fleet.document({}, revision=None, specification=None, rollout="jump_table-1", undo=True)
        status = await fleet.said(await fleet.desire(undo))
        assert (status.state, status.code) == (REFUSED, "change-conflict")
        assert node.service.entries() == {3: "tx"}


class TestAfterwards:
    async def test_change_by_somebody_else_is_drift_until_it_is_undone(self, fleet: Fleet, node: Node) -> None:
        seen = await fleet.want({3: "drop", 4: "pass"})
        await fleet.said(seen)
        node.service.set(3, "tx")
        status = await fleet.said(seen, DRIFTED)
        assert (status.code, status.indexes, status.revision) == ("drifted", (3,), 1)
        node.service.set(3, "drop")
        assert (await fleet.said(seen, APPLIED)).indexes == ()

    async def test_table_that_is_the_fleets_no_more_stays_as_it_is(self, fleet: Fleet, node: Node) -> None:
        old = fleet.signer.sign(b"jumptable/v1/desired-table\0", fleet.document({3: "tx"}).to_bytes())
        await fleet.said(await fleet.want({3: "drop"}))
        await fleet.etcd.commit([], [delete(keys.desired_table(NODE, TABLE))])

        async def is_gone() -> bool:
            return await fleet.status() is None

        await until(is_gone)
        assert node.service.entries() == {3: "drop"}
        status = await fleet.said(await fleet.desire(old))
        assert (status.state, status.code) == (REFUSED, "older-than-seen"), "what was seen is not forgotten"
        assert (await fleet.said(await fleet.want({3: "pass"}))).state is APPLIED
