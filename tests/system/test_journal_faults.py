"""The journal cannot be written, or the clock is wrong: changes are put back, and succeed after the repair."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import assert_problem
from tests.outside import journal_reader
from tests.running import running, serve
from tests.system.conftest import (
    AFTER,
    BEFORE,
    MS_RDONLY,
    MS_REMOUNT,
    PATCH,
    PROGRAMS,
    TABLE,
    Inside,
    mount_disk,
    prepare,
    until,
)

pytestmark = pytest.mark.kernel

DAY = 86_400.0
CONFIG = """
[server]
socket = "{folder}/api.sock"
state_dir = "{disk}/state"
user = "root"
pin_dirs = ["{pins}"]
[maps.table]
pinned = "{pins}/table"
"""


def fill(disk: Path) -> None:
    """Fill the disk to the last byte."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


class Fault:
    """A fault that keeps the journal from being written, from `strike` to `mend`."""

    def __init__(self, kind: str, inside: Inside) -> None:
        self._kind, self._inside = kind, inside
        self._other: sqlite3.Connection | None = None

    def strike(self) -> None:
        if self._kind == "full":
            fill(self._inside.disk)
        elif self._kind == "read-only":
            self._inside.journal._database.writer.execute("PRAGMA query_only = 1")
        elif self._kind == "moved":
            (self._inside.disk / "journal.db").rename(self._inside.disk / "elsewhere")
        else:
            self._other = sqlite3.connect(self._inside.disk / "journal.db", isolation_level=None)
            self._other.execute("BEGIN IMMEDIATE")

    def mend(self) -> None:
        (self._inside.disk / "filler").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self._inside.disk / "elsewhere").rename(self._inside.disk / "journal.db")
        with suppress(sqlite3.ProgrammingError):  # it was closed, and opened anew
            self._inside.journal._database.writer.execute("PRAGMA query_only = 0")
        if self._other is not None:
            self._other.close()
            self._other = None


@pytest.fixture(params=["full", "read-only", "locked", "moved"])
def fault(request: pytest.FixtureRequest, inside: Inside) -> Iterator[Fault]:
    fault = Fault(request.param, inside)
    yield fault
    fault.mend()


class TestFailureDuringChange:
    async def test_change_is_put_back_and_succeeds_once_the_journal_works(self, inside: Inside, fault: Fault) -> None:
        await inside.client.put(f"{TABLE}/7", json={"program": "tx"})
        before = inside.table()
        inside.before_write(2, fault.strike)
        answer = await inside.client.patch(TABLE, json=PATCH)
        assert_problem(answer, 503, "journal-unavailable")
        assert (answer.json()["put_back"], answer.json()["left"]) == (True, [])
        assert_problem(await inside.client.put(f"{TABLE}/8", json={"program": "tx"}), 503, "journal-unavailable")
        assert inside.table() == before
        assert await inside.states() == [("set", "applied")], "it can be read meanwhile"
        fault.mend()
        assert (await inside.client.patch(TABLE, json=PATCH)).headers["change-id"] == "2"
        assert (inside.table(), await inside.drift()) == (AFTER | {7: "tx"}, [])
        await inside.restart()
        assert (inside.table(), await inside.drift()) == (AFTER | {7: "tx"}, [])

    @pytest.mark.parametrize("write", [0, 1, 3])
    async def test_change_with_a_deadline_leaves_nothing_behind(self, inside: Inside, fault: Fault, write: int) -> None:
        """`write` is the write before which the fault comes, or 0 for a fault before the change. It succeeds later."""
        if write:
            inside.before_write(write, fault.strike)
        else:
            fault.strike()
        answer = await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        assert_problem(answer, 503, "journal-unavailable")
        assert answer.json()["put_back"] is True
        assert (inside.table(), inside.kept()) == (BEFORE, [])
        fault.mend()
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        await inside.restart()
        assert inside.table() == AFTER, "it was answered, so no start may undo it"
        assert (await inside.drift(), await inside.states()) == ([], [("update", "applied")])

    async def test_failed_confirmation_can_be_repeated(self, inside: Inside, fault: Fault) -> None:
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        fault.strike()
        assert_problem(await inside.client.post("/changes/1/confirm"), 503, "journal-unavailable")
        assert len(inside.kept()) == 2
        fault.mend()
        assert (await inside.client.post("/changes/1/confirm")).is_success
        inside.later = 3600
        await inside.restart()
        assert (inside.table(), inside.kept()) == (AFTER, [])
        assert await inside.states() == [("update", "confirmed")]

    async def test_failed_revert_is_put_back(self, inside: Inside, fault: Fault) -> None:
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        fault.strike()
        assert_problem(await inside.client.post("/changes/1/revert"), 503, "journal-unavailable")
        assert (inside.table(), await inside.states()) == (AFTER, [("update", "unconfirmed")])
        fault.mend()
        assert (await inside.client.post("/changes/1/revert")).is_success
        assert (inside.table(), inside.kept()) == (BEFORE, [])


class TestDeadlineDuringFailure:
    @pytest.mark.parametrize("restarts", [False, True])
    async def test_expired_change_is_undone_at_once_and_journalled_later(
        self, inside: Inside, fault: Fault, restarts: bool
    ) -> None:
        assert (await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 1})).is_success
        fault.strike()
        await until(lambda: inside.table() == BEFORE)
        assert await inside.states() == [("update", "unconfirmed")]
        assert_problem(await inside.client.post("/changes/1/confirm"), 409, "change-conflict")
        assert_problem(await inside.client.put(f"{TABLE}/0", json={"program": "tx"}), 409, "change-conflict")
        if restarts:
            await inside.stop()
            fault.mend()
            await inside.start()
        fault.mend()
        await until(lambda: not inside.kept())
        assert await inside.states() == [("update", "expired"), ("expire", "applied")]
        assert (inside.table(), await inside.drift()) == (BEFORE, [])
        assert (await inside.client.put(f"{TABLE}/0", json={"program": "tx"})).is_success


class TestWallClock:
    async def test_clock_set_back_keeps_order_and_deadlines(self, inside: Inside) -> None:
        """Changes keep their order, and deadlines count by the time since boot."""
        assert (await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})).is_success
        inside.now -= 3 * 365 * DAY
        for number in range(70):  # more than between two prunings
            assert (await inside.client.put(f"{TABLE}/9", json={"program": PROGRAMS[number % 3]})).is_success
        told = (await inside.client.get("/changes", params={"limit": 1000})).json()["changes"]
        assert [each["id"] for each in told] == list(range(1, 72))
        assert told[0]["at"] > told[1]["at"]
        assert inside.table() == AFTER | {9: "drop"}, "it is not overdue"
        inside.later = 3600
        await inside.restart()
        assert (inside.table(), await inside.drift()) == (BEFORE | {9: "drop"}, [])

    async def test_clock_set_ahead_moves_no_deadline(self, inside: Inside) -> None:
        assert (await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})).is_success
        inside.now += 30 * DAY
        await inside.restart()
        assert inside.table() == AFTER
        assert (await inside.client.post("/changes/1/confirm")).is_success


class TestProcess:
    @pytest.fixture
    def config(self, bpffs: Path, disk: Path, tmp_path: Path) -> Path:
        prepare(bpffs)
        file = tmp_path / "jumptable.toml"
        file.write_text(CONFIG.format(folder=tmp_path, disk=disk, pins=bpffs))
        return file

    @pytest.mark.parametrize("kind", ["full", "input/output error"])
    def test_change_on_a_failing_disk_is_put_back_and_succeeds_later(
        self, config: Path, disk: Path, tmp_path: Path, kind: str
    ) -> None:
        """The input/output error comes from a limit on the file size, so it is not ENOSPC."""
        body = {"entries": [{"index": 0, "program": None}, {"index": 1, "program": None}]}
        with serve(config, tmp_path / "api.sock") as service, service.client() as client:
            before = client.get(TABLE).content
            with _full(disk) if kind == "full" else _no_growth(service.process.pid):
                answer = client.patch(TABLE, json=body)
                assert_problem(answer, 503, "journal-unavailable")
                assert answer.json()["put_back"] is True
                assert client.get(TABLE).content == before
                assert client.get("/readyz").status_code in {200, 503}
            assert client.patch(TABLE, json=body).headers["change-id"] == "1"
            assert client.get(TABLE).json()["entries"] == []

    @pytest.mark.field
    @pytest.mark.parametrize("durability", ["power", "process"])
    def test_a_removed_journal_is_noticed_before_a_change_is_answered(
        self, config: Path, disk: Path, tmp_path: Path, durability: str
    ) -> None:
        """Field 20: a journal that was removed while the service runs. SQLite goes on in the unlinked file."""
        config.write_text(config.read_text().replace("[maps", f'durability = "{durability}"\n[maps'))
        with serve(config, tmp_path / "api.sock") as service, service.client() as client:
            assert client.delete(f"{TABLE}/1").status_code == 204
            before = client.get(TABLE).content
            assert client.get("/readyz").is_success
            for file in (disk / "state").glob("journal.db*"):
                file.unlink()
            for answer in (
                client.delete(f"{TABLE}/0"),
                client.patch(TABLE, json={"entries": [{"index": 0, "program": None}]}),
            ):
                assert_problem(answer, 503, "journal-unavailable")
                assert answer.json()["put_back"] is True
                assert "journal.db was removed or replaced" in answer.json()["detail"]
            assert client.get(TABLE).content == before
            assert_problem(client.get("/readyz"), 503, "journal-unavailable")
            assert "\njumptable_journal_failing 1.0\n" in client.get("/metrics").text
            service.wait_for("the journal cannot be written: changes are put back")

    @pytest.mark.field
    def test_a_long_reader_is_told_of_before_changes_fail(
        self, config: Path, bpffs: Path, disk: Path, tmp_path: Path
    ) -> None:
        """Field 24: somebody left sqlite3 open in a transaction. The bounds are small here, as the disk is."""
        first = """
from app.store import database, journal
database._LARGE_WAL_BYTES, database._MIN_WAL_BYTES = 50_000, 100_000
database.MAX_BYTES, database._RESERVED_BYTES = 400_000, 100_000
journal._EVENTS_PER_MAINTENANCE = 8
"""
        drop = str(bpffs / "drop")
        with serve(config, tmp_path / "api.sock", first=first) as service, service.client() as client:
            with journal_reader(disk / "state/journal.db"):
                note, answer = {"note": "x" * 200}, client.delete(f"{TABLE}/1")
                while (disk / "state/journal.db-wal").stat().st_size <= 60_000:
                    assert client.put(f"{TABLE}/1", json={"program": {"pinned": drop}}, params=note).is_success
                    answer = client.delete(f"{TABLE}/1", params=note)
                    assert answer.is_success
                service.wait_for("the journal grows")
                while answer.is_success:
                    answer = client.put(f"{TABLE}/1", json={"program": {"pinned": drop}}, params=note)
                    if answer.is_success:
                        answer = client.delete(f"{TABLE}/1", params=note)
                assert_problem(answer, 503, "journal-unavailable")
                assert "end that process" in answer.json()["detail"]
                assert_problem(client.get("/readyz"), 503, "journal-unavailable")
                service.wait_for("the journal cannot be written: changes are put back")
            service.wait_for("the journal can be written again")
            assert client.get("/readyz").is_success

    def test_start_with_a_read_only_state_dir_fails_with_advice(self, config: Path, disk: Path, tmp_path: Path) -> None:
        """Once the folder is writable, the service starts."""
        mount_disk(disk, MS_REMOUNT | MS_RDONLY)
        with running("serve", "--config", str(config)) as service:
            assert service.process.wait(30) == 1
            assert "Read-only file system: make it writable, or set another" in service.output()
        mount_disk(disk, MS_REMOUNT)
        with serve(config, tmp_path / "api.sock") as service, service.client() as client:
            assert client.get("/healthz").is_success


@contextmanager
def _full(disk: Path) -> Iterator[None]:
    fill(disk)
    yield
    (disk / "filler").unlink()


@contextmanager
def _no_growth(pid: int) -> Iterator[Any]:
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
