"""Changes that undo themselves unless somebody confirms them in time."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from app.service.changes.origin import RequestContext
from app.service.changes.plan import PreparedChange
from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.changes.undo_pins import UndoPins, programs_before
from app.service.errors import (
    AlreadyConfirmed,
    AlreadyUndone,
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
from app.store.records import Change, ChangeKind, PendingConfirmation

_RETRY_SECONDS: Final = 2.0  # between two attempts to undo what could not be undone

log = structlog.get_logger()


class Confirmations:
    """The changes that wait for a confirmation. Thread rule: one event loop.

    Deadlines are in the time since boot (CLOCK_BOOTTIME): nobody sets that clock, and it goes on while the service is
    down.
    """

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        replaced_programs: ReplacedPrograms,
        undo_pins: UndoPins,
        undo: Callable[[HeldMap, PendingConfirmation], Awaitable[None]],
    ) -> None:
        """Start with no change that waits; `load` finds those of an earlier run.

        Args:
            registry: The held maps.
            journal: Remembers what waits beyond the end of the service.
            replaced_programs: Keeps what an undo puts back open.
            undo_pins: Pins what an undo puts back.
            undo: Writes and journals the undo of a change. It is called under the map's lock, again where it fails.
        """
        self._registry = registry
        self._journal = journal
        self._replaced_programs = replaced_programs
        self._undo_pins = undo_pins
        self._undo = undo
        self.uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
        self._pending: dict[int, PendingConfirmation] = {}  # by the change's id
        self._kept: dict[str, list[int]] = {}  # the programs that an undo needs, by token
        self._timers: dict[str, asyncio.Task[None]] = {}
        self.written: dict[str, PreparedChange] = {}  # by token: undos that are written, but not journalled yet
        self._reasons: dict[str, str] = {}  # why something is not undone yet

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def seconds_left(self) -> float | None:
        """How long until the first of them is undone, in seconds; below 0: that is overdue. None: none waits."""
        if not self._pending:
            return None
        return min(pending.deadline for pending in self._pending.values()) - self.uptime()

    def check_releasable(self, held: Held[Program] | HeldMap) -> None:
        """Check that no undo would need this program or map.

        Raises:
            InUse: A change that waits needs it.
        """
        for pending in self._pending.values():
            if isinstance(held, HeldMap):
                needed = pending.change.map == held.name
            else:
                needed = held.object is not None and held.object.id in programs_before(pending.change)
            if needed:
                raise InUse(held.name, pending.change.id)

    def check_programs_releasable(self, name: str, ids: Collection[int]) -> None:
        """Check that no undo would need one of these programs.

        Args:
            name: What they belong to.
            ids: The programs.

        Raises:
            InUse: A change that waits needs one.
        """
        for pending in self._pending.values():
            if not programs_before(pending.change).keys().isdisjoint(ids):
                raise InUse(name, pending.change.id)

    def repeatable(self, held: HeldMap, kind: ChangeKind, context: RequestContext) -> Iterator[Change]:
        """Return the changes that wait, and that a request like this has made: so it may be the same, sent again.

        Args:
            held: The map.
            kind: What sort of change it is.
            context: Who asks, and for how long the change is to wait.
        """
        if held.unconfirmed is None or context.confirm_within is None:
            return
        for pending in self._pending.values():
            change = pending.change
            if (change.map, change.kind, change.actor) != (held.name, kind, context.actor):
                continue
            is_over = pending.token in self.written or pending.deadline <= self.uptime()
            if not is_over and round((change.confirm_by or 0.0) - change.at) == context.confirm_within:
                yield change

    # Before the first write

    async def add(
        self, held: HeldMap, change: Change, replaced: Mapping[int, Program], seconds: float
    ) -> PendingConfirmation:
        """Journal that a change is to be undone, and pin what that will need.

        `start` or `drop` has to follow.

        Args:
            held: The map.
            change: The change, which is not written yet.
            replaced: The programs that it replaces, by id.
            seconds: The time that there is for the confirmation.

        Raises:
            NotRestorable: A program cannot be pinned.
            JournalUnavailable: It cannot be journalled.
        """
        token = uuid.uuid4().hex
        pending = PendingConfirmation(
            token, change, self.uptime() + seconds, self._undo_pins.paths(held, change, token)
        )
        try:
            # First the paths are journalled, then the pins are made: so that none is left behind, however this ends.
            await self._journal.add_pending(pending)
        except JournalFailed as error:
            raise JournalUnavailable(str(error), put_back=True, left=[]) from error
        try:
            if pending.undo_pins:
                self._undo_pins.pin(pending, replaced)
        except ServiceError as error:
            await self.drop(pending)
            raise NotRestorable(held.name, f"a program cannot be pinned below keep_dir: {error}", []) from error
        return pending

    async def drop(self, pending: PendingConfirmation) -> None:
        """Forget a change that came to nothing and was put back."""
        self._undo_pins.unpin(pending)
        if not await self._remove(pending):
            self._timers[pending.token] = asyncio.create_task(_repeat_until(lambda: self._remove(pending)))

    async def _remove(self, pending: PendingConfirmation) -> bool:
        try:
            await self._journal.remove_pending(pending.token)
        except JournalFailed:
            return False
        self._timers.pop(pending.token, None)
        return True

    # While it waits

    def start(self, pending: PendingConfirmation, change: Change, held: HeldMap | None) -> None:
        """Let a journalled change wait from now on. `held`: its map. None: it is not held any more."""
        pending = replace(pending, change=change)
        self._pending[change.id] = pending
        # Kept apart from the programs of other changes, of which only so many are kept.
        before = programs_before(change)
        if before:
            self._kept[pending.token] = list(self._replaced_programs.acquire(before))
        if held is not None:
            _mark(held, pending)
        self._timers[pending.token] = asyncio.create_task(self._undo_when_due(pending))

    def attach(self, held: HeldMap) -> None:
        """Mark the entries that wait on a map that is held from now on."""
        held.unconfirmed = None
        for pending in self._pending.values():
            if pending.change.map == held.name:
                _mark(held, pending)

    async def _undo_when_due(self, pending: PendingConfirmation) -> None:
        while (left := pending.deadline - self.uptime()) > 0:  # noqa: ASYNC110 - the clock is another one
            await asyncio.sleep(left)
        await _repeat_until(lambda: self.undo(pending))

    def end(self, change_id: int) -> None:
        """Stop waiting for a change: it was confirmed or reverted, and the journal has that."""
        pending = self._pending.pop(change_id, None)
        if pending is not None:
            self._let_go(pending, self._registry.maps.find(pending.change.map))

    def _let_go(self, pending: PendingConfirmation, held: HeldMap | None) -> None:
        if held is not None:
            _unmark(held, pending)
        timer = self._timers.pop(pending.token, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        kept = self._kept.pop(pending.token, None)
        if kept:
            self._replaced_programs.release(kept)
        self._reasons.pop(pending.token, None)
        if pending.undo_pins:
            self._undo_pins.unpin(pending)

    async def confirm(self, change: Change, actor: str) -> Change:
        """Let a change stand, and return it as it is now.

        Args:
            change: The change.
            actor: Who confirms it, as the journal names them.

        Raises:
            AlreadyConfirmed: It does not wait.
            AlreadyUndone: It is too late.
            JournalUnreadable: The confirmation cannot be journalled.
        """
        with suppress(MapUnknown):
            async with self._registry.maps.get(change.map).lock:
                return await self._confirm(change, actor)
        return await self._confirm(change, actor)  # its map was taken out of the configuration

    async def _confirm(self, change: Change, actor: str) -> Change:
        pending = self._pending.get(change.id)
        if pending is None:
            if change.state in {"expired", "reverted"}:
                raise AlreadyUndone(change.id, change.state)
            raise AlreadyConfirmed(change.id, change.state)
        if pending.token in self.written:
            raise AlreadyUndone(change.id, "undone")
        if pending.deadline <= self.uptime():
            raise AlreadyUndone(change.id, "overdue")
        try:
            confirmed = await self._journal.confirm(change, actor, time.time())
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        self.end(change.id)
        return confirmed

    async def undo(self, pending: PendingConfirmation) -> bool:
        """Give each entry that still holds what the change put there what it had before. The rest becomes drift.

        Returns:
            False: it is to be tried again, as the map or the journal is unavailable now.
        """
        change, token = pending.change, pending.token
        try:
            held = self._registry.maps.get(change.map)
            async with held.lock:
                if change.id and change.id not in self._pending:
                    return True  # it was confirmed or reverted while this waited for the lock
                await self._undo(held, pending)
        except (ServiceError, JournalFailed) as error:
            if self._reasons.get(token) != str(error):  # once, as it is tried every few seconds
                self._reasons[token] = str(error)
                log.warning("not undone yet", change=change.id, map=change.map, reason=str(error))
            return False
        del self.written[token]
        self._pending.pop(change.id, None)
        self._let_go(pending, held)
        return True

    # At the start and at the end

    async def load(self) -> None:
        """After a start: undo what is overdue, or was cut off in its midst. The rest waits on.

        Raises:
            JournalFailed: The journal cannot be read.
        """
        found = self._journal.pending()
        self._undo_pins.sweep(found)
        for pending in found:
            change = pending.change
            if change.id:
                self.start(pending, change, self._registry.maps.find(change.map))
            is_over = change.boot_id != self._registry.kernel.boot_id or pending.deadline <= self.uptime()
            if change.id and not is_over:
                continue
            if not await self.undo(pending) and not change.id:
                retry = _repeat_until(lambda pending=pending: self.undo(pending))  # type: ignore[misc]
                self._timers[pending.token] = asyncio.create_task(retry)

    async def finish(self) -> None:
        """Stop the timers. What becomes overdue from now on is undone at the next start."""
        timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()
        if timers:
            await asyncio.wait(timers)


def _mark(held: HeldMap, pending: PendingConfirmation) -> None:
    if held.unconfirmed is None:
        held.unconfirmed = UnconfirmedEntries()
    change = pending.change
    held.unconfirmed.add(change.entries.indexes, change.id, change.confirm_by or 0.0)


def _unmark(held: HeldMap, pending: PendingConfirmation) -> None:
    if held.unconfirmed is not None:
        left = held.unconfirmed.remove(pending.change.entries.indexes, pending.change.id)
        if not left:
            held.unconfirmed = None


async def _repeat_until(done: Callable[[], Awaitable[bool]]) -> None:
    """Try again and again: nothing tells when a journal can be written, or a map can be opened."""
    while not await done():  # noqa: ASYNC110
        await asyncio.sleep(_RETRY_SECONDS)
