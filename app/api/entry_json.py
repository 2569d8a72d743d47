"""Entries, as they are answered: one, or a whole table of them."""

import asyncio
from typing import Final

from app.api import outputs
from app.api.conditions import entry_etag
from app.service.program import ProgramSummary
from app.service.registry import Registry

_AT_A_STRETCH: Final = 4096  # entries: about 5 ms, then others have their turn
_KNOWN: Final = 4096
# What all entries of a map have in common that point to the same program: by the map's name and the summary's place in
# memory, where nothing else can come as long as it is kept here.
_known: dict[tuple[str, int], tuple[ProgramSummary, bytes, bytes]] = {}


def entry_of(registry: Registry, map_: str, map_id: int, index: int, summary: ProgramSummary) -> outputs.Entry:
    """An entry that points to a program."""
    return outputs.Entry(
        map=map_,
        index=index,
        etag=entry_etag(registry.kernel.boot_id, map_id, index, summary.id),
        program=outputs.EntryProgram.of(summary),
    )


def entry_json(registry: Registry, map_: str, map_id: int, index: int, summary: ProgramSummary) -> tuple[str, bytes]:
    """An entry that points to a program: its tag, and itself as JSON."""
    kept = _known.get((map_, id(summary)))
    etag = entry_etag(registry.kernel.boot_id, map_id, index, summary.id)
    if kept is None or kept[0] is not summary:
        if len(_known) >= _KNOWN:
            _known.clear()
        entry = entry_of(registry, map_, map_id, index, summary).model_dump_json().encode()
        kept = _known[map_, id(summary)] = summary, *_around(entry, index, etag)
    return etag, b"%b%b%b" % (kept[1], _own(index, etag), kept[2])


async def entries_json(registry: Registry, map_: str, map_id: int, page: list[tuple[int, int]]) -> bytes:
    """The entries as JSON, without the brackets; in steps, as a large table takes long."""
    boot_id, describe, parts = registry.kernel.boot_id, registry.programs.describe, []
    around: dict[int, tuple[bytes, bytes]] = {}  # what all entries with the same program have in common
    for start in range(0, len(page), _AT_A_STRETCH):
        if start:
            await asyncio.sleep(0)
        for index, program_id in page[start : start + _AT_A_STRETCH]:
            if program_id not in around:
                entry = entry_of(registry, map_, map_id, index, describe(program_id)).model_dump_json().encode()
                around[program_id] = _around(entry, index, entry_etag(boot_id, map_id, index, program_id))
            before, after = around[program_id]
            parts.append(b"%b%b%b" % (before, _own(index, entry_etag(boot_id, map_id, index, program_id)), after))
    return b",".join(parts)


def _own(index: int, etag: str) -> bytes:
    """What an entry has for itself, as JSON."""
    return f'"index":{index},"etag":"\\"{etag[1:-1]}\\""'.encode()


def _around(entry: bytes, index: int, etag: str) -> tuple[bytes, bytes]:
    before, own, after = entry.partition(_own(index, etag))
    assert own
    return before, after
