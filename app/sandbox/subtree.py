"""A folder that stays readable, whatever becomes of the rights to reach it by its path."""

import ctypes
import os
from pathlib import Path
from typing import Final

_OPEN_TREE: Final = 428  # the number of the system call, the same on all machines
_AT_FDCWD: Final = -100
_OPEN_TREE_CLONE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def open_subtree(folder: Path) -> int:
    """Open a folder as a mount of its own, which only this process sees: no path, and no `..`, leads out of it.

    Whoever has the fd may read what lies below, as far as the modes of the files and folders there permit.

    Returns:
        An fd. The caller closes it, which ends the mount.

    Raises:
        OSError: The process lacks CAP_SYS_ADMIN, or the kernel is older than Linux 5.2, which brought open_tree(2).
    """
    fd: int = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(folder), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
