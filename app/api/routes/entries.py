"""The entries of a map: /maps/{name}/entries."""

from array import array
from itertools import compress, islice
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from app.api import openapi
from app.api.audit import FACTS, program_fact
from app.api.authorization import check_entry, grant_of
from app.api.dependencies import (
    ConfirmWithin,
    DryRun,
    Force,
    Note,
    Warnings,
    add_audit_facts,
    context_of,
    service_of,
)
from app.api.encoding.changes import change_headers, entries_chunks
from app.api.encoding.entries import entry_json, entry_of, table_chunks, table_etag, waiting_of
from app.api.encoding.responses import Json, long_json
from app.api.openapi import BODY, KERNEL, answers, no_content, problems
from app.api.preconditions import PARAMETERS, READ_PARAMETERS, Conditions
from app.api.problems import HttpProblem
from app.api.routing import StrictRoute
from app.api.schemas import fields, parameters, requests, responses
from app.api.visibility import visible_entries, visible_graph
from app.service.changes.entries import Precondition, SetResult, clear_entry, set_entry
from app.service.errors import EntryEmpty, ServiceError
from app.service.graph.consequences import consequences
from app.service.graph.reader import in_slices
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.number_arrays import NUMBERS
from app.store.records import EMPTY, EntryChanges

router = APIRouter(route_class=StrictRoute, tags=["entries"])

_ENTRY = ("map-unknown", "index-out-of-range", "map-unavailable", *KERNEL)
_HEADERS = openapi.ETAG | openapi.DRY_RUN | openapi.CHANGE_ID
CHANGE = (
    "read-only",
    "entry-protected",
    "map-frozen",
    "change-conflict",
    "change-not-revertible",
    "journal-unavailable",
)
WRITE = (*CHANGE, "pin-moved")
_Set = responses.Entry | responses.DryEntry
_CHANGE = (*_ENTRY, *WRITE, "malformed-header", "precondition-failed")
REFERENCE = (
    "program-not-found",
    "program-incompatible",
    "program-busy",
    "program-unavailable",
    "not-a-program",
    "unsupported-flags",
    "pin-unusable",
    "pin-not-allowed",
)


def _precondition(request: Request, registry: Registry, held: HeldMap, index: int) -> Precondition | None:
    """Return what raises precondition-failed, with the current entry, where the headers forbid the change."""
    conditions = Conditions.of(request)
    if conditions.if_match is None and conditions.if_none_match is None:
        return None

    def check(program_id: int | None) -> None:
        current = None
        if program_id is not None:
            summary = registry.programs.describe(program_id)
            current = entry_of(registry, held.name, held.opened().id, index, summary, waiting_of(held, index))
        header = conditions.failed(None if current is None else current.etag)
        if header is not None:
            holds = "empty" if current is None else "the one in current"
            detail = f"{header} does not hold: the entry is {holds}; if you still want the change, send it for that"
            facts = {"current": None if current is None else current.model_dump(mode="json")}
            raise HttpProblem("precondition-failed", detail, facts=facts)

    return check


# The most used first: each route before it costs a request some microseconds.


@router.put(
    "/maps/{name}/entries/{index}",
    operation_id="set_entry",
    summary="Point an entry to a program",
    response_model=_Set,
    responses=answers(_Set, "It pointed to a program before.", headers=_HEADERS)
    | answers(_Set, "It was empty before.", 201, headers=_HEADERS)
    | problems(*_CHANGE, *REFERENCE, *BODY),
    openapi_extra=PARAMETERS,
)
async def set_entry_route(  # noqa: PLR0913, PLR0917 - the parts of a request
    request: Request,
    name: parameters.MapName,
    index: parameters.Index,
    body: requests.SetEntry,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    force: Force = False,
    warnings: Warnings = False,
) -> Response:
    """Point an entry to a program, by one overwrite.

    A packet sees the old program or the new one, and never an empty entry. To set what is there already is 200, with no
    write. If-Match holds among the callers of this service: the kernel has no compare-and-set, so a write of another
    tool between the check and the write is not noticed.

    It is refused with 409 `pin-moved` if the pin of the map, or of a program that is given by its name, was seen to
    lead to another object: a loader ran again.
    """
    service = service_of(request)
    held = service.registry.maps.get(name)
    result = await set_entry(
        service.changes,
        held,
        index,
        requests.program_ref(body.program),
        context_of(request.scope, note, confirm_within, force=force),
        flags=body.flags,
        precondition=_precondition(request, service.registry, held, index),
        dry_run=dry_run,
    )
    if result.fit is not None:
        answer = await _dry_answer(request, held, index, result)
    else:
        answer = set_answer(request.scope, service.registry, held, index, result)
        if warnings:
            told = await _entry_warnings(request, held, index, result.before or EMPTY, result.after.id)
            answer = _with_warnings(answer, told)
    return Json(answer.body, answer.status, answer.headers)


def set_answer(scope: Scope, registry: Registry, held: HeldMap, index: int, result: SetResult) -> responses.Answer:
    """Return the answer to a request that has set an entry. Both ways of a request give it."""
    waiting = waiting_of(held, index)
    etag, body = entry_json(registry, held.name, result.map_id, index, result.after, waiting)
    headers = {"ETag": etag}
    if result.change_id is not None:
        headers["Change-Id"] = str(result.change_id)
        before = None if result.before is None else registry.programs.record(result.before)
        scope[FACTS] = {
            "change": result.change_id,
            "map": held.name,
            "index": index,
            "before": program_fact(before),
            "after": {"name": result.after.name, "id": result.after.id},
        }
    return responses.Answer(201 if result.before is None else 200, headers, body)


async def _dry_answer(request: Request, held: HeldMap, index: int, result: SetResult) -> responses.Answer:
    """Return the answer to a request that would set an entry."""
    assert result.fit is not None
    registry = service_of(request).registry
    warnings = await warnings_of(request, held.name, result.entries)
    entry = entry_of(registry, held.name, result.map_id, index, result.after, waiting_of(held, index))
    dry = responses.DryEntry(**dict(entry) | {"fit": result.fit, "entries": [], "warnings": warnings}).model_dump_json()
    headers = {"ETag": entry.etag, "Dry-Run": "true"}
    status = 201 if result.before is None else 200
    return responses.Answer(status, headers, b"".join(entries_chunks(dry, result.entries)))


async def warnings_of(request: Request, name: str, entries: EntryChanges | None, *, is_made: bool = False) -> list[str]:
    """Return what a change makes worse, as far as the caller may know.

    Args:
        request: Of the caller.
        name: The map.
        entries: What changes. None: nothing.
        is_made: The change was made; else it was only tried.
    """
    service = service_of(request)
    held = service.registry.maps.find(name)
    if entries is None or held is None or held.object is None:
        return []
    try:
        graph = await service.graph.read()
    except ServiceError as error:
        if not is_made:
            raise
        return [f"what the change makes worse is not known: {error}"]  # the answer still has to tell that it was made
    part = await in_slices(visible_graph(grant_of(request.scope), graph))
    return await in_slices(consequences(graph, part, held.object.id, entries, is_made=is_made))


async def _entry_warnings(request: Request, held: HeldMap, index: int, before: int, after: int) -> list[str]:
    """Return what an entry makes worse by holding one program in place of another; `before` may be EMPTY."""
    if before == after:
        return []
    entries = EntryChanges(array(NUMBERS, [index]), array(NUMBERS, [before]), array(NUMBERS, [after]), {})
    return await warnings_of(request, held.name, entries, is_made=True)


def _with_warnings(answer: responses.Answer, warnings: list[str]) -> responses.Answer:
    """Return the answer about an entry with the member `warnings`."""
    body = answer.body.removesuffix(b"}") + b',"warnings":' + to_json(warnings) + b"}"
    return responses.Answer(answer.status, answer.headers, body)


@router.get(
    "/maps/{name}/entries/{index}",
    operation_id="get_entry",
    summary="Tell which program an entry points to",
    response_model=responses.Entry,
    responses=answers(responses.Entry, "The entry.", headers=openapi.ETAG)
    | {304: {"description": "Unchanged since If-None-Match.", "headers": openapi.ETAG}}
    | problems("entry-empty", "malformed-header", *_ENTRY),
    openapi_extra=READ_PARAMETERS,
)
async def get_entry(
    request: Request, name: parameters.MapName, index: parameters.Index, warnings: Warnings = False
) -> Response:
    """Return the program that an entry points to.

    Every request asks the kernel, so it also shows what other tools write. With `warnings=true` the answer is never
    304: what the entry makes worse also depends on other entries.
    """
    service = service_of(request)
    held = service.registry.maps.get(name)
    conditions = Conditions.for_reading(request)
    if warnings:
        program_id = held.opened().get(index) or EMPTY
        told = await _entry_warnings(request, held, index, EMPTY, program_id)
        answer = _with_warnings(read_answer(request.scope, service, held, index), told)
        return Json(answer.body, answer.status, answer.headers)
    answer = read_answer(request.scope, service, held, index)
    if conditions.not_modified(answer.headers["ETag"]):
        return Response(status_code=304, headers=answer.headers)
    return Json(answer.body, answer.status, answer.headers)


def read_answer(scope: Scope, service: Service, held: HeldMap, index: int) -> responses.Answer:
    """Return the answer to a request that reads an entry. Both ways of a request give it.

    Raises:
        HttpProblem: forbidden: the entry is beyond the bounds of the caller.
        EntryEmpty: It points to no program.
        IndexOutOfRange: It is not below max_entries.
        MapUnavailable: The map could not be opened.
        KernelError: The kernel refuses.
    """
    check_entry(scope, index)
    array = held.opened()
    program_id = array.get(index)
    service.drift.note_read_of_entry(held, index, program_id)
    if program_id is None:
        raise EntryEmpty(index)
    summary = service.registry.programs.describe(program_id)
    etag, body = entry_json(service.registry, held.name, array.id, index, summary, waiting_of(held, index))
    return responses.Answer(200, {"ETag": etag}, body)


@router.delete(
    "/maps/{name}/entries/{index}",
    operation_id="clear_entry",
    summary="Empty an entry",
    status_code=204,
    responses=no_content("It is empty.") | problems("entry-empty", *_CHANGE),
    openapi_extra=PARAMETERS,
)
async def clear_entry_route(
    request: Request,
    name: parameters.MapName,
    index: parameters.Index,
    allow_missing: Annotated[bool, Query(description="204 also where the entry is empty already.")] = False,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> Response:
    """Clear an entry. A tail call to it falls through from then on. The kernel may take 8 ms and more."""
    service = service_of(request)
    held = service.registry.maps.get(name)
    change = await clear_entry(
        service.changes,
        held,
        index,
        context_of(request.scope, note, confirm_within, force=force),
        precondition=_precondition(request, service.registry, held, index),
        allow_missing=allow_missing,
        dry_run=dry_run,
    )
    if change is not None:
        before = program_fact(next(iter(change.entries)).before)
        add_audit_facts(request.scope, change=change.id, map=name, index=index, before=before, after=None)
    return Response(status_code=204, headers=change_headers(dry_run=dry_run, change=change))


@router.get(
    "/maps/{name}/entries",
    operation_id="list_entries",
    summary="List the populated entries",
    response_model=responses.Entries,
    responses=answers(responses.Entries, "The entries that point to a program.", headers=openapi.ETAG)
    | {304: {"description": "Unchanged since If-None-Match.", "headers": openapi.ETAG}}
    | problems("map-unknown", "map-unavailable", "malformed-header", *KERNEL),
    openapi_extra=READ_PARAMETERS,
)
async def list_entries(
    request: Request,
    name: parameters.MapName,
    start: Annotated[fields.Decimal, Query(description="The lowest index of the page.")] = 0,
    limit: Annotated[
        fields.Positive | None,
        Query(description="The most entries a page has; all, if left out."),
    ] = None,
) -> Response:
    """List all entries that point to a program, by rising index. Empty entries are left out.

    The kernel is asked for each entry, one after another. If the table changes meanwhile, some entries may be from
    before.
    A caller with bounds gets the entries within them. The ETag is that of the whole table all the same.
    """
    service = service_of(request)
    registry, held = service.registry, service.registry.maps.get(name)
    conditions = Conditions.for_reading(request)
    found = await held.read()
    service.drift.note_read(held, found)
    array_ = held.opened()
    etag = table_etag(registry.kernel.boot_id, array_.id, found)
    if conditions.not_modified(etag):
        return Response(status_code=304, headers={"ETag": etag})
    shown = visible_entries(grant_of(request.scope), found)
    wanted = compress(range(start, len(shown)), shown[start:])
    page, following = array(NUMBERS, islice(wanted, limit)), next(wanted, None)
    table = responses.Entries(map=name, max_entries=array_.max_entries, etag=etag, entries=[], next=following)
    return long_json(table_chunks(registry, held, table, array_.id, page, found), {"ETag": etag})
