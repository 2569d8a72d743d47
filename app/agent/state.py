"""What the agent remembers of each table across its own restarts: a small file.

Without it a refused table would be tried again after each restart, and an old desired table that somebody plays again
could not be told from a new one. What was lost with the file, the node's journal still tells for the most part.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from app.fleet_store.documents import TableStatus

_FILE: Final = "state.json"
_LOCK: Final = "lock"


class StateError(Exception):
    """The folder cannot be used. The text is one line, with the remedy."""


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a table.

    Attributes:
        digest: The SHA-256 of the desired table that `status` speaks of.
        sequence: The highest sequence of the desired tables that the agent has begun with.
        holds: The revision of the table that the node holds; None: none of the fleet's, as far as it is known.
        status: What the agent has said of it. None: it has begun with it, and not got to an end.
    """

    digest: str
    sequence: int = 0
    holds: int | None = None
    status: TableStatus | None = None


class StateFile:
    """The file. Thread rule: one event loop."""

    def __init__(self, folder: Path) -> None:
        """Read the file, and lock the folder.

        Raises:
            StateError: The folder cannot be used, or another agent uses it.
        """
        self._file = folder / _FILE
        self._tables: dict[str, Known] = {}
        self.trouble = ""  # why the file was not read
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"state_dir: {folder}: {error.strerror}; give the agent's user a folder of its own"
            raise StateError(message) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self.close()
            message = f"state_dir: {folder}: another agent runs with it; there is one agent on a node"
            raise StateError(message) from error
        except OSError as error:
            self.close()
            message = f"state_dir: {self._file}: {error.strerror}"
            raise StateError(message) from error

    def _read(self) -> None:
        try:
            self._tables = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Known])
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as error:
            # The journal of the node tells the rest, and the fleet's store what is desired.
            self.trouble = f"{self._file} is damaged and is not used: {error}"

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    def get(self, table: str) -> Known | None:
        """Return what is known of a table. None: nothing."""
        return self._tables.get(table)

    def tables(self) -> list[str]:
        """Return the names of the tables of which something is known."""
        return list(self._tables)

    def set(self, table: str, known: Known | None) -> None:
        """Remember something of a table, so that it outlives a power cut. None: forget the table.

        Raises:
            OSError: It cannot be written.
        """
        if self._tables.get(table) == known:
            return
        tables = self._tables | {} if known is None else self._tables | {table: known}
        if known is None:
            tables.pop(table, None)
        draft = self._file.with_suffix(".new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123 - it is open already
                file.write(msgspec.json.encode(tables))
                file.flush()
                os.fsync(fd)
            draft.replace(self._file)
            folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._tables = tables
