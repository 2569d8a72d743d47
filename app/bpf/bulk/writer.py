"""The program that writes a whole table inside the kernel, where bpf(2) takes one entry a call.

It has no map and keeps nothing from one run to the next: what it needs comes with each BPF_PROG_TEST_RUN. So any number
of threads may run it at once, and whoever runs it can do with it what they could do without.
"""

from ctypes import Structure, c_uint32, c_uint64
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.uapi import BPF_FUNC_COPY_FROM_USER, BPF_FUNC_KTIME_GET_NS, BPF_FUNC_SYS_BPF, Cmd

# The writer gives up the CPU to its process after so long (ns), so that a signal is never far: one entry may wait 1 s.
_AT_A_STRETCH: Final = 20_000_000
AT_ONCE: Final = 32  # entries that are copied at a time
# Where there is no may_goto. The verifier goes round each time, and each time adds 4 to the 8,192 ways it may put off.
_BOUNDED_STEPS: Final = 1024


class Writing(Structure):
    """The writer's context. `indexes` (u32) and `values` (i32): addresses of `count` of each; `done`: it tells.

    AT_ONCE of each are read at a time, so up to that many behind the last have to be there.
    """

    _fields_ = (
        ("map_fd", c_uint32),
        ("count", c_uint32),
        ("indexes", c_uint64),
        ("values", c_uint64),
        ("done", c_uint32),
    )


def writer(*, bounded: bool) -> bytes:
    """The program of map_write: type SYSCALL, sleepable, on a Writing; returns the errno of what was refused, or 0.

    It runs bpf(2) itself (bpf_sys_bpf(), Linux 5.14; to load it takes CAP_BPF and CAP_PERFMON) with MAP_UPDATE_ELEM
    or MAP_DELETE_ELEM for each, in order, with the fds and rights of the process that runs it. `bounded`: it ends
    after 1,024 entries, as loops had to before Linux 6.9 (may_goto); in any case after 20 ms.
    """
    # r6: done, r7: the context, r8: when to end, r9: done of those that were copied. Below r10, the frame pointer:
    key, value = -40, -36
    attr, attr_key, attr_value, attr_flags = -32, -24, -16, -8  # union bpf_attr; in a delete, up to attr_key alone
    keys, values = key - 4 * AT_ONCE, key - 8 * AT_ONCE
    return asm.assembled(
        asm.mov_reg(7, 1),
        asm.call(BPF_FUNC_KTIME_GET_NS),
        asm.mov_reg(8, 0),
        asm.add(8, _AT_A_STRETCH),
        asm.load(WORD, 1, 7, Writing.map_fd.offset),
        asm.store(DWORD, 10, attr, 1),
        *asm.stack(1, key),
        asm.store(DWORD, 10, attr_key, 1),
        *asm.stack(1, value),
        asm.store(DWORD, 10, attr_value, 1),
        asm.store_zero(10, attr_flags),
        asm.mov(6, 0),
        "next",
        jump_if(6, "==", _BOUNDED_STEPS, "out") if bounded else asm.may_goto("out"),
        *_copied(keys, Writing.indexes.offset),
        asm.mov_reg(9, 0),
        *_copied(values, Writing.values.offset),
        asm.or_reg(0, 9),
        jump_if(0, "!=", 0, "refused"),
        asm.mov(9, 0),
        "each",
        asm.load(WORD, 1, 7, Writing.count.offset),
        jump_if_reg(6, ">=", 1, "out"),
        asm.mov_reg(2, 9),
        asm.shift_left(2, 2),
        asm.mov_reg(1, 10),
        asm.add_reg(1, 2),
        asm.load(WORD, 2, 1, keys),
        asm.store(WORD, 10, key, 2),
        asm.load(WORD, 2, 1, values),
        asm.store(WORD, 10, value, 2),
        asm.shift_right(2, 31),  # 1: below zero, to be deleted; else 0
        asm.mov_reg(1, 2),
        asm.add(1, Cmd.MAP_UPDATE_ELEM),  # or the one after it
        asm.mov(3, 2),
        asm.sub_reg(3, 2),
        asm.shift_left(3, 4),  # 32 bytes, or 16
        *asm.stack(2, attr),
        asm.call(BPF_FUNC_SYS_BPF),
        jump_if(0, "!=", 0, "odd"),
        "done",
        asm.add(6, 1),
        asm.add(9, 1),
        *_is_delete(1, value),
        jump_if(1, "!=", 0, "look"),  # one may take long
        jump_if(9, "!=", AT_ONCE, "each"),
        "look",
        asm.call(BPF_FUNC_KTIME_GET_NS),
        jump_if_reg(0, ">=", 8, "out"),
        jump_if(9, "!=", AT_ONCE, "each"),
        jump("next"),
        "odd",
        *_is_delete(1, value),
        jump_if(1, "==", 0, "refused"),
        jump_if(0, "==", -2, "done"),  # ENOENT: empty already
        "refused",
        asm.negate(0),
        jump("end"),
        "out",
        asm.mov(0, 0),
        "end",
        asm.store(WORD, 7, Writing.done.offset, 6),
        asm.exit_(),
    )


def _copied(to: int, field: int) -> Parts:
    """Copy AT_ONCE words, from number r6 on, of the user's memory that a field of the context leads to.

    r0 is 0 or -EFAULT.
    """
    return (
        *asm.stack(1, to),
        asm.mov(2, 4 * AT_ONCE),
        asm.mov_reg(3, 6),
        asm.shift_left(3, 2),
        asm.load(DWORD, 4, 7, field),
        asm.add_reg(3, 4),
        asm.call(BPF_FUNC_COPY_FROM_USER),
    )


def _is_delete(to: int, value: int) -> Parts:
    """1 where the value is below zero, else 0."""
    return asm.load(WORD, to, 10, value), asm.shift_right(to, 31)
