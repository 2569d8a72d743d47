"""Somebody else in the midst of a change; programs, pins and maps that go away. Nothing is lost without a word."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import ProgType
from tests.api.conftest import assert_problem
from tests.outside import Bpftool, Script
from tests.system.conftest import AFTER, BEFORE, PATCH, TABLE, Inside, until

pytestmark = pytest.mark.kernel


class TestOutsideWrites:
    async def test_of_an_entry_that_was_written_already(self, inside: Inside, outside: Script | Bpftool) -> None:
        """Between two writes of a PATCH: it stays, and is told as drift until that is reconciled."""
        inside.before_write(3, lambda: outside.set(inside.pins / "table", 0, inside.pins / "tx"))
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert inside.table() == AFTER | {0: "tx"}
        assert await inside.drift() == [0]
        assert (await inside.client.post("/maps/table/reconcile", json={"to": "journal"})).is_success
        assert (inside.table(), await inside.drift()) == (AFTER, [])

    async def test_of_an_entry_that_is_written_next(self, inside: Inside, outside: Script | Bpftool) -> None:
        """The last write counts, and nothing has drifted."""
        inside.before_write(2, lambda: outside.clear(inside.pins / "table", 1))
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert (inside.table(), await inside.drift()) == (AFTER, [])

    async def test_while_a_change_waits(self, inside: Inside, outside: Script | Bpftool) -> None:
        """The undo leaves that entry to them, and it is told."""
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        outside.set(inside.pins / "table", 0, inside.pins / "tx")
        inside.later = 3600
        await inside.restart()
        assert inside.table() == BEFORE | {0: "tx"}
        assert await inside.drift() == [0]
        assert await inside.states() == [("update", "expired"), ("expire", "applied")]
        assert inside.kept() == []

    async def test_before_the_rest_is_refused(self, inside: Inside, outside: Script | Bpftool) -> None:
        """What is put back leaves their entry as they want it."""

        def meddle() -> None:
            outside.set(inside.pins / "table", 0, inside.pins / "tx")
            inside.changes.stopping.set()

        inside.before_write(2, meddle)
        assert_problem(await inside.client.patch(TABLE, json=PATCH), 503, "draining")
        assert inside.table() == BEFORE | {0: "tx"}
        assert await inside.drift() == [0]
        assert await inside.states() == []


class TestFrozen:
    async def test_midway(self, inside: Inside) -> None:
        """What was written by then cannot be put back, and that is told: in the problem, and as drift."""
        fd = inside.registry.maps.get("table").opened().fd
        inside.before_write(3, lambda: inside.kernel.map_freeze(fd))
        answer = await inside.client.patch(TABLE, json=PATCH)
        assert_problem(answer, 409, "map-frozen")
        told = answer.json()
        assert (told["index"], told["put_back"], sorted(told["left"])) == (2, False, [0, 1])
        assert inside.table() == {0: "pass", 1: "drop"}
        assert await inside.drift() == [0, 1]
        assert await inside.states() == []
        assert_problem(await inside.client.post("/maps/table/reconcile", json={"to": "journal"}), 409, "map-frozen")
        assert (await inside.client.post("/maps/table/reconcile", json={"to": "kernel"})).is_success
        assert await inside.drift() == []

    async def test_while_a_change_waits(self, inside: Inside) -> None:
        """It can never be undone: it is told as drift, and does not stay pinned for that."""
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        inside.kernel.map_freeze(inside.registry.maps.get("table").opened().fd)
        inside.later = 3600
        await inside.restart()
        assert (inside.table(), await inside.drift()) == (AFTER, [0, 1, 2])
        assert await inside.states() == [("update", "expired"), ("expire", "applied")]
        assert inside.kept() == []


class TestProgramsThatGo:
    @staticmethod
    def _pin(pins: Path) -> int:
        kernel = LinuxKernel()
        fd = kernel.prog_load(ProgType.XDP, asm.returns(9), "gone")
        kernel.obj_pin(fd, str(pins / "gone"))
        id_ = kernel.prog_info(fd).id
        kernel.close(fd)
        return id_

    @staticmethod
    async def _until_freed(id_: int) -> None:
        kernel = LinuxKernel()
        async with asyncio.timeout(30):
            while True:  # the kernel frees a little later
                try:
                    kernel.close(kernel.prog_get_fd_by_id(id_))
                except FileNotFoundError:
                    return
                await asyncio.sleep(0.001)

    async def test_one_that_was_replaced(self, inside: Inside) -> None:
        """It is kept for the revert by a service that runs on; after a restart it is gone, and that is said."""
        id_ = self._pin(inside.pins)
        await inside.client.put(f"{TABLE}/5", json={"program": {"pinned": str(inside.pins / "gone")}})
        await inside.client.put(f"{TABLE}/5", json={"program": "drop"})
        (inside.pins / "gone").unlink()
        assert (await inside.client.post("/changes/2/revert?dry_run=true")).is_success
        await inside.restart()
        await self._until_freed(id_)
        answer = await inside.client.post("/changes/2/revert")
        assert_problem(answer, 409, "change-not-revertible")
        assert "gone" in answer.json()["reason"]
        assert inside.table() == BEFORE | {5: "drop"}

    async def test_one_that_is_recorded(self, inside: Inside, outside: Script | Bpftool) -> None:
        """Drift cannot be ended by putting it back, so nothing is; taking what is there ends it."""
        id_ = self._pin(inside.pins)
        await inside.client.put(f"{TABLE}/5", json={"program": {"pinned": str(inside.pins / "gone")}})
        (inside.pins / "gone").unlink()
        for index in (0, 5):
            outside.set(inside.pins / "table", index, inside.pins / "tx")
        await self._until_freed(id_)
        answer = await inside.client.post("/maps/table/reconcile", json={"to": "journal"})
        assert_problem(answer, 409, "change-not-revertible")
        assert [each["index"] for each in answer.json()["entries"]] == [5]
        assert await inside.drift() == [0, 5]
        assert (await inside.client.post("/maps/table/reconcile", json={"to": "kernel"})).is_success
        assert (inside.table(), await inside.drift()) == (BEFORE | {0: "tx", 5: "tx"}, [])


class TestUnpinnedMap:
    async def test_it_is_changed_as_before_and_there_is_a_warning(self, inside: Inside) -> None:
        (inside.pins / "table").unlink()
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert inside.table() == AFTER
        told = (await inside.client.get("/maps/table")).json()
        assert "is gone: the array is emptied when its last holder goes" in told["warnings"][0]

    @pytest.mark.parametrize("is_cut_off", [False, True])
    async def test_what_is_to_be_undone_is_undone_once_it_is_there(self, inside: Inside, is_cut_off: bool) -> None:
        """At the start its pin is missing for a while: an overdue change, and one that was cut off."""
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        await inside.stop()
        pin = inside.pins / "table"
        kernel = LinuxKernel()
        fd = kernel.obj_get(str(pin))
        pin.unlink()
        if is_cut_off:  # as by a kill right before the commit
            with closing(sqlite3.connect(inside.disk / "journal.db", isolation_level=None)) as journal:
                journal.execute("UPDATE waiting SET change_id = NULL")
                journal.execute("DELETE FROM changes")
        else:
            inside.later = 3600
        await inside.start()
        assert_problem(await inside.client.patch(TABLE, json=PATCH), 503, "map-unavailable")
        kernel.obj_pin(fd, str(pin))
        kernel.close(fd)
        await inside.service._open_unavailable()
        await until(lambda: inside.table() == BEFORE)
        await until(lambda: not inside.kept())
        assert await inside.states() == ([] if is_cut_off else [("update", "expired"), ("expire", "applied")])
