"""What the entries of a map are to hold, by all that was changed through the service."""

from array import array
from dataclasses import dataclass, field
from itertools import compress
from operator import ne
from typing import Final

from app.store.expected import Table
from app.store.records import Array, Change, Indexes, ProgramRecord, Programs

_AT_A_TIME: Final = 256  # entries that are compared
_PROGRAMS: Final = 1024  # at least so many are known, also where no entry is to hold them any more


@dataclass(eq=False)
class ExpectedTable:
    """The journal's word on one array. Thread rule: one event loop.

    `identity`: which array; `table`: with as many entries; `drift`: the entries where the kernel is known to differ,
    and the id of what they hold; `to_restore`: those that are still to be put back since the start; `lost`: of them,
    why that cannot be done.
    """

    identity: Array
    table: Table
    drift: dict[int, int | None] = field(default_factory=dict)
    to_restore: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)
    not_before: float = 0.0  # s, time.monotonic(): when to try again, where the journal could not be written
    used: int = 0  # entries that pointed to a program at the last look
    _kept: int = _PROGRAMS

    def apply(self, change: Change) -> None:
        """These entries are as the change says from now on."""
        entries, numbers = change.entries, self.table.numbers
        self._learn(entries.programs)
        if isinstance(entries.indexes, range):
            numbers[entries.indexes.start : entries.indexes.stop] = entries.after
        else:
            for index, number in zip(entries.indexes, entries.after, strict=True):
                numbers[index] = number
        if self.drift or self.to_restore or self.lost:
            self._settle(entries.indexes)

    def _settle(self, indexes: Indexes) -> None:
        for index in indexes:
            self.drift.pop(index, None)
            self.to_restore.discard(index)
            self.lost.pop(index, None)

    def put(self, index: int, program: ProgramRecord) -> None:
        """Record one entry. `program`: with its id."""
        self._learn({program.id: program})
        self.table.numbers[index] = program.id

    def _learn(self, programs: Programs) -> None:
        known = self.table.programs
        for number, record in programs.items():
            if record.id:  # the numbers of others are the change's own, and no entry is to hold one anew
                known[number] = record
        if len(known) > self._kept:
            used = set(self.table.numbers)
            self.table.programs = {number: record for number, record in known.items() if number in used}
            self._kept = max(_PROGRAMS, 2 * len(self.table.programs))

    def id_at(self, index: int) -> int:
        """The number of what this entry is to hold: the program's id, or EMPTY."""
        return self.table.numbers[index]

    def differing_indexes(self, found: "array[int]") -> list[int]:
        """The entries where what was read is not what is recorded, by rising index."""
        numbers, differ = self.table.numbers, list[int]()
        if found == numbers:
            return differ
        for start in range(0, len(numbers), _AT_A_TIME):
            stop = start + _AT_A_TIME
            if found[start:stop] != numbers[start:stop]:
                pairs = map(ne, found[start:stop], numbers[start:stop])
                differ += compress(range(start, stop), pairs)
        return differ
