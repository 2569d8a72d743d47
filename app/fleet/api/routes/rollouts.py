"""Rollouts: how far they are, and what a person may do to them."""

from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.encoding.responses import Json
from app.api.openapi import answers
from app.api.schemas.fields import Name
from app.fleet.api import authorization, changes, reading, showing
from app.fleet.api.parameters import DryRun, Note, RolloutId, audit, caller_of, state_of
from app.fleet.api.reading import etag_of
from app.fleet.api.route import STORE, FleetRoute, problems
from app.fleet.api.schemas import responses
from app.fleet_store.documents import Phase

router = APIRouter(route_class=FleetRoute, tags=["rollouts"])

_MOVING: Final = problems("rollout-unknown", "rollout-finished", "rollout-phase-conflict", "read-only", *STORE)


@router.get(
    "/fleet/rollouts",
    operation_id="list_rollouts",
    summary="List rollouts",
    response_model=responses.FleetRollouts,
    responses=answers(responses.FleetRollouts, "The newest first.") | problems(*STORE),
)
async def list_rollouts(
    request: Request,
    table: Annotated[Name | None, Query(description="Of this table only.")] = None,
    phase: Annotated[Phase | None, Query(description="In this phase only.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List rollouts, those that have ended too. The last 100 of each table are kept, and those that a node needs."""
    if table is not None:
        authorization.check_table(request.scope, table)
    found = [
        showing.summary_of(each)
        for each in await reading.read_rollouts(state_of(request).etcd)
        if authorization.may_see_table(request, each.rollout.table)
        and table in {None, each.rollout.table}
        and phase in {None, each.rollout.phase}
    ]
    return Json(responses.FleetRollouts(rollouts=found[:limit]))


@router.get(
    "/fleet/rollouts/{rollout}",
    operation_id="get_rollout",
    summary="Get a rollout",
    response_model=responses.FleetRollout,
    responses=answers(responses.FleetRollout, "How far it is.", headers=openapi.ETAG)
    | problems("rollout-unknown", *STORE),
)
async def get_rollout(request: Request, rollout: RolloutId) -> Response:
    """Return a rollout: its phase and why, how many nodes are in which state, and the first that failed."""
    return await _shown(request, rollout)


async def _shown(request: Request, rollout: str) -> Response:
    etcd = state_of(request).etcd
    stored = await _read(request, rollout)
    plan, nodes = await reading.read_plan(etcd, rollout), await reading.read_nodes(etcd)
    return Json(showing.rollout_of(stored, plan, nodes), headers={"ETag": etag_of(stored.item)})


async def _read(request: Request, rollout: str) -> reading.StoredRollout:
    """Return a rollout that the caller may see."""
    stored = await reading.read_rollout(state_of(request).etcd, rollout)
    authorization.check_table(request.scope, stored.rollout.table)
    return stored


@router.get(
    "/fleet/rollouts/{rollout}/nodes",
    operation_id="list_rollout_nodes",
    summary="List the nodes of a rollout",
    response_model=responses.RolloutNodes,
    responses=answers(responses.RolloutNodes, "In the order of their turns.") | problems("rollout-unknown", *STORE),
)
async def list_rollout_nodes(
    request: Request,
    rollout: RolloutId,
    state: Annotated[responses.NodeInRollout | None, Query(description="In this state only.")] = None,
    after: Annotated[Name | None, Query(description="Those after this node only.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """List the nodes of a rollout with the state of each, and why it failed."""
    etcd = state_of(request).etcd
    stored = await _read(request, rollout)
    plan, nodes = await reading.read_plan(etcd, rollout), await reading.read_nodes(etcd)
    told = showing.rollout_nodes_of(stored.rollout, plan, nodes)
    names = [each.node for each in told]
    told = told[names.index(after) + 1 if after in names else 0 :]
    shown = [each for each in told if state in {None, each.state}]
    following = shown[limit - 1].node if len(shown) > limit else None
    return Json(responses.RolloutNodes(nodes=shown[:limit], next=following))


@router.post(
    "/fleet/rollouts/{rollout}/pause",
    operation_id="pause_rollout",
    summary="Pause a rollout",
    response_model=responses.FleetRollout,
    responses=answers(responses.FleetRollout, "It is paused.", headers=openapi.DRY_RUN) | _MOVING,
)
async def pause_rollout(request: Request, rollout: RolloutId, note: Note = None, dry_run: DryRun = False) -> Response:
    """Open no more nodes. Those that have the table keep it."""
    return await _move(request, rollout, "pause", note, dry_run=dry_run)


@router.post(
    "/fleet/rollouts/{rollout}/resume",
    operation_id="resume_rollout",
    summary="Resume a rollout",
    response_model=responses.FleetRollout,
    responses=answers(responses.FleetRollout, "It goes on.", headers=openapi.DRY_RUN) | _MOVING,
)
async def resume_rollout(request: Request, rollout: RolloutId, note: Note = None, dry_run: DryRun = False) -> Response:
    """Go on with a rollout that is paused or halted."""
    return await _move(request, rollout, "resume", note, dry_run=dry_run)


@router.post(
    "/fleet/rollouts/{rollout}/abort",
    operation_id="abort_rollout",
    summary="Abort a rollout",
    response_model=responses.FleetRollout,
    responses=answers(responses.FleetRollout, "Its nodes go back.", headers=openapi.DRY_RUN) | _MOVING,
)
async def abort_rollout(request: Request, rollout: RolloutId, note: Note = None, dry_run: DryRun = False) -> Response:
    """Set all nodes that have the table back to what they had, at once. An aborted rollout cannot go on."""
    return await _move(request, rollout, "abort", note, dry_run=dry_run)


async def _move(request: Request, rollout: str, step: str, note: str | None, *, dry_run: bool) -> Response:
    state = state_of(request)

    async def check(stored: reading.StoredRollout) -> None:
        """Check that the rollout is within the bounds of the caller."""
        authorization.check_table(request.scope, stored.rollout.table)
        revision = await reading.read_revision(state.etcd, stored.rollout.table, stored.rollout.revision)
        authorization.check_labels(request.scope, revision.selector, "selector")

    await changes.move_rollout(state.etcd, rollout, step, caller_of(request, note), check, dry_run=dry_run)
    if not dry_run:
        audit(request, rollout=rollout)
    response = await _shown(request, rollout)
    if dry_run:
        response.headers["Dry-Run"] = "true"
    return response
