"""Nodes whose agents are played: they answer to what is desired as they are told to, in a thread of their own."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from app.fleet_store import keys
from app.fleet_store.documents import (
    DesiredTable,
    Document,
    DryRunAnswer,
    Node,
    NodeFacts,
    OpenMap,
    Presence,
    TableState,
    TableStatus,
)
from app.fleet_store.etcd import Etcd
from app.fleet_store.items import Events, Item
from app.fleet_store.operations import delete, put
from app.fleet_store.signatures import unverified_document
from tests.fleet_store.cluster import Cluster

_T = TypeVar("_T")
WAIT_SECONDS: Final = 60.0
_BATCH: Final = 40  # nodes whose three keys fit into a transaction
_OPEN: Final = (OpenMap(name="jump_table", max_entries=64),)


@dataclass
class PlayedNodes:
    """Nodes with a `jump_table` of 64 entries. A thread follows what is desired of them, and writes what agents write.

    Its methods are for other threads.

    Attributes:
        answers: What a node says to a new table, and why. The others apply it; None: it says nothing.
        held: Nodes that do not confirm, until `confirm`.
        refusals: Why nodes would refuse a dry run. The others accept it.
    """

    etcd: Etcd
    loop: asyncio.AbstractEventLoop
    answers: dict[str, tuple[TableState, str] | None] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    _away: set[str] = field(default_factory=set)
    _asked: dict[str, tuple[DesiredTable, int]] = field(default_factory=dict)

    def refuse(self, name: str, why: str) -> None:
        """Let a node refuse every table, and every dry run."""
        self.answers[name] = (TableState.REFUSED, why)
        self.refusals[name] = why

    def add(
        self, names: Iterable[str], *, opens: tuple[OpenMap, ...] = _OPEN, alive: bool = True, **labels: str
    ) -> None:
        """Add nodes with the label role=edge, and further ones."""
        self._do(self._add(list(names), opens, alive, {"role": "edge", **labels}))

    def go(self, *names: str) -> None:
        """Disconnect the agents of nodes."""
        self._away |= set(names)
        self._do(self.etcd.commit([], [delete(keys.alive(name)) for name in names]))

    def come(self, *names: str) -> None:
        """Connect them again. They catch up."""
        self._away -= set(names)
        self._do(self._come(names))

    def confirm(self, *names: str) -> None:
        """Let nodes confirm what they have, and all that follows."""
        self.held -= set(names)
        for name in names:
            if name in self._asked:
                self.tell(name, TableState.APPLIED)

    def tell(self, name: str, state: TableState, detail: str = "", **more: Any) -> None:
        """Let a node say something of the table that it is to hold."""
        self._do(self._tell(name, state, detail, **more))

    def wait_for(self, *names: str) -> None:
        """Wait until these nodes were asked for a table."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._asked.keys() >= set(names):
            assert time.monotonic() < deadline, f"only {sorted(self._asked)} were asked"
            time.sleep(0.02)

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_SECONDS)

    async def _add(self, names: list[str], opens: tuple[OpenMap, ...], alive: bool, labels: dict[str, str]) -> None:
        for start in range(0, len(names), _BATCH):
            documents: dict[str, Document] = {}
            for name in names[start : start + _BATCH]:
                at = time.time()
                documents[keys.node(name)] = Node(labels=labels, user=name, by="token:admin", at=at)
                documents[keys.facts(name)] = NodeFacts(version="0.1.0", kernel="6.1.0", maps=opens, at=at)
                if alive:
                    documents[keys.alive(name)] = Presence(since=at)
            await self._write(documents)

    async def _come(self, names: Iterable[str]) -> None:
        await self._write({keys.alive(name): Presence(since=time.time()) for name in names})
        for name in names:
            for item in (await self.etcd.range(keys.desired_tables(name))).items.values():
                await self._answer(item)

    async def _write(self, documents: dict[str, Document]) -> None:
        operations = [put(key, document.to_bytes()) for key, document in documents.items()]
        assert await self.etcd.commit([], operations) is not None

    async def play(self, started: threading.Event) -> None:
        """Answer whatever nodes are asked, until cancelled."""
        start = (await self.etcd.range(keys.DESIRED, keys_only=True)).revision
        started.set()
        async with aclosing(self.etcd.watch(keys.DESIRED, start)) as stream:
            async for events in stream:
                await self._answer_all(events)

    async def _answer_all(self, events: Events) -> None:
        items = [event.item for event in events.events if event.item is not None]
        await asyncio.gather(*(self._answer(item) for item in items))

    async def _answer(self, item: Item) -> None:
        name = keys.node_of(item.key)
        if name in self._away:
            return
        desired = DesiredTable.from_bytes(unverified_document(item.value))
        if item.key.startswith(keys.desired_dry_runs(name)):
            why = self.refusals.get(name, "")
            code = "program-not-found" if why else None
            diff = () if why else ((0, None, "pass"), (3, "tx", "drop"))
            answer = DryRunAnswer(
                seen=item.mod_revision,
                accepted=not why,
                changed=len(diff),
                code=code,
                detail=why,
                diff=diff,
                at=time.time(),
            )
            lease = await self.etcd.grant(30)
            await self.etcd.put(keys.dry_run_answer(name, keys.last_part(item.key)), answer.to_bytes(), lease=lease.id)
            return
        self._asked[name] = desired, item.mod_revision
        if desired.undo:
            await self._tell(name, TableState.APPLIED)
            return
        told = self.answers.get(name, (TableState.APPLIED, ""))
        if told is None:
            return
        state, detail = told
        if state is TableState.APPLIED:
            await self._tell(name, TableState.UNCONFIRMED)
            if name in self.held:
                return
        await self._tell(name, state, detail, code="program-not-found" if state is TableState.REFUSED else None)

    async def _tell(self, name: str, state: TableState, detail: str = "", **more: Any) -> None:
        desired, version = self._asked[name]
        status = TableStatus(
            seen=version,
            state=state,
            at=time.time(),
            revision=desired.revision if state in {TableState.APPLIED, TableState.UNCONFIRMED} else None,
            detail=detail,
            change=version,
            **more,
        )
        await self.etcd.put(keys.table_status(name, desired.table), status.to_bytes())


@contextmanager
def played_nodes(cluster: Cluster) -> Iterator[PlayedNodes]:
    """Play nodes in a thread of their own: while Playwright runs in this one, it takes no other event loop."""
    started, nodes, problems = threading.Event(), list[PlayedNodes](), list[BaseException]()
    ending: list[asyncio.Task[None]] = []

    async def main() -> None:
        async with cluster.client() as etcd:
            nodes.append(PlayedNodes(etcd, asyncio.get_running_loop()))
            ending.append(asyncio.create_task(nodes[0].play(started)))
            await asyncio.wait(ending)
            if not ending[0].cancelled() and (problem := ending[0].exception()) is not None:
                problems.append(problem)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(WAIT_SECONDS), "etcd does not answer"
        yield nodes[0]
    finally:
        if ending:
            nodes[0].loop.call_soon_threadsafe(ending[0].cancel)
        thread.join(WAIT_SECONDS)
    assert problems == []
