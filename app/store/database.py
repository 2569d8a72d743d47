"""One SQLite file: opened, brought to this version, or refused; one writer, commits that are shared."""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar

from app.store.schema import VERSIONS

_APPLICATION_ID: Final = 0x6A74626C  # "jtbl": so that another program's database is told apart

_QUICK: Final = 0.001  # s: a sync on a disk that has a cache that outlives a power cut
_LOCK_SECONDS: Final = 1.0  # that a lock of somebody else's is waited for

T = TypeVar("T")
Do = Callable[[], T]


class JournalDamaged(Exception):
    """The file cannot be used; the text says how to go on."""


class JournalFailed(Exception):
    """The journal could not be opened or written: disk full, read-only, locked. Nothing of that commit is in it."""


class Database:
    """The file and its two connections. Thread rule: one event loop.

    `durability` `power`: what is written survives a power cut, and writes that come together share one sync;
    `process`: it survives the end of the process, and is written at once.
    """

    def __init__(self, file: Path, durability: Literal["power", "process"] = "power") -> None:
        """Open the file, or make it. Errors: JournalDamaged, JournalFailed."""
        self._file = file
        self._power = durability == "power"
        self._pending: list[tuple[Do[Any], asyncio.Future[Any]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._took = math.inf  # s, of the last commit
        self.failing: str | None = None  # why the last commit failed; None: it did not
        self.on_commit: Callable[[float], None] = lambda _: None  # is told how long each took: seconds
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
        timeout = _LOCK_SECONDS if self._power else 0.0
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

    async def write(self, do: Do[T], *, single: bool = False) -> T:
        """Run what writes by `_writer`, in a transaction, and return what it returns once that is committed.

        `single`: it is one statement, and so a transaction by itself. JournalFailed: nothing was written.
        """
        if not self._power:
            result: T = self._commit([do], single=single)[0]
            self.committed()
            return result
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append((do, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await done

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                results = await self._commit_somewhere([do for do, _ in batch])
            except Exception as error:  # noqa: BLE001 - theirs, who wait for it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            self.committed()
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)

    async def _commit_somewhere(self, batch: Sequence[Do[Any]]) -> list[Any]:
        """All of them, or none: here, where the last sync was quick, as a thread takes longer; else in a thread."""
        if self._took < _QUICK:
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                return self._commit(batch)
            except JournalFailed:  # somebody else has locked it, perhaps: the thread waits for that
                self._took = math.inf
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_LOCK_SECONDS * 1000:.0f}")
        return await asyncio.to_thread(self._commit, batch)

    def _commit(self, batch: Sequence[Do[Any]], *, single: bool = False) -> list[Any]:
        """All of them, or none."""
        execute = self._writer.execute
        began = time.perf_counter()
        self.begin()
        try:
            if single:
                results = [do() for do in batch]
            else:
                execute("BEGIN IMMEDIATE")
                results = [do() for do in batch]
                execute("COMMIT")
        except BaseException as error:
            if self._writer.in_transaction:
                execute("ROLLBACK")
            self.rolled_back()
            if isinstance(error, sqlite3.Error):
                message = f"the journal {self._file} cannot be written: {error}"
                self.failing = message
                raise JournalFailed(message) from error
            raise
        self.failing = None
        self._took = time.perf_counter() - began
        self.on_commit(self._took)
        self.maintain()
        return results

    def begin(self) -> None:
        """For heirs: a transaction begins. In the thread that commits, as the next two."""

    def rolled_back(self) -> None:
        """For heirs: it came to nothing."""

    def maintain(self) -> None:
        """For heirs: it is in, and before the next one there is time to clear up."""

    def committed(self) -> None:
        """For heirs: it is in, and its callers are told next. In the event loop."""

    def read(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Ask the file. What comes of reading on in the cursor may fail as well: see `unreadable`. JournalFailed."""
        try:
            return self._reader.execute(query, values)
        except sqlite3.Error as error:
            self.unreadable(error)

    def unreadable(self, error: sqlite3.Error) -> NoReturn:
        """JournalFailed."""
        message = f"the journal {self._file} cannot be read: {error}"
        raise JournalFailed(message) from error

    def close(self) -> None:
        """Close the file."""
        self._open.close()


def check(file: Path, query: str) -> list[tuple[Any, ...]]:
    """Look whether `file` is a journal that can be used, change nothing, and ask it. JournalDamaged, JournalFailed."""
    # immutable: not even a -shm beside it is made. But where a -wal is there, the file without it is only half of it.
    mode = "ro" if file.with_name(f"{file.name}-wal").exists() else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as connection:
            why = _why_unusable(connection)
            if why is None:
                return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        message = f"the journal {file} cannot be opened: {error}"
        raise JournalFailed(message) from error
    except sqlite3.DatabaseError as error:
        why = str(error)
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
