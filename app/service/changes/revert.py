"""Undoing a change at somebody's wish."""

from array import array
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from app.service.changes.changes import BackgroundSteps, Changes
from app.service.changes.fit import fit_of
from app.service.changes.origin import RequestContext
from app.service.changes.plan import WritePlan
from app.service.changes.tables import TableResult
from app.service.errors import ChangeConflict, ChangeNotRevertible
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.store.records import EMPTY, NUMBERS, Change

_LOOKED_UP_AT_ONCE: Final = 512


async def revert_change(
    changes: Changes,
    id_: int,
    origin: RequestContext,
    *,
    dry_run: bool = False,
    background_steps: BackgroundSteps | None = None,
) -> TableResult:
    """Undo a change, if its entries still hold what it put there; `meanwhile`: as of Changes.apply.

    Errors: ChangeUnknown; ChangeConflict with what the entries hold; ChangeNotRevertible; those of Changes.apply.
    """
    registry = changes.registry
    held = registry.maps.get(changes.get(id_).map)
    async with held.lock:
        change = changes.get(id_)  # as it is now: others may have waited for the lock too
        table = held.opened()
        if change.state in {"reverted", "expired"}:
            raise ChangeNotRevertible(id_, f"it is {change.state} already")
        if change.state == "unconfirmed" and origin.confirm_within is not None:
            raise ChangeNotRevertible(id_, "it waits to be confirmed, so its revert cannot wait as well")
        if (change.map_id, change.boot_id) != (table.id, registry.kernel.boot_id):
            raise ChangeNotRevertible(id_, f"map {held.name!r} is another array now")
        await _check_it_stands(changes, held, change)
        seeds = await registry.seeds_for(held) if dry_run else []
        with ExitStack() as stack:
            steps = _steps(changes, change, stack)
            if dry_run:
                changes.check(held, steps, origin, id_)
                fit = fit_of(registry, table, list(steps.programs.values()), seeds)
                return TableResult.of(None, steps, fit=fit)
            applied = await changes.apply(held, "revert", steps, origin, reverts=id_, background_steps=background_steps)
            return TableResult.of(applied, steps)


def _steps(changes: Changes, change: Change, stack: ExitStack) -> WritePlan:
    """The way back, in reverse order; the programs are open for as long as the stack. Errors: ChangeNotRevertible."""
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


async def _check_it_stands(changes: Changes, held: HeldMap, change: Change) -> None:
    """ChangeConflict with what the change's entries hold, unless that is what it put there."""
    indexes, after = change.entries.indexes, change.entries.after
    if len(indexes) <= _LOOKED_UP_AT_ONCE:
        now = held.opened().get_many(indexes)
    else:
        now = array(NUMBERS, map((await held.read()).__getitem__, indexes))
    if now == after:
        return
    record = changes.registry.programs.record
    other = [
        {"index": index, "holds": asdict(record(holds)) if holds else None}
        for index, holds, wanted in zip(indexes, now, after, strict=True)
        if holds != wanted
    ]
    raise ChangeConflict(change.id, other)
