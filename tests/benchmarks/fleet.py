"""How fast a fleet is: rollouts on three members of etcd with TLS, nodes simulated.

    python -m tests.benchmarks.fleet                    # all of it
    python -m tests.benchmarks.fleet --agents 4000      # more agents in the last part

Times are from the transaction that starts the rollout, or from the kill, until the store shows the end.
"""

import argparse
import asyncio
import contextlib
import resource
import signal
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

import structlog

from app.fleet_store import keys
from app.fleet_store.documents import Node, Phase, Presence, TableState
from app.fleet_store.errors import EtcdError
from app.fleet_store.etcd import Lease
from app.fleet_store.operations import put
from tests.fleet.simulation import Fleet, SimulatedNode, controlled, controller_process, fleet_of
from tests.fleet_store.cluster import Cluster, running_cluster

_ROUNDS: Final = 5
_WAVES: Final = (1, 5, "100%")  # 1, 4 and 15 of 20 nodes
_NAMES: Final = [f"edge-{number:02}" for number in range(20)]
_AT_A_TIME: Final = 20  # agents that connect at the same time


async def converge(cluster: Cluster) -> list[float]:
    """Seconds in which 20 nodes in three waves get a new table, without bake time."""
    seconds = []
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        await fleet.until_phase(await fleet.start(waves=_WAVES), Phase.COMPLETE)
        for _ in range(_ROUNDS):
            begin = time.monotonic()
            rollout = await fleet.start(waves=_WAVES)
            await fleet.until_phase(rollout, Phase.COMPLETE)
            seconds.append(time.monotonic() - begin)
    return seconds


async def refuse(cluster: Cluster) -> list[float]:
    """Seconds from the start of a rollout that a node of the second wave refuses until all have the old table."""
    seconds = []
    async with fleet_of(cluster, _NAMES) as fleet, controlled(fleet):
        await fleet.until_phase(await fleet.start(waves=_WAVES), Phase.COMPLETE)
        fleet.nodes[_NAMES[3]].behaviour = TableState.REFUSED
        for _ in range(_ROUNDS):
            begin = time.monotonic()
            rollout = await fleet.start(waves=_WAVES)
            await fleet.until_phase(rollout, Phase.ROLLED_BACK)
            seconds.append(time.monotonic() - begin)
            assert fleet.holders(1) == _NAMES
    return seconds


async def kill(cluster: Cluster, folder: Path) -> list[float]:
    """Seconds from the kill of the controller in the second wave until a successor has completed the rollout."""
    seconds = []
    async with fleet_of(cluster, _NAMES) as fleet:
        for number in range(3):
            with ExitStack() as stack:
                first = stack.enter_context(controller_process(fleet, folder, f"first{number}"))
                await first.until("the controller leads")
                stack.enter_context(controller_process(fleet, folder, f"second{number}"))
                fleet.nodes[_NAMES[1]].seconds = 0.5
                rollout = await fleet.start(waves=_WAVES)
                await fleet.until(rollout, lambda now: now.wave == 1)
                first.signal(signal.SIGKILL)
                begin = time.monotonic()
                await fleet.until_phase(rollout, Phase.COMPLETE)
                seconds.append(time.monotonic() - begin)
            async with asyncio.timeout(20):
                while await fleet.etcd.get(keys.CONTROLLER) is not None:
                    await asyncio.sleep(0.1)
    return seconds


class Agents:
    """Many simulated agents, each with a connection of its own."""

    def __init__(self, cluster: Cluster, fleet: Fleet, count: int) -> None:
        self.cluster, self.fleet = cluster, fleet
        self.names = [f"node-{number:05}" for number in range(count)]

    async def connect(self, stack: AsyncExitStack) -> None:
        """Connect all of them, and wait until all are alive."""
        for start in range(0, len(self.names), 100):
            operations = [
                put(keys.node(name), Node(labels={"role": "edge"}, user=name, by="bench", at=0.0).to_bytes())
                for name in self.names[start : start + 100]
            ]
            await self.fleet.etcd.commit([], operations)
        gate = asyncio.Semaphore(_AT_A_TIME)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(self._run(name, gate)) for name in self.names]
        stack.callback(lambda: [task.cancel() for task in running])
        async with asyncio.timeout(300):
            while len(self.fleet.nodes) < len(self.names):
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)  # the last of them begin to watch

    async def _run(self, name: str, gate: asyncio.Semaphore) -> None:
        async with self.cluster.client(timeout=10.0, patience=60.0) as etcd:
            async with gate:
                lease = await etcd.grant(30)
                await etcd.put(keys.alive(name), Presence(since=time.time()).to_bytes(), lease=lease.id)
            node = SimulatedNode(name, etcd, self.fleet.signer.verifier())
            self.fleet.nodes[name] = node
            renewing = asyncio.create_task(_renew(lease))
            try:
                await node.follow()
            finally:
                renewing.cancel()


async def _renew(lease: Lease) -> None:
    """Let a lease last until cancelled."""
    while True:
        await asyncio.sleep(lease.seconds / 4)
        with contextlib.suppress(EtcdError):
            await lease.renew()


def _etcd_cpu(cluster: Cluster) -> float:
    return sum(member.cpu_seconds() for member in cluster.members)


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def many(cluster: Cluster, count: int) -> None:
    """Print what many agents cost etcd: to connect, at rest, and for one new table for each of them."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(fleet_of(cluster, []))
        agents = Agents(cluster, fleet, count)
        cpu, begin = _etcd_cpu(cluster), time.monotonic()
        await agents.connect(stack)
        _print(f"{count} agents connected in {time.monotonic() - begin:.1f} s, CPU of etcd", _etcd_cpu(cluster) - cpu)
        memory = sum(member.resident_bytes() for member in cluster.members)
        print(f"{'memory of the three members of etcd':70} {memory / (1 << 20):8.0f} MiB", flush=True)
        cpu, begin = _etcd_cpu(cluster), time.monotonic()
        await asyncio.sleep(20)
        _print("at rest, CPU of etcd in a second", (_etcd_cpu(cluster) - cpu) / (time.monotonic() - begin))
        await stack.enter_async_context(controlled(fleet))
        for number in range(3):
            cpu, own, begin = _etcd_cpu(cluster), _own_cpu(), time.monotonic()
            rollout = await fleet.start(waves=("100%",), max_unavailable=count, deadline=120.0)
            await fleet.until_phase(rollout, Phase.COMPLETE)
            wall = time.monotonic() - begin
            _print(f"round {number + 1}: a new table for each, {wall:.1f} s; CPU of etcd", _etcd_cpu(cluster) - cpu)
            _print("          CPU of the agents and the controller together", _own_cpu() - own)
            assert len(fleet.holders(number + 1)) == count


def _print(what: str, *seconds: float) -> None:
    middle = statistics.median(seconds)
    spread = f"  ({min(seconds):.2f} to {max(seconds):.2f})" if len(seconds) > 1 else ""
    print(f"{what:70} {middle:8.2f} s{spread}", flush=True)


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # errors only
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with tempfile.TemporaryDirectory() as folder, running_cluster(Path(folder)) as cluster:
        _print("20 nodes in waves of 1, 4 and 15: complete", *asyncio.run(converge(cluster)))
        cluster.empty()
        _print("a node of the second wave refuses: all have the old table", *asyncio.run(refuse(cluster)))
        cluster.empty()
        _print("controller killed in the second wave: complete", *asyncio.run(kill(cluster, Path(folder))))
        cluster.empty()
        asyncio.run(many(cluster, options.agents))


if __name__ == "__main__":
    main()
