"""The agent: follows what the fleet desires on this node, and keeps the fleet informed.

Whatever happens to the store, nothing is undone, and the agent tries to reach it again. Nothing that matters depends on
the clock of the node.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from app.agent import dry_runs
from app.agent.local import LocalService
from app.agent.members import Unreachable, version_warnings
from app.agent.report import Reporter
from app.agent.settings import Settings
from app.agent.state import StateFile
from app.agent.table import TableWorker, happens
from app.client import Client, JumptableError
from app.fleet_store import keys
from app.fleet_store.documents import MAX_DETAIL_CHARACTERS, BadDocument, NodeFacts, Presence, TableStatus
from app.fleet_store.errors import EtcdError, PermissionDenied, VersionRefused
from app.fleet_store.etcd import Credentials, Etcd, Lease
from app.fleet_store.items import Item, Snapshot
from app.fleet_store.operations import delete, put, unchanged
from app.fleet_store.signatures import Verifier

LEASE_SECONDS: Final = 15
_RENEW_SECONDS: Final = 5.0
_FACTS_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 2.0  # between two looks at how the agent is, for the node itself
_RETRY_SECONDS: Final = 2.0
_DIAGNOSIS_SECONDS: Final = 30.0  # between two looks at why the store does not answer
_MAX_MAPS: Final = 256  # that are told of
_MAX_DRY_RUNS: Final = 16  # that wait at a time
_REVOKE_SECONDS: Final = 2.0

log = structlog.get_logger()


class StoreTeller:
    """Writes statuses of tables into the store, each once. Thread rule: one event loop.

    A write whose answer does not arrive may be made later, by a member that was frozen, after newer ones. So each write
    counts only if the key is still as it was before.
    """

    def __init__(self, etcd: Etcd, node: str) -> None:
        """Tell nothing yet."""
        self._etcd, self._node = etcd, node
        self._told: dict[str, tuple[TableStatus | None, int]] = {}  # what the store has, and its mod_revision

    async def last(self, table: str) -> TableStatus | None:
        """Return what the store has of a table. None: nothing that makes sense.

        Raises:
            EtcdError: It is not known.
        """
        if table not in self._told:
            item = await self._etcd.get(keys.table_status(self._node, table))
            status = None
            with contextlib.suppress(BadDocument):
                status = None if item is None else TableStatus.from_bytes(item.value)
            self._told[table] = status, 0 if item is None else item.mod_revision
        return self._told[table][0]

    async def tell(self, table: str, status: TableStatus | None) -> None:
        """Write a status, unless it is there already. None: remove it.

        Raises:
            EtcdError: It may not be there.
        """
        key = keys.table_status(self._node, table)
        while await self.last(table) != status or (status is None and self._told[table][1]):
            unchanged_key = unchanged(key, self._told.pop(table)[1])
            if status is None:
                revision = await self._etcd.commit([unchanged_key], [delete(key)])
            else:
                revision = await self._etcd.commit([unchanged_key], [put(key, status.to_bytes())], witness=key)
            if revision is not None:
                self._told[table] = status, 0 if status is None else revision

    def forget(self) -> None:
        """Ask the store again what it has: the keys of the node may have been removed."""
        self._told.clear()


class Agent:
    """The agent. `run` it in an event loop.

    Attributes:
        reporter: Tells the node itself how the agent is.
    """

    def __init__(self, settings: Settings, state: StateFile, verifier: Verifier, credentials: Credentials) -> None:
        """Reach nobody yet.

        Args:
            settings: The configuration.
            state: What outlives the agent.
            verifier: Knows the fleet's public keys.
            credentials: The node's certificate.
        """
        self._node, self._settings = settings.node, settings
        self._service = LocalService(Client(settings.service))
        self._etcd = Etcd(settings.etcd.endpoints, credentials)
        self._state, self._verifier = state, verifier
        self._teller = StoreTeller(self._etcd, self._node)
        self._workers: dict[str, TableWorker] = {}
        self._tasks = asyncio.TaskGroup()
        self._lease: Lease | None = None
        self._facts_due = asyncio.Event()
        self._dry_runs: dict[str, int] = {}  # the keys of those that wait or are answered, with their revisions
        self._dry_run_turn = asyncio.Semaphore(1)
        self._warnings: list[str] = []
        self._refusal = ""  # why the agent does not follow the store, which would answer
        self._denial = ""  # why the store does not let this node write
        self.reporter = Reporter(self._node, settings.status_file)

    async def run(self, beat: Callable[[str], None]) -> None:
        """Work until it is cancelled.

        Args:
            beat: Called at least every few seconds while all is well, with a line that says how it is.
        """
        try:
            async with self._tasks as tasks:
                for name in self._state.tables():  # so that they are reported before the store answers
                    self._worker(name)
                tasks.create_task(self._follow())
                tasks.create_task(self._diagnose())
                tasks.create_task(self._be_present())
                tasks.create_task(self._tell_facts())
                tasks.create_task(self._report(beat))
        finally:
            with contextlib.suppress(EtcdError, TimeoutError):
                if self._lease is not None:
                    async with asyncio.timeout(_REVOKE_SECONDS):
                        await self._lease.revoke()
            await self._etcd.close()
            self._service.close()
            self.reporter.remove()

    # What the fleet desires

    async def _follow(self) -> None:
        """Give the workers what the store has for them, as it changes."""
        await self._check_versions()
        tables, asked = keys.desired_tables(self._node), keys.desired_dry_runs(self._node)
        async for news in self._etcd.follow(keys.desired(self._node)):
            if isinstance(news, Snapshot):
                found: list[tuple[str, Item | None]] = list(news.items.items())
                there = {keys.last_part(key) for key in news.items if key.startswith(tables)}
                found += [(tables + name, None) for name in self._workers if name not in there]
            else:
                found = [(event.key, event.item) for event in news.events]
            for key, item in found:
                if key.startswith(tables):
                    self._desire(key, item)
                elif key.startswith(asked) and item is not None:
                    self._begin_dry_run(item)

    async def _check_versions(self) -> None:
        """Wait for a store whose versions keep nodes apart."""
        while not await self._ask_members():  # noqa: ASYNC110 - the store tells nobody when it is there
            await asyncio.sleep(_RETRY_SECONDS * random.uniform(0.5, 1))  # noqa: S311 - no secret

    async def _ask_members(self) -> bool:
        """Find out whether the store can be reached, and may be used. Returns False if not: `_refusal` says why."""
        before = self._refusal
        try:
            self._warnings = await asyncio.to_thread(version_warnings, self._settings.etcd)
        except (VersionRefused, Unreachable) as error:
            self._refusal = str(error)
            if self._refusal != before:
                log.warning("the fleet's store is not used", reason=self._refusal)
            return False
        self._refusal = ""
        for warning in self._warnings:
            log.warning("the fleet's store is unsafe", reason=warning)
        return True

    async def _diagnose(self) -> None:
        """While the store does not answer, find out why: gRPC does not tell."""
        while True:
            await asyncio.sleep(_DIAGNOSIS_SECONDS)
            if not self._etcd.connection.connected:
                await self._ask_members()

    def _desire(self, key: str, item: Item | None) -> None:
        try:
            name = keys.checked_name(keys.last_part(key))
        except ValueError as error:
            log.warning("a key of the fleet's store is not used", key=key, reason=str(error))
            return
        self._worker(name).desire(item)

    def _worker(self, name: str) -> TableWorker:
        worker = self._workers.get(name)
        if worker is None:
            worker = TableWorker(name, self._node, self._service, self._teller, self._state, self._verifier)
            self._workers[name] = worker
            self._tasks.create_task(self._work(worker))
        return worker

    async def _work(self, worker: TableWorker) -> None:
        try:
            await worker.run()
        finally:
            del self._workers[worker.name]

    def _begin_dry_run(self, item: Item) -> None:
        if self._dry_runs.get(item.key) == item.mod_revision or len(self._dry_runs) >= _MAX_DRY_RUNS:
            return
        self._dry_runs[item.key] = item.mod_revision
        self._tasks.create_task(self._answer_dry_run(item))

    async def _answer_dry_run(self, item: Item) -> None:
        try:
            async with self._dry_run_turn:
                await dry_runs.answer(item, self._node, self._etcd, self._service, self._verifier)
        finally:
            del self._dry_runs[item.key]

    # What the fleet is told

    async def _be_present(self) -> None:
        """Keep the leased key that says that the agent is connected."""
        while True:
            try:
                if self._lease is None or not await self._lease.renew():
                    self._lease = None
                    lease = await self._etcd.grant(LEASE_SECONDS)
                    value = Presence(since=max(time.time(), 0.0)).to_bytes()
                    await self._etcd.put(keys.alive(self._node), value, lease=lease.id)
                    self._lease = lease
                self._denial = ""
            except PermissionDenied as error:
                self._denial = f"{error}; is this the certificate of {self._node}, and is the node in the fleet?"
                # The node was taken out of the fleet, or is not in it yet. If it comes back, all is told again.
                self._lease = None
                self._teller.forget()
                self._facts_due.set()
            except EtcdError:
                pass  # the connection knows why
            await asyncio.sleep(_RENEW_SECONDS * random.uniform(0.8, 1))  # noqa: S311 - no secret

    async def _tell_facts(self) -> None:
        """Tell what the node is, and what it opens to the fleet."""
        told: NodeFacts | None = None
        facts = NodeFacts(version="", kernel="", at=0.0)
        while True:
            try:
                facts = await self._facts()
            except JumptableError as error:  # the rest is as it was
                facts = msgspec.structs.replace(facts, ready=False, detail=str(error)[:MAX_DETAIL_CHARACTERS])
            if self._facts_due.is_set():
                told = None
            self._facts_due.clear()
            wait = _FACTS_SECONDS
            if facts != told:
                try:
                    now = msgspec.structs.replace(facts, at=max(time.time(), 0.0))
                    await self._etcd.put(keys.facts(self._node), now.to_bytes())
                    told = facts
                except EtcdError:
                    wait = _RETRY_SECONDS
            await happens(self._facts_due, wait)

    async def _facts(self) -> NodeFacts:
        opened = await self._service.opened()
        maps = await self._service.open_maps(opened)
        ready, detail, kernel = await self._service.readiness()
        return NodeFacts(
            version=opened.version[:64],
            kernel=kernel[:128],
            at=0.0,
            maps=maps[:_MAX_MAPS],
            ready=ready,
            detail=detail[:MAX_DETAIL_CHARACTERS],
        )

    # How the agent is

    async def _report(self, beat: Callable[[str], None]) -> None:
        while True:
            connection = self._etcd.connection
            error = self._refusal or self._denial or ("" if connection.connected else connection.error)
            tables = {name: each.status for name, each in self._workers.items() if each.status is not None}
            troubles = {name: each.trouble for name, each in self._workers.items() if each.trouble}
            warnings = [*self._warnings, *([self._state.trouble] if self._state.trouble else [])]
            self.reporter.update(error, warnings, tables, troubles)
            beat(f"not connected to the fleet: {error}" if error else "connected to the fleet")
            await asyncio.sleep(_LOOK_SECONDS)
