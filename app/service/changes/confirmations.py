"""Changes that undo themselves unless somebody confirms them in time."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.changes.undo_pins import UndoPins, programs_before
from app.service.changes.undoing import Undoing
from app.service.counters import Counters
from app.service.errors import (
    AlreadyConfirmed,
    AlreadyUndone,
    EntryWaits,
    InUse,
    JournalUnavailable,
    JournalUnreadable,
    MapUnknown,
    NotRestorable,
    ServiceError,
)
from app.service.objects.program import Program
from app.service.registry.held import Held, HeldMap
from app.service.registry.index_sets import UnconfirmedEntries
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import Change, PendingConfirmation

_RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


class Confirmations:
    """Changes that wait for their confirmation. Thread rule: one event loop.

    Deadlines are in the time since boot, which nobody sets, and which goes on while the service is down.
    """

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        replaced_programs: ReplacedPrograms,
        keep_dir: UndoPins,
        counters: Counters,
    ) -> None:
        self.keep_dir = keep_dir
        self._registry = registry
        self._journal = journal
        self._retained = replaced_programs
        self._undoing = Undoing(registry, journal, replaced_programs, keep_dir, counters)
        self.uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
        self._waiting: dict[int, PendingConfirmation] = {}
        self._held: dict[str, list[int]] = {}  # what their undo needs, by token
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._reasons: dict[str, str] = {}  # why something is not undone yet

    def __len__(self) -> int:
        return len(self._waiting)

    @staticmethod
    def check_free(held: HeldMap, indexes: Sequence[int], reverts: int | None = None) -> None:
        """EntryWaits where one of the entries waits, unless for what is reverted."""
        if held.unconfirmed:
            for index in indexes:
                if held.unconfirmed.get(index, reverts) != reverts:
                    raise EntryWaits(index, held.unconfirmed[index])

    def check_releasable(self, held: Held[Program] | HeldMap) -> None:
        """InUse where an undo would need this program or map."""
        for waiting in self._waiting.values():
            if isinstance(held, HeldMap):
                needed = waiting.change.map == held.name
            else:
                needed = held.object is not None and held.object.id in programs_before(waiting.change)
            if needed:
                raise InUse(held.name, waiting.change.id)

    # Before the first write

    async def begin(
        self, held: HeldMap, change: Change, replaced: Mapping[int, Program], seconds: float
    ) -> PendingConfirmation:
        """Journal what is to be undone, and pin what that will need. NotRestorable, JournalUnavailable."""
        self.keep_dir.check(held, change, replaced)
        token = uuid.uuid4().hex
        waiting = PendingConfirmation(token, change, self.uptime() + seconds, self.keep_dir.paths(held, change, token))
        try:
            # First the paths, then the pins: so that none is left behind, however this ends.
            await self._journal.add_pending(waiting)
        except JournalFailed as error:
            raise JournalUnavailable(str(error), put_back=True, left=[]) from error
        try:
            self.keep_dir.pin(waiting, replaced)
        except ServiceError as error:
            await self.give_up(waiting)
            raise NotRestorable(held.name, f"a program cannot be pinned below keep_dir: {error}", []) from error
        return waiting

    async def give_up(self, waiting: PendingConfirmation) -> None:
        """The change came to nothing, and was put back."""
        self.keep_dir.unpin(waiting)
        if not await self._forgotten(waiting):
            self._timers[waiting.token] = asyncio.create_task(self._until(lambda: self._forgotten(waiting)))

    async def _forgotten(self, waiting: PendingConfirmation) -> bool:
        try:
            await self._journal.remove_pending(waiting.token)
        except JournalFailed:
            return False
        self._timers.pop(waiting.token, None)
        return True

    # While it waits

    def run(self, waiting: PendingConfirmation, change: Change) -> None:
        """The change is journalled: from now on it waits."""
        waiting = replace(waiting, change=change)
        self._waiting[change.id] = waiting
        # Held apart from those of other changes, of which only so many are kept.
        self._held[waiting.token] = list(self._retained.hold(programs_before(change)))
        with suppress(MapUnknown):
            self._registry.maps.get(change.map).unconfirmed.add(change.entries.indexes, change.id)
        self._timers[waiting.token] = asyncio.create_task(self._expire(waiting))

    def attach(self, held: HeldMap) -> None:
        """A map is held from now on: its entries that wait are known again."""
        held.unconfirmed = UnconfirmedEntries()
        for waiting in self._waiting.values():
            if waiting.change.map == held.name:
                held.unconfirmed.add(waiting.change.entries.indexes, waiting.change.id)

    async def _expire(self, waiting: PendingConfirmation) -> None:
        while (left := waiting.deadline - self.uptime()) > 0:  # noqa: ASYNC110 - the clock is another one
            await asyncio.sleep(left)
        await self._until(lambda: self.undo(waiting))

    @staticmethod
    async def _until(done: Callable[[], Awaitable[bool]]) -> None:
        """Again and again, as nothing tells when a journal can be written, or a map be opened."""
        while not await done():  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_SECONDS)

    def end(self, change_id: int) -> None:
        """It waits no more: it was confirmed or reverted, and the journal has that."""
        waiting = self._waiting.pop(change_id, None)
        if waiting is not None:
            self._let_go(waiting)

    def _let_go(self, waiting: PendingConfirmation) -> None:
        change = waiting.change
        with suppress(MapUnknown):
            self._registry.maps.get(change.map).unconfirmed.end(change.entries.indexes, change.id)
        timer = self._timers.pop(waiting.token, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        self._retained.release(self._held.pop(waiting.token, []))
        self._reasons.pop(waiting.token, None)
        self.keep_dir.unpin(waiting)

    async def confirm(self, change: Change) -> Change:
        """The change stands. Errors: AlreadyConfirmed, AlreadyUndone, JournalUnreadable."""
        with suppress(MapUnknown):
            async with self._registry.maps.get(change.map).lock:
                return await self._confirm(change)
        return await self._confirm(change)  # its map was taken out of the configuration

    async def _confirm(self, change: Change) -> Change:
        waiting = self._waiting.get(change.id)
        if waiting is None:
            raise _too_late(change)
        if waiting.token in self._undoing.unjournalled:
            raise AlreadyUndone(change.id, "undone")
        if waiting.deadline <= self.uptime():
            raise AlreadyUndone(change.id, "overdue")
        try:
            confirmed = await self._journal.confirm(change)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        self.end(change.id)
        return confirmed

    async def undo(self, waiting: PendingConfirmation) -> bool:
        """Each entry that still holds what the change put there gets back what it had; the rest becomes drift.

        False: that cannot be now, as the map or the journal is unavailable, and is to be tried again.
        """
        change = waiting.change
        try:
            held = self._registry.maps.get(change.map)
            async with held.lock:
                if change.id and change.id not in self._waiting:
                    return True  # confirmed or reverted, while this waited for the lock
                await self._undoing.undo(held, waiting)
        except (ServiceError, JournalFailed) as error:
            if self._reasons.get(waiting.token) != str(error):  # once, as it is tried every few seconds
                self._reasons[waiting.token] = str(error)
                log.warning("not undone yet", change=change.id, map=change.map, reason=str(error))
            return False
        self._waiting.pop(change.id, None)
        self._let_go(waiting)
        return True

    # At the start and at the end

    async def load(self) -> None:
        """After a start: undo what is overdue, or was cut off in its midst; let the rest wait. JournalFailed."""
        found = self._journal.pending()
        self.keep_dir.sweep(found)
        for waiting in found:
            change = waiting.change
            if change.id:
                self.run(waiting, change)
            is_over = change.boot_id != self._registry.kernel.boot_id or waiting.deadline <= self.uptime()
            if change.id and not is_over:
                continue
            if not await self.undo(waiting) and not change.id:
                retry = self._until(lambda waiting=waiting: self.undo(waiting))  # type: ignore[misc]
                self._timers[waiting.token] = asyncio.create_task(retry)

    async def finish(self) -> None:
        """Let go of the timers: what is overdue meanwhile is undone at the next start."""
        timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()
        if timers:
            await asyncio.wait(timers)


def _too_late(change: Change) -> ServiceError:
    if change.state in {"expired", "reverted"}:
        return AlreadyUndone(change.id, change.state)
    return AlreadyConfirmed(change.id, change.state)
