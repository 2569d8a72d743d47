"""The entries of a map: /maps/{name}/entries."""

from array import array
from itertools import compress, islice
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from app.api import openapi
from app.api.dependencies import (
    ConfirmWithin,
    DryRun,
    Note,
    changes_of,
    headers_of,
    origin_of,
    registry_of,
    tell,
    upkeep_of,
)
from app.api.encoding.entries import entry_json, entry_of, table_chunks
from app.api.encoding.responses import long_json
from app.api.openapi import BODY, KERNEL, answers, no_content, problems
from app.api.preconditions import PARAMETERS, READ_PARAMETERS, Conditions, table_etag
from app.api.problems import HttpProblem
from app.api.routing import StrictRoute
from app.api.schemas import fields, requests, responses
from app.service.changes.entries import Precondition, SetResult, clear_entry, set_entry
from app.service.errors import EntryEmpty
from app.service.lifecycle import Upkeep
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.records import NUMBERS

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
_CHANGE = (*_ENTRY, *CHANGE, "malformed-header", "precondition-failed")
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


def _precondition(request: Request, registry: Registry, held: HeldMap, index: int) -> Precondition:
    """Raises precondition-failed, with the current entry, where the headers forbid the change."""
    conditions = Conditions.of(request)

    def check(program_id: int | None) -> None:
        if conditions.if_match is None and conditions.if_none_match is None:
            return
        current = None
        if program_id is not None:
            summary = registry.programs.describe(program_id)
            current = entry_of(registry, held.name, held.opened().id, index, summary)
        header = conditions.failed(None if current is None else current.etag)
        if header is not None:
            detail = f"{header} does not hold: the entry is {'empty' if current is None else 'as current tells'}"
            facts = {"current": None if current is None else current.model_dump(mode="json")}
            raise HttpProblem("precondition-failed", detail, facts=facts)

    return check


# The most used first: each route before it costs a request some microseconds.


@router.put(
    "/maps/{name}/entries/{index}",
    operation_id="set_entry",
    summary="Point an entry to a program",
    response_model=responses.Entry | responses.DryEntry,
    responses=answers(responses.Entry | responses.DryEntry, "It pointed to a program before.", headers=_HEADERS)
    | answers(responses.Entry | responses.DryEntry, "It was empty before.", 201, headers=_HEADERS)
    | problems(*_CHANGE, *REFERENCE, *BODY),
    openapi_extra=PARAMETERS,
)
async def set_entry_route(
    request: Request,
    name: fields.MapName,
    index: fields.Index,
    body: requests.SetEntry,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """One overwrite: a packet sees the old program or the new one, and never an empty entry.

    If-Match holds among the callers of this service: the kernel has no compare-and-set, so a write by somebody else's
    tool between the check and the write goes unseen. Setting what is there already is 200, with no write.
    """
    registry = registry_of(request)
    held = registry.maps.get(name)
    result = await set_entry(
        changes_of(request),
        held,
        index,
        requests.program_ref(body.program),
        origin_of(request, note, confirm_within),
        flags=body.flags,
        precondition=_precondition(request, registry, held, index),
        dry_run=dry_run,
    )
    status, etag, answer = set_answer(request.scope, registry, held, index, result)
    return responses.Json(answer, status, headers_of(dry_run=dry_run, change=result.change, ETag=etag))


def set_answer(
    scope: Scope, registry: Registry, held: HeldMap, index: int, result: SetResult
) -> tuple[int, str, bytes]:
    """The status, the tag and the entry as JSON, once it is set; the audit is told."""
    if result.change is not None:
        tell(scope, change=result.change.id, map=held.name, index=index, before=result.before, after=result.after.id)
    etag, entry = entry_json(registry, held.name, result.map_id, index, result.after)
    if result.fit is not None:
        dry = entry_of(registry, held.name, result.map_id, index, result.after)
        entry = responses.DryEntry(**dict(dry), fit=result.fit).model_dump_json().encode()
    return 201 if result.before is None else 200, etag, entry


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
async def get_entry(request: Request, name: fields.MapName, index: fields.Index) -> Response:
    """The kernel is asked anew each time, so this also shows what somebody else's tool has put there."""
    registry = registry_of(request)
    held = registry.maps.get(name)
    conditions = Conditions.for_reading(request)
    etag, entry = read_entry(registry, upkeep_of(request), held, index)
    if conditions.not_modified(etag):
        return Response(status_code=304, headers={"ETag": etag})
    return responses.Json(entry, headers={"ETag": etag})


def read_entry(registry: Registry, upkeep: Upkeep, held: HeldMap, index: int) -> tuple[str, bytes]:
    """The tag of an entry, and itself as JSON. Errors: EntryEmpty, IndexOutOfRange, MapUnavailable, KernelError."""
    array = held.opened()
    program_id = array.get(index)
    upkeep.drift.note_read_of_entry(held, index, program_id)
    if program_id is None:
        raise EntryEmpty(index)
    return entry_json(registry, held.name, array.id, index, registry.programs.describe(program_id))


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
    name: fields.MapName,
    index: fields.Index,
    allow_missing: Annotated[bool, Query(description="204 also where the entry is empty already.")] = False,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """From now on a tail call to this index falls through. It may take the kernel 8 ms and more."""
    registry = registry_of(request)
    held = registry.maps.get(name)
    change = await clear_entry(
        changes_of(request),
        held,
        index,
        origin_of(request, note, confirm_within),
        precondition=_precondition(request, registry, held, index),
        allow_missing=allow_missing,
        dry_run=dry_run,
    )
    if change is not None:
        tell(request.scope, change=change.id, map=name, index=index, before=change.entries.before[0], after=None)
    return Response(status_code=204, headers=headers_of(dry_run=dry_run, change=change))


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
    name: fields.MapName,
    start: Annotated[fields.Decimal, Query(description="The lowest index of the page.")] = 0,
    limit: Annotated[
        fields.Positive | None,
        Query(description="The most entries a page has; all, if left out."),
    ] = None,
) -> Response:
    """All entries that point to a program, by rising index; empty ones are left out.

    Each entry is asked of the kernel by itself: in a table that changes meanwhile, some may be from before.
    """
    registry = registry_of(request)
    held = registry.maps.get(name)
    conditions = Conditions.for_reading(request)
    found = await held.read()
    upkeep_of(request).drift.note_read(held, found)
    array_ = held.opened()
    etag = table_etag(registry.kernel.boot_id, array_.id, found)
    if conditions.not_modified(etag):
        return Response(status_code=304, headers={"ETag": etag})
    wanted = compress(range(start, len(found)), found[start:])
    page, following = array(NUMBERS, islice(wanted, limit)), next(wanted, None)
    table = responses.Entries(map=name, max_entries=array_.max_entries, etag=etag, entries=[], next=following)
    return long_json(table_chunks(registry, table, array_.id, page, found), {"ETag": etag})
