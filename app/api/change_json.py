"""Changes, as they are answered: of one entry, or of a whole table of them."""

from collections.abc import Iterator
from typing import Final

from pydantic import TypeAdapter

from app.api.outputs import Change
from app.store.records import EMPTY, EntryChanges, ProgramRecord
from app.store.records import Change as ChangeRecord

_AT_A_STRETCH: Final = 4096  # entries: about 1 ms
_PROGRAM: Final = TypeAdapter(ProgramRecord)
_TOLD: Final = [name for name in Change.model_fields if name != "entries"]


def change_json(record: ChangeRecord) -> bytes:
    """The whole of it."""
    return b"".join(change_parts(record))


def change_parts(record: ChangeRecord) -> Iterator[bytes]:
    """A Change, as JSON, from the journal's record: in parts, each of which is made when it is asked for.

    Its entries, which may be many, are put together from what all with the same programs have in common.
    """
    told = {name: getattr(record, name) for name in _TOLD}
    text = Change.model_validate(told | {"entries": []}).model_dump_json()
    # No text can have the same in it, as its quotes would be escaped.
    before, _, after = text.partition('"entries":[]')
    texts = _entries(record.entries)
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
