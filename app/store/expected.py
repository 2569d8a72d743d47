"""What each entry of an array is to hold, by all that was changed through the service."""

from array import array
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from pydantic_core import from_json, to_json

from app.store.records import EMPTY, NUMBERS, EntryChanges, Indexes, ProgramRecord, Programs, numbered


@dataclass(slots=True)
class Table:
    """By index the number in `programs`, or EMPTY: 4 bytes for each entry."""

    numbers: "array[int]"
    programs: Programs

    @classmethod
    def of(cls, entries: dict[int, ProgramRecord]) -> "Table":
        """From the records by index."""
        programs = numbered(dict.fromkeys(entries.values()))
        number = {record: number for number, record in programs}
        table = cls(array(NUMBERS), dict(programs)).resized(max(entries, default=-1) + 1)
        for index, record in entries.items():
            table.numbers[index] = number[record]
        return table

    def resized(self, length: int) -> "Table":
        """A copy with so many entries: cut off, or filled up with empty ones."""
        numbers = self.numbers[:length]
        numbers.frombytes(bytes(4 * (length - len(numbers))))
        return Table(numbers, self.programs)

    def get(self, index: int) -> ProgramRecord | None:
        """What this entry is to hold; None: nothing."""
        return self.programs.get(self.numbers[index])

    def items(self) -> Iterator[tuple[int, ProgramRecord]]:
        """(index, program) of those that are to hold one, by rising index."""
        return ((index, self.programs[number]) for index, number in enumerate(self.numbers) if number)


class PackedTable:
    """A Table as the journal keeps it: over several boots, in each of which the ids are others.

    An entry's number is its program's place in a list, from 1 on; EMPTY: none.
    """

    def __init__(self, programs: str = "[]", numbers: bytes = b"") -> None:
        self._numbers = array(NUMBERS, numbers)
        told = enumerate(from_json(programs), 1)
        self._places = {(ProgramRecord(*record), boot_id): place for place, (*record, boot_id) in told}
        self._told = len(self._places)

    @classmethod
    def of(cls, table: Table, boot_id: str) -> "PackedTable":
        """A table of this boot."""
        recording = cls()
        recording._put(range(len(table.numbers)), table.numbers, table.programs, boot_id)
        return recording

    def apply(self, entries: EntryChanges, boot_id: str) -> None:
        """A change that was made in this boot."""
        self._put(entries.indexes, entries.after, entries.programs, boot_id)

    def _put(self, indexes: Indexes, numbers: "array[int]", programs: Programs, boot_id: str) -> None:
        place = {EMPTY: EMPTY}
        for number, record in programs.items():
            place[number] = self._places.setdefault((record, boot_id), len(self._places) + 1)
        table = self._numbers
        table.frombytes(bytes(4 * max(0, max(indexes, default=-1) + 1 - len(table))))
        row = _as_range(indexes)
        if row is not None:  # in half the time
            table[row.start : row.stop] = array(NUMBERS, map(place.__getitem__, numbers))
            return
        for index, number in zip(indexes, numbers, strict=True):
            table[index] = place[number]

    def packed(self) -> tuple[str, bytes]:
        """What it is made from: the programs, as JSON, and the numbers.

        Those that are used no more are left out once there may be twice as many as before: it takes a look at all
        entries.
        """
        if len(self._places).bit_length() > self._told.bit_length():
            self._leave_out_unused()
        told = [(*astuple(record), boot_id) for record, boot_id in self._places]
        return to_json(told).decode(), self._numbers.tobytes()

    def _leave_out_unused(self) -> None:
        used = sorted(set(self._numbers) - {EMPTY})
        new = {EMPTY: EMPTY} | {place: number for number, place in enumerate(used, 1)}
        self._places = {program: new[place] for program, place in self._places.items() if place in new}
        self._numbers = array(NUMBERS, map(new.__getitem__, self._numbers))

    def table(self, boot_id: str) -> Table:
        """As seen in this boot: programs of another one have the id 0."""
        records = [record if boot == boot_id else replace(record, id=0) for record, boot in self._places]
        programs = numbered(records)
        number = [EMPTY, *(number for number, _ in programs)]
        return Table(array(NUMBERS, map(number.__getitem__, self._numbers)), dict(programs))


def _as_range(indexes: Indexes) -> range | None:
    """The same as a range, where each is one more than the one before, as where a whole table is written."""
    if isinstance(indexes, range) or not indexes or indexes[-1] - indexes[0] != len(indexes) - 1:
        return indexes if isinstance(indexes, range) and indexes.step == 1 else None
    row = range(indexes[0], indexes[-1] + 1)
    return row if array(NUMBERS, row).tobytes() == indexes.tobytes() else None
