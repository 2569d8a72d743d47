"""Changing the user of this process and dropping capabilities: capabilities(7).

The listener and the keeper call this when they start. Python's standard library has no capset(2), so it goes through
the C library.
"""

import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The numbers of the capabilities that this project knows: include/uapi/linux/capability.h
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

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct; capset(2) takes two, for capabilities 0 to 31 and 32 to 63."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def effective_capabilities() -> list[str]:
    """Return the names of the capabilities in CAPABILITIES that this process can use."""
    status = Path("/proc/self/status").read_text("ascii")
    mask = int(status.split("CapEff:")[1].split()[0], 16)
    return [name for name, number in CAPABILITIES.items() if mask >> number & 1]


def switch_user(uid: int, gid: int) -> None:
    """Become another user, for good and without supplementary groups.

    Capabilities stay permitted, but are not effective, until `drop_capabilities` is called.

    Args:
        uid: The new real, effective and saved user id.
        gid: The new real, effective and saved group id.

    Raises:
        PermissionError: The process lacks CAP_SETUID or CAP_SETGID.
    """
    raise_if_failed(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_capabilities(wanted: Sequence[str], spare: Sequence[str] = ()) -> None:
    """Give up all other capabilities for good, and set no_new_privs.

    Args:
        wanted: Capabilities to keep and to use, as far as they are permitted.
        spare: Capabilities to keep permitted but not effective, so that a later call can still choose to use them.

    Raises:
        KeyError: A name that is not in CAPABILITIES.
        OSError: The kernel refuses capset(2) or prctl(2).
    """
    status = Path("/proc/self/status").read_text("ascii")
    permitted = int(status.split("CapPrm:")[1].split()[0], 16)
    data = (_Data * 2)()
    for name in (*wanted, *spare):
        number = CAPABILITIES[name]
        if permitted >> number & 1:
            data[number // 32].permitted |= 1 << number % 32
            data[number // 32].effective |= (name in wanted) << number % 32
    raise_if_failed(_libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), data))
    raise_if_failed(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. A change of the user undoes this."""
    raise_if_failed(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))


def raise_if_failed(result: int) -> None:
    """Raise OSError with the errno of the last call of the C library, unless its result is 0."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
