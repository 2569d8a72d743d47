"""Copies of object files that requests brought, by the SHA-256 of what is in them: so that they can be loaded again."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

_TEMPORARY: Final = "new"


class Copies:
    """A folder with one file for each content. Thread rule: one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it. Later the process may lose the right to reach it by its path.

        Raises:
            OSError: It can be neither opened nor made.
        """
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def save(self, digest: str, content: bytes) -> None:
        """Keep a copy, and return when it is on the disk.

        Raises:
            OSError: It cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=self._folder)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(_TEMPORARY, digest, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)

    def read(self, digest: str) -> bytes:
        """Return what a copy has in it.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        fd = os.open(digest, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def keep_only(self, digests: Collection[str]) -> None:
        """Remove all copies but these."""
        with suppress(OSError):
            for name in os.listdir(self._folder):  # noqa: PTH208 - by its fd
                if name not in digests:
                    os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)
