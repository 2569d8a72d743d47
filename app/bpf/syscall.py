"""The system call bpf(2). `linux` and `bulk` call it through this module, and nothing else does.

Python's standard library has no bpf(2), so it goes through syscall(2) of the C library.
"""

import ctypes
import errno
import os
import platform
from typing import Any, Final

from app.bpf.uapi import Cmd

# The number of bpf(2) by machine: include/uapi/asm-generic/unistd.h, and x86-64's own table.
SYSCALL_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}
NUMBER: Final = ctypes.c_long(SYSCALL_NUMBERS.get(platform.machine(), -1))  # -1: the kernel answers ENOSYS

# The same function of the C library, loaded twice. PyDLL holds the GIL during a call: right for a call of a
# microsecond, which would otherwise wait far longer to get the GIL back from a busy thread. CDLL releases the GIL:
# right for a call that may wait inside the kernel.
call_holding_gil: Final[Any] = ctypes.PyDLL(None, use_errno=True).syscall
call_releasing_gil: Final[Any] = ctypes.CDLL(None, use_errno=True).syscall

# With a signal pending, PROG_LOAD fails with EAGAIN and PROG_TEST_RUN with EINTR. Both may simply be tried again.
_MAX_ATTEMPTS: Final = 32
_RETRIED_ERRNOS: Final = (errno.EAGAIN, errno.EINTR)


def bpf(cmd: Cmd, fields: ctypes.Structure, call: Any = call_holding_gil) -> int:
    """Run one command.

    Args:
        cmd: The command.
        fields: Its part of union bpf_attr (see `app.bpf.attr`).
        call: `call_holding_gil`, or `call_releasing_gil` for a command that may wait.

    Returns:
        What the kernel returns: an fd or 0.

    Raises:
        OSError: The kernel refuses the command; carries its errno.
    """
    result: int = call(NUMBER, int(cmd), ctypes.byref(fields), ctypes.sizeof(fields))
    if result < 0:
        raise failure(cmd)
    return result


def failure(cmd: Cmd) -> OSError:
    """Return the error for the last call of this thread, which the kernel has refused."""
    number = ctypes.get_errno()
    return OSError(number, f"{cmd.name}: {os.strerror(number)}")


def bpf_retrying(cmd: Cmd, fields: ctypes.Structure, call: Any = call_releasing_gil) -> int:
    """Run PROG_LOAD or PROG_TEST_RUN as `bpf` does, and try again where only a signal has interrupted it."""
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return bpf(cmd, fields, call)
        except OSError as error:
            if error.errno not in _RETRIED_ERRNOS:
                raise
    return bpf(cmd, fields, call)
