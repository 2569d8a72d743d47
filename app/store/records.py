"""What the journal keeps, as plain frozen records."""

import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from pydantic_core import from_json, to_json

# Of programs: an id is one that the kernel has given; 0: no program. Those of an earlier boot, whose id is not known
# any more, have numbers from 2^31 on, which the kernel gives to none (bpf_prog_alloc_id: below INT_MAX).
EMPTY: Final = 0
NUMBERS: Final = "I"  # the type of arrays of them, and of indexes: u32
_UNKNOWN: Final = 1 << 31
_COMPRESSED_FROM: Final = 4096  # bytes

ChangeState = Literal["applied", "unconfirmed", "confirmed", "reverted", "expired"]
# `expire`: undone, as nobody confirmed it; `reconcile`, `restore`: drift was written over with what is recorded, at a
# caller's wish or at the start; `adopt`: drift was taken as what is to be.
ChangeKind = Literal["set", "clear", "replace", "update", "revert", "expire", "reconcile", "restore", "adopt"]


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A program as it was when it was recorded. `pinned`: a path it is known by; None where there is none.

    `id` 0: it was recorded in an earlier boot, and which one it is now is not known.
    """

    name: str | None
    id: int
    tag: str | None
    pinned: str | None = None


Indexes: TypeAlias = "array[int] | range"
Programs = dict[int, ProgramRecord]  # by number


def numbered(records: Iterable[ProgramRecord]) -> list[tuple[int, ProgramRecord]]:
    """Each program with its number: the id, or else by its place among these."""
    return [(record.id or _UNKNOWN + place, record) for place, record in enumerate(records)]


@dataclass(frozen=True, slots=True)
class EntryChange:
    """One entry of a change. None: empty."""

    index: int
    before: ProgramRecord | None
    after: ProgramRecord | None


@dataclass(slots=True)  # as good as frozen, but made in a third of the time
class EntryChanges:
    """The entries of a change, in the order in which they were written: 12 bytes for each, as a table has many.

    `indexes`: an array, or a range; `before`, `after`: numbers in `programs`, or EMPTY. The arrays are never changed.
    """

    indexes: Indexes
    before: "array[int]"
    after: "array[int]"
    programs: Programs
    _packed: bytes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, entries: Iterable[EntryChange]) -> "EntryChanges":
        """From one object for each. Of programs with the same id the first counts."""
        entries = list(entries)
        both = [record for entry in entries for record in (entry.before, entry.after) if record is not None]
        distinct = {record.id or record: record for record in reversed(both)}
        programs = dict(numbered(distinct.values()))
        number = dict(zip(distinct, programs, strict=True))

        def numbers(records: Iterable[ProgramRecord | None]) -> "array[int]":
            return array(NUMBERS, [EMPTY if each is None else number[each.id or each] for each in records])

        return cls(
            array(NUMBERS, [entry.index for entry in entries]),
            numbers(entry.before for entry in entries),
            numbers(entry.after for entry in entries),
            programs,
        )

    def __len__(self) -> int:
        return len(self.indexes)

    def __iter__(self) -> Iterator[EntryChange]:
        get = self.programs.get
        for index, before, after in zip(self.indexes, self.before, self.after, strict=True):
            yield EntryChange(index, get(before), get(after))

    def undone(self) -> "EntryChanges":
        """The same, the other way round."""
        return EntryChanges(self.indexes, self.after, self.before, self.programs)

    def pack(self) -> None:
        """Make ready what `packed` is to return."""
        self._packed = self.packed()

    def packed(self) -> bytes:
        """As the journal keeps it: the programs as a line of JSON, then the arrays; a large one compressed."""
        if self._packed is not None:
            return self._packed
        programs = [(each.name, each.id, each.tag, each.pinned) for each in self.programs.values()]
        indexes = array(NUMBERS, self.indexes) if isinstance(self.indexes, range) else self.indexes
        content = b"".join((to_json(programs), b"\n", indexes, self.before, self.after))
        return content if len(content) < _COMPRESSED_FROM else zlib.compress(content, 1)

    @classmethod
    def unpacked(cls, content: bytes) -> "EntryChanges":
        """The opposite of `packed`."""
        if not content.startswith(b"["):
            content = zlib.decompress(content)
        start = content.index(b"\n") + 1
        numbers = array(NUMBERS, content[start:])
        count = len(numbers) // 3
        programs = dict(numbered(ProgramRecord(*each) for each in from_json(content[:start])))
        return cls(numbers[:count], numbers[count : 2 * count], numbers[2 * count :], programs)


NO_ENTRIES: Final = EntryChanges.of(())


@dataclass(slots=True)  # not frozen, as making a frozen one takes three times as long
class Change:
    """A change of entries. `at`, `confirm_by`: seconds since 1970; `reverts`: what it undoes; `id`: 0 until journalled.

    `map_id` and `boot_id` tell which array it was: ids, also those of programs, mean nothing beyond their boot.
    """

    map: str
    map_id: int
    boot_id: str
    kind: ChangeKind
    entries: EntryChanges
    at: float
    actor: str
    request_id: str
    note: str | None = None
    state: ChangeState = "applied"
    reverts: int | None = None
    confirm_by: float | None = None
    id: int = 0


def expire(change: Change, at: float, actor: str) -> Change:
    """The change that undoes one that nobody has confirmed."""
    return replace(
        change, id=0, kind="expire", entries=change.entries.undone(), at=at, actor=actor, note=None, state="applied",
        reverts=change.id, confirm_by=None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PendingConfirmation:
    """A change that is undone unless it is confirmed; `change.id` 0: it was still being written.

    `after`: the last change that was journalled before it;
    `deadline`: seconds of CLOCK_BOOTTIME, in the boot of the change; `keeps`: (program id, path) of the pins that were
    made for the undo; `token`: its name until it has an id.
    """

    token: str
    change: Change
    deadline: float
    undo_pins: tuple[tuple[int, str], ...] = ()
    after: int = 0


@dataclass(eq=False, slots=True)
class Event:
    """Something that happened. `change`: of `change`, `confirmed`, `expired`; `data`: what is told of others."""

    id: int
    type: Literal["change", "confirmed", "expired", "drift", "map", "program"]
    map: str | None
    change: Change | None = None
    data: dict[str, Any] | None = None

    @property
    def weight(self) -> int:
        """How large it is: of a table with many entries as many as they are."""
        return 1 + (0 if self.change is None else len(self.change.entries))


@dataclass(frozen=True, slots=True)
class Hold:
    """A map or a program that a request had held. `object_id` means nothing beyond the boot."""

    kind: Literal["map", "program"]
    name: str
    pinned: str | None
    object_id: int | None
    boot_id: str
    create_entries: int | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """The array that the recorded entries of a map are of."""

    map_id: int
    boot_id: str
