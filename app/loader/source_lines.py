"""Which line of the source a text is from, by what an object file says of its instructions (`.BTF.ext`).

The verifier's log has the text of a line. Since Linux 6.12 it also has the file and the number, and before that this
finds them.

Kernel:
    Documentation/bpf/btf.rst: struct btf_ext_header, struct btf_ext_info_sec, struct bpf_line_info.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from app.loader.elf import section_content
from app.loader.libbpf import text

_HEADER: Final = struct.Struct("<HBBIIIII")  # magic, version, flags, hdr_len; offset and length of functions; of lines
_WORD: Final = struct.Struct("<I")
_SECTION: Final = struct.Struct("<II")  # sec_name_off, num_info
_LINE: Final = struct.Struct("<IIII")  # insn_off, file_name_off, line_off, line_col
_COLUMN_BITS: Final = 10


class SourceLine(NamedTuple):
    """A line of the source: the file, as the compiler was told, and the number from 1 on."""

    file: str
    line: int


def find_line(lib: Any, btf: int | None, content: bytes, wanted: str) -> SourceLine | None:
    """Return the only line that has this text, without the spaces around it. None: there are several, or none.

    Args:
        lib: From `libbpf.library`.
        btf: libbpf's pointer to the type information. None: there is none.
        content: The bytes of the file.
        wanted: The text.

    Raises:
        ValueError, IndexError, struct.error: The file is damaged.
    """
    if btf is None:
        return None
    found = {
        SourceLine(text(lib.btf__name_by_offset(btf, file)), place >> _COLUMN_BITS)
        for file, line, place in _lines(section_content(content, ".BTF.ext"))
        if text(lib.btf__name_by_offset(btf, line)).strip() == wanted
    }
    return found.pop() if len(found) == 1 else None


def _lines(section: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield file_name_off, line_off and line_col of each line."""
    if not section:
        return
    _, _, _, header_bytes, _, _, offset, size = _HEADER.unpack_from(section)
    at, end = header_bytes + offset, min(header_bytes + offset + size, len(section))
    (record_bytes,) = _WORD.unpack_from(section, at)
    if record_bytes < _LINE.size:
        raise ValueError("the records of .BTF.ext are too short")
    at += _WORD.size
    while at + _SECTION.size <= end:
        _, count = _SECTION.unpack_from(section, at)
        at += _SECTION.size
        for place in range(at, min(at + count * record_bytes, end), record_bytes):
            yield _LINE.unpack_from(section, place)[1:]
        at += count * record_bytes
