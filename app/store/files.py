"""The files of an open SQLite database, as they are found by their names."""

import os
import time
from pathlib import Path
from typing import Final

_SUFFIXES: Final = ("", "-wal", "-shm")
# A folder that was changed a shorter time ago is looked through again: two changes can bear the same time.
_SETTLED_NANOSECONDS: Final = 1_000_000_000


class DatabaseFiles:
    """Notices when somebody removes or replaces the files that SQLite has open, which SQLite itself does not.

    A commit then still succeeds, but into a file that nobody finds any more. Each change of a name in a folder changes
    the folder's ctime, which nobody can set. So most calls of `lost` take one stat(2).
    """

    def __init__(self, file: Path) -> None:
        """Remember which files there are now.

        Args:
            file: The database, which SQLite has opened before.

        Raises:
            OSError: They are not there.
        """
        if file.is_symlink():
            file = Path(os.path.realpath(file))  # SQLite puts the other two beside the file itself
        self._path = str(file.parent)
        self._is_reachable = True  # by its path. Not so after a switch of the user, if a folder above is private
        self._folder = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._folder_identity = _identity(os.fstat(self._folder))
            self._identities = {
                name: _identity(os.stat(name, dir_fd=self._folder))
                for name in (file.name + suffix for suffix in _SUFFIXES)
            }
        except BaseException:
            os.close(self._folder)
            raise
        self._wal = f"{file.name}-wal"
        self._settled: tuple[int, int, int] | None = None  # device, inode and ctime of the folder when nothing was lost

    def lost(self) -> str | None:
        """Return the path of a file that was removed or replaced. None: all are there."""
        status = self._folder_status()
        if status is None:
            return self._path
        seen = status.st_dev, status.st_ino, status.st_ctime_ns
        if seen == self._settled:
            return None
        self._settled = None
        if _identity(status) != self._folder_identity:
            return self._path
        for name, identity in self._identities.items():
            try:
                found = _identity(os.stat(name, dir_fd=self._folder))
            except OSError:
                found = None
            if found != identity:
                return f"{self._path}/{name}"
        if time.time_ns() - status.st_ctime_ns > _SETTLED_NANOSECONDS:
            self._settled = seen
        return None

    def _folder_status(self) -> os.stat_result | None:
        if self._is_reachable:
            try:
                return os.stat(self._path)  # noqa: PTH116 - before each commit, and Path.stat() takes longer
            except PermissionError:
                self._is_reachable = False
            except OSError:
                return None
        return os.fstat(self._folder)

    def wal_bytes(self) -> int:
        """Return the size of the -wal file. 0 where it is lost."""
        try:
            return os.stat(self._wal, dir_fd=self._folder).st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Close the folder."""
        os.close(self._folder)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
