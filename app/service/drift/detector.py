"""Drift: entries in which the kernel does not hold what the journal expects, as somebody else has written there."""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import structlog

from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.errors import MapUnavailable, MapUnknown, ServiceError
from app.service.registry.expected import ExpectedTable
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.service.troubles import Troubles
from app.store.expected import Table
from app.store.journal import Journal, JournalFailed
from app.store.number_arrays import NUMBERS, distinct
from app.store.records import EMPTY, Array, ProgramRecord, numbered

_ENTRIES_PER_SLICE: Final = 256  # entries that are looked at closely, about 2 ms, before others have their turn
_MAX_ENTRIES_TOLD: Final = 100  # entries in one drift event
_MAX_RUNS: Final = 4096  # of consecutive entries in one drift event

# Troubles that are met at each check.
_NOT_KNOWN: Final = "what its entries are to hold is not known yet"
_NOT_JOURNALLED: Final = "drift cannot be journalled yet"
_NOT_READ: Final = "a map could not be read"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DriftedEntry:
    """One entry that has drifted.

    Attributes:
        index: u32.
        journal: The program that the journal expects. None: the entry is to be empty.
        kernel: The program that the kernel has. None: the entry is empty.
    """

    index: int
    journal: ProgramRecord | None
    kernel: ProgramRecord | None


class DriftDetector:
    """Compares tables with what the journal expects, and tells where they differ. Thread rule: one event loop."""

    def __init__(self, registry: Registry, journal: Journal, replaced_programs: ReplacedPrograms) -> None:
        """Make a detector for the held maps.

        Args:
            registry: The maps.
            journal: What their entries are expected to hold. It takes the events.
            replaced_programs: Finds programs that the journal has recorded.
        """
        self._registry = registry
        self._journal = journal
        self._replaced_programs = replaced_programs
        self._checks: set[asyncio.Task[object]] = set()
        self.troubles = Troubles()
        self._logged: dict[str, dict[int, int | None]] = {}  # drift that is logged but not journalled, by map

    async def keep_programs(self, held: HeldMap) -> None:
        """Keep the programs of a map's entries, before another array takes its place. Call it under the map's lock."""
        if held.object is not None:
            self._replaced_programs.keep_entries_of(held.object.id, set(await held.read()) - {EMPTY})

    async def begin(self, held: HeldMap, *, anew: bool = False) -> bool:
        """Learn what the entries of a map that was just opened are expected to hold.

        That is what the journal knows; or, where it knows nothing of the map, what they hold now.

        Args:
            held: The map.
            anew: Expect what they hold now, whatever the journal knows.

        Returns:
            False: the journal or the map cannot be read now.
        """
        async with held.lock:
            array_ = held.object
            if array_ is None or held.expected is not None:
                return True
            identity = Array(array_.id, self._registry.kernel.boot_id)
            try:
                stored = None if anew else await self._journal.expected_table(held.name, identity.boot_id)
                found = await held.read()
                if stored is not None:
                    stored = stored[0], stored[1].resized(len(found))
                table = self._as_found(found) if stored is None else self._recognised(*stored, identity, found)
                if stored is None or stored != (identity, table):
                    await asyncio.sleep(0)  # others have their turn
                    await self._journal.save_expected_table(held.name, identity, table)
            except (JournalFailed, ServiceError) as error:
                self.troubles.begin(_NOT_KNOWN, held.name, str(error))
                return False
            self.troubles.end(_NOT_KNOWN, held.name)
            held.expected = ExpectedTable(identity, table, used=len(found) - found.count(EMPTY))
            if held.restore:
                held.expected.to_restore = set(held.expected.differing_indexes(found))
        return True

    def _as_found(self, found: "array[int]") -> Table:
        return Table(found[:], {id_: self._registry.programs.record(id_) for id_ in distinct(found) - {EMPTY}})

    def _recognised(self, was: Array, table: Table, identity: Array, found: "array[int]") -> Table:
        """Return the stored table, with the programs as they are now.

        Nothing changes where it is the same array, in the same boot. Otherwise programs have other ids: a program with
        the same code in the same place is taken for the stored one; else it is looked for; else its id becomes 0, as it
        may still come. In another array, what is pinned now where the stored one was pinned takes its place.
        """
        if was == identity and all(record.id for record in table.programs.values()):
            return table
        programs = self._replaced_programs
        find = programs.find if was == identity else programs.find_for_new_array
        again: dict[int, ProgramRecord] = {}
        for number in distinct(table.numbers) - {EMPTY}:
            record = table.programs[number]
            program = find(record)
            again[number] = replace(record, id=0)
            if program is not None:
                with program:
                    again[number] = self._registry.programs.record(program.id, record.pinned)
        # What was stored and what is there decide, and few tables have many such pairs.
        pairs = set(zip(table.numbers, found, strict=True))
        taken = {
            (number, id_): self._same_code(table.programs[number], id_) or again[number]
            for number, id_ in pairs
            if number != EMPTY
        }
        again_numbered = numbered(dict.fromkeys(taken.values()))
        number_of = {record: number for number, record in again_numbered} | {None: EMPTY}
        numbers = {pair: number_of[taken.get(pair)] for pair in pairs}
        return Table(
            array(NUMBERS, map(numbers.__getitem__, zip(table.numbers, found, strict=True))), dict(again_numbered)
        )

    def _same_code(self, record: ProgramRecord, program_id: int | None) -> ProgramRecord | None:
        """Return the program with this id, if it has the code of the recorded one."""
        if not program_id or record.tag is None:
            return None
        holds = self._registry.programs.record(program_id)
        return holds if holds.tag == record.tag else None

    async def check(
        self, held: HeldMap, *, quietly: bool = False, found: "array[int] | None" = None
    ) -> list[DriftedEntry]:
        """Return the entries that have drifted, by rising index. Where that is news, it is logged and an event.

        Args:
            held: The map.
            quietly: Log nothing, and make no event.
            found: What the table was just read as. None: it is read.
        """
        expected = held.expected
        if expected is None:
            return []
        if found is None:
            found = await held.read()
        drifted = await self._look_closely(held, expected, expected.differing_indexes(found))
        if held.expected is not expected:
            return []  # another array has the name by now
        if not quietly:
            expected.used = len(found) - found.count(EMPTY)
            await self._publish(held, expected, drifted)
        return drifted

    async def _look_closely(self, held: HeldMap, expected: ExpectedTable, indexes: Sequence[int]) -> list[DriftedEntry]:
        """Return those that differ still, and are not being changed just now."""
        drifted = []
        for number, index in enumerate(indexes):
            if number % _ENTRIES_PER_SLICE == _ENTRIES_PER_SLICE - 1:
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
                drifted.append(DriftedEntry(index, record, kernel))
        return drifted

    async def _publish(self, held: HeldMap, expected: ExpectedTable, drifted: Sequence[DriftedEntry]) -> None:
        before = expected.drift
        now = {each.index: None if each.kernel is None else each.kernel.id for each in drifted}
        if now == before:
            return
        expected.drift = now
        if self._logged.get(held.name) != now:
            self._logged[held.name] = now
            first = asdict(drifted[0]) if drifted else None
            log.warning("drift", map=held.name, entries=len(now), first=first)
        event: dict[str, Any] = {
            "map": held.name,
            "count": len(now),
            "drift": [
                {"index": each.index, "journal": _json(each.journal), "kernel": _json(each.kernel)}
                for each in drifted[:_MAX_ENTRIES_TOLD]
            ],
        }
        if len(drifted) > _MAX_ENTRIES_TOLD:
            event["runs"] = _runs([each.index for each in drifted])
        try:
            await self._journal.append_drift_event(held.name, event)
        except JournalFailed as error:
            self.troubles.begin(_NOT_JOURNALLED, held.name, str(error))
            expected.drift = before  # so that the next check tells of it
        else:
            self.troubles.end(_NOT_JOURNALLED, held.name)
            self._logged.pop(held.name, None)

    def note_read(self, held: HeldMap, found: "array[int]") -> None:
        """Check a table soon, if it was just read with entries that are not known to have drifted."""
        if held.expected is not None and not held.expected.drift.keys() >= set(held.expected.differing_indexes(found)):
            self._check_soon(held)

    def note_read_of_entry(self, held: HeldMap, index: int, program_id: int | None) -> None:
        """Check a table soon, if this entry was just read and is not known to have drifted."""
        expected = held.expected
        if (
            expected is not None
            and expected.table.numbers[index] != (program_id or EMPTY)
            and index not in expected.drift
        ):
            self._check_soon(held)

    def _check_soon(self, held: HeldMap) -> None:
        if not self._checks:
            task = asyncio.create_task(self._check_once(held))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _check_once(self, held: HeldMap) -> None:
        try:
            await self.check(held)
        except (MapUnknown, MapUnavailable):
            pass  # released meanwhile
        except ServiceError as error:
            self.troubles.begin(_NOT_READ, held.name, str(error))
        else:
            self.troubles.end(_NOT_READ, held.name)

    async def check_all(self) -> None:
        """Check every map."""
        for held in self._registry.maps:
            await self._check_once(held)

    async def finish(self) -> None:
        """Wait for checks that are under way."""
        if self._checks:
            await asyncio.wait(self._checks)


def _runs(indexes: Sequence[int]) -> list[list[int]]:
    """Return the first and the last index of each run of consecutive indexes.

    Readers with bounds are told how many of the entries are within these. If there are too many runs, the last one
    takes in all that follows.

    Args:
        indexes: Rising.
    """
    runs: list[list[int]] = []
    for index in indexes:
        if runs and (index == runs[-1][1] + 1 or len(runs) == _MAX_RUNS):
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return runs


def _json(record: ProgramRecord | None) -> dict[str, Any] | None:
    return None if record is None else asdict(record) | {"id": record.id or None}
