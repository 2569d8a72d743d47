"""Where the keeper may go: paths that were looked at after they were opened, so that nobody can lead it elsewhere."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path


class Paths:
    """Below `pin_dirs`, and each of `pins`. EXDEV for others, EINVAL for what is no absolute path without . and .."""

    def __init__(self, pin_dirs: Sequence[str], pins: Sequence[str]) -> None:
        self._pin_dirs = pin_dirs
        self._pins = pins

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[str]:
        """A name for what is at `path` now, whatever is put there afterwards; EXDEV where it is out of bounds."""
        if path not in self._pins:
            self._check(path)  # so that nobody can ask what exists elsewhere
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            name = f"/proc/self/fd/{fd}"
            if path not in self._pins:
                self._check(str(Path(name).readlink()))
            yield name
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[tuple[int, str]]:
        """The folder of `path`, opened (O_PATH), and the name in it; EXDEV where it is out of bounds."""
        if path not in self._pins:
            self._check(path)
        folder, _, name = path.rpartition("/")
        fd = os.open(folder or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if path not in self._pins:
                self._check(f"{Path(f'/proc/self/fd/{fd}').readlink()}/{name}")
            yield fd, name
        finally:
            os.close(fd)

    def _check(self, path: str) -> None:
        parts = path.split("/")
        if parts[0] or any(part in {"", ".", ".."} for part in parts[1:]):
            raise OSError(errno.EINVAL, "no absolute path without . and ..")
        folders = [os.path.realpath(folder) for folder in self._pin_dirs] + list(self._pin_dirs)
        if not any(path.startswith(f"{folder.rstrip('/')}/") for folder in folders):
            raise OSError(errno.EXDEV, "not below pin_dirs")


def own_file(path: str, flags: int) -> int:
    """Open what nobody but root, or this process's user, can have written or put there; else EACCES.

    A symbolic link is followed where the same holds for the link: Kubernetes mounts secrets like that.
    """
    parent, name = os.path.split(path)
    folder = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags |= 0 if _is_own_link(name, folder) else os.O_NOFOLLOW
        fd = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    status = os.fstat(fd)
    is_own = _is_own(status) and not status.st_mode & 0o022
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not is_own:
        os.close(fd)
        raise OSError(errno.EACCES, "others can write it")
    return fd


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


def _is_own_link(name: str, folder: int) -> bool:
    """Whether it is a link that nobody else can have put there or can replace."""
    try:
        link = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    around = os.fstat(folder)
    is_kept = not around.st_mode & 0o022 or bool(around.st_mode & stat.S_ISVTX)
    return stat.S_ISLNK(link.st_mode) and _is_own(link) and _is_own(around) and is_kept
