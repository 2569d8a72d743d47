"""The part of the reader program that finds the map behind an fd inside the kernel.

The reader runs it at its beginning and once more at its end. The program is of type XDP: BPF_PROG_TEST_RUN gives it a
packet, which carries the request in and the answer out, and runs it under rcu_read_lock(). `assemble_finder` makes a
second program from the same part, which serves to find the address of the kernel's bpf_map_fops.
"""

import struct
from collections.abc import Mapping
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump_if, jump_if_reg
from app.bpf.btf import Layout
from app.bpf.uapi import BPF_FUNC_GET_CURRENT_TASK, BPF_FUNC_PROBE_READ_KERNEL, MapType

PACKET_BYTES: Final = 2048  # the kernel allows a page less headroom and tailroom
READ_REQUEST: Final = struct.Struct("=5I")  # the beginning of the packet: the map's fd, id, max_entries; start, stop
# Return values. As XDP_DROP and XDP_ABORTED both drop a packet, a program that is attached to a device passes nothing.
ANSWERED, REFUSED = 1, 0

# The fields that the way from a task to a map leads over, by kernel structure.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "task_struct": ("files",),
    "files_struct": ("fdt",),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_op", "f_mode", "private_data"),
    "bpf_map": ("map_type", "id", "max_entries"),
}
_FMODE_READ: Final = 1  # include/linux/fs.h

# Offsets on the stack, from r10: the value that was read last, the fields of READ_REQUEST, pointers on the way to the
# map, the address of the packet. What lies below FREE is for the program that uses this part.
_READ, _FD, _ID, MAX_ENTRIES, START, STOP = -8, -16, -24, -32, -40, -48
_FDT, _FILE, _MAP, DATA = -56, -64, -72, -80
FREE: Final = DATA


def load_request() -> Parts:
    """Copy the READ_REQUEST and the address of the packet to the stack; refuse a packet below PACKET_BYTES."""
    copies = [
        part
        for number, place in enumerate((_FD, _ID, MAX_ENTRIES, START, STOP))
        for part in (asm.load(WORD, 1, 8, 4 * number), asm.store(DWORD, 10, place, 1))
    ]
    return (
        asm.load(WORD, 8, 1, 0),  # struct xdp_md: data, data_end
        asm.load(WORD, 2, 1, 4),
        asm.mov_reg(3, 8),
        asm.add(3, PACKET_BYTES),
        jump_if_reg(2, ">=", 3, "long enough"),
        asm.mov(0, REFUSED),
        asm.exit_(),
        "long enough",
        asm.store(DWORD, 10, DATA, 8),
        *copies,
    )


def _file_of_fd(layout: Layout) -> Parts:
    """r0 = the struct file of the fd in this process, found as files_lookup_fd_raw() does.

    Jumps to the label `refused` for an fd beyond the table of files.
    """
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
    """r0 = the struct bpf_map behind the fd.

    Jumps to the label `refused` unless the file is a map, is open for reading, and is the program array with the id and
    max_entries of the READ_REQUEST.

    Args:
        layout: Offsets of FIELDS.
        map_fops: The address of the kernel's bpf_map_fops.
    """
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
    """r0 = the `size` (4 or 8) bytes at r0 + offset. Where they cannot be read, r0 is 0 and r1 is not 0."""
    return (
        asm.mov_reg(3, 0),
        asm.add(3, offset),
        *asm.stack(1, _READ),
        asm.mov(2, size),
        asm.call(BPF_FUNC_PROBE_READ_KERNEL),
        asm.mov_reg(1, 0),
        asm.load({4: WORD, 8: DWORD}[size], 0, 10, _READ),
    )


# The answer of the finder: f_op of the file behind the fd, max_fds of this process's table of files.
FINDER_ANSWER: Final = struct.Struct("=QI")


def assemble_finder(layout: Layout) -> bytes:
    """Assemble a program that puts FINDER_ANSWER at the beginning of its packet and returns ANSWERED, or REFUSED.

    The answer contains an address of the kernel, so only the process that loads the reader runs this program, and its
    fd is closed afterwards.
    """
    return asm.assemble(
        *load_request(),
        *_file_of_fd(layout),
        *read(8, layout.offsets["file", "f_op"]),
        asm.load(DWORD, 6, 10, DATA),
        asm.store(DWORD, 6, 0, 0),
        asm.load(DWORD, 0, 10, _FDT),
        *read(4, layout.offsets["fdtable", "max_fds"]),
        asm.store(WORD, 6, 8, 0),
        asm.mov(0, ANSWERED),
        asm.exit_(),
        "refused",
        asm.mov(0, REFUSED),
        asm.exit_(),
    )
