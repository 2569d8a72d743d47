"""Changes: applied whole or not at all, journalled before they are answered, and undone."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.service.changes.confirmations import Confirmations
from app.service.changes.draft import change_of, entries_of
from app.service.changes.fit import check_not_frozen
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_entries, check_programs
from app.service.changes.plan import WritePlan
from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.changes.undo_pins import UndoPins
from app.service.changes.writer import WriteFailed, put_back, write
from app.service.counters import Counters
from app.service.errors import ChangeUnknown, JournalUnavailable, JournalUnreadable, ServiceError, WriteRefused
from app.service.event_feed import EventFeed
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.service.registry.index_sets import IndexSet
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import Change, ChangeKind, EntryChanges

# Something that is done step by step, each of about a millisecond.
BackgroundSteps = Callable[[EntryChanges], Iterator[None]]


@dataclass(eq=False, slots=True)
class PreparedChange:
    """A change that nothing is in the way of; `replaced`: the programs that it replaces, kept open, by id."""

    held: HeldMap
    steps: WritePlan
    change: Change
    replaced: dict[int, Program]


class Changes:
    """Whatever changes entries goes through here. Thread rule: one event loop."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        *,
        keep_dir: str | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keep_dir`: the folder in bpffs where programs are pinned that an undo may need after a restart."""
        self.registry = registry
        self.journal = journal
        self.replaced_programs = ReplacedPrograms(registry.kernel, registry.programs)
        self._figures = counters or Counters()
        keep = UndoPins(registry.kernel, keep_dir)
        self.confirmations = Confirmations(registry, journal, self.replaced_programs, keep, self._figures)
        self.feed = EventFeed(journal)
        self._clock = clock
        self._running: set[asyncio.Task[Change]] = set()
        self._stopping = False

    def get(self, id_: int) -> Change:
        """The change with this id. Errors: ChangeUnknown."""
        try:
            change = self.journal.change(id_)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        if change is None:
            raise ChangeUnknown(id_)
        return change

    async def apply(
        self,
        held: HeldMap,
        kind: ChangeKind,
        steps: WritePlan,
        origin: RequestContext,
        *,
        reverts: int | None = None,
        background_steps: BackgroundSteps | None = None,
    ) -> Change:
        """Write the steps and journal them, or leave everything as it was. Call it under the map's lock.

        `meanwhile`: is gone through while the kernel writes many, as far as that lasts. Errors: WriteRefused, or for a
        single step what the kernel refused it for; EntryWaits; NotRestorable; JournalUnavailable.
        """
        if len(steps) == 1 and origin.confirm_within is None:
            return await self._apply(held, kind, steps, origin, reverts, None)
        # A task of its own: a request that is given up (the service ends) must not leave a change half done.
        task = asyncio.create_task(self._apply(held, kind, steps, origin, reverts, background_steps))
        self._running.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait([task])
        return task.result()

    def _ended(self, task: "asyncio.Task[Change]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def finish(self) -> None:
        """Wait for the changes that are under way, which put back what they have written and end."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running)
        await self.confirmations.finish()

    async def _apply(
        self,
        held: HeldMap,
        kind: ChangeKind,
        steps: WritePlan,
        origin: RequestContext,
        reverts: int | None,
        background_steps: BackgroundSteps | None,
    ) -> Change:
        begun = self.begin(held, kind, steps, origin, reverts)
        change, waiting = begun.change, None
        try:
            if origin.confirm_within is not None:
                waiting = await self.confirmations.begin(held, change, begun.replaced, origin.confirm_within)
            ready = _make_ready(steps, change.entries, background_steps)
            await write(held.opened(), steps, begun.replaced, lambda: self._stopping, ready)
            await self.journal_all([begun], token=None if waiting is None else waiting.token)
        except BaseException as error:
            has_begun = waiting is not None or origin.confirm_within is None
            if not (has_begun and isinstance(error, JournalUnavailable)):  # else journal_all has seen to it
                self.failed(begun, error)
            if waiting is not None:
                await self.confirmations.give_up(waiting)
            if isinstance(error, WriteFailed):
                if len(steps) == 1:
                    raise error.cause from error
                raise WriteRefused(error.cause, error.index, not error.left, error.left) from error
            raise
        if reverts is not None:
            self.confirmations.end(reverts)
        if waiting is not None:
            self.confirmations.run(waiting, change)
        return change

    def begin(
        self, held: HeldMap, kind: ChangeKind, steps: WritePlan, origin: RequestContext, reverts: int | None = None
    ) -> PreparedChange:
        """All that comes before the first write. `failed`, or `journal_all`, has to follow. Errors: as `apply`.

        Call it under the map's lock.
        """
        self._check_permitted(held, steps, origin)
        self.confirmations.check_free(held, steps.indexes, reverts)
        entries = entries_of(self.registry, held, steps)
        change = change_of(self.registry, held, kind, entries, origin, self._clock(), reverts)
        replaced = self.replaced_programs.hold(steps.replaced)
        held.writing = {*held.writing, *steps.indexes} if len(steps) == 1 else IndexSet(steps.indexes)
        return PreparedChange(held, steps, change, replaced)

    def failed(self, begun: PreparedChange, error: BaseException) -> None:
        """What was begun came to nothing."""
        self._figures.changes[begun.change.kind, _outcome(error)] += 1
        self.replaced_programs.release(begun.replaced)
        # Others of the same map may still be written: only where there is one entry in each can there be others.
        held, steps = begun.held, begun.steps
        held.writing = {*held.writing} - {*steps.indexes} if len(steps) == 1 else ()

    async def journal_all(self, all_begun: Sequence[PreparedChange], *, token: str | None = None) -> None:
        """Journal what was written, in this order and in one transaction; `token`: of a Waiting for the only one.

        JournalUnavailable: all was put back, or `left` tells the indexes where it could not be.
        """
        try:
            await self.journal.append_all([begun.change for begun in all_begun], token=token)
        except JournalFailed as error:
            left = []
            for begun in reversed(all_begun):
                left += await put_back(begun.held.opened(), begun.steps, begun.replaced)
            failure = JournalUnavailable(str(error), not left, left)
            for begun in all_begun:
                self.failed(begun, failure)
            raise failure from error
        for begun in all_begun:
            held, change = begun.held, begun.change
            held.writing = ()
            if held.expected is not None:
                held.expected.apply(change)
            self._figures.changes[change.kind, "applied"] += 1
            self.replaced_programs.keep(change.id, begun.replaced)

    def _check_permitted(self, held: HeldMap, steps: WritePlan, origin: RequestContext) -> None:
        check_programs(self.registry.programs, held, steps.indexes, steps.after, origin.actor, origin.grant)

    def check(self, held: HeldMap, steps: WritePlan, origin: RequestContext, reverts: int | None = None) -> None:
        """What can be known before the first write: Forbidden, EntryProtected, MapFrozen, EntryWaits, NotRestorable."""
        self._check_permitted(held, steps, origin)
        check_not_frozen(held.opened())
        self.confirmations.check_free(held, steps.indexes, reverts)
        if origin.confirm_within is not None:
            replaced = self.replaced_programs.hold(steps.replaced)
            try:
                entries = entries_of(self.registry, held, steps)
                change = change_of(self.registry, held, "set", entries, origin, self._clock())
                self.confirmations.keep_dir.check(held, change, replaced)
            finally:
                self.replaced_programs.release(replaced)

    async def adopt(self, held: HeldMap, entries: EntryChanges, origin: RequestContext) -> Change:
        """Journal what somebody else has made of these entries; nothing is written to the kernel. JournalUnreadable.

        Call it under the map's lock.
        """
        check_entries(held, entries.indexes, origin.actor, origin.grant)
        try:
            draft = change_of(self.registry, held, "adopt", entries, origin, self._clock())
            change = await self.journal.append(draft)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        if held.expected is not None:
            held.expected.apply(change)
        return change

    def close(self) -> None:
        """Let go of all programs and of the journal."""
        self.replaced_programs.close()
        self.journal.close()


def _outcome(error: BaseException) -> str:
    if isinstance(error, JournalUnavailable):
        return "not journalled"
    return "refused" if isinstance(error, WriteFailed | ServiceError) else "failed"


def _make_ready(steps: WritePlan, entries: EntryChanges, background_steps: BackgroundSteps | None) -> Iterator[None]:
    """What comes after the kernel has written, as far as it can be done before."""
    entries.pack()
    yield
    _ = steps.cleared  # counted once
    yield
    if background_steps is not None:
        yield from background_steps(entries)
