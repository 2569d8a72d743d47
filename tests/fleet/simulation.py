"""A fleet whose nodes are simulated: each follows its own keys and writes its status, as an agent does."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from app.fleet.controller import Controller
from app.fleet.plan import make_plan, matching
from app.fleet.state_machine import ACTIONS
from app.fleet_store import keys
from app.fleet_store.documents import (
    DesiredTable,
    Node,
    Phase,
    Plan,
    Presence,
    Rollout,
    Strategy,
    TableHead,
    TableRevision,
    TableState,
    TableStatus,
)
from app.fleet_store.errors import EtcdError
from app.fleet_store.etcd import Etcd, Lease
from app.fleet_store.items import Snapshot
from app.fleet_store.operations import is_absent, put, unchanged
from app.fleet_store.signatures import DESIRED_TABLE, Signer, Verifier, unverified_document
from app.fleet_store.specification import ProgramName, Specification
from tests.fleet_store.cluster import Cluster

TABLE: Final = "jump_table"
WAIT_SECONDS: Final = 40.0
_PRESENT_SECONDS: Final = 10
NOTHING: Final = 0  # what a node holds that has nothing of the fleet's


@dataclass
class SimulatedNode:
    """A node. What it does with a new table can be set while it runs.

    Attributes:
        name: Its name.
        etcd: Its client.
        verifier: Of the fleet's signatures.
        behaviour: What it answers to a new table: a state, or None: nothing.
        undo_behaviour: The same when it is set back.
        holds: The revision that it holds, by table.
        got: Each desired table that it has heard of, once.
        told: What it has said last, by table.
        seconds: How long a change takes.
        detail: A sentence that goes with its answers.
    """

    name: str
    etcd: Etcd
    verifier: Verifier
    behaviour: TableState | None = TableState.APPLIED
    undo_behaviour: TableState = TableState.APPLIED
    holds: dict[str, int] = field(default_factory=dict)
    got: list[DesiredTable] = field(default_factory=list)
    told: dict[str, TableState] = field(default_factory=dict)
    seconds: float = 0.0
    detail: str = ""
    _before: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _lease: Lease | None = None

    async def run(self) -> None:
        """Be there until cancelled. Then the lease is given back, as if it had ended."""
        present = asyncio.create_task(self._be_present())
        try:
            await self.follow()
        finally:
            present.cancel()
            with contextlib.suppress(EtcdError):
                if self._lease is not None:
                    await self._lease.revoke()

    async def _be_present(self) -> None:
        """Keep the leased key, also where the lease has ended while etcd was away."""
        while True:
            with contextlib.suppress(EtcdError):
                if self._lease is None or not await self._lease.renew():
                    self._lease, lease = None, await self.etcd.grant(_PRESENT_SECONDS)
                    await self.etcd.put(keys.alive(self.name), Presence(since=time.time()).to_bytes(), lease=lease.id)
                    self._lease = lease
            await asyncio.sleep(_PRESENT_SECONDS / 4)

    async def follow(self) -> None:
        """Bring tables to what is desired until cancelled."""
        async with aclosing(self.etcd.follow(keys.desired_tables(self.name))) as stream:
            async for each in stream:
                items = each.items.values() if isinstance(each, Snapshot) else [e.item for e in each.events]
                for item in items:
                    if item is not None and item.mod_revision > self._seen.get(item.key, 0):
                        self._seen[item.key] = item.mod_revision
                        await self._reach(item.value, item.mod_revision)

    async def _reach(self, value: bytes, version: int) -> None:
        desired = DesiredTable.from_bytes(self.verifier.document(DESIRED_TABLE, value))
        assert desired.node == self.name
        self.got.append(desired)
        table = desired.table
        if desired.undo:
            if self.undo_behaviour is TableState.APPLIED:
                before = self._before.pop(desired.rollout, self.holds.get(table, NOTHING))
                self.holds[table] = before if desired.revision is None else desired.revision
            await self.tell(table, version, self.undo_behaviour)
            return
        if self.behaviour is None:
            return
        assert desired.revision is not None
        if self.behaviour is TableState.APPLIED:
            self._before[desired.rollout] = self.holds.get(table, NOTHING)
            await self.tell(table, version, TableState.UNCONFIRMED)
            await asyncio.sleep(self.seconds)
            self.holds[table] = desired.revision
        await self.tell(table, version, self.behaviour)

    async def tell(self, table: str, version: int, state: TableState) -> None:
        status = TableStatus(
            seen=version, state=state, at=time.time(), revision=self.holds.get(table) or None, detail=self.detail
        )
        key, revision = keys.table_status(self.name, table), None
        while revision is None:
            try:
                item = await self.etcd.get(key)
                # As an agent does: a member that was frozen may still make an older write that it got before.
                compares = [unchanged(key, 0 if item is None else item.mod_revision)]
                revision = await self.etcd.commit(compares, [put(key, status.to_bytes())], witness=key)
            except EtcdError:
                await asyncio.sleep(0.1)
        self.told[table] = state

    async def drift(self, table: str = TABLE) -> None:
        """Somebody changes the table by hand, and the agent notices."""
        self.holds[table] = NOTHING
        await self.tell(table, self._seen[keys.desired_table(self.name, table)], TableState.DRIFTED)


@dataclass
class Fleet:
    """Simulated nodes, and what a person does to their fleet.

    Attributes:
        cluster: The store.
        etcd: A client with all rights.
        signer: The fleet's key.
        since: The revision of the store before its first node.
        nodes: By name.
    """

    cluster: Cluster
    etcd: Etcd
    signer: Signer
    since: int
    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    _running: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)

    async def add(self, name: str, *, runs: bool = True) -> None:
        """Add a node with the label role=edge."""
        node = Node(labels={"role": "edge"}, user=name, by="alice", at=time.time())
        await self.etcd.put(keys.node(name), node.to_bytes())
        self.nodes[name] = SimulatedNode(name, self.etcd, self.signer.verifier())
        if runs:
            self.come(name)

    async def until_alive(self) -> None:
        """Wait until all nodes that run are connected."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found = (await self.etcd.range(keys.STATUS, keys_only=True)).items
                if {keys.node_of(key) for key in found if key.endswith("/alive")} >= set(self._running):
                    return
                await asyncio.sleep(0.01)

    def come(self, name: str) -> None:
        """The node's agent starts."""
        self._running[name] = asyncio.create_task(self.nodes[name].run())

    async def go(self, name: str) -> None:
        """The node's agent ends, and its lease with it."""
        task = self._running.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def all_go(self) -> None:
        for name in list(self._running):
            await self.go(name)

    async def start(self, *, table: str = TABLE, same_as: int | None = None, size: int = 64, **strategy: Any) -> str:
        """Start the rollout of a new revision, and return its id."""
        head = await self.etcd.get(keys.table(table))
        number = 1 if head is None else TableHead.from_bytes(head.value).revision + 1
        specification = Specification.from_programs(0, [ProgramName(f"program{number}")] * size).to_bytes()
        if same_as is not None:
            old = await self.etcd.get(keys.revision(table, same_as))
            assert old is not None
            specification = TableRevision.from_bytes(old.value).specification
        revision = TableRevision(
            table=table,
            revision=number,
            selector={"role": "edge"},
            strategy=Strategy(**{"bake_seconds": 0.0, "deadline": 30.0, "max_unavailable": 100, **strategy}),
            specification=specification,
            by="alice",
            at=time.time(),
            same_as=same_as,
        )
        snapshot = await self.etcd.range(keys.PREFIX)
        nodes = {
            keys.node_of(key): Node.from_bytes(item.value)
            for key, item in snapshot.items.items()
            if key.startswith(keys.NODES)
        }
        desired = {
            keys.node_of(key): DesiredTable.from_bytes(unverified_document(item.value))
            for key, item in snapshot.items.items()
            if key.startswith(keys.DESIRED) and keys.last_part(key) == table
        }
        alive = {keys.node_of(key) for key in snapshot.items if key.startswith(keys.STATUS) and key.endswith("/alive")}
        plan = make_plan(revision, matching(revision.selector, nodes), alive, desired)
        return await self.write(revision, plan, 0 if head is None else head.mod_revision)

    async def write(self, revision: TableRevision, plan: Plan, head: int) -> str:
        """Write a rollout as the API does."""
        table, number, now = revision.table, revision.revision, time.time()
        id_ = keys.rollout_id(table, number)
        rollout = Rollout(id=id_, table=table, revision=number, phase=Phase.PROGRESSING, wave=0, since=now, by="alice")
        written = await self.etcd.commit(
            [unchanged(keys.table(table), head), is_absent(keys.active(table))],
            [
                put(keys.table(table), TableHead(revision=number).to_bytes()),
                put(keys.revision(table, number), revision.to_bytes()),
                put(keys.active(table), id_.encode()),
                put(keys.rollout(id_), rollout.to_bytes()),
                put(keys.plan(id_), plan.to_bytes()),
            ],
        )
        assert written is not None, "another rollout has not ended"
        return id_

    async def act(self, rollout: str, action: str) -> None:
        """Pause, resume or abort, as a person does."""
        while True:
            item = await self.etcd.get(keys.rollout(rollout))
            assert item is not None
            before = Rollout.from_bytes(item.value)
            phases, phase = ACTIONS[action]
            assert before.phase in phases
            after = before.moved(at=time.time(), by="alice", phase=phase, reason=f"alice says {action}")
            compares = [unchanged(keys.rollout(rollout), item.mod_revision)]
            if await self.etcd.commit(compares, [put(keys.rollout(rollout), after.to_bytes())]) is not None:
                return

    async def until(self, rollout: str, condition: Callable[[Rollout], bool]) -> Rollout:
        """Wait until a rollout is as it should be."""
        async with asyncio.timeout(WAIT_SECONDS), aclosing(self.etcd.follow(keys.rollout(rollout))) as stream:
            async for each in stream:
                items = each.items.values() if isinstance(each, Snapshot) else [e.item for e in each.events]
                for item in items:
                    if item is not None and condition(now := Rollout.from_bytes(item.value)):
                        return now
        raise AssertionError("it never ends")

    async def until_phase(self, rollout: str, phase: Phase) -> Rollout:
        return await self.until(rollout, lambda now: now.phase is phase)

    async def until_nodes(self, condition: Callable[[], bool]) -> None:
        """Wait until the nodes are as they should be, whatever the store says."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)

    def holders(self, revision: int, table: str = TABLE) -> list[str]:
        """The nodes that hold this revision."""
        return [name for name, node in self.nodes.items() if node.holds.get(table, NOTHING) == revision]

    def receivers(self, rollout: str) -> list[str]:
        """The nodes that the rollout has given the new table, in the order in which they got it."""
        got = [each for node in self.nodes.values() for each in node.got if each.rollout == rollout and not each.undo]
        return [each.node for each in sorted(got, key=lambda each: each.sequence)]

    async def written_twice(self, rollout: str) -> list[str]:
        """The nodes whose desired table was written more than once by this rollout, as the store's past says."""
        counts: dict[tuple[str, bool], int] = {}
        last = (await self.etcd.range(keys.CONTROLLER)).revision
        async with asyncio.timeout(WAIT_SECONDS), aclosing(self.etcd.watch(keys.PREFIX, self.since)) as stream:
            async for events in stream:
                for event in events.events:
                    if event.key.startswith(keys.DESIRED) and event.item is not None:
                        desired = DesiredTable.from_bytes(unverified_document(event.item.value))
                        if desired.rollout == rollout:
                            key = desired.node, desired.undo
                            counts[key] = counts.get(key, 0) + 1
                if events.revision >= last:
                    break
        return [node for (node, _), count in counts.items() if count > 1]


@asynccontextmanager
async def fleet_of(cluster: Cluster, names: Sequence[str]) -> AsyncIterator[Fleet]:
    """A fleet of simulated nodes. All of them are connected."""
    async with cluster.client(timeout=1.0) as etcd:
        fleet = Fleet(cluster, etcd, Signer.generate(), (await etcd.range(keys.CONTROLLER)).revision)
        try:
            for name in names:
                await fleet.add(name)
            async with asyncio.timeout(WAIT_SECONDS):
                while len([key for key in (await etcd.range(keys.STATUS)).items if key.endswith("/alive")]) < len(
                    names
                ):
                    await asyncio.sleep(0.01)
            yield fleet
        finally:
            await fleet.all_go()


@asynccontextmanager
async def controlled(fleet: Fleet, name: str = "first", **options: Any) -> AsyncIterator[Controller]:
    """A controller in this process."""
    async with fleet.cluster.client(timeout=1.0) as etcd:
        controller = Controller(etcd, fleet.signer, name, **options)
        task = asyncio.create_task(controller.run())
        try:
            yield controller
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class ControllerProcess:
    """A controller as a process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()

    async def until(self, pattern: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until it says so."""

        def said() -> bool:
            return any(re.search(pattern, line) for line in self._lines)

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(said, seconds)

        assert await asyncio.to_thread(wait), "".join(self._lines)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._reader.join()


@contextmanager
def controller_process(fleet: Fleet, folder: Path, name: str) -> Iterator[ControllerProcess]:
    """A controller in a process of its own. It has ended when the context ends."""
    key = folder / "signing.pem"
    key.write_bytes(fleet.signer.to_pem())
    files = fleet.cluster.files("fleet")
    arguments = [name, ",".join(fleet.cluster.endpoints), *map(str, (files.ca, files.certificate, files.key)), str(key)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fleet.controller_process", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    controller = ControllerProcess(process)
    try:
        yield controller
    finally:
        controller.end()


def of_phases(rollout: Rollout) -> list[Phase]:
    """The phases that a rollout went through, each once in a row."""
    phases = [Phase.PROGRESSING, *(each.phase for each in rollout.history)]
    return [phase for number, phase in enumerate(phases) if number == 0 or phases[number - 1] is not phase]
