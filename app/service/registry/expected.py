"""What the entries of a held map are expected to hold, by every change that was made through the service."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import ne
from typing import Final

from app.store.expected import Table
from app.store.number_arrays import distinct
from app.store.records import Array, EntryChanges, EntryWrite, ProgramRecord, Programs

_ENTRIES_PER_COMPARISON: Final = 256  # entries that are compared at once; where they differ, one by one
_MIN_PROGRAMS: Final = 1024  # programs that stay known, also where no entry is expected to hold them any more


@dataclass(eq=False)
class ExpectedTable:
    """The journal's word on one array. Thread rule: one event loop.

    Attributes:
        identity: The array that it is about.
        table: What each entry is expected to hold.
        drift: The entries in which the kernel is known to differ, and the id of what they hold.
        to_restore: The entries that are still to be written back since the start.
        lost: Of these, why one cannot be.
        not_before: When to try that again: seconds of time.monotonic().
        used: How many entries pointed to a program at the last check.
    """

    identity: Array
    table: Table
    drift: dict[int, int | None] = field(default_factory=dict)
    to_restore: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)
    not_before: float = 0.0
    used: int = 0
    _max_programs: int = _MIN_PROGRAMS

    def apply(self, entries: EntryChanges) -> None:
        """Expect what a change has put into its entries. That ends their drift."""
        numbers = self.table.numbers
        self._add_programs(entries.programs)
        if isinstance(entries.indexes, range):
            numbers[entries.indexes.start : entries.indexes.stop] = entries.after
        else:
            for index, number in zip(entries.indexes, entries.after, strict=True):
                numbers[index] = number
        if self.drift or self.to_restore or self.lost:
            self._forget_drift(entries.indexes)

    def apply_sets(self, writes: Sequence[EntryWrite], programs: Programs) -> None:
        """Expect what sets have put into their entries. That ends their drift. `programs`: those that they name."""
        numbers, known = self.table.numbers, self.table.programs
        for write in writes:
            numbers[write.entry] = write.after
            if write.after not in known:
                self._add_programs({write.after: programs[write.after]})
                known = self.table.programs
        if self.drift or self.to_restore or self.lost:
            self._forget_drift([write.entry for write in writes])

    def _forget_drift(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            self.drift.pop(index, None)
            self.to_restore.discard(index)
            self.lost.pop(index, None)

    def put(self, index: int, program: ProgramRecord) -> None:
        """Expect a program, whose id is known, in one entry."""
        self._add_programs({program.id: program})
        self.table.numbers[index] = program.id

    def _add_programs(self, programs: Programs) -> None:
        known = self.table.programs
        for number, record in programs.items():
            if record.id:  # other numbers mean something within their change alone, and no entry gets one
                known[number] = record
        if len(known) > self._max_programs:
            used = distinct(self.table.numbers)
            self.table.programs = {number: record for number, record in known.items() if number in used}
            self._max_programs = max(_MIN_PROGRAMS, 2 * len(self.table.programs))

    def differing_indexes(self, found: "array[int]") -> list[int]:
        """Return the entries that hold something else than expected, by rising index.

        Args:
            found: The id of the program that each entry holds, by index. 0: none.
        """
        numbers, differ = self.table.numbers, list[int]()
        if found == numbers:
            return differ
        for start in range(0, len(numbers), _ENTRIES_PER_COMPARISON):
            stop = start + _ENTRIES_PER_COMPARISON
            if found[start:stop] != numbers[start:stop]:
                pairs = map(ne, found[start:stop], numbers[start:stop])
                differ += compress(range(start, stop), pairs)
        return differ
