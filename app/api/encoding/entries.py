"""Entries, as they are answered: one, or a whole table of them."""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Final

from app.api.schemas import responses
from app.service.objects.program import ProgramSummary
from app.service.registry.registry import Registry

_AT_A_STRETCH: Final = 4096  # entries: about 2 ms
_KNOWN: Final = 4096
# What all entries of a map have in common that point to the same program: by the map's name and the summary's place in
# memory, where nothing else can come as long as it is kept here.
_known: dict[tuple[str, int], tuple[ProgramSummary, bytes, bytes]] = {}


def entry_etag(boot_id: str, map_id: int, index: int, program_id: int) -> str:
    """The tag of one entry: it changes with what the kernel holds there, whoever changed it.

    With the boot's id: beyond it the same numbers may come to mean something else.
    """
    return f'"{boot_id[:8]}-{map_id:x}-{index:x}-{program_id:x}"'


def table_etag(boot_id: str, map_id: int, ids: "array[int]") -> str:
    """The tag of a whole table; `ids`: of the program that each entry points to, by index."""
    return f'"{boot_id[:8]}-{map_id:x}-{hashlib.blake2b(ids, digest_size=8).hexdigest()}"'


def entry_of(registry: Registry, map_: str, map_id: int, index: int, summary: ProgramSummary) -> responses.Entry:
    """An entry that points to a program."""
    return responses.Entry(
        map=map_,
        index=index,
        etag=entry_etag(registry.kernel.boot_id, map_id, index, summary.id),
        program=responses.EntryProgram.of(summary),
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


def _own(index: int, etag: str) -> bytes:
    """What an entry has for itself, as JSON."""
    return f'"index":{index},"etag":"\\"{etag[1:-1]}\\""'.encode()


def _around(entry: bytes, index: int, etag: str) -> tuple[bytes, bytes]:
    before, own, after = entry.partition(_own(index, etag))
    assert own
    return before, after


def entries_parts(
    registry: Registry, table: responses.Entries, map_id: int, indexes: "array[int]", ids: "array[int]"
) -> Iterator[bytes]:
    """The table, as JSON, with the entries of these indexes: in parts, each of which is made when it is asked for.

    `ids`: of the programs that the entries point to, by index. They are put together from what all entries with the
    same program have in common.
    """
    before, _, after = table.model_dump_json().partition('"entries":[]')
    texts = _Texts(registry, table.map, map_id)
    text = f'{before}"entries":['
    for start in range(0, len(indexes), _AT_A_STRETCH):
        if start:
            yield text.encode()
            text = ","
        text += texts.of(indexes[start : start + _AT_A_STRETCH], ids)
    yield f"{text}]{after}".encode()


class _Texts(dict[int, str]):
    """What all entries with the same program have in common, and what comes before the next entry's index, by id."""

    def __init__(self, registry: Registry, map_: str, map_id: int) -> None:
        self._registry, self._map, self._map_id = registry, map_, map_id
        self._lead = self._middle = ""

    def __missing__(self, id_: int) -> str:
        entry = entry_of(self._registry, self._map, self._map_id, 0, self._registry.programs.describe(id_))
        # The index is in it twice, the second time within the tag, in hex: "index":0,"etag":"\"5b0e61d2-8a1-0-d68\"".
        first, _, rest = entry.model_dump_json().partition('"index":0,')
        start, _, end = entry.etag.strip('"').rpartition("-0-")
        middle = f',"etag":"\\"{start}-'
        assert f",{rest}".startswith(f"{middle}0-{end}")
        self._lead, self._middle = f'{first}"index":', middle
        self[id_] = f",{rest}".removeprefix(f"{middle}0") + "," + self._lead
        return self[id_]

    def of(self, indexes: "array[int]", ids: "array[int]") -> str:
        """These entries."""
        texts = [""] * (4 * len(indexes))
        texts[3::4] = map(self.__getitem__, map(ids.__getitem__, indexes))
        texts[0::4] = map(str, indexes)
        texts[1::4] = [self._middle] * len(indexes)
        texts[2::4] = map("%x".__mod__, indexes)
        texts[-1] = texts[-1].removesuffix("," + self._lead)
        return self._lead + "".join(texts)
