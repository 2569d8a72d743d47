"""Tables: what entries are to hold, on the nodes that a selector matches; and their revisions."""

import asyncio
import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.encoding.responses import Json
from app.api.openapi import BODY, answers
from app.api.preconditions import Conditions, header_parameter
from app.api.problems import HttpProblem
from app.fleet.api import authorization, changes, dry_runs, reading, showing
from app.fleet.api.parameters import DryRun, Note, Table, audit, caller_of, precondition_of, state_of
from app.fleet.api.route import STORE, FleetRoute, FleetTableRoute, problems
from app.fleet.api.schemas import requests, responses
from app.fleet_store import documents, keys
from app.fleet_store.specification import BadSpecification, Specification

router = APIRouter(route_class=FleetRoute, tags=["tables"])
_tables = APIRouter(route_class=FleetTableRoute, tags=["tables"])

_CONDITIONS: Final[dict[str, Any]] = {
    "parameters": [
        header_parameter(
            "If-Match", "Only if the table has one of these tags. `*`: only if there is such a table.", '"4711"'
        ),
        header_parameter("If-None-Match", "`*`: only if there is no such table.", "*"),
    ]
}
READ_CONDITIONS: Final[dict[str, Any]] = {
    "parameters": [header_parameter("If-None-Match", "Answer 304 if it still has one of these tags.", '"4711"')]
}
NOT_MODIFIED: Final[openapi.Responses] = {304: {"description": "It is still that of If-None-Match."}}


@router.get(
    "/fleet/tables",
    operation_id="list_tables",
    summary="List the tables",
    response_model=responses.FleetTables,
    responses=answers(responses.FleetTables, "All tables that the caller may see.") | problems(*STORE),
)
async def list_tables(request: Request) -> Response:
    """List the tables by name, without what they hold."""
    tables = await reading.read_tables(state_of(request).etcd)
    shown = [each for each in tables if authorization.may_see_table(request, each.newest.table)]
    return Json(responses.FleetTables(tables=[showing.table_summary_of(each) for each in shown]))


@router.get(
    "/fleet/tables/{table}",
    operation_id="get_table",
    summary="Get a table",
    response_model=responses.FleetTable,
    responses=answers(responses.FleetTable, "Its newest revision.", headers=openapi.ETAG)
    | NOT_MODIFIED
    | problems("table-unknown", "malformed-header", *STORE),
    openapi_extra=READ_CONDITIONS,
)
async def get_table(request: Request, table: Table) -> Response:
    """Return what a table is to hold, and where. It can be sent back by PUT."""
    found = await reading.read_table(state_of(request).etcd, table)
    if Conditions.for_reading(request).not_modified(found.etag):
        return Response(status_code=304, headers={"ETag": found.etag})
    answer = await asyncio.to_thread(showing.table_of, found)
    return Json(answer, headers={"ETag": found.etag})


@_tables.put(
    "/fleet/tables/{table}",
    operation_id="put_table",
    summary="Say what a table is to hold, and start its rollout",
    status_code=202,
    response_model=responses.StartedRollout,
    responses=answers(
        responses.StartedRollout,
        "The rollout has started.",
        202,
        headers=openapi.LOCATION | openapi.ETAG,
    )
    | answers(
        responses.StartedRollout | responses.TableDryRun,
        "The table and all of its nodes are like that already; or this is a dry run.",
        headers=openapi.ETAG | openapi.DRY_RUN,
    )
    | problems(
        "no-node-matches", "nodes-not-ready", "spec-too-large", "rollout-in-progress", "precondition-failed",
        "malformed-header", "read-only", *BODY, *STORE,
    ),
    openapi_extra=_CONDITIONS,
)  # fmt: skip
async def put_table(
    request: Request, table: Table, body: requests.PutFleetTable, note: Note = None, dry_run: DryRun = False
) -> Response:
    """Write a new revision of a table, and bring it to its nodes in waves. Location is its rollout.

    A dry run asks each node that is connected: its service tries the table, and says what would change there. It waits
    10 s at most.
    """
    state, caller = state_of(request), caller_of(request, note)
    strategy = documents.Strategy() if body.strategy is None else body.strategy.document()
    specification, packed = await asyncio.to_thread(_specification, body)
    await _check_bounds(request, table, body.selector.match, specification)
    wanted = documents.TableRevision(
        table=table,
        revision=1,  # set when it is planned
        selector=body.selector.match,
        strategy=strategy,
        specification=packed,
        by=caller.name,
        at=time.time(),
        note=caller.note,
    )
    planned = await changes.plan_table(state.etcd, wanted, precondition_of(request, "table"))
    if dry_run:
        answer = await dry_runs.dry_run(state.etcd, state.signer, planned)
        return Json(answer, headers={"Dry-Run": "true"})
    return await _started(request, planned)


def _specification(body: requests.PutFleetTable) -> tuple[Specification, bytes]:
    """Return what a table is to hold, and its compact form.

    Raises:
        HttpProblem: spec-too-large.
    """
    try:
        specification = body.specification()
        return specification, specification.to_bytes()
    except BadSpecification as error:
        detail = f"{error}; use fewer programs, or put entries with the same program beside each other"
        raise HttpProblem("spec-too-large", detail) from error


async def _check_bounds(request: Request, table: str, selector: dict[str, str], specification: Specification) -> None:
    """Check that a revision, and the one that it replaces, are within the bounds of the caller.

    Raises:
        HttpProblem: forbidden.
    """
    authorization.check_labels(request.scope, selector, "selector")
    authorization.check_specification(request.scope, specification)
    before = await reading.find_table(state_of(request).etcd, table)
    if before is not None:
        authorization.check_labels(request.scope, before.newest.selector, f"the selector of table {table!r} so far")


async def _started(request: Request, planned: changes.Planned) -> Response:
    """Start a rollout, unless the table is like that already."""
    state = state_of(request)
    if planned.is_known:
        assert planned.before is not None  # else it is not known
        found, rollout, status = planned.before, None, 200
    else:
        found = await changes.start(state.etcd, planned)
        rollout, status = keys.rollout_id(planned.revision.table, planned.revision.revision), 202
    shown = await asyncio.to_thread(showing.table_of, found)
    waves = [] if rollout is None else [list(wave) for wave in planned.plan.waves]
    headers = {"ETag": found.etag} | ({} if rollout is None else {"Location": f"/fleet/rollouts/{rollout}"})
    audit(request, table=found.newest.table, revision=found.newest.revision, rollout=rollout)
    return Json(responses.StartedRollout(table=shown, rollout=rollout, waves=waves), status, headers)


@router.delete(
    "/fleet/tables/{table}",
    operation_id="delete_table",
    summary="Take a table out of the fleet",
    status_code=204,
    responses=openapi.no_content("Nothing is desired any more.", openapi.DRY_RUN)
    | problems("table-unknown", "rollout-in-progress", "precondition-failed", "malformed-header", "read-only", *STORE),
    openapi_extra=_CONDITIONS,
)
async def delete_table(request: Request, table: Table, note: Note = None, dry_run: DryRun = False) -> Response:
    """Stop caring for a table. No entry of any node changes; its revisions and rollouts stay as its history."""
    etcd = state_of(request).etcd
    found = await reading.read_table(etcd, table)
    authorization.check_labels(request.scope, found.newest.selector, "selector")
    await changes.delete_table(
        etcd, table, caller_of(request, note), precondition_of(request, "table"), dry_run=dry_run
    )
    if not dry_run:
        audit(request, table=table)
    return Response(status_code=204, headers={"Dry-Run": "true"} if dry_run else None)


@router.get(
    "/fleet/tables/{table}/revisions",
    operation_id="list_revisions",
    summary="List the revisions of a table",
    response_model=responses.TableRevisions,
    responses=answers(responses.TableRevisions, "A page of revisions, the newest first.")
    | problems("table-unknown", *STORE),
)
async def list_revisions(
    request: Request,
    table: Table,
    before: Annotated[int | None, Query(ge=1, le=99_999_999, description="Those before this one only.")] = None,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> Response:
    """List what a table was to hold: who said so, when and why. The last 100 are kept, and those that a node needs."""
    etcd = state_of(request).etcd
    written = await etcd.range(keys.revisions(table), keys_only=True)
    if not written.items:
        raise reading.table_unknown(table)
    numbers = [int(keys.last_part(key)) for key in written.items]
    wanted = [each for each in reversed(numbers) if before is None or each < before]
    found = [await reading.read_revision(etcd, table, number) for number in wanted[:limit]]
    shown = await asyncio.to_thread(lambda: [showing.revision_of(each) for each in found])
    following = wanted[limit - 1] if len(wanted) > limit else None
    return Json(responses.TableRevisions(revisions=shown, next=following))


@router.post(
    "/fleet/rollouts",
    operation_id="start_rollout",
    summary="Bring a revision to its nodes again, or go back to it",
    status_code=202,
    response_model=responses.StartedRollout,
    responses=answers(
        responses.StartedRollout, "The rollout has started.", 202, headers=openapi.LOCATION | openapi.ETAG
    )
    | answers(
        responses.StartedRollout | responses.TableDryRun,
        "The table and all of its nodes are like that already; or this is a dry run.",
        headers=openapi.ETAG | openapi.DRY_RUN,
    )
    | problems(
        "table-unknown", "revision-unknown", "no-node-matches", "nodes-not-ready", "rollout-in-progress",
        "spec-too-large", "precondition-failed", "malformed-header", "read-only", *BODY, *STORE,
    ),
    openapi_extra=_CONDITIONS,
)  # fmt: skip
async def start_rollout(
    request: Request, body: requests.StartRollout, note: Note = None, dry_run: DryRun = False
) -> Response:
    """Write a revision with the content of an earlier one, and bring it to its nodes in waves.

    With the newest revision, nodes that were added since get the table.
    """
    state, caller = state_of(request), caller_of(request, note)
    authorization.check_table(request.scope, body.table)
    await reading.read_table(state.etcd, body.table)
    earlier = await reading.read_revision(state.etcd, body.table, body.revision)
    specification = await asyncio.to_thread(Specification.from_bytes, earlier.specification)
    await _check_bounds(request, body.table, earlier.selector, specification)
    wanted = documents.TableRevision(
        table=body.table,
        revision=1,  # set when it is planned
        selector=earlier.selector,
        strategy=earlier.strategy,
        specification=earlier.specification,
        by=caller.name,
        at=time.time(),
        note=caller.note,
        same_as=earlier.same_as or earlier.revision,
    )
    planned = await changes.plan_table(state.etcd, wanted, precondition_of(request, "table"))
    if dry_run:
        answer = await dry_runs.dry_run(state.etcd, state.signer, planned)
        return Json(answer, headers={"Dry-Run": "true"})
    return await _started(request, planned)


router.routes.extend(_tables.routes)
