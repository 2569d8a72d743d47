"""The initialisers (`.values`) of program arrays in an object file, and the file without some of them.

libbpf tells of them by no call. It writes them into the array also where another has replaced it, and so into a live
one. They are relocations of the section `.maps`: without these, libbpf has nothing to write.
"""

import struct
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from app.loader.btf_sections import MapPlace

_IDENT: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_RELOCATABLE, _BPF = 1, 247  # ET_REL, EM_BPF
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_RELOCATION: Final = struct.Struct("<QQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SYMTAB, _REL = 2, 9
_SIZE_OFFSET: Final = 32  # of sh_size in a section header
_POINTER_BYTES: Final = 8


class Initialiser(NamedTuple):
    """One entry that a file fills: the map, the place of the entry in it, and the program."""

    map: str
    place: int
    program: str


class _Section(NamedTuple):
    header: int
    name: str
    type: int
    offset: int
    size: int
    link: int
    info: int


def why_unsupported(content: bytes) -> str | None:
    """Return why a file cannot be an object file for this machine. None: it may be one.

    Args:
        content: The bytes of the file.
    """
    if not content.startswith(_IDENT[:4]):
        return "it does not begin as an ELF file does"
    if len(content) < _HEADER.size:
        return "it ends within the header of an ELF file"
    if content[4] != _IDENT[4]:
        return "it is an ELF file of 32 bits; compile it with clang -target bpf"
    if content[5] != _IDENT[5]:
        return "it is big-endian, and this machine is little-endian; compile it with clang -target bpf"
    _, kind, machine, *_ = _HEADER.unpack_from(content)
    if machine not in {0, _BPF}:
        return f"it is for another machine (e_machine {machine}), and not for eBPF; compile it with clang -target bpf"
    return None if kind == _RELOCATABLE else f"it is no object file that was just compiled (e_type {kind})"


def initialisers(
    content: bytes, places: Mapping[str, MapPlace], without: Collection[str] = ()
) -> tuple[list[Initialiser], bytes]:
    """Return the initialisers of these maps, and the file without those of some of them.

    Args:
        content: The bytes of a file that libbpf has opened.
        places: Where the maps are in the section `.maps`.
        without: The maps whose initialisers are left out.

    Raises:
        ValueError, IndexError, struct.error, StopIteration: The file is damaged.
    """
    sections, found, changed = _sections(content), list[Initialiser](), bytearray(content)
    symbols = next((each for each in sections if each.type == _SYMTAB), None)
    for each in sections:
        if symbols is None or each.type != _REL or sections[each.info].name != ".maps":
            continue
        kept = b""
        for offset, info in _RELOCATION.iter_unpack(content[each.offset : each.offset + each.size]):
            map_, place = next((m, p) for m, p in places.items() if p.offset <= offset < p.offset + p.size)
            name, *_ = _SYMBOL.unpack_from(content, symbols.offset + _SYMBOL.size * (info >> 32))
            program = _text(content, sections[symbols.link].offset + name)
            if map_ in without:
                found.append(Initialiser(map_, (offset - place.offset - place.values) // _POINTER_BYTES, program))
            else:
                kept += _RELOCATION.pack(offset, info)
        changed[each.offset : each.offset + len(kept)] = kept
        struct.pack_into("<Q", changed, each.header + _SIZE_OFFSET, len(kept))
    return found, bytes(changed)


def section_content(content: bytes, name: str) -> bytes:
    """Return the content of a section. Empty: there is none.

    Args:
        content: The bytes of a file that libbpf has opened.
        name: The name of the section.

    Raises:
        ValueError, IndexError, struct.error: The file is damaged.
    """
    found = next((each for each in _sections(content) if each.name == name), None)
    return b"" if found is None else content[found.offset : found.offset + found.size]


def _sections(content: bytes) -> list[_Section]:
    _, _, _, _, _, _, start, _, _, _, _, size, count, names = _HEADER.unpack_from(content)
    headers = [start + size * number for number in range(count)]
    rows = [_SECTION.unpack_from(content, header) for header in headers]
    base = rows[names][4]
    return [
        _Section(header, _text(content, base + row[0]), row[1], row[4], row[5], row[6], row[7])
        for header, row in zip(headers, rows, strict=True)
    ]


def _text(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode("utf-8", "backslashreplace")
