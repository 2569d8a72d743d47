"""Where the keeper may go: paths that were looked at after they were opened, so that nobody can lead it elsewhere."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_LINKS: Final = 40  # as the kernel


class Paths:
    """Below `pin_dirs`, and each of `pins`, but nowhere in `keep_dir`, which belongs to who asks.

    EXDEV for others, EINVAL for what is no absolute path without . and ..
    """

    def __init__(self, pin_dirs: Sequence[str], pins: Sequence[str], keep_dir: str | None = None) -> None:
        self._pin_dirs = pin_dirs
        self._pins = frozenset(pins)
        self._keep_dir = keep_dir

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
        keep_dir = [] if self._keep_dir is None else [self._keep_dir]
        if not _is_below(path, self._pin_dirs) or _is_below(path, keep_dir):
            raise OSError(errno.EXDEV, "not below pin_dirs")


def _is_below(path: str, folders: Sequence[str]) -> bool:
    both = [*folders, *(os.path.realpath(folder) for folder in folders)]
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in both)


def own_file(path: str, flags: int, *, kept: bool = False) -> int:
    """Open what nobody but root, or this process's user, can have written; else EACCES.

    `kept`: and where nobody else can have put something else in its place.
    """
    fd = open_file(path, flags, kept=kept)
    status = os.fstat(fd)
    if not _is_own(status) or status.st_mode & 0o022:
        os.close(fd)
        raise OSError(errno.EACCES, "others can write it")
    return fd


def open_file(path: str, flags: int, *, kept: bool = False) -> int:
    """Open a regular file with one name; EACCES for others, and where a link is on the way that others can have put.

    `kept`: and for one in a folder where others can put something else in its place.
    """
    parts, links, fd = [each for each in reversed(path.split("/")) if each], 0, _root()
    try:
        while parts:
            name = parts.pop()
            to = _link(name, fd)
            if to is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, "too many links")
                if not _is_kept(fd) or not _is_own(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                    raise OSError(errno.EACCES, "others can have put that link there")
                parts += [each for each in reversed(to.split("/")) if each]
                new = _root() if to.startswith("/") else os.dup(fd)
            elif parts:
                new = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            else:
                if kept and not _is_kept(fd):
                    raise OSError(errno.EACCES, "others can put something else in its place")
                new = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=fd)
            os.close(fd)
            fd = new
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EACCES, "it is no regular file of one name")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_kept(folder: int) -> bool:
    """Whether nobody else can replace what is root's in this folder. (Kubernetes mounts secrets with 1777.)"""
    status = os.fstat(folder)
    return _is_own(status) and (not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX))


def _root() -> int:
    return os.open("/", _FOLDER)


def _link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
        return None


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}
