"""Undoing a change when somebody asks for it."""

import asyncio
from array import array
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from app.service.changes.changes import BackgroundSteps, Changes
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_not_moved
from app.service.changes.plan import WritePlan
from app.service.changes.tables import TableResult
from app.service.errors import ChangeConflict, ChangeNotRevertible, JournalUnreadable
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.service.registry.index_sets import IndexSet
from app.store.journal import JournalFailed
from app.store.number_arrays import NUMBERS, distinct, mapped
from app.store.records import EMPTY, Change

_NO_LIMIT: Final = 1 << 62  # above every id of a change
_MAX_LOOKUPS: Final = 512  # entries that are looked up at a stretch; for more, the whole table is read in slices


async def revert_change(
    changes: Changes,
    id_: int,
    context: RequestContext,
    *,
    force: bool = False,
    dry_run: bool = False,
    background_steps: BackgroundSteps | None = None,
) -> TableResult:
    """Undo a change, if its entries still hold what it put there, and no later change has written them.

    Args:
        changes: What applies the revert.
        id_: The id of the change.
        context: Who asks.
        force: Also where a later change has written one of the entries, and they hold the same again.
        dry_run: Only check.
        background_steps: See Changes.apply.

    Raises:
        ChangeUnknown: There is no such change.
        ChangeConflict: Its entries hold something else by now, or a later change has written one of them.
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
            raise ChangeNotRevertible(id_, f"it is {change.state} already, so there is nothing left to undo")
        if change.state == "unconfirmed" and context.confirm_within is not None:
            raise ChangeNotRevertible(
                id_, "it waits to be confirmed, so its revert cannot wait as well; leave out confirm_within"
            )
        if (change.map_id, change.boot_id) != (table.id, registry.kernel.boot_id):
            raise ChangeNotRevertible(id_, f"map {held.name!r} is another array now; set its entries yourself")
        check_not_moved(held, context)
        if not change.entries.indexes:
            raise ChangeNotRevertible(id_, "it has written nothing")
        await _check_in_place(changes, held, change, force=force)
        with ExitStack() as stack:
            plan = _plan(changes, change, stack)
            applied = await changes.apply(
                held, "revert", plan, context, reverts=id_, dry_run=dry_run, background_steps=background_steps
            )
            return TableResult.of(applied, plan, fit=applied.fit)


def _plan(changes: Changes, change: Change, stack: ExitStack) -> WritePlan:
    """Return the way back, in reverse order, with its programs open for as long as the stack.

    Raises:
        ChangeNotRevertible: A program is gone.
    """
    entries = change.entries
    programs, pinned, ids = dict[int, Program](), dict[int, str](), {EMPTY: EMPTY}
    for number in distinct(entries.before) - {EMPTY}:
        record = entries.programs[number]
        program = changes.replaced_programs.find(record)
        if program is None:
            raise ChangeNotRevertible(
                change.id, f"program {record.name or record.id!r} is gone; load it again, and set the entries yourself"
            )
        programs[program.id] = stack.enter_context(program)
        ids[number] = program.id
        if record.pinned is not None:
            pinned[program.id] = record.pinned
    after = mapped(entries.before[::-1], ids)
    indexes = array(NUMBERS, reversed(entries.indexes))
    return WritePlan(indexes, entries.after[::-1], after, programs, pinned)


async def _in_place(held: HeldMap, change: Change) -> "array[int]":
    """Return what the entries of a change hold now."""
    indexes = change.entries.indexes
    if len(indexes) <= _MAX_LOOKUPS:
        return held.opened().get_many(indexes)
    return array(NUMBERS, map((await held.read()).__getitem__, indexes))


async def _last_writer(changes: Changes, change: Change) -> int | None:
    """Return the id of the last change that has written an entry of a change since. None: there is none.

    A change that was undone since, and the one that has undone it, count for nothing.
    """
    own, undone, before = IndexSet(change.entries.indexes), set[int](), _NO_LIMIT
    try:
        while page := changes.journal.written_after(change, before):
            for id_, reverts, indexes in page:
                if id_ not in undone and reverts is not None and reverts > change.id:
                    undone.add(reverts)
                elif id_ not in undone and any(index in own for index in indexes):
                    return id_
            before = page[-1][0]
            await asyncio.sleep(0)
    except JournalFailed as error:
        raise JournalUnreadable(str(error)) from error
    return None


async def _check_in_place(changes: Changes, held: HeldMap, change: Change, *, force: bool) -> None:
    """Check that the entries of a change hold what it put there, and that no later change has written them.

    Raises:
        ChangeConflict: They were written since. It tells by which change, and what they hold.
    """
    writer = await _last_writer(changes, change)
    indexes, after, now = change.entries.indexes, change.entries.after, await _in_place(held, change)
    if now == after and (force or writer is None):
        return
    record = changes.registry.programs.record
    other = [
        {"index": index, "holds": asdict(record(holds)) if holds else None}
        for index, holds, wanted in zip(indexes, now, after, strict=True)
        if holds != wanted
    ]
    raise ChangeConflict(change.id, other, writer)
