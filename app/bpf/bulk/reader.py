"""The program that reads a range of a program array inside the kernel.

The program has no map and keeps nothing between two runs: each BPF_PROG_TEST_RUN brings its request along. So any
number of threads may run it at once, and it tells a process only what that process can look up by itself.
"""

from collections.abc import Mapping
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.btf import Layout
from app.bpf.bulk import map_lookup
from app.bpf.bulk.map_lookup import (
    ANSWERED,
    DATA,
    FREE,
    MAX_ENTRIES,
    PACKET_BYTES,
    REFUSED,
    START,
    STOP,
    find_map,
    load_request,
    read,
)
from app.bpf.uapi import BPF_FUNC_PROBE_READ_KERNEL

ENTRIES_PER_RUN: Final = PACKET_BYTES // 4
# The fields of kernel structures whose offsets the program needs.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    **map_lookup.FIELDS,
    "bpf_array": ("ptrs",),
    "bpf_prog": ("aux",),
    "bpf_prog_aux": ("id",),
}
# The kernel function that turns an address into a pointer to a structure, which plain loads may then read (Linux 6.2).
CAST: Final = "bpf_rdonly_cast"

_POINTERS_PER_COPY: Final = 32  # entries whose pointers are copied to the stack together
# Offsets on the stack: the map that was found, the copied pointers.
_MAP: Final = FREE - 8
_POINTERS: Final = _MAP - 8 * _POINTERS_PER_COPY


def assemble_reader(layout: Layout, map_fops: int, *, cast: bool) -> bytes:
    """Assemble the reader, a program of type XDP that runs on a packet of PACKET_BYTES.

    The packet begins with a READ_REQUEST whose `stop` is at most ENTRIES_PER_RUN above `start`. The program returns
    ANSWERED and a packet of u32 program ids (0 for an empty entry), or REFUSED and a packet of zeros. To load it takes
    CAP_BPF, CAP_PERFMON (for bpf_probe_read_kernel()) and CAP_NET_ADMIN; CAP_SYS_ADMIN stands for each of them.

    The ids are always those of the array behind the fd, for these reasons:
    - The program finds the map as __bpf_map_get() does, in the table of files of the process that runs it, and below
      the end of that table. It accepts only a file with the operations of a map that is open for reading, so
      `private_data` is a struct bpf_map.
    - This map must be a program array with the id and max_entries of the request, which the caller has got from
      OBJ_GET_INFO_BY_FD for the same fd. The program reads no entry beyond max_entries.
    - The program reads an entry as prog_fd_array_sys_lookup_elem() does, under rcu_read_lock(), which
      BPF_PROG_TEST_RUN holds for an XDP program. So a program that is replaced at the same time is not freed before
      the end: that waits for a grace period of RCU or, for a sleepable program, of RCU Tasks Trace, which implies
      one of RCU (__bpf_prog_put_noref(), rcu_trace_implies_rcu_gp()).
    - If an entry has a program whose id is 0, which is just being freed (bpf_prog_free_id()), or if a read fails, the
      program refuses. The caller then uses plain lookups.
    - At the end the program finds the map once more. If the fd was closed in between, and with it the last reference
      to the map, it finds no map or one with another id (ids are given out in cyclic order), and refuses.
    Wrong offsets are found when the program is loaded: `programs.self_test` compares its answers with plain lookups.

    Args:
        layout: The offsets of FIELDS, and the ids of bpf_prog and CAST if `cast` is true.
        map_fops: The address of the kernel's bpf_map_fops.
        cast: Read programs through CAST, which takes a tenth of the time.
    """
    offsets = layout.offsets
    load_id = _id_by_cast(layout) if cast else _id(layout)
    # r6: entries read so far, r7: address of the next entry, r8: where the next id goes, r9: entries to read.
    return asm.assemble(
        *load_request(),
        *find_map(layout, map_fops),
        asm.store(DWORD, 10, _MAP, 0),
        asm.mov_reg(7, 0),
        asm.add(7, offsets["bpf_array", "ptrs"]),
        asm.load(DWORD, 1, 10, START),
        asm.load(DWORD, 9, 10, STOP),
        asm.load(DWORD, 2, 10, MAX_ENTRIES),
        jump_if_reg(1, ">", 9, "refused"),
        jump_if_reg(9, ">", 2, "refused"),
        asm.sub_reg(9, 1),
        asm.shift_left(1, 3),
        asm.add_reg(7, 1),
        asm.load(DWORD, 8, 10, DATA),
        *(asm.store_zero(10, _POINTERS + 8 * number) for number in range(_POINTERS_PER_COPY)),
        asm.mov(6, 0),
        "next",
        *_copy_pointers(),
        *(part for number in range(_POINTERS_PER_COPY) for part in _store_id(number, load_id)),
        asm.add(7, 8 * _POINTERS_PER_COPY),
        asm.add(8, 4 * _POINTERS_PER_COPY),
        jump_if(6, "!=", ENTRIES_PER_RUN, "next"),
        "all read",
        *find_map(layout, map_fops),
        asm.load(DWORD, 1, 10, _MAP),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.mov(0, ANSWERED),
        asm.exit_(),
        "refused",
        asm.load(DWORD, 8, 10, DATA),
        asm.mov(6, 0),
        "zero",
        jump_if(6, "==", PACKET_BYTES // 8, "end"),
        asm.store_zero(8, 0),
        asm.add(8, 8),
        asm.add(6, 1),
        jump("zero"),
        "end",
        asm.mov(0, REFUSED),
        asm.exit_(),
    )


def _copy_pointers() -> Parts:
    """Copy the pointers of the entries at r7 to the stack: _POINTERS_PER_COPY, or as many as are left to read."""
    return (
        asm.mov_reg(2, 9),
        asm.sub_reg(2, 6),
        jump_if(2, "==", 0, "all read"),
        asm.mov(1, _POINTERS_PER_COPY),
        jump_if_reg(1, ">=", 2, "fewer"),
        asm.mov_reg(2, 1),
        "fewer",
        asm.shift_left(2, 3),
        *asm.stack(1, _POINTERS),
        asm.mov_reg(3, 7),
        asm.call(BPF_FUNC_PROBE_READ_KERNEL),
        jump_if(0, "!=", 0, "refused"),
    )


def _store_id(number: int, load_id: Parts) -> Parts:
    """Store the id of the program to which copied pointer `number` leads; an empty entry has no pointer and id 0."""
    return (
        jump_if_reg(6, ">=", 9, "all read"),
        asm.load(DWORD, 0, 10, _POINTERS + 8 * number),
        jump_if(0, "==", 0, f"id {number}"),
        *load_id,
        jump_if(0, "==", 0, "refused"),
        f"id {number}",
        asm.store(WORD, 8, 4 * number, 0),
        asm.add(6, 1),
    )


def _id(layout: Layout) -> Parts:
    """r0 = the id of the struct bpf_prog at r0, by bpf_probe_read_kernel(); 0 where it cannot be read."""
    return *read(8, layout.offsets["bpf_prog", "aux"]), *read(4, layout.offsets["bpf_prog_aux", "id"])


def _id_by_cast(layout: Layout) -> Parts:
    """The same by CAST and plain loads: the verifier checks the offsets, and a load that faults gives 0."""
    return (
        asm.mov_reg(1, 0),
        asm.mov(2, layout.ids["bpf_prog"]),
        asm.call_kernel(layout.ids[CAST]),
        asm.load(DWORD, 0, 0, layout.offsets["bpf_prog", "aux"]),
        asm.load(WORD, 0, 0, layout.offsets["bpf_prog_aux", "id"]),
    )
