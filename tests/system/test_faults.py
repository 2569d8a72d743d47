"""Other tools write during a change, and programs, pins and maps disappear. Every loss is reported."""

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
    async def test_outside_write_after_the_own_write_stays_and_is_drift(
        self, inside: Inside, outside: Script | Bpftool
    ) -> None:
        """The write comes between two writes of a PATCH. It is drift until it is reconciled."""
        inside.before_write(3, lambda: outside.set(inside.pins / "table", 0, inside.pins / "tx"))
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert inside.table() == AFTER | {0: "tx"}
        assert await inside.drift() == [0]
        assert (await inside.client.post("/maps/table/reconcile", json={"to": "journal"})).is_success
        assert (inside.table(), await inside.drift()) == (AFTER, [])

    async def test_outside_write_before_the_own_write_is_overwritten(
        self, inside: Inside, outside: Script | Bpftool
    ) -> None:
        """The last write wins, and there is no drift."""
        inside.before_write(2, lambda: outside.clear(inside.pins / "table", 1))
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert (inside.table(), await inside.drift()) == (AFTER, [])

    async def test_outside_write_during_an_unconfirmed_change_survives_the_undo(
        self, inside: Inside, outside: Script | Bpftool
    ) -> None:
        """The undo leaves that entry alone, and the entry is drift."""
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        outside.set(inside.pins / "table", 0, inside.pins / "tx")
        inside.later = 3600
        await inside.restart()
        assert inside.table() == BEFORE | {0: "tx"}
        assert await inside.drift() == [0]
        assert await inside.states() == [("update", "expired"), ("expire", "applied")]
        assert inside.kept() == []

    async def test_outside_write_during_a_refused_change_survives_the_rollback(
        self, inside: Inside, outside: Script | Bpftool
    ) -> None:
        """The rollback leaves the entry of the other tool alone."""

        def meddle() -> None:
            outside.set(inside.pins / "table", 0, inside.pins / "tx")
            inside.changes.stopping.set()

        inside.before_write(2, meddle)
        assert_problem(await inside.client.patch(TABLE, json=PATCH), 503, "draining")
        assert inside.table() == BEFORE | {0: "tx"}
        assert await inside.drift() == [0]
        assert await inside.states() == []


class TestFrozenMap:
    async def test_map_frozen_midway_leaves_drift(self, inside: Inside) -> None:
        """Entries that were already written cannot be put back. The problem lists them, and they are drift."""
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

    async def test_map_frozen_during_an_unconfirmed_change_leaves_drift(self, inside: Inside) -> None:
        """The change can never be undone. It is drift, and its programs do not stay pinned."""
        await inside.client.patch(TABLE, json=PATCH, params={"confirm_within": 600})
        inside.kernel.map_freeze(inside.registry.maps.get("table").opened().fd)
        inside.later = 3600
        await inside.restart()
        assert (inside.table(), await inside.drift()) == (AFTER, [0, 1, 2])
        assert await inside.states() == [("update", "expired"), ("expire", "applied")]
        assert inside.kept() == []


class TestMissingPrograms:
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

    async def test_revert_fails_once_the_replaced_program_is_gone(self, inside: Inside) -> None:
        """A running service keeps the program for a revert. After a restart it is gone, and the problem says so."""
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

    async def test_reconcile_fails_once_the_recorded_program_is_gone(
        self, inside: Inside, outside: Script | Bpftool
    ) -> None:
        """A reconcile to the journal changes nothing. A reconcile to the kernel ends the drift."""
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
    async def test_unpinned_map_is_changed_and_has_a_warning(self, inside: Inside) -> None:
        (inside.pins / "table").unlink()
        assert (await inside.client.patch(TABLE, json=PATCH)).is_success
        assert inside.table() == AFTER
        told = (await inside.client.get("/maps/table")).json()
        assert "is gone: the array is emptied when its last holder goes" in told["warnings"][0]

    @pytest.mark.parametrize("is_cut_off", [False, True])
    async def test_due_undo_happens_once_the_map_is_back(self, inside: Inside, is_cut_off: bool) -> None:
        """The pin of the map is missing at the start. The change to undo is overdue, or it was cut off by a kill."""
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
        await inside.service.open_unavailable()
        await until(lambda: inside.table() == BEFORE)
        await until(lambda: not inside.kept())
        assert await inside.states() == ([] if is_cut_off else [("update", "expired"), ("expire", "applied")])
