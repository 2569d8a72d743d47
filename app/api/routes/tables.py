"""A whole table, or several of its entries: PUT and PATCH of /maps/{name}/entries."""

from array import array
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
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
from app.api.encoding.changes import EntriesPrebuilt
from app.api.encoding.entries import table_etag
from app.api.encoding.responses import long_json
from app.api.openapi import BODY, KERNEL, answers, problems
from app.api.preconditions import TABLE_PARAMETERS, Conditions, header_parameter
from app.api.preferences import MINIMAL, prefers_minimal
from app.api.problems import HttpProblem
from app.api.routes.entries import REFERENCE, WRITE, warnings_of
from app.api.routing import TableRoute
from app.api.schemas import parameters, responses, table_requests
from app.api.table_changes import TableAnswer, count_facts, requested_entries, table_answer
from app.service.changes.origin import RequestContext
from app.service.changes.tables import RequestedEntries, TablePrecondition, TableResult, change_table

router = APIRouter(route_class=TableRoute, tags=["entries"])

_Result = responses.Applied | responses.DryApplied
_PREFER: Final = header_parameter(
    "Prefer",
    "`return=minimal` (RFC 7240): leave the entries out of the change in the answer. A dry run tells them all the "
    "same. Other preferences are ignored.",
    MINIMAL,
)
_PARAMETERS: Final = {"parameters": [*TABLE_PARAMETERS["parameters"], _PREFER]}
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


async def answer(
    request: Request,
    name: str,
    result: TableResult,
    *,
    dry_run: bool,
    warns: bool = False,
    prebuilt: EntriesPrebuilt | None = None,
    **facts: object,
) -> Response:
    """Return the answer with the entries, to a change of the map `name`.

    Args:
        request: Of the caller.
        name: The map.
        result: What became of the change.
        dry_run: Nothing was changed. Then it is always told what would get worse.
        warns: Tell what got worse.
        prebuilt: The entries, some of which may be encoded already.
        **facts: For the audit.
    """
    warnings: list[str] | None = None
    if dry_run:
        warnings = await warnings_of(request, name, result.entries)
    elif warns:
        changed = None if result.change is None else result.change.entries
        warnings = await warnings_of(request, name, changed, is_made=True)
    return _response(request, table_answer(result, dry_run=dry_run, prebuilt=prebuilt, facts=facts, warnings=warnings))


def _response(request: Request, answer: TableAnswer) -> Response:
    add_audit_facts(request.scope, **answer.facts)
    return long_json(answer.chunks, answer.headers)


async def _change(
    request: Request,
    name: str,
    requested: RequestedEntries,
    context: RequestContext,
    *,
    replace: bool,
    dry_run: bool,
    warns: bool,
) -> Response:
    service, prebuilt = service_of(request), EntriesPrebuilt()
    is_minimal = not (dry_run or warns) and prefers_minimal(request.headers.getlist("Prefer"))
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
    if is_minimal:
        return _response(request, table_answer(result, is_minimal=True, facts=count_facts(result)))
    return await answer(request, name, result, dry_run=dry_run, warns=warns, prebuilt=prebuilt, **count_facts(result))


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
    warnings: Warnings = False,
) -> Response:
    """Replace the whole table. Entries that are not listed are cleared. What GET answers can be PUT back.

    Everything that can be known is checked first. Then the sets are written in the order listed, and the clears by
    falling index. If the kernel refuses one, what was written is put back. Each entry changes at once, the table does
    not: list callees before the entries that lead to them.
    """
    context = context_of(request.scope, note, confirm_within, force=force)
    asked = requested_entries(body)
    return await _change(request, name, asked, context, replace=True, dry_run=dry_run, warns=warnings)


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
    warnings: Warnings = False,
) -> Response:
    """Change the entries listed, in that order. `"program": null` clears one. Checks and undo are those of PUT."""
    context = context_of(request.scope, note, confirm_within, force=force)
    return await _change(
        request, name, requested_entries(body), context, replace=False, dry_run=dry_run, warns=warnings
    )
