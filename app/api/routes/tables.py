"""A whole table, or several of its entries: PUT and PATCH of /maps/{name}/entries."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi, preferences
from app.api.audit import entries_facts
from app.api.dependencies import (
    ConfirmWithin,
    DryRun,
    Force,
    Note,
    add_audit_facts,
    change_headers,
    context_of,
    service_of,
)
from app.api.encoding.changes import EntriesPrebuilt, change_chunks, change_summary, entries_chunks
from app.api.encoding.entries import table_etag
from app.api.encoding.responses import Json, long_json
from app.api.openapi import BODY, KERNEL, answers, problems
from app.api.preconditions import TABLE_PARAMETERS, Conditions
from app.api.problems import HttpProblem
from app.api.routes.entries import REFERENCE, WRITE
from app.api.routing import TableRoute
from app.api.schemas import parameters, requests, responses, table_requests
from app.service.changes.origin import RequestContext
from app.service.changes.tables import RequestedEntries, TablePrecondition, TableResult, change_table
from app.service.registry.programs import ByName

router = APIRouter(route_class=TableRoute, tags=["entries"])

_Result = responses.Applied | responses.DryApplied | responses.MinimalApplied
_PARAMETERS: Final = {"parameters": [*TABLE_PARAMETERS["parameters"], preferences.PARAMETER]}
_RESPONSES = (
    answers(
        _Result, "What was done.", headers=openapi.DRY_RUN | openapi.CHANGE_ID | openapi.PREFERENCE
    )
    | problems(
        "map-unknown",
        "map-unavailable",
        *WRITE,
        "malformed-header",
        "precondition-failed",
        "duplicate-index",
        "index-out-of-range",
        *REFERENCE,
        *BODY,
        *KERNEL,
        in_body="index-out-of-range",
    )
)  # fmt: skip


def _requested(indexes: Sequence[int], given: Sequence[table_requests.ListedProgram]) -> RequestedEntries:
    """Return what a body wants entries to hold."""
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


def _precondition(request: Request) -> TablePrecondition:
    conditions = Conditions.of(request)
    boot_id = service_of(request).registry.kernel.boot_id

    def check(map_id: int, ids: "array[int]") -> None:
        if conditions.if_match is None and conditions.if_none_match is None:
            return
        etag = table_etag(boot_id, map_id, ids)
        header = conditions.failed(etag)
        if header is not None:
            detail = (
                f"{header} does not hold: the table's tag is {etag}; if you still want the change, send it with that"
            )
            raise HttpProblem("precondition-failed", detail, facts={"current": {"etag": etag}})

    return check


def _applied(result: TableResult, prebuilt: EntriesPrebuilt) -> Iterator[bytes]:
    """Encode the answer to a change of several entries, in chunks."""
    counts = {"set": result.set, "cleared": result.cleared, "unchanged": result.unchanged}
    if result.fit is not None:
        dry = responses.DryApplied(change=None, **counts, fit=result.fit, entries=[]).model_dump_json()
        yield from entries_chunks(dry, result.entries)
        return
    applied = responses.Applied(change=None, **counts).model_dump_json().encode()
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


def answer(
    request: Request, result: TableResult, *, dry_run: bool, prebuilt: EntriesPrebuilt | None = None, **facts: object
) -> Response:
    """Return the answer with the entries. `facts` go to the audit, if something was changed."""
    _audit(request, result, facts)
    return long_json(
        _applied(result, prebuilt or EntriesPrebuilt()), change_headers(dry_run=dry_run, change=result.change)
    )


def _minimal_answer(request: Request, result: TableResult, **facts: object) -> Response:
    """Return the answer without the entries."""
    _audit(request, result, facts)
    change = None if result.change is None else change_summary(result.change)
    minimal = responses.MinimalApplied(
        change=change, set=result.set, cleared=result.cleared, unchanged=result.unchanged
    )
    headers = change_headers(dry_run=False, change=result.change)
    return Json(minimal, headers=headers | {"Preference-Applied": preferences.MINIMAL})


def _audit(request: Request, result: TableResult, facts: Mapping[str, object]) -> None:
    if result.change is not None:
        change = result.change
        add_audit_facts(request.scope, change=change.id, map=change.map, **facts, **entries_facts(change.entries))


async def _change(
    request: Request, name: str, requested: RequestedEntries, context: RequestContext, *, replace: bool, dry_run: bool
) -> Response:
    service, prebuilt = service_of(request), EntriesPrebuilt()
    is_minimal = not dry_run and preferences.prefers_minimal(request)
    result = await change_table(
        service.changes,
        service.registry.maps.get(name),
        requested,
        context,
        replace=replace,
        precondition=_precondition(request),
        dry_run=dry_run,
        background_steps=None if is_minimal else prebuilt.build,
    )
    counts = {"set": result.set, "cleared": result.cleared}
    if is_minimal:
        return _minimal_answer(request, result, **counts)
    return answer(request, result, dry_run=dry_run, prebuilt=prebuilt, **counts)


@router.put(
    "/maps/{name}/entries",
    operation_id="replace_entries",
    summary="Replace the whole table",
    response_model=_Result,
    responses=_RESPONSES,
    openapi_extra=_PARAMETERS,
)
async def replace_entries(
    request: Request,
    name: parameters.MapName,
    body: table_requests.ReplaceEntries,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> Response:
    """Replace the whole table. Entries that are not listed are cleared. What GET answers can be PUT back.

    Everything that can be known is checked first. Then the sets are written in the order listed, and the clears by
    falling index. If the kernel refuses one, what was written is put back. Each entry changes at once, the table does
    not: list callees before the entries that lead to them.
    """
    if body.entries is not None:
        requested = _requested(body.entries.indexes, body.entries.programs)
    else:
        programs = body.programs or ()
        requested = _requested(range(len(programs)), programs)
    context = context_of(request.scope, note, confirm_within, force=force)
    return await _change(request, name, requested, context, replace=True, dry_run=dry_run)


@router.patch(
    "/maps/{name}/entries",
    operation_id="update_entries",
    summary="Change several entries",
    response_model=_Result,
    responses=_RESPONSES,
    openapi_extra=_PARAMETERS,
)
async def update_entries(
    request: Request,
    name: parameters.MapName,
    body: table_requests.UpdateEntries,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> Response:
    """Change the entries listed, in that order. `"program": null` clears one. Checks and undo are those of PUT."""
    requested = _requested(body.entries.indexes, body.entries.programs)
    context = context_of(request.scope, note, confirm_within, force=force)
    return await _change(request, name, requested, context, replace=False, dry_run=dry_run)
