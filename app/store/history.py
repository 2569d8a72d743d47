"""What has happened: changes and events, each in a sequence of its own."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from app.store.database import Database
from app.store.records import Change, EntryChanges, Event

_ENTRIES_A_PAGE: Final = 4096


class History(Database):
    """The part of the journal that only grows. `on_events` is called with those that are in, in their order."""

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or make it. Errors: JournalDamaged, JournalFailed."""
        super().__init__(file, durability)
        self.on_events: Callable[[list[Event]], None] = lambda _: None
        row = self._writer.execute(
            "SELECT max(coalesce(max(id), 0), (SELECT folded FROM bookmarks)),"
            " max(coalesce(max(event), 0), (SELECT coalesce(max(id), 0) FROM events),"
            " (SELECT pruned FROM bookmarks)) FROM changes"
        ).fetchone()
        self._last_change, self._last_event = row
        # The same, as the event loop knows them: what is in.
        self._told_change, self._told_event = self._last_change, self._last_event
        self._fresh: list[Event] = []
        self._weight = 0  # entries of changes since somebody looked
        self._before: tuple[int, int, int] = (0, 0, 0)

    # Writing

    async def append(self, change: Change, *, token: str | None = None) -> Change:
        """Journal the change, and return it, now with its id; what it undoes is `reverted`, or `expired`, from then on.

        `token`: of the Waiting that was written before it. JournalFailed: nothing was written.
        """
        await self.append_all([change], token=token)
        return change

    async def append_all(self, changes: Sequence[Change], *, token: str | None = None) -> None:
        """The same for several, in this order and in one transaction; `token`: of the only one."""
        is_plain = len(changes) == 1 and token is None and changes[0].reverts is None
        await self.write(lambda: self._insert(changes, token), single=is_plain)

    def _insert(self, changes: Sequence[Change], token: str | None) -> None:
        id_, event = self._last_change, self._last_event
        rows = []
        for change in changes:
            id_, event = id_ + 1, event + 1
            change.id = id_
            rows.append(
                (id_, event, change.at, change.map, change.map_id, change.boot_id, change.kind, change.actor,
                 change.request_id, change.note, change.entries.packed(), change.state,
                 change.reverts, change.confirm_by)
            )  # fmt: skip
        self._writer.executemany("INSERT INTO changes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)
        for number, change in enumerate(changes, self._last_event + 1):
            told = change if token is None and change.reverts is None else self._mark(change, token)
            self._fresh.append(Event(number, "change" if told is change else "expired", change.map, told))
            self._weight += len(change.entries)
        self._last_change, self._last_event = id_, event

    def _mark(self, change: Change, token: str | None) -> Change:
        """Write what else there is of a change; what its event is to tell: the change, or the one that has expired."""
        if token is not None:
            self._writer.execute("UPDATE waiting SET change_id = ? WHERE token = ?", (change.id, token))
        if change.reverts is None:
            return change
        state = "expired" if change.kind == "expire" else "reverted"
        self._writer.execute("UPDATE changes SET state = ? WHERE id = ?", (state, change.reverts))
        self._writer.execute("DELETE FROM waiting WHERE change_id = ?", (change.reverts,))
        return self._undone(change, self._writer) if change.kind == "expire" else change

    async def confirm(self, change: Change) -> Change:
        """The change stands: it waits no more. JournalFailed."""
        return await self.write(lambda: self._confirm(change))

    def _confirm(self, change: Change) -> Change:
        confirmed = replace(change, state="confirmed")
        self._writer.execute("UPDATE changes SET state = 'confirmed' WHERE id = ?", (change.id,))
        self._writer.execute("DELETE FROM waiting WHERE change_id = ?", (change.id,))
        self.event("confirmed", change.map, change=confirmed)
        return confirmed

    def event(
        self,
        type_: Literal["confirmed", "drift", "map", "program"],
        map_: str | None,
        *,
        change: Change | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Write an event. Within a transaction."""
        id_ = self._last_event + 1
        text = None if data is None else json.dumps(data)
        change_id = None if change is None else change.id
        self._writer.execute("INSERT INTO events VALUES (?,?,?,?,?)", (id_, type_, map_, change_id, text))
        self._last_event = id_
        self._fresh.append(Event(id_, type_, map_, change, data))

    def begin(self) -> None:
        """What a transaction that fails takes back."""
        self._before = self._last_change, self._last_event, len(self._fresh)

    def rolled_back(self) -> None:
        """Take it back."""
        self._last_change, self._last_event, fresh = self._before
        del self._fresh[fresh:]

    def committed(self) -> None:
        """Tell of the events that are in."""
        self._told_change, self._told_event = self._last_change, self._last_event
        fresh, self._fresh = self._fresh, []
        if fresh:
            self.on_events(fresh)

    # Reading

    def change(self, id_: int) -> Change | None:
        """The change with this id. JournalFailed."""
        found = self._changes("SELECT * FROM changes WHERE id = ?", [id_])
        return found[0] if found else None

    def changes(
        self,
        *,
        maps: Sequence[str] | None = None,
        after: int = 0,
        before: int | None = None,
        request_id: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Change], bool]:
        """At most `limit` changes with `after` < id < `before`, by rising id; fewer where they have many entries.

        True: there may be more. JournalFailed.
        """
        where: list[str] = ["id > ?"]
        values: list[int | str] = [after]
        if maps is not None:
            where.append(f"map IN ({','.join('?' * len(maps))})")
            values += maps
        for condition, value in (("id < ?", before), ("request_id = ?", request_id)):
            if value is not None:
                where.append(condition)
                values.append(value)
        query = f"SELECT * FROM changes WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"  # noqa: S608
        found = self._changes(query, [*values, limit + 1])
        return found[:limit], len(found) > limit or sum(len(change.entries) for change in found) > _ENTRIES_A_PAGE

    def _changes(self, query: str, values: Sequence[int | str]) -> list[Change]:
        return [change for change, _ in self._numbered(query, values)]

    def _numbered(self, query: str, values: Sequence[int | str]) -> list[tuple[Change, int]]:
        """The changes that the query finds, and their events' ids, up to the one with which they have too many entries
        for one answer."""
        found, entries = [], 0
        try:
            for row in self.read(query, values):
                found.append(_change(row))
                entries += len(found[-1][0].entries)
                if entries > _ENTRIES_A_PAGE:
                    break
        except sqlite3.Error as error:
            self.unreadable(error)
        return found

    @property
    def last_event(self) -> int:
        """The id of the last event that is in."""
        id_: int = self._told_event
        return id_

    def pruned_event(self) -> int:
        """The id of the last event that is gone. JournalFailed."""
        pruned: int = self.read("SELECT pruned FROM bookmarks").fetchone()[0]
        return pruned

    def events(self, after: int, limit: int) -> list[Event]:
        """At most `limit` events with a higher id than `after`, by rising id. JournalFailed."""
        # The distance between a change's id and its event's is the number of other events before it, and only grows:
        # so no change up to `first` can have an event after `after`.
        first = max(0, after - (self._told_event - self._told_change))
        query = "SELECT * FROM changes WHERE id > ? AND event > ? ORDER BY id LIMIT ?"
        changes = self._numbered(query, [first, after, limit])
        ended_early = len(changes) == limit or sum(len(change.entries) for change, _ in changes) > _ENTRIES_A_PAGE
        until = changes[-1][1] if ended_early else self._told_event
        found = [self._told(change, id_) for change, id_ in changes]
        others = "SELECT * FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        for row in self.read(others, [after, until, limit]).fetchall():
            data = None if row["data"] is None else json.loads(row["data"])
            change = None if row["change_id"] is None else self.change(row["change_id"])
            if change is not None:
                change = replace(change, state="confirmed")
            elif data is None:  # it was confirmed late, and is pruned by now
                data = {"id": row["change_id"], "map": row["map"], "state": "confirmed"}
            found.append(Event(row["id"], row["type"], row["map"], change, data))
        return sorted(found, key=lambda event: event.id)[:limit]

    def _told(self, change: Change, event: int) -> Event:
        """The event of a change, as it was told when it happened."""
        if change.kind == "expire":
            return Event(event, "expired", change.map, self._undone(change, self._reader))
        return Event(
            event, "change", change.map, replace(change, state="unconfirmed" if change.confirm_by else "applied")
        )

    @staticmethod
    def _undone(expire: Change, connection: sqlite3.Connection) -> Change:
        """What this one undid; itself, where that was pruned."""
        row = connection.execute("SELECT * FROM changes WHERE id = ?", (expire.reverts,)).fetchone()
        return expire if row is None else replace(_change(row)[0], state="expired")


def _change(row: sqlite3.Row) -> tuple[Change, int]:
    values = dict(row)
    event = values.pop("event")
    return Change(**values | {"entries": EntryChanges.unpacked(values["entries"])}), event
