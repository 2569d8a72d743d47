"""The journal: one SQLite file in state_dir with all that the service has to remember."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from app.store.database import MAX_BYTES, Database, JournalDamaged, JournalFailed, TransactionCallbacks
from app.store.database import check as check_file
from app.store.expected import ExpectedTables, PackedTable, Table
from app.store.history import LAST_CHANGE, MAX_ENTRIES_PER_PAGE, History
from app.store.objects import ObjectRecords
from app.store.records import (
    EVERY_CHANGE,
    MAX_BATCH_SIZE,
    Array,
    Batch,
    Change,
    ChangeFilter,
    EntryChanges,
    EntryWrite,
    Event,
    Hold,
    Indexes,
    PendingConfirmation,
    Programs,
)

__all__ = ["MAX_BYTES", "MAX_ENTRIES_PER_PAGE", "Journal", "JournalDamaged", "JournalFailed", "check"]

# An event of a map or a program: its kind, its name, and its data.
ObjectEvent = tuple[Literal["map", "program"], str, dict[str, Any]]

_CHANGE_FIELDS_IN_JSON: Final = [field.name for field in fields(Change) if field.name != "entries"]
_UNDO_PINS: Final = TypeAdapter(tuple[tuple[int, str], ...])
_SELECT_HOLDS: Final = "SELECT * FROM holds ORDER BY kind, name"

# Maintenance runs after so many events. After changes of many entries it takes as long as they do, so it waits until
# none has come for a while, unless very many wait for it.
_EVENTS_PER_MAINTENANCE: Final = 1024
_MANY_ENTRIES: Final = 4096
_MAX_WAITING_ENTRIES: Final = 1 << 22
_QUIET_SECONDS: Final = 0.25
_PAUSE_SECONDS: Final = 0.05  # between one maintenance and the next
# How many entries one maintenance moves into the expected tables, about 8 ms; more if one change has more.
_ENTRIES_PER_MAINTENANCE: Final = 1 << 16
# What one maintenance prunes at most; more if changes with many entries were written.
_MAX_PRUNED_ROWS: Final = 1024
_MAX_PRUNED_BYTES: Final = 1 << 20


class Journal:
    """Changes and events, expected tables, holds, and changes that wait for confirmation.

    The methods that write return when that is committed. See `Database` for what `durability` means. Call all methods
    from one event loop only.

    """

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or create it.

        Raises:
            JournalDamaged: The file is damaged, belongs to another program, or was written by a newer version.
            JournalFailed: The file cannot be opened.
        """
        self._database = Database(file, durability)
        self._history = history = History(self._database)
        self._database.set_callbacks(
            TransactionCallbacks(
                history.transaction_rolled_back, history.transaction_committed, self._maintain, self._publish
            )
        )
        self._expected = ExpectedTables(self._database)
        self._objects = ObjectRecords(self._database)
        # What was written up to the last maintenance. It has to run now, and then now and then.
        self._maintained_event = -_EVENTS_PER_MAINTENANCE
        self._maintained_entries = 0
        self._is_quiet = False  # nobody waits for the maintenance after this transaction
        self._quiet_from = 0.0  # time of the event loop at which no change of many entries has come for a while
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._quiet_task: asyncio.Task[None] | None = None
        self._maintain()

    @property
    def on_commit(self) -> Callable[[float], None]:
        """Called after each commit with its duration in seconds. It may run in another thread."""
        return self._database.on_commit

    @on_commit.setter
    def on_commit(self, callback: Callable[[float], None]) -> None:
        self._database.on_commit = callback

    @property
    def on_events(self) -> Callable[[Sequence[Event | Batch]], None]:
        """Called with new events in their order, before the methods that wrote them return.

        A Batch stands for the events of its changes.
        """
        return self._history.on_events

    @on_events.setter
    def on_events(self, callback: Callable[[Sequence[Event | Batch]], None]) -> None:
        self._history.on_events = callback

    @property
    def failing(self) -> str | None:
        """Why the journal cannot be written: its files are lost or full, or the last transaction failed.

        None: it can be written.
        """
        return self._database.failing

    @property
    def wal_bytes(self) -> int:
        """The size of the -wal file, which grows while another process reads the journal."""
        return self._database.wal_bytes

    @property
    def wal_warning(self) -> str | None:
        """What to say of a -wal file that has grown large. None: it is small."""
        return self._database.wal_warning

    async def make_room(self) -> None:
        """Try again to make room for the next change, where there was none."""
        await self._database.make_room()

    def close(self) -> None:
        """Close the file."""
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
        if self._quiet_task is not None:
            self._quiet_task.cancel()
        self._database.close()

    # Transactions

    @property
    def _waiting_entries(self) -> int:
        return self._history.written_entries - self._maintained_entries

    def _maintain(self) -> None:
        """Do maintenance if it is due and cannot wait."""
        events = self._history.written_event - self._maintained_event
        waiting = self._waiting_entries
        if self._is_quiet or events >= _EVENTS_PER_MAINTENANCE or waiting >= _MAX_WAITING_ENTRIES:
            self._is_quiet = False
            self._maintain_now(max(events, 1), waiting)

    def _maintain_now(self, events: int, waiting: int) -> None:
        """Do a checkpoint and prune.

        The work is limited, because with durability `process` it blocks the event loop.

        Args:
            events: How many were written since the last time.
            waiting: How many entries of changes wait for a checkpoint. Those of earlier runs are not counted.
        """
        entries = min(waiting, _ENTRIES_PER_MAINTENANCE)
        self._maintained_event = self._history.written_event
        self._maintained_entries += entries
        execute = self._database.writer.execute
        with suppress(sqlite3.Error):  # the next maintenance makes up for it
            execute("BEGIN IMMEDIATE")
            try:
                # Twice what was written, so that a backlog shrinks.
                self._expected.checkpoint(2 * events, entries + _EVENTS_PER_MAINTENANCE)
                self._history.prune(_MAX_PRUNED_ROWS + entries // 8, _MAX_PRUNED_BYTES + 24 * entries)
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise
        with suppress(sqlite3.Error):
            self._database.check_size()

    def _publish(self) -> None:
        """Tell of what is committed. Let maintenance of many entries come when nobody waits for it."""
        self._history.publish()
        if self._waiting_entries >= _MANY_ENTRIES and (self._quiet_task is None or self._quiet_task.done()):
            self._maintain_later()

    def _maintain_later(self) -> None:
        # One timer serves many changes: it looks at the time when it ends.
        loop = asyncio.get_running_loop()
        self._quiet_from = loop.time() + _QUIET_SECONDS
        if self._quiet_timer is None:
            self._quiet_timer = loop.call_at(self._quiet_from, self._begin_quiet_maintenance)

    def _begin_quiet_maintenance(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._quiet_from:
            self._quiet_timer = loop.call_at(self._quiet_from, self._begin_quiet_maintenance)
            return
        self._quiet_timer = None
        self._quiet_task = asyncio.create_task(self._maintain_while_quiet())

    async def _maintain_while_quiet(self) -> None:
        """Do one maintenance after another, each after an empty transaction, until another change of many comes."""
        written = self._history.written_entries
        while self._waiting_entries >= _MANY_ENTRIES:
            self._is_quiet = True
            try:
                await self._database.write(lambda: None)
            except JournalFailed:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            if self._history.written_entries - written >= _MANY_ENTRIES:
                self._maintain_later()
                return

    # Changes and events

    async def append(self, change: Change, *, token: str | None = None) -> Change:
        """Write a change, and set its id.

        A change that it undoes gets the state `reverted` or `expired`, and no longer waits for confirmation.

        Args:
            change: The change. Its id is 0.
            token: Of the PendingConfirmation that was added for it.

        Returns:
            The same object.

        Raises:
            JournalFailed: Nothing was written.
        """
        is_single = token is None and change.reverts is None
        await self._database.write(partial(self._history.insert, change, token), single=is_single)
        return change

    async def append_all(self, changes: Sequence[Change], tokens: Sequence[str] = ()) -> None:
        """Write changes in this order, in one transaction, and set their ids: see `append`.

        Args:
            changes: The changes. Their ids are 0.
            tokens: Of the PendingConfirmation that was added for each of them. Empty: none waits.

        Raises:
            JournalFailed: Nothing was written.
        """

        def work() -> None:
            for place, change in enumerate(changes):
                self._history.insert(change, tokens[place] if tokens else None)

        await self._database.write(work)

    async def append_batch(self, at: float, boot_id: str, programs: Programs, writes: Sequence[EntryWrite]) -> int:
        """Write changes of single entries in this order, in one transaction: one row for up to MAX_BATCH_SIZE of them.

        Args:
            at: When they were made, in seconds since 1970.
            boot_id: The boot in which they were made.
            programs: Every program that they name, by id.
            writes: The changes, at least one.

        Returns:
            The id of the first. The others have the ids after it.

        Raises:
            JournalFailed: Nothing was written.
        """
        starts = range(0, len(writes), MAX_BATCH_SIZE)
        batches = [Batch(at, boot_id, programs, writes[start : start + MAX_BATCH_SIZE]) for start in starts]

        def work() -> None:
            for batch in batches:
                self._history.insert_batch(batch)

        await self._database.write(work, single=len(batches) == 1)
        return batches[0].first_id

    async def confirm(self, change: Change, actor: str, at: float) -> Change:
        """Confirm a change: it no longer waits for confirmation. Returns the change with its new state.

        Args:
            change: The change.
            actor: Who confirms it.
            at: When, in seconds since 1970.

        Raises:
            JournalFailed: Nothing was written.
        """
        return await self._database.write(lambda: self._confirm(change, actor, at))

    def _confirm(self, change: Change, actor: str, at: float) -> Change:
        self._database.writer.execute("DELETE FROM waiting WHERE change_id = ?", (change.id,))
        return self._history.confirm(change, actor, at)

    def change(self, id_: int) -> Change | None:
        """Read the change with this id. None if there is none, or if it is pruned.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.change(id_)

    def changes(
        self,
        wanted: ChangeFilter = EVERY_CHANGE,
        *,
        after: int = 0,
        before: int | None = None,
        newest_first: bool = False,
        limit: int = 100,
    ) -> tuple[list[Change], int | None]:
        """Read a part of the changes, and how far it goes. See `History.changes`.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.changes(wanted, after=after, before=before, newest_first=newest_first, limit=limit)

    def written_after(self, change: Change, before: int) -> list[tuple[int, int | None, Indexes]]:
        """Read a page of the changes of the same array that came after a change. See `History.written_after`.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.written_after(change, before)

    async def append_object_event(self, kind: Literal["map", "program"], name: str, data: dict[str, Any]) -> None:
        """Write an event of a map or a program.

        Raises:
            JournalFailed: Nothing was written.
        """
        await self._database.write(lambda: self._insert_object_event(kind, name, data), single=True)

    def _insert_object_event(self, kind: Literal["map", "program"], name: str, data: dict[str, Any]) -> None:
        self._history.insert_event(kind, name if kind == "map" else None, data=data)

    async def append_drift_event(self, map_: str, data: dict[str, Any]) -> None:
        """Write the event that entries of a map have drifted, or no longer drift.

        Raises:
            JournalFailed: Nothing was written.
        """
        await self._database.write(lambda: self._history.insert_event("drift", map_, data=data), single=True)

    @property
    def last_event(self) -> int:
        """The id of the last event that `on_events` was called with, or that is in the file since before."""
        return self._history.last_event

    def pruned_event(self) -> int:
        """The id of the last event that is pruned.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.pruned_event()

    def events(self, after: int, limit: int) -> list[Event]:
        """Read a page of events: at most `limit`, with ids above `after`, by rising id.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.events(after, limit)

    # Expected tables

    async def save_expected_table(self, map_: str, array: Array, table: Table) -> None:
        """Set the expected table of a map, and the array that it belongs to. Later changes are applied to it.

        Raises:
            JournalFailed: Nothing was written.
        """
        packed = PackedTable.of(table, array.boot_id).packed()
        await self._database.write(lambda: self._expected.save(map_, array, packed))

    async def expected_table(self, map_: str, boot_id: str) -> tuple[Array, Table] | None:
        """Read the expected table of a map, and the array that it belongs to. None if the map has no table.

        Programs that were recorded in another boot than `boot_id` have the id 0 in it.

        Raises:
            JournalFailed: The file cannot be read or written.
        """
        if self._expected.is_behind(map_):
            await self._database.write(self._expected.checkpoint)
        return self._expected.load(map_, boot_id)

    # Holds

    async def save_hold(self, hold: Hold, event: dict[str, Any]) -> None:
        """Store what the service holds on request, and write an event with this data.

        Raises:
            JournalFailed: Nothing was written.
        """

        def work() -> None:
            self._database.writer.execute("INSERT OR REPLACE INTO holds VALUES (?,?,?,?,?,?)", astuple(hold))
            self._insert_object_event(hold.kind, hold.name, event)

        await self._database.write(work)

    async def remove_hold(self, kind: Literal["map", "program"], name: str, event: dict[str, Any]) -> None:
        """Delete a hold, and the map's expected table, and write an event with this data.

        Raises:
            JournalFailed: Nothing was written.
        """

        def work() -> None:
            self._database.writer.execute("DELETE FROM holds WHERE kind = ? AND name = ?", (kind, name))
            if kind == "map":
                self._expected.remove(name)
            self._insert_object_event(kind, name, event)

        await self._database.write(work)

    def holds(self) -> list[Hold]:
        """Read all holds.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return [Hold(*row) for row in self._database.read(_SELECT_HOLDS).fetchall()]

    # Object files

    async def save_object(self, name: str, content: str, events: Sequence[ObjectEvent]) -> None:
        """Store an object file that is loaded, and write events of its maps and programs.

        Args:
            name: The name of the object file.
            content: What the service has to remember of it.
            events: The kind, the name and the data of each.

        Raises:
            JournalFailed: Nothing was written.
        """

        def work() -> None:
            self._objects.save(name, content)
            for kind, concerned, data in events:
                self._insert_object_event(kind, concerned, data)

        await self._database.write(work)

    async def remove_object(self, name: str, events: Sequence[ObjectEvent]) -> None:
        """Delete an object file, and the expected tables of the maps that the events name, and write the events.

        Raises:
            JournalFailed: Nothing was written.
        """

        def work() -> None:
            self._objects.remove(name)
            for kind, concerned, data in events:
                if kind == "map":
                    self._expected.remove(concerned)
                self._insert_object_event(kind, concerned, data)

        await self._database.write(work)

    def objects(self) -> list[tuple[str, str]]:
        """Read the name of each object file that is loaded, and what the service has to remember of it.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._objects.all()

    # Changes that wait for confirmation

    async def add_pending(self, pending: PendingConfirmation) -> None:
        """Store a change that has to be confirmed. Call this before its first write to the kernel.

        Raises:
            JournalFailed: Nothing was written.
        """
        change = to_json({name: getattr(pending.change, name) for name in _CHANGE_FIELDS_IN_JSON}).decode()
        undo_pins = _UNDO_PINS.dump_json(pending.undo_pins).decode()
        row = pending.token, change, pending.change.entries.packed(), pending.deadline, undo_pins
        query = f"INSERT INTO waiting VALUES (?, NULL, {LAST_CHANGE}, ?, ?, ?, ?)"  # noqa: S608 - a constant
        await self._database.write(lambda: self._database.writer.execute(query, row), single=True)

    async def remove_pending(self, token: str) -> None:
        """Delete a change that was not made, or that is undone.

        Raises:
            JournalFailed: Nothing was written.
        """
        query = "DELETE FROM waiting WHERE token = ?"
        await self._database.write(lambda: self._database.writer.execute(query, (token,)), single=True)

    def pending(self) -> list[PendingConfirmation]:
        """Read all changes that wait for confirmation.

        Raises:
            JournalFailed: The file cannot be read.
        """
        found = []
        for row in self._database.read("SELECT * FROM waiting ORDER BY change_id").fetchall():
            change = None if row["change_id"] is None else self.change(row["change_id"])
            undo_pins = _UNDO_PINS.validate_json(row["keeps"])
            change = change or Change(**from_json(row["change"]), entries=EntryChanges.unpacked(row["entries"]))
            found.append(PendingConfirmation(row["token"], change, row["deadline"], undo_pins, row["after"]))
        return found

    def changed_since(self, pending: PendingConfirmation) -> set[int]:
        """The indexes of entries of its map that other changes have set since this one began.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return self._history.written_since(pending.change.map, pending.after)


def check(file: Path) -> list[Hold]:
    """Check that `file` is a usable journal, without modifying it. Returns the holds that are stored in it.

    Raises:
        JournalDamaged: The file is damaged, belongs to another program, or was written by a newer version.
        JournalFailed: The file cannot be opened.
    """
    return [Hold(*row) for row in check_file(file, _SELECT_HOLDS)]
