"""Changes that undo themselves unless somebody confirms them in time."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Final

import structlog

from app.service.errors import (
    AlreadyConfirmed,
    AlreadyUndone,
    EntryWaits,
    InUse,
    JournalUnavailable,
    MapUnknown,
    NotRestorable,
    ServiceError,
)
from app.service.figures import Figures
from app.service.held import Held, HeldMap
from app.service.keep_dir import KeepDir, programs_before
from app.service.program import Program
from app.service.registry import Registry
from app.service.retained import Retained
from app.service.writing import Written, put_back
from app.store.journal import Journal, JournalFailed
from app.store.records import Change, ProgramRecord, Waiting, expire

SERVICE: Final = "jumptable"  # the actor of what the service does by itself
_RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


class Confirmations:
    """Changes that wait for their confirmation. Thread rule: one event loop.

    Deadlines are in the time since boot, which nobody sets, and which goes on while the service is down.
    """

    def __init__(
        self, registry: Registry, journal: Journal, retained: Retained, keep_dir: KeepDir, figures: Figures
    ) -> None:
        self.keep_dir = keep_dir
        self._registry = registry
        self._journal = journal
        self._retained = retained
        self._figures = figures
        self.uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
        self._waiting: dict[int, Waiting] = {}
        self._put_back: set[str] = set()  # tokens of those that are undone, but not yet in the journal
        self._timers: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @staticmethod
    def check_free(held: HeldMap, indexes: Iterable[int], reverts: int | None = None) -> None:
        """EntryWaits where one of the entries waits, unless for what is reverted."""
        if held.waits:
            for index in indexes:
                if held.waits.get(index, reverts) != reverts:
                    raise EntryWaits(index, held.waits[index])

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

    async def begin(self, held: HeldMap, change: Change, replaced: Mapping[int, Program], seconds: float) -> Waiting:
        """Journal what is to be undone, and pin what that will need. NotRestorable, JournalUnavailable."""
        self.keep_dir.check(held, change, replaced)
        token = uuid.uuid4().hex
        waiting = Waiting(token, change, self.uptime() + seconds, self.keep_dir.paths(held, change, token))
        try:
            # First the paths, then the pins: so that none is left behind, however this ends.
            await self._journal.wait(waiting)
        except JournalFailed as error:
            raise JournalUnavailable(str(error), put_back=True, left=[]) from error
        try:
            self.keep_dir.pin(waiting, replaced)
        except ServiceError as error:
            await self.give_up(waiting)
            raise NotRestorable(held.name, f"a program cannot be pinned below keep_dir: {error}", []) from error
        return waiting

    async def give_up(self, waiting: Waiting) -> None:
        """The change came to nothing, and was put back."""
        self.keep_dir.unpin(waiting)
        with suppress(JournalFailed):  # then the next start finds that there is nothing to be undone
            await self._journal.wait_no_more(waiting.token)

    # While it waits

    def run(self, waiting: Waiting, change: Change) -> None:
        """The change is journalled: from now on it waits."""
        waiting = replace(waiting, change=change)
        self._waiting[change.id] = waiting
        with suppress(MapUnknown):
            waits = self._registry.maps.get(change.map).waits
            waits.update({entry.index: change.id for entry in change.entries})
        self._timers[waiting.token] = asyncio.create_task(self._expire(waiting))

    async def _expire(self, waiting: Waiting) -> None:
        while (left := waiting.deadline - self.uptime()) > 0:  # noqa: ASYNC110 - the clock is another one
            await asyncio.sleep(left)
        while not await self.undo(waiting):  # noqa: ASYNC110 - nothing tells when the journal can be written again
            await asyncio.sleep(_RETRY_SECONDS)

    def end(self, change_id: int) -> None:
        """It waits no more: it was confirmed or reverted, and the journal has that."""
        waiting = self._waiting.pop(change_id, None)
        if waiting is not None:
            self._let_go(waiting)

    def _let_go(self, waiting: Waiting) -> None:
        change = waiting.change
        with suppress(MapUnknown):
            waits = self._registry.maps.get(change.map).waits
            for entry in change.entries:
                if waits.get(entry.index) == change.id:
                    del waits[entry.index]
        timer = self._timers.pop(waiting.token, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        self.keep_dir.unpin(waiting)

    async def confirm(self, change: Change) -> Change:
        """The change stands. Errors: AlreadyConfirmed, AlreadyUndone, JournalUnavailable."""
        waiting = self._waiting.get(change.id)
        if waiting is None:
            raise _too_late(change)
        async with self._registry.maps.get(change.map).lock:
            if change.id not in self._waiting or waiting.token in self._put_back:
                raise AlreadyUndone(change.id, "undone")  # while this waited for the lock
            try:
                confirmed = await self._journal.confirm(change)
            except JournalFailed as error:
                raise JournalUnavailable(str(error), put_back=False, left=[]) from error
            self.end(change.id)
        return confirmed

    # Undoing

    async def undo(self, waiting: Waiting) -> bool:
        """Each entry that still holds what the change put there gets back what it had; the rest becomes drift.

        False: the map or the journal is unavailable, so it is to be tried again.
        """
        change, kernel = waiting.change, self._registry.kernel
        try:
            held = self._registry.maps.get(change.map)
        except MapUnknown:
            log.warning("its map is not held any more, so it cannot be undone", change=change.id, map=change.map)
            return await self._undone(waiting, None, [])
        async with held.lock:
            if change.id and change.id not in self._waiting:
                return True  # confirmed or reverted, while this waited for the lock
            if change.boot_id != kernel.boot_id:
                held.recorded = None  # its array is gone, and so is what its ids mean
                return await self._undone(waiting, held, [])
            if held.object is None:
                return False
            held.writing = {entry.index for entry in change.entries}
            try:
                left = await self._write_back(held, waiting) if held.object.id == change.map_id else []
                return await self._undone(waiting, held, left)
            finally:
                held.writing = ()

    async def _write_back(self, held: HeldMap, waiting: Waiting) -> list[int]:
        with ExitStack() as stack:
            programs: dict[int, Program] = {}
            for id_, record in programs_before(waiting.change).items():
                program = self.keep_dir.open(waiting, id_) or self._retained.find(record)
                if program is not None:
                    programs[id_] = stack.enter_context(program)
            undos = [Written(entry.index, _id(entry.before), _id(entry.after)) for entry in waiting.change.entries]
            return await put_back(held.opened(), undos, programs)

    async def _undone(self, waiting: Waiting, held: HeldMap | None, left: list[int]) -> bool:
        change = waiting.change
        if left:
            log.error("not all of an unconfirmed change could be undone", change=change.id, map=change.map, left=left)
        try:
            if change.id:
                undone = await self._journal.append(expire(change, time.time(), SERVICE))
                if held is not None and held.recorded is not None:
                    held.recorded.took(undone)
            else:
                await self._journal.wait_no_more(waiting.token)
        except JournalFailed as error:
            log.warning("undone, but that cannot be journalled yet", change=change.id, reason=str(error))
            self._put_back.add(waiting.token)
            return False
        if change.id:
            self._figures.changes["expire", "applied"] += 1
        log.info("expired", change=change.id, map=change.map, left=left)
        self._put_back.discard(waiting.token)
        self._waiting.pop(change.id, None)
        self._let_go(waiting)
        return True

    # At the start and at the end

    async def load(self) -> None:
        """After a start: undo what is overdue, or was cut off in its midst; let the rest wait. JournalFailed."""
        for waiting in self._journal.waiting():
            if waiting.change.id:
                self.run(waiting, waiting.change)
            is_of_this_boot = waiting.change.boot_id == self._registry.kernel.boot_id
            waits = waiting.change.id and is_of_this_boot and waiting.deadline > self.uptime()
            if not waits and not await self.undo(waiting) and waiting.token not in self._timers:
                self._timers[waiting.token] = asyncio.create_task(self._expire(waiting))

    async def finish(self) -> None:
        """Let go of the timers: what is overdue meanwhile is undone at the next start."""
        timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()
        if timers:
            await asyncio.wait(timers)


def _id(record: ProgramRecord | None) -> int | None:
    return None if record is None else record.id


def _too_late(change: Change) -> ServiceError:
    if change.state in {"expired", "reverted"}:
        return AlreadyUndone(change.id, change.state)
    return AlreadyConfirmed(change.id, change.state)
