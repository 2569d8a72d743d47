"""Landlock (landlock(7)): from now on this process may open only a few files, whatever its user may."""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final

from app.sandbox.capabilities import raise_if_failed

# The numbers of these system calls are the same on all machines: include/uapi/asm-generic/unistd.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3  # LANDLOCK_ACCESS_FS_…

# By the version of Landlock from which on it counts: how many rights on files there are, and the size of struct
# landlock_ruleset_attr. A structure that is longer than the kernel knows is refused with E2BIG.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
_RULESET_BYTES: Final = {1: 8, 4: 16, 6: 24}
_NETWORK_RIGHTS: Final = 0b11  # bind and connect of TCP, since version 4
_SCOPES: Final = 0b11  # abstract unix sockets and signals, since version 6

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return the version of Landlock in this kernel. 0: it has none, or may not be asked.

    Kernel:
        landlock_create_ruleset(2), Linux 5.13.
    """
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)))


def restrict_files(readable: Sequence[str], listed: Sequence[str] = ()) -> bool:
    """Refuse to open any file but these, for good: with EACCES. Requires no_new_privs.

    Args:
        readable: Files and folders that may be read, with all that is below them. What is missing is left out.
        listed: Folders that may be opened to list what is in them, with all folders below: Landlock knows no less.

    Returns:
        Whether the kernel does it. False: it has no Landlock.

    Raises:
        OSError: The kernel has Landlock, and refuses.
    """
    known = version()
    if not known:
        return False
    size = _of_version(_RULESET_BYTES, known)
    rights = (1 << _of_version(_FILE_RIGHTS, known)) - 1
    attributes = struct.pack("<QQQ", rights, _NETWORK_RIGHTS, _SCOPES)[:size]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    raise_if_failed(min(0, ruleset))
    try:
        for path in (*readable, *listed):
            _add(ruleset, path, is_readable=path in readable)
        raise_if_failed(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _add(ruleset: int, path: str, *, is_readable: bool) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        rights = _READ_FILE * is_readable | _READ_DIR * is_folder
        raise_if_failed(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("<Qi", rights, fd), 0))
    finally:
        os.close(fd)


def _of_version(by_version: dict[int, int], known: int) -> int:
    return max(value for since, value in by_version.items() if since <= known)
