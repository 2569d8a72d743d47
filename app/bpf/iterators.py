"""BPF iterators: two programs by which the kernel lists all program arrays and all programs.

They tell what no system call tells: the attach type that an array requires and that a program has, the jumps with a
constant index, and how many users an array has. To read the lists takes no reference to anything.

The programs are assembled for the running kernel, with the offsets of its own type information. To load them takes
CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN. Each is attached to its iterator by a link, and whoever has an fd of the link
reads the list without any capability (ITER_CREATE).

Kernel: kernel/bpf/map_iter.c (Linux 5.8), kernel/bpf/prog_iter.c (5.9), Documentation/bpf/bpf_iterators.rst.
"""

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Mapping
from typing import Final, NamedTuple

from app.bpf import asm, attr, btf
from app.bpf.asm import DWORD, WORD, Parts, jump, jump_if, jump_if_reg
from app.bpf.btf import Layout
from app.bpf.inventory import ArrayOwner, Loaded, LoadedArray, LoadedProgram
from app.bpf.syscall import bpf, bpf_retrying, call_holding_gil
from app.bpf.uapi import BPF_FUNC_PROBE_READ_KERNEL, BPF_FUNC_SEQ_WRITE, AttachType, Cmd, MapType, ProgType

# The fields of kernel structures whose offsets the programs need.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "bpf_iter_meta": ("seq",),
    "bpf_map": ("id", "map_type", "max_entries", "usercnt", "name"),
    "bpf_prog": ("type", "expected_attach_type", "jited_len", "aux"),
    "bpf_prog_aux": ("id", "name", "load_time", "attach_func_proto"),
}
# Those that a kernel may lack: see `_owner_fields`.
_OPTIONAL_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "bpf_map": ("owner", "owner.type", "owner.jited", "owner.xdp_has_frags", "owner.expected_attach_type",
                "owner.attach_func_proto"),
    "bpf_map_owner": ("type", "jited", "xdp_has_frags", "expected_attach_type", "attach_func_proto"),
    "bpf_prog_aux": ("xdp_has_frags", "size_poke_tab", "poke_tab"),
    "bpf_jit_poke_descriptor": ("tail_call.map", "tail_call.key"),
}  # fmt: skip
_FUNCTIONS: Final = ("bpf_iter_bpf_map", "bpf_iter_bpf_prog")
# The fields of what both programs get: struct bpf_iter__bpf_map, struct bpf_iter__bpf_prog.
_META, _OBJECT = 0, 8

_NAME_BYTES: Final = 16
# An array: id, max_entries, users (u64); owner: flags, its type, whether its prototype is set (u64),
# attach type, jited, frags; name.
_ARRAY: Final = struct.Struct("=IIQ IIQ IBB2x 16s")
_ARRAY_OFFSETS: Final = {
    "id": 0, "max_entries": 4, "users": 8, "owner_flags": 16, "owner_type": 20, "owner_prototype": 24,
    "owner_attach_type": 32, "owner_jited": 36, "owner_frags": 37, "name": 40,
}  # fmt: skip
_OWNER, _COMPARES_ATTACH_TYPE = 1, 2  # flags: there is an owner; its attach type is there as well
# A program: id, type, attach type, length of its compiled code, load time, prototype (u64), number of its jumps with a
# constant index, frags; name. As many _JUMP follow as there are jumps, MAX_CONSTANT_JUMPS at most.
_PROGRAM: Final = struct.Struct("=IIII QQ IB3x 16s")
_PROGRAM_OFFSETS: Final = {
    "id": 0, "type": 4, "attach_type": 8, "jited_len": 12, "load_time": 16, "prototype": 24, "jumps": 32, "frags": 36,
    "name": 40,
}  # fmt: skip
_JUMP: Final = struct.Struct("=II")  # id of the array, index
# The verifier follows the loop so many times.
MAX_CONSTANT_JUMPS: Final = 512
_READ_BYTES: Final = 1 << 16


class Iterators(NamedTuple):
    """The fds of the links of both iterators."""

    arrays: int
    programs: int


_loaded: Iterators | OSError | None = None
_lock: Final = threading.Lock()


def loaded() -> Iterators:
    """Return the iterators of this process; the first call loads them (0.1 s). Thread rule: any thread.

    Raises:
        OSError: This process or this kernel cannot load them. ENOTSUP stands for every other cause.
    """
    global _loaded  # noqa: PLW0603
    with _lock:
        if _loaded is None:
            try:
                _loaded = load()
            except (LookupError, struct.error) as error:
                _loaded = OSError(errno.ENOTSUP, f"this kernel's type information does not suffice: {error}")
            except OSError as error:
                _loaded = OSError(errno.ENOTSUP, f"BPF iterators cannot be had: {error}")
        if isinstance(_loaded, OSError):
            raise OSError(_loaded.errno, _loaded.strerror)
        return _loaded


def load() -> Iterators:
    """Load and attach both iterators.

    Returns:
        The fds of their links, which the caller owns.

    Raises:
        OSError: The kernel does not load or attach them, or provides no BTF.
        LookupError: The kernel's BTF lacks a field or an iterator.
        struct.error: The kernel's BTF is truncated.
    """
    layout = btf.layout(_FIELDS, _FUNCTIONS, optional=_OPTIONAL_FIELDS)
    arrays, programs = (layout.ids[name] for name in _FUNCTIONS)
    first = _attached(assemble_arrays(layout), "list_arrays", arrays)
    try:
        return Iterators(first, _attached(assemble_programs(layout), "list_programs", programs))
    except BaseException:
        os.close(first)
        raise


def _attached(code: bytes, name: str, btf_id: int) -> int:
    """Load a program for an iterator, and return the fd of its link, which keeps it alive."""
    memory, gpl = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    fields = attr.ProgLoadTracing(
        prog_type=ProgType.TRACING,
        insn_cnt=len(code) // asm.INSN.size,
        insns=ctypes.addressof(memory),
        license=ctypes.addressof(gpl),
        prog_name=name.encode(),
        expected_attach_type=AttachType.TRACE_ITER,
        attach_btf_id=btf_id,
    )
    program = bpf_retrying(Cmd.PROG_LOAD, fields)
    try:
        return bpf(Cmd.LINK_CREATE, attr.LinkCreate(prog_fd=program, attach_type=AttachType.TRACE_ITER))
    finally:
        os.close(program)


def assemble_arrays(layout: Layout) -> bytes:
    """Assemble the program that writes an _ARRAY for each program array.

    The kernel runs it once for each map. Memory that cannot be read counts as zeros.
    """
    size, offsets = _ARRAY.size, layout.offsets
    place = {name: offset - size for name, offset in _ARRAY_OFFSETS.items()}
    of_map = {name: offsets["bpf_map", name] for name in _FIELDS["bpf_map"]}
    return asm.assemble(
        *_begin(layout, size),
        *_copy(place["owner_type"], 4, 7, of_map["map_type"]),
        asm.load(WORD, 1, 10, place["owner_type"]),
        jump_if(1, "!=", MapType.PROG_ARRAY, "end"),
        asm.store_zero(10, place["owner_flags"]),
        *_copy(place["id"], 4, 7, of_map["id"]),
        *_copy(place["max_entries"], 4, 7, of_map["max_entries"]),
        *_copy(place["users"], 8, 7, of_map["usercnt"]),
        *_copy(place["name"], _NAME_BYTES, 7, of_map["name"]),
        *_copy_owner(layout, place),
        *_write(size),
        *_end(),
    )


def _copy_owner(layout: Layout, place: Mapping[str, int]) -> Parts:
    """Copy the owner of the map at r7.

    It is a structure of its own since Linux 6.17. Before, since 5.18, it is a part of struct bpf_map, and its type is 0
    as long as there is none. Before that, this program tells of no owner. Fixes of 2025 added its attach type.
    """
    structure = "bpf_map_owner" if ("bpf_map_owner", "type") in layout.offsets else "bpf_map"
    prefix = "" if structure == "bpf_map_owner" else "owner."
    found = {
        name: layout.offsets[structure, prefix + field]
        for name, field in (
            ("owner_type", "type"), ("owner_jited", "jited"), ("owner_frags", "xdp_has_frags"),
            ("owner_attach_type", "expected_attach_type"), ("owner_prototype", "attach_func_proto"),
        )
        if (structure, prefix + field) in layout.offsets
    }  # fmt: skip
    if "owner_type" not in found:
        return ()
    sizes = {"owner_type": 4, "owner_attach_type": 4, "owner_jited": 1, "owner_frags": 1, "owner_prototype": 8}
    if structure == "bpf_map":
        first: Parts = (
            *_copy(place["owner_type"], 4, 7, found["owner_type"]),
            asm.load(WORD, 1, 10, place["owner_type"]),
            jump_if(1, "==", 0, "no owner"),
            asm.mov_reg(8, 7),
        )
    else:
        first = (
            *_copy(place["owner_prototype"], 8, 7, layout.offsets["bpf_map", "owner"]),
            asm.load(DWORD, 8, 10, place["owner_prototype"]),
            asm.store_zero(10, place["owner_prototype"]),
            jump_if(8, "==", 0, "no owner"),
        )
    return (
        *first,
        asm.mov(1, _OWNER | (_COMPARES_ATTACH_TYPE if "owner_attach_type" in found else 0)),
        asm.store(WORD, 10, place["owner_flags"], 1),
        *(part for name, offset in found.items() for part in _copy(place[name], sizes[name], 8, offset)),
        "no owner",
    )


def assemble_programs(layout: Layout) -> bytes:
    """Assemble the program that writes a _PROGRAM, and its _JUMPs, for each program.

    The kernel runs it once for each program. Memory that cannot be read counts as zeros.
    """
    size, offsets = _PROGRAM.size, layout.offsets
    place = {name: offset - size for name, offset in _PROGRAM_OFFSETS.items()}
    of_prog = {name: offsets["bpf_prog", name] for name in _FIELDS["bpf_prog"]}
    in_aux = (
        ("id", 4, "id"), ("name", _NAME_BYTES, "name"), ("load_time", 8, "load_time"),
        ("prototype", 8, "attach_func_proto"), ("frags", 1, "xdp_has_frags"), ("jumps", 4, "size_poke_tab"),
    )  # fmt: skip
    return asm.assemble(
        *_begin(layout, size),
        *_copy(place["type"], 4, 7, of_prog["type"]),
        *_copy(place["attach_type"], 4, 7, of_prog["expected_attach_type"]),
        *_copy(place["jited_len"], 4, 7, of_prog["jited_len"]),
        *_copy(place["load_time"], 8, 7, of_prog["aux"]),
        asm.load(DWORD, 7, 10, place["load_time"]),
        *(
            part
            for name, bytes_, field in in_aux
            if ("bpf_prog_aux", field) in offsets
            for part in _copy(place[name], bytes_, 7, offsets["bpf_prog_aux", field])
        ),
        *_write(size),
        *_write_jumps(layout, place["jumps"]),
        *_end(),
    )


def _write_jumps(layout: Layout, count: int) -> Parts:
    """Write a _JUMP for each jump with a constant index of the program whose struct bpf_prog_aux is at r7.

    Args:
        layout: Has the fields where the kernel's compiler knows such jumps.
        count: Where on the stack their number is.
    """
    offsets, descriptor = layout.offsets, "bpf_jit_poke_descriptor"
    if ("bpf_prog_aux", "poke_tab") not in offsets or (descriptor, "tail_call.key") not in offsets:
        return ()
    row, pointer = -8, -16  # on the stack, over what is written already
    return (
        asm.load(WORD, 8, 10, count),
        *_copy(pointer, 8, 7, offsets["bpf_prog_aux", "poke_tab"]),
        asm.load(DWORD, 7, 10, pointer),
        asm.mov(9, 0),
        "next",
        jump_if(9, "==", MAX_CONSTANT_JUMPS, "end"),
        jump_if_reg(9, ">=", 8, "end"),
        *_copy(pointer, 8, 7, offsets[descriptor, "tail_call.map"]),
        asm.load(DWORD, 3, 10, pointer),
        asm.add(3, offsets["bpf_map", "id"]),
        *_read_kernel(row, 4),
        *_copy(row + 4, 4, 7, offsets[descriptor, "tail_call.key"]),
        *_write(_JUMP.size),
        asm.add(7, layout.sizes[descriptor]),
        asm.add(9, 1),
        jump("next"),
    )


def _begin(layout: Layout, size: int) -> Parts:
    """r6 = the file to write to, r7 = the map or program; the last `size` bytes of the stack are zero.

    After the last object, the kernel runs the program once without any: it ends there.
    """
    return (
        asm.load(DWORD, 6, 1, _META),
        asm.load(DWORD, 7, 1, _OBJECT),
        jump_if(7, "==", 0, "end"),
        asm.load(DWORD, 6, 6, layout.offsets["bpf_iter_meta", "seq"]),
        *(asm.store_zero(10, -offset) for offset in range(8, size + 8, 8)),
    )


def _copy(place: int, size: int, base: int, offset: int) -> Parts:
    """Copy `size` bytes at register `base` + `offset` to a place on the stack. They are zero if they cannot be read."""
    return asm.mov_reg(3, base), asm.add(3, offset), *_read_kernel(place, size)


def _read_kernel(place: int, size: int) -> Parts:
    """Copy `size` bytes at r3 to a place on the stack."""
    return *asm.stack(1, place), asm.mov(2, size), asm.call(BPF_FUNC_PROBE_READ_KERNEL)


def _write(size: int) -> Parts:
    """Write the last `size` bytes of the stack. Where they do not fit, the kernel runs the program again."""
    return asm.mov_reg(1, 6), *asm.stack(2, -size), asm.mov(3, size), asm.call(BPF_FUNC_SEQ_WRITE)


def _end() -> Parts:
    return "end", asm.mov(0, 0), asm.exit_()


def read(iterators: Iterators) -> Loaded:
    """Read both lists.

    Args:
        iterators: The links. No capability is needed.

    Raises:
        OSError: The kernel refuses.
    """
    arrays = (_array(row) for row in _ARRAY.iter_unpack(_read(iterators.arrays)))
    programs = _programs(_read(iterators.programs))
    return Loaded({each.id: each for each in programs}, {each.id: each for each in arrays})


def _read(link: int) -> bytes:
    """Read an iterator from its beginning to its end."""
    fd, content = bpf(Cmd.ITER_CREATE, attr.IterCreate(link_fd=link), call_holding_gil), bytearray()
    try:
        while chunk := os.read(fd, _READ_BYTES):
            content += chunk
    finally:
        os.close(fd)
    return bytes(content)


def _array(row: tuple[int, int, int, int, int, int, int, int, int, bytes]) -> LoadedArray:
    id_, max_entries, users, flags, type_, prototype, attach_type, jited, frags, name = row
    compared = attach_type if flags & _COMPARES_ATTACH_TYPE else None
    owner = ArrayOwner(type_, compared, bool(jited), bool(frags), bool(prototype)) if flags & _OWNER else None
    return LoadedArray(id_, _text(name), max_entries, users, owner)


def _programs(content: bytes) -> list[LoadedProgram]:
    found, at = [], 0
    while at < len(content):
        id_, type_, attach_type, jited, load_time, prototype, count, frags, name = _PROGRAM.unpack_from(content, at)
        at += _PROGRAM.size
        end = at + _JUMP.size * min(count, MAX_CONSTANT_JUMPS)
        jumps = tuple(sorted(set(_JUMP.iter_unpack(content[at:end]))))
        at = end
        found.append(
            LoadedProgram(
                id_, _text(name), type_, attach_type, bool(jited), bool(frags), bool(prototype), load_time,
                jumps, count > MAX_CONSTANT_JUMPS,
            )
        )  # fmt: skip
    return found


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode("latin-1")
