"""Changes and tables as arrays of numbers."""

import random
from array import array
from dataclasses import replace

from app.store.expected import PackedTable
from app.store.records import EntryChange, EntryChanges, ProgramRecord
from tests.store.tables import entries_of, table_of

PROGRAMS = [ProgramRecord(f"p{id_}", id_, f"{id_:016x}", None if id_ % 2 else f"/pins/{id_}") for id_ in range(1, 300)]
LOST = [ProgramRecord(f"lost{number}", 0, f"{number:016x}", "/pins/lost") for number in range(3)]


class TestEntryChanges:
    def test_packed_and_unpacked_it_is_the_same(self) -> None:
        chosen = random.Random(1)
        for count in (0, 1, 2, 300, 5000):
            choice = [None, *PROGRAMS, *LOST]
            entries = [EntryChange(index, chosen.choice(choice), chosen.choice(choice)) for index in range(count)]
            changes = EntryChanges.of(entries)
            assert list(changes) == entries
            assert EntryChanges.unpacked(changes.packed()) == changes
            assert list(changes.undone()) == [EntryChange(each.index, each.after, each.before) for each in entries]
            changes.pack()
            assert EntryChanges.unpacked(changes.packed()) == changes, "also where it was made ready"

    def test_a_range_is_packed_as_its_indexes(self) -> None:
        ids = array("I", [1] * 4000)
        changes = EntryChanges(range(2, 4002), ids, ids, {1: PROGRAMS[0]})
        assert [each.index for each in EntryChanges.unpacked(changes.packed())] == list(range(2, 4002))

    def test_a_whole_table_is_small(self) -> None:
        """One of 65,536 entries, each with another program than before: less than 4 bytes for each."""
        before, after = (array("I", [812 + (index + turn) % 3 for index in range(65_536)]) for turn in (0, 1))
        programs = {id_: replace(PROGRAMS[0], id=id_) for id_ in (812, 813, 814)}
        assert len(EntryChanges(range(65_536), before, after, programs).packed()) < 4 * 65_536


class TestRecording:
    def test_by_changes_of_several_boots(self) -> None:
        first, again, other = PROGRAMS[0], replace(PROGRAMS[0], name="renamed"), PROGRAMS[1]
        recording = PackedTable(*PackedTable.of(table_of({1: first, 70_000: other}), "one").packed())
        recording.apply(EntryChanges.of([EntryChange(1, first, None), EntryChange(2, None, first)]), "one")
        recording.apply(EntryChanges.of([EntryChange(3, None, again)]), "one")
        recording.apply(EntryChanges.of([EntryChange(4, None, first)]), "two")
        kept = PackedTable(*recording.packed())
        unknown = {2: replace(first, id=0), 3: replace(again, id=0), 70_000: replace(other, id=0)}
        assert entries_of(kept.table("two")) == unknown | {4: first}
        assert entries_of(kept.table("one")) == {2: again, 3: again, 4: replace(first, id=0), 70_000: other}, (
            "a program has one name, the last"
        )

    def test_programs_that_no_entry_is_to_hold_are_forgotten(self) -> None:
        recording = PackedTable.of(table_of({1: PROGRAMS[0]}), "one")
        for program in PROGRAMS:
            recording.apply(EntryChanges.of([EntryChange(1, None, program)]), "one")
        programs, _ = recording.packed()
        assert programs.count("p") == 1
        assert entries_of(PackedTable(*recording.packed()).table("one")) == {1: PROGRAMS[-1]}

    def test_an_array_of_another_size(self) -> None:
        table = table_of({1: PROGRAMS[0], 5: PROGRAMS[1]})
        assert [len(table.resized(length).numbers) for length in (0, 3, 6, 100)] == [0, 3, 6, 100]
        assert entries_of(table.resized(3)) == {1: PROGRAMS[0]}
        assert entries_of(table.resized(100)) == {1: PROGRAMS[0], 5: PROGRAMS[1]}
