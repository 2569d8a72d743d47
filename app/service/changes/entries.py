"""Changing one entry: set it, or clear it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app.bpf.uapi import BPF_ANY
from app.service.changes.changes import Changes
from app.service.changes.fit import Fit
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import (
    check_confirmed,
    check_entries,
    check_names_not_moved,
    check_not_moved,
    check_program,
    check_reference,
    check_writes,
)
from app.service.changes.plan import WritePlan
from app.service.errors import EntryEmpty, UnsupportedFlags
from app.service.objects.program import ProgramSummary
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName, ProgramRef
from app.store.records import EMPTY, Change, ChangeKind, EntryChanges, EntryWrite

# Is called under the map's lock with the id of the entry's program (None: empty), and raises what forbids the change.
Precondition = Callable[[int | None], None]


@dataclass(slots=True)
class SetResult:
    """What became of setting an entry.

    Attributes:
        map_id: The id of the array.
        before: The id of the program that was there. None: it was empty.
        after: The program that is there.
        fit: How surely a dry run knows that the program fits.
        change_id: The id of the journalled change; where the request repeats one that waits for its confirmation, of
            that one. None: the program was there already, or it was a dry run.
        entries: What a dry run would change. None: nothing.
    """

    map_id: int
    before: int | None
    after: ProgramSummary
    fit: Fit | None = None
    change_id: int | None = None
    entries: EntryChanges | None = None


async def set_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    ref: ProgramRef,
    context: RequestContext,
    *,
    flags: int = 0,
    precondition: Precondition | None = None,
    dry_run: bool = False,
) -> SetResult:
    """Point an entry to a program, by one overwrite. What is there already is not written again.

    Args:
        changes: What applies the change.
        held: The map.
        index: u32, below max_entries.
        ref: The program.
        context: Who asks.
        flags: BPF_ANY (0): the kernel takes no other here.
        precondition: Forbids the change by what the entry holds.
        dry_run: Only check.

    Raises:
        ServiceError: Whatever forbids it: see Changes.apply, Programs.resolve and `precondition`.
    """
    if not dry_run and context.confirm_within is None and flags == BPF_ANY and isinstance(ref, ByName):
        write = partial(write_entry, changes, held, index, ref.name, context, precondition)
        result, change_id = await changes.group.run(held, write)
        result.change_id = change_id
        return result
    programs = changes.registry.programs
    async with held.lock:
        array = held.opened()
        check_entries(held, [index], context)
        array.check_index(index)
        if context.grant.programs is not None:
            check_program(programs, index, ref, array.get(index), context)
        is_free = context.grant.role == "admin" or isinstance(ref, ByName)
        in_table = set() if is_free else set(await held.read()) - {EMPTY}
        if not is_free:
            check_reference(programs, index, ref, None, in_table, context)
        if flags != BPF_ANY:
            raise UnsupportedFlags(flags)
        # A copy, as the program may be released while this waits for something.
        with programs.opened_copy(ref) as program:
            if not is_free:
                check_reference(programs, index, ref, program.id, in_table, context)
            check_not_moved(held, context)
            check_names_not_moved(programs, (ref,), context)
            before = array.get(index)
            result = SetResult(array.id, before, programs.describe(program.id, program))
            if before == program.id:
                result.fit = "tried" if dry_run else None
                repeated = _repeated(changes, held, "set", index, program.id, context)
                if repeated is not None:
                    result.before = repeated.entries.before[0] or None
                    result.change_id = None if dry_run else repeated.id
                    return result
            if precondition is not None:
                precondition(before)
            if before == program.id:
                check_confirmed(held, (index,))
                return result
            plan = WritePlan.one(index, before, program, ref.path if isinstance(ref, Pinned) else None)
            applied = await changes.apply(held, "set", plan, context, dry_run=dry_run)
    result.fit, result.entries = applied.fit, applied.entries
    result.change_id = None if applied.change is None else applied.change.id
    return result


def write_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    name: str,
    context: RequestContext,
    precondition: Precondition | None = None,
) -> tuple[SetResult, EntryWrite | None]:
    """Point an entry to a held program, as a part of a group commit: nothing is awaited.

    Call it under the map's lock.

    Args:
        changes: What applies the change.
        held: The map.
        index: u32, below max_entries.
        name: The name under which the program is held.
        context: Who asks.
        precondition: Forbids the change by what the entry holds.

    Returns:
        The result, and what is to be journalled. None: the program is there already.

    Raises:
        ServiceError: Whatever forbids it. Nothing is written.
    """
    array, programs = held.opened(), changes.registry.programs
    if not context.grant.is_unbounded:
        check_entries(held, (index,), context)
    before = array.get(index)
    if context.grant.programs is not None:
        check_program(programs, index, ByName(name), before, context)
    program, summary = programs.named(name)
    if held.moved is not None:
        check_not_moved(held, context)
    check_not_moved(programs.get(name), context)
    if precondition is not None:
        precondition(before)
    result = SetResult(array.id, before, summary)
    if before == program.id:
        check_confirmed(held, (index,))
        return result, None
    check_writes(programs, held, (index,), (program.id,), context)
    return result, changes.set_entry(held, index, before or EMPTY, program, context)


async def clear_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    context: RequestContext,
    *,
    precondition: Precondition | None = None,
    allow_missing: bool = False,
    dry_run: bool = False,
) -> Change | None:
    """Empty an entry.

    Args:
        changes: What applies the change.
        held: The map.
        index: u32, below max_entries.
        context: Who asks.
        precondition: Forbids the change by what the entry holds.
        allow_missing: An entry that is empty already is no error.
        dry_run: Only check.

    Returns:
        The change; where the request repeats one that waits for its confirmation, that one. None: the entry was empty,
        or it was a dry run.

    Raises:
        EntryEmpty: It is empty already.
        ServiceError: Whatever else forbids it: see Changes.apply and `precondition`.
    """
    async with held.lock:
        check_entries(held, [index], context)
        before = held.opened().get(index)
        check_not_moved(held, context)
        if before is None:
            repeated = _repeated(changes, held, "clear", index, EMPTY, context)
            if repeated is not None:
                return None if dry_run else repeated
            check_confirmed(held, (index,))
        if before is None and not allow_missing:
            raise EntryEmpty(index)
        if precondition is not None:
            precondition(before)
        if before is None:
            return None
        applied = await changes.apply(held, "clear", WritePlan.one(index, before, None), context, dry_run=dry_run)
    return applied.change


def _repeated(
    changes: Changes, held: HeldMap, kind: ChangeKind, index: int, after: int, context: RequestContext
) -> Change | None:
    """Return the change that waits for its confirmation, where the request is the one that made it, sent again."""
    for change in changes.confirmations.repeatable(held, kind, context):
        if (change.entries.indexes[0], change.entries.after[0]) == (index, after):
            return change
    return None
