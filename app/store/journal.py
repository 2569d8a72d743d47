"""The journal: one SQLite file in state_dir, one writer, commits that are shared."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter

from app.store.records import Change, EntryChange
from app.store.schema import VERSIONS

_ENTRIES: Final = TypeAdapter(tuple[EntryChange, ...])
_APPLICATION_ID: Final = 0x6A74626C  # "jtbl": so that another program's database is told apart
_KEPT: Final = 100_000  # changes
_MAX_PAGES: Final = 1 << 16  # of 4 KiB
_PRUNED_EVERY: Final = 64  # changes
_ENTRIES_A_PAGE: Final = 4096


class JournalDamaged(Exception):
    """The file cannot be used; the text says how to go on."""


class JournalFailed(Exception):
    """The journal could not be opened or written: disk full, read-only, locked. Nothing of that commit is in it."""


class Journal:
    """What was changed, by whom and when. Thread rule: one event loop.

    `durability` `power`: a change survives a power cut, and changes that come together share one sync, in a thread;
    `process`: it survives the end of the process, and is written at once.
    """

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or make it. Errors: JournalDamaged, JournalFailed."""
        self._file = file
        self._power = durability == "power"
        self._pending: list[tuple[Change, asyncio.Future[Change]]] = []
        self._flusher: asyncio.Task[None] | None = None
        with ExitStack() as stack:
            try:
                self._writer = self._connect(stack)
                self._migrate()
                # What is written inline can be read by the same connection.
                self._reader = self._connect(stack) if self._power else self._writer
            except sqlite3.OperationalError as error:
                message = f"the journal {file} cannot be opened: {error}"
                raise JournalFailed(message) from error
            except sqlite3.DatabaseError as error:
                raise _damaged(file, str(error)) from error
            self._open = stack.pop_all()

    def _connect(self, stack: ExitStack) -> sqlite3.Connection:
        # A lock that somebody else holds is waited for only where that holds nobody up.
        timeout = 1.0 if self._power else 0.0
        connection = sqlite3.connect(self._file, timeout=timeout, isolation_level=None, check_same_thread=False)
        stack.callback(connection.close)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA temp_store = MEMORY")  # a container may have no folder for temporary files
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._power else 'NORMAL'}")
        return connection

    def _migrate(self) -> None:
        """Bring the tables to this version. JournalDamaged for what is no journal, or a newer one's, or broken."""
        why = _why_unusable(self._writer)
        if why is not None:
            raise _damaged(self._file, why)
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(VERSIONS[version:], version + 1):
            self._writer.executescript(
                f"BEGIN; {script}; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
            )

    # Writing

    async def append(self, change: Change) -> Change:
        """Journal the change, and return it with its id; one that it reverts is `reverted` from then on.

        JournalFailed: nothing was written.
        """
        if not self._power:
            return self._commit([change])[0]
        done: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._pending.append((change, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await done

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                journalled = await asyncio.to_thread(self._commit, [change for change, _ in batch])
            except JournalFailed as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), change in zip(batch, journalled, strict=True):
                if not done.done():
                    done.set_result(change)

    def _commit(self, changes: Sequence[Change]) -> list[Change]:
        """All of them, or none."""
        execute = self._writer.execute
        try:
            if len(changes) == 1 and changes[0].reverts is None:
                journalled = [self._insert(changes[0])]  # one statement is a transaction by itself
                with suppress(sqlite3.Error):  # the change is in: pruning has time until the next
                    self._prune(journalled[0].id)
                return journalled
            execute("BEGIN IMMEDIATE")
            try:
                journalled = [self._insert(change) for change in changes]
                for change in journalled:
                    self._prune(change.id)
                execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            message = f"the journal {self._file} cannot be written: {error}"
            raise JournalFailed(message) from error
        return journalled

    def _prune(self, newest: int) -> None:
        """Drop the oldest tenth where the file has become too large."""
        if newest % _PRUNED_EVERY:
            return
        execute = self._writer.execute
        pages, free = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        oldest = execute("SELECT min(id) FROM changes").fetchone()[0]
        if pages - free > _MAX_PAGES or newest - oldest > _KEPT:
            execute("DELETE FROM changes WHERE id <= ?", (oldest + (newest - oldest) // 10,))

    def _insert(self, change: Change) -> Change:
        cursor = self._writer.execute(
            "INSERT INTO changes VALUES ((SELECT coalesce(max(id), 0) + 1 FROM changes), ?,?,?,?,?,?,?,?,?,?,?)",
            (change.at, change.map, change.map_id, change.boot_id, change.kind, change.actor, change.request_id,
             change.note, _ENTRIES.dump_json(change.entries).decode(), change.state, change.reverts),
        )  # fmt: skip
        if change.reverts is not None:
            self._writer.execute("UPDATE changes SET state = 'reverted' WHERE id = ?", (change.reverts,))
        return replace(change, id=cursor.lastrowid or 0)

    # Reading

    def change(self, id_: int) -> Change | None:
        """The change with this id. JournalFailed."""
        found = self._read("SELECT * FROM changes WHERE id = ?", [id_])
        return found[0] if found else None

    def changes(
        self,
        *,
        map_: str | None = None,
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
        for condition, value in (("map = ?", map_), ("id < ?", before), ("request_id = ?", request_id)):
            if value is not None:
                where.append(condition)
                values.append(value)
        query = f"SELECT * FROM changes WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"  # noqa: S608
        found = self._read(query, [*values, limit + 1])
        return found[:limit], len(found) > limit or sum(len(change.entries) for change in found) > _ENTRIES_A_PAGE

    def _read(self, query: str, values: Sequence[int | str]) -> list[Change]:
        """The changes that the query finds, up to the one with which they have too many entries for one answer."""
        found, entries = [], 0
        try:
            for row in self._reader.execute(query, values):
                found.append(_change(row))
                entries += len(found[-1].entries)
                if entries > _ENTRIES_A_PAGE:
                    break
        except sqlite3.Error as error:
            message = f"the journal {self._file} cannot be read: {error}"
            raise JournalFailed(message) from error
        return found

    def close(self) -> None:
        """Close the file."""
        self._open.close()


def check(file: Path) -> None:
    """Look whether `file` is a journal that can be used, and change nothing. JournalDamaged, JournalFailed."""
    # immutable: not even a -shm beside it is made. But where a -wal is there, the file without it is only half of it.
    mode = "ro" if file.with_name(f"{file.name}-wal").exists() else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as connection:
            why = _why_unusable(connection)
    except sqlite3.OperationalError as error:
        message = f"the journal {file} cannot be opened: {error}"
        raise JournalFailed(message) from error
    except sqlite3.DatabaseError as error:
        why = str(error)
    if why is not None:
        raise _damaged(file, why)


def _why_unusable(connection: sqlite3.Connection) -> str | None:
    def ask(question: str) -> object:
        return connection.execute(question).fetchone()[0]

    if ask("PRAGMA application_id") != _APPLICATION_ID and ask("SELECT count(*) FROM sqlite_master"):
        return "it is another program's database"
    version = ask("PRAGMA user_version")
    if not isinstance(version, int) or version > len(VERSIONS):
        return f"a newer jumptable wrote it (version {version})"
    return None if ask("PRAGMA quick_check(1)") == "ok" else "its pages are damaged"


def _damaged(file: Path, why: str) -> JournalDamaged:
    message = (
        f"the journal {file} cannot be used: {why}; put back a copy, or, to go on without its history, move it and its "
        "-wal and -shm away (arrays keep their entries)"
    )
    return JournalDamaged(message)


def _change(row: sqlite3.Row) -> Change:
    values = dict(row)
    return Change(**values | {"entries": _ENTRIES.validate_json(values["entries"])})
