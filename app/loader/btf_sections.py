"""What the type information (BTF) of an object file says of its variables and of its maps.

Kernel:
    Documentation/bpf/btf.rst: struct btf_type, and what follows it by kind.
"""

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from app.loader.libbpf import text

_TYPE: Final = struct.Struct("<III")  # name_off, info, size or type
_KIND_SHIFT, _KIND_MASK, _COUNT_MASK = 24, 31, 0xFFFF
_TYPEDEF, _VOLATILE, _CONST = 8, 9, 10
_DATASEC: Final = 15
_VARIABLE_SECTIONS: Final = (".rodata", ".data", ".bss")


class Variable(NamedTuple):
    """A global variable: its section, where it is in there, and its size in bytes."""

    section: str
    offset: int
    size: int


class MapPlace(NamedTuple):
    """Where the definition of a map is in the section `.maps`, and where in it its member `values`; in bytes."""

    offset: int
    size: int
    values: int


def variables(lib: Any, btf: int | None) -> dict[str, Variable]:
    """Return the global variables, by name."""
    return {
        name: Variable(section, offset, size)
        for section, name, _, offset, size in _members_of_sections(lib, btf)
        if section in _VARIABLE_SECTIONS or section.startswith(tuple(f"{each}." for each in _VARIABLE_SECTIONS))
    }


def map_places(lib: Any, btf: int | None) -> dict[str, MapPlace]:
    """Return where the maps are defined, by name. Those without initialisers are left out."""
    found = {}
    for section, name, type_, offset, size in _members_of_sections(lib, btf):
        if section == ".maps":
            values = _offset_of_values(lib, btf, type_)
            if values is not None:
                found[name] = MapPlace(offset, size, values)
    return found


def _members_of_sections(lib: Any, btf: int | None) -> Iterator[tuple[str, str, int, int, int]]:
    """Yield (section, name, type of the variable, offset, size) of each variable that BTF puts into a section."""
    for id_ in range(1, lib.btf__type_cnt(btf)) if btf else ():
        name, info, _ = _head(lib, btf, id_)
        if info >> _KIND_SHIFT & _KIND_MASK != _DATASEC:
            continue
        section = text(lib.btf__name_by_offset(btf, name))
        for variable, offset, size in _rows(lib, btf, id_, info):
            named, _, type_ = _head(lib, btf, variable)
            yield section, text(lib.btf__name_by_offset(btf, named)), type_, offset, size


def _offset_of_values(lib: Any, btf: int | None, type_: int) -> int | None:
    name, info, following = _head(lib, btf, type_)
    while info >> _KIND_SHIFT & _KIND_MASK in {_TYPEDEF, _VOLATILE, _CONST}:
        type_ = following
        name, info, following = _head(lib, btf, type_)
    for name, _, bits in _rows(lib, btf, type_, info):
        if lib.btf__name_by_offset(btf, name) == b"values":
            return bits // 8
    return None


def _head(lib: Any, btf: int | None, id_: int) -> tuple[int, int, int]:
    address = lib.btf__type_by_id(btf, id_)
    return _TYPE.unpack(ctypes.string_at(address, _TYPE.size)) if address else (0, 0, 0)


def _rows(lib: Any, btf: int | None, id_: int, info: int) -> Iterator[tuple[int, int, int]]:
    """Yield the rows of three u32 each that follow a type: struct btf_member, or struct btf_var_secinfo."""
    address = lib.btf__type_by_id(btf, id_) + _TYPE.size
    yield from _TYPE.iter_unpack(ctypes.string_at(address, _TYPE.size * (info & _COUNT_MASK)))
