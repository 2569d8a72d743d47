"""The records that the journal keeps: changes, pending confirmations, events, holds."""

import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pydantic_core import from_json, to_json

from app.store.number_arrays import NUMBERS, as_array

# A program's number stands for the program in arrays of entries. It is one of these:
# - EMPTY: the entry holds no program.
# - The program's id. The kernel gives ids from 1 to INT_MAX - 1.
#   Kernel: bpf_prog_alloc_id() in kernel/bpf/syscall.c, since Linux 4.13.
# - _UNKNOWN_ID_BASE plus a place in a list, for a program of an earlier boot whose present id is not known.
EMPTY: Final = 0
_UNKNOWN_ID_BASE: Final = 1 << 31
_MIN_COMPRESSED_BYTES: Final = 4096  # smaller contents are not worth the time
MAX_BATCH_SIZE: Final = 512  # changes in a batch

ChangeState = Literal["applied", "unconfirmed", "confirmed", "reverted", "expired"]
# The less obvious kinds:
# - expire: undoes a change that nobody confirmed in time.
# - reconcile: writes the expected entries over drift, on request.
# - restore: does the same when the service starts.
# - adopt: makes drift the expected state, on request. It writes nothing to the kernel.
ChangeKind = Literal["set", "clear", "replace", "update", "revert", "expire", "reconcile", "restore", "adopt"]


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A program as it was when it was recorded.

    Attributes:
        name: The name under which the service held it. None if the service did not hold it.
        id: Its id in the kernel. 0 if it was recorded in an earlier boot and its present id is not known.
        tag: The kernel's hash of its instructions, 16 hexadecimal digits. None if unknown.
        pinned: A path in bpffs where it is known to be pinned. None if there is none.
    """

    name: str | None
    id: int
    tag: str | None
    pinned: str | None = None


Indexes: TypeAlias = "array[int] | range"
Programs = dict[int, ProgramRecord]  # by number


def numbered(records: Iterable[ProgramRecord]) -> list[tuple[int, ProgramRecord]]:
    """Give each program its number: its id, or for an unknown id one that depends on its place among `records`."""
    return [(record.id or _UNKNOWN_ID_BASE + place, record) for place, record in enumerate(records)]


@dataclass(frozen=True, slots=True)
class EntryChange:
    """One entry of a change: its index, and its program before and after. None: the entry is empty."""

    index: int
    before: ProgramRecord | None
    after: ProgramRecord | None


@dataclass(slots=True)  # not frozen: creating a frozen dataclass takes three times as long
class EntryChanges:
    """The entries of a change, in the order in which they were written.

    A table may have a million entries, so there is no object for each: three arrays of equal length take 12 bytes for
    each entry. An element of `before` or `after` is EMPTY, or a key of `programs`.

    Example:
        A change puts program 812 into entry 3, which was empty, and empties entry 4, which held program 812:

            indexes  = array("I", [3, 4])
            before   = array("I", [0, 812])
            after    = array("I", [812, 0])
            programs = {812: ProgramRecord("drop", 812, "46728abc63e3a679")}

    Do not modify the arrays: other objects share them.

    Attributes:
        indexes: Indexes of the entries, u32. A range if the entries are consecutive, as in a whole table.
        before: What each entry held.
        after: What each entry holds from this change on.
        programs: The programs that `before` and `after` name, by number.
    """

    indexes: Indexes
    before: "array[int]"
    after: "array[int]"
    programs: Programs
    _packed: bytes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, entries: Iterable[EntryChange]) -> "EntryChanges":
        """Build the arrays from one object for each entry.

        If several records have the same id, the first one is kept.
        """
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

    def chosen(self, mask: bytes) -> "EntryChanges":
        """Return the entries for which the mask has a 1."""
        indexes, before, after = (
            array(NUMBERS, compress(numbers, mask)) for numbers in (self.indexes, self.before, self.after)
        )
        return EntryChanges(indexes, before, after, self.programs)

    def part(self, start: int, stop: int) -> "EntryChanges":
        """Return the entries between two places, as slices do."""
        return EntryChanges(self.indexes[start:stop], self.before[start:stop], self.after[start:stop], self.programs)

    def undone(self) -> "EntryChanges":
        """The entries of the change that undoes this one: `before` and `after` are swapped."""
        return EntryChanges(self.indexes, self.after, self.before, self.programs)

    def pack(self) -> None:
        """Compute what `packed` returns, and keep it. This takes the work out of a time-critical moment."""
        self._packed = self.packed()

    def packed(self) -> bytes:
        """The journal's format: a line of JSON with the programs, then the three arrays. See also `compressed`."""
        if self._packed is not None:
            return self._packed
        programs = [(each.name, each.id, each.tag, each.pinned) for each in self.programs.values()]
        return b"".join((to_json(programs), b"\n", as_array(self.indexes), self.before, self.after))

    @staticmethod
    def compressed(content: bytes) -> bytes:
        """Return what `packed` returned as the journal keeps it for long: from 4096 bytes on, compressed by zlib.

        For 65,536 entries this takes 6 ms.
        """
        is_small = len(content) < _MIN_COMPRESSED_BYTES or not content.startswith(b"[")
        return content if is_small else zlib.compress(content, 1)

    @classmethod
    def unpacked(cls, content: bytes) -> "EntryChanges":
        """Read the format that `packed` or `compressed` returns."""
        if not content.startswith(b"["):
            content = zlib.decompress(content)
        start = content.index(b"\n") + 1
        numbers = array(NUMBERS, content[start:])
        count = len(numbers) // 3
        programs = dict(numbered(ProgramRecord(*each) for each in from_json(content[:start])))
        return cls(numbers[:count], numbers[count : 2 * count], numbers[2 * count :], programs)

    @staticmethod
    def has_index(content: bytes, index: int) -> bool:
        """Whether the entry with this index is in what `packed` or `compressed` returned. Quicker than `unpacked`."""
        if not content.startswith(b"["):
            content = zlib.decompress(content)
        start = content.index(b"\n") + 1
        return index in array(NUMBERS, content[start : start + (len(content) - start) // 3])


@dataclass(slots=True)  # not frozen: creating a frozen dataclass takes three times as long
class Change:
    """A change of entries of one map.

    Attributes:
        map: The map's name in the service.
        map_id: The id of its array in the kernel. It means something only in the boot `boot_id`.
        boot_id: The boot in which the change was made, from /proc/sys/kernel/random/boot_id. Ids of programs also
            belong to this boot.
        kind: What made the change.
        entries: The entries, before and after.
        at: When it was made, in seconds since 1970.
        actor: Who made it.
        request_id: The request that made it.
        note: The caller's note.
        state: What has become of it.
        reverts: The id of the change that this one undoes.
        confirm_by: When it is undone unless it is confirmed, in seconds since 1970. None: it stands without that.
        confirmed_by: Who confirmed it. None: nobody.
        confirmed_at: When somebody confirmed it, in seconds since 1970.
        id: Its place in the journal, from 1 on; 0 until it is journalled.
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
    confirmed_by: str | None = None
    confirmed_at: float | None = None
    id: int = 0

    @property
    def entry_count(self) -> int:
        """How many entries it has."""
        return len(self.entries)


class EntryWrite(NamedTuple):
    """A change of one entry by one overwrite, as a batch of them is journalled.

    Attributes:
        map: The map's name in the service.
        map_id: The id of its array in the kernel.
        entry: The index of the entry, u32.
        before: The id of the program that it held, or EMPTY.
        after: The id of the program that it holds now.
        actor: Who made it.
        request_id: The request that made it.
        note: The caller's note.
    """

    map: str
    map_id: int
    entry: int
    before: int
    after: int
    actor: str
    request_id: str
    note: str | None = None


@dataclass(eq=False, slots=True)
class Batch:
    """Changes of single entries that were made at the same moment, and share one row of the journal.

    A Change takes ten times as long to make as an EntryWrite, and most are never asked for. So they are made when
    somebody reads them.

    Attributes:
        at: When they were made, in seconds since 1970.
        boot_id: The boot in which they were made.
        programs: The programs that the writes name, by id.
        writes: In their order.
        last_id: The id of the last change. The others have the ids before it. 0 until it is journalled.
        last_event: The id of the event of the last change.
    """

    at: float
    boot_id: str
    programs: Programs
    writes: Sequence[EntryWrite]
    last_id: int = 0
    last_event: int = 0

    @property
    def first_id(self) -> int:
        """The id of the first change."""
        return self.last_id - len(self.writes) + 1

    def change(self, id_: int) -> "Change":
        """Return one of the changes."""
        write = self.writes[id_ - self.first_id]
        before, after = array(NUMBERS, (write.before,)), array(NUMBERS, (write.after,))
        programs = {number: self.programs[number] for number in (write.before, write.after) if number != EMPTY}
        return Change(
            write.map,
            write.map_id,
            self.boot_id,
            "set",
            EntryChanges(array(NUMBERS, (write.entry,)), before, after, programs),
            self.at,
            write.actor,
            write.request_id,
            write.note,
            id=id_,
        )

    def changes(self) -> list[tuple["Change", int]]:
        """Return the changes, and the id of the event of each."""
        to_event = self.last_event - self.last_id
        return [(self.change(id_), id_ + to_event) for id_ in range(self.first_id, self.last_id + 1)]

    def events(self) -> list["Event"]:
        """Return the events of the changes."""
        return [Event(event, "change", change.map, change) for change, event in self.changes()]

    def packed(self) -> bytes:
        """Return the journal's format: JSON with a list of the programs, and a list of the writes."""
        programs = [(each.name, each.id, each.tag, each.pinned) for each in self.programs.values()]
        return to_json((programs, self.writes))

    @classmethod
    def unpacked(cls, last_id: int, last_event: int, at: float, boot_id: str, content: bytes) -> "Batch":
        """Read a row of the journal. `content`: the format that `packed` returns."""
        programs, writes = from_json(content)
        records = {record.id: record for record in (ProgramRecord(*each) for each in programs)}
        return cls(at, boot_id, records, [EntryWrite(*each) for each in writes], last_id, last_event)


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes are wanted. None: every value.

    Attributes:
        maps: The names of their maps.
        index: The index of an entry that they wrote.
        state: Their state.
        actor: Who made them.
        kind: What made them.
        request_id: The request that made them.
        since: The earliest time, in seconds since 1970.
        until: The time that they are before, in seconds since 1970.
    """

    maps: Sequence[str] | None = None
    index: int | None = None
    state: ChangeState | None = None
    actor: str | None = None
    kind: ChangeKind | None = None
    request_id: str | None = None
    since: float | None = None
    until: float | None = None


EVERY_CHANGE: Final = ChangeFilter()


@dataclass(frozen=True, slots=True)
class PendingConfirmation:
    """A change that the service undoes unless somebody confirms it.

    It is stored before the first write to the kernel, so that a service that is killed in between can undo the change
    when it starts again.

    Attributes:
        token: Identifies it while the change has no id.
        change: The change. Its id is 0 while it is being written.
        deadline: When it is undone, in seconds of CLOCK_BOOTTIME in the boot of the change.
        undo_pins: (program id, path) of each pin that the service made for the undo.
        after: The id of the last change that was journalled before this one began.
    """

    token: str
    change: Change
    deadline: float
    undo_pins: tuple[tuple[int, str], ...] = ()
    after: int = 0


@dataclass(eq=False, slots=True)
class Event:
    """Something that happened.

    Attributes:
        id: Its place in the sequence of events, from 1 on.
        type: What happened.
        map: The name of the map that it concerns. None for an event of a program.
        change: The change, for the types change, confirmed and expired.
        data: The facts, for other types, and for the confirmation or expiry of a change that was pruned.
    """

    id: int
    type: Literal["change", "confirmed", "expired", "drift", "map", "program"]
    map: str | None
    change: Change | None = None
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A map or program that the service holds because a request asked for it.

    Attributes:
        kind: Which of the two it is.
        name: Its name in the service.
        pinned: The path in bpffs by which it is opened. None if it is opened by id.
        object_id: The id in the kernel by which it is opened. It means something only in the boot `boot_id`. None if it
            is opened by path.
        boot_id: The boot in which it was held.
        create_entries: For a map that the service creates if it does not exist: its number of entries.
    """

    kind: Literal["map", "program"]
    name: str
    pinned: str | None
    object_id: int | None
    boot_id: str
    create_entries: int | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """The array in the kernel that a map's expected entries belong to: its id, and the boot of that id."""

    map_id: int
    boot_id: str
