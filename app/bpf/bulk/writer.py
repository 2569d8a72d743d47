"""The program that writes many entries of a program array inside the kernel.

The program has no map and keeps nothing between two runs: each BPF_PROG_TEST_RUN brings its request along. So any
number of threads may run it at once, and it does for a process only what that process can do by itself.
"""

from ctypes import Structure, c_uint32, c_uint64
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.uapi import BPF_FUNC_COPY_FROM_USER, BPF_FUNC_KTIME_GET_NS, BPF_FUNC_SYS_BPF, Cmd

# A run ends after this time, so that the process can handle signals. It may exceed it by one entry, which can take 1 s.
_MAX_RUN_NANOSECONDS: Final = 20_000_000
ENTRIES_PER_COPY: Final = 32  # entries that are copied from user space together
# For kernels without may_goto. The verifier follows the loop round by round, and each round adds 4 of at most 8,192
# pending branches (BPF_COMPLEXITY_LIMIT_JMP_SEQ).
_ENTRIES_PER_BOUNDED_RUN: Final = 1024


class WriteRequest(Structure):
    """The context of the writer: the request, and in `done` the answer.

    `indexes` and `values` are addresses of `count` u32 indexes and `count` i32 fds; a negative fd clears the entry. The
    writer sets `done` to the number of entries written. It copies ENTRIES_PER_COPY numbers at a time, so as many must
    be readable behind the last one.
    """

    _fields_ = (
        ("map_fd", c_uint32),
        ("count", c_uint32),
        ("indexes", c_uint64),
        ("values", c_uint64),
        ("done", c_uint32),
    )


def assemble_writer(*, bounded: bool) -> bytes:
    """Assemble the writer, a sleepable program of type SYSCALL that runs on a WriteRequest.

    For each entry, in order, the program calls bpf(2) with MAP_UPDATE_ELEM or MAP_DELETE_ELEM, with the fds and rights
    of the process that runs it. It returns the errno with which an entry was refused, or 0. A run may end before all
    entries are written, at the latest after 20 ms and one entry; the caller then runs it again for the rest. To load it
    takes CAP_BPF and CAP_PERFMON.

    Args:
        bounded: End a run after 1,024 entries, because loops must be bounded before Linux 6.9 (may_goto).

    Kernel:
        bpf_sys_bpf(), Linux 5.14.
    """
    # r6: entries written, r7: the context, r8: when to end, r9: entries written of those that were copied last.
    # Offsets on the stack, from r10:
    key, value = -40, -36
    attr, attr_key, attr_value, attr_flags = -32, -24, -16, -8  # union bpf_attr; MAP_DELETE_ELEM ends with attr_key
    keys, values = key - 4 * ENTRIES_PER_COPY, key - 8 * ENTRIES_PER_COPY
    return asm.assemble(
        asm.mov_reg(7, 1),
        asm.call(BPF_FUNC_KTIME_GET_NS),
        asm.mov_reg(8, 0),
        asm.add(8, _MAX_RUN_NANOSECONDS),
        asm.load(WORD, 1, 7, WriteRequest.map_fd.offset),
        asm.store(DWORD, 10, attr, 1),
        *asm.stack(1, key),
        asm.store(DWORD, 10, attr_key, 1),
        *asm.stack(1, value),
        asm.store(DWORD, 10, attr_value, 1),
        asm.store_zero(10, attr_flags),
        asm.mov(6, 0),
        "next",
        jump_if(6, "==", _ENTRIES_PER_BOUNDED_RUN, "out") if bounded else asm.may_goto("out"),
        *_copy_words(keys, WriteRequest.indexes.offset),
        asm.mov_reg(9, 0),
        *_copy_words(values, WriteRequest.values.offset),
        asm.or_reg(0, 9),
        jump_if(0, "!=", 0, "refused"),
        asm.mov(9, 0),
        "entry",
        asm.load(WORD, 1, 7, WriteRequest.count.offset),
        jump_if_reg(6, ">=", 1, "out"),
        asm.mov_reg(2, 9),
        asm.shift_left(2, 2),
        asm.mov_reg(1, 10),
        asm.add_reg(1, 2),
        asm.load(WORD, 2, 1, keys),
        asm.store(WORD, 10, key, 2),
        asm.load(WORD, 2, 1, values),
        asm.store(WORD, 10, value, 2),
        asm.shift_right(2, 31),  # 1 for a negative value, which is a delete; else 0
        asm.mov_reg(1, 2),
        asm.add(1, Cmd.MAP_UPDATE_ELEM),  # + 1 is MAP_DELETE_ELEM
        asm.mov(3, 2),
        asm.sub_reg(3, 2),
        asm.shift_left(3, 4),  # the size of attr in bytes: 32 for an update, 16 for a delete
        *asm.stack(2, attr),
        asm.call(BPF_FUNC_SYS_BPF),
        jump_if(0, "!=", 0, "failed"),
        "written",
        asm.add(6, 1),
        asm.add(9, 1),
        *_is_delete(1, value),
        jump_if(1, "!=", 0, "check time"),  # after each delete, as one may take long
        jump_if(9, "!=", ENTRIES_PER_COPY, "entry"),
        "check time",
        asm.call(BPF_FUNC_KTIME_GET_NS),
        jump_if_reg(0, ">=", 8, "out"),
        jump_if(9, "!=", ENTRIES_PER_COPY, "entry"),
        jump("next"),
        "failed",
        *_is_delete(1, value),
        jump_if(1, "==", 0, "refused"),
        jump_if(0, "==", -2, "written"),  # ENOENT: the entry is empty already
        "refused",
        asm.negate(0),
        jump("end"),
        "out",
        asm.mov(0, 0),
        "end",
        asm.store(WORD, 7, WriteRequest.done.offset, 6),
        asm.exit_(),
    )


def _copy_words(to: int, field: int) -> Parts:
    """Copy ENTRIES_PER_COPY u32 words to the stack, from word r6 of the user memory whose address is in the context.

    Args:
        to: Offset on the stack.
        field: Offset of the address in the context.

    Returns:
        Instructions that leave 0 or -EFAULT in r0.
    """
    return (
        *asm.stack(1, to),
        asm.mov(2, 4 * ENTRIES_PER_COPY),
        asm.mov_reg(3, 6),
        asm.shift_left(3, 2),
        asm.load(DWORD, 4, 7, field),
        asm.add_reg(3, 4),
        asm.call(BPF_FUNC_COPY_FROM_USER),
    )


def _is_delete(to: int, value: int) -> Parts:
    """Register `to` = 1 if the value on the stack is negative, else 0."""
    return asm.load(WORD, to, 10, value), asm.shift_right(to, 31)
