"""Filters on the system calls of a process (seccomp(2)).

`install_filter` is for the listener, which installs it when it has dropped its capabilities. It refuses calls that need
no capability but that the listener never makes. An example: a process with the fd of an XDP program can attach it with
BPF_LINK_CREATE and needs no capability for that (bpf_xdp_link_attach() checks none). So the filter lets only those
commands of bpf(2) through that the service uses.

`install_allow_list` is for the process that loads an object file. It refuses all calls but a few.
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
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr; io_uring_setup; pidfd_getfd
_REFUSED_EVERYWHERE: Final = (428, 429, 430, 431, 432, 433, 442, 425, 438)
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

# For `install_allow_list`: what Python, libbpf and the C library call to read files, use memory, and send an answer.
# There is none to ignore or block a signal: SIGALRM ends the process in time, whatever it does.
# Each has its number on x86_64 and on aarch64; None: that machine has no such call.
_ALLOWED_CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "poll": (7, None), "ppoll": (271, 73),
    "lseek": (8, 62), "munmap": (11, 215), "brk": (12, 214),
    "pread64": (17, 67), "access": (21, None), "faccessat": (269, 48),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "getpid": (39, 172), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "readlink": (89, None), "getrusage": (98, 165), "sysinfo": (99, 179), "geteuid": (107, 175), "statfs": (137, 43),
    "gettid": (186, 178), "futex": (202, 98), "clock_gettime": (228, 113), "exit_group": (231, 94),
    "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78), "dup3": (292, 24),
    "getrandom": (318, 278), "memfd_create": (319, 279), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
_ALLOWED: Final = {
    machine: [number for numbers in _ALLOWED_CALLS.values() if (number := numbers[place]) is not None]
    for place, machine in enumerate(_ARCHES)
}
# The same of calls that are let through with some values of an argument: its number from 0 on, and the values.
# ioctl: with CAP_NET_ADMIN any socket changes network interfaces (SIOCSIFFLAGS and others); TCGETS and FIOCLEX are what
# Python asks of files. fcntl: F_SETOWN and F_SETSIG would send signals to processes of the same user; F_DUPFD, F_GETFD,
# F_SETFD, F_GETFL, F_DUPFD_CLOEXEC and F_GET_SEALS do nothing of the kind. prlimit64: of this process alone.
_ALLOWED_VALUES: Final[dict[str, tuple[tuple[int, int], int, tuple[int, ...]]]] = {
    "ioctl": ((16, 29), 1, (0x5401, 0x5451)),
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 1030, 1034)),
    "prlimit64": ((302, 261), 0, (0,)),
}
_MAPPING: Final = {"x86_64": (9, 10), "aarch64": (222, 226)}  # mmap and mprotect, without PROT_EXEC

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
# Offsets in struct seccomp_data. Of an argument, these are the lower 32 bits, which all of these calls take.
_NUMBER, _ARCH, _FIRST_ARGUMENT, _THIRD_ARGUMENT, _ARGUMENT_BYTES = 0, 4, 16, 32, 8
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_…
_EPERM, _ENOSYS, _ENOENT = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS, _ERRNO | errno.ENOENT
_PROT_EXEC: Final = 4
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def has_filters() -> bool:
    """Whether this kernel has filters (CONFIG_SECCOMP_FILTER). A filter at no address is EFAULT there, else EINVAL."""
    return _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0) == 0 or ctypes.get_errno() != errno.EINVAL


def install_filter(commands: Sequence[Cmd] = COMMANDS) -> None:
    """Install the filter on this thread and on all threads that it starts, for good. Requires no_new_privs.

    Refused with EPERM are then: all commands of bpf(2) but `commands`, execve, ptrace, mounts, namespaces, perf events,
    io_uring, and access to the memory and the fds of other processes.

    Args:
        commands: The commands of bpf(2) to let through.

    Raises:
        OSError: The kernel has no seccomp filters, or no_new_privs is not set.
    """
    _install(_filter(platform.machine(), commands))


def install_allow_list(commands: Sequence[int], missing: Sequence[int] = ()) -> None:
    """Let only these commands of bpf(2) through, and what reading files and memory takes; for good.

    Refused with EPERM are all other system calls, and memory that can be executed. Requires no_new_privs.

    Args:
        commands: The commands of bpf(2) to let through.
        missing: Commands that fail with ENOENT, as where there is nothing to find.

    Raises:
        OSError: The kernel has no seccomp filters, or no_new_privs is not set.
    """
    _install(_allow_list(platform.machine(), commands, missing))


def _install(code: bytes) -> None:
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    raise_if_failed(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _allow_list(machine: str, commands: Sequence[int], missing: Sequence[int]) -> bytes:
    """Assemble the filter of `install_allow_list`."""
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _ARCHES[machine]), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, _NUMBER)]
    for number in _ALLOWED[machine]:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for numbers, place, values in _ALLOWED_VALUES.values():
        code += [(_EQUAL, 0, 2 + 2 * len(values), numbers[list(_ARCHES).index(machine)])]
        code += [(_LOAD, 0, 0, _FIRST_ARGUMENT + _ARGUMENT_BYTES * place)]
        for value in values:
            code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
        code += [(_RETURN, 0, 0, _EPERM)]
    for number in _MAPPING[machine]:
        code += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _THIRD_ARGUMENT)]
        code += [(_ANY_BIT, 0, 1, _PROT_EXEC), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 1, 0, SYSCALL_NUMBERS[machine]), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for command, action in (*((each, _ALLOW) for each in commands), *((each, _ENOENT) for each in missing)):
        code += [(_EQUAL, 0, 1, command), (_RETURN, 0, 0, action)]
    code.append((_RETURN, 0, 0, _EPERM))
    return b"".join(struct.pack("<HBBI", *each) for each in code)


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
