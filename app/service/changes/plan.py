"""The entries that a change writes, in order."""

from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, compress, count
from operator import ne

from app.service.objects.program import Program
from app.store.records import EMPTY, NUMBERS, Indexes


@dataclass(eq=False, slots=True)
class Steps:
    """Parallel arrays, as a table has many. The arrays are never changed.

    `indexes`: an array, or a range; `before`, `after`: the ids of the programs, or EMPTY; `programs`: those that are to
    be put in, by id, open for as long as they are needed; `pinned`: of them, by id, the paths by which the request
    named them.
    """

    indexes: Indexes
    before: "array[int]"
    after: "array[int]"
    programs: Mapping[int, Program]
    pinned: dict[int, str]
    _replaced: set[int] | None = None
    _cleared: int | None = None

    @classmethod
    def one(cls, index: int, before: int | None, program: Program | None, pinned: str | None = None) -> "Steps":
        """To write one entry. None: nothing."""
        after = EMPTY if program is None else program.id
        return cls(
            array(NUMBERS, (index,)),
            array(NUMBERS, (before or EMPTY,)),
            array(NUMBERS, (after,)),
            {} if program is None else {after: program},
            {} if pinned is None else {after: pinned},
            set() if before is None else {before},
        )

    def __len__(self) -> int:
        return len(self.indexes)

    @property
    def cleared(self) -> int:
        """How many of them leave an entry empty."""
        if self._cleared is None:
            self._cleared = self.after.count(EMPTY)
        return self._cleared

    @property
    def replaced(self) -> set[int]:
        """The ids of the programs that they replace."""
        if self._replaced is None:
            self._replaced = set(self.before) - {EMPTY}
        return self._replaced

    def part(self, start: int, stop: int) -> "Steps":
        """Those from `start` up to `stop`."""
        indexes, before, after = self.indexes[start:stop], self.before[start:stop], self.after[start:stop]
        return Steps(indexes, before, after, self.programs, self.pinned)

    def changing(self) -> "Steps":
        """Those that change anything."""
        changes = bytes(map(ne, self.before, self.after))
        return self if 0 not in changes else self.chosen(changes)

    def then_clear(self, indexes: Collection[int], found: "array[int]") -> "Steps":
        """These, and then clear those; `found`: what each entry holds, by index."""
        if not indexes:
            return self
        before = self.before + array(NUMBERS, map(found.__getitem__, indexes))
        after = self.after + array(NUMBERS, bytes(4 * len(indexes)))
        return Steps(array(NUMBERS, chain(self.indexes, indexes)), before, after, self.programs, self.pinned)

    def without(self, index: int) -> "Steps":
        """All but that of this entry."""
        return self.chosen(bytes([each != index for each in self.indexes]))

    def chosen(self, chosen: bytes) -> "Steps":
        """Those for which this has a 1."""
        indexes, before, after = (
            array(NUMBERS, compress(numbers, chosen)) for numbers in (self.indexes, self.before, self.after)
        )
        return Steps(indexes, before, after, self.programs, self.pinned)


class Marks(Collection[int]):
    """Which entries something is true of: a byte for each index up to the highest."""

    def __init__(self, indexes: Collection[int]) -> None:
        if isinstance(indexes, range):
            self._marks = bytearray(indexes.start) + b"\1" * len(indexes)
            return
        self._marks = marks = bytearray(max(indexes, default=-1) + 1)
        for index in indexes:
            marks[index] = 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index < len(self._marks) and bool(self._marks[index])

    def __iter__(self) -> Iterator[int]:
        return compress(count(), self._marks)

    def __len__(self) -> int:
        return self._marks.count(1)


class Waits(Mapping[int, int]):
    """Which entries wait for a confirmation, and of which change: its id, by index; 8 bytes for each while any does."""

    def __init__(self) -> None:
        self._changes = array("Q")
        self._count = 0

    def add(self, indexes: Collection[int], change_id: int) -> None:
        """These wait for this change; none of them has waited before."""
        changes = self._changes
        changes.frombytes(bytes(8 * max(0, max(indexes, default=-1) + 1 - len(changes))))
        for index in indexes:
            changes[index] = change_id
        self._count += len(indexes)

    def end(self, indexes: Collection[int], change_id: int) -> None:
        """Of these, those that wait for this change wait no more."""
        changes = self._changes
        for index in indexes:
            if index < len(changes) and changes[index] == change_id:
                changes[index] = 0
                self._count -= 1
        if not self._count:
            self._changes = array("Q")

    def __getitem__(self, index: int) -> int:
        if index >= len(self._changes) or not self._changes[index]:
            raise KeyError(index)
        return self._changes[index]

    def __iter__(self) -> Iterator[int]:
        return (index for index, change_id in enumerate(self._changes) if change_id)

    def __len__(self) -> int:
        return self._count
