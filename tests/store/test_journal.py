"""The journal: what is in it, what survives, and what it says when it cannot go on."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from app.store import journal as store
from app.store.expected import Table
from app.store.journal import Journal, JournalDamaged, JournalFailed, check
from app.store.records import Array, Change, EntryChange, EntryChanges, PendingConfirmation, ProgramRecord

DROP = ProgramRecord("drop", 812, "46728abc63e3a679", "/sys/fs/bpf/drop")


def change(map_: str = "jump_table", request_id: str = "one", reverts: int | None = None) -> Change:
    entries = EntryChanges.of([EntryChange(3, None, DROP), EntryChange(4, DROP, None)])
    return Change(map_, 41, "boot", "update", entries, 1_800_000_000.25, "unix", request_id, "why", reverts=reverts)


def of(journal: Journal, boot_id: str = "boot") -> tuple[Array, dict[int, ProgramRecord]]:
    """What is recorded of the jump table."""
    recorded = asyncio.run(journal.expected_table("jump_table", boot_id))
    assert recorded is not None
    return recorded[0], dict(recorded[1].items())


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
    def test_it_comes_back_as_it_went_in_with_the_next_id(self, journal: Journal) -> None:
        first, second = (asyncio.run(journal.append(change())) for _ in range(2))
        assert (first.id, second.id) == (1, 2)
        assert journal.change(2) == second
        assert second.entries == change().entries
        assert journal.change(3) is None

    def test_it_is_there_after_opening_again(
        self, journal: Journal, file: Path, durability: Literal["power", "process"]
    ) -> None:
        asyncio.run(journal.append(change()))
        again = Journal(file, durability)
        assert again.change(1) == journal.change(1)
        assert asyncio.run(again.append(change())).id == 2
        again.close()

    def test_many_at_once_have_ids_that_rise_by_one(self, journal: Journal) -> None:
        async def all_at_once() -> list[Change]:
            return await asyncio.gather(*(journal.append(change(request_id=str(number))) for number in range(200)))

        ids = [each.id for each in asyncio.run(all_at_once())]
        assert ids == list(range(1, 201)), "in the order in which they came"

    def test_a_revert_marks_what_it_reverts(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        asyncio.run(journal.append(change(reverts=1)))
        states = [each.state for each in journal.changes()[0]]
        assert states == ["reverted", "applied"]


class TestChanges:
    def test_filters_and_pages(self, journal: Journal) -> None:
        for number in range(6):
            asyncio.run(journal.append(change("a" if number % 2 else "b", request_id=str(number))))
        assert [each.id for each in journal.changes()[0]] == [1, 2, 3, 4, 5, 6]
        assert [each.id for each in journal.changes(maps=["a"])[0]] == [2, 4, 6]
        assert [each.id for each in journal.changes(maps=["a"], after=2, before=6)[0]] == [4]
        assert [each.id for each in journal.changes(request_id="4")[0]] == [5]
        assert [each.id for each in journal.changes(limit=2)[0]] == [1, 2]
        assert journal.changes(after=6) == ([], False)
        assert journal.changes(limit=5)[1] is True


class TestFaults:
    def test_a_locked_database(self, journal: Journal, file: Path) -> None:
        """Somebody looks at it with a tool that locks it: a clear error, and once they are gone all is well again."""
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalFailed, match="cannot be written: database is locked"):
            asyncio.run(journal.append(change()))
        other.execute("ROLLBACK")
        other.close()
        assert asyncio.run(journal.append(change())).id == 1

    def test_a_full_disk(self, journal: Journal) -> None:
        """SQLite says the same of its own limit of pages as of a full disk."""
        asyncio.run(journal.append(change()))
        journal._writer.execute("PRAGMA max_page_count = 1")
        large = change(request_id="x" * 1_000_000)
        with pytest.raises(JournalFailed, match="full"):
            asyncio.run(journal.append(large))
        journal._writer.execute("PRAGMA max_page_count = 1000000")
        assert asyncio.run(journal.append(change())).id == 2, "no id is lost to what was not written"

    def test_of_a_batch_that_fails_nobody_is_told_it_is_in(self, file: Path) -> None:
        journal = Journal(file, "power")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def all_at_once() -> list[object]:
            return await asyncio.gather(*(journal.append(change()) for _ in range(5)), return_exceptions=True)

        assert all(isinstance(each, JournalFailed) for each in asyncio.run(all_at_once()))
        other.close()
        assert journal.changes() == ([], False)
        journal.close()

    @pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_a_damaged_file_is_refused_and_kept(self, file: Path, content: bytes) -> None:
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

    def test_a_newer_one_is_refused(self, file: Path) -> None:
        Journal(file, "process").close()
        other = sqlite3.connect(file)
        other.execute("PRAGMA user_version = 99")
        other.close()
        with pytest.raises(JournalDamaged, match="a newer jumptable"):
            Journal(file)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(JournalFailed, match="cannot be opened"):
            Journal(tmp_path / "none" / "journal.db")


class TestCheck:
    def test_it_finds_the_same_and_changes_nothing(self, file: Path, tmp_path: Path) -> None:
        Journal(file, "process").close()
        before = sorted(tmp_path.iterdir()), file.read_bytes()
        check(file)
        assert (sorted(tmp_path.iterdir()), file.read_bytes()) == before
        file.write_bytes(b"nonsense" * 1000)
        with pytest.raises(JournalDamaged):
            check(file)

    def test_one_that_is_written_just_now_is_not_taken_for_damaged(self, file: Path) -> None:
        """Half of it is in the -wal, and moves over at a checkpoint."""
        journal = Journal(file, "process")
        entries = EntryChanges.of(EntryChange(index, DROP, DROP) for index in range(64))
        for _ in range(300):
            asyncio.run(journal.append(replace(change(), entries=entries)))
            check(file)
        journal.close()

    def test_none_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(JournalFailed):
            check(tmp_path / "none")


class TestKill:
    @pytest.mark.parametrize("round_", range(5))
    def test_what_was_told_to_be_in_is_in(self, file: Path, durability: str, round_: int) -> None:
        """A process that appends, and prints each id that it was given, is killed in the middle."""
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
            told = [int(next(output)) for _ in range(20 + round_ * 7)]
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in output if line.endswith("\n")]
        process.wait(20)
        journal = Journal(file, "process")
        assert [each.id for each in journal.changes(limit=1_000_000)[0]][: len(told)] == told
        journal.close()


class TestPruning:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "_MAX_PAGES", 40)
        monkeypatch.setattr(store, "_SOME", 8)

    def pages(self, journal: Journal) -> int:
        used, free = (journal.read(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return int(used - free)

    def test_large_changes_do_not_outgrow_it(self, journal: Journal) -> None:
        entries = EntryChanges.of(EntryChange(index, DROP, DROP) for index in range(100))
        for _ in range(60):
            asyncio.run(journal.append(replace(change(), entries=entries)))
            assert self.pages(journal) < 140
        assert journal.change(60) is not None

    def test_events_alone_do_not_outgrow_it(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        for _ in range(600):
            asyncio.run(journal.append_drift_event("jump_table", {"much": "x" * 1000}))
        assert self.pages(journal) < 90
        assert journal.change(1) is not None, "the last change is never dropped"

    def test_what_entries_are_to_hold_is_never_forgotten(self, file: Path, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), Table.of({1: DROP, 4: DROP})))
        asyncio.run(journal.append(change()))
        fat = replace(change("other"), note="x" * 5000)
        for _ in range(100):
            asyncio.run(journal.append(replace(fat)))
        assert journal.change(1) is None, "that change is gone"
        recorded = of(journal)
        assert recorded == (Array(41, "boot"), {1: DROP, 3: DROP}), "and what it did is not"

    def test_nor_what_waits(self, journal: Journal) -> None:
        waiting = PendingConfirmation("token", change(), 5.0)
        asyncio.run(journal.add_pending(waiting))
        asyncio.run(journal.append(waiting.change, token="token"))
        for _ in range(100):
            asyncio.run(journal.append(replace(change("other"), note="x" * 5000)))
        assert [each.change.id for each in journal.pending()] == [1]
        assert journal.change(1) is not None

    def test_by_age_only_what_is_old(self, monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
        monkeypatch.setattr(store, "_MAX_PAGES", 10_000)
        for at in (0.0, 1.0, *[time.time()] * 20):
            asyncio.run(journal.append(replace(change(), at=at)))
        assert [each.id for each in journal.changes()[0]] == list(range(3, 23))

    def test_a_clock_that_was_never_set_costs_neither_ids_nor_what_is_recorded(self, file: Path) -> None:
        for _ in range(3):
            journal = Journal(file, "process")
            for _ in range(20):
                asyncio.run(journal.append(replace(change(), at=1000.0)))
            journal.close()
        journal = Journal(file, "process")
        assert asyncio.run(journal.append(change())).id == 61
        journal.close()


class TestALittleAtATime:
    def folded(self, journal: Journal) -> int:
        return int(journal.read("SELECT folded FROM bookmarks").fetchone()[0])

    def test_what_entries_are_to_hold_follows_the_changes(self, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), Table.of({})))
        for number in range(500):
            asyncio.run(journal.append(change()))
            assert number + 1 - self.folded(journal) < 64
        table = EntryChanges.of(EntryChange(index, None, DROP) for index in range(8192))
        asyncio.run(journal.append(replace(change(), entries=table)))
        assert self.folded(journal) == 501, "a table is large enough by itself"
        assert of(journal) == (Array(41, "boot"), dict.fromkeys(range(8192), DROP))

    def test_what_was_left_behind_is_caught_up_with(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "_SOME", 10_000)
        for _ in range(500):
            asyncio.run(journal.append(change()))
        monkeypatch.setattr(store, "_SOME", 64)
        journal._looked_at = 500
        steps = []
        for _ in range(1000):
            before = self.folded(journal)
            asyncio.run(journal.append(change()))
            steps.append(self.folded(journal) - before)
        assert max(steps) <= 128
        assert 1500 - self.folded(journal) < 64

    def test_what_is_too_much_is_dropped(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(5000):
            asyncio.run(journal.append(change()))
        monkeypatch.setattr(store, "_KEPT", 1000)
        steps = []
        for _ in range(400):
            before = journal.pruned_event()
            asyncio.run(journal.append(change()))
            steps.append(journal.pruned_event() - before)
        assert max(steps) <= 1100
        assert len(journal.changes(limit=10_000)[0]) <= 1064

    def test_and_of_large_ones_no_more_bytes(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        large = replace(change(), note="x", entries=EntryChanges.of(EntryChange(i, None, DROP) for i in range(300)))
        for _ in range(300):
            asyncio.run(journal.append(replace(large)))
        monkeypatch.setattr(store, "_MAX_PAGES", 40)
        monkeypatch.setattr(store, "_MOST_BYTES", 40_000)
        journal._weight = 0
        for _ in range(64):
            before = journal.pruned_event()
            asyncio.run(journal.append(change()))
            assert journal.pruned_event() - before <= 45_000 // 3600 + 1

    def test_programs_that_come_and_go_are_not_kept(self, journal: Journal) -> None:
        for number in range(1, 2000):
            entries = EntryChanges.of([EntryChange(3, None, replace(DROP, id=number))])
            asyncio.run(journal.append(replace(change(), entries=entries)))
        (programs,) = journal.read("SELECT programs FROM recorded").fetchone()
        assert len(json.loads(programs)) <= 130


class TestRecorded:
    def test_by_all_changes_since_it_began(self, journal: Journal) -> None:
        asyncio.run(journal.append(change()))
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), Table.of({7: DROP})))
        assert of(journal) == (Array(41, "boot"), {7: DROP})
        asyncio.run(journal.append(change()))
        asyncio.run(journal.append(replace(change(), entries=EntryChanges.of([EntryChange(7, DROP, None)]))))
        assert of(journal) == (Array(41, "boot"), {3: DROP})
        assert asyncio.run(journal.expected_table("other", "boot")) is None

    def test_ids_mean_nothing_beyond_their_boot(self, journal: Journal) -> None:
        asyncio.run(journal.save_expected_table("jump_table", Array(41, "boot"), Table.of({7: DROP})))
        asyncio.run(
            journal.append(replace(change(), boot_id="next", entries=EntryChanges.of([EntryChange(8, None, DROP)])))
        )
        assert of(journal, "next") == (Array(41, "boot"), {7: replace(DROP, id=0), 8: DROP})
