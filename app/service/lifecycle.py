"""The service as a whole: put together, started, kept up to date, and ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

import structlog

from app.service.changes.changes import Changes
from app.service.counters import Counters
from app.service.drift.detector import DriftDetector
from app.service.drift.reconcile import restore
from app.service.errors import ServiceError
from app.service.event_feed import EventFeed
from app.service.graph.reader import GraphReader
from app.service.holds import Holds
from app.service.loading.object_files import NO_LOADER, ObjectFiles, ObjectOptions
from app.service.objects.source import ById, Pinned, Source
from app.service.pin_watch import PinWatch
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import Hold

RETRY_SECONDS: Final = 2.0  # between two attempts to open what could not be opened
PIN_SECONDS: Final = 2.0  # between two looks at where the pins of what is held lead
_PAUSE_RATIO: Final = 20  # a check of all tables is followed by a pause of at least this many times its own time
_MAPS_BEGUN_TOGETHER: Final = 64  # they share the journal's transactions

_NOT_SETTLED: Final = "a map cannot be compared with the journal yet"

log = structlog.get_logger()


class Service:
    """Everything that the HTTP layer works with. Thread rule: one event loop.

    Attributes:
        registry: What is held, by name.
        journal: What has happened.
        changes: The one way to change entries.
        drift: Finds what others have changed.
        objects: The object files that are loaded.
        pins: Notices pins that lead to other objects by now.
        holds: Holds and releases maps and programs for requests.
        graph: Reads who jumps where.
        feed: The stream of events.
        counters: What is counted and timed.
        is_stopping: It is on its way out, and answers new requests no more.
    """

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        *,
        keep_dir: str | None = None,
        drift_interval: float = 5.0,
        objects: ObjectOptions = NO_LOADER,
        delivery: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Put the service together. Nothing is opened, and nothing runs yet.

        Args:
            registry: The maps and programs.
            journal: The journal, open.
            keep_dir: The folder in bpffs where programs are pinned that an undo may need after a restart.
            drift_interval: Seconds between two checks of all tables.
            objects: How object files are loaded.
            delivery: Surrounds the answers of one group of changes: see GroupCommit.
        """
        self.registry = registry
        self.journal = journal
        self.counters = Counters()
        self.changes = Changes(registry, journal, self.counters, keep_dir=keep_dir, delivery=delivery)
        self.drift = DriftDetector(registry, journal, self.changes.replaced_programs)
        self.pins = PinWatch(registry, journal)
        self.objects = ObjectFiles(registry, journal, self.changes, self.drift, objects, keep_dir)
        self.holds = Holds(registry, journal, self.changes.confirmations, self.drift, self.pins)
        self.graph = GraphReader(registry)
        self.feed = EventFeed(journal)
        self.is_stopping = False
        self._made_at = time.monotonic()
        journal.on_commit = self.counters.journal.add
        self._drift_interval = drift_interval
        self._journal_failing: str | None = None  # as it was logged
        self._is_wal_large = False
        self._tasks: list[asyncio.Task[None]] = []
        self._not_followed: dict[tuple[str, str], str] = {}  # why, by kind and name

    def uptime(self) -> float:
        """Return how long the service has existed, in seconds."""
        return time.monotonic() - self._made_at

    async def start(self) -> None:
        """Do what comes before the first request.

        Hold again what requests had held, undo what is overdue, learn what entries are expected to hold, restore.

        Raises:
            JournalFailed: The journal cannot be read.
        """
        for hold in self.journal.holds():
            self._hold_again(hold)
        self.registry.open_unavailable()
        await self.objects.restore()
        for held in self.registry.unavailable():
            log.warning("unavailable", kind=held.kind, name=held.name, reason=held.reason)
        await self.changes.confirmations.load()
        await asyncio.to_thread(self.graph.loaded)  # the keeper loads for it what takes 0.1 s, while nobody waits
        await self._settle()

    def run(self) -> None:
        """Keep things up to date beside the requests, until `finish`."""
        self._tasks = [
            asyncio.create_task(self._forever(self.open_unavailable, RETRY_SECONDS)),
            asyncio.create_task(self._forever(self._follow_pins, PIN_SECONDS)),
            asyncio.create_task(self._forever(self._watch_journal, RETRY_SECONDS)),
            asyncio.create_task(self._forever(self.drift.check_all, self._drift_interval)),
        ]

    def stop(self) -> None:
        """Begin to end: streams of events end, and new requests are refused."""
        self.is_stopping = True
        self.feed.stop()
        self.objects.stop()

    async def finish(self) -> None:
        """Wait for the changes that are under way, and stop everything that runs beside requests."""
        for task in self._tasks:
            task.cancel()
        await self.objects.finish()
        await self.changes.finish()
        await self.drift.finish()

    def close(self) -> None:
        """Close the journal, and what is kept for an undo or by object files. What is held stays the registry's."""
        self.objects.close()
        self.changes.close()

    def _hold_again(self, hold: Hold) -> None:
        registry = self.registry
        if hold.pinned is None and hold.boot_id != registry.kernel.boot_id:
            log.warning(
                "not held any more: it was held by id, which ends with the boot", kind=hold.kind, name=hold.name
            )
            return
        source = source_of(hold)
        if hold.kind == "map" and registry.maps.find(hold.name) is None:
            registry.maps.add(HeldMap(hold.name, source, create_entries=hold.create_entries))
        if hold.kind == "program" and registry.programs.find(hold.name) is None:
            registry.programs.add(HeldProgram(hold.name, source))

    async def open_unavailable(self) -> None:
        """Try to open what could not be opened. Learn what the entries of what now is open are expected to hold."""
        await self.objects.retry()
        for held in self.registry.open_unavailable():
            log.info("opened", name=held.name)
            kind: Literal["map", "program"] = held.kind
            try:
                await self.journal.append_object_event(kind, held.name, {kind: held.name, "happened": "opened"})
            except JournalFailed as error:
                log.warning("an event is lost", reason=str(error))
        await self._settle()

    async def _follow_pins(self) -> None:
        """Look where the pins lead, and open what they lead to now where the configuration says so."""
        await self.pins.check_all()
        for held in (*self.registry.maps, *self.registry.programs):
            if not held.follow or held.moved is None:
                continue
            try:
                await self.holds.follow(held)
            except ServiceError as error:
                if self._not_followed.get((held.kind, held.name)) != str(error):  # once, as it is tried every 2 s
                    self._not_followed[held.kind, held.name] = str(error)
                    log.warning("not followed yet", kind=held.kind, name=held.name, reason=str(error))
            else:
                self._not_followed.pop((held.kind, held.name), None)

    async def _watch_journal(self) -> None:
        """Log when the journal cannot be written, and when it can be again, also where nobody changes anything."""
        warning = self.journal.wal_warning
        if warning is not None and not self._is_wal_large:
            log.warning("the journal grows", reason=warning)
        self._is_wal_large = warning is not None
        await self.journal.make_room()
        failing, before = self.journal.failing, self._journal_failing
        self._journal_failing = failing
        if failing is not None and failing != before:
            log.error("the journal cannot be written: changes are put back", reason=failing)
        elif failing is None and before is not None:
            log.info("the journal can be written again")

    async def _settle(self) -> None:
        """Learn what entries are expected to hold, tell where they do not, and restore what is to be restored."""
        new = [held for held in self.registry.maps if held.object is not None and held.expected is None]
        begun: set[str] = set()
        for start in range(0, len(new), _MAPS_BEGUN_TOGETHER):
            together = new[start : start + _MAPS_BEGUN_TOGETHER]
            results = await asyncio.gather(*(self.drift.begin(held) for held in together))
            begun |= {held.name for held, has_begun in zip(together, results, strict=True) if has_begun}
        for held in self.registry.maps:
            try:
                if held.name in begun:
                    await self.drift.check(held)
                await restore(self.changes, self.drift, held)
            except ServiceError as error:
                self.drift.troubles.begin(_NOT_SETTLED, held.name, str(error))
            else:
                self.drift.troubles.end(_NOT_SETTLED, held.name)

    async def _forever(self, do: Callable[[], Awaitable[None]], seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        spent = 0.0
        while True:
            await asyncio.sleep(max(seconds, _PAUSE_RATIO * spent))
            began = clock()
            try:
                await do()
            except Exception:
                log.exception("internal error beside the requests; the service goes on")
            spent = clock() - began


def source_of(hold: Hold) -> Source:
    """Return where to open what a request had held."""
    return ById(hold.object_id or 0) if hold.pinned is None else Pinned(hold.pinned)
