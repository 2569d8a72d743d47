"""Every change of entries goes this way: plan, check, write, journal, publish.

A planner (entries, tables, revert, reconcile) decides under the map's lock what is to be written: a WritePlan. Changes
checks it, writes it, journals it and publishes it, or leaves everything as it was.
"""

import asyncio
import threading
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from app.service.changes.confirmations import Confirmations
from app.service.changes.fit import Fit, check_fit, check_not_frozen
from app.service.changes.group_commit import GroupCommit
from app.service.changes.origin import SERVICE_ACTOR, RequestContext
from app.service.changes.permissions import check_entries, check_plan
from app.service.changes.plan import PreparedChange, WritePlan
from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.changes.undo_pins import UndoPins, programs_before
from app.service.changes.writer import WriteFailed, put_back, write
from app.service.counters import Counters
from app.service.errors import (
    ChangeUnknown,
    JournalUnavailable,
    JournalUnreadable,
    MapFrozen,
    ServiceError,
    WriteRefused,
)
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.registry.held import HeldMap
from app.service.registry.index_sets import IndexSet
from app.service.registry.registry import Registry
from app.store.journal import MAX_ENTRIES_PER_PAGE, Journal, JournalFailed
from app.store.number_arrays import NUMBERS, distinct
from app.store.records import (
    EMPTY,
    Change,
    ChangeFilter,
    ChangeKind,
    EntryChanges,
    EntryWrite,
    PendingConfirmation,
    ProgramRecord,
)

_AUTOMATIC: Final = {"expire", "restore"}  # the kinds of changes that no request makes

T = TypeVar("T")

log = structlog.get_logger()

# Makes an iterator over steps of about a millisecond each, which are done while the kernel writes a large table.
BackgroundSteps = Callable[[EntryChanges], Iterator[None]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a plan.

    Attributes:
        change: The journalled change. None after a dry run.
        fit: How surely a dry run knows that the programs fit.
        entries: What a dry run would change.
    """

    change: Change | None = None
    fit: Fit | None = None
    entries: EntryChanges | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What is written to one of several maps.

    Attributes:
        held: The map.
        kind: What sort of change it is.
        plan: What to write.
    """

    held: HeldMap
    kind: ChangeKind
    plan: WritePlan


class Changes:
    """Whatever changes entries goes through here. Thread rule: one event loop."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        counters: Counters | None = None,
        *,
        keep_dir: str | None = None,
        delivery: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the one object that changes entries of what the registry holds.

        Args:
            registry: The maps and programs.
            journal: Where changes are journalled.
            counters: Count what becomes of changes. None: nobody asks for them.
            keep_dir: The folder in bpffs where programs are pinned that an undo may need after a restart.
            delivery: Surrounds the answers of one group: see GroupCommit.
            clock: Tells the time of a change, in seconds since 1970.
        """
        self.registry = registry
        self.journal = journal
        self.replaced_programs = ReplacedPrograms(registry.programs)
        self.undo_pins = UndoPins(registry.kernel, keep_dir)
        self.confirmations = Confirmations(registry, journal, self.replaced_programs, self.undo_pins, self._undo)
        self.group = GroupCommit(self._commit_sets, delivery)
        self._counters = counters or Counters()
        self._clock = clock
        self._running: set[asyncio.Task[Any]] = set()
        self.on_automatic: Callable[[Change], None] = lambda _: None  # called with what the service undoes or restores
        self.stopping = threading.Event()  # asked by threads that write tables, too

    def get(self, id_: int) -> Change:
        """Return the change with this id.

        Raises:
            ChangeUnknown: There is none, or it was pruned.
            JournalUnreadable: The journal cannot be read.
        """
        try:
            change = self.journal.change(id_)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        if change is None:
            raise ChangeUnknown(id_)
        return change

    async def find(
        self, wanted: ChangeFilter, *, after: int = 0, before: int | None = None, newest_first: bool = False, limit: int
    ) -> tuple[list[Change], int | None]:
        """Return a page of changes, and the id of its last change if there may be more.

        Others have their turn while it searches a long journal.

        Args:
            wanted: Which changes.
            after: Only changes with a higher id.
            before: Only changes with a lower id.
            newest_first: By falling id, and not by rising id.
            limit: The maximum number of changes. There may be fewer if they have many entries.

        Raises:
            JournalUnreadable: The journal cannot be read.
        """
        found: list[Change] = []
        while True:
            try:
                some, last = self.journal.changes(
                    wanted, after=after, before=before, newest_first=newest_first, limit=limit + 1 - len(found)
                )
            except JournalFailed as error:
                raise JournalUnreadable(str(error)) from error
            found += some
            if len(found) > limit:
                return found[:limit], found[limit - 1].id
            if last is None:
                return found, None
            if sum(len(change.entries) for change in found) > MAX_ENTRIES_PER_PAGE:
                return found, found[-1].id
            after, before = (after, last) if newest_first else (last, before)
            await asyncio.sleep(0)

    async def apply(
        self,
        held: HeldMap,
        kind: ChangeKind,
        plan: WritePlan,
        context: RequestContext,
        *,
        reverts: int | None = None,
        dry_run: bool = False,
        try_first: Sequence[Program] | None = None,
        background_steps: BackgroundSteps | None = None,
    ) -> Applied:
        """Check a plan, write it, journal it and publish it, or leave everything as it was.

        Call it under the map's lock.

        Args:
            held: The map.
            kind: What sort of change it is.
            plan: What to write.
            context: Who asks for it.
            reverts: The id of the change that it undoes.
            dry_run: Only check.
            try_first: Programs that are tried on a scratch array before the first write. None: the write itself shows
                whether they fit. A dry run tries all.
            background_steps: What is done while the kernel writes a large table, as far as there is time.

        Raises:
            ServiceError: Whatever forbids the plan; for a plan of one entry, what the kernel refuses it for.
            WriteRefused: The kernel refuses one of several entries.
            NotRestorable: The undo of an unconfirmed change could not be guaranteed.
            JournalUnavailable: It could not be journalled, and was put back.
        """
        check_plan(self.registry.programs, held, plan, context, reverts)
        fit: Fit | None = None
        if dry_run or (try_first is not None and context.confirm_within is not None):
            check_not_frozen(held.opened())
        if dry_run or try_first:
            programs = list(plan.programs.values()) if try_first is None else try_first
            fit = await check_fit(self.registry, held, programs)
        if dry_run and context.confirm_within is None:
            return Applied(fit=fit, entries=self._entries(held, plan))
        prepared = self.prepare(held, kind, plan, context, reverts)
        if context.confirm_within is not None:
            try:
                self.undo_pins.check(held, prepared.change, prepared.replaced)
            except ServiceError as error:
                self.abandon(prepared, error)
                raise
        if dry_run:
            self._release(prepared)
            return Applied(fit=fit, entries=prepared.change.entries)
        if len(plan.indexes) == 1 and context.confirm_within is None:
            return Applied((await self._carry_out([prepared], context, None))[0])
        return Applied((await self._carry_out_in_task([prepared], context, background_steps))[0])

    async def apply_together(
        self, parts: Sequence[Part], context: RequestContext, *, dry_run: bool = False
    ) -> list[Applied]:
        """Apply plans for several maps: all of them, or none. Each becomes a change; they share a transaction.

        Call it under the locks of all of the maps. The programs are tried on scratch arrays before the first write.

        Args:
            parts: A plan for each map, in the order in which they are written.
            context: Who asks for it.
            dry_run: Only check.

        Returns:
            What became of each plan.

        Raises:
            ServiceError: As `apply`.
        """
        fits: list[Fit] = []
        for part in parts:
            check_plan(self.registry.programs, part.held, part.plan, context)
            check_not_frozen(part.held.opened())
            fits.append(await check_fit(self.registry, part.held, list(part.plan.programs.values())))
        prepared = [self.prepare(part.held, part.kind, part.plan, context) for part in parts]
        try:
            for each in prepared if context.confirm_within is not None else ():
                self.undo_pins.check(each.held, each.change, each.replaced)
        except ServiceError as error:
            for each in prepared:
                self.abandon(each, error)
            raise
        if dry_run:
            for each in prepared:
                self._release(each)
            return [Applied(None, fit, each.change.entries) for each, fit in zip(prepared, fits, strict=True)]
        return [Applied(change) for change in await self._carry_out_in_task(prepared, context, None)]

    async def _carry_out_in_task(
        self,
        prepared: Sequence[PreparedChange],
        context: RequestContext,
        background_steps: BackgroundSteps | None,
    ) -> list[Change]:
        """As `_carry_out`, but in a task: a request that is given up must not leave a change half done."""
        if asyncio.current_task() in self._running:
            return await self._carry_out(prepared, context, background_steps)
        task = self.start(self._carry_out(prepared, context, background_steps))
        await asyncio.wait([task])
        return task.result()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run what makes a change in a task that nobody gives up: the end of the service waits for it."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget_task)
        return task

    def prepare(
        self, held: HeldMap, kind: ChangeKind, plan: WritePlan, context: RequestContext, reverts: int | None = None
    ) -> PreparedChange:
        """Make the record of a checked plan, and open the programs that it replaces. Call it under the map's lock.

        `commit` or `abandon` has to follow.
        """
        registry, table = self.registry, held.object
        assert table is not None  # the plan was made for it
        records = self._records(held, plan)
        where = held.name, table.id, registry.kernel.boot_id
        change = plan.to_change(where, kind, records, context, self._clock(), reverts)
        replaced = self.replaced_programs.acquire(plan.replaced)
        held.writing = IndexSet(plan.indexes)
        return PreparedChange(held, plan, change, replaced)

    def _records(self, held: HeldMap, plan: WritePlan) -> dict[int, ProgramRecord]:
        """Return what is known of the programs that a plan replaces and puts in, by id."""
        known = {} if held.expected is None else held.expected.table.programs
        ids = (*plan.replaced, *plan.programs)
        return self.registry.programs.records(ids, plan.pinned, known)

    def _entries(self, held: HeldMap, plan: WritePlan) -> EntryChanges:
        return EntryChanges(plan.indexes, plan.before, plan.after, self._records(held, plan))

    async def commit(self, prepared: Sequence[PreparedChange], tokens: Sequence[str] = ()) -> None:
        """Journal what was written, in this order and in one transaction, and publish it.

        Args:
            prepared: The changes, all written.
            tokens: Names the PendingConfirmation of each. Empty: none waits.

        Raises:
            JournalUnavailable: All was put back; `left` names the indexes where that failed.
        """
        try:
            await self._journal_and_publish(prepared, tokens)
        except JournalFailed as error:
            left = await _put_all_back(prepared)
            failure = JournalUnavailable(str(error), not left, left)
            for each in prepared:
                self.abandon(each, failure)
            raise failure from error

    def set_entry(
        self, held: HeldMap, index: int, before: int, program: Program, context: RequestContext
    ) -> EntryWrite:
        """Point an entry to a program by one overwrite, as a part of a group commit. Call it under the map's lock.

        Args:
            held: The map.
            index: u32, below max_entries.
            before: The id of the program that the entry holds, or EMPTY.
            program: The program.
            context: Who asks.

        Returns:
            What is to be journalled.

        Raises:
            ServiceError: The kernel refuses it. Nothing is written.
        """
        table = held.opened()
        if before != EMPTY:
            self.replaced_programs.acquire_one(before)
        try:
            table.set(index, program)
        except BaseException as error:
            self._counters.changes["set", _outcome(error)] += 1
            if before != EMPTY:
                self.replaced_programs.release_one(before)
            raise
        actor, request_id, note = context.actor, context.request_id, context.note
        return EntryWrite(held.name, table.id, index, before, program.id, actor, request_id, note)

    async def _commit_sets(self, written: Sequence[tuple[HeldMap, Sequence[EntryWrite]]]) -> int:
        """Journal sets that were written, in this order and in one transaction, and publish them.

        Args:
            written: The sets, by map. They come from `set_entry`.

        Returns:
            The id of the first change.

        Raises:
            JournalUnavailable: All was put back; `left` names the indexes where that failed.
        """
        programs: dict[int, ProgramRecord] = {}
        for held, writes in written:
            known = {} if held.expected is None else held.expected.table.programs
            ids = {id_ for write in writes for id_ in (write.before, write.after)} - {EMPTY}
            programs |= self.registry.programs.records(ids, {}, known)
            held.writing = {*held.writing, *[write.entry for write in writes]}
        every = [write for _, writes in written for write in writes]
        replaced = [write.before for write in every if write.before != EMPTY]
        try:
            first_id = await self.journal.append_batch(self._clock(), self.registry.kernel.boot_id, programs, every)
        except JournalFailed as error:
            left = await self._put_back_sets(written)
            self._counters.changes["set", "not journalled"] += len(every)
            self.replaced_programs.release(replaced)
            raise JournalUnavailable(str(error), not left, left) from error
        finally:
            for held, _ in written:
                held.writing = ()
        for held, writes in written:
            if held.expected is not None:
                held.expected.apply_sets(writes, programs)
        self._counters.changes["set", "applied"] += len(every)
        self.replaced_programs.keep(first_id, replaced, len(every))
        return first_id

    async def _put_back_sets(self, written: Sequence[tuple[HeldMap, Sequence[EntryWrite]]]) -> list[int]:
        """Undo sets, the last one first. Returns the indexes that could not be put back."""
        left: list[int] = []
        for held, writes in reversed(written):
            replaced = self.replaced_programs.acquire({each.before for each in writes} - {EMPTY})
            for each in reversed(writes):
                entry, before, after = (array(NUMBERS, (number,)) for number in (each.entry, each.before, each.after))
                left += (await put_back(held.opened(), WritePlan(entry, before, after, {}, {}), replaced)).left
            self.replaced_programs.release(replaced)
        return left

    def abandon(self, prepared: PreparedChange, error: BaseException) -> None:
        """Count a prepared change that came to nothing, and let go of what it kept."""
        self._counters.changes[prepared.change.kind, _outcome(error)] += 1
        self._release(prepared)

    def _release(self, prepared: PreparedChange) -> None:
        self.replaced_programs.release(prepared.replaced)
        prepared.held.writing = ()

    async def _journal_and_publish(self, prepared: Sequence[PreparedChange], tokens: Sequence[str] = ()) -> None:
        """Journal the changes, and tell the rest of the service. The event feed hears of them from the journal."""
        if len(prepared) == 1:
            await self.journal.append(prepared[0].change, token=tokens[0] if tokens else None)
        else:
            await self.journal.append_all([each.change for each in prepared], tokens)
        for each in prepared:
            held, change = each.held, each.change
            held.writing = ()
            if held.expected is not None:
                held.expected.apply(each.expects or change.entries)
            self._counters.changes[change.kind, "applied"] += 1
            if change.kind in _AUTOMATIC:
                self.on_automatic(change)
            self.replaced_programs.keep(change.id, [*each.replaced])

    async def _carry_out(
        self,
        prepared: Sequence[PreparedChange],
        context: RequestContext,
        background_steps: BackgroundSteps | None,
    ) -> list[Change]:
        """Write, journal and publish. Whatever fails is put back, all of it."""
        pending = await self._add_pending(prepared, context)
        try:
            await self._write_all(prepared, background_steps)
            await self.commit(prepared, [waits.token for waits in pending])
        except BaseException:
            for waits in pending:
                await self.confirmations.drop(waits)
            raise
        for each in prepared:
            if each.change.reverts is not None:
                self.confirmations.end(each.change.reverts)
        for each, waits in zip(prepared, pending, strict=bool(pending)):
            self.confirmations.start(waits, each.change, each.held)
        return [each.change for each in prepared]

    async def _add_pending(
        self, prepared: Sequence[PreparedChange], context: RequestContext
    ) -> list[PendingConfirmation]:
        """Journal that these changes are to be undone, if they are to be confirmed. All of them, or none."""
        pending: list[PendingConfirmation] = []
        if context.confirm_within is None:
            return pending
        try:
            for each in prepared:
                waits = await self.confirmations.add(each.held, each.change, each.replaced, context.confirm_within)
                pending += (waits,)
        except BaseException as error:
            for each in prepared:
                self.abandon(each, error)
            for waits in pending:
                await self.confirmations.drop(waits)
            raise
        return pending

    async def _write_all(self, prepared: Sequence[PreparedChange], background_steps: BackgroundSteps | None) -> None:
        """Write these changes in order. Where one fails, what was written is put back, and all are abandoned."""
        written: list[PreparedChange] = []
        try:
            for each in prepared:
                steps = _background(each.plan, each.change.entries, background_steps)
                await write(each.held.opened(), each.plan, each.replaced, self.stopping.is_set, steps)
                written += (each,)
        except BaseException as error:
            left = await _put_all_back(written)
            for each in prepared:
                self.abandon(each, error)
            if not isinstance(error, WriteFailed):
                raise
            # A frozen array refuses the first entry. To ask before would read a file in /proc for each change.
            indexes = prepared[0].plan.indexes
            is_frozen = isinstance(error.cause, MapFrozen) and error.index == indexes[0]
            if len(prepared) == 1 and (len(indexes) == 1 or is_frozen):
                raise error.cause from error
            left = error.left + left
            refused = WriteRefused(error.cause, error.index, not left, left)
            if len(prepared) > 1:
                refused.entry = {"map": prepared[len(written)].held.name}
            raise refused from error

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also where nobody waits for it any more

    async def adopt(self, held: HeldMap, entries: EntryChanges, context: RequestContext) -> Change:
        """Journal what somebody else has made of these entries. Nothing is written to the kernel.

        Call it under the map's lock.

        Raises:
            Forbidden: An entry is beyond the bounds of the caller.
            JournalUnreadable: It cannot be journalled.
        """
        check_entries(held, entries.indexes, context)
        plan = WritePlan(entries.indexes, entries.before, entries.after, {}, {})
        where = held.name, held.opened().id, self.registry.kernel.boot_id
        draft = plan.to_change(where, "adopt", entries.programs, context, self._clock(), None)
        try:
            change = await self.journal.append(draft)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        if held.expected is not None:
            held.expected.apply(change.entries)
        return change

    async def _undo(self, held: HeldMap, pending: PendingConfirmation) -> None:
        """Undo a change that nobody has confirmed: plan, write back, journal, publish. Call it again where it fails.

        Call it under the map's lock. What is written once is not written again.

        Raises:
            MapUnavailable: The map cannot be written now.
            KernelError: A program cannot be opened now.
            JournalFailed: It cannot be journalled now.
        """
        written = self.confirmations.written
        if pending.token not in written:
            written[pending.token] = await self._write_undo(held, pending)
        undone = written[pending.token]
        if pending.change.id:
            await self._journal_and_publish([undone])
        else:
            await self.journal.remove_pending(pending.token)
            self.replaced_programs.release(undone.replaced)
            self.on_automatic(undone.change)
        held.undone.pop(pending.token, None)

    async def _write_undo(self, held: HeldMap, pending: PendingConfirmation) -> PreparedChange:
        """Write back what a change has replaced, where the entries still hold what it put there.

        The record lists what is back as it was. All entries of the change are expected to be.
        """
        change, undone = pending.change, pending.change.entries.undone()
        left, replaced = set(undone.indexes), dict[int, Program]()
        if change.boot_id != self.registry.kernel.boot_id:
            held.expected = None  # the array is gone, and so is what the ids mean
        else:
            table = held.opened()
            held.writing = writing = IndexSet(undone.indexes)
            replaced = self.replaced_programs.acquire(distinct(undone.before) - {EMPTY})
            try:
                if table.id == change.map_id:
                    left = set(await self._write_back(table, pending))
            except BaseException:
                self.replaced_programs.release(replaced)
                raise
            finally:
                held.writing = ()
            held.undone[pending.token] = writing
            log.info("undone, as nobody confirmed it", change=change.id, map=change.map, left=sorted(left))
        plan = WritePlan(undone.indexes, undone.before, undone.after, {}, {})
        if left:
            plan = plan.chosen(bytes(index not in left for index in plan.indexes))
        where, context = (change.map, change.map_id, change.boot_id), RequestContext(SERVICE_ACTOR, change.request_id)
        record = plan.to_change(where, "expire", undone.programs, context, self._clock(), change.id)
        return PreparedChange(held, plan, record, replaced, undone)

    async def _write_back(self, table: ProgramArray, pending: PendingConfirmation) -> list[int]:
        """Return the indexes that are not put back: they cannot be, or another tool has written there."""
        entries = pending.change.entries
        written = WritePlan(entries.indexes, entries.before, entries.after, {}, {})
        if not pending.change.id:
            # It was cut off before it was journalled: others may have changed the entries since.
            since = self.journal.changed_since(pending)
            written = written.chosen(bytes(index not in since for index in entries.indexes))
        with ExitStack() as stack:
            programs = dict[int, Program]()
            for id_, record in programs_before(pending.change).items():
                program = self._program_before(pending, record)
                if program is not None:
                    programs[id_] = stack.enter_context(program)
            left, foreign = await put_back(table, written, programs)
        return left + foreign

    def _program_before(self, pending: PendingConfirmation, record: ProgramRecord) -> Program | None:
        """Open a program that an undo puts back. What this process keeps open comes first: it needs no keeper.

        Returns:
            The program, which the caller closes. None: it is gone.

        Raises:
            ServiceError: One place cannot be asked now, and no other has it.
        """
        failure: ServiceError | None = None
        places: Sequence[Callable[[], Program | None]] = (
            lambda: self.replaced_programs.find(record),
            lambda: self.undo_pins.open(pending, record.id),
        )
        for place in places:
            try:
                program = place()
            except ServiceError as error:
                failure = failure or error
            else:
                if program is not None:
                    return program
        if failure is not None:
            raise failure
        return None

    async def finish(self) -> None:
        """Wait for the changes that are under way. Tables put back what they have written, and end."""
        self.stopping.set()
        await self.group.finish()
        if self._running:
            await asyncio.wait(self._running)
        await self.confirmations.finish()

    def close(self) -> None:
        """Close all programs that are kept, and the journal."""
        self.replaced_programs.close()
        self.journal.close()


async def _put_all_back(written: Sequence[PreparedChange]) -> list[int]:
    """Undo what was written, in reverse order, and return the indexes where that failed."""
    left = []
    for each in reversed(written):
        left += (await put_back(each.held.opened(), each.plan, each.replaced)).left
    return left


def _outcome(error: BaseException) -> str:
    if isinstance(error, JournalUnavailable):
        return "not journalled"
    return "refused" if isinstance(error, WriteFailed | ServiceError) else "failed"


def _background(plan: WritePlan, entries: EntryChanges, more: BackgroundSteps | None) -> Iterator[None]:
    """Do while the kernel writes what comes after it, as far as that is known before."""
    entries.pack()
    yield
    _ = plan.cleared  # counted once, and kept
    yield
    if more is not None:
        yield from more(entries)
