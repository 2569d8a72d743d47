"""The packed formats of changes and of expected tables."""

import random
from array import array
from dataclasses import replace

from app.store.expected import PackedTable
from app.store.records import EntryChange, EntryChanges, ProgramRecord
from tests.store.tables import entries_of, table_of

PROGRAMS = [ProgramRecord(f"p{id_}", id_, f"{id_:016x}", None if id_ % 2 else f"/pins/{id_}") for id_ in range(1, 300)]
LOST = [ProgramRecord(f"lost{number}", 0, f"{number:016x}", "/pins/lost") for number in range(3)]


class TestEntryChanges:
    def test_unpacking_returns_what_was_packed(self) -> None:
        chosen = random.Random(1)
        for count in (0, 1, 2, 300, 5000):
            choice = [None, *PROGRAMS, *LOST]
            entries = [EntryChange(index, chosen.choice(choice), chosen.choice(choice)) for index in range(count)]
            changes = EntryChanges.of(entries)
            assert list(changes) == entries
            assert EntryChanges.unpacked(changes.packed()) == changes
            assert list(changes.undone()) == [EntryChange(each.index, each.after, each.before) for each in entries]
            changes.pack()
            assert EntryChanges.unpacked(changes.packed()) == changes, "also if it was packed in advance"

    def test_a_range_of_indexes_unpacks_to_the_same_indexes(self) -> None:
        ids = array("I", [1] * 4000)
        changes = EntryChanges(range(2, 4002), ids, ids, {1: PROGRAMS[0]})
        assert [each.index for each in EntryChanges.unpacked(changes.packed())] == list(range(2, 4002))

    def test_a_compressed_table_takes_less_than_4_bytes_for_each_entry(self) -> None:
        """A change of 65,536 entries, each from one program to another."""
        before, after = (array("I", [812 + (index + turn) % 3 for index in range(65_536)]) for turn in (0, 1))
        programs = {id_: replace(PROGRAMS[0], id=id_) for id_ in (812, 813, 814)}
        packed = EntryChanges(range(65_536), before, after, programs).packed()
        compressed = EntryChanges.compressed(packed)
        assert len(compressed) < 4 * 65_536
        assert EntryChanges.unpacked(compressed) == EntryChanges.unpacked(packed)
        assert EntryChanges.has_index(compressed, 65_535)
        assert EntryChanges.compressed(compressed) is compressed


class TestPackedTable:
    def test_programs_of_other_boots_have_no_id(self) -> None:
        first, again, other = PROGRAMS[0], replace(PROGRAMS[0], name="renamed"), PROGRAMS[1]
        table = PackedTable(*PackedTable.of(table_of({1: first, 70_000: other}), "one").packed())
        table.apply(EntryChanges.of([EntryChange(1, first, None), EntryChange(2, None, first)]), "one")
        table.apply(EntryChanges.of([EntryChange(3, None, again)]), "one")
        table.apply(EntryChanges.of([EntryChange(4, None, first)]), "two")
        kept = PackedTable(*table.packed())
        unknown = {2: replace(first, id=0), 3: replace(again, id=0), 70_000: replace(other, id=0)}
        assert entries_of(kept.table("two")) == unknown | {4: first}
        assert entries_of(kept.table("one")) == {2: again, 3: again, 4: replace(first, id=0), 70_000: other}, (
            "the last name of a program counts"
        )

    def test_unused_programs_are_removed(self) -> None:
        table = PackedTable.of(table_of({1: PROGRAMS[0]}), "one")
        for program in PROGRAMS:
            table.apply(EntryChanges.of([EntryChange(1, None, program)]), "one")
        programs, _ = table.packed()
        assert programs.count("p") == 1
        assert entries_of(PackedTable(*table.packed()).table("one")) == {1: PROGRAMS[-1]}


class TestTable:
    def test_resizing_cuts_off_or_adds_empty_entries(self) -> None:
        table = table_of({1: PROGRAMS[0], 5: PROGRAMS[1]})
        assert [len(table.resized(length).numbers) for length in (0, 3, 6, 100)] == [0, 3, 6, 100]
        assert entries_of(table.resized(3)) == {1: PROGRAMS[0]}
        assert entries_of(table.resized(100)) == {1: PROGRAMS[0], 5: PROGRAMS[1]}
