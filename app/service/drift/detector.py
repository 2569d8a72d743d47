"""Drift: where the kernel is not as the journal says, because somebody else has written there."""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import structlog

from app.service.changes.changes import Changes
from app.service.errors import MapUnavailable, MapUnknown, ServiceError
from app.service.registry.expected import ExpectedTable
from app.service.registry.held import HeldMap
from app.store.expected import Table
from app.store.journal import JournalFailed
from app.store.records import EMPTY, NUMBERS, Array, ProgramRecord, numbered

_AT_A_STRETCH: Final = 256  # entries: about 2 ms, then others have their turn
_TOLD: Final = 100  # entries that an event tells

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Drifted:
    """One entry: what is recorded, and what the kernel has. None: empty."""

    index: int
    journal: ProgramRecord | None
    kernel: ProgramRecord | None


class Drift:
    """Looks at tables, and tells where they are not as recorded. Thread rule: one event loop."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._registry = changes.registry
        self._looking: set[asyncio.Task[object]] = set()

    async def begin(self, held: HeldMap, *, anew: bool = False) -> bool:
        """Know what the entries of a map that was just opened are to hold: by the journal, or else as they are now.

        `anew`: as they are now, also where the journal knows better. False: the journal cannot be used yet.
        """
        async with held.lock:
            array = held.object
            if array is None or held.expected is not None:
                return True
            identity = Array(array.id, self._registry.kernel.boot_id)
            try:
                kept = None if anew else await self._changes.journal.expected_table(held.name, identity.boot_id)
                found = await held.read()
                if kept is not None:
                    kept = kept[0], kept[1].resized(len(found))
                table = self._as_found(found) if kept is None else self._recognised(*kept, identity, found)
                if kept is None or kept != (identity, table):
                    await self._changes.journal.save_expected_table(held.name, identity, table)
            except (JournalFailed, ServiceError) as error:
                log.warning("what its entries are to hold is not known yet", map=held.name, reason=str(error))
                return False
            held.expected = ExpectedTable(identity, table, used=len(found) - found.count(EMPTY))
            if held.restore:
                held.expected.to_restore = set(held.expected.differing_indexes(found))
        return True

    def _as_found(self, found: "array[int]") -> Table:
        return Table(found[:], {id_: self._registry.programs.record(id_) for id_ in set(found) - {EMPTY}})

    def _recognised(self, was: Array, table: Table, identity: Array, found: "array[int]") -> Table:
        """The recorded table; for another array, or of an earlier boot, with the programs that they are now.

        A program with the same code in the same place is taken for it; else the one that is found again; else its id
        becomes 0, for it may still come.
        """
        if was == identity and all(record.id for record in table.programs.values()):
            return table
        again: dict[int, ProgramRecord] = {}
        for number in set(table.numbers) - {EMPTY}:
            record = table.programs[number]
            program = self._changes.replaced_programs.find(record)
            again[number] = replace(record, id=0)
            if program is not None:
                with program:
                    again[number] = self._registry.programs.record(program.id, record.pinned)
        # What is there and what was to be there decide, and few tables have many such pairs.
        pairs = set(zip(table.numbers, found, strict=True))
        taken = {
            (number, id_): self._same_code(table.programs[number], id_) or again[number]
            for number, id_ in pairs
            if number != EMPTY
        }
        programs = numbered(dict.fromkeys(taken.values()))
        number_of = {record: number for number, record in programs} | {None: EMPTY}
        numbers = {pair: number_of[taken.get(pair)] for pair in pairs}
        return Table(array(NUMBERS, map(numbers.__getitem__, zip(table.numbers, found, strict=True))), dict(programs))

    def _same_code(self, record: ProgramRecord, program_id: int | None) -> ProgramRecord | None:
        """The program, where it has the code of the recorded one."""
        if not program_id or record.tag is None:
            return None
        holds = self._registry.programs.record(program_id)
        return holds if holds.tag == record.tag else None

    async def check(self, held: HeldMap, *, quietly: bool = False) -> list[Drifted]:
        """Read the table, and tell where it is not as recorded; an event, where that is news, unless `quietly`."""
        expected = held.expected
        if expected is None:
            return []
        found = await held.read()
        drifted = await self._drifted(held, expected, expected.differing_indexes(found))
        if held.expected is not expected:
            return []  # another array has the name by now
        if not quietly:
            expected.used = len(found) - found.count(EMPTY)
            await self._tell(held, expected, drifted)
        return drifted

    async def _drifted(self, held: HeldMap, expected: ExpectedTable, differing_indexes: Sequence[int]) -> list[Drifted]:
        """Those that differ still, and are not just being changed."""
        drifted = []
        for number, index in enumerate(differing_indexes):
            if number % _AT_A_STRETCH == _AT_A_STRETCH - 1:
                await asyncio.sleep(0)
            if held.expected is not expected:
                return []
            if held.is_changing(index):
                continue
            holds, record = held.opened().get(index), expected.table.get(index)
            if holds == (None if record is None else record.id):
                continue
            same = None if record is None or record.id else self._same_code(record, holds)
            if same is not None:
                expected.put(index, same)
            else:
                kernel = None if holds is None else self._registry.programs.record(holds)
                drifted.append(Drifted(index, record, kernel))
        return drifted

    async def _tell(self, held: HeldMap, expected: ExpectedTable, drifted: Sequence[Drifted]) -> None:
        known = expected.drift
        now = {each.index: None if each.kernel is None else each.kernel.id for each in drifted}
        if now == known:
            return
        expected.drift = now
        log.warning("drift", map=held.name, entries=len(now), first=next(iter(now), None))
        told: dict[str, Any] = {
            "map": held.name,
            "count": len(now),
            "drift": [
                {"index": each.index, "journal": _json(each.journal), "kernel": _json(each.kernel)}
                for each in drifted[:_TOLD]
            ],
        }
        try:
            await self._changes.journal.append_drift_event(held.name, told)
        except JournalFailed as error:
            log.warning("drift cannot be journalled yet", map=held.name, reason=str(error))
            expected.drift = known  # told at the next look

    def note_read(self, held: HeldMap, found: "array[int]") -> None:
        """A table was read: look closer where it is not as recorded."""
        if held.expected is not None and not held.expected.drift.keys() >= set(held.expected.differing_indexes(found)):
            self._check_soon(held)

    def note_read_of_entry(self, held: HeldMap, index: int, program_id: int | None) -> None:
        """The same, of one entry."""
        expected = held.expected
        if expected is not None and expected.id_at(index) != (program_id or EMPTY) and index not in expected.drift:
            self._check_soon(held)

    def _check_soon(self, held: HeldMap) -> None:
        if not self._looking:
            task = asyncio.create_task(self._check_once(held))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _check_once(self, held: HeldMap) -> None:
        try:
            await self.check(held)
        except (MapUnknown, MapUnavailable):
            pass  # released meanwhile
        except ServiceError as error:
            log.warning("a map could not be read", map=held.name, reason=str(error))

    async def check_all(self) -> None:
        """Look at every map."""
        for held in self._registry.maps:
            await self._check_once(held)

    async def finish(self) -> None:
        """Wait for looks that are under way."""
        if self._looking:
            await asyncio.wait(self._looking)


def _json(record: ProgramRecord | None) -> dict[str, Any] | None:
    return None if record is None else asdict(record) | {"id": record.id or None}
