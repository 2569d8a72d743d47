"""The program that reads a whole program array inside the kernel, where bpf(2) takes one entry a call.

It has no map and keeps nothing from one run to the next: what it needs comes with each BPF_PROG_TEST_RUN. So any number
of threads may run it at once, and whoever runs it is told what they could look up without.
"""

import struct
from collections.abc import Mapping
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.uapi import BPF_FUNC_GET_CURRENT_TASK, BPF_FUNC_PROBE_READ_KERNEL, MapType

Offsets = Mapping[tuple[str, str], int]  # in bytes, by structure and field: btf.py

READ_AT_ONCE: Final = 512  # entries
PACKET: Final = 4 * READ_AT_ONCE  # bytes; one page less head and tail is what a packet may have
READING: Final = struct.Struct("=5I")  # what the packet begins with: map's fd, its id, its max_entries, start, stop
TOLD, REFUSED = 1, 0  # XDP_DROP, XDP_ABORTED: attached, it would let nothing through

# What the reader follows: the fields of the kernel's structures.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "task_struct": ("files",),
    "files_struct": ("fdt",),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_op", "f_mode", "private_data"),
    "bpf_map": ("map_type", "id", "max_entries"),
    "bpf_array": ("ptrs",),
    "bpf_prog": ("aux",),
    "bpf_prog_aux": ("id",),
}
_FMODE_READ: Final = 1  # include/linux/fs.h

# The reader's stack, below r10.
_READ, _FD, _ID, _MAX_ENTRIES, _START, _STOP = -8, -16, -24, -32, -40, -48
_FDT, _FILE, _MAP, _FOUND, _DATA = -56, -64, -72, -80, -88


def reader(offsets: Offsets, map_fops: int) -> bytes:
    """The program of map_ids: type XDP, on a packet of PACKET bytes; returns TOLD or REFUSED.

    The packet begins with a READING (`stop` at most READ_AT_ONCE after `start`), and comes back as u32 ids, 0 for an
    empty entry. `offsets`: of FIELDS; `map_fops`: the address of the kernel's bpf_map_fops, see `operations`.
    To load it takes CAP_BPF, CAP_PERFMON (bpf_probe_read_kernel()) and CAP_NET_ADMIN; CAP_SYS_ADMIN stands for all.

    It never tells what is not there:
    - it finds the map as __bpf_map_get() does, by the caller's own table of files, below its end, and takes only a
      file whose operations are those of a map, opened to be read; so `private_data` is a struct bpf_map;
    - that one has to be a program array with the id and the size that OBJ_GET_INFO_BY_FD has told for this fd, and
      no entry beyond its end is read;
    - it reads an entry as prog_fd_array_sys_lookup_elem() does, under the same rcu_read_lock() (BPF_PROG_TEST_RUN of
      an XDP program holds it), which keeps a program that is replaced meanwhile from being freed;
    - an id of 0 where there is a program (it is just going away: bpf_prog_free_id()), or a read that fails, has it
      refuse, and the entries are looked up by the kernel's own command;
    - in the end it finds the map anew: had the fd been closed meanwhile, and the map with it, that would be seen
      (ids do not come again), and nothing is told, the packet being zeros.
    Wrong offsets show when it is loaded: what it tells is compared with plain lookups (in_kernel.py).
    """
    # r6: how many, r7: where the entry is, r8: where the id goes, r9: how many there are to be.
    return asm.assembled(
        *_parameters(),
        *_map_of_fd(offsets, map_fops),
        asm.store(DWORD, 10, _FOUND, 0),
        asm.mov_reg(7, 0),
        asm.add(7, offsets["bpf_array", "ptrs"]),
        asm.load(DWORD, 1, 10, _START),
        asm.load(DWORD, 9, 10, _STOP),
        asm.load(DWORD, 2, 10, _MAX_ENTRIES),
        jump_if_reg(1, ">", 9, "refused"),
        jump_if_reg(9, ">", 2, "refused"),
        asm.sub_reg(9, 1),
        asm.shift_left(1, 3),
        asm.add_reg(7, 1),
        asm.load(DWORD, 8, 10, _DATA),
        asm.mov(6, 0),
        "next",
        jump_if(6, "==", READ_AT_ONCE, "read"),
        jump_if_reg(6, ">=", 9, "read"),
        asm.mov_reg(0, 7),
        *_read(8, 0),
        jump_if(1, "!=", 0, "refused"),
        jump_if(0, "==", 0, "told"),
        *_read(8, offsets["bpf_prog", "aux"]),
        *_read(4, offsets["bpf_prog_aux", "id"]),
        jump_if(0, "==", 0, "refused"),
        "told",
        asm.store(WORD, 8, 0, 0),
        asm.add(8, 4),
        asm.add(7, 8),
        asm.add(6, 1),
        jump("next"),
        "read",
        *_map_of_fd(offsets, map_fops),
        asm.load(DWORD, 1, 10, _FOUND),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.mov(0, TOLD),
        asm.exit_(),
        "refused",
        asm.load(DWORD, 8, 10, _DATA),
        asm.mov(6, 0),
        "zero",
        jump_if(6, "==", PACKET // 8, "end"),
        asm.store_zero(8, 0),
        asm.add(8, 8),
        asm.add(6, 1),
        jump("zero"),
        "end",
        asm.mov(0, REFUSED),
        asm.exit_(),
    )


def operations(offsets: Offsets) -> bytes:
    """A program that puts `f_op` of the file behind an fd (the first u32 of its packet) there, as a u64.

    Only who loads the reader runs it: that address is the kernel's own.
    """
    return asm.assembled(
        *_parameters(),
        *_file_of_fd(offsets),
        *_read(8, offsets["file", "f_op"]),
        asm.load(DWORD, 1, 10, _DATA),
        asm.store(DWORD, 1, 0, 0),
        asm.mov(0, TOLD),
        asm.exit_(),
        "refused",
        asm.mov(0, REFUSED),
        asm.exit_(),
    )


def _parameters() -> Parts:
    """Put the packet's READING, and where the packet is, on the stack; a packet that is too short is refused."""
    moved = [
        part
        for number, place in enumerate((_FD, _ID, _MAX_ENTRIES, _START, _STOP))
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
        asm.store(DWORD, 10, _DATA, 8),
        *moved,
    )


def _file_of_fd(offsets: Offsets) -> Parts:
    """r0 = the struct file of the fd in this process: as files_lookup_fd_raw()."""
    return (
        asm.call(BPF_FUNC_GET_CURRENT_TASK),
        *_read(8, offsets["task_struct", "files"]),
        *_read(8, offsets["files_struct", "fdt"]),
        asm.store(DWORD, 10, _FDT, 0),
        *_read(4, offsets["fdtable", "max_fds"]),
        asm.load(DWORD, 1, 10, _FD),
        jump_if_reg(1, ">=", 0, "refused"),
        asm.load(DWORD, 0, 10, _FDT),
        *_read(8, offsets["fdtable", "fd"]),
        asm.load(DWORD, 1, 10, _FD),
        asm.shift_left(1, 3),
        asm.add_reg(0, 1),
        *_read(8, 0),
        asm.store(DWORD, 10, _FILE, 0),
    )


def _map_of_fd(offsets: Offsets, map_fops: int) -> Parts:
    """r0 = the struct bpf_map of the fd, which is the program array that was asked for; else it is refused."""
    return (
        *_file_of_fd(offsets),
        *_read(8, offsets["file", "f_op"]),
        asm.mov_u64(1, map_fops),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _FILE),
        *_read(4, offsets["file", "f_mode"]),
        asm.and_(0, _FMODE_READ),
        jump_if(0, "==", 0, "refused"),
        asm.load(DWORD, 0, 10, _FILE),
        *_read(8, offsets["file", "private_data"]),
        asm.store(DWORD, 10, _MAP, 0),
        *_read(4, offsets["bpf_map", "map_type"]),
        jump_if(0, "!=", MapType.PROG_ARRAY, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
        *_read(4, offsets["bpf_map", "id"]),
        asm.load(DWORD, 1, 10, _ID),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
        *_read(4, offsets["bpf_map", "max_entries"]),
        asm.load(DWORD, 1, 10, _MAX_ENTRIES),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.load(DWORD, 0, 10, _MAP),
    )


def _read(size: int, offset: int) -> Parts:
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
