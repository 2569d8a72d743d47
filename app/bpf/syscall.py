"""The system call bpf(2): the only module that makes it."""

import ctypes
import errno
import os
import platform
from typing import Any, Final

from app.bpf.uapi import Cmd

# The system call's number: include/uapi/asm-generic/unistd.h, and x86-64's own table.
SYSCALL_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}
NUMBER: Final = ctypes.c_long(SYSCALL_NUMBERS.get(platform.machine(), -1))  # -1: ENOSYS

# The same libc twice. PyDLL keeps the GIL over a call: right for one of a microsecond, which would otherwise wait far
# longer to get the GIL back from a busy thread. CDLL gives it up: right for one that may wait inside the kernel.
call_holding_gil: Final[Any] = ctypes.PyDLL(None, use_errno=True).syscall
call_releasing_gil: Final[Any] = ctypes.CDLL(None, use_errno=True).syscall

# A signal that is pending makes PROG_LOAD answer EAGAIN and PROG_TEST_RUN EINTR: both only ask to try again.
_ATTEMPTS: Final = 32
_AGAIN: Final = (errno.EAGAIN, errno.EINTR)


def bpf(cmd: Cmd, fields: ctypes.Structure, call: Any = call_holding_gil) -> int:
    """One command, with its part of union bpf_attr. OSError with the kernel's errno."""
    result: int = call(NUMBER, int(cmd), ctypes.byref(fields), ctypes.sizeof(fields))
    if result < 0:
        raise failed(cmd)
    return result


def failed(cmd: Cmd) -> OSError:
    """Why the last call of this thread was refused."""
    number = ctypes.get_errno()
    return OSError(number, f"{cmd.name}: {os.strerror(number)}")


def bpf_retrying(cmd: Cmd, fields: ctypes.Structure, call: Any = call_releasing_gil) -> int:
    """The same of PROG_LOAD and PROG_TEST_RUN, again where only a signal has come."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return bpf(cmd, fields, call)
        except OSError as error:
            if error.errno not in _AGAIN:
                raise
    return bpf(cmd, fields, call)
