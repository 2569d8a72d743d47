"""Object files: where they may be, how one is read, and the sealed memory that it is passed on in."""

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK_BYTES: Final = 1 << 20


def sealed(content: bytes) -> int:
    """Return the fd of memory that has this content, and that nobody can change.

    Kernel:
        memfd_create(2), F_ADD_SEALS: Linux 3.17.
    """
    fd = _memory()
    try:
        _write(fd, content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_sealed(fd: int, max_bytes: int) -> None:
    """Check that an fd is memory that nobody can change.

    Raises:
        OSError: EINVAL for anything else; EFBIG for more than `max_bytes`.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:  # EINVAL where it is no such memory
        raise OSError(errno.EINVAL, "the object file is not in sealed memory")
    if os.fstat(fd).st_size > max_bytes:
        raise OSError(errno.EFBIG, "the object file is too large")


def content_of(fd: int) -> bytes:
    """Return what is in sealed memory."""
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)


def read_file(path: str, folders: Sequence[str], max_bytes: int) -> int:
    """Read an object file, and return the fd of sealed memory with its content.

    Others may replace the file, or a link on the way, at any time: so it is opened first, and then checked.

    Args:
        path: Absolute, without empty parts, `.` and `..`.
        folders: The file has to be below one of these, also with links resolved.
        max_bytes: The largest file.

    Raises:
        OSError: EXDEV for a path elsewhere; EISDIR for a folder; ENODEV for anything else that is no regular file;
            EMLINK for a file with several names; EFBIG for one that is too large; EAGAIN for one that changes
            meanwhile; any errno of open(2).
    """
    parts = path.split("/")
    if parts[0] or any(part in {"", ".", ".."} for part in parts[1:]) or not _is_below(path, folders):
        raise OSError(errno.EXDEV, "the path is not below object_dirs, or has empty parts, . or ..")
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{place}"
        if not _is_below(str(Path(name).readlink()), [os.path.realpath(each) for each in folders]):
            raise OSError(errno.EXDEV, "the path leads out of object_dirs")
        _check_kind(os.fstat(place))
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        return _copied(fd, max_bytes)
    finally:
        os.close(fd)


def _check_kind(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ENODEV, "it is no regular file")
    if status.st_nlink > 1:
        raise OSError(errno.EMLINK, "the file has several names (hard links)")


def _copied(fd: int, max_bytes: int) -> int:
    before, memory = os.fstat(fd), _memory()
    try:
        if before.st_size > max_bytes:
            raise OSError(errno.EFBIG, "the file is too large")
        size = 0
        while chunk := os.read(fd, _CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                break
            _write(memory, chunk)
        after = os.fstat(fd)
        if size != before.st_size or (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
            before.st_size, before.st_mtime_ns, before.st_ctime_ns,
        ):  # fmt: skip
            raise OSError(errno.EAGAIN, "the file changes while it is read")
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _memory() -> int:
    return os.memfd_create("object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in folders)
