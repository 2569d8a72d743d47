"""Ending drift: write back what the journal expects, or take what the kernel has as expected."""

import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import structlog

from app.service.changes.changes import Applied, Changes
from app.service.changes.origin import SERVICE_ACTOR, RequestContext
from app.service.changes.permissions import check_confirmed, check_entries, check_not_moved
from app.service.changes.plan import WritePlan
from app.service.changes.tables import TableResult
from app.service.drift.detector import DriftDetector, DriftedEntry
from app.service.errors import (
    JournalUnavailable,
    JournalUnreadable,
    MapFrozen,
    NotRestorable,
    ServiceError,
    Stopping,
    WriteRefused,
)
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.store.number_arrays import NUMBERS
from app.store.records import EMPTY, EntryChange, EntryChanges, ProgramRecord

_MAX_REASONS: Final = 20  # entries for which an error says why they cannot be restored
_RESTORE_RETRY_SECONDS: Final = 30.0  # after the journal could not be written

_NOT_RESTORED: Final = "not restored yet"

log = structlog.get_logger()


async def reconcile_to_journal(
    changes: Changes, drift: DriftDetector, held: HeldMap, context: RequestContext, *, dry_run: bool
) -> TableResult:
    """Write back what the journal expects, in every entry that has drifted, or in none.

    Raises:
        NotRestorable: A program is gone.
        ServiceError: Whatever else forbids it: see Changes.apply.
    """
    async with held.lock:
        drifted = await _drifted(drift, held, quietly=dry_run)
        check_entries(held, [each.index for each in drifted], context)
        check_not_moved(held, context)
        with ExitStack() as stack:
            programs, lost = _find_programs(changes, drifted, stack)
            if lost:
                first = next(iter(lost))
                reasons = [{"index": index, "reason": reason} for index, reason in list(lost.items())[:_MAX_REASONS]]
                raise NotRestorable(held.name, f"entry {first}: {lost[first]}", reasons)
            plan = _plan(drifted, programs)
            if not plan and not dry_run:
                for again in reversed([*changes.confirmations.repeatable(held, "reconcile", context)]):
                    return TableResult.of_repeated(again)
                return TableResult.of(Applied(), plan)
            applied = await changes.apply(held, "reconcile", plan, context, dry_run=dry_run)
            return TableResult.of(applied, plan, fit=applied.fit)


async def reconcile_to_kernel(
    changes: Changes, drift: DriftDetector, held: HeldMap, context: RequestContext, *, dry_run: bool
) -> TableResult:
    """Take what the kernel has as expected. Nothing is written to the kernel.

    Raises:
        EntryWaits: An entry waits for a confirmation.
        PinMoved: The pin of the map leads to another array now.
        Forbidden: An entry is beyond the bounds of the caller.
        JournalUnreadable: It cannot be journalled.
    """
    async with held.lock:
        drifted = await _drifted(drift, held, quietly=dry_run)
        indexes = [each.index for each in drifted]
        check_entries(held, indexes, context)
        check_not_moved(held, context)
        check_confirmed(held, indexes)
        entries = EntryChanges.of(EntryChange(each.index, each.journal, each.kernel) for each in drifted)
        if dry_run or not drifted:
            return TableResult(None, 0, 0, len(drifted), "tried" if dry_run else None, entries)
        return TableResult(await changes.adopt(held, entries, context), 0, 0, len(drifted))


async def restore(changes: Changes, drift: DriftDetector, held: HeldMap) -> None:
    """After a start: write back what can be, of the entries that were not as expected. The rest is tried again."""
    expected = held.expected
    if expected is None or not expected.to_restore or time.monotonic() < expected.not_before:
        return
    async with held.lock:
        drifted = [each for each in await drift.check(held) if each.index in expected.to_restore]
        drifted = [each for each in drifted if held.unconfirmed is None or each.index not in held.unconfirmed]
        expected.to_restore &= {each.index for each in drifted}
        with ExitStack() as stack:
            programs, expected.lost = _find_programs(changes, drifted, stack)
            plan = _plan(drifted, programs)
            while plan:
                context = RequestContext(SERVICE_ACTOR, uuid.uuid4().hex)
                try:
                    applied = await changes.apply(held, "restore", plan, context)
                except (JournalUnavailable, Stopping) as error:
                    # Each attempt writes everything and puts it back, so not too often.
                    expected.not_before = time.monotonic() + _RESTORE_RETRY_SECONDS
                    drift.troubles.begin(_NOT_RESTORED, held.name, str(error))
                    break
                except ServiceError as error:
                    if isinstance(getattr(error, "cause", error), MapFrozen | Stopping):
                        expected.lost |= dict.fromkeys(plan.indexes, str(error))
                        break
                    # One that does not go in must not keep the others out.
                    refused = error.index if isinstance(error, WriteRefused) else plan.indexes[0]
                    expected.lost[refused] = str(error)
                    plan = plan.without(refused)
                else:
                    assert applied.change is not None
                    drift.troubles.end(_NOT_RESTORED, held.name)
                    log.info("restored", map=held.name, change=applied.change.id, entries=len(plan))
                    break


async def _drifted(drift: DriftDetector, held: HeldMap, *, quietly: bool) -> list[DriftedEntry]:
    held.opened()
    if held.expected is None:
        raise JournalUnreadable("what the entries are to hold is not known yet: the journal cannot be used")
    return await drift.check(held, quietly=quietly)


def _find_programs(
    changes: Changes, drifted: Sequence[DriftedEntry], stack: ExitStack
) -> tuple[dict[ProgramRecord, Program], dict[int, str]]:
    """Return the expected programs, open for as long as the stack; and by index why one cannot be opened."""
    programs: dict[ProgramRecord, Program] = {}
    for record in {each.journal for each in drifted if each.journal is not None}:
        program = changes.replaced_programs.find(record)
        if program is not None:
            programs[record] = stack.enter_context(program)
    lost = {
        each.index: _why_lost(each.journal)
        for each in drifted
        if each.journal is not None and each.journal not in programs
    }
    return programs, lost


def _why_lost(record: ProgramRecord) -> str:
    name = record.name or record.pinned or record.id or record.tag
    if record.pinned is None:
        return (
            f"program {name!r} is gone, and the service knows no pin of it; load it again, and set the entry yourself"
        )
    return (
        f"program {name!r} is gone, and {record.pinned} leads to no program, or to another one; load and pin it again"
    )


def _plan(drifted: Sequence[DriftedEntry], programs: Mapping[ProgramRecord, Program]) -> WritePlan:
    """Return the way back: sets by rising index, then clears by falling index."""
    sets = [each for each in drifted if each.journal in programs]
    entries = sets + [each for each in drifted if each.journal is None][::-1]
    ids = {record: program.id for record, program in programs.items()}
    return WritePlan(
        array(NUMBERS, [each.index for each in entries]),
        array(NUMBERS, [EMPTY if each.kernel is None else each.kernel.id for each in entries]),
        array(NUMBERS, [EMPTY if each.journal is None else ids[each.journal] for each in entries]),
        {program.id: program for program in programs.values()},
        {ids[record]: record.pinned for record in programs if record.pinned is not None},
    )
