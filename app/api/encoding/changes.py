"""Journalled changes as JSON. A change may have many entries, so pydantic does not encode these."""

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Final

from pydantic import TypeAdapter

from app.api.encoding.lists import list_chunks
from app.api.encoding.numerals import numerals
from app.api.schemas.responses import Change
from app.store.records import EMPTY, EntryChanges, ProgramRecord
from app.store.records import Change as ChangeRecord

ENTRIES_PER_CHUNK: Final = 4096  # about 1 ms to encode
MAX_PREBUILT_CHUNKS: Final = 16  # at most 11 MB
_MAX_PROGRAMS: Final = 4096  # whose JSON is kept
_PROGRAM: Final = TypeAdapter(ProgramRecord)


class EntriesPrebuilt:
    """The entries of one change as JSON. The first chunks can be built before the response needs them.

    A change of a table builds them while the kernel writes the entries. In this time the process is otherwise idle.
    """

    def __init__(self) -> None:
        self._built: deque[str] = deque()
        self._rest: Iterator[str] | None = None

    def build(self, entries: EntryChanges) -> Iterator[None]:
        """Build one chunk at each step, `MAX_PREBUILT_CHUNKS` at most."""
        self._rest = _entry_chunks(entries)
        for chunk in islice(self._rest, MAX_PREBUILT_CHUNKS):
            self._built.append(chunk)
            yield

    def take(self, entries: EntryChanges) -> Iterator[str]:
        """Return all chunks of the entries, those that are built first. It can be called only once.

        Args:
            entries: The same entries as in `build`, if that was called.
        """
        while self._built:
            yield self._built.popleft()
        yield from _entry_chunks(entries) if self._rest is None else self._rest


def change_chunks(
    record: ChangeRecord, prebuilt: EntriesPrebuilt | None = None, entry_count: int | None = None
) -> Iterator[bytes]:
    """Encode a journalled change as the JSON of a `Change`.

    Args:
        record: The change.
        prebuilt: The entries of the change, some of which may be encoded already.
        entry_count: How many entries the change has, where the record has only the first of them.

    Returns:
        Chunks of one JSON object. Each is encoded when it is asked for, which takes about 1 ms.
    """
    facts = change_facts(record)
    if entry_count is not None:
        facts["entry_count"] = entry_count
    text = Change.model_validate({**facts, "entries": []}).model_dump_json()
    return entries_chunks(text, record.entries, prebuilt)


def change_facts(record: ChangeRecord) -> dict[str, object]:
    """Return the members of a `Change`: a journalled change without its entries."""
    return {name: getattr(record, name) for name in Change.model_fields if name != "entries"}


def change_headers(*, dry_run: bool, change: ChangeRecord | None = None, location: str | None = None) -> dict[str, str]:
    """Return the headers of an answer to a change.

    Args:
        dry_run: Nothing was changed.
        change: What was journalled.
        location: The path of what is new.
    """
    headers = {}
    if change is not None:
        headers["Change-Id"] = str(change.id)
    if location is not None and not dry_run:
        headers["Location"] = location
    if dry_run:
        headers["Dry-Run"] = "true"
    return headers


def entries_chunks(text: str, entries: EntryChanges | None, prebuilt: EntriesPrebuilt | None = None) -> Iterator[bytes]:
    """Encode an object that has entries of a change.

    Args:
        text: The JSON of the object, with no entries in it.
        entries: The entries to put in. None: there are none.
        prebuilt: The entries, some of which may be encoded already.

    Returns:
        Chunks of one JSON object, as `change_chunks` does.
    """
    if entries is None:
        yield text.encode()
        return
    yield from list_chunks(text, "entries", _entry_chunks(entries) if prebuilt is None else prebuilt.take(entries))


def _entry_chunks(entries: EntryChanges) -> Iterator[str]:
    """Encode the entries, `ENTRIES_PER_CHUNK` at a time. Each program is encoded only once.

    The text of an entry is its index, its program before, and its program after. The last of these also has the comma
    and the beginning of the next entry, so that three strings for each entry are joined and not five.
    """
    programs = {number: _program(each) for number, each in entries.programs.items()} | {EMPTY: "null"}
    start_of_entry = '{"index":'
    befores = {number: f',"before":{text},"after":' for number, text in programs.items()}
    afters = {number: text + "}," + start_of_entry for number, text in programs.items()}
    for start in range(0, len(entries), ENTRIES_PER_CHUNK):
        stop = start + ENTRIES_PER_CHUNK
        indexes = entries.indexes[start:stop]
        texts = [""] * (3 * len(indexes))
        texts[0::3] = numerals(indexes)
        texts[1::3] = map(befores.__getitem__, entries.before[start:stop])
        texts[2::3] = map(afters.__getitem__, entries.after[start:stop])
        texts[-1] = texts[-1].removesuffix("," + start_of_entry)
        yield ("," if start else "") + start_of_entry + "".join(texts)


@lru_cache(_MAX_PROGRAMS)
def _program(record: ProgramRecord) -> str:
    # The journal has 0 as the id of a program of an earlier boot; the API has null.
    return _PROGRAM.dump_json(record).decode().replace('"id":0,', '"id":null,', 1)
