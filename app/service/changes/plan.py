"""The entries that a change writes, in order."""

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, compress
from operator import ne

from app.service.objects.program import Program
from app.store.records import EMPTY, NUMBERS, Indexes


@dataclass(eq=False, slots=True)
class WritePlan:
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
    def one(cls, index: int, before: int | None, program: Program | None, pinned: str | None = None) -> "WritePlan":
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

    def part(self, start: int, stop: int) -> "WritePlan":
        """Those from `start` up to `stop`."""
        indexes, before, after = self.indexes[start:stop], self.before[start:stop], self.after[start:stop]
        return WritePlan(indexes, before, after, self.programs, self.pinned)

    def changing(self) -> "WritePlan":
        """Those that change anything."""
        changes = bytes(map(ne, self.before, self.after))
        return self if 0 not in changes else self.chosen(changes)

    def then_clear(self, indexes: Collection[int], found: "array[int]") -> "WritePlan":
        """These, and then clear those; `found`: what each entry holds, by index."""
        if not indexes:
            return self
        before = self.before + array(NUMBERS, map(found.__getitem__, indexes))
        after = self.after + array(NUMBERS, bytes(4 * len(indexes)))
        return WritePlan(array(NUMBERS, chain(self.indexes, indexes)), before, after, self.programs, self.pinned)

    def without(self, index: int) -> "WritePlan":
        """All but that of this entry."""
        return self.chosen(bytes([each != index for each in self.indexes]))

    def chosen(self, chosen: bytes) -> "WritePlan":
        """Those for which this has a 1."""
        indexes, before, after = (
            array(NUMBERS, compress(numbers, chosen)) for numbers in (self.indexes, self.before, self.after)
        )
        return WritePlan(indexes, before, after, self.programs, self.pinned)
