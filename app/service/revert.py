"""Undoing a change at somebody's wish."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from app.service.changes import Changes
from app.service.entries import TableResult
from app.service.errors import ChangeConflict, ChangeNotRevertible
from app.service.fit import fit_of
from app.service.held import HeldMap
from app.service.origin import Origin
from app.service.program import Program
from app.service.writing import Step
from app.store.records import Change, ProgramRecord

_LOOKED_UP_AT_ONCE: Final = 512


async def revert_change(changes: Changes, id_: int, origin: Origin, *, dry_run: bool = False) -> TableResult:
    """Undo a change, if its entries still hold what it put there.

    Errors: ChangeUnknown; ChangeConflict with what the entries hold; ChangeNotRevertible; those of Changes.apply.
    """
    registry = changes.registry
    held = registry.maps.get(changes.get(id_).map)
    async with held.lock:
        change = changes.get(id_)  # as it is now: others may have waited for the lock too
        array = held.opened()
        if change.state in {"reverted", "expired"}:
            raise ChangeNotRevertible(id_, f"it is {change.state} already")
        if change.state == "unconfirmed" and origin.confirm_within is not None:
            raise ChangeNotRevertible(id_, "it waits to be confirmed, so its revert cannot wait as well")
        if (change.map_id, change.boot_id) != (array.id, registry.kernel.boot_id):
            raise ChangeNotRevertible(id_, f"map {held.name!r} is another array now")
        now = await _holds(changes, held, change)
        seeds = await registry.seeds_for(held) if dry_run else []
        with ExitStack() as stack:
            programs: dict[ProgramRecord, Program] = {}
            for record in {entry.before for entry in change.entries if entry.before is not None}:
                program = changes.retained.find(record)
                if program is None:
                    raise ChangeNotRevertible(id_, f"program {record.name or record.id!r} is gone")
                programs[record] = stack.enter_context(program)
            steps = [
                Step(
                    entry.index,
                    now.get(entry.index),
                    None if entry.before is None else programs[entry.before],
                    None if entry.before is None else entry.before.pinned,
                )
                for entry in reversed(change.entries)
            ]
            if dry_run:
                changes.check(held, steps, origin, id_)
                fit = fit_of(registry, array, list(programs.values()), seeds)
                return TableResult.of(None, steps, fit=fit)
            applied = await changes.apply(held, "revert", steps, origin, reverts=id_)
            return TableResult.of(applied, steps)


async def _holds(changes: Changes, held: HeldMap, change: Change) -> Mapping[int, int | None]:
    """What the change's entries hold now: what it put there, or else ChangeConflict."""
    if len(change.entries) > _LOOKED_UP_AT_ONCE:
        now: dict[int, int | None] = dict(await held.read())
    else:
        now = {entry.index: held.opened().get(entry.index) for entry in change.entries}
    other = [
        {"index": entry.index, "holds": None if holds is None else asdict(changes.registry.programs.record(holds))}
        for entry in change.entries
        if (holds := now.get(entry.index)) != (None if entry.after is None else entry.after.id)
    ]
    if other:
        raise ChangeConflict(change.id, other)
    return now
