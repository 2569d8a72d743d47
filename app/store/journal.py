"""The journal: one SQLite file in state_dir. What has happened, and what stands by that."""

import functools
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from app.store.database import JournalDamaged, JournalFailed
from app.store.database import check as check_file
from app.store.history import History
from app.store.records import Array, Change, Hold, ProgramRecord, Waiting

__all__ = ["Journal", "JournalDamaged", "JournalFailed", "check"]

_CHANGE: Final = TypeAdapter(Change)
_PROGRAM: Final = TypeAdapter(ProgramRecord)
_KEEPS: Final = TypeAdapter(tuple[tuple[int, str], ...])
_HOLDS: Final = "SELECT * FROM holds ORDER BY kind, name"
_KEPT: Final = 100_000  # changes
_KEPT_SECONDS: Final = 400 * 86_400.0
_MAX_PAGES: Final = 1 << 16  # of 4 KiB
_PRUNED_EVERY: Final = 64  # changes


class Journal(History):
    """What was changed, by whom and when; what entries are to hold by that, what is held, what waits to be confirmed.

    Thread rule: one event loop.
    """

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or make it. Errors: JournalDamaged, JournalFailed."""
        super().__init__(file, durability)
        self.maintain()

    # What entries are to hold

    async def begin_recording(self, map_: str, array: Array, entries: Mapping[int, ProgramRecord]) -> None:
        """From now on the entries of this map are to hold this. JournalFailed."""
        rows = [
            (map_, index, array.boot_id, _PROGRAM.dump_json(program).decode()) for index, program in entries.items()
        ]

        def do() -> None:
            self._forget(map_)
            self._writer.execute("INSERT INTO arrays VALUES (?,?,?)", (map_, *astuple(array)))
            self._writer.executemany("INSERT INTO recorded VALUES (?,?,?,?)", rows)

        await self.write(do)

    async def recorded(self, map_: str, boot_id: str) -> tuple[Array, dict[int, ProgramRecord]] | None:
        """What the entries of this map are to hold, and of which array; None where that was never recorded.

        A program that was recorded in another boot than this has the id 0. JournalFailed.
        """
        await self.write(self._fold)
        row = self.read("SELECT map_id, boot_id FROM arrays WHERE map = ?", [map_]).fetchone()
        if row is None:
            return None
        found = self.read(
            "SELECT entry, boot_id, program FROM recorded WHERE map = ? ORDER BY entry", [map_]
        ).fetchall()
        return Array(*row), {index: _program(text, boot == boot_id) for index, boot, text in found}

    def _fold(self) -> None:
        """Bring `recorded` up to the last change."""
        execute = self._writer.execute
        execute(
            "INSERT OR REPLACE INTO recorded"
            " SELECT c.map, json_extract(e.value, '$.index'), c.boot_id, json_extract(e.value, '$.after')"
            " FROM changes c, json_each(c.entries) e"
            " WHERE c.id > (SELECT folded FROM bookmarks) ORDER BY c.id, e.key"
        )
        execute("DELETE FROM recorded WHERE program IS NULL")
        execute("UPDATE bookmarks SET folded = max(folded, (SELECT coalesce(max(id), 0) FROM changes))")

    def _forget(self, map_: str) -> None:
        self._fold()
        self._writer.execute("DELETE FROM arrays WHERE map = ?", (map_,))
        self._writer.execute("DELETE FROM recorded WHERE map = ?", (map_,))

    # What is held

    async def hold(self, hold: Hold, told: dict[str, Any]) -> None:
        """Remember what a request had held; `told`: of the event. JournalFailed."""

        def do() -> None:
            self._writer.execute("INSERT OR REPLACE INTO holds VALUES (?,?,?,?,?,?)", astuple(hold))
            self._told_of(hold.kind, hold.name, told)

        await self.write(do)

    async def release(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        """Forget it. JournalFailed."""

        def do() -> None:
            self._writer.execute("DELETE FROM holds WHERE kind = ? AND name = ?", (kind, name))
            if kind == "map":
                self._forget(name)
            self._told_of(kind, name, told)

        await self.write(do)

    def _told_of(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        self.event(kind, name if kind == "map" else None, data=told)

    async def tell_of(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        """Journal an event of a map or a program. JournalFailed."""
        await self.write(lambda: self._told_of(kind, name, told), single=True)

    async def tell_drift(self, map_: str, told: dict[str, Any]) -> None:
        """Journal that entries of a map have drifted, or have no more. JournalFailed."""
        await self.write(lambda: self.event("drift", map_, data=told), single=True)

    def holds(self) -> list[Hold]:
        """All that requests had held. JournalFailed."""
        return [Hold(*row) for row in self.read(_HOLDS).fetchall()]

    # What waits to be confirmed

    async def wait(self, waiting: Waiting) -> None:
        """Before the first write of a change: it is to be undone unless it is confirmed. JournalFailed."""
        row = (
            waiting.token, _CHANGE.dump_json(waiting.change).decode(), waiting.deadline,
            _KEEPS.dump_json(waiting.keeps).decode(),
        )  # fmt: skip
        query = "INSERT INTO waiting VALUES (?, NULL, ?, ?, ?)"
        await self.write(lambda: self._writer.execute(query, row), single=True)

    async def wait_no_more(self, token: str) -> None:
        """The change came to nothing. JournalFailed."""
        await self.write(lambda: self._writer.execute("DELETE FROM waiting WHERE token = ?", (token,)), single=True)

    def waiting(self) -> list[Waiting]:
        """All that waits. JournalFailed."""
        found = []
        for row in self.read("SELECT * FROM waiting ORDER BY change_id").fetchall():
            change = None if row["change_id"] is None else self.change(row["change_id"])
            keeps = _KEEPS.validate_json(row["keeps"])
            found.append(Waiting(row["token"], change or _CHANGE.validate_json(row["change"]), row["deadline"], keeps))
        return found

    # Pruning

    def maintain(self) -> None:
        """Drop the oldest tenth where there is too much, or the oldest is too old."""
        if self._last_change % _PRUNED_EVERY:
            return
        with suppress(sqlite3.Error):  # there is time until the next
            execute = self._writer.execute
            pages, free = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
            oldest, at = execute("SELECT id, at FROM changes ORDER BY id LIMIT 1").fetchone() or (
                self._last_change,
                0.0,
            )
            too_old = at < time.time() - _KEPT_SECONDS
            if pages - free > _MAX_PAGES or self._last_change - oldest > _KEPT or too_old:
                self._prune(oldest + (self._last_change - oldest) // 10)

    def _prune(self, last: int) -> None:
        """Drop the changes up to this one, but none that still waits, and the events before what is left."""
        execute = self._writer.execute
        execute("BEGIN IMMEDIATE")
        try:
            self._fold()
            waiting = execute("SELECT min(change_id) FROM waiting").fetchone()[0]
            last = last if waiting is None else min(last, waiting - 1)
            event = execute("SELECT event FROM changes WHERE id <= ? ORDER BY id DESC LIMIT 1", (last,)).fetchone()
            if event is not None:
                execute("DELETE FROM changes WHERE id <= ?", (last,))
                execute("DELETE FROM events WHERE id <= ?", (event[0],))
                execute("UPDATE bookmarks SET pruned = ?", (event[0],))
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise


def check(file: Path) -> list[Hold]:
    """Look whether `file` is a journal that can be used, change nothing, and tell what requests had held.

    JournalDamaged, JournalFailed.
    """
    return [Hold(*row) for row in check_file(file, _HOLDS)]


@functools.lru_cache(maxsize=4096)  # one object for all entries that are to hold the same program
def _program(text: str, is_of_this_boot: bool) -> ProgramRecord:
    record = _PROGRAM.validate_json(text)
    return record if is_of_this_boot else ProgramRecord(**asdict(record) | {"id": 0})
