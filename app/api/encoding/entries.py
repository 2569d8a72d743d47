"""Entries as JSON: one entry, or a whole table of them. Tables may be large, so pydantic does not encode them."""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from app.api.encoding.lists import list_chunks
from app.api.encoding.numerals import numerals
from app.api.schemas import responses
from app.service.objects.program import ProgramSummary
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.number_arrays import as_range

ENTRIES_PER_CHUNK: Final = 4096  # about 2 ms to encode
_MAX_TEMPLATES: Final = 4096


class EntryTemplate(NamedTuple):
    """What is the same in all entries of a map that point to the same program.

    The tag is `tag_start`, the index in hex, and `tag_end`, in quotes. The JSON is `before`, the index and the tag, and
    `after`. `size` is the length of `before` and `after` in bytes.
    """

    summary: ProgramSummary
    tag_start: str
    tag_end: str
    before: str
    after: str
    size: int


# By the name of the map, its id, and the id() of the summary. No other object can get the same id(), because the value
# keeps the summary alive.
_templates: dict[tuple[str, int, int], EntryTemplate] = {}


def entry_etag(boot_id: str, map_id: int, index: int, program_id: int) -> str:
    """Return the entity tag of one entry. It changes with what the kernel holds there, whoever changed it.

    The boot id is part of the tag, because map ids and program ids mean other objects after a reboot.

    Args:
        boot_id: The kernel's boot id.
        map_id: The kernel's id of the map, u32.
        index: The index of the entry, u32.
        program_id: The kernel's id of the program that the entry points to, u32.
    """
    return f'"{boot_id[:8]}-{map_id:x}-{index:x}-{program_id:x}"'


def table_etag(boot_id: str, map_id: int, ids: "array[int]") -> str:
    """Return the entity tag of a whole table.

    Args:
        boot_id: The kernel's boot id.
        map_id: The kernel's id of the map, u32.
        ids: By index, the id of the program that each entry points to; 0 for an empty entry.
    """
    return f'"{boot_id[:8]}-{map_id:x}-{hashlib.blake2b(ids, digest_size=8).hexdigest()}"'


def waiting_of(held: HeldMap, index: int) -> responses.Waiting | None:
    """Return the change of an entry that waits for its confirmation. None: there is none."""
    change_id = None if held.unconfirmed is None else held.unconfirmed.get(index)
    if held.unconfirmed is None or change_id is None:
        return None
    return responses.Waiting.model_validate({"change": change_id, "confirm_by": held.unconfirmed.waiting[change_id][0]})


def entry_of(
    registry: Registry,
    map_: str,
    map_id: int,
    index: int,
    summary: ProgramSummary,
    waiting: responses.Waiting | None = None,
) -> responses.Entry:
    """Return an entry that points to a program.

    Args:
        registry: The registry, for the boot id of its kernel.
        map_: The name of the map.
        map_id: The kernel's id of the map, u32.
        index: The index of the entry, u32.
        summary: The program.
        waiting: The change of the entry that waits for its confirmation. None: there is none.
    """
    return responses.Entry(
        map=map_,
        index=index,
        etag=entry_etag(registry.kernel.boot_id, map_id, index, summary.id),
        program=responses.EntryProgram.of(summary),
        waiting=waiting,
    )


def entry_json(
    registry: Registry,
    map_: str,
    map_id: int,
    index: int,
    summary: ProgramSummary,
    waiting: responses.Waiting | None = None,
) -> tuple[str, bytes]:
    """Return the entity tag and the JSON of an entry that points to a program. The arguments are as for `entry_of`."""
    template = entry_template(registry, map_, map_id, summary)
    tag, after = f"{template.tag_start}{index:x}{template.tag_end}", template.after
    if waiting is not None:
        after = f"{after.removesuffix('null}')}{waiting.model_dump_json()}}}"
    return f'"{tag}"', f"{template.before}{_index_and_tag(index, tag)}{after}".encode()


def entry_template(registry: Registry, map_: str, map_id: int, summary: ProgramSummary) -> EntryTemplate:
    """Return what the entries of a map that point to this program have in common."""
    key = map_, map_id, id(summary)
    template = _templates.get(key)
    if template is None or template.summary is not summary:
        if len(_templates) >= _MAX_TEMPLATES:
            _templates.clear()
        entry = entry_of(registry, map_, map_id, 0, summary)
        tag = entry.etag[1:-1]
        before, found, after = entry.model_dump_json().partition(_index_and_tag(0, tag))
        assert found
        tag_start, _, tag_end = tag.rpartition("-0-")
        size = len(before.encode()) + len(after.encode())
        template = _templates[key] = EntryTemplate(summary, f"{tag_start}-", f"-{tag_end}", before, after, size)
    return template


def _index_and_tag(index: int, tag: str) -> str:
    return f'"index":{index},"etag":"\\"{tag}\\""'


def table_chunks(
    registry: Registry, held: HeldMap, table: responses.Entries, map_id: int, indexes: "array[int]", ids: "array[int]"
) -> Iterator[bytes]:
    """Encode a table of entries as JSON.

    Args:
        registry: The registry, which describes the programs.
        held: The map, which knows the entries that wait for a confirmation.
        table: The table, with no entries in it.
        map_id: The kernel's id of the map, u32.
        indexes: The indexes of the entries to put in. None of these entries is empty.
        ids: By index, the kernel's id of the program that each entry of the map points to.

    Returns:
        Chunks of one JSON object. Each is encoded when it is asked for, which takes about 2 ms.
    """
    encoder = _EntryEncoder(registry, held, map_id)
    parts = (
        encoder.encode("," if start else "", indexes[start : start + ENTRIES_PER_CHUNK], ids)
        for start in range(0, len(indexes), ENTRIES_PER_CHUNK)
    )
    return list_chunks(table.model_dump_json(), "entries", parts)


class _EntryEncoder(dict[int, str]):
    """Encodes entries of one map. Each program is encoded only once.

    The text of an entry is its index, the text up to the end of the index within its tag, and the rest. The rest is the
    same for all entries with the same program. It also has the comma and the beginning of the next entry, so that three
    strings for each entry are joined and not five. As a dict, the encoder maps a program id to that rest.
    """

    def __init__(self, registry: Registry, held: HeldMap, map_id: int) -> None:
        self._registry, self._held, self._map_id = registry, held, map_id
        self._start_of_entry = self._start_of_etag = ""

    def __missing__(self, program_id: int) -> str:
        entry = entry_of(self._registry, self._held.name, self._map_id, 0, self._registry.programs.describe(program_id))
        # The index occurs twice, the second time in hex within the tag: "index":0,"etag":"\"5b0e61d2-8a1-0-d68\"".
        before_index, _, after_index = entry.model_dump_json().partition('"index":0,')
        etag_before_index, _, etag_after_index = entry.etag.strip('"').rpartition("-0-")
        start_of_etag = f',"etag":"\\"{etag_before_index}-'
        assert f",{after_index}".startswith(f"{start_of_etag}0-{etag_after_index}")
        self._start_of_entry, self._start_of_etag = f'{before_index}"index":', start_of_etag
        self[program_id] = f",{after_index}".removeprefix(f"{start_of_etag}0") + "," + self._start_of_entry
        return self[program_id]

    def encode(self, before: str, indexes: "array[int]", ids: "array[int]") -> str:
        """Return the entries with these indexes, separated by commas.

        Args:
            before: The text before them. To join it with them takes less time than to put it before them.
            indexes: The indexes, rising.
            ids: By index, the id of the program.
        """
        texts = [""] * (3 * len(indexes))
        together = as_range(indexes)
        held = map(ids.__getitem__, indexes) if together is None else ids[together.start : together.stop]
        # This comes first, because `__missing__` sets the two texts that are used below.
        texts[2::3] = map(self.__getitem__, held)
        texts[0::3] = numerals(indexes)
        texts[1::3] = numerals(indexes, "x", self._start_of_etag)
        if self._held.unconfirmed is not None:
            self._tell_waiting(texts, indexes)
        texts[-1] = texts[-1].removesuffix("," + self._start_of_entry)
        return "".join((before, self._start_of_entry, *texts))

    def _tell_waiting(self, texts: list[str], indexes: "array[int]") -> None:
        """Put the changes that wait for their confirmation in the place of null, at the end of their entries."""
        after = "}," + self._start_of_entry
        for place, index in enumerate(indexes):
            waiting = waiting_of(self._held, index)
            if waiting is not None:
                before = texts[3 * place + 2].removesuffix("null" + after)
                texts[3 * place + 2] = before + waiting.model_dump_json() + after
