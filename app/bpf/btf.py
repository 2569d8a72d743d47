"""Offsets of fields in the kernel's own structures, from the type information of the running kernel (BTF).

The reader program of `app.bpf.bulk` follows pointers through those structures, and their layout differs from kernel to
kernel. Kernel: /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF, Linux 5.4); format: Documentation/bpf/btf.rst.
"""

import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

VMLINUX = Path("/sys/kernel/btf/vmlinux")

# magic, version, flags, bytes of the header, offset and bytes of the types, offset and bytes of the strings
_HEADER: Final = struct.Struct("<HBB5I")
_MAGIC: Final = 0xEB9F
_TYPE: Final = struct.Struct("<3I")  # struct btf_type: name, info, size or type
_MEMBER: Final = struct.Struct("<3I")  # struct btf_member: name, type, offset in bits
_STRUCT, _UNION, _FUNCTION = 4, 5, 12  # BTF_KIND_…
# Bytes that follow struct btf_type, by kind: for each of its `vlen` parts, and once.
_BYTES_PER_PART: Final = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # enum, func_proto, datasec, enum64
_BYTES_ONCE: Final = {1: 4, 3: 12, 14: 4, 17: 4}  # int, array, var, decl_tag


class Layout(NamedTuple):
    """A part of the kernel's type information.

    `offsets` has the offset in bytes by (structure, field); `ids` the BTF id by the name of a structure or function;
    `sizes` the size in bytes by the name of a structure.
    """

    offsets: Mapping[tuple[str, str], int]
    ids: Mapping[str, int]
    sizes: Mapping[str, int]


def layout(
    wanted: Mapping[str, Sequence[str]],
    functions: Sequence[str] = (),
    *,
    optional: Mapping[str, Sequence[str]] | None = None,
) -> Layout:
    """Look up fields and functions of the running kernel. Takes about 40 ms and, while it runs, 6 MB.

    Args:
        wanted: The names of fields by the name of their structure. Members of anonymous members count as fields. A
            member `b` of a member `a` whose type has no name is the field `a.b`.
        functions: The names of functions.
        optional: Further fields, which the kernel need not have.

    Returns:
        The offsets of all wanted fields and of those optional ones that the kernel has, the ids and sizes of their
        structures, and the ids of those functions that the kernel has.

    Raises:
        OSError: The kernel provides no BTF.
        LookupError: The file is no BTF, a field does not exist, or two structures of one name differ in it.
        struct.error: The file is truncated.
    """
    optional = optional or {}
    structures = {*wanted, *optional}
    found: dict[tuple[str, str], set[int]] = {}
    ids: dict[str, int] = {}
    sizes: dict[str, int] = {}
    # Anonymous memory instead of bytes: malloc would raise its threshold and keep blocks of this size from then on.
    with VMLINUX.open("rb") as file, mmap.mmap(-1, max(VMLINUX.stat().st_size, _HEADER.size)) as data:
        file.readinto(data)
        types = _Types(data, [*structures, *functions])
        for kind, name, id_ in types.named:
            if name in structures and kind == _STRUCT:
                ids[name], sizes[name] = id_, types.size(id_)
                for field, offset in types.fields(id_):
                    found.setdefault((name, field), set()).add(offset)
            elif name in functions and kind == _FUNCTION:
                ids[name] = id_
    keys = [(name, field) for name, fields in wanted.items() for field in fields]
    unclear = [key for key in keys if len(found.get(key, ())) != 1]
    if unclear:
        raise LookupError(*unclear)
    keys += [(name, field) for name, fields in optional.items() for field in fields]
    return Layout({key: min(found[key]) for key in keys if len(found.get(key, ())) == 1}, ids, sizes)


class _Types:
    """The parsed types of a BTF file.

    Attributes:
        named: (kind, name, id) of each type that has one of the names that were asked for.
    """

    def __init__(self, data: mmap.mmap, names: Iterable[str]) -> None:
        """Find where each type begins, and those with these names, in one pass: there are about 130,000.

        Raises:
            LookupError: The data are no BTF in the byte order of this machine.
        """
        magic, _, _, header, at, size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise LookupError("no BTF of this machine's byte order")
        self._data, self._strings = data, header + strings
        self._strings_end = self._strings + strings_size
        self._starts = array("I", [0])  # offset of each type by its id; id 0 is void
        self.named: list[tuple[int, str, int]] = []
        wanted = {self._offset(name): name for name in names}
        wanted.pop(0, None)  # a name that no type has
        fixed = [_TYPE.size + _BYTES_ONCE.get(kind, 0) for kind in range(32)]
        each = [_BYTES_PER_PART.get(kind, 0) for kind in range(32)]
        at, end, add, read = header + at, header + at + size, self._starts.append, struct.Struct("<2I").unpack_from
        while at < end:
            name, info = read(data, at)
            kind = info >> 24 & 31
            if name in wanted:
                self.named.append((kind, wanted[name], len(self._starts)))
            add(at)
            at += fixed[kind] + each[kind] * (info & 0xFFFF)

    def _offset(self, text: str) -> int:
        """Return the offset of a name in the table of strings; 0 where it is not there."""
        at = self._data.find(b"\0%s\0" % text.encode(), self._strings, self._strings_end)
        return 0 if at < 0 else at + 1 - self._strings

    def size(self, id_: int) -> int:
        """Return the size of a structure in bytes."""
        size: int = _TYPE.unpack_from(self._data, self._starts[id_])[2]
        return size

    def fields(self, id_: int, base: int = 0, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, `base` + offset in bytes) of each field of a structure, and of members without a named type.

        Args:
            id_: The structure. Any other type has no fields.
            base: The offset of the structure in bytes.
            prefix: Stands before each name.
        """
        start = self._starts[id_]
        info = _TYPE.unpack_from(self._data, start)[1]
        if not id_ or info >> 24 & 31 not in {_STRUCT, _UNION}:
            return
        for at in range(start + 12, start + 12 + 12 * (info & 0xFFFF), 12):
            name, type_, bits = _MEMBER.unpack_from(self._data, at)
            # The top bit of info says that the upper 8 bits of each member's offset are the width of a bit field.
            offset = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if not name:
                yield from self.fields(type_, offset, prefix)
                continue
            field = prefix + self._text(name)
            yield field, offset
            if not _TYPE.unpack_from(self._data, self._starts[type_])[0]:  # also of a pointer, which has no fields
                yield from self.fields(type_, offset, f"{field}.")

    def _text(self, name: int) -> str:
        at = self._strings + name
        return self._data[at : self._data.find(b"\0", at)].decode()
