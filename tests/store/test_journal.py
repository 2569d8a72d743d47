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

from app.store import database, history
from app.store import journal as journal_module
from app.store.journal import Journal, JournalDamaged, JournalFailed, check
from app.store.records import (
    Array,
    Batch,
    Change,
    ChangeFilter,
    EntryChange,
    EntryChanges,
    Event,
    PendingConfirmation,
    ProgramRecord,
)
from app.store.schema import VERSIONS
from tests.outside import journal_reader
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
        published: list[Event | Batch] = []
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
        assert [event.id for event in published if isinstance(event, Event)] == [1, 2, 3]
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


@pytest.mark.field
class TestLostFiles:
    """Field 20: a journal that was removed or replaced while it is open."""

    @pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
    def test_a_removed_file_fails_writes_until_it_is_put_back(self, journal: Journal, file: Path, suffix: str) -> None:
        """Field 20: one of the three files was moved away."""
        name = file.with_name(file.name + suffix)
        for _ in range(2):
            asyncio.run(journal.append(change()))
        name.rename(file.with_name("elsewhere"))
        with pytest.raises(JournalFailed, match=f"{name} was removed or replaced"):
            asyncio.run(journal.append(change()))
        assert "was removed or replaced" in str(journal.failing)
        file.with_name("elsewhere").rename(name)
        assert journal.failing is None
        assert asyncio.run(journal.append(change())).id == 3

    def test_a_replaced_file_fails_writes(self, journal: Journal, file: Path) -> None:
        """Field 20: an operator puts a copy in its place while the service runs."""
        asyncio.run(journal.append(change()))
        other = file.with_name("copy")
        other.write_bytes(file.read_bytes())
        other.rename(file)
        with pytest.raises(JournalFailed, match="was removed or replaced"):
            asyncio.run(journal.append(change()))

    def test_a_replaced_folder_fails_writes(self, tmp_path: Path, durability: Literal["power", "process"]) -> None:
        """Field 20: the whole state folder was moved away, and another one is in its place."""
        folder = tmp_path / "state"
        folder.mkdir()
        journal = Journal(folder / "journal.db", durability)
        folder.rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(JournalFailed, match="was removed or replaced"):
                asyncio.run(journal.append(change()))
            folder.mkdir(exist_ok=True)
        journal.close()

    def test_a_removal_is_noticed_however_long_the_folder_was_quiet(self, journal: Journal, file: Path) -> None:
        """Field 20: the quick look at the folder must not miss what comes after it."""
        files = journal._database._files
        assert files is not None
        deadline = time.monotonic() + 10
        while files._settled is None:
            asyncio.run(journal.append(change()))
            assert time.monotonic() < deadline
        asyncio.run(journal.append(change()))
        file.unlink()
        with pytest.raises(JournalFailed, match="was removed or replaced"):
            asyncio.run(journal.append(change()))

    def test_other_files_in_the_folder_do_not_matter(self, journal: Journal, file: Path) -> None:
        """Field 20: the token file is written anew."""
        for number in range(3):
            file.with_name(f"tokens{number}").touch()
            assert asyncio.run(journal.append(change())).id == number + 1


@pytest.mark.field
class TestOutsideReader:
    """Field 24: another process reads the journal for long, so that the -wal file grows and grows."""

    @pytest.fixture(autouse=True)
    def small_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 8)
        for name, value in (
            ("_CHECKPOINTED_WAL_BYTES", 1 << 18),
            ("_LARGE_WAL_BYTES", 1 << 20),
            ("MAX_BYTES", 4 << 20),
            ("_RESERVED_BYTES", 1 << 19),
            ("_MIN_WAL_BYTES", 1 << 19),
        ):
            monkeypatch.setattr(database, name, value)

    def total_bytes(self, file: Path) -> int:
        return sum(each.stat().st_size for each in (file, file.with_name("journal.db-wal")))

    def test_the_files_stay_below_their_maximum_and_recover(self, journal: Journal, file: Path) -> None:
        """Field 24: it is told in time, changes fail before the disk is full, and go on once the reader ends."""
        large, sizes = replace(change(), note="x" * 8000), []

        def append_until_it_fails() -> None:
            for _ in range(2000):
                asyncio.run(journal.append(replace(large)))
                assert self.total_bytes(file) < 4 << 20
                if journal.wal_warning is not None:
                    sizes.append(journal.wal_bytes)

        with journal_reader(file):
            with pytest.raises(JournalFailed, match=r"-wal would exceed 4 MiB, .* end that process"):
                append_until_it_fails()
            assert 1 << 20 < sizes[0] < 2 << 20
            assert "would exceed" in str(journal.failing)
            count = len(journal.changes(limit=10_000)[0])
            assert count > 100
            asyncio.run(journal.make_room())
            assert "would exceed" in str(journal.failing)
        asyncio.run(journal.make_room())
        assert journal.failing is None
        assert journal.wal_warning is None
        asyncio.run(journal.append(replace(large)))
        assert journal.change(count + 1) is not None

    def test_a_reader_that_comes_and_goes_costs_nothing(self, journal: Journal, file: Path) -> None:
        """Field 24: a backup reads the journal now and then."""
        large = replace(change(), note="x" * 1000)
        for _ in range(3):
            with journal_reader(file):
                for _ in range(80):
                    asyncio.run(journal.append(replace(large)))
        for _ in range(400):
            asyncio.run(journal.append(change()))
        assert journal.wal_bytes <= 2 << 20
        assert journal.failing is None

    def test_the_wal_is_cut_off_after_a_checkpoint(self, journal: Journal, file: Path) -> None:
        """Field 24: what a long reader has made grow does not stay so large for ever."""
        with journal_reader(file):
            for _ in range(100):
                asyncio.run(journal.append(replace(change(), note="x" * 8000)))
            assert journal.wal_bytes > 1 << 20
        journal._database.writer.execute("PRAGMA wal_checkpoint(RESTART)")
        asyncio.run(journal.append(change()))
        assert journal.wal_bytes <= 1 << 18


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

    def test_ids_go_on_after_changes_of_a_clock_that_was_never_set(self, file: Path) -> None:
        for _ in range(3):
            journal = Journal(file, "process")
            for _ in range(20):
                asyncio.run(journal.append(replace(change(), at=1000.0)))
            journal.close()
        journal = Journal(file, "process")
        assert asyncio.run(journal.append(change())).id == 61
        journal.close()


@pytest.mark.field
class TestAge:
    """Field 34: a clock that is wrong for a moment must not erase the history."""

    DAY = 86_400.0

    @pytest.fixture(autouse=True)
    def clocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The two clocks of the journal: the time of day, and the time since boot."""
        self.now, self.uptime = 1_800_000_000.0, 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "clock_gettime", lambda _: self.uptime)
        monkeypatch.setattr(history, "_MIN_KEPT_CHANGES", 20)
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 8)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.uptime += seconds

    def append(self, journal: Journal, count: int) -> None:
        for _ in range(count):
            asyncio.run(journal.append(replace(change(), at=self.now)))

    def ids(self, journal: Journal) -> list[int]:
        return [each.id for each in journal.changes(limit=1000)[0]]

    @pytest.fixture
    def old(self, journal: Journal) -> Journal:
        """A journal with 40 changes that are 399 days old, and 30 of now."""
        self.append(journal, 40)
        self.pass_time(399 * self.DAY)
        self.append(journal, 30)
        return journal

    def test_old_changes_are_pruned_once_the_newest_ones_are_far_enough_away(self, old: Journal) -> None:
        """Field 34: with a clock that is right, the history still ends after 400 days."""
        self.pass_time(2 * self.DAY)
        self.append(old, 40)
        assert self.ids(old) == list(range(41, 111))

    @pytest.mark.parametrize("changes", [1, 8, 16])
    def test_a_clock_that_is_ahead_for_a_few_changes_prunes_nothing(self, old: Journal, changes: int) -> None:
        """Field 34: the clock jumps to another year, and comes back a moment later."""
        self.now += 3650 * self.DAY
        self.append(old, changes)
        self.now -= 3650 * self.DAY
        self.append(old, 16)
        assert self.ids(old) == list(range(1, 71 + changes + 16))

    def test_a_clock_that_is_ahead_for_many_changes_prunes_nothing_on_that_day(self, old: Journal) -> None:
        """Field 34: the clock is wrong for hours, while many changes are made."""
        self.now += 3650 * self.DAY
        for _ in range(6):
            self.append(old, 16)
            self.pass_time(3600)
        assert self.ids(old) == list(range(1, 71 + 6 * 16))

    def test_a_service_that_starts_with_a_wrong_clock_prunes_nothing(self, old: Journal, file: Path) -> None:
        """Field 34: the machine boots before it knows the time."""
        self.now += 3650 * self.DAY
        journal = Journal(file, "process")
        self.append(journal, 60)
        journal.close()
        assert self.ids(old) == list(range(1, 131))

    def test_the_newest_changes_are_kept_whatever_their_age(self, old: Journal) -> None:
        """Field 34: a table that nobody has changed for years keeps its last changes."""
        self.pass_time(3650 * self.DAY)
        self.append(old, 16)
        assert self.ids(old)[0] <= 67, "20 of them"
        assert len(self.ids(old)) >= 20

    def test_a_clock_that_was_behind_prunes_nothing(self, old: Journal) -> None:
        """Field 34: some changes were made in 1970."""
        self.now -= 1_800_000_000
        self.append(old, 8)
        self.now += 1_800_000_000
        self.pass_time(2 * self.DAY)
        self.append(old, 8)
        assert self.ids(old) == list(range(1, 87))


class TestMaintenance:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 64)

    def checkpointed(self, journal: Journal) -> int:
        """The id of the last change that is in the stored expected tables."""
        return int(journal._database.read("SELECT folded FROM bookmarks").fetchone()[0])

    def test_checkpoints_follow_the_changes(self, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), table_of({})))
        for number in range(500):
            asyncio.run(journal.append(change()))
            assert number + 1 - self.checkpointed(journal) < 64

    @pytest.mark.parametrize("durability", ["process", "power"])
    def test_checkpoint_of_large_tables_waits_until_none_comes(
        self, file: Path, durability: Literal["process", "power"]
    ) -> None:
        """It comes all the same, and the tables are compressed then."""
        opened = Journal(file, durability)
        table = EntryChanges.of(EntryChange(index, None, DROP) for index in range(8192))

        def sizes() -> list[int]:
            return [len(row["entries"]) for row in opened._database.read("SELECT entries FROM changes")]

        async def append() -> None:
            for _ in range(10):
                await opened.append(replace(change(), entries=table))
            assert self.checkpointed(opened) == 0
            assert min(sizes()) > 12 * 8192
            while self.checkpointed(opened) < 10:
                await asyncio.sleep(0.01)

        asyncio.run(append())
        assert max(sizes()) < 4 * 8192
        assert len(opened.changes()[0]) == 1, "a page ends with a large change"
        assert opened.changes(after=9)[0][0].entries == table
        opened.close()

    def test_very_many_entries_wait_no_longer(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "_MAX_WAITING_ENTRIES", 30_000)
        table = EntryChanges.of(EntryChange(index, None, DROP) for index in range(8192))
        for number in range(1, 30):
            asyncio.run(journal.append(replace(change(), entries=table)))
            assert (number - self.checkpointed(journal)) * 8192 < 30_000 + 8192

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
