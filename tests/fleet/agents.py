"""Agents that the tests play: they answer to what is desired as they are told to, in a thread of their own."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.fleet_store import keys
from app.fleet_store.documents import (
    DesiredTable,
    DryRunAnswer,
    NodeFacts,
    OpenMap,
    Presence,
    TableState,
    TableStatus,
)
from app.fleet_store.etcd import Etcd, Event
from app.fleet_store.signatures import unverified_document
from tests.fleet_store.cluster import Cluster


class Agents:
    """The agents of some nodes.

    Attributes:
        refusing: The nodes that refuse every table that is not taken back.
    """

    def __init__(self, cluster: Cluster, names: tuple[str, ...]) -> None:
        self._cluster, self._names = cluster, names
        self.refusing: set[str] = set()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        async with self._cluster.client() as etcd:
            for name in self._names:
                opened = (OpenMap(name="jump_table", max_entries=16),)
                facts = NodeFacts(version="0.1.0", kernel="6.18", maps=opened, at=time.time())
                await etcd.put(keys.facts(name), facts.to_bytes())
                await etcd.put(keys.alive(name), Presence(since=time.time()).to_bytes())
            start = (await etcd.range(keys.DESIRED)).revision
            self._ready.set()
            try:
                async for events in etcd.watch(keys.DESIRED, start):
                    for event in events.events:
                        await self._answer(etcd, event)
            except asyncio.CancelledError:
                return

    async def _answer(self, etcd: Etcd, event: Event) -> None:
        if event.item is None:
            return
        node, kind, last = keys.node_of(event.key), event.key.split("/")[-2], keys.last_part(event.key)
        seen = event.item.mod_revision
        desired = DesiredTable.from_bytes(unverified_document(event.item.value))
        is_refused = node in self.refusing and not desired.undo
        detail = "there is no program 'drop'" if is_refused else ""
        code = "program-not-found" if is_refused else None
        if kind == "dry_runs":
            diff = () if is_refused else ((0, None, "pass"), (3, "tx", "drop"))
            answer = DryRunAnswer(
                seen=seen,
                accepted=not is_refused,
                changed=len(diff),
                code=code,
                detail=detail,
                diff=diff,
                at=time.time(),
            )
            await etcd.put(keys.dry_run_answer(node, last), answer.to_bytes())
            return
        state = TableState.REFUSED if is_refused else TableState.APPLIED
        status = TableStatus(
            seen=seen, state=state, revision=desired.revision, code=code, detail=detail, at=time.time()
        )
        await etcd.put(keys.table_status(node, last), status.to_bytes())


@contextmanager
def running_agents(cluster: Cluster, *names: str) -> Iterator[Agents]:
    """Agents of these nodes, until the context ends."""
    agents = Agents(cluster, names)
    agents.start()
    try:
        yield agents
    finally:
        agents.stop()
