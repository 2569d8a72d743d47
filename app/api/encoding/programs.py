"""Held programs as JSON. Very many entries may point to one, so pydantic does not encode these."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from app.api.encoding.lists import list_chunks
from app.api.schemas.responses import Program

_USES_PER_CHUNK: Final = 4096  # about 1 ms to encode
_CHUNK_BYTES: Final = 1 << 17  # of several programs


def program_chunks(program: Program, uses: Sequence[tuple[str, int]]) -> Iterator[bytes]:
    """Encode a program.

    Args:
        program: The program, with no entries in `used_by`.
        uses: The entries to put in: map and index.

    Returns:
        Chunks of one JSON object. Each is encoded when it is asked for, which takes about 1 ms.
    """
    return list_chunks(program.model_dump_json(), "used_by", _uses_parts(uses))


def _uses_parts(uses: Sequence[tuple[str, int]]) -> Iterator[str]:
    for start in range(0, len(uses), _USES_PER_CHUNK):
        part = uses[start : start + _USES_PER_CHUNK]
        # Names of maps need no escapes.
        yield ("," if start else "") + ",".join([f'{{"map":"{map_}","index":{index}}}' for map_, index in part])


def programs_chunks(programs: Iterable[tuple[Program, Sequence[tuple[str, int]]]]) -> Iterator[bytes]:
    """Encode the list of programs, each with the entries that point to it, as `program_chunks` does."""
    text = b'{"programs":['
    for place, (program, uses) in enumerate(programs):
        text += b"," if place else b""
        for chunk in program_chunks(program, uses):
            text += chunk
            if len(text) >= _CHUNK_BYTES:
                yield text
                text = b""
    yield text + b"]}"
