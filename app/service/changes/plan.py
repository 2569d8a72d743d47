"""What a change is going to write: which entries, in which order, and what they hold before and after."""

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, compress

from app.service.changes.origin import RequestContext
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.store.number_arrays import NUMBERS, distinct
from app.store.records import EMPTY, Change, ChangeKind, EntryChanges, Indexes, ProgramRecord


@dataclass(eq=False, slots=True)
class WritePlan:
    """The writes of one change, in order, as parallel arrays: a table may have a million of them.

    Attributes:
        indexes: The entries, u32: an array, or a range.
        before: For each, the id of the program that it holds, or EMPTY.
        after: For each, the id of the program that it is to hold, or EMPTY to clear it.
        programs: The programs that are put in, by id. They stay open until the change is over.
        pinned: The path by which the request names a program, by the program's id.

    The arrays are shared and never changed.
    """

    indexes: Indexes
    before: "array[int]"
    after: "array[int]"
    programs: Mapping[int, Program]
    pinned: dict[int, str]
    _cleared: int | None = None
    _replaced: frozenset[int] | None = None

    @classmethod
    def one(cls, index: int, before: int | None, program: Program | None, pinned: str | None = None) -> "WritePlan":
        """Return the plan that writes one entry.

        Args:
            index: The entry, u32.
            before: The id of the program that it holds. None: it is empty.
            program: The program that it is to hold. None: clear it.
            pinned: The path by which the request names the program.
        """
        after = EMPTY if program is None else program.id
        return cls(
            array(NUMBERS, (index,)),
            array(NUMBERS, (before or EMPTY,)),
            array(NUMBERS, (after,)),
            {} if program is None else {after: program},
            {} if pinned is None else {after: pinned},
        )

    def __len__(self) -> int:
        return len(self.indexes)

    @property
    def cleared(self) -> int:
        """How many entries it leaves empty."""
        if self._cleared is None:
            self._cleared = self.after.count(EMPTY)
        return self._cleared

    @property
    def replaced(self) -> frozenset[int]:
        """The ids of the programs that it overwrites or clears."""
        if self._replaced is None:
            self._replaced = distinct(self.before) - {EMPTY}
        return self._replaced

    def to_change(
        self,
        map_: tuple[str, int, str],
        kind: ChangeKind,
        records: dict[int, ProgramRecord],
        context: RequestContext,
        at: float,
        reverts: int | None,
    ) -> Change:
        """Return the record of this plan for the journal.

        Args:
            map_: The map's name, the array's id, and the id of this boot.
            kind: What sort of change it is.
            records: Of every program in `before` and `after`, by id.
            context: Who asks for it.
            at: Seconds since 1970.
            reverts: The id of the change that it undoes.
        """
        name, map_id, boot_id = map_
        return Change(
            map=name,
            map_id=map_id,
            boot_id=boot_id,
            kind=kind,
            entries=EntryChanges(self.indexes, self.before, self.after, records),
            at=at,
            actor=context.actor,
            request_id=context.request_id,
            note=context.note,
            state="applied" if context.confirm_within is None else "unconfirmed",
            reverts=reverts,
            confirm_by=None if context.confirm_within is None else at + context.confirm_within,
        )

    def part(self, start: int, stop: int) -> "WritePlan":
        """Return the writes from `start` up to `stop`."""
        indexes, before, after = self.indexes[start:stop], self.before[start:stop], self.after[start:stop]
        return WritePlan(indexes, before, after, self.programs, self.pinned)

    def changing(self) -> "WritePlan":
        """Return the writes that change anything."""
        # As one large number each, two arrays are compared five times as fast as element by element.
        before, after = (int.from_bytes(each.tobytes(), "little") for each in (self.before, self.after))
        differences = array(NUMBERS, (before ^ after).to_bytes(4 * len(self), "little"))
        return self if 0 not in differences else self.chosen(bytes(map(bool, differences)))

    def then_clear(self, indexes: Collection[int], found: "array[int]") -> "WritePlan":
        """Return these writes, followed by the clearing of `indexes`.

        Args:
            indexes: The entries to clear, in order.
            found: What every entry of the table holds, by index.
        """
        if not indexes:
            return self
        before = self.before + array(NUMBERS, map(found.__getitem__, indexes))
        after = self.after + array(NUMBERS, bytes(4 * len(indexes)))
        return WritePlan(array(NUMBERS, chain(self.indexes, indexes)), before, after, self.programs, self.pinned)

    def without(self, index: int) -> "WritePlan":
        """Return the plan without the writes of one entry."""
        return self.chosen(bytes([each != index for each in self.indexes]))

    def chosen(self, mask: bytes) -> "WritePlan":
        """Return the writes for which the mask has a 1."""
        indexes, before, after = (
            array(NUMBERS, compress(numbers, mask)) for numbers in (self.indexes, self.before, self.after)
        )
        return WritePlan(indexes, before, after, self.programs, self.pinned)


@dataclass(eq=False, slots=True)
class PreparedChange:
    """A change that nothing forbids, from before its first write until it is journalled.

    Attributes:
        held: The map.
        plan: What is written.
        change: The record for the journal. Its id is 0 until it is journalled.
        replaced: The programs that it replaces, kept open, by id.
        expects: What is expected of entries from now on, where that is more than the change writes. None: it is not.
    """

    held: HeldMap
    plan: WritePlan
    change: Change
    replaced: dict[int, Program]
    expects: EntryChanges | None = None
