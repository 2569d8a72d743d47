"""Changing several entries of a map, or all: checked first, then written, or only checked."""

import asyncio
from array import array
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from typing import Final, TypeVar

from app.service.changes.changes import BackgroundSteps, Changes
from app.service.changes.fit import Fit, fit_of
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_reference
from app.service.changes.plan import WritePlan
from app.service.errors import BodyIndexOutOfRange, DuplicateIndex
from app.service.objects.program import Program
from app.service.objects.source import ById, Pinned
from app.service.registry.held import HeldMap
from app.service.registry.programs import ProgramRef
from app.store.records import EMPTY, NUMBERS, Change, ChangeKind, Indexes

_NO_ID: Final = -1
_FEW: Final = 8  # references

N = TypeVar("N", bound=Hashable)

# Called with the map's id and what each entry holds (0: nothing), under the map's lock; raises what forbids the change.
TablePrecondition = Callable[[int, "array[int]"], None]


@dataclass(frozen=True, slots=True)
class RequestedEntries:
    """What entries are to hold: for each of `indexes` the place of its reference in `refs`. None: nothing.

    `indexes`: u32; a range from 0 on is the fastest.
    """

    indexes: Indexes
    places: "array[int]"
    refs: Sequence[ProgramRef | None]

    @classmethod
    def of(
        cls, indexes: Sequence[int], names: Sequence[N], ref_of: Callable[[N], ProgramRef | None]
    ) -> "RequestedEntries":
        """From a name for each, of which each is looked up once."""
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        refs = [ref_of(name) for name in places]
        indexes = indexes if isinstance(indexes, range) else array(NUMBERS, indexes)
        return cls(indexes, array(NUMBERS, map(places.__getitem__, names)), refs)


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
        cls, change: Change | None, steps: WritePlan, *, unchanged: int = 0, fit: Fit | None = None
    ) -> "TableResult":
        """That of these steps."""
        return cls(change, len(steps) - steps.cleared, steps.cleared, unchanged, fit)


async def change_table(
    changes: Changes,
    held: HeldMap,
    wanted: RequestedEntries,
    origin: RequestContext,
    *,
    replace: bool,
    precondition: TablePrecondition,
    dry_run: bool = False,
    background_steps: BackgroundSteps | None = None,
) -> TableResult:
    """Change the entries listed, in that order; `replace`: then clear all others, by falling index.

    Everything that can be known is checked first: bounds, programs, fit, preconditions. Each entry changes at once,
    the table does not. `meanwhile`: as of Changes.apply. Errors: BodyIndexOutOfRange, DuplicateIndex; those of
    Changes.apply, Programs.resolve and `precondition`; ProgramIncompatible, ProgramBusy, MapFrozen, MapUnavailable.
    """
    registry = changes.registry
    async with held.lock:
        table = held.opened()
        _check_indexes(wanted.indexes, table.max_entries)
        found = await held.read()
        # A look into an array is short for what is in it: only where many are looked for a set is worth its making.
        known = found if len(wanted.refs) <= _FEW else set(found)
        with ExitStack() as stack:
            programs = _opened(changes, wanted, found, known, origin, stack)
            await asyncio.sleep(0)
            listed = _listed(wanted, programs, found)
            steps = listed.changing()
            unchanged = len(listed) - len(steps)
            await asyncio.sleep(0)
            if replace:
                steps = steps.then_clear(_others(wanted.indexes, found), found)
            precondition(table.id, found)
            fit: Fit | None = "tried"
            if steps:
                changes.check(held, steps, origin)
                new = [program for program in steps.programs.values() if program.id not in known]
                if new or dry_run:  # what is in the table already fits
                    fit = fit_of(registry, table, new, await registry.seeds_for(held))
            change = None
            if steps and not dry_run:
                kind: ChangeKind = "replace" if replace else "update"
                change = await changes.apply(held, kind, steps, origin, background_steps=background_steps)
    return TableResult.of(change, steps, unchanged=unchanged, fit=fit if dry_run else None)


def _check_indexes(indexes: Indexes, max_entries: int) -> None:
    is_range = isinstance(indexes, range)
    if (len(indexes) if is_range else max(indexes, default=-1) + 1) <= max_entries and (
        is_range or len(set(indexes)) == len(indexes)
    ):
        return
    seen: set[int] = set()
    for index in indexes:
        if index >= max_entries:
            raise BodyIndexOutOfRange(index, max_entries)
        if index in seen:
            raise DuplicateIndex(index)
        seen.add(index)


def _opened(
    changes: Changes,
    wanted: RequestedEntries,
    found: "array[int]",
    known: Collection[int],
    origin: RequestContext,
    stack: ExitStack,
) -> Mapping[int, Program]:
    """The programs that are referred to, by the place of the reference, open for as long as the stack."""
    programs = changes.registry.programs
    needed = [(index, place, ref) for index, place, ref in _needed(wanted, found) if ref is not None]
    for index, _, ref in needed:
        check_reference(programs, index, ref, None, known, origin)
    opened = {place: stack.enter_context(programs.opened_copy(ref)) for _, place, ref in needed}
    for index, place, ref in needed:
        check_reference(programs, index, ref, opened[place].id, known, origin)
    return opened


def _needed(wanted: RequestedEntries, found: "array[int]") -> list[tuple[int, int, ProgramRef | None]]:
    """Of each reference the first index, its place, and itself; but for programs that are all there by their id.

    To open one that nobody here holds takes a right, and an entry that is left as it is needs none.
    """
    there = [(isinstance(ref, ById) and ref.id) or _NO_ID for ref in wanted.refs]
    first: dict[int, int] = {}
    for index, place in zip(wanted.indexes, wanted.places, strict=True):
        if place not in first and there[place] != found[index]:
            first[place] = index
            if len(first) == len(there):
                break
    return [(index, place, wanted.refs[place]) for place, index in first.items()]


def _listed(wanted: RequestedEntries, opened: Mapping[int, Program], found: "array[int]") -> WritePlan:
    """A step for each entry that is listed, also where it is as it is to be."""
    ids = [ref.id if isinstance(ref, ById) else EMPTY for ref in wanted.refs]
    for place, program in opened.items():
        ids[place] = program.id
    return WritePlan(
        wanted.indexes,
        _at(wanted.indexes, found),
        array(NUMBERS, map(ids.__getitem__, wanted.places)),
        {program.id: program for program in opened.values()},
        {ids[place]: ref.path for place, ref in enumerate(wanted.refs) if isinstance(ref, Pinned)},
    )


def _at(indexes: Indexes, found: "array[int]") -> "array[int]":
    """What these entries hold."""
    if isinstance(indexes, range):
        return found[indexes.start : indexes.stop]
    return array(NUMBERS, map(found.__getitem__, indexes))


def _others(listed: Indexes, found: "array[int]") -> "array[int]":
    """The entries that hold a program and are not listed, by falling index."""
    if isinstance(listed, range):
        return array(NUMBERS, compress(range(len(listed), len(found)), found[len(listed) :]))[::-1]
    left = found[:]
    for index in listed:
        left[index] = EMPTY
    return array(NUMBERS, compress(range(len(left)), left))[::-1]
