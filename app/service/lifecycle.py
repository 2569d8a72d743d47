"""What goes on beside requests: opening what could not be opened, looking for drift, and the start and the end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import structlog

from app.service.changes.changes import Changes
from app.service.drift.detector import Drift
from app.service.drift.reconcile import restore
from app.service.errors import ServiceError
from app.service.objects.source import ById, Pinned, Source
from app.service.registry.held import HeldMap, HeldProgram
from app.store.journal import JournalFailed
from app.store.records import Hold

RETRY_SECONDS: Final = 2.0
_SHARE: Final = 20  # a look at all tables is followed by a pause of at least so many times its own time

log = structlog.get_logger()


class Upkeep:
    """Started before the first request is answered. Thread rule: one event loop."""

    def __init__(self, changes: Changes, drift_interval: float = 5.0) -> None:
        """`drift_interval`: seconds between two looks at all tables."""
        self.changes = changes
        self.drift = Drift(changes)
        self._interval = drift_interval
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Hold what requests had held, undo what is overdue, know what entries are to hold, put back. JournalFailed."""
        registry = self.changes.registry
        for hold in self.changes.journal.holds():
            self._hold_again(hold)
        registry.open_unavailable()
        for held in registry.unavailable():
            kind = "map" if isinstance(held, HeldMap) else "program"
            log.warning("unavailable", kind=kind, name=held.name, reason=held.reason)
        await self.changes.confirmations.load()
        await self._settle()

    def run(self) -> None:
        """Go on with it beside the requests, until `finish`."""
        self._tasks = [
            asyncio.create_task(self._forever(self._retry, RETRY_SECONDS)),
            asyncio.create_task(self._forever(self.drift.check_all, self._interval)),
        ]

    async def finish(self) -> None:
        """End it, and wait for the changes that are under way."""
        for task in self._tasks:
            task.cancel()
        await self.changes.finish()
        await self.drift.finish()

    def _hold_again(self, hold: Hold) -> None:
        registry = self.changes.registry
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

    async def _retry(self) -> None:
        for held in self.changes.registry.open_unavailable():
            log.info("opened", name=held.name)
            kind: Literal["map", "program"] = "map" if isinstance(held, HeldMap) else "program"
            try:
                await self.changes.journal.append_object_event(kind, held.name, {kind: held.name, "happened": "opened"})
            except JournalFailed as error:
                log.warning("an event is lost", reason=str(error))
        await self._settle()

    async def _settle(self) -> None:
        for held in self.changes.registry.maps:
            try:
                if held.object is not None and held.expected is None and await self.drift.begin(held):
                    await self.drift.check(held)
                await restore(self.changes, self.drift, held)
            except ServiceError as error:
                log.warning("a map could not be read", map=held.name, reason=str(error))

    async def _forever(self, do: Callable[[], Awaitable[None]], seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        spent = 0.0
        while True:
            await asyncio.sleep(max(seconds, _SHARE * spent))
            began = clock()
            try:
                await do()
            except Exception:
                log.exception("internal error in the upkeep; it goes on")
            spent = clock() - began


def source_of(hold: Hold) -> Source:
    """Where to open it."""
    return ById(hold.object_id or 0) if hold.pinned is None else Pinned(hold.pinned)
