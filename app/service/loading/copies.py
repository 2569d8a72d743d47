"""Copies of object files that requests brought, by the SHA-256 of what is in them: so that they can be loaded again."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

_TEMPORARY: Final = "new"


class Copies:
    """A folder with one file for each content. Thread rule: one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Keep copies in this folder, which is made where it is missing."""
        self._folder = folder

    def save(self, digest: str, content: bytes) -> None:
        """Keep a copy, and return when it is on the disk.

        Raises:
            OSError: It cannot be written.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if (self._folder / digest).exists():
            return
        temporary = self._folder / _TEMPORARY
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.rename(self._folder / digest)

    def read(self, digest: str) -> bytes:
        """Return what a copy has in it.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        return (self._folder / digest).read_bytes()

    def keep_only(self, digests: Collection[str]) -> None:
        """Remove all copies but these."""
        with contextlib.suppress(OSError):
            for file in self._folder.iterdir():
                if file.name not in digests:
                    file.unlink()
