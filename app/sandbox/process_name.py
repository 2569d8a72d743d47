"""The name under which `ps` and `top` show this process. Without it, they show the interpreter and its arguments."""

import contextlib
import ctypes
from pathlib import Path
from typing import Final

_PR_SET_NAME: Final = 15
_MAX_COMM_BYTES: Final = 15  # TASK_COMM_LEN of include/linux/sched.h, without the closing NUL
_ARG_START, _ARG_END = 48, 49  # the fields arg_start and arg_end of /proc/pid/stat, counted from 1: proc(5)

_libc = ctypes.CDLL(None, use_errno=True)


def set_process_name(name: str) -> None:
    """Set the name of the main thread, cut to 15 bytes, and overwrite the command line, which needs no privilege.

    Call it in the main thread. Threads that are started later inherit the shorter name. A failure is ignored.

    Args:
        name: In ASCII. It is cut to the length of the command line.

    Kernel:
        PR_SET_NAME, Linux 2.6.9; arg_start and arg_end in /proc/self/stat, Linux 3.5.
    """
    _libc.prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:_MAX_COMM_BYTES]), 0, 0, 0)
    with contextlib.suppress(OSError):
        # The second field is the name, in parentheses, and may contain anything.
        fields = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
        if 0 < start < end:
            # The rest becomes NUL, the last byte too: otherwise the kernel would show the environment as well.
            ctypes.memmove(start, name.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)
