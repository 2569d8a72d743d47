"""What has happened: the sequence of changes, and the sequence of events."""

import heapq
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final, Literal

from app.store.database import Database
from app.store.records import (
    EVERY_CHANGE,
    MAX_BATCH_SIZE,
    Batch,
    Change,
    ChangeFilter,
    EntryChanges,
    EntryWrite,
    Event,
    Indexes,
)

MAX_ENTRIES_PER_PAGE: Final = 4096  # a page ends with the change that exceeds this
# What one read of changes looks at, about 10 ms, before others have their turn.
_MAX_SCANNED_CHANGES: Final = 4096
_MAX_SCANNED_BYTES: Final = 1 << 20  # of packed entries
_MAX_CHANGES_PER_PAGE: Final = 256  # of those that came after a change
_MAX_BATCHES_PER_PAGE: Final = 64
_CLOCK_STEP_SECONDS: Final = 1e-6  # answers tell the time of a change so exactly
_MAX_EVENTS: Final = 100_000  # kept; more are pruned
_MAX_AGE_SECONDS: Final = 400 * 86_400.0  # of changes that are kept
_MIN_KEPT_CHANGES: Final = 1000  # the newest ones are kept whatever their age
# Used pages of the file, 4 KiB each: 160 MiB. From there on it is pruned, so that there is room for the -wal file.
_MAX_PAGES: Final = 40_960

# Changes are pruned by age only after the wall clock has kept pace with the time since boot for so long. Between two
# looks at both it may gain or lose a little: it is adjusted by at most 500 ppm (adjtimex(2)), or set right by seconds.
_STEADY_CLOCK_SECONDS: Final = 86_400.0
_MAX_CLOCK_STEP_SECONDS: Final = 60.0

_INSERT_CHANGE: Final = (
    "INSERT INTO changes (id, event, at, map, map_id, boot_id, kind, actor, request_id, note, entries, state, reverts,"
    " confirm_by) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_INSERT_BATCH: Final = "INSERT INTO batches VALUES (?,?,?,?,?,?)"
# SQL of the id of the last change, 0 if there is none.
LAST_CHANGE: Final = "max((SELECT coalesce(max(id), 0) FROM changes), (SELECT coalesce(max(id), 0) FROM batches))"
_FIRST_AND_LAST: Final = f"""
    SELECT min((SELECT coalesce(min(id), 1 << 62) FROM changes),
        coalesce((SELECT id - size + 1 FROM batches ORDER BY id LIMIT 1), 1 << 62)), {LAST_CHANGE}
"""  # noqa: S608 - a constant
# Rows of `changes` and of `batches`; of a batch, the id and the event are those of its last change.
_PRUNABLE_ROWS: Final = f"""
    SELECT * FROM (
        SELECT id, event, at, length(entries) FROM changes UNION ALL SELECT id, event, at, length(content) FROM batches
    )
    WHERE id < {LAST_CHANGE} AND id <= (SELECT folded FROM bookmarks)
        AND id < (SELECT coalesce(min(change_id), 1 << 62) FROM waiting)
    ORDER BY id LIMIT ?
"""  # noqa: S608 - a constant
_TIMES: Final = "SELECT id, at FROM changes UNION ALL SELECT id, at FROM batches"


class History:
    """Changes and events. Each of the two has ids that rise by one.

    A change is also an event, and uses up an id of that sequence. Other events are confirmations, expiries, drift, and
    what happens to maps and programs.

    Changes of single entries that are made together share a row, as a Batch. It is unpacked when somebody reads it.

    The methods that write (`insert`, `insert_batch`, `insert_event`, `confirm`, `prune`) must run inside a transaction
    of the database.
    Events of a transaction become visible in three steps, which the owner triggers: `transaction_committed` or
    `transaction_rolled_back`, then `publish`.

    Attributes:
        written_event: The id of the last event, including those of the open transaction.
        on_events: Called by `publish` with new events in their order. A Batch stands for the events of its changes.
        written_entries: The number of entries of all changes that were written since the journal was opened.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Ids of pruned rows must not be used again.
        row = database.writer.execute(
            f"SELECT max({LAST_CHANGE}, (SELECT folded FROM bookmarks)),"  # noqa: S608 - a constant
            " max((SELECT coalesce(max(event), 0) FROM changes), (SELECT coalesce(max(event), 0) FROM batches),"
            " (SELECT coalesce(max(id), 0) FROM events), (SELECT pruned FROM bookmarks))"
        ).fetchone()
        self._written_change, self.written_event = row
        self._committed_change, self._committed_event = row
        self._published_change, self._published_event = row
        self._written_events: list[Event | Batch] = []  # of the open transaction
        self._committed_events: list[Event | Batch] = []  # not published yet
        self.written_entries = 0
        self._clock = _SteadyClock()
        self.on_events: Callable[[Sequence[Event | Batch]], None] = lambda _: None

    # Writing, inside a transaction

    def insert(self, change: Change, token: str | None = None) -> None:
        """Write a change, and set its id.

        A change that it undoes gets the state `reverted` or `expired`, and no longer waits for confirmation.

        Args:
            change: The change. Its id is 0.
            token: Of the PendingConfirmation that was added for it.
        """
        change.id, event_id = self._written_change + 1, self.written_event + 1
        self._insert_row(change, event_id)
        self._written_change, self.written_event = change.id, event_id
        self.written_entries += len(change.entries.indexes)
        self._written_events.append(Event(event_id, "change", change.map, change))
        if change.reverts is not None:
            self._mark_undone(change)
        if token is not None:
            query = "UPDATE waiting SET change_id = ? WHERE token = ?"
            self._database.writer.execute(query, (change.id, token))

    def _insert_row(self, change: Change, event_id: int) -> None:
        values = (
            change.id, event_id, change.at, change.map, change.map_id, change.boot_id, change.kind, change.actor,
            change.request_id, change.note, change.entries.packed(), change.state, change.reverts, change.confirm_by,
        )  # fmt: skip
        self._database.writer.execute(_INSERT_CHANGE, values)

    def insert_batch(self, batch: Batch) -> None:
        """Write a batch of changes, and set its ids."""
        size = len(batch.writes)
        last_id, last_event = self._written_change + size, self.written_event + size
        values = (last_id, last_event, size, batch.at, batch.boot_id, batch.packed())
        self._database.writer.execute(_INSERT_BATCH, values)
        batch.last_id, batch.last_event = last_id, last_event
        self._written_change, self.written_event = last_id, last_event
        self.written_entries += size
        self._written_events.append(batch)

    def _give_row_of_its_own(self, id_: int) -> None:
        """Take apart the batch that has this change, so that its state can be set: each change becomes a row."""
        batch = _batch_with(self._database.writer.execute, id_)
        if batch is not None:
            self._database.writer.execute("DELETE FROM batches WHERE id = ?", (batch.last_id,))
            for change, event_id in batch.changes():
                self._insert_row(change, event_id)

    def _mark_undone(self, change: Change) -> None:
        """Set the state of the change that `change` undoes. Its expiry is an event of its own."""
        execute = self._database.writer.execute
        state = "expired" if change.kind == "expire" else "reverted"
        if change.reverts is not None:
            self._give_row_of_its_own(change.reverts)
        execute("UPDATE changes SET state = ? WHERE id = ?", (state, change.reverts))
        execute("DELETE FROM waiting WHERE change_id = ?", (change.reverts,))
        if change.kind == "expire":
            row = execute("SELECT * FROM changes WHERE id = ?", (change.reverts,)).fetchone()
            if row is not None:
                self.insert_event("expired", change.map, change=_change(row)[0])

    def confirm(self, change: Change, actor: str, at: float) -> Change:
        """Give a change the state `confirmed`, and write an event. Returns the change with that state.

        Args:
            change: The change.
            actor: Who confirms it.
            at: When, in seconds since 1970.
        """
        confirmed = replace(change, state="confirmed", confirmed_by=actor, confirmed_at=at)
        self._database.writer.execute(
            "UPDATE changes SET state = 'confirmed', confirmed_by = ?, confirmed_at = ? WHERE id = ?",
            (actor, at, change.id),
        )
        self.insert_event("confirmed", change.map, change=confirmed)
        return confirmed

    def insert_event(
        self,
        type_: Literal["confirmed", "expired", "drift", "map", "program"],
        map_: str | None,
        *,
        change: Change | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Write an event that is no change by itself."""
        id_ = self.written_event + 1
        text = None if data is None else json.dumps(data)
        change_id = None if change is None else change.id
        self._database.writer.execute("INSERT INTO events VALUES (?,?,?,?,?)", (id_, type_, map_, change_id, text))
        self.written_event = id_
        self._written_events.append(Event(id_, type_, map_, change, data))

    def prune(self, max_rows: int, max_bytes: int) -> None:
        """Delete the oldest events and changes if there are too many, if they take too much space, or if they are old.

        These are never deleted: the last change; changes that are not in the expected tables yet; the oldest change
        that waits for confirmation, and all after it. Age alone deletes none of the newest 1,000 changes, and nothing
        while the clock may be wrong: see `_too_old`.

        Args:
            max_rows: Delete about so many events at most.
            max_bytes: Stop after changes with so many bytes of entries.
        """
        execute = self._database.writer.execute
        pruned = execute("SELECT pruned FROM bookmarks").fetchone()[0]
        last_event, last_change = pruned + (max_rows if self._is_too_large(pruned) else 0), 0
        before_id, since = self._too_old()
        with closing(execute(_PRUNABLE_ROWS, (max_rows,))) as rows:
            for id_, event, at, size in rows:
                if event > last_event and (id_ >= before_id or at >= since):
                    break
                last_change, last_event, max_bytes = id_, max(last_event, event), max_bytes - size
                if max_bytes <= 0:
                    last_event = event
                    break
        if last_event > pruned:
            execute("DELETE FROM changes WHERE id <= ?", (last_change,))
            execute("DELETE FROM batches WHERE id <= ?", (last_change,))
            execute("DELETE FROM events WHERE id <= ?", (last_event,))
            execute("UPDATE bookmarks SET pruned = ?", (min(last_event, self.written_event),))

    def _too_old(self) -> tuple[int, float]:
        """The bounds of what age deletes: changes with an id below the first, made before the second.

        No single reading of the clock decides. The present is the earliest of what the clock says now and what it said
        at each of the newest 1,000 changes, and it has to be steady: `_SteadyClock`.
        """
        now, execute = self._clock.now(), self._database.writer.execute
        oldest = execute(f"SELECT * FROM ({_TIMES}) ORDER BY id LIMIT 1").fetchone()  # noqa: S608 - a constant
        before_id = self._written_change - _MIN_KEPT_CHANGES + 1
        if now is None or before_id <= 1 or oldest is None or oldest["at"] >= now - _MAX_AGE_SECONDS:
            return 0, 0.0
        times = f"SELECT min(at) FROM ({_TIMES}) WHERE id >= ?"  # noqa: S608 - a constant
        earliest = execute(times, (before_id,)).fetchone()[0]
        return before_id, min(now, earliest) - _MAX_AGE_SECONDS

    def _is_too_large(self, pruned_event: int) -> bool:
        pages, free = (
            self._database.writer.execute(query).fetchone()[0]
            for query in ("PRAGMA page_count", "PRAGMA freelist_count")
        )
        return bool(pages - free > _MAX_PAGES or self.written_event - pruned_event > _MAX_EVENTS)

    # What becomes of a transaction

    def transaction_committed(self) -> None:
        """Keep the events of the open transaction for `publish`."""
        self._committed_change, self._committed_event = self._written_change, self.written_event
        self._committed_events += self._written_events
        self._written_events.clear()

    def transaction_rolled_back(self) -> None:
        """Forget what the open transaction has written."""
        self._written_change, self.written_event = self._committed_change, self._committed_event
        self._written_events.clear()

    def publish(self) -> None:
        """Make committed events visible to `last_event` and `events`, and tell `on_events` of those that are new."""
        self._published_change, self._published_event = self._committed_change, self._committed_event
        published, self._committed_events = self._committed_events, []
        if published:
            self.on_events(published)

    # Reading

    def change(self, id_: int) -> Change | None:
        """Read the change with this id. None if there is none, or if it is pruned.

        Raises:
            JournalFailed: The file cannot be read.
        """
        found = self._read_changes("SELECT * FROM changes WHERE id = ?", [id_])
        if found:
            return found[0][0]
        batch = _batch_with(self._database.read, id_)
        return None if batch is None else batch.change(id_)

    def changes(
        self,
        wanted: ChangeFilter = EVERY_CHANGE,
        *,
        after: int = 0,
        before: int | None = None,
        newest_first: bool = False,
        limit: int = 100,
    ) -> tuple[list[Change], int | None]:
        """Read a part of the changes, and how far it goes.

        Args:
            wanted: Which changes.
            after: Only changes with a higher id.
            before: Only changes with a lower id.
            newest_first: By falling id, and not by rising id.
            limit: The maximum number of changes. There may be fewer if they have many entries, or if many others are
                between them, so that the read takes little time.

        Returns:
            The changes, and the id of the last change that was looked at. Go on after that, or before it with
            `newest_first`. None: there are no more.

        Raises:
            JournalFailed: The file cannot be read.
        """
        first, last = self._database.read(_FIRST_AND_LAST).fetchone()
        lowest, highest = max(after + 1, first), last if before is None else min(last, before - 1)
        if lowest > highest:
            return [], None
        span = max(limit, _MAX_SCANNED_CHANGES) - 1
        end = highest if not newest_first else lowest
        edge = min(highest, lowest + span) if not newest_first else max(lowest, highest - span)
        conditions, values = _conditions(wanted)
        where = " AND ".join(["id BETWEEN ? AND ?", *conditions])
        query = f"SELECT * FROM changes WHERE {where} ORDER BY id {'DESC' if newest_first else ''}"  # noqa: S608
        within = (edge, highest) if newest_first else (lowest, edge)
        rows = ((row["id"], row) for row in self._database.read(query, [*within, *values]))
        batched = self._batched(wanted, *within, newest_first=newest_first)
        merged = heapq.merge(rows, batched, key=itemgetter(0), reverse=newest_first)
        found, stop = self._scan(merged, wanted.index, limit)
        if stop is None:
            stop = edge
        return found, None if stop == end else stop

    def _scan(
        self, stored: Iterator[tuple[int, sqlite3.Row | Batch]], index: int | None, limit: int
    ) -> tuple[list[Change], int | None]:
        """The changes among what is stored, and the id at which it was given up. None: it was not.

        Args:
            stored: The id of each change, and the row or the batch that it is in.
            index: Only changes in rows that wrote this entry. None: all.
            limit: The maximum number of changes.
        """
        found: list[Change] = []
        entries = size = 0
        try:
            for id_, where in stored:
                if isinstance(where, Batch):
                    found.append(where.change(id_))
                    entries += 1
                else:
                    size += 0 if index is None else len(where["entries"])
                    if index is None or EntryChanges.has_index(where["entries"], index):
                        found.append(_change(where)[0])
                        entries += len(found[-1].entries)
                if len(found) == limit or entries > MAX_ENTRIES_PER_PAGE or size > _MAX_SCANNED_BYTES:
                    return found, id_
        except sqlite3.Error as error:
            self._database.read_failed(error)
        return found, None

    def _batched(
        self, wanted: ChangeFilter, first: int, last: int, *, newest_first: bool
    ) -> Iterator[tuple[int, Batch]]:
        """Yield the id of each wanted change in batches, between two ids, and its batch."""
        if wanted.state not in {None, "applied"} or wanted.kind not in {None, "set"}:
            return
        since, until = _times(wanted)
        for batch in self._batches(first, last, newest_first=newest_first):
            if batch.at < since or batch.at >= until:
                continue
            ids = [id_ for id_, write in enumerate(batch.writes, batch.first_id) if _is_wanted(wanted, write)]
            for id_ in reversed(ids) if newest_first else ids:
                if first <= id_ <= last:
                    yield id_, batch

    def _batches(self, first: int, last: int, *, newest_first: bool = False, limit: int = -1) -> Iterator[Batch]:
        """Yield the batches that have changes between two ids. A negative limit is none."""
        query = f"SELECT * FROM batches WHERE id BETWEEN ? AND ? ORDER BY id {'DESC' if newest_first else ''} LIMIT ?"  # noqa: S608
        for row in self._database.read(query, [first, last + MAX_BATCH_SIZE - 1, limit]):
            batch = _batch(row)
            if batch.first_id <= last:
                yield batch

    def written_after(self, change: Change, before: int) -> list[tuple[int, int | None, Indexes]]:
        """Read a page of the changes of the same array that came after a change, by falling id.

        Args:
            change: The change.
            before: Only changes with a lower id.

        Returns:
            The id of each, the id of the change that it undoes, and the indexes of its entries. Empty: no more.

        Raises:
            JournalFailed: The file cannot be read.
        """
        lowest = change.id + 1
        try:
            batches = list(self._batches(lowest, before - 1, newest_first=True, limit=_MAX_BATCHES_PER_PAGE))
        except sqlite3.Error as error:
            self._database.read_failed(error)
        if len(batches) == _MAX_BATCHES_PER_PAGE:
            lowest = max(lowest, batches[-1].first_id)
        query = (
            "SELECT * FROM changes WHERE id >= ? AND id < ? AND map = ? AND map_id = ? AND boot_id = ?"
            " ORDER BY id DESC LIMIT ?"
        )
        values: list[int | str] = [lowest, before, change.map, change.map_id, change.boot_id, _MAX_CHANGES_PER_PAGE]
        rows = [each for each, _ in self._read_changes(query, values)]
        if len(rows) == _MAX_CHANGES_PER_PAGE or _is_full_page(rows):
            lowest = rows[-1].id
        found: list[tuple[int, int | None, Indexes]] = [(each.id, each.reverts, each.entries.indexes) for each in rows]
        for batch in batches:
            found += [
                (id_, None, range(write.entry, write.entry + 1))
                for id_, write in enumerate(batch.writes, batch.first_id)
                if (write.map, write.map_id, batch.boot_id) == (change.map, change.map_id, change.boot_id)
                and lowest <= id_ < before
            ]
        if lowest > change.id + 1:
            found.append((lowest, None, range(0)))  # how far this page goes, also where nothing was written there
        return sorted(found, key=itemgetter(0), reverse=True)

    def written_since(self, map_: str, after: int) -> set[int]:
        """The indexes of the entries of a map that changes with a higher id have written.

        Raises:
            JournalFailed: The file cannot be read.
        """
        query = "SELECT entries FROM changes WHERE id > ? AND map = ?"
        rows = self._database.read(query, [after, map_]).fetchall()
        found = {index for (entries,) in rows for index in EntryChanges.unpacked(entries).indexes}
        for batch in self._batches(after + 1, self._published_change):
            found.update(
                write.entry
                for id_, write in enumerate(batch.writes, batch.first_id)
                if write.map == map_ and id_ > after
            )
        return found

    def _read_changes(self, query: str, values: Sequence[int | str]) -> list[tuple[Change, int]]:
        """The changes that the query finds, with the ids of their events. Stops when the page is full."""
        found, entries = [], 0
        try:
            for row in self._database.read(query, values):
                found.append(_change(row))
                entries += len(found[-1][0].entries)
                if entries > MAX_ENTRIES_PER_PAGE:
                    break
        except sqlite3.Error as error:
            self._database.read_failed(error)
        return found

    @property
    def last_event(self) -> int:
        """The id of the last published event."""
        id_: int = self._published_event
        return id_

    def pruned_event(self) -> int:
        """The id of the last event that is pruned.

        Raises:
            JournalFailed: The file cannot be read.
        """
        pruned: int = self._database.read("SELECT pruned FROM bookmarks").fetchone()[0]
        return pruned

    def events(self, after: int, limit: int) -> list[Event]:
        """Read a page of published events: at most `limit`, with ids above `after`, by rising id.

        Raises:
            JournalFailed: The file cannot be read.
        """
        # Only `id` has an index, so limit the search by it. The id of a change's event exceeds the id of the change by
        # the number of other events before it, which is largest for the last change. So no change up to `first` has an
        # event after `after`.
        first = max(0, after - (self._published_event - self._published_change))
        query = "SELECT * FROM changes WHERE id > ? AND event > ? ORDER BY id LIMIT ?"
        changes = self._read_changes(query, [first, after, limit])
        is_cut_off = len(changes) == limit or _is_full_page([change for change, _ in changes])
        last = changes[-1][1] if is_cut_off else self._published_event
        query = "SELECT * FROM batches WHERE id > ? AND event > ? ORDER BY id LIMIT ?"
        for row in self._database.read(query, [first, after, limit]).fetchall():
            changes += [(change, event) for change, event in _batch(row).changes() if after < event <= last]
        changes = sorted(changes, key=itemgetter(1))[:limit]
        is_cut_off = is_cut_off or len(changes) == limit
        until = changes[-1][1] if is_cut_off else self._published_event
        found = [_event_of(change, event_id) for change, event_id in changes]
        others = "SELECT * FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        for row in self._database.read(others, [after, until, limit]).fetchall():
            data = None if row["data"] is None else json.loads(row["data"])
            change = None if row["change_id"] is None else self.change(row["change_id"])
            if change is not None:
                change = replace(change, state=row["type"])
            elif data is None:  # the change was pruned before this event
                data = {"id": row["change_id"], "map": row["map"], "state": row["type"]}
            found.append(Event(row["id"], row["type"], row["map"], change, data))
        return sorted(found, key=lambda event: event.id)[:limit]


def _is_wanted(wanted: ChangeFilter, write: EntryWrite) -> bool:
    """Whether a filter selects a change in a batch, but for its time, its state and its kind."""
    return (
        (wanted.index is None or write.entry == wanted.index)
        and (wanted.maps is None or write.map in wanted.maps)
        and (wanted.actor is None or write.actor == wanted.actor)
        and (wanted.request_id is None or write.request_id == wanted.request_id)
    )


def _times(wanted: ChangeFilter) -> tuple[float, float]:
    """The first time that is wanted, and the first after it that is not.

    Times are told in steps of a microsecond: whoever sends back what was told means that change.
    """
    since = -math.inf if wanted.since is None else wanted.since - _CLOCK_STEP_SECONDS / 2
    return since, math.inf if wanted.until is None else wanted.until - _CLOCK_STEP_SECONDS / 2


def _conditions(wanted: ChangeFilter) -> tuple[list[str], list[int | float | str]]:
    """The conditions of a query for these changes, and their values. The index is not among them."""
    conditions: list[str] = []
    values: list[int | float | str] = []
    if wanted.maps is not None:
        conditions.append(f"map IN ({','.join('?' * len(wanted.maps))})")
        values += wanted.maps
    if wanted.state is not None and wanted.state != "applied":
        conditions.append("state <> 'applied'")  # so that SQLite knows that the index has all of them
    since, until = (None if math.isinf(each) else each for each in _times(wanted))
    for condition, value in (
        ("state = ?", wanted.state),
        ("actor = ?", wanted.actor),
        ("kind = ?", wanted.kind),
        ("request_id = ?", wanted.request_id),
        ("at >= ?", since),
        ("at < ?", until),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return conditions, values


class _SteadyClock:
    """The wall clock, for as long as nobody has set it: it is compared with the time since boot."""

    def __init__(self) -> None:
        self._offset: float | None = None  # of the two clocks, at the last look
        self._steady_since = 0.0  # time since boot

    def now(self) -> float | None:
        """Return the wall clock's time. None: it was not steady for a day, so it may be wrong. Call it often."""
        now, uptime = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        offset, before = now - uptime, self._offset
        self._offset = offset
        if before is None or abs(offset - before) > _MAX_CLOCK_STEP_SECONDS:
            self._steady_since = uptime
        return now if uptime - self._steady_since >= _STEADY_CLOCK_SECONDS else None


def _event_of(change: Change, event_id: int) -> Event:
    """The event of a change, with the state that the change had when it happened."""
    state: Literal["unconfirmed", "applied"] = "unconfirmed" if change.confirm_by else "applied"
    then = replace(change, state=state, confirmed_by=None, confirmed_at=None)
    return Event(event_id, "change", change.map, then)


def _change(row: sqlite3.Row) -> tuple[Change, int]:
    """A row of `changes`: the change, and the id of its event."""
    values = dict(row)
    event = values.pop("event")
    return Change(**values | {"entries": EntryChanges.unpacked(values["entries"])}), event


def _batch(row: sqlite3.Row) -> Batch:
    """A row of `batches`."""
    return Batch.unpacked(row["id"], row["event"], row["at"], row["boot_id"], row["content"])


def _batch_with(execute: Callable[[str, Sequence[int]], sqlite3.Cursor], id_: int) -> Batch | None:
    """The batch that has the change with this id. None: there is none."""
    row = execute("SELECT * FROM batches WHERE id >= ? ORDER BY id LIMIT 1", (id_,)).fetchone()
    return None if row is None or row["id"] - row["size"] >= id_ else _batch(row)


def _is_full_page(changes: Sequence[Change]) -> bool:
    return sum(len(change.entries) for change in changes) > MAX_ENTRIES_PER_PAGE
