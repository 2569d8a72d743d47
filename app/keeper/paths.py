"""The keeper's checks of paths.

Other processes can replace a path, or a link in it, between a check and its use. So the keeper opens first, checks what
it has opened, and then works with the open fd. `AllowedPaths` does that for pins, `open_file` and `own_file` for the
keeper's own files (tokens, keys, audit).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_LINKS: Final = 40  # as in the kernel's path lookup


class AllowedPaths:
    """The paths at which the keeper may open and make pins.

    Allowed are all paths below `pin_dirs`, but none below `keep_dir`, where the listener itself may write; and each
    path of `pins`, wherever it is. Thread rule: any thread.
    """

    def __init__(self, pin_dirs: Sequence[str], pins: Sequence[str], keep_dir: str | None = None) -> None:
        self._pin_dirs = pin_dirs
        self._pins = frozenset(pins)
        self._keep_dir = keep_dir

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[str]:
        """Open what is at a path now, and yield a name for it that stays valid whatever is put there afterwards.

        Raises:
            OSError: EXDEV for a path that is not allowed, as given or with its links resolved; EINVAL for a path that
                is not absolute or has empty parts, `.` or `..`; any errno of open(2).
        """
        if path not in self._pins:
            self._check(path)  # before open(2), whose errno would tell what exists elsewhere
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
        """Open the folder of a path, and yield (its fd (O_PATH), the name in it).

        Raises:
            OSError: As `open`.
        """
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
            raise OSError(errno.EINVAL, "the path is not absolute, or has empty parts, . or ..")
        keep_dir = [] if self._keep_dir is None else [self._keep_dir]
        if not _is_below(path, self._pin_dirs) or _is_below(path, keep_dir):
            raise OSError(errno.EXDEV, "the path is not below pin_dirs, or is below keep_dir")


def _is_below(path: str, folders: Sequence[str]) -> bool:
    """Return whether a path is below one of these folders, by their names as given or with links resolved."""
    both = [*folders, *(os.path.realpath(folder) for folder in folders)]
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in both)


def own_file(path: str, flags: int, *, protected_folder: bool = False) -> int:
    """Open a file that only root or this process's user can have written.

    Args:
        path: Absolute.
        flags: Those of open(2).
        protected_folder: As in `open_file`.

    Returns:
        The fd.

    Raises:
        OSError: EACCES where others own the file or can write it; else as `open_file`.
    """
    fd = open_file(path, flags, protected_folder=protected_folder)
    status = os.fstat(fd)
    if not _is_own(status) or status.st_mode & 0o022:
        os.close(fd)
        raise OSError(errno.EACCES, "others own this file or can write it")
    return fd


def open_file(path: str, flags: int, *, protected_folder: bool = False) -> int:
    """Open a regular file, following only links that root or this process's user has made.

    Args:
        path: Absolute.
        flags: Those of open(2). A file that they create has the mode 0600.
        protected_folder: Require a folder in which nobody else can replace the file.

    Returns:
        The fd.

    Raises:
        OSError: EACCES where others can have made a link on the way, where they can replace the file and
            `protected_folder` is set, and for anything but a regular file with a single name (hard links); ELOOP for
            too many links; any errno of open(2).
    """
    parts, links, fd = [each for each in reversed(path.split("/")) if each], 0, _root()
    try:
        while parts:
            name = parts.pop()
            target = _link_target(name, fd)
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, "too many symbolic links")
                if not _is_protected(fd) or not _is_own(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                    raise OSError(errno.EACCES, "others can have made a link on the way to this file")
                parts += [each for each in reversed(target.split("/")) if each]
                new = _root() if target.startswith("/") else os.dup(fd)
            elif parts:
                new = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            else:
                if protected_folder and not _is_protected(fd):
                    raise OSError(errno.EACCES, "others can replace this file")
                # O_NONBLOCK: a FIFO must not block the keeper.
                new = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=fd)
            os.close(fd)
            fd = new
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EACCES, "this is no regular file with a single name")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_protected(folder: int) -> bool:
    """Return whether only root and this process's user can replace their files in this folder.

    A folder with the sticky bit is protected even if others can write it: Kubernetes mounts secrets with mode 1777.
    """
    status = os.fstat(folder)
    return _is_own(status) and (not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX))


def _root() -> int:
    return os.open("/", _FOLDER)


def _link_target(name: str, folder: int) -> str | None:
    """Return where a link leads; None for anything but a link."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
        return None


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}
