"""From an fd to the map behind it, inside the kernel: what the program that reads tables begins and ends with.

It runs on a packet, as BPF_PROG_TEST_RUN gives it to an XDP program, under rcu_read_lock().
"""

import struct
from collections.abc import Mapping
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump_if, jump_if_reg
from app.bpf.btf import Layout
from app.bpf.uapi import BPF_FUNC_GET_CURRENT_TASK, BPF_FUNC_PROBE_READ_KERNEL, MapType

PACKET: Final = 2048  # bytes; a page less head and tail is what it may have
READING: Final = struct.Struct("=5I")  # what it begins with: the map's fd, its id, its max_entries, start, stop
TOLD, REFUSED = 1, 0  # XDP_DROP, XDP_ABORTED: attached to a device, it would let nothing through

# The fields of the kernel's structures that lead there.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "task_struct": ("files",),
    "files_struct": ("fdt",),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_op", "f_mode", "private_data"),
    "bpf_map": ("map_type", "id", "max_entries"),
}
_FMODE_READ: Final = 1  # include/linux/fs.h

# The stack, below r10: what was read last, the READING, what the way leads over; from FREE on it is the caller's.
_READ, _FD, _ID, MAX_ENTRIES, START, STOP = -8, -16, -24, -32, -40, -48
_FDT, _FILE, _MAP, DATA = -56, -64, -72, -80
FREE: Final = DATA


def parameters() -> Parts:
    """Put the packet's READING, and where the packet is, on the stack; a packet that is too short is refused."""
    moved = [
        part
        for number, place in enumerate((_FD, _ID, MAX_ENTRIES, START, STOP))
        for part in (asm.load(WORD, 1, 8, 4 * number), asm.store(DWORD, 10, place, 1))
    ]
    return (
        asm.load(WORD, 8, 1, 0),  # struct xdp_md: data, data_end
        asm.load(WORD, 2, 1, 4),
        asm.mov_reg(3, 8),
        asm.add(3, PACKET),
        jump_if_reg(2, ">=", 3, "long enough"),
        asm.mov(0, REFUSED),
        asm.exit_(),
        "long enough",
        asm.store(DWORD, 10, DATA, 8),
        *moved,
    )


def _file_of_fd(layout: Layout) -> Parts:
    """r0 = the struct file of the fd in this process: as files_lookup_fd_raw()."""
    offsets = layout.offsets
    return (
        asm.call(BPF_FUNC_GET_CURRENT_TASK),
        *read(8, offsets["task_struct", "files"]),
        *read(8, offsets["files_struct", "fdt"]),
        asm.store(DWORD, 10, _FDT, 0),
        *read(4, offsets["fdtable", "max_fds"]),
        asm.load(DWORD, 1, 10, _FD),
        jump_if_reg(1, ">=", 0, "refused"),
        asm.load(DWORD, 0, 10, _FDT),
        *read(8, offsets["fdtable", "fd"]),
        asm.load(DWORD, 1, 10, _FD),
        asm.shift_left(1, 3),
        asm.add_reg(0, 1),
        *read(8, 0),
        asm.store(DWORD, 10, _FILE, 0),
    )


def find_map(layout: Layout, map_fops: int) -> Parts:
    """r0 = the struct bpf_map of the fd, which is the program array that was asked for; else it is refused."""
    offsets = layout.offsets
    return (
        *_file_of_fd(layout),
        *read(8, offsets["file", "f_op"]),
        asm.mov_u64(1, map_fops),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _FILE),
        *read(4, offsets["file", "f_mode"]),
        asm.and_(0, _FMODE_READ),
        jump_if(0, "==", 0, "refused"),
        asm.load(DWORD, 0, 10, _FILE),
        *read(8, offsets["file", "private_data"]),
        asm.store(DWORD, 10, _MAP, 0),
        *read(4, offsets["bpf_map", "map_type"]),
        jump_if(0, "!=", MapType.PROG_ARRAY, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
        *read(4, offsets["bpf_map", "id"]),
        asm.load(DWORD, 1, 10, _ID),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
        *read(4, offsets["bpf_map", "max_entries"]),
        asm.load(DWORD, 1, 10, MAX_ENTRIES),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
    )


def read(size: int, offset: int) -> Parts:
    """r0 = the `size` bytes at r0 + offset; where they cannot be read, r0 = 0, and r1 is not 0."""
    return (
        asm.mov_reg(3, 0),
        asm.add(3, offset),
        *asm.stack(1, _READ),
        asm.mov(2, size),
        asm.call(BPF_FUNC_PROBE_READ_KERNEL),
        asm.mov_reg(1, 0),
        asm.load({4: WORD, 8: DWORD}[size], 0, 10, _READ),
    )


FOUND: Final = struct.Struct("=QI")  # f_op of the file behind the fd, max_fds of this process's table of files


def finder(layout: Layout) -> bytes:
    """A program that puts FOUND at the beginning of its packet, or refuses.

    Only who loads the reader runs it: the address is the kernel's own.
    """
    return asm.assembled(
        *parameters(),
        *_file_of_fd(layout),
        *read(8, layout.offsets["file", "f_op"]),
        asm.load(DWORD, 6, 10, DATA),
        asm.store(DWORD, 6, 0, 0),
        asm.load(DWORD, 0, 10, _FDT),
        *read(4, layout.offsets["fdtable", "max_fds"]),
        asm.store(WORD, 6, 8, 0),
        asm.mov(0, TOLD),
        asm.exit_(),
        "refused",
        asm.mov(0, REFUSED),
        asm.exit_(),
    )
