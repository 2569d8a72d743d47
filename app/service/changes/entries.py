"""Changing one entry: checked first, then written, or only checked."""

from collections.abc import Callable
from dataclasses import dataclass

from app.bpf.uapi import BPF_ANY
from app.service.changes.changes import Changes, PreparedChange
from app.service.changes.fit import Fit, fit_of
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_entries, check_reference
from app.service.changes.plan import WritePlan
from app.service.errors import (
    EntryEmpty,
    UnsupportedFlags,
)
from app.service.objects.program import ProgramSummary
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName, ProgramRef
from app.store.records import EMPTY, Change

# Called with the id of the entry's program (None: empty), under the map's lock, and raises what forbids the change.
Precondition = Callable[[int | None], None]


@dataclass(slots=True)
class SetResult:
    """`map_id`: of the array; `before`: the id of the program that was there; `fit`: how surely a dry run knows it."""

    map_id: int
    before: int | None
    after: ProgramSummary
    fit: Fit | None = None
    change: Change | None = None


async def set_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    ref: ProgramRef,
    origin: RequestContext,
    *,
    flags: int = 0,
    precondition: Precondition,
    dry_run: bool = False,
) -> SetResult:
    """Point an entry to a program, by one overwrite. What is there already is not written again.

    Errors: those of Changes.apply, Programs.resolve and `precondition`; IndexOutOfRange, MapUnavailable.
    """
    registry = changes.registry
    async with held.lock:
        if not dry_run and origin.confirm_within is None and flags == BPF_ANY and isinstance(ref, ByName):
            result, begun = set_at_once(changes, held, index, ref, origin, precondition)
            if begun is not None:
                await changes.journal_all([begun])
            return result
        array = held.opened()
        check_entries(held, [index], origin.actor, origin.grant)
        array.check_index(index)
        needs_none = origin.grant.role == "admin" or isinstance(ref, ByName)
        there = set() if needs_none else set(await held.read()) - {EMPTY}
        check_reference(registry.programs, index, ref, None, there, origin)
        if flags != BPF_ANY:
            raise UnsupportedFlags(flags)
        seeds = await registry.seeds_for(held) if dry_run else []
        # A copy of its own only where something is awaited before its fd is used: else nobody can release it meanwhile.
        waits = origin.confirm_within is not None
        with registry.programs.opened_copy(ref) if waits else registry.programs.resolve(ref) as program:
            check_reference(registry.programs, index, ref, program.id, there, origin)
            before = array.get(index)
            precondition(before)
            after = registry.programs.describe(program.id, program)
            if before == program.id:
                return SetResult(array.id, before, after, "tried" if dry_run else None)
            steps = WritePlan.one(index, before, program, ref.path if isinstance(ref, Pinned) else None)
            if dry_run:
                changes.check(held, steps, origin)
                return SetResult(array.id, before, after, fit_of(registry, array, [program], seeds))
            change = await changes.apply(held, "set", steps, origin)
    return SetResult(array.id, before, after, change=change)


def set_at_once(
    changes: Changes,
    held: HeldMap,
    index: int,
    ref: ByName,
    origin: RequestContext,
    precondition: Precondition | None = None,
) -> tuple[SetResult, PreparedChange | None]:
    """Point an entry to a held program, with nothing awaited, under the map's lock; the caller journals it.

    None: it was there already. Errors: as `set_entry`, and nothing was written.
    """
    array, programs = held.opened(), changes.registry.programs
    check_entries(held, (index,), origin.actor, origin.grant)
    array.check_index(index)
    program = programs.named(ref.name).opened()
    before = array.get(index)
    if precondition is not None:
        precondition(before)
    result = SetResult(array.id, before, programs.describe(program.id))
    if before == program.id:
        return result, None
    begun = changes.begin(held, "set", WritePlan.one(index, before, program), origin)
    try:
        array.set(index, program)
    except BaseException as error:
        changes.failed(begun, error)
        raise
    result.change = begun.change
    return result, begun


async def clear_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    origin: RequestContext,
    *,
    precondition: Precondition,
    allow_missing: bool = False,
    dry_run: bool = False,
) -> Change | None:
    """Empty an entry; None where it was empty (`allow_missing`), and after a dry run.

    Errors: EntryEmpty unless `allow_missing`; those of Changes.apply and `precondition`; MapUnavailable.
    """
    async with held.lock:
        array = held.opened()
        check_entries(held, [index], origin.actor, origin.grant)
        before = array.get(index)
        if before is None and not allow_missing:
            raise EntryEmpty(index)
        precondition(before)
        if before is None:
            return None
        steps = WritePlan.one(index, before, None)
        if dry_run:
            changes.check(held, steps, origin)
            return None
        return await changes.apply(held, "clear", steps, origin)
