"""Undoing a change when somebody asks for it."""

from array import array
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from app.service.changes.changes import BackgroundSteps, Changes
from app.service.changes.origin import RequestContext
from app.service.changes.plan import WritePlan
from app.service.changes.tables import TableResult
from app.service.errors import ChangeConflict, ChangeNotRevertible
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.store.records import EMPTY, NUMBERS, Change

_MAX_LOOKUPS: Final = 512  # entries that are looked up at a stretch; for more, the whole table is read in slices


async def revert_change(
    changes: Changes,
    id_: int,
    context: RequestContext,
    *,
    dry_run: bool = False,
    background_steps: BackgroundSteps | None = None,
) -> TableResult:
    """Undo a change, if its entries still hold what it put there.

    Args:
        changes: What applies the revert.
        id_: The id of the change.
        context: Who asks.
        dry_run: Only check.
        background_steps: See Changes.apply.

    Raises:
        ChangeUnknown: There is no such change.
        ChangeConflict: Its entries hold something else by now.
        ChangeNotRevertible: It is undone already, waits and is to wait again, or what it replaced is gone.
        ServiceError: Whatever else forbids it: see Changes.apply.
    """
    registry = changes.registry
    held = registry.maps.get(changes.get(id_).map)
    async with held.lock:
        change = changes.get(id_)  # as it is now: another request may have reverted it meanwhile
        table = held.opened()
        for again in changes.confirmations.repeatable(held, "revert", context):
            if again.reverts == id_ and await _in_place(held, again) == again.entries.after:
                return TableResult(None, 0, 0, 0, "tried") if dry_run else TableResult.of_repeated(again)
        if change.state in {"reverted", "expired"}:
            raise ChangeNotRevertible(id_, f"it is {change.state} already")
        if change.state == "unconfirmed" and context.confirm_within is not None:
            raise ChangeNotRevertible(id_, "it waits to be confirmed, so its revert cannot wait as well")
        if (change.map_id, change.boot_id) != (table.id, registry.kernel.boot_id):
            raise ChangeNotRevertible(id_, f"map {held.name!r} is another array now")
        if not change.entries.indexes:
            raise ChangeNotRevertible(id_, "it has written nothing")
        await _check_in_place(changes, held, change)
        with ExitStack() as stack:
            plan = _plan(changes, change, stack)
            applied = await changes.apply(
                held, "revert", plan, context, reverts=id_, dry_run=dry_run, background_steps=background_steps
            )
            return TableResult.of(applied.change, plan, fit=applied.fit)


def _plan(changes: Changes, change: Change, stack: ExitStack) -> WritePlan:
    """Return the way back, in reverse order, with its programs open for as long as the stack.

    Raises:
        ChangeNotRevertible: A program is gone.
    """
    entries = change.entries
    programs, pinned, ids = dict[int, Program](), dict[int, str](), {EMPTY: EMPTY}
    for number in set(entries.before) - {EMPTY}:
        record = entries.programs[number]
        program = changes.replaced_programs.find(record)
        if program is None:
            raise ChangeNotRevertible(change.id, f"program {record.name or record.id!r} is gone")
        programs[program.id] = stack.enter_context(program)
        ids[number] = program.id
        if record.pinned is not None:
            pinned[program.id] = record.pinned
    after = array(NUMBERS, map(ids.__getitem__, reversed(entries.before)))
    indexes = array(NUMBERS, reversed(entries.indexes))
    return WritePlan(indexes, entries.after[::-1], after, programs, pinned)


async def _in_place(held: HeldMap, change: Change) -> "array[int]":
    """Return what the entries of a change hold now."""
    indexes = change.entries.indexes
    if len(indexes) <= _MAX_LOOKUPS:
        return held.opened().get_many(indexes)
    return array(NUMBERS, map((await held.read()).__getitem__, indexes))


async def _check_in_place(changes: Changes, held: HeldMap, change: Change) -> None:
    """Check that the entries of a change hold what it put there.

    Raises:
        ChangeConflict: Some do not. It tells what they hold.
    """
    indexes, after, now = change.entries.indexes, change.entries.after, await _in_place(held, change)
    if now == after:
        return
    record = changes.registry.programs.record
    other = [
        {"index": index, "holds": asdict(record(holds)) if holds else None}
        for index, holds, wanted in zip(indexes, now, after, strict=True)
        if holds != wanted
    ]
    raise ChangeConflict(change.id, other)
