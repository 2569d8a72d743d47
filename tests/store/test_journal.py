"""The journal: what it returns, what survives a kill, how it fails, and how it is maintained."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from app.store import history
from app.store import journal as journal_module
from app.store.journal import Journal, JournalDamaged, JournalFailed, check
from app.store.records import (
    Array,
    Change,
    ChangeFilter,
    EntryChange,
    EntryChanges,
    Event,
    PendingConfirmation,
    ProgramRecord,
)
from app.store.schema import VERSIONS
from tests.store.tables import entries_of, table_of

DROP = ProgramRecord("drop", 812, "46728abc63e3a679", "/sys/fs/bpf/drop")


def change(map_: str = "jump_table", request_id: str = "one", reverts: int | None = None) -> Change:
    entries = EntryChanges.of([EntryChange(3, None, DROP), EntryChange(4, DROP, None)])
    return Change(map_, 41, "boot", "update", entries, 1_800_000_000.25, "unix", request_id, "why", reverts=reverts)


def expected(journal: Journal, boot_id: str = "boot") -> tuple[Array, dict[int, ProgramRecord]]:
    """The array and the expected entries of the jump table."""
    stored = asyncio.run(journal.expected_table("jump_table", boot_id))
    assert stored is not None
    return stored[0], entries_of(stored[1])


@pytest.fixture(params=["power", "process"])
def durability(request: pytest.FixtureRequest) -> Literal["power", "process"]:
    found: Literal["power", "process"] = request.param
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(file: Path, durability: Literal["power", "process"]) -> Iterator[Journal]:
    journal = Journal(file, durability)
    yield journal
    journal.close()


class TestAppend:
    def test_an_appended_change_is_read_back_with_the_next_id(self, journal: Journal) -> None:
        first, second = (asyncio.run(journal.append(change())) for _ in range(2))
        assert (first.id, second.id) == (1, 2)
        assert journal.change(2) == second
        assert second.entries == change().entries
        assert journal.change(3) is None

    def test_another_connection_reads_the_change_and_continues_its_ids(
        self, journal: Journal, file: Path, durability: Literal["power", "process"]
    ) -> None:
        asyncio.run(journal.append(change()))
        again = Journal(file, durability)
        assert again.change(1) == journal.change(1)
        assert asyncio.run(again.append(change())).id == 2
        again.close()

    def test_concurrent_appends_get_consecutive_ids(self, journal: Journal) -> None:
        async def all_at_once() -> list[Change]:
            return await asyncio.gather(*(journal.append(change(request_id=str(number))) for number in range(200)))

        ids = [each.id for each in asyncio.run(all_at_once())]
        assert ids == list(range(1, 201)), "in the order of the calls"

    def test_a_revert_marks_the_change_that_it_undoes(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        asyncio.run(journal.append(change(reverts=1)))
        states = [each.state for each in journal.changes()[0]]
        assert states == ["reverted", "applied"]


class TestChanges:
    def test_changes_are_filtered_and_paged(self, journal: Journal) -> None:
        for number in range(6):
            asyncio.run(journal.append(change("a" if number % 2 else "b", request_id=str(number))))
        assert [each.id for each in journal.changes()[0]] == [1, 2, 3, 4, 5, 6]
        assert [each.id for each in journal.changes(ChangeFilter(maps=["a"]))[0]] == [2, 4, 6]
        assert [each.id for each in journal.changes(ChangeFilter(maps=["a"]), after=2, before=6)[0]] == [4]
        assert [each.id for each in journal.changes(ChangeFilter(request_id="4"))[0]] == [5]
        assert [each.id for each in journal.changes(limit=2)[0]] == [1, 2]
        assert journal.changes(after=6) == ([], None)
        assert journal.changes(limit=5)[1] == 5

    @pytest.mark.field
    def test_search_of_a_long_journal_goes_on_where_it_stopped(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Field 10: who changed this entry: a search looks at few changes at a time, whatever the order."""
        monkeypatch.setattr(history, "_MAX_SCANNED_CHANGES", 4)
        for number in range(20):
            asyncio.run(journal.append(change(request_id="r" if number % 7 == 0 else "other")))
        wanted = ChangeFilter(request_id="r")
        assert (journal.changes(wanted, limit=2)[1], journal.changes(wanted, limit=2, newest_first=True)[1]) == (4, 17)
        for newest_first, found in ((False, [1, 8, 15]), (True, [15, 8, 1])):
            ids, after, before = [], 0, None
            while True:
                page, last = journal.changes(wanted, after=after, before=before, newest_first=newest_first, limit=2)
                ids += [each.id for each in page]
                if last is None:
                    break
                after, before = (0, last) if newest_first else (last, None)
            assert ids == found

    @pytest.mark.field
    def test_rare_states_are_found_by_an_index(self, journal: Journal) -> None:
        """Field 10: who changed this entry: changes in a rare state are found without reading all others."""
        query = "SELECT * FROM changes WHERE id BETWEEN ? AND ? AND state <> 'applied' AND state = ? ORDER BY id DESC"
        plan = journal._database.read(f"EXPLAIN QUERY PLAN {query}", [1, 9, "reverted"]).fetchall()
        assert ["changes_by_rare_state" in row["detail"] for row in plan] == [True]


@pytest.mark.field
def test_journal_of_version_1_opens(tmp_path: Path, durability: Literal["power", "process"]) -> None:
    """Field 10: who changed this entry: an upgrade keeps the history, and what waits for its confirmation."""
    file, old = tmp_path / "old.db", change()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(f"{VERSIONS[0]}; PRAGMA application_id = {0x6A74626C}; PRAGMA user_version = 1;")
        row = (old.map, 41, "boot", "update", "unix", "r1", None, old.entries.packed())
        for id_, state in ((1, "confirmed"), (2, "unconfirmed")):
            query = "INSERT INTO changes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,NULL,1800000060.0)"
            connection.execute(query, (id_, id_, old.at, *row, state))
        told = {"map": old.map, "map_id": 41, "boot_id": "boot", "kind": "update", "at": old.at, "actor": "unix",
                "request_id": "r1", "note": None, "state": "unconfirmed", "reverts": None, "confirm_by": 1800000060.0,
                "id": 0}  # fmt: skip
        waiting = ("token", 2, 1, json.dumps(told), old.entries.packed(), 5.0, "[]")
        connection.execute("INSERT INTO waiting VALUES (?,?,?,?,?,?,?)", waiting)
        connection.commit()
    assert check(file) == []
    journal = Journal(file, durability)
    with closing(journal):
        assert [(each.id, each.state, each.confirmed_by, each.confirmed_at) for each in journal.changes()[0]] == [
            (1, "confirmed", None, None),
            (2, "unconfirmed", None, None),
        ]
        assert [each.change.id for each in journal.pending()] == [2]
        asyncio.run(journal.confirm(journal.changes()[0][1], "token:deploy", 1_800_000_030.0))
        assert asyncio.run(journal.append(change())).id == 3
    again = Journal(file, durability)
    with closing(again):
        confirmed = again.change(2)
        assert confirmed is not None
        assert (confirmed.state, confirmed.confirmed_by) == ("confirmed", "token:deploy")
        assert confirmed.confirmed_at == 1_800_000_030.0


class TestFaults:
    def test_a_locked_file_fails_writes_until_it_is_unlocked(self, journal: Journal, file: Path) -> None:
        """Somebody examines the file with a tool that locks it."""
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalFailed, match="cannot be written: database is locked"):
            asyncio.run(journal.append(change()))
        other.execute("ROLLBACK")
        other.close()
        assert asyncio.run(journal.append(change())).id == 1

    def test_a_full_disk_fails_writes_and_costs_no_id(self, journal: Journal) -> None:
        """SQLite reports its own limit of pages like a full disk."""
        asyncio.run(journal.append(change()))
        journal._database.writer.execute("PRAGMA max_page_count = 1")
        large = change(request_id="x" * 1_000_000)
        with pytest.raises(JournalFailed, match="full"):
            asyncio.run(journal.append(large))
        journal._database.writer.execute("PRAGMA max_page_count = 1000000")
        assert asyncio.run(journal.append(change())).id == 2, "a write that failed uses up no id"

    def test_events_of_a_failed_write_are_not_published(self, journal: Journal) -> None:
        published: list[Event] = []
        journal.on_events = published.extend
        trigger = "CREATE TEMP TRIGGER fail BEFORE DELETE ON waiting BEGIN SELECT raise(ABORT, 'refused'); END"
        asyncio.run(journal.append(change()))
        asyncio.run(journal.add_pending(PendingConfirmation("token", change(), 5.0)))
        asyncio.run(journal.append(change(), token="token"))
        journal._database.writer.execute(trigger)
        with pytest.raises(JournalFailed, match="cannot be written: refused"):
            asyncio.run(journal.append(change(reverts=2)))
        journal._database.writer.execute("DROP TRIGGER fail")
        asyncio.run(journal.append(change(reverts=2)))
        assert [event.id for event in published] == [1, 2, 3]
        assert [each.state for each in journal.changes()[0]] == ["applied", "reverted", "applied"]
        assert journal.failing is None

    def test_all_writes_of_a_failed_batch_fail(self, file: Path) -> None:
        journal = Journal(file, "power")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def all_at_once() -> list[object]:
            return await asyncio.gather(*(journal.append(change()) for _ in range(5)), return_exceptions=True)

        assert all(isinstance(each, JournalFailed) for each in asyncio.run(all_at_once()))
        other.close()
        assert journal.changes() == ([], None)
        journal.close()

    @pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_a_damaged_file_is_refused_and_left_as_it_is(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(JournalDamaged, match="put back a copy, or, to go on without its history, move it"):
            Journal(file)
        assert file.read_bytes() == content

    def test_another_programs_database_is_refused(self, file: Path) -> None:
        other = sqlite3.connect(file)
        other.execute("CREATE TABLE mine (id)")
        other.close()
        with pytest.raises(JournalDamaged, match="another program's"):
            Journal(file)

    def test_a_journal_of_a_newer_version_is_refused(self, file: Path) -> None:
        Journal(file, "process").close()
        other = sqlite3.connect(file)
        other.execute("PRAGMA user_version = 99")
        other.close()
        with pytest.raises(JournalDamaged, match="a newer jumptable"):
            Journal(file)

    def test_a_missing_folder_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(JournalFailed, match="cannot be opened"):
            Journal(tmp_path / "none" / "journal.db")


class TestCheck:
    def test_check_modifies_nothing_and_finds_damage(self, file: Path, tmp_path: Path) -> None:
        Journal(file, "process").close()
        before = sorted(tmp_path.iterdir()), file.read_bytes()
        check(file)
        assert (sorted(tmp_path.iterdir()), file.read_bytes()) == before
        file.write_bytes(b"nonsense" * 1000)
        with pytest.raises(JournalDamaged):
            check(file)

    def test_a_journal_that_is_being_written_is_not_damaged(self, file: Path) -> None:
        """A part of it is in the -wal file. SQLite's checkpoints move it."""
        journal = Journal(file, "process")
        entries = EntryChanges.of(EntryChange(index, DROP, DROP) for index in range(64))
        for _ in range(300):
            asyncio.run(journal.append(replace(change(), entries=entries)))
            check(file)
        journal.close()

    def test_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(JournalFailed):
            check(tmp_path / "none")


class TestKill:
    @pytest.mark.parametrize("round_", range(5))
    def test_a_change_whose_id_was_returned_survives_a_kill(self, file: Path, durability: str, round_: int) -> None:
        """A process appends changes, prints the id of each, and is killed."""
        code = f"""
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from tests.store.test_journal import change
from app.store.journal import Journal
async def main():
    journal = Journal(Path({str(file)!r}), {durability!r})
    while True:
        print((await journal.append(change())).id, flush=True)
asyncio.run(main())
"""
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout as output:
            printed = [int(next(output)) for _ in range(20 + round_ * 7)]
            os.kill(process.pid, signal.SIGKILL)
            printed += [int(line) for line in output if line.endswith("\n")]
        process.wait(20)
        journal = Journal(file, "process")
        assert [each.id for each in journal.changes(limit=1_000_000)[0]][: len(printed)] == printed
        journal.close()


class TestPruning:
    @pytest.fixture(autouse=True)
    def small_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history, "_MAX_PAGES", 40)
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 8)

    def pages(self, journal: Journal) -> int:
        used, free = (
            journal._database.read(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
        )
        return int(used - free)

    def test_large_changes_do_not_exceed_the_maximum_size(self, journal: Journal) -> None:
        entries = EntryChanges.of(EntryChange(index, DROP, DROP) for index in range(100))
        for _ in range(60):
            asyncio.run(journal.append(replace(change(), entries=entries)))
            assert self.pages(journal) < 140
        assert journal.change(60) is not None

    def test_events_alone_do_not_exceed_the_maximum_size(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        for _ in range(600):
            asyncio.run(journal.append_drift_event("jump_table", {"much": "x" * 1000}))
        assert self.pages(journal) < 90
        assert journal.change(1) is not None, "the last change is never pruned"

    def test_expected_tables_outlive_pruned_changes(self, file: Path, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), table_of({1: DROP, 4: DROP})))
        asyncio.run(journal.append(change()))
        fat = replace(change("other"), note="x" * 5000)
        for _ in range(100):
            asyncio.run(journal.append(replace(fat)))
        assert journal.change(1) is None, "the change is pruned"
        assert expected(journal) == (Array(41, "boot"), {1: DROP, 3: DROP}), "its effect is kept"

    def test_a_change_that_waits_for_confirmation_is_not_pruned(self, journal: Journal) -> None:
        pending = PendingConfirmation("token", change(), 5.0)
        asyncio.run(journal.add_pending(pending))
        asyncio.run(journal.append(pending.change, token="token"))
        for _ in range(100):
            asyncio.run(journal.append(replace(change("other"), note="x" * 5000)))
        assert [each.change.id for each in journal.pending()] == [1]
        assert journal.change(1) is not None

    def test_only_old_changes_are_pruned_by_age(self, monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
        monkeypatch.setattr(history, "_MAX_PAGES", 10_000)
        for at in (0.0, 1.0, *[time.time()] * 20):
            asyncio.run(journal.append(replace(change(), at=at)))
        assert [each.id for each in journal.changes()[0]] == list(range(3, 23))

    def test_ids_go_on_after_changes_of_a_clock_that_was_never_set(self, file: Path) -> None:
        for _ in range(3):
            journal = Journal(file, "process")
            for _ in range(20):
                asyncio.run(journal.append(replace(change(), at=1000.0)))
            journal.close()
        journal = Journal(file, "process")
        assert asyncio.run(journal.append(change())).id == 61
        journal.close()


class TestMaintenance:
    def checkpointed(self, journal: Journal) -> int:
        """The id of the last change that is in the stored expected tables."""
        return int(journal._database.read("SELECT folded FROM bookmarks").fetchone()[0])

    def test_checkpoints_follow_the_changes(self, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), table_of({})))
        for number in range(500):
            asyncio.run(journal.append(change()))
            assert number + 1 - self.checkpointed(journal) < 64
        table = EntryChanges.of(EntryChange(index, None, DROP) for index in range(8192))
        asyncio.run(journal.append(replace(change(), entries=table)))
        assert self.checkpointed(journal) == 501, "one large table causes a checkpoint"
        assert expected(journal) == (Array(41, "boot"), dict.fromkeys(range(8192), DROP))

    def test_a_backlog_is_worked_off_in_small_steps(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 10_000)
        for _ in range(500):
            asyncio.run(journal.append(change()))
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 64)
        journal._maintained_event = 500
        steps = []
        for _ in range(1000):
            before = self.checkpointed(journal)
            asyncio.run(journal.append(change()))
            steps.append(self.checkpointed(journal) - before)
        assert max(steps) <= 128
        assert 1500 - self.checkpointed(journal) < 64

    def test_an_excess_of_events_is_pruned_in_limited_steps(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(5000):
            asyncio.run(journal.append(change()))
        monkeypatch.setattr(history, "_MAX_EVENTS", 1000)
        steps = []
        for _ in range(400):
            before = journal.pruned_event()
            asyncio.run(journal.append(change()))
            steps.append(journal.pruned_event() - before)
        assert max(steps) <= 1100
        assert len(journal.changes(limit=10_000)[0]) <= 1064

    def test_large_changes_are_pruned_within_a_limit_of_bytes(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = replace(change(), note="x", entries=EntryChanges.of(EntryChange(i, None, DROP) for i in range(300)))
        for _ in range(300):
            asyncio.run(journal.append(replace(large)))
        monkeypatch.setattr(history, "_MAX_PAGES", 40)
        monkeypatch.setattr(journal_module, "_MAX_PRUNED_BYTES", 40_000)
        journal._maintained_entries = journal._history.written_entries
        for _ in range(64):
            before = journal.pruned_event()
            asyncio.run(journal.append(change()))
            assert journal.pruned_event() - before <= 45_000 // 3600 + 1

    def test_unused_programs_are_removed_from_stored_tables(self, journal: Journal) -> None:
        for number in range(1, 2000):
            entries = EntryChanges.of([EntryChange(3, None, replace(DROP, id=number))])
            asyncio.run(journal.append(replace(change(), entries=entries)))
        (programs,) = journal._database.read("SELECT programs FROM recorded").fetchone()
        assert len(json.loads(programs)) <= 130


class TestExpectedTable:
    def test_it_includes_all_changes_since_it_was_saved(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), table_of({7: DROP})))
        assert expected(journal) == (Array(41, "boot"), {7: DROP})
        asyncio.run(journal.append(change()))
        asyncio.run(journal.append(replace(change(), entries=EntryChanges.of([EntryChange(7, DROP, None)]))))
        assert expected(journal) == (Array(41, "boot"), {3: DROP})
        assert asyncio.run(journal.expected_table("other", "boot")) is None

    def test_programs_of_an_earlier_boot_have_no_id(self, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), table_of({7: DROP})))
        asyncio.run(
            journal.append(replace(change(), boot_id="next", entries=EntryChanges.of([EntryChange(8, None, DROP)])))
        )
        assert expected(journal, "next") == (Array(41, "boot"), {7: replace(DROP, id=0), 8: DROP})
