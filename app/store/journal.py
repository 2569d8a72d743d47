"""The journal: one SQLite file in state_dir. What has happened, and what stands by that."""

import math
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from app.store.database import JournalDamaged, JournalFailed
from app.store.database import check as check_file
from app.store.expected import PackedTable, Table
from app.store.history import History
from app.store.records import Array, Change, EntryChanges, Hold, PendingConfirmation

__all__ = ["Journal", "JournalDamaged", "JournalFailed", "check"]

_TOLD: Final = [field.name for field in fields(Change) if field.name != "entries"]
_KEEPS: Final = TypeAdapter(tuple[tuple[int, str], ...])
_HOLDS: Final = "SELECT * FROM holds ORDER BY kind, name"
_KEPT: Final = 100_000  # changes
_KEPT_SECONDS: Final = 400 * 86_400.0
_MAX_PAGES: Final = 1 << 16  # of 4 KiB
_SOME: Final = 64  # changes, or other events, after which something is done about them
_MOST_ROWS: Final = 1024  # to be dropped at a time
_MOST_BYTES: Final = 1 << 20
_UNFOLDED: Final = """
    SELECT id, map, boot_id, entries FROM changes WHERE id > (SELECT folded FROM bookmarks) ORDER BY id LIMIT ?
"""
_DROPPABLE: Final = """
    SELECT id, event, at, length(entries) FROM changes
    WHERE id < (SELECT max(id) FROM changes) AND id <= (SELECT folded FROM bookmarks)
        AND id < (SELECT coalesce(min(change_id), 1 << 62) FROM waiting)
    ORDER BY id LIMIT ?
"""


class Journal(History):
    """What was changed, by whom and when; what entries are to hold by that, what is held, what waits to be confirmed.

    Thread rule: one event loop.
    """

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or make it. Errors: JournalDamaged, JournalFailed."""
        super().__init__(file, durability)
        self._looked_at = -_SOME
        self.maintain()

    # What entries are to hold

    async def save_expected_table(self, map_: str, array: Array, table: Table) -> None:
        """From now on the entries of this map are to hold this. JournalFailed."""
        recording = PackedTable.of(table, array.boot_id).packed()

        def do() -> None:
            self._forget(map_)
            self._writer.execute("INSERT INTO arrays VALUES (?,?,?)", (map_, *astuple(array)))
            self._writer.execute("INSERT INTO recorded VALUES (?,?,?)", (map_, *recording))

        await self.write(do)

    async def expected_table(self, map_: str, boot_id: str) -> tuple[Array, Table] | None:
        """What the entries of this map are to hold, and of which array; None where that was never recorded.

        A program that was recorded in another boot than this has the id 0. JournalFailed.
        """
        await self.write(self._checkpoint)
        row = self.read("SELECT map_id, boot_id FROM arrays WHERE map = ?", [map_]).fetchone()
        if row is None:
            return None
        recording = self.read("SELECT programs, numbers FROM recorded WHERE map = ?", [map_]).fetchone()
        return Array(*row), PackedTable(*recording).table(boot_id)

    def _checkpoint(self, changes: int = -1, entries: int = 1 << 62) -> None:
        """Bring `recorded` up to the last change; no further than by so many changes, and about so many entries."""
        execute, recordings, folded = self._writer.execute, dict[str, PackedTable](), 0
        with closing(execute(_UNFOLDED, (changes,))) as rows:
            for id_, map_, boot_id, packed in rows:
                change = EntryChanges.unpacked(packed)
                if map_ not in recordings:
                    known = execute("SELECT programs, numbers FROM recorded WHERE map = ?", [map_]).fetchone()
                    recordings[map_] = PackedTable(*known or ())
                recordings[map_].apply(change, boot_id)
                folded, entries = id_, entries - len(change)
                if entries <= 0:
                    break
        for map_, recording in recordings.items():
            execute("INSERT OR REPLACE INTO recorded VALUES (?,?,?)", (map_, *recording.packed()))
        execute("UPDATE bookmarks SET folded = max(folded, ?)", (folded,))

    def _forget(self, map_: str) -> None:
        self._checkpoint()
        self._writer.execute("DELETE FROM arrays WHERE map = ?", (map_,))
        self._writer.execute("DELETE FROM recorded WHERE map = ?", (map_,))

    # What is held

    async def save_hold(self, hold: Hold, told: dict[str, Any]) -> None:
        """Remember what a request had held; `told`: of the event. JournalFailed."""

        def do() -> None:
            self._writer.execute("INSERT OR REPLACE INTO holds VALUES (?,?,?,?,?,?)", astuple(hold))
            self._told_of(hold.kind, hold.name, told)

        await self.write(do)

    async def remove_hold(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        """Forget it. JournalFailed."""

        def do() -> None:
            self._writer.execute("DELETE FROM holds WHERE kind = ? AND name = ?", (kind, name))
            if kind == "map":
                self._forget(name)
            self._told_of(kind, name, told)

        await self.write(do)

    def _told_of(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        self.event(kind, name if kind == "map" else None, data=told)

    async def append_object_event(self, kind: Literal["map", "program"], name: str, told: dict[str, Any]) -> None:
        """Journal an event of a map or a program. JournalFailed."""
        await self.write(lambda: self._told_of(kind, name, told), single=True)

    async def append_drift_event(self, map_: str, told: dict[str, Any]) -> None:
        """Journal that entries of a map have drifted, or have no more. JournalFailed."""
        await self.write(lambda: self.event("drift", map_, data=told), single=True)

    def holds(self) -> list[Hold]:
        """All that requests had held. JournalFailed."""
        return [Hold(*row) for row in self.read(_HOLDS).fetchall()]

    # What waits to be confirmed

    async def add_pending(self, waiting: PendingConfirmation) -> None:
        """Before the first write of a change: it is to be undone unless it is confirmed. JournalFailed."""
        change = to_json({name: getattr(waiting.change, name) for name in _TOLD}).decode()
        undo_pins = _KEEPS.dump_json(waiting.undo_pins).decode()
        row = waiting.token, change, waiting.change.entries.packed(), waiting.deadline, undo_pins
        query = "INSERT INTO waiting VALUES (?, NULL, (SELECT coalesce(max(id), 0) FROM changes), ?, ?, ?, ?)"
        await self.write(lambda: self._writer.execute(query, row), single=True)

    async def remove_pending(self, token: str) -> None:
        """The change came to nothing. JournalFailed."""
        await self.write(lambda: self._writer.execute("DELETE FROM waiting WHERE token = ?", (token,)), single=True)

    def pending(self) -> list[PendingConfirmation]:
        """All that waits. JournalFailed."""
        found = []
        for row in self.read("SELECT * FROM waiting ORDER BY change_id").fetchall():
            change = None if row["change_id"] is None else self.change(row["change_id"])
            undo_pins = _KEEPS.validate_json(row["keeps"])
            change = change or Change(**from_json(row["change"]), entries=EntryChanges.unpacked(row["entries"]))
            found.append(PendingConfirmation(row["token"], change, row["deadline"], undo_pins, row["after"]))
        return found

    def changed_since(self, waiting: PendingConfirmation) -> set[int]:
        """The entries of its map that changes have named which were journalled after it began. JournalFailed."""
        query = "SELECT entries FROM changes WHERE id > ? AND map = ?"
        found = self.read(query, [waiting.after, waiting.change.map]).fetchall()
        return {index for (entries,) in found for index in EntryChanges.unpacked(entries).indexes}

    # What is done now and then, a little at a time: in `process` nothing else runs meanwhile

    def maintain(self) -> None:
        """Fold what has come, and drop some of the oldest, where there is too much, or it is too old."""
        came, weight = self._last_event - self._looked_at, self._weight
        if came < _SOME and weight < _SOME * 64:
            return
        self._looked_at, self._weight = self._last_event, 0
        with suppress(sqlite3.Error):  # there is time until the next
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                # Twice as much as has come, so that it gets there whatever there was before.
                self._checkpoint(2 * came, 2 * weight + _SOME)
                self._prune(_MOST_ROWS + weight // 8, _MOST_BYTES + 24 * weight)
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise

    def _is_too_large(self, pruned: int) -> bool:
        pages, free = (
            self._writer.execute(query).fetchone()[0] for query in ("PRAGMA page_count", "PRAGMA freelist_count")
        )
        return bool(pages - free > _MAX_PAGES or self._last_event - pruned > _KEPT)

    def _prune(self, rows: int, size: int) -> None:
        """Drop so many of the oldest events, and their changes, of about so many bytes.

        But for the last change, any from one on that still waits, and what is not folded yet.
        """
        execute = self._writer.execute
        pruned = execute("SELECT pruned FROM bookmarks").fetchone()[0]
        last, dropped = pruned + (rows if self._is_too_large(pruned) else 0), 0
        newest = execute("SELECT at FROM changes ORDER BY id DESC LIMIT 1").fetchone()
        since = time.time() - _KEPT_SECONDS
        if newest is None or newest["at"] < since:  # else the clock was never set
            since = -math.inf
        with closing(execute(_DROPPABLE, (rows,))) as changes:
            for id_, event, at, weight in changes:
                if event > last and at >= since:
                    break
                dropped, last, size = id_, max(last, event), size - weight
                if size <= 0:
                    last = event
                    break
        if last > pruned:
            execute("DELETE FROM changes WHERE id <= ?", (dropped,))
            execute("DELETE FROM events WHERE id <= ?", (last,))
            execute("UPDATE bookmarks SET pruned = ?", (min(last, self._last_event),))


def check(file: Path) -> list[Hold]:
    """Look whether `file` is a journal that can be used, change nothing, and tell what requests had held.

    JournalDamaged, JournalFailed.
    """
    return [Hold(*row) for row in check_file(file, _HOLDS)]
