"""Expected tables: what the entries of each map hold if nobody but the service writes to it."""

from array import array
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Final

from pydantic_core import from_json, to_json

from app.store.database import Database
from app.store.number_arrays import NUMBERS, as_range, distinct, mapped
from app.store.records import EMPTY, Array, Batch, EntryChanges, Indexes, ProgramRecord, Programs, numbered

_UNAPPLIED_ROWS: Final = """
    SELECT id, boot_id, map, entries,
        CASE kind WHEN 'expire' THEN (SELECT entries FROM changes AS undone WHERE undone.id = changes.reverts) END
    FROM changes WHERE id > (SELECT folded FROM bookmarks)
    UNION ALL SELECT id, boot_id, NULL, content, NULL FROM batches WHERE id > (SELECT folded FROM bookmarks)
    ORDER BY id LIMIT ?
"""
# The name of a map is in its batches as JSON. A few more batches may have the same text; that does no harm.
_HAS_UNAPPLIED: Final = """
    SELECT EXISTS (SELECT 1 FROM changes WHERE id > (SELECT folded FROM bookmarks) AND map = ?)
        OR EXISTS (SELECT 1 FROM batches WHERE id > (SELECT folded FROM bookmarks) AND instr(content, ?))
"""


@dataclass(slots=True)
class Table:
    """The expected entries of one map, for use in this boot.

    A table may have a million entries, so an entry is one number of 4 bytes, not an object. In most cases the number is
    the program's id in the kernel, so it can be compared directly with what the kernel reports. A program of an earlier
    boot whose present id is not known has no such id. It gets a number from 2^31 on, which the kernel never uses, and
    its record has the id 0.

    Attributes:
        numbers: By index, u32: a key of `programs`, or EMPTY.
        programs: The programs, by number.
    """

    numbers: "array[int]"
    programs: Programs

    def resized(self, length: int) -> "Table":
        """A copy with `length` entries: cut off, or filled up with empty entries."""
        numbers = self.numbers[:length]
        numbers.frombytes(bytes(4 * (length - len(numbers))))
        return Table(numbers, self.programs)

    def get(self, index: int) -> ProgramRecord | None:
        """The program that this entry is expected to hold. None: it is expected to be empty."""
        return self.programs.get(self.numbers[index])


class PackedTable:
    """A Table in the journal's format.

    The journal outlives a boot, and a program's id does not. So an entry's number is not an id here, but the place of
    its program in a list, from 1 on; EMPTY: no program. Each program in the list comes with the boot that its id
    belongs to.
    """

    def __init__(self, programs: str = "[]", numbers: bytes = b"") -> None:
        """Read the format that `packed` returns. Without arguments: a table without entries."""
        self._numbers = array(NUMBERS, numbers)
        stored = enumerate(from_json(programs), 1)
        self._places = {(ProgramRecord(*record), boot_id): place for place, (*record, boot_id) in stored}
        self._stored_programs = len(self._places)

    @classmethod
    def of(cls, table: Table, boot_id: str) -> "PackedTable":
        """Pack a table that was made in this boot."""
        packed = cls()
        packed._put(range(len(table.numbers)), table.numbers, table.programs, boot_id)
        return packed

    def apply(self, entries: EntryChanges, boot_id: str) -> None:
        """Apply a change that was made in this boot. The table grows if the change names an entry beyond its end."""
        self._put(entries.indexes, entries.after, entries.programs, boot_id)

    def _put(self, indexes: Indexes, numbers: "array[int]", programs: Programs, boot_id: str) -> None:
        place_of = {EMPTY: EMPTY}
        for number, record in programs.items():
            place_of[number] = self._places.setdefault((record, boot_id), len(self._places) + 1)
        table = self._numbers
        together = as_range(indexes)
        stop = max(indexes, default=-1) + 1 if together is None else together.stop
        table.frombytes(bytes(4 * max(0, stop - len(table))))
        if together is not None:  # assigning a slice takes a small part of the time
            table[together.start : together.stop] = mapped(numbers, place_of)
            return
        for index, number in zip(indexes, numbers, strict=True):
            table[index] = place_of[number]

    def packed(self) -> tuple[str, bytes]:
        """The journal's format: the list of programs as JSON, and the numbers.

        Programs that no entry uses are removed, but only after the list has about doubled: this has to look at every
        entry.
        """
        if len(self._places).bit_length() > self._stored_programs.bit_length():
            self._remove_unused_programs()
        programs = [(each.name, each.id, each.tag, each.pinned, boot_id) for each, boot_id in self._places]
        return to_json(programs).decode(), self._numbers.tobytes()

    def _remove_unused_programs(self) -> None:
        used = sorted(distinct(self._numbers) - {EMPTY})
        new_place = {EMPTY: EMPTY} | {place: number for number, place in enumerate(used, 1)}
        self._places = {program: new_place[place] for program, place in self._places.items() if place in new_place}
        self._numbers = mapped(self._numbers, new_place)

    def table(self, boot_id: str) -> Table:
        """Unpack it for use in this boot. Records of programs of another boot get the id 0."""
        records = [record if boot == boot_id else replace(record, id=0) for record, boot in self._places]
        programs = numbered(records)
        number_of = [EMPTY, *(number for number, _ in programs)]
        return Table(mapped(self._numbers, dict(enumerate(number_of))), dict(programs))


class ExpectedTables:
    """The expected tables in the journal's file, by map.

    A stored table is a checkpoint: the entries as of some change. `bookmarks.folded` is the id of that change, the same
    for all tables. `checkpoint` applies the changes after it.

    The methods that write (`save`, `remove`, `checkpoint`) must run inside a transaction of the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, map_: str, boot_id: str) -> tuple[Array, Table] | None:
        """Read the table of a map as of the last checkpoint, for use in this boot, and the array that it belongs to.

        Returns None if the map has no table.

        Raises:
            JournalFailed: The file cannot be read.
        """
        identity = self._database.read("SELECT map_id, boot_id FROM arrays WHERE map = ?", [map_]).fetchone()
        if identity is None:
            return None
        packed = self._database.read("SELECT programs, numbers FROM recorded WHERE map = ?", [map_]).fetchone()
        return Array(*identity), PackedTable(*packed).table(boot_id)

    def save(self, map_: str, identity: Array, packed: tuple[str, bytes]) -> None:
        """Store the table of a map, as `PackedTable.packed` returns it, and the array that it belongs to.

        Replaces what was stored of this map.
        """
        self.remove(map_)
        self._database.writer.execute("INSERT INTO arrays VALUES (?,?,?)", (map_, *astuple(identity)))
        self._database.writer.execute("INSERT INTO recorded VALUES (?,?,?)", (map_, *packed))

    def remove(self, map_: str) -> None:
        """Delete the table of a map."""
        if self._database.writer.execute(_HAS_UNAPPLIED, (map_, to_json(map_))).fetchone()[0]:
            self.checkpoint()  # so that earlier changes do not bring it back
        self._database.writer.execute("DELETE FROM arrays WHERE map = ?", (map_,))
        self._database.writer.execute("DELETE FROM recorded WHERE map = ?", (map_,))

    def is_behind(self, map_: str) -> bool:
        """Tell whether a map may have changes that are not in its stored table yet.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return bool(self._database.read(_HAS_UNAPPLIED, (map_, to_json(map_))).fetchone()[0])

    def checkpoint(self, max_changes: int = -1, max_entries: int = 1 << 62) -> None:
        """Apply changes that are not in the stored tables yet, the oldest first. Compress those that are large.

        Args:
            max_changes: Stop after so many changes. Negative: no limit.
            max_entries: Stop after the change that reaches so many entries.
        """
        execute, tables, applied = self._database.writer.execute, _StoredTables(self._database), 0
        smaller: list[tuple[bytes, int]] = []
        with closing(execute(_UNAPPLIED_ROWS, (max_changes,))) as rows:
            for id_, boot_id, map_, packed, expired in rows:
                if map_ is None:
                    max_entries -= tables.gather(boot_id, packed)
                else:
                    tables.apply_gathered()
                    # What has expired counts for nothing, also where another tool's write was left in its place.
                    undone = None if expired is None else EntryChanges.unpacked(expired).undone()
                    entries = undone or EntryChanges.unpacked(packed)
                    tables[map_].apply(entries, boot_id)
                    max_entries -= len(entries)
                    compressed = EntryChanges.compressed(packed)
                    if compressed is not packed:
                        smaller.append((compressed, id_))
                applied = id_
                if max_entries <= 0:
                    break
        tables.apply_gathered()
        for map_, table in tables.items():
            execute("INSERT OR REPLACE INTO recorded VALUES (?,?,?)", (map_, *table.packed()))
        self._database.writer.executemany("UPDATE changes SET entries = ? WHERE id = ?", smaller)
        execute("UPDATE bookmarks SET folded = max(folded, ?)", (applied,))


class _StoredTables(dict[str, PackedTable]):
    """The stored tables by map, each read when it is asked for.

    Batches are gathered before they are applied, as most of what they write is overwritten by the next ones.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gathered: dict[str, dict[int, int]] = {}  # by map: the id of the program of each entry
        self._programs: Programs = {}
        self._boot_id = ""

    def __missing__(self, map_: str) -> PackedTable:
        query = "SELECT programs, numbers FROM recorded WHERE map = ?"
        stored = self._database.writer.execute(query, [map_]).fetchone()
        self[map_] = PackedTable(*stored or ())
        return self[map_]

    def gather(self, boot_id: str, content: bytes) -> int:
        """Gather a row of `batches`, which come in their order. Returns the number of its entries."""
        if boot_id != self._boot_id:
            self.apply_gathered()
            self._boot_id = boot_id
        batch = Batch.unpacked(0, 0, 0.0, boot_id, content)
        self._programs |= batch.programs
        for write in batch.writes:
            self._gathered.setdefault(write.map, {})[write.entry] = write.after
        return len(batch.writes)

    def apply_gathered(self) -> None:
        """Apply what was gathered."""
        for map_, entries in self._gathered.items():
            indexes, after = (array(NUMBERS, numbers) for numbers in (entries.keys(), entries.values()))
            named = {id_: self._programs[id_] for id_ in set(after)}
            self[map_].apply(EntryChanges(indexes, after, after, named), self._boot_id)
        self._gathered, self._programs = {}, {}
