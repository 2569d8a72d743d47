"""Becoming another user, and keeping only some capabilities (capabilities(7))."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# include/uapi/linux/capability.h
CAPABILITIES: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def effective_capabilities() -> list[str]:
    """Those of CAPABILITIES that this process has."""
    status = Path("/proc/self/status").read_text("ascii")
    mask = int(status.split("CapEff:")[1].split()[0], 16)
    return [name for name, number in CAPABILITIES.items() if mask >> number & 1]


def switch_user(uid: int, gid: int) -> None:
    """Become this user for good, with no other groups; capabilities stay permitted until `drop_capabilities`.

    PermissionError where the process may not (CAP_SETUID, CAP_SETGID).
    """
    check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_capabilities(wanted: Sequence[str], spare: Sequence[str] = ()) -> None:
    """Give up, for good, every capability but those that are permitted of `wanted`; and no_new_privs.

    `spare`: are given up by a later call; until then they count for nothing.
    """
    status = Path("/proc/self/status").read_text("ascii")
    permitted = int(status.split("CapPrm:")[1].split()[0], 16)
    data = (_Data * 2)()
    for name in (*wanted, *spare):
        number = CAPABILITIES[name]
        if permitted >> number & 1:
            data[number // 32].permitted |= 1 << number % 32
            data[number // 32].effective |= (name in wanted) << number % 32
    check(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data))
    check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def check(result: int) -> None:
    """OSError with the errno of a call of the C library that has failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
