"""The program that reads a whole program array inside the kernel, where bpf(2) takes one entry a call.

It has no map and keeps nothing from one run to the next: what it needs comes with each BPF_PROG_TEST_RUN. So any number
of threads may run it at once, and whoever runs it is told what they could look up without.
"""

from collections.abc import Mapping
from typing import Final

from app.bpf import asm
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.btf import Layout
from app.bpf.bulk import map_lookup as map_of_fd
from app.bpf.bulk.map_lookup import (
    DATA,
    FREE,
    MAX_ENTRIES,
    PACKET,
    REFUSED,
    START,
    STOP,
    TOLD,
    find_map,
    parameters,
    read,
)
from app.bpf.uapi import BPF_FUNC_PROBE_READ_KERNEL

AT_ONCE: Final = PACKET // 4  # entries
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    **map_of_fd.FIELDS,
    "bpf_array": ("ptrs",),
    "bpf_prog": ("aux",),
    "bpf_prog_aux": ("id",),
}
CAST: Final = "bpf_rdonly_cast"  # makes an address one of a structure that is read by plain loads (Linux 6.2)

# On the stack: the map that was found, and the pointers of so many entries, read together.
_FOUND: Final = FREE - 8
_TOGETHER: Final = 32
_POINTERS: Final = _FOUND - 8 * _TOGETHER


def reader(layout: Layout, map_fops: int, *, cast: bool) -> bytes:
    """The program of map_ids: type XDP, on a packet of PACKET bytes; returns TOLD or REFUSED.

    The packet begins with a READING (`stop` at most AT_ONCE after `start`), and comes back as u32 ids, 0 for an
    empty entry. `layout`: of FIELDS, and CAST; `map_fops`: the address of the kernel's bpf_map_fops, see `finder`;
    `cast`: by CAST, in a tenth of the time.
    To load it takes CAP_BPF, CAP_PERFMON (bpf_probe_read_kernel()) and CAP_NET_ADMIN; CAP_SYS_ADMIN stands for each.

    It never tells what is not there:
    - it finds the map as __bpf_map_get() does, by the caller's own table of files, below its end, and takes only a
      file whose operations are those of a map, opened to be read; so `private_data` is a struct bpf_map;
    - that one has to be a program array with the id and the size that OBJ_GET_INFO_BY_FD has told for this fd, and
      no entry beyond its end is read;
    - it reads an entry as prog_fd_array_sys_lookup_elem() does, under the same rcu_read_lock() (BPF_PROG_TEST_RUN of
      an XDP program holds it), which keeps a program that is replaced meanwhile from being freed: that waits for a
      grace period of RCU, or, for one that may sleep, of RCU Tasks Trace, which implies it
      (__bpf_prog_put_noref(), rcu_trace_implies_rcu_gp());
    - an id of 0 where there is a program (it is just going away: bpf_prog_free_id()), or a read that fails, has it
      refuse, and the entries are looked up by the kernel's own command;
    - in the end it finds the map anew: had the fd been closed meanwhile, and the map with it, that would be seen
      (ids do not come again), and nothing is told, the packet being zeros.
    Wrong offsets show when it is loaded: what it tells is compared with plain lookups (in_kernel.py).
    """
    offsets = layout.offsets
    id_of = _id_by_cast(layout) if cast else _id(layout)
    # r6: how many, r7: where the entry is, r8: where the id goes, r9: how many there are to be.
    return asm.assembled(
        *parameters(),
        *find_map(layout, map_fops),
        asm.store(DWORD, 10, _FOUND, 0),
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
        *(asm.store_zero(10, _POINTERS + 8 * number) for number in range(_TOGETHER)),
        asm.mov(6, 0),
        "next",
        *_pointers(),
        *(part for number in range(_TOGETHER) for part in _entry(number, id_of)),
        asm.add(7, 8 * _TOGETHER),
        asm.add(8, 4 * _TOGETHER),
        jump_if(6, "!=", AT_ONCE, "next"),
        "read",
        *find_map(layout, map_fops),
        asm.load(DWORD, 1, 10, _FOUND),
        jump_if_reg(0, "!=", 1, "refused"),
        asm.mov(0, TOLD),
        asm.exit_(),
        "refused",
        asm.load(DWORD, 8, 10, DATA),
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


def _pointers() -> Parts:
    """Read up to _TOGETHER pointers at r7, for as many entries as are left."""
    return (
        asm.mov_reg(2, 9),
        asm.sub_reg(2, 6),
        jump_if(2, "==", 0, "read"),
        asm.mov(1, _TOGETHER),
        jump_if_reg(1, ">=", 2, "fewer"),
        asm.mov_reg(2, 1),
        "fewer",
        asm.shift_left(2, 3),
        *asm.stack(1, _POINTERS),
        asm.mov_reg(3, 7),
        asm.call(BPF_FUNC_PROBE_READ_KERNEL),
        jump_if(0, "!=", 0, "refused"),
    )


def _entry(number: int, id_of: Parts) -> Parts:
    """Tell the id of the program that pointer number so much leads to, of each 32."""
    return (
        jump_if_reg(6, ">=", 9, "read"),
        asm.load(DWORD, 0, 10, _POINTERS + 8 * number),
        jump_if(0, "==", 0, f"told {number}"),
        *id_of,
        jump_if(0, "==", 0, "refused"),
        f"told {number}",
        asm.store(WORD, 8, 4 * number, 0),
        asm.add(6, 1),
    )


def _id(layout: Layout) -> Parts:
    """r0 = the id of the program at r0; 0 where that cannot be read."""
    return *read(8, layout.offsets["bpf_prog", "aux"]), *read(4, layout.offsets["bpf_prog_aux", "id"])


def _id_by_cast(layout: Layout) -> Parts:
    """The same by loads, for which the verifier too looks where the fields are, and which make 0 of what faults."""
    return (
        asm.mov_reg(1, 0),
        asm.mov(2, layout.numbers["bpf_prog"]),
        asm.call_kernel(layout.numbers[CAST]),
        asm.load(DWORD, 0, 0, layout.offsets["bpf_prog", "aux"]),
        asm.load(WORD, 0, 0, layout.offsets["bpf_prog_aux", "id"]),
    )
