"""Changing several entries of a map, or all of them."""

import asyncio
from array import array
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final, TypeVar

from app.access.rights import Grant
from app.service.changes.changes import Applied, BackgroundSteps, Changes
from app.service.changes.fit import Fit
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import (
    check_confirmed,
    check_entries,
    check_names_not_moved,
    check_not_moved,
    check_program,
    check_reference,
)
from app.service.changes.plan import WritePlan
from app.service.errors import BodyIndexOutOfRange, DuplicateIndex, ProgramBusy, ProgramIncompatible, ServiceError
from app.service.objects.program import Program
from app.service.objects.source import ById, Pinned
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName, ProgramRef, Programs
from app.store.number_arrays import NUMBERS, distinct, mapped
from app.store.records import EMPTY, Change, ChangeKind, EntryChanges, Indexes

_NO_ID: Final = -1
_SMALL: Final = 8  # references: for so few, a search through the table is faster than making a set of it

_QUICK: Final = 1024  # entries: for so few, each step takes some 10 µs

N = TypeVar("N", bound=Hashable)

# Is called under the map's lock with the array's id and what each entry holds (0: nothing), by index. It raises what
# forbids the change.
TablePrecondition = Callable[[int, "array[int]"], None]


@dataclass(frozen=True, slots=True)
class RequestedEntries:
    """What a request wants entries to hold, as parallel arrays.

    Attributes:
        indexes: The entries, u32. A range that starts at 0 is the fastest.
        places: For each, the place of its reference in `refs`.
        refs: The references to programs, each once. None: the entry is to be empty.
    """

    indexes: Indexes
    places: "array[int]"
    refs: Sequence[ProgramRef | None]

    @classmethod
    def of(
        cls, indexes: Sequence[int], names: Sequence[N], ref_of: Callable[[N], ProgramRef | None]
    ) -> "RequestedEntries":
        """Make it from one name for each entry; `ref_of` is asked once for each different name."""
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        refs = [ref_of(name) for name in places]
        indexes = indexes if isinstance(indexes, range) else array(NUMBERS, indexes)
        return cls(indexes, array(NUMBERS, map(places.__getitem__, names)), refs)


@dataclass(frozen=True, slots=True)
class TableResult:
    """What became of a change of several entries.

    Attributes:
        change: The journalled change; where the request repeats one that waits for its confirmation, that one. None:
            nothing had to be written, or it was a dry run.
        set: How many entries were pointed to another program.
        cleared: How many were emptied.
        unchanged: How many are listed, and were so already.
        fit: How surely a dry run knows that the programs fit.
        entries: What a dry run would change. None: nothing.
    """

    change: Change | None
    set: int
    cleared: int
    unchanged: int
    fit: Fit | None = None
    entries: EntryChanges | None = None

    @classmethod
    def of(cls, applied: Applied, plan: WritePlan, *, unchanged: int = 0, fit: Fit | None = None) -> "TableResult":
        """Make it from the plan that was written, or would be, and what became of it."""
        return cls(applied.change, len(plan) - plan.cleared, plan.cleared, unchanged, fit, applied.entries)

    @classmethod
    def of_repeated(cls, change: Change, *, unchanged: int = 0) -> "TableResult":
        """Make it from a change that waits for its confirmation, for the same request sent again."""
        cleared = change.entries.after.count(EMPTY)
        return cls(change, len(change.entries) - cleared, cleared, unchanged)


async def change_table(
    changes: Changes,
    held: HeldMap,
    requested: RequestedEntries,
    context: RequestContext,
    *,
    replace: bool,
    precondition: TablePrecondition | None = None,
    dry_run: bool = False,
    background_steps: BackgroundSteps | None = None,
) -> TableResult:
    """Change the entries listed, in that order. Each entry changes at once, the table does not.

    Everything that can be known is checked before the first write: bounds, programs, fit, rights, preconditions.

    Args:
        changes: What applies the change.
        held: The map.
        requested: The entries, and what they are to hold.
        context: Who asks.
        replace: Then clear all entries that are not listed, by falling index; those beyond the bounds of whoever asks
            stay.
        precondition: Forbids the change by what the table holds. None: nothing does.
        dry_run: Only check.
        background_steps: See Changes.apply.

    Raises:
        BodyIndexOutOfRange: An index is not below max_entries.
        DuplicateIndex: An index is listed twice.
        ServiceError: Whatever else forbids it: see Changes.apply, Programs.resolve and `precondition`.
    """
    async with held.lock:
        table = held.opened()
        with _naming_entries(requested):
            _check_indexes(requested.indexes, table.max_entries)
        found = await held.read()
        in_table = found if len(requested.refs) <= _SMALL else distinct(found)
        with _naming_entries(requested), ExitStack() as stack:
            programs = _open(changes, requested, found, in_table, context, stack)
            check_not_moved(held, context)
            check_names_not_moved(changes.registry.programs, requested.refs, context)
            await _let_others_run(requested)
            listed = _listed(requested, programs, found)
            plan = listed.changing()
            unchanged = len(listed) - len(plan)
            await _let_others_run(requested)
            if replace:
                plan = plan.then_clear(_to_clear(requested.indexes, found, context.grant), found)
            kind: ChangeKind = "replace" if replace else "update"
            repeated = None if plan else _repeated(changes, held, kind, requested.indexes, found, context)
            if repeated is not None and not dry_run:
                was = len(set(repeated.entries.indexes).intersection(requested.indexes))
                return TableResult.of_repeated(repeated, unchanged=len(listed) - was)
            if repeated is None:
                if precondition is not None:
                    precondition(table.id, found)
                if held.unconfirmed is not None:
                    check_entries(held, plan.indexes, context)
                    check_confirmed(held, _concerned(held, requested.indexes, context.grant, replace=replace))
            if not plan:
                return TableResult.of(Applied(), plan, unchanged=unchanged, fit="tried" if dry_run else None)
            # What is in the table already fits.
            new = [program for program in plan.programs.values() if program.id not in in_table]
            try:
                applied = await changes.apply(
                    held, kind, plan, context, dry_run=dry_run, try_first=new, background_steps=background_steps
                )
            except (ProgramBusy, ProgramIncompatible) as error:
                error.entry = _entry(requested, plan.indexes[plan.after.index(error.program_id)])
                raise
    return TableResult.of(applied, plan, unchanged=unchanged, fit=applied.fit if dry_run else None)


async def _let_others_run(requested: RequestedEntries) -> None:
    """Let the event loop have its turn between two steps that take long."""
    if len(requested.indexes) > _QUICK:
        await asyncio.sleep(0)


@contextmanager
def _naming_entries(requested: RequestedEntries) -> Iterator[None]:
    """Let an error that is about an entry tell also the program that the request names there."""
    try:
        yield
    except ServiceError as error:
        index = getattr(error, "index", None)
        if error.entry is None and index is not None:
            error.entry = _entry(requested, index)
        raise


def _entry(requested: RequestedEntries, index: int) -> dict[str, Any]:
    """Return what an error tells of an entry: its index, and the program that the request names there."""
    is_listed = index in requested.indexes
    ref = requested.refs[requested.places[requested.indexes.index(index)]] if is_listed else None
    return {"index": index, "program": _as_named(ref)}


def _as_named(ref: ProgramRef | None) -> str | dict[str, int | str] | None:
    """Return a reference as a request has it."""
    if isinstance(ref, ByName):
        return ref.name
    if isinstance(ref, ById):
        return {"id": ref.id}
    return None if ref is None else {"pinned": ref.path}


def _opened_copy(programs: Programs, index: int, ref: ProgramRef) -> Program:
    try:
        return programs.opened_copy(ref)
    except ServiceError as error:
        error.entry = {"index": index, "program": _as_named(ref)}
        raise


def _concerned(held: HeldMap, listed: Indexes, grant: Grant, *, replace: bool) -> Collection[int]:
    """Return the entries that a request speaks of, of those that wait: a new table speaks also of what it leaves out.

    Entries beyond the bounds of whoever asks stay as they are, as in `_to_clear`.
    """
    if not replace:
        return listed
    waiting = held.unconfirmed or ()
    is_all = grant.entries is None or isinstance(listed, range)
    return waiting if is_all else [index for index in waiting if index in listed or grant.has_entry(index)]


def _repeated(
    changes: Changes,
    held: HeldMap,
    kind: ChangeKind,
    listed: Indexes,
    found: "array[int]",
    context: RequestContext,
) -> Change | None:
    """Return the change that waits for its confirmation, where the request is the one that made it, sent again.

    Nothing is left to write, so the entries hold what the request lists.
    """
    for change in changes.confirmations.repeatable(held, kind, context):
        concerned = set(held.unconfirmed or ())
        concerned.intersection_update(_concerned(held, listed, context.grant, replace=kind == "replace"))
        entries = change.entries
        if concerned == set(entries.indexes) and _held_by(entries.indexes, found) == entries.after:
            return change
    return None


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


def _open(
    changes: Changes,
    requested: RequestedEntries,
    found: "array[int]",
    in_table: Collection[int],
    context: RequestContext,
    stack: ExitStack,
) -> Mapping[int, Program]:
    """Open the programs that are referred to, for as long as the stack. By the place of the reference."""
    programs = changes.registry.programs
    needed = [(index, place, ref) for index, place, ref in _needed(requested, found) if ref is not None]
    for index, _, ref in needed:
        check_program(programs, index, ref, found[index], context)
    if context.grant.role == "admin":
        return {place: stack.enter_context(_opened_copy(programs, index, ref)) for index, place, ref in needed}
    for index, _, ref in needed:
        check_reference(programs, index, ref, None, in_table, context)
    opened = {place: stack.enter_context(_opened_copy(programs, index, ref)) for index, place, ref in needed}
    for index, place, ref in needed:
        check_reference(programs, index, ref, opened[place].id, in_table, context)
    return opened


def _needed(requested: RequestedEntries, found: "array[int]") -> list[tuple[int, int, ProgramRef | None]]:
    """Return the first index, the place, and the reference of each program that has to be opened.

    A program that is named by its id, and is everywhere in the table where it is to be, is left out: opening it takes a
    right, and an entry that is left as it is needs none.
    """
    there = [(isinstance(ref, ById) and ref.id) or _NO_ID for ref in requested.refs]
    first: dict[int, int] = {}
    for index, place in zip(requested.indexes, requested.places, strict=True):
        if place not in first and there[place] != found[index]:
            first[place] = index
            if len(first) == len(there):
                break
    return [(index, place, requested.refs[place]) for place, index in first.items()]


def _listed(requested: RequestedEntries, opened: Mapping[int, Program], found: "array[int]") -> WritePlan:
    """Return a plan with a write for each entry that is listed, also where it is as it is to be."""
    ids = [ref.id if isinstance(ref, ById) else EMPTY for ref in requested.refs]
    for place, program in opened.items():
        ids[place] = program.id
    return WritePlan(
        requested.indexes,
        _held_by(requested.indexes, found),
        mapped(requested.places, dict(enumerate(ids))),
        {program.id: program for program in opened.values()},
        {ids[place]: ref.path for place, ref in enumerate(requested.refs) if isinstance(ref, Pinned)},
    )


def _held_by(indexes: Indexes, found: "array[int]") -> "array[int]":
    """Return what these entries hold."""
    if isinstance(indexes, range):
        return found[indexes.start : indexes.stop]
    return array(NUMBERS, map(found.__getitem__, indexes))


def _to_clear(listed: Indexes, found: "array[int]", grant: Grant) -> "array[int]":
    """Return the entries that a new table clears, by falling index: those that hold a program and are not listed.

    A caller with bounds does not see the entries beyond them, so it does not have to list them, and they stay. A range
    lists the whole table by place, so it counts for all of it.
    """
    indexes = _not_listed(listed, found)
    if grant.entries is None or isinstance(listed, range):
        return indexes
    return array(NUMBERS, compress(indexes, grant.entries.mask(indexes)))


def _not_listed(listed: Indexes, found: "array[int]") -> "array[int]":
    """Return the entries that hold a program and are not listed, by falling index."""
    if isinstance(listed, range):
        return array(NUMBERS, compress(range(len(listed), len(found)), found[len(listed) :]))[::-1]
    left = found[:]
    for index in listed:
        left[index] = EMPTY
    return array(NUMBERS, compress(range(len(left)), left))[::-1]
