"""What is left of a rollout when controllers and members of etcd die, freeze and come back."""

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.fleet.controller import LEASE_SECONDS
from app.fleet_store import keys
from app.fleet_store.documents import Leader, Phase, TableState
from tests.fleet.simulation import NOTHING, WAIT_SECONDS, Fleet, controlled, controller_process, fleet_of
from tests.fleet_store.cluster import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

_NAMES = [f"edge-{number:02}" for number in range(20)]
_WAVES = (1, 5, "100%")


async def test_successor_goes_on_when_the_controller_is_killed_in_mid_rollout(cluster: Cluster, tmp_path: Path) -> None:
    async with fleet_of(cluster, _NAMES) as fleet:
        with ExitStack() as stack:
            first = stack.enter_context(controller_process(fleet, tmp_path, "first"))
            await first.until("the controller leads")
            stack.enter_context(controller_process(fleet, tmp_path, "second"))
            fleet.nodes[_NAMES[1]].seconds = 0.3
            rollout = await fleet.start(waves=_WAVES)
            await fleet.until(rollout, lambda now: now.wave == 1)
            first.signal(signal.SIGKILL)
            killed = time.monotonic()
            done = await fleet.until_phase(rollout, Phase.COMPLETE)
            assert time.monotonic() - killed < LEASE_SECONDS + 10  # other tests run at the same time
            assert fleet.holders(1) == _NAMES
            assert done.controller.startswith("second")
            assert await fleet.written_twice(rollout) == []


async def test_successor_goes_on_when_the_controller_is_killed_between_undos(cluster: Cluster, tmp_path: Path) -> None:
    async with fleet_of(cluster, _NAMES) as fleet:
        with ExitStack() as stack:
            first = stack.enter_context(controller_process(fleet, tmp_path, "first"))
            await first.until("the controller leads")
            for name in _NAMES[1:5]:
                fleet.nodes[name].behaviour = None  # they answer nothing, so that the rollback waits for the deadline
            fleet.nodes[_NAMES[4]].behaviour = TableState.REFUSED
            rollout = await fleet.start(waves=_WAVES)
            await fleet.until_phase(rollout, Phase.ROLLING_BACK)
            first.signal(signal.SIGKILL)
            stack.enter_context(controller_process(fleet, tmp_path, "second"))
            await fleet.until_phase(rollout, Phase.ROLLED_BACK)
            assert fleet.holders(NOTHING) == _NAMES
            assert await fleet.written_twice(rollout) == []


async def test_old_leader_that_wakes_writes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    async with fleet_of(cluster, _NAMES) as fleet:
        with ExitStack() as stack:
            first = stack.enter_context(controller_process(fleet, tmp_path, "first"))
            await first.until("the controller leads")
            second = stack.enter_context(controller_process(fleet, tmp_path, "second"))
            rollout = await fleet.start(waves=_WAVES, bake_seconds=1.0)
            await fleet.until_nodes(lambda: fleet.holders(1) == _NAMES[:1])
            first.signal(signal.SIGSTOP)
            await second.until("the controller leads")
            first.signal(signal.SIGCONT)
            done = await fleet.until_phase(rollout, Phase.COMPLETE)
            await first.until("does not lead any more")
            assert fleet.holders(1) == _NAMES
            assert done.controller.startswith("second")
            assert all(each.by.startswith("second") for each in done.history)
            assert await fleet.written_twice(rollout) == []
            second.signal(signal.SIGKILL)  # and the old one can lead again
            again = await fleet.start(waves=_WAVES)
            done = await fleet.until_phase(again, Phase.COMPLETE)
            assert done.controller.startswith("first")


async def test_one_of_two_controllers_leads_and_hands_over_when_it_ends(cluster: Cluster) -> None:
    async with fleet_of(cluster, _NAMES[:5]) as fleet:
        async with controlled(fleet, "first") as first:
            await _until_leader(fleet, "first")
            async with controlled(fleet, "second") as second:
                rollout = await fleet.start(waves=_WAVES)
                done = await fleet.until_phase(rollout, Phase.COMPLETE)
                assert (first.leads, second.leads) == (True, False)
                assert done.controller == first.name
        begin = time.monotonic()
        async with controlled(fleet, "third"):
            await _until_leader(fleet, "third")
            assert time.monotonic() - begin < LEASE_SECONDS  # the lease was given back


async def _until_leader(fleet: Fleet, name: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            item = await fleet.etcd.get(keys.CONTROLLER)
            if item is not None and Leader.from_bytes(item.value).name.startswith(name):
                return
            await asyncio.sleep(0.02)


async def test_rollout_goes_on_when_members_of_etcd_die_one_after_the_other(cluster: Cluster) -> None:
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        for node in fleet.nodes.values():
            node.seconds = 0.3
        rollout = await fleet.start(waves=_WAVES, max_unavailable=4, deadline=60.0)
        await fleet.until_nodes(lambda: len(fleet.holders(1)) >= 1)
        leader = await asyncio.to_thread(cluster.leader)
        leader.kill()
        await fleet.until_nodes(lambda: len(fleet.holders(1)) >= 8)
        await asyncio.to_thread(cluster.repair)
        leader = await asyncio.to_thread(cluster.leader)
        leader.freeze()
        await fleet.until_nodes(lambda: len(fleet.holders(1)) >= 14)
        await asyncio.to_thread(cluster.repair)
        await fleet.until_phase(rollout, Phase.COMPLETE)
        assert fleet.holders(1) == _NAMES
        assert await fleet.written_twice(rollout) == []


async def test_nothing_changes_while_etcd_has_no_quorum(cluster: Cluster) -> None:
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        rollout = await fleet.start(waves=_WAVES, bake_seconds=1.0, deadline=60.0)
        await fleet.until_nodes(lambda: fleet.holders(1) == _NAMES[:1])
        for member in cluster.members[:2]:
            member.kill()
        held = list(fleet.holders(1))
        await asyncio.sleep(LEASE_SECONDS + 3)  # the controller's lease ends, and nobody can be elected
        assert fleet.holders(1) == held
        await asyncio.to_thread(cluster.repair)
        await fleet.until_phase(rollout, Phase.COMPLETE)
        assert fleet.holders(1) == _NAMES
        assert await fleet.written_twice(rollout) == []


async def test_controller_that_has_missed_a_compaction_reads_everything_anew(cluster: Cluster, tmp_path: Path) -> None:
    async with fleet_of(cluster, _NAMES[:5]) as fleet:
        with controller_process(fleet, tmp_path, "first") as first:
            await first.until("the controller leads")
            await fleet.until_phase(await fleet.start(), Phase.COMPLETE)
            first.signal(signal.SIGSTOP)
            for member in cluster.members:  # its watch ends with the connection
                member.kill()
            await asyncio.to_thread(cluster.repair)
            rollout = await fleet.start(waves=_WAVES)
            for _ in range(5):
                await fleet.etcd.put(f"{keys.PREFIX}filler", os.urandom(8))
            await fleet.etcd.compact((await fleet.etcd.range(keys.CONTROLLER)).revision)
            first.signal(signal.SIGCONT)
            await fleet.until_phase(rollout, Phase.COMPLETE)
            assert len(fleet.holders(2)) == 5
