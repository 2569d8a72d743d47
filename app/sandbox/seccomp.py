"""A filter on this process's own system calls (seccomp(2)), for what needs no capability and is still not its business.

Whoever holds the fd of an XDP program may attach it with BPF_LINK_CREATE, without any capability (bpf_xdp_link_attach()
asks for none): so of bpf(2) only the commands that the service uses are let through.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from typing import Final

from app.bpf.syscall import SYSCALL_NUMBERS
from app.bpf.uapi import Cmd
from app.sandbox.capabilities import check

# include/uapi/linux/audit.h; the numbers: include/uapi/asm-generic/unistd.h, and x86-64's own table.
_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr; io_uring_setup
_NEW_REFUSED: Final = (428, 429, 430, 431, 432, 433, 442, 425)
# execve, execveat, ptrace, mount, unshare, setns, perf_event_open, process_vm_readv and _writev
_REFUSED: Final = {
    "x86_64": (59, 322, 101, 165, 272, 308, 298, 310, 311, *_NEW_REFUSED),
    "aarch64": (221, 281, 117, 40, 97, 268, 241, 270, 271, *_NEW_REFUSED),
}
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE3: Final = 435  # its flags are in memory, where a filter cannot look: without it the C library takes clone
_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
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

# BPF_LD|W|ABS; BPF_JMP|JEQ|K, |JGE|K, |JSET|K; BPF_RET|K
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data
_ALLOW, _REFUSE, _MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS  # SECCOMP_RET_…
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(commands: Sequence[Cmd] = COMMANDS) -> None:
    """From now on EPERM for all of bpf(2) but `commands`, and for whatever starts, reads or becomes something else.

    Of this thread and those it makes; it needs no_new_privs. OSError where the kernel has no seccomp.
    """
    code = _filter(platform.machine(), commands)
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _filter(machine: str, commands: Sequence[Cmd]) -> bytes:
    """struct sock_filter (code, jump if true, jump if false, k), 8 bytes each."""
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _ARCHES[machine]), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, _NUMBER)]
    for test, number in ((_AT_LEAST, _X32), *((_EQUAL, number) for number in _REFUSED[machine])):
        code += [(test, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _MISSING)]
    code += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    code += [(_ANY_BIT, 0, 1, _NAMESPACES), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 1, 0, SYSCALL_NUMBERS[machine]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for command in commands:
        code += [(_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("<HBBI", *each) for each in code)
