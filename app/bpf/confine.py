"""A filter on this process's own system calls (seccomp(2)), for what needs no capability and is still not its business.

Whoever holds the fd of an XDP program may attach it with BPF_LINK_CREATE, without any capability (bpf_xdp_link_attach()
asks for none): so of bpf(2) only the commands that the service uses are let through.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

from app.bpf.uapi import Cmd

# include/uapi/linux/audit.h; the numbers: include/uapi/asm-generic/unistd.h, and x86-64's own table.
_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_BPF: Final = {"x86_64": 321, "aarch64": 280}
_REFUSED: Final = {
    "x86_64": (59, 322, 101, 165, 272, 308, 298, 425, 310, 311),
    "aarch64": (221, 281, 117, 40, 97, 268, 241, 425, 270, 271),
}  # execve, execveat, ptrace, mount, unshare, setns, perf_event_open, io_uring_setup, process_vm_readv and _writev
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT: the same calls by other numbers

COMMANDS: Final = (
    Cmd.MAP_LOOKUP_ELEM,
    Cmd.MAP_UPDATE_ELEM,
    Cmd.MAP_DELETE_ELEM,
    Cmd.OBJ_PIN,
    Cmd.OBJ_GET,
    Cmd.PROG_TEST_RUN,
    Cmd.OBJ_GET_INFO_BY_FD,
)

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_…
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def confine(commands: Sequence[Cmd] = COMMANDS) -> None:
    """From now on EPERM for all of bpf(2) but `commands`, and for whatever starts, reads or becomes something else.

    Of this thread and those it makes; it needs no_new_privs. OSError where the kernel has no seccomp.
    """
    code = _filter(platform.machine(), commands)
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter(machine: str, commands: Sequence[Cmd]) -> bytes:
    """struct sock_filter (code, jump if true, jump if false, k), 8 bytes each."""
    refused = _REFUSED[machine]
    tests = [(_AT_LEAST, _X32), *((_EQUAL, number) for number in refused)]
    refuse = len(tests) + 2 + len(commands)  # how far the last statement but one is from the first test
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _ARCHES[machine]), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, _NUMBER)]
    code += [(kind, refuse - at - 1, 0, number) for at, (kind, number) in enumerate(tests)]
    code += [(_EQUAL, 0, len(commands) + 2, _BPF[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    code += [(_EQUAL, len(commands) - at, 0, command) for at, command in enumerate(commands)]
    code += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *each) for each in code)
