"""Changes, as they are answered: of one entry, or of a whole table of them."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from pydantic import TypeAdapter

from app.api.schemas.responses import Change
from app.store.records import EMPTY, EntryChanges, ProgramRecord
from app.store.records import Change as ChangeRecord

_AT_A_STRETCH: Final = 4096  # entries: about 1 ms
_AHEAD: Final = 16  # parts: 11 MB at the most
_PROGRAM: Final = TypeAdapter(ProgramRecord)
_TOLD: Final = [name for name in Change.model_fields if name != "entries"]


class EntriesAhead:
    """The entries of a change, as JSON, of which some parts are made before they are asked for."""

    def __init__(self) -> None:
        self._made: deque[str] = deque()
        self._rest: Iterator[str] | None = None

    def make(self, entries: EntryChanges) -> Iterator[None]:
        """Make a part at each step."""
        self._rest = _entries(entries)
        for text in islice(self._rest, _AHEAD):
            self._made.append(text)
            yield

    def take(self, entries: EntryChanges) -> Iterator[str]:
        """All parts, for once."""
        while self._made:
            yield self._made.popleft()
        yield from _entries(entries) if self._rest is None else self._rest


def change_parts(record: ChangeRecord, ahead: EntriesAhead | None = None) -> Iterator[bytes]:
    """A Change, as JSON, from the journal's record: in parts, each of which is made when it is asked for.

    Its entries, which may be many, are put together from what all with the same programs have in common; `ahead`: they
    may have been made already.
    """
    told = {name: getattr(record, name) for name in _TOLD}
    text = Change.model_validate(told | {"entries": []}).model_dump_json()
    # No text can have the same in it, as its quotes would be escaped.
    before, _, after = text.partition('"entries":[]')
    texts = _entries(record.entries) if ahead is None else ahead.take(record.entries)
    text = f'{before}"entries":[{next(texts, "")}'
    for following in texts:
        yield text.encode()
        text = following
    yield f"{text}]{after}".encode()


def _entries(entries: EntryChanges) -> Iterator[str]:
    programs = {number: _program(each) for number, each in entries.programs.items()} | {EMPTY: "null"}
    lead = '{"index":'
    befores = {number: f',"before":{text},"after":' for number, text in programs.items()}
    afters = {number: text + "}," + lead for number, text in programs.items()}
    for start in range(0, len(entries), _AT_A_STRETCH):
        stop = start + _AT_A_STRETCH
        indexes = entries.indexes[start:stop]
        texts = [""] * (3 * len(indexes))
        texts[0::3] = map(str, indexes)
        texts[1::3] = map(befores.__getitem__, entries.before[start:stop])
        texts[2::3] = map(afters.__getitem__, entries.after[start:stop])
        texts[-1] = texts[-1].removesuffix("," + lead)
        yield ("," if start else "") + lead + "".join(texts)


def _program(record: ProgramRecord) -> str:
    # In an earlier boot's program the id is 0.
    return _PROGRAM.dump_json(record).decode().replace('"id":0,', '"id":null,', 1)
