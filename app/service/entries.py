"""Changing entries, one or a whole table: checked first, then written, or only checked."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from app.bpf.uapi import BPF_ANY
from app.service.changes import Begun, Changes
from app.service.errors import (
    BodyIndexOutOfRange,
    DuplicateIndex,
    EntryEmpty,
    UnsupportedFlags,
)
from app.service.fit import Fit, fit_of
from app.service.held import ById, HeldMap, Pinned
from app.service.origin import Origin
from app.service.permits import check_entries, check_reference
from app.service.program import ProgramSummary
from app.service.program_array import ProgramArray
from app.service.programs import ByName, ProgramRef
from app.service.writing import Step
from app.store.records import Change

# Called with the id of the entry's program (None: empty), under the map's lock, and raises what forbids the change.
Precondition = Callable[[int | None], None]
# The same with the whole table: (map id, (index, program id) of every populated entry).
TablePrecondition = Callable[[int, list[tuple[int, int]]], None]


@dataclass(slots=True)
class SetResult:
    """`map_id`: of the array; `before`: the id of the program that was there; `fit`: how surely a dry run knows it."""

    map_id: int
    before: int | None
    after: ProgramSummary
    fit: Fit | None = None
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class TableResult:
    """How many entries were set, cleared and left as they were; `change`: None where none was, and after a dry run."""

    change: Change | None
    set: int
    cleared: int
    unchanged: int
    fit: Fit | None = None

    @classmethod
    def of(
        cls, change: Change | None, steps: Sequence[Step], *, unchanged: int = 0, fit: Fit | None = None
    ) -> "TableResult":
        """That of these steps."""
        cleared = sum(step.program is None for step in steps)
        return cls(change, len(steps) - cleared, cleared, unchanged, fit)


async def set_entry(
    changes: Changes,
    held: HeldMap,
    index: int,
    ref: ProgramRef,
    origin: Origin,
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
        there = set() if needs_none else {program_id for _, program_id in await held.read()}
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
            steps = [Step(index, before, program, ref.path if isinstance(ref, Pinned) else None)]
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
    origin: Origin,
    precondition: Precondition | None = None,
) -> tuple[SetResult, Begun | None]:
    """Point an entry to a held program, with nothing awaited, under the map's lock; `Begun` is to be journalled.

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
    begun = changes.begin(held, "set", [Step(index, before, program)], origin)
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
    origin: Origin,
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
        steps = [Step(index, before, None)]
        if dry_run:
            changes.check(held, steps, origin)
            return None
        return await changes.apply(held, "clear", steps, origin)


async def change_table(
    changes: Changes,
    held: HeldMap,
    wanted: Sequence[tuple[int, ProgramRef | None]],
    origin: Origin,
    *,
    replace: bool,
    precondition: TablePrecondition,
    dry_run: bool = False,
) -> TableResult:
    """Change the entries listed, in that order; `replace`: then clear all others, by falling index.

    Everything that can be known is checked first: bounds, programs, fit, preconditions. Each entry changes at once,
    the table does not. Errors: BodyIndexOutOfRange, DuplicateIndex; those of Changes.apply, Programs.resolve and
    `precondition`; ProgramIncompatible, ProgramBusy, MapFrozen, MapUnavailable.
    """
    registry = changes.registry
    async with held.lock:
        array = held.opened()
        _check_indexes(array, [index for index, _ in wanted])
        found = await held.read()
        seeds = await registry.seeds_for(held)
        current = dict(found)
        listed = {index for index, _ in wanted}
        # What is there by its id already needs not be opened: that would take a right.
        there = {index for index, ref in wanted if isinstance(ref, ById) and ref.id == current.get(index)}
        wanted = [(index, ref) for index, ref in wanted if index not in there]
        references, known = [(index, ref) for index, ref in wanted if ref is not None], set(current.values())
        for index, ref in references:
            check_reference(registry.programs, index, ref, None, known, origin)
        with ExitStack() as stack:
            programs = {
                ref: stack.enter_context(registry.programs.opened_copy(ref))
                for ref in dict.fromkeys(ref for _, ref in wanted if ref is not None)
            }
            for index, ref in references:
                check_reference(registry.programs, index, ref, programs[ref].id, known, origin)
            steps = [
                Step(
                    index,
                    current.get(index),
                    None if ref is None else programs[ref],
                    ref.path if isinstance(ref, Pinned) else None,
                )
                for index, ref in wanted
            ]
            if replace:
                steps += [Step(index, current[index], None) for index in sorted(current.keys() - listed, reverse=True)]
            precondition(array.id, found)
            unchanged = len(there) + sum(step.before == step.after for step in steps)
            steps = [step for step in steps if step.before != step.after]
            fit: Fit | None = "tried"
            if steps:
                changes.check(held, steps, origin)
                new = [program for program in programs.values() if program.id not in known]
                fit = fit_of(registry, array, new, seeds)
            change = None
            if steps and not dry_run:
                change = await changes.apply(held, "replace" if replace else "update", steps, origin)
    return TableResult.of(change, steps, unchanged=unchanged, fit=fit if dry_run else None)


def _check_indexes(array: ProgramArray, indexes: Iterable[int]) -> None:
    seen: set[int] = set()
    for index in indexes:
        if index >= array.max_entries:
            raise BodyIndexOutOfRange(index, array.max_entries)
        if index in seen:
            raise DuplicateIndex(index)
        seen.add(index)
