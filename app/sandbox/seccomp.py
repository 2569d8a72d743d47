"""A filter on the system calls of this process (seccomp(2)), for calls that need no capability but that it never makes.

The listener installs it when it has dropped its capabilities. An example: a process with the fd of an XDP program can
attach it with BPF_LINK_CREATE and needs no capability for that (bpf_xdp_link_attach() checks none). So the filter lets
only those commands of bpf(2) through that the service uses.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from typing import Final

from app.bpf.syscall import SYSCALL_NUMBERS
from app.bpf.uapi import Cmd
from app.sandbox.capabilities import raise_if_failed

# AUDIT_ARCH_* of include/uapi/linux/audit.h. Numbers of system calls: include/uapi/asm-generic/unistd.h, and x86-64's
# own table. Calls with a number from 424 on have the same on all machines.
_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr; io_uring_setup
_REFUSED_EVERYWHERE: Final = (428, 429, 430, 431, 432, 433, 442, 425)
# execve, execveat, ptrace, mount, unshare, setns, perf_event_open, process_vm_readv and _writev
_REFUSED: Final = {
    "x86_64": (59, 322, 101, 165, 272, 308, 298, 310, 311, *_REFUSED_EVERYWHERE),
    "aarch64": (221, 281, 117, 40, 97, 268, 241, 270, 271, *_REFUSED_EVERYWHERE),
}
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
# A filter cannot see the flags of clone3, which are in memory. So it fails with ENOSYS, and the C library uses clone.
_CLONE3: Final = 435
_CLONE_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT: from here on, the same calls have other numbers

# The commands of bpf(2) that the listener uses without the keeper.
COMMANDS: Final = (
    Cmd.MAP_LOOKUP_ELEM,
    Cmd.MAP_UPDATE_ELEM,
    Cmd.MAP_DELETE_ELEM,
    Cmd.OBJ_PIN,
    Cmd.OBJ_GET,
    Cmd.PROG_TEST_RUN,
    Cmd.OBJ_GET_INFO_BY_FD,
    Cmd.ITER_CREATE,  # reads a list; it attaches nothing
)

# Opcodes of classic BPF: BPF_LD|W|ABS; BPF_JMP|JEQ|K, |JGE|K, |JSET|K; BPF_RET|K
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS  # SECCOMP_RET_…
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(commands: Sequence[Cmd] = COMMANDS) -> None:
    """Install the filter on this thread and on all threads that it starts, for good. Requires no_new_privs.

    Refused with EPERM are then: all commands of bpf(2) but `commands`, execve, ptrace, mounts, namespaces, perf events,
    io_uring, and access to the memory of other processes.

    Args:
        commands: The commands of bpf(2) to let through.

    Raises:
        OSError: The kernel has no seccomp filters, or no_new_privs is not set.
    """
    code = _filter(platform.machine(), commands)
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    raise_if_failed(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _filter(machine: str, commands: Sequence[Cmd]) -> bytes:
    """Assemble the filter.

    Each instruction is a struct sock_filter of 8 bytes: opcode, how many instructions to skip if a test is true and if
    it is false, and the operand.
    """
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _ARCHES[machine]), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, _NUMBER)]
    for test, number in ((_AT_LEAST, _X32), *((_EQUAL, number) for number in _REFUSED[machine])):
        code += [(test, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ENOSYS)]
    code += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    code += [(_ANY_BIT, 0, 1, _CLONE_NAMESPACES), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 1, 0, SYSCALL_NUMBERS[machine]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for command in commands:
        code += [(_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _EPERM))
    return b"".join(struct.pack("<HBBI", *each) for each in code)
