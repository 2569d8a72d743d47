"""What both ways of a change of several entries share: what a body asks for, and the answer.

The routes pass it on to Starlette, and the fast path to the connection.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from pydantic_core import to_json

from app.api.audit import entries_facts
from app.api.encoding.changes import EntriesPrebuilt, change_chunks, change_facts, change_headers, entries_chunks
from app.api.preferences import MINIMAL
from app.api.schemas import requests, responses
from app.api.schemas.table_requests import ListedProgram, ReplaceEntries, UpdateEntries
from app.service.changes.tables import RequestedEntries, TableResult
from app.service.registry.programs import ByName

# The bodies, by operation id.
BODIES: Final[Mapping[str, type[ReplaceEntries | UpdateEntries]]] = {
    "replace_entries": ReplaceEntries,
    "update_entries": UpdateEntries,
}


class TableAnswer(NamedTuple):
    """The answer to a change of several entries. Its status is 200.

    Attributes:
        headers: Its headers, but for those of every answer.
        chunks: Its JSON, without the newline at its end. There is one chunk where at most ENTRIES_PER_CHUNK entries
            were changed.
        facts: What the audit tells of the change.
    """

    headers: dict[str, str]
    chunks: Iterator[bytes]
    facts: dict[str, object]


def requested_entries(body: ReplaceEntries | UpdateEntries) -> RequestedEntries:
    """Return what a body wants entries to hold."""
    if body.entries is not None:
        return _requested(body.entries.indexes, body.entries.programs)
    programs = body.programs or ()
    return _requested(range(len(programs)), programs)


def _requested(indexes: Sequence[int], given: Sequence[ListedProgram]) -> RequestedEntries:
    try:
        # Objects cannot be told apart by their hash, so these are names.
        names = cast("Sequence[str | None]", given)
        return RequestedEntries.of(indexes, names, lambda name: None if name is None else ByName(name))
    except TypeError:
        # Of the same object there is one for all entries that have it.
        keys = [each if each is None or isinstance(each, str) else id(each) for each in given]
        objects = dict(zip(keys, given, strict=True))
        refs = {key: None if each is None else requests.program_ref(each) for key, each in objects.items()}
        return RequestedEntries.of(indexes, keys, refs.__getitem__)


def table_answer(
    result: TableResult,
    *,
    dry_run: bool = False,
    is_minimal: bool = False,
    prebuilt: EntriesPrebuilt | None = None,
    facts: Mapping[str, object] = MappingProxyType({}),
    warnings: Sequence[str] | None = None,
) -> TableAnswer:
    """Return the answer.

    Args:
        result: What became of the change.
        dry_run: Nothing was changed.
        is_minimal: Leave the entries out.
        prebuilt: The entries, some of which may be encoded already.
        facts: What the audit tells beside the entries, if something was changed.
        warnings: What gets worse. None: the request does not ask for it.
    """
    change = result.change
    headers = change_headers(dry_run=dry_run, change=change)
    if is_minimal:
        headers["Preference-Applied"] = MINIMAL
    chunks = iter((_minimal(result),)) if is_minimal else _applied(result, prebuilt or EntriesPrebuilt(), warnings)
    told = {} if change is None else {"change": change.id, "map": change.map, **facts, **entries_facts(change.entries)}
    return TableAnswer(headers, chunks, told)


def count_facts(result: TableResult) -> dict[str, object]:
    """Return what the audit tells of a PUT or PATCH of a table beside the entries."""
    return {"set": result.set, "cleared": result.cleared}


def _minimal(result: TableResult) -> bytes:
    change = None if result.change is None else change_facts(result.change)
    minimal = responses.Applied.model_validate({"change": change, **_counts(result)})
    return minimal.model_dump_json().encode()


def _counts(result: TableResult) -> dict[str, int]:
    return {"set": result.set, "cleared": result.cleared, "unchanged": result.unchanged}


def _applied(result: TableResult, prebuilt: EntriesPrebuilt, warnings: Sequence[str] | None) -> Iterator[bytes]:
    """Encode the answer with the entries, in chunks."""
    if result.fit is not None:
        told = list(warnings or ())
        dry = responses.DryApplied(change=None, **_counts(result), fit=result.fit, entries=[], warnings=told)
        yield from entries_chunks(dry.model_dump_json(), result.entries)
        return
    asked = {} if warnings is None else {"warnings": warnings}
    applied = to_json({"change": None, **_counts(result), **asked})  # a responses.Applied, in a tenth of the time
    if result.change is None:
        yield applied
        return
    before, _, after = applied.partition(b"null")
    part = before
    for following in change_chunks(result.change, prebuilt):
        if part is not before:
            yield part
            part = b""
        part += following
    yield part + after
