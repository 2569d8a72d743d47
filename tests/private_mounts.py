"""A mount namespace for the tests. Their mounts disappear with the process, however it ends."""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_entered = False


def enter() -> None:
    """Move this process into a mount namespace of its own. Later calls do nothing."""
    global _entered  # noqa: PLW0603
    if not _entered:
        _check(_libc.unshare(_CLONE_NEWNS))
        _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
        _entered = True


def mount_bpffs(folder: Path) -> None:
    """Mount a new, empty bpffs."""
    enter()
    _check(_libc.mount(b"bpf", os.fsencode(folder), b"bpf", 0, b"mode=0700"))


def unmount(folder: Path) -> None:
    """Unmount a file system. This removes all pins of a bpffs."""
    _check(_libc.umount2(os.fsencode(folder), 0))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
