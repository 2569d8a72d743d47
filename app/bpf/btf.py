"""Where the fields of the kernel's own structures are, by the types that the kernel tells of itself (BTF).

Format: Documentation/bpf/btf.rst; the file: CONFIG_DEBUG_INFO_BTF, Linux 5.4.
"""

import mmap
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER: Final = struct.Struct("<HBB5I")  # magic, version, flags, header's bytes, types at, bytes, strings at, bytes
_MAGIC: Final = 0xEB9F
_TYPE: Final = struct.Struct("<3I")  # struct btf_type: name, info, size or type
_MEMBER: Final = struct.Struct("<3I")  # struct btf_member: name, type, offset in bits
_STRUCT, _UNION, _FUNCTION = 4, 5, 12  # BTF_KIND_…
# What comes behind struct btf_type, by kind: bytes for each of its `vlen` parts, or once.
_EACH: Final = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # enum, func_proto, datasec, enum64
_ONCE: Final = {1: 4, 3: 12, 14: 4, 17: 4}  # int, array, var, decl_tag


class Layout(NamedTuple):
    """`offsets`: in bytes, by (structure, field); `numbers`: of the types, by the names of structures and functions."""

    offsets: Mapping[tuple[str, str], int]
    numbers: Mapping[str, int]


def layout(wanted: Mapping[str, Sequence[str]], functions: Sequence[str] = ()) -> Layout:
    """Where each wanted field is, also one in an anonymous member, and those of the functions that the kernel has.

    `wanted`: the fields by structure. About 40 ms and 6 MB, which are given back. OSError where the kernel tells
    nothing; LookupError where it has no such field, or two structures of that name that differ in it; struct.error
    where it is cut off.
    """
    found: dict[tuple[str, str], set[int]] = {}
    numbers: dict[str, int] = {}
    # Memory of its own, and not malloc's, which from then on would keep pieces of that size.
    with VMLINUX.open("rb") as file, mmap.mmap(-1, max(VMLINUX.stat().st_size, _HEADER.size)) as data:
        file.readinto(data)
        types = _Types(data)
        for kind, name, number in types.named({types.name(each): each for each in (*wanted, *functions)}):
            if name in wanted and kind == _STRUCT:
                numbers[name] = number
                for field, offset in types.fields(number):
                    found.setdefault((name, field), set()).add(offset)
            elif name in functions and kind == _FUNCTION:
                numbers[name] = number
    keys = [(name, field) for name, fields in wanted.items() for field in fields]
    unclear = [key for key in keys if len(found.get(key, ())) != 1]
    if unclear:
        raise LookupError(*unclear)
    return Layout({key: found[key].pop() for key in keys}, numbers)


class _Types:
    """The types of one kernel. LookupError where it is no BTF."""

    def __init__(self, data: mmap.mmap) -> None:
        magic, _, _, header, at, size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise LookupError("no BTF of this machine's byte order")
        self._data, self._strings = data, header + strings
        self._strings_end = self._strings + strings_size
        self._starts = array("I", [0])  # of each type by its number; 0 is void
        once = [_ONCE.get(kind, 0) for kind in range(32)]
        each = [_EACH.get(kind, 0) for kind in range(32)]
        at, end, add, info_at = header + at, header + at + size, self._starts.append, struct.Struct("<4xI").unpack_from
        while at < end:
            add(at)
            (info,) = info_at(data, at)
            kind = info >> 24 & 31
            at += 12 + once[kind] + each[kind] * (info & 0xFFFF)

    def name(self, text: str) -> int:
        """The number of a name; 0: there is none such."""
        at = self._data.find(b"\0%s\0" % text.encode(), self._strings, self._strings_end)
        return 0 if at < 0 else at + 1 - self._strings

    def named(self, names: Mapping[int, str]) -> Iterator[tuple[int, str, int]]:
        """(kind, name, number) of each type that has one of these names."""
        data, read = self._data, _TYPE.unpack_from
        for number, start in enumerate(self._starts):
            name, info, _ = read(data, start)
            if name in names and number:
                yield info >> 24 & 31, names[name], number

    def fields(self, number: int, base: int = 0) -> Iterator[tuple[str, int]]:
        """(name, offset in bytes) of each field, those of anonymous members too."""
        start = self._starts[number]
        info = _TYPE.unpack_from(self._data, start)[1]
        if not number or info >> 24 & 31 not in {_STRUCT, _UNION}:
            return
        for at in range(start + 12, start + 12 + 12 * (info & 0xFFFF), 12):
            name, type_, bits = _MEMBER.unpack_from(self._data, at)
            offset = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8  # info's top bit: some are bit fields
            if name:
                yield self._text(name), offset
            else:
                yield from self.fields(type_, offset)

    def _text(self, name: int) -> str:
        at = self._strings + name
        return self._data[at : self._data.find(b"\0", at)].decode()
