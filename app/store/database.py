"""The SQLite file of the journal: opening, migration, reads, and transactions that may share one sync."""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar

from app.store.files import DatabaseFiles
from app.store.schema import VERSIONS

_APPLICATION_ID: Final = 0x6A74626C  # "jtbl": identifies the file as a journal of this service
IN_MEMORY: Final = ":memory:"  # SQLite's name of a database without a file
_LOCK_TIMEOUT_SECONDS: Final = 1.0  # how long to wait while another process locks the file

# After a commit that was this quick, the next one runs in the event loop: handing it to a thread takes longer. Commits
# with a sync are this quick if the disk's write cache survives a power cut.
_QUICK_COMMIT_SECONDS: Final = 0.001

# A checkpoint moves what is in the -wal file to the file, and then that begins anew. It cannot while another process
# reads what was before: then the -wal file grows. What is larger after a checkpoint is cut off.
_CHECKPOINTED_WAL_BYTES: Final = 8 << 20
_LARGE_WAL_BYTES: Final = 64 << 20  # is told
_MAX_BYTES: Final = 256 << 20  # of the file and its -wal together
_RESERVED_BYTES: Final = 32 << 20  # of these, for what is written between two looks at the size
_END_READER: Final = "end that process; fuser FILE names it"
_MIN_WAL_BYTES: Final = 16 << 20  # that there are, however large the file is: earlier versions let it grow more

T = TypeVar("T")
Work = Callable[[], T]


class JournalDamaged(Exception):
    """The file cannot be used. The text says what the operator can do."""


class JournalFailed(Exception):
    """The journal could not be opened, read or written, for example because the disk is full or the file is locked.

    Nothing of a transaction that failed is in the file.
    """


@dataclass(frozen=True, slots=True)
class TransactionCallbacks:
    """What the owner of a Database does after each transaction.

    Attributes:
        rolled_back: Called after a transaction failed. Runs in the thread that commits.
        committed: Called after a commit. Runs in the thread that commits.
        maintain: Called after `committed`, before the next transaction begins, so it may write to the file. Runs in the
            thread that commits.
        publish: Called after one or more commits, before the callers of `write` get their results. Runs in the event
            loop.
    """

    rolled_back: Callable[[], None]
    committed: Callable[[], None]
    maintain: Callable[[], None]
    publish: Callable[[], None]


NO_CALLBACKS: Final = TransactionCallbacks(lambda: None, lambda: None, lambda: None, lambda: None)


class Database:
    """One SQLite file, with one connection that writes and one that reads.

    Durability `power`: a commit survives a power cut. Transactions that arrive while another one is committed wait for
    it, and then share a single commit, and so a single sync.

    Durability `process`: a commit survives the end of the process. Each transaction is committed at once, in the event
    loop, and reads use the writing connection.

    Call the methods from one event loop only.

    Attributes:
        writer: The connection that writes. Use it only in a function that was passed to `write`, or in a callback that
            runs in the thread that commits.
    """

    def __init__(self, file: Path, durability: Literal["power", "process"]) -> None:
        """Open the file, or create it. Create the tables, or bring them to this version.

        Raises:
            JournalDamaged: The file is damaged, belongs to another program, or was written by a newer version.
            JournalFailed: The file cannot be opened.
        """
        self._file = file
        self._syncs = durability == "power"
        self._callbacks = NO_CALLBACKS
        self.on_commit: Callable[[float], None] = lambda _: None
        self._queue: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._queue_task: asyncio.Task[None] | None = None
        self._last_commit_seconds = math.inf
        self._last_failure: str | None = None
        self._why_full: str | None = None
        with ExitStack() as stack:
            try:
                self.writer = self._connect(stack)
                self._migrate()
                self._reader = self._connect(stack) if self._syncs else self.writer
                self._files = None if str(file) == IN_MEMORY else DatabaseFiles(file)
                if self._files is not None:
                    stack.callback(self._files.close)
            except sqlite3.OperationalError as error:
                message = f"the journal {file} cannot be opened: {error}"
                raise JournalFailed(message) from error
            except sqlite3.DatabaseError as error:
                raise _damaged(file, str(error)) from error
            except OSError as error:
                message = f"the journal {file} cannot be opened: {error.strerror}"
                raise JournalFailed(message) from error
            self._connections = stack.pop_all()

    def _connect(self, stack: ExitStack) -> sqlite3.Connection:
        # With `process`, waiting for a lock would block the event loop.
        timeout = _LOCK_TIMEOUT_SECONDS if self._syncs else 0.0
        connection = sqlite3.connect(self._file, timeout=timeout, isolation_level=None, check_same_thread=False)
        stack.callback(connection.close)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {_CHECKPOINTED_WAL_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")  # a container may have no folder for temporary files
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._syncs else 'NORMAL'}")
        return connection

    def _migrate(self) -> None:
        why = _why_unusable(self.writer)
        if why is not None:
            raise _damaged(self._file, why)
        version = self.writer.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(VERSIONS[version:], version + 1):
            self.writer.executescript(
                f"BEGIN; {script}; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
            )

    def set_callbacks(self, callbacks: TransactionCallbacks) -> None:
        """Call these from the next transaction on."""
        self._callbacks = callbacks

    @property
    def failing(self) -> str | None:
        """Why the journal cannot be written: its files are lost or full, or the last transaction failed.

        None: it can be written.
        """
        return self._why_lost() or self._why_full or self._last_failure

    @property
    def wal_bytes(self) -> int:
        """The size of the -wal file."""
        return 0 if self._files is None else self._files.wal_bytes()

    @property
    def wal_warning(self) -> str | None:
        """What to say of a -wal file that grows, as another process reads the journal. None: it is small."""
        size = self.wal_bytes
        if size <= _LARGE_WAL_BYTES:
            return None
        return f"{self._file}-wal has {size >> 20} MiB, as another process reads the journal for long: {_END_READER}"

    def check_size(self) -> None:
        """Find out whether there is room for more. Call it now and then, outside a transaction, where `write` runs."""
        wal = self.wal_bytes
        if wal <= _MIN_WAL_BYTES and self._why_full is None:
            return
        pages, page_size = (self.writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        self._why_full = None
        if wal > max(_MIN_WAL_BYTES, _MAX_BYTES - _RESERVED_BYTES - pages * page_size):
            self._why_full = (
                f"the journal {self._file} and its -wal would exceed {_MAX_BYTES >> 20} MiB, as another process reads "
                f"the journal for long: {_END_READER}"
            )

    async def make_room(self) -> None:
        """Try again to make room, where there was none."""
        if self._why_full is not None:
            with suppress(JournalFailed):
                await self.write(lambda: None)

    def _check_room(self) -> None:
        """Raise JournalFailed where the -wal file is full, and another process still keeps it from beginning anew."""
        if self._why_full is None:
            return
        (timeout,) = self.writer.execute("PRAGMA busy_timeout").fetchone()
        self.writer.execute("PRAGMA busy_timeout = 0")
        with suppress(sqlite3.Error):
            self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.writer.execute(f"PRAGMA busy_timeout = {timeout}")
        self.check_size()
        if self._why_full is not None:
            raise JournalFailed(self._why_full)

    def _why_lost(self) -> str | None:
        lost = None if self._files is None else self._files.lost()
        if lost is None:
            return None
        return f"{lost} was removed or replaced while the journal is in use: put it back, or restart the service"

    async def write(self, work: Work[T], *, single: bool = False) -> T:
        """Run `work` in a transaction, and wait until that is committed.

        Args:
            work: Writes through `writer`. With durability `power` it may run in another thread, and it shares its
                transaction with others: if one of them fails, all of them do.
            single: `work` executes exactly one statement that writes. SQLite makes that a transaction by itself.

        Returns:
            What `work` returns.

        Raises:
            JournalFailed: Nothing was written.
        """
        if not self._syncs:
            result: T = self._commit([work], single=single)[0]
            self._callbacks.publish()
            return result
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((work, done))
        if self._queue_task is None or self._queue_task.done():
            self._queue_task = asyncio.create_task(self._commit_queue())
        return await done

    async def _commit_queue(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                results = await self._commit_batch([work for work, _ in batch])
            except Exception as error:  # noqa: BLE001 - raised again in each caller of `write`
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            self._callbacks.publish()
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)

    async def _commit_batch(self, batch: Sequence[Work[Any]]) -> list[Any]:
        """Commit in the event loop if the last commit was quick, else in a thread."""
        if self._last_commit_seconds < _QUICK_COMMIT_SECONDS:
            self.writer.execute("PRAGMA busy_timeout = 0")
            try:
                return self._commit(batch)
            except JournalFailed:  # another process may hold a lock: try again where waiting for it blocks nobody
                self._last_commit_seconds = math.inf
            finally:
                self.writer.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_SECONDS * 1000:.0f}")
        return await asyncio.to_thread(self._commit, batch)

    def _commit(self, batch: Sequence[Work[Any]], *, single: bool = False) -> list[Any]:
        """Run all of `batch` in one transaction. If one fails, nothing is written."""
        execute = self.writer.execute
        began = time.perf_counter()
        try:
            self._check_room()
            if single:
                self._check_files()
                results = [work() for work in batch]
            else:
                execute("BEGIN IMMEDIATE")
                results = [work() for work in batch]
                self._check_files()
                execute("COMMIT")
        except BaseException as error:
            if self.writer.in_transaction:
                execute("ROLLBACK")
            self._callbacks.rolled_back()
            if isinstance(error, sqlite3.Error):
                message = f"the journal {self._file} cannot be written: {error}"
                self._last_failure = message
                raise JournalFailed(message) from error
            raise
        self._last_failure = None
        self._last_commit_seconds = time.perf_counter() - began
        self.on_commit(self._last_commit_seconds)
        self._callbacks.committed()
        self._callbacks.maintain()
        return results

    def _check_files(self) -> None:
        """Raise JournalFailed where what would be committed could not be found any more."""
        lost = self._why_lost()
        if lost is not None:
            raise JournalFailed(lost)

    def read(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a query on what is committed.

        Iterating over the cursor may fail as well. Pass such an error to `read_failed`.

        Raises:
            JournalFailed: The query failed.
        """
        try:
            return self._reader.execute(query, values)
        except sqlite3.Error as error:
            self.read_failed(error)

    def read_failed(self, error: sqlite3.Error) -> NoReturn:
        """Raise JournalFailed for an error of a read."""
        message = f"the journal {self._file} cannot be read: {error}"
        raise JournalFailed(message) from error

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()


def check(file: Path, query: str) -> list[tuple[Any, ...]]:
    """Check that `file` is a usable journal, and run a query on it. Neither file nor folder is modified.

    Raises:
        JournalDamaged: The file is damaged, belongs to another program, or was written by a newer version.
        JournalFailed: The file cannot be opened.
    """
    # With `immutable`, SQLite creates no -shm file. But it also ignores a -wal file, which holds the latest commits: if
    # there is one, open the file without it.
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
