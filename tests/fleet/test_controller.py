"""The controller drives rollouts on a real cluster. Its nodes are simulated."""

import asyncio
import time

import msgspec
import pytest

from app.fleet_store import keys
from app.fleet_store.documents import PacketCheck, Phase, Plan, TableState
from app.fleet_store.errors import Compacted
from app.fleet_store.operations import delete
from tests.fleet.simulation import NOTHING, TABLE, controlled, fleet_of, of_phases
from tests.fleet_store.cluster import Cluster

pytestmark = pytest.mark.anyio

_NAMES = [f"edge-{number:02}" for number in range(20)]
_FIVE = _NAMES[:5]
_BACK = [Phase.PROGRESSING, Phase.ROLLING_BACK, Phase.ROLLED_BACK]


async def test_table_goes_to_all_nodes_in_waves(cluster: Cluster) -> None:
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        rollout = await fleet.start(waves=(1, 5, "100%"))
        done = await fleet.until_phase(rollout, Phase.COMPLETE)
        assert fleet.holders(1) == _NAMES
        order = fleet.receivers(rollout)
        assert [order[0]] == _NAMES[:1]
        assert sorted(order[1:5]) == _NAMES[1:5]
        assert [each.wave for each in done.history] == [1, 2, 2]
        assert await fleet.etcd.get(keys.active(TABLE)) is None
        assert await fleet.written_twice(rollout) == []


async def test_no_wave_begins_before_the_one_before_has_answered(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        for node in fleet.nodes.values():
            node.seconds = 0.1
        rollout = await fleet.start(waves=(1, 3, "100%"))
        begun = await fleet.until(rollout, lambda now: now.wave == 1)
        assert fleet.holders(1) == _FIVE[:1]
        begun = await fleet.until(rollout, lambda now: now.wave == 2)
        assert begun.phase is Phase.PROGRESSING
        assert fleet.holders(1)[:3] == _FIVE[:3]
        await fleet.until_phase(rollout, Phase.COMPLETE)


async def test_no_more_nodes_change_at_a_time_than_the_budget_allows(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        for node in fleet.nodes.values():
            node.seconds = 0.05
        rollout = await fleet.start(waves=("100%",), max_unavailable=2)
        await fleet.until_phase(rollout, Phase.COMPLETE)
        by_step: dict[int, int] = {}
        for node in fleet.nodes.values():
            by_step[node.got[0].sequence] = by_step.get(node.got[0].sequence, 0) + 1
        assert max(by_step.values()) <= 2


@pytest.mark.parametrize("state", [TableState.REFUSED, TableState.UNHEALTHY, TableState.REVERTED])
async def test_no_in_the_second_wave_sets_all_nodes_back(cluster: Cluster, state: TableState) -> None:
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        first = await fleet.start(waves=("100%",))
        await fleet.until_phase(first, Phase.COMPLETE)
        fleet.nodes[_NAMES[3]].behaviour = state
        fleet.nodes[_NAMES[3]].detail = "the map is not open to the fleet"
        second = await fleet.start(waves=(1, 5, "100%"))
        done = await fleet.until_phase(second, Phase.ROLLED_BACK)
        assert of_phases(done) == _BACK
        assert fleet.holders(1) == _NAMES
        assert set(fleet.receivers(second)) <= set(_NAMES[:5])
        assert [each.node for each in done.failures] == [_NAMES[3]]
        why = next(each.reason for each in done.history if each.phase is Phase.ROLLING_BACK)
        assert why == f"{_NAMES[3]} failed: {_NAMES[3]} is {state}, the map is not open to the fleet"
        undone = [each for node in fleet.nodes.values() for each in node.got if each.undo]
        assert all(each.confirm_within is None and each.revision == 1 for each in undone)


async def test_first_rollout_of_a_table_is_taken_back_by_the_nodes_themselves(cluster: Cluster) -> None:
    """The fleet does not know what they held before."""
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[4]].behaviour = TableState.REFUSED
        rollout = await fleet.start(waves=(2, "100%"))
        await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        assert fleet.holders(NOTHING) == _FIVE
        undone = [each for node in fleet.nodes.values() for each in node.got if each.undo]
        assert len(undone) == 5
        assert all(each.specification is None and each.revision is None for each in undone)


async def test_change_by_hand_while_a_wave_bakes_sets_all_nodes_back(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        rollout = await fleet.start(waves=(1, "100%"), bake_seconds=30.0)
        await fleet.until_nodes(lambda: fleet.nodes[_FIVE[0]].told.get(TABLE) is TableState.APPLIED)
        await fleet.nodes[_FIVE[0]].drift()
        done = await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        assert done.failures[0].state == "drifted"
        assert fleet.receivers(rollout) == _FIVE[:1]


async def test_wave_is_watched_for_the_bake_time_once_all_of_it_has_applied(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[0]].seconds = 0.4
        rollout = await fleet.start(waves=(1, "100%"), bake_seconds=0.5)
        await fleet.until_nodes(lambda: fleet.holders(1) == _FIVE[:1])
        applied = time.monotonic()
        await fleet.until(rollout, lambda now: now.wave == 1)
        assert time.monotonic() - applied > 0.45


async def test_halted_rollout_stays_halted_until_a_person_acts(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[1]].behaviour = TableState.REFUSED
        rollout = await fleet.start(waves=(1, 2, "100%"), on_failure="halt")
        halted = await fleet.until_phase(rollout, Phase.HALTED)
        fleet.nodes[_FIVE[1]].behaviour = TableState.APPLIED
        other = await fleet.start(table="another_table")
        await fleet.until_phase(other, Phase.COMPLETE)  # the controller has looked at everything since
        assert await fleet.until_phase(rollout, Phase.HALTED) == halted
        await fleet.act(rollout, "resume")
        again = await fleet.until(rollout, lambda now: len(now.history) == 4)
        assert again.phase is Phase.HALTED  # a no stays a no
        await fleet.act(rollout, "abort")
        await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        assert fleet.holders(NOTHING) == _FIVE


async def test_paused_rollout_goes_on_where_it_was_or_back(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        rollout = await fleet.start(waves=(1, "100%"), bake_seconds=3600.0)
        await fleet.until_nodes(lambda: fleet.holders(1) == _FIVE[:1])
        await fleet.act(rollout, "pause")
        other = await fleet.start(table="another_table")
        await fleet.until_phase(other, Phase.COMPLETE)
        assert fleet.holders(1) == _FIVE[:1]
        await fleet.act(rollout, "resume")
        await fleet.act(rollout, "abort")
        done = await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        people = [each for each in done.history if each.by == "alice"]
        assert [each.reason for each in people] == ["alice says pause", "alice says resume", "alice says abort"]


async def test_node_that_does_not_answer_in_time_sets_all_nodes_back(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[2]].behaviour = None
        rollout = await fleet.start(waves=("100%",), deadline=1.0)
        done = await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        [failure] = done.failures
        assert (failure.node, failure.state, failure.detail) == (_FIVE[2], "late", "it has not answered")
        assert fleet.holders(NOTHING) == _FIVE


async def test_node_that_is_away_at_its_turn_gets_the_table_when_it_comes_back(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        await fleet.go(_FIVE[3])
        rollout = await fleet.start(waves=(1, "100%"), max_unavailable=2)
        done = await fleet.until_phase(rollout, Phase.COMPLETE)
        assert done.reason == f"{_FIVE[3]} away: what comes back gets the table"
        assert fleet.holders(1) == [name for name in _FIVE if name != _FIVE[3]]
        fleet.come(_FIVE[3])
        await fleet.until_nodes(lambda: fleet.holders(1) == _FIVE)


async def test_node_that_comes_back_during_the_rollout_is_opened_like_the_others(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        await fleet.go(_FIVE[4])
        rollout = await fleet.start(waves=(1, "100%"), max_unavailable=2, bake_seconds=1.0)
        await fleet.until(rollout, lambda now: now.wave == 1)
        fleet.come(_FIVE[4])
        done = await fleet.until_phase(rollout, Phase.COMPLETE)
        assert done.reason == ""
        assert fleet.holders(1) == _FIVE


async def test_more_nodes_away_than_the_budget_allows_stop_the_rollout(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        await fleet.go(_FIVE[3])
        await fleet.go(_FIVE[4])
        rollout = await fleet.start(waves=(1, "100%"), max_unavailable=1, deadline=1.0)
        done = await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        assert [each.node for each in done.failures] == _FIVE[3:]
        assert fleet.receivers(rollout) == []


async def test_node_that_cannot_go_back_is_named(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[0]].undo_behaviour = TableState.REFUSED
        fleet.nodes[_FIVE[1]].behaviour = TableState.REFUSED
        rollout = await fleet.start(waves=(1, "100%"))
        done = await fleet.until_phase(rollout, Phase.ROLLBACK_FAILED)
        assert [each.node for each in done.failures] == [_FIVE[0]]
        assert await fleet.etcd.get(keys.active(TABLE)) is None


async def test_going_back_is_a_rollout_of_its_own(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        for _ in range(2):
            await fleet.until_phase(await fleet.start(waves=(1, "100%")), Phase.COMPLETE)
        back = await fleet.start(waves=(1, "100%"), same_as=1)
        await fleet.until_phase(back, Phase.COMPLETE)
        for node in fleet.nodes.values():
            assert [each.revision for each in node.got] == [1, 2, 3]
            assert node.got[2].specification == node.got[0].specification
            assert node.got[0].sequence < node.got[1].sequence < node.got[2].sequence


async def test_large_tables_go_in_several_transactions(cluster: Cluster) -> None:
    """A transaction of all nodes would be larger than etcd takes."""
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        packet = "0b" * 4000
        checks = tuple(PacketCheck(program=f"program{number}", packet=packet, returned=0) for number in range(15))
        for number in range(5, 25):
            await fleet.add(f"edge-{number:02}")
        await fleet.until_alive()
        rollout = await fleet.start(waves=("100%",), checks=checks)
        await fleet.until_phase(rollout, Phase.COMPLETE)
        assert len(fleet.holders(1)) == 25
        assert len({node.got[0].sequence for node in fleet.nodes.values()}) > 2


async def test_node_that_leaves_the_fleet_is_no_longer_waited_for(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[2]].behaviour = None
        rollout = await fleet.start(waves=("100%",))
        await fleet.until_nodes(lambda: bool(fleet.nodes[_FIVE[2]].got))
        await fleet.etcd.commit([], [delete(keys.node(_FIVE[2]))])
        await fleet.until_phase(rollout, Phase.COMPLETE)


async def test_garbage_that_a_node_writes_counts_as_no_answer(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        fleet.nodes[_FIVE[1]].behaviour = None
        rollout = await fleet.start(waves=("100%",), deadline=1.0)
        for value in (b"", b"{", b"\xff" * 100, b'{"seen":1,"state":"applied"}', b"null"):
            await fleet.etcd.put(keys.table_status(_FIVE[1], TABLE), value)
        await fleet.etcd.put(f"{keys.status(_FIVE[1])}tables/a/b/c", b"")
        await fleet.etcd.put(f"{keys.status(_FIVE[1])}nonsense", b"")
        done = await fleet.until_phase(rollout, Phase.ROLLED_BACK)
        assert [each.node for each in done.failures] == [_FIVE[1]]


async def test_rollout_whose_plan_is_gone_halts_and_says_so(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet:
        rollout = await fleet.start()
        await fleet.etcd.commit([], [delete(keys.plan(rollout))])
        async with controlled(fleet):
            halted = await fleet.until_phase(rollout, Phase.HALTED)
            assert halted.reason == "its plan is not in the store"


async def test_rollout_with_garbage_for_a_plan_does_not_hold_up_the_others(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet:
        rollout = await fleet.start()
        checks = tuple(PacketCheck(program="p", packet="0b" * 4096, returned=0) for _ in range(16))
        item = await fleet.etcd.get(keys.plan(rollout))
        assert item is not None
        plan = msgspec.structs.replace(Plan.from_bytes(item.value), checks=checks * 10)
        await fleet.etcd.put(keys.plan(rollout), msgspec.json.encode(plan))
        async with controlled(fleet):
            halted = await fleet.until_phase(rollout, Phase.HALTED)
            assert "at most 1048576 are allowed" in halted.reason
            await fleet.until_phase(await fleet.start(table="another_table"), Phase.COMPLETE)


async def test_nodes_that_go_away_late_get_their_time(cluster: Cluster) -> None:
    """The deadline begins when they go, also if the wave is watched for longer than that already."""
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet):
        rollout = await fleet.start(waves=(1, "100%"), bake_seconds=4.0, deadline=2.0, max_unavailable=1)
        await fleet.until_nodes(lambda: fleet.nodes[_FIVE[0]].told.get(TABLE) is TableState.APPLIED)
        await asyncio.sleep(3.0)  # the last step is longer ago than the deadline
        for name in _FIVE[3:]:
            await fleet.go(name)
        for name in _FIVE[3:]:
            fleet.come(name)
        await fleet.until_phase(rollout, Phase.COMPLETE)


async def test_past_is_forgotten_and_what_is_left_of_removed_nodes(cluster: Cluster) -> None:
    async with fleet_of(cluster, _FIVE) as fleet, controlled(fleet, compaction_seconds=0.3):
        await fleet.until_phase(await fleet.start(), Phase.COMPLETE)
        desired = await fleet.etcd.get(keys.desired_table(_FIVE[0], TABLE))
        assert desired is not None
        await fleet.etcd.put(keys.desired_table("gone", TABLE), desired.value)

        async def forgotten() -> bool:
            left = (await fleet.etcd.range(keys.desired("gone"))).items
            try:
                await fleet.etcd.range(keys.PREFIX, revision=1)
            except Compacted:
                return not left
            return False

        async with asyncio.timeout(20):
            while not await forgotten():
                await asyncio.sleep(0.1)
