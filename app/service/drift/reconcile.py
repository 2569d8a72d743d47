"""Ending drift: what is recorded is put back, or what the kernel has is recorded."""

import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import structlog

from app.service.changes.changes import Changes
from app.service.changes.fit import fit_of
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_entries
from app.service.changes.plan import WritePlan
from app.service.changes.tables import TableResult
from app.service.changes.undoing import SERVICE
from app.service.drift.detector import Drift, Drifted
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
from app.store.records import EMPTY, NUMBERS, EntryChange, EntryChanges, ProgramRecord

_TOLD: Final = 20
_PATIENCE: Final = 30.0  # s

log = structlog.get_logger()


async def reconcile_to_journal(
    changes: Changes, drift: Drift, held: HeldMap, origin: RequestContext, *, dry_run: bool
) -> TableResult:
    """Put back what is recorded, in every entry that has drifted, or in none.

    Errors: NotRestorable with the programs that are gone; those of Changes.apply and check_fit.
    """
    async with held.lock:
        drifted = await _drifted(drift, held, quietly=dry_run)
        seeds = await changes.registry.seeds_for(held) if dry_run else []
        with ExitStack() as stack:
            programs, lost = _found(changes, drifted, stack)
            if lost:
                first = next(iter(lost))
                told = [{"index": index, "reason": reason} for index, reason in list(lost.items())[:_TOLD]]
                raise NotRestorable(held.name, f"entry {first}: {lost[first]}", told)
            steps = _steps(drifted, programs)
            if dry_run:
                changes.check(held, steps, origin)
                fit = fit_of(changes.registry, held.opened(), list(programs.values()), seeds)
                return TableResult.of(None, steps, fit=fit)
            change = await changes.apply(held, "reconcile", steps, origin) if steps else None
            return TableResult.of(change, steps)


async def reconcile_to_kernel(
    changes: Changes, drift: Drift, held: HeldMap, origin: RequestContext, *, dry_run: bool
) -> TableResult:
    """Record what the kernel has, and write nothing there. Errors: EntryWaits, JournalUnavailable."""
    async with held.lock:
        drifted = await _drifted(drift, held, quietly=dry_run)
        check_entries(held, [each.index for each in drifted], origin.actor, origin.grant)
        changes.confirmations.check_free(held, [each.index for each in drifted])
        if dry_run or not drifted:
            return TableResult(None, 0, 0, len(drifted), "tried" if dry_run else None)
        entries = EntryChanges.of(EntryChange(each.index, each.journal, each.kernel) for each in drifted)
        return TableResult(await changes.adopt(held, entries, origin), 0, 0, len(drifted))


async def _drifted(drift: Drift, held: HeldMap, *, quietly: bool) -> list[Drifted]:
    held.opened()
    if held.expected is None:
        raise JournalUnreadable("what the entries are to hold is not known yet: the journal cannot be used")
    return await drift.check(held, quietly=quietly)


def _found(
    changes: Changes, drifted: Sequence[Drifted], stack: ExitStack
) -> tuple[dict[ProgramRecord, Program], dict[int, str]]:
    """The recorded programs, open for as long as the stack; and by index why one cannot be."""
    programs: dict[ProgramRecord, Program] = {}
    for record in {each.journal for each in drifted if each.journal is not None}:
        program = changes.replaced_programs.find(record)
        if program is not None:
            programs[record] = stack.enter_context(program)
    lost = {
        each.index: _why(each.journal) for each in drifted if each.journal is not None and each.journal not in programs
    }
    return programs, lost


def _why(record: ProgramRecord) -> str:
    name = record.name or record.pinned or record.id or record.tag
    if record.pinned is None:
        return f"program {name!r} is gone, and it was pinned nowhere that the service knew"
    return f"program {name!r} is gone, and what is pinned at {record.pinned}, if anything, is not it"


def _steps(drifted: Sequence[Drifted], programs: Mapping[ProgramRecord, Program]) -> WritePlan:
    """Sets by rising index, then clears by falling index."""
    sets = [each for each in drifted if each.journal in programs]
    wanted = sets + [each for each in drifted if each.journal is None][::-1]
    ids = {record: program.id for record, program in programs.items()}
    return WritePlan(
        array(NUMBERS, [each.index for each in wanted]),
        array(NUMBERS, [EMPTY if each.kernel is None else each.kernel.id for each in wanted]),
        array(NUMBERS, [EMPTY if each.journal is None else ids[each.journal] for each in wanted]),
        {program.id: program for program in programs.values()},
        {ids[record]: record.pinned for record in programs if record.pinned is not None},
    )


async def restore(changes: Changes, drift: Drift, held: HeldMap) -> None:
    """After a start: put back what can be, of the entries that were not as recorded; the rest is tried again."""
    expected = held.expected
    if expected is None or not expected.to_restore or time.monotonic() < expected.not_before:
        return
    async with held.lock:
        drifted = [each for each in await drift.check(held) if each.index in expected.to_restore]
        drifted = [each for each in drifted if each.index not in held.unconfirmed]
        expected.to_restore &= {each.index for each in drifted}
        with ExitStack() as stack:
            programs, expected.lost = _found(changes, drifted, stack)
            steps = _steps(drifted, programs)
            while steps:
                try:
                    change = await changes.apply(held, "restore", steps, RequestContext(SERVICE, uuid.uuid4().hex))
                except (JournalUnavailable, Stopping) as error:
                    # Each attempt writes all and puts it back: so not too often.
                    expected.not_before = time.monotonic() + _PATIENCE
                    log.warning("not restored yet", map=held.name, reason=str(error))
                    break
                except ServiceError as error:
                    if isinstance(getattr(error, "cause", error), MapFrozen | Stopping):
                        expected.lost |= dict.fromkeys(steps.indexes, str(error))
                        break
                    # One that does not go in must not keep the others out.
                    wrong = error.index if isinstance(error, WriteRefused) else steps.indexes[0]
                    expected.lost[wrong] = str(error)
                    steps = steps.without(wrong)
                else:
                    log.info("restored", map=held.name, change=change.id, entries=len(steps))
                    break
