"""Offsets of fields in the kernel's own structures, from the type information of the running kernel (BTF).

The reader program of `app.bpf.bulk` follows pointers through those structures, and their layout differs from kernel to
kernel. Kernel: /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF, Linux 5.4); format: Documentation/bpf/btf.rst.
"""

import mmap
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    `offsets` has the offset in bytes by (structure, field); `ids` the BTF id by the name of a structure or function.
    """

    offsets: Mapping[tuple[str, str], int]
    ids: Mapping[str, int]


def layout(wanted: Mapping[str, Sequence[str]], functions: Sequence[str] = ()) -> Layout:
    """Look up fields and functions of the running kernel. Takes about 40 ms and, while it runs, 6 MB.

    Args:
        wanted: The names of fields by the name of their structure. Members of anonymous members count as fields.
        functions: The names of functions.

    Returns:
        The offsets of all wanted fields, the ids of their structures, and the ids of those functions that the kernel
        has.

    Raises:
        OSError: The kernel provides no BTF.
        LookupError: The file is no BTF, a field does not exist, or two structures of one name differ in it.
        struct.error: The file is truncated.
    """
    found: dict[tuple[str, str], set[int]] = {}
    ids: dict[str, int] = {}
    with _vmlinux() as data:
        types = _Types(data)
        for kind, name, id_ in types.named({types.name(each): each for each in (*wanted, *functions)}):
            if name in wanted and kind == _STRUCT:
                ids[name] = id_
                for field, offset in types.fields(id_):
                    found.setdefault((name, field), set()).add(offset)
            elif name in functions and kind == _FUNCTION:
                ids[name] = id_
    keys = [(name, field) for name, fields in wanted.items() for field in fields]
    unclear = [key for key in keys if len(found.get(key, ())) != 1]
    if unclear:
        raise LookupError(*unclear)
    return Layout({key: found[key].pop() for key in keys}, ids)


def has_name(name: str) -> bool:
    """Return whether anything in the running kernel has this name: a type, a function, a field. Takes some ms.

    Raises:
        OSError: The kernel provides no BTF.
    """
    with _vmlinux() as data:
        return data.find(b"\0%s\0" % name.encode()) >= 0


@contextmanager
def _vmlinux() -> Iterator[mmap.mmap]:
    """Yield the type information of the running kernel."""
    # Anonymous memory instead of bytes: malloc would raise its threshold and keep blocks of this size from then on.
    with VMLINUX.open("rb") as file, mmap.mmap(-1, max(VMLINUX.stat().st_size, _HEADER.size)) as data:
        file.readinto(data)
        yield data


class _Types:
    """The parsed types of a BTF file."""

    def __init__(self, data: mmap.mmap) -> None:
        """Find where each type begins.

        Raises:
            LookupError: The data are no BTF in the byte order of this machine.
        """
        magic, _, _, header, at, size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise LookupError("no BTF of this machine's byte order")
        self._data, self._strings = data, header + strings
        self._strings_end = self._strings + strings_size
        self._starts = array("I", [0])  # offset of each type by its id; id 0 is void
        once = [_BYTES_ONCE.get(kind, 0) for kind in range(32)]
        each = [_BYTES_PER_PART.get(kind, 0) for kind in range(32)]
        at, end, add, info_at = header + at, header + at + size, self._starts.append, struct.Struct("<4xI").unpack_from
        while at < end:
            add(at)
            (info,) = info_at(data, at)
            kind = info >> 24 & 31
            at += 12 + once[kind] + each[kind] * (info & 0xFFFF)

    def name(self, text: str) -> int:
        """Return the offset of a name in the table of strings; 0 where it is not there."""
        at = self._data.find(b"\0%s\0" % text.encode(), self._strings, self._strings_end)
        return 0 if at < 0 else at + 1 - self._strings

    def named(self, names: Mapping[int, str]) -> Iterator[tuple[int, str, int]]:
        """Yield (kind, name, id) of each type that has one of these names; `names` is by offset, as from `name`."""
        data, read = self._data, _TYPE.unpack_from
        for id_, start in enumerate(self._starts):
            name, info, _ = read(data, start)
            if name in names and id_:
                yield info >> 24 & 31, names[name], id_

    def fields(self, id_: int, base: int = 0) -> Iterator[tuple[str, int]]:
        """Yield (name, `base` + offset in bytes) of each field of a structure, also of its anonymous members."""
        start = self._starts[id_]
        info = _TYPE.unpack_from(self._data, start)[1]
        if not id_ or info >> 24 & 31 not in {_STRUCT, _UNION}:
            return
        for at in range(start + 12, start + 12 + 12 * (info & 0xFFFF), 12):
            name, type_, bits = _MEMBER.unpack_from(self._data, at)
            # The top bit of info says that the upper 8 bits of each member's offset are the width of a bit field.
            offset = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if name:
                yield self._text(name), offset
            else:
                yield from self.fields(type_, offset)

    def _text(self, name: int) -> str:
        at = self._strings + name
        return self._data[at : self._data.find(b"\0", at)].decode()
