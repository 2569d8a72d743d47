"""Nodes: their labels, how they are, and what they say."""

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.encoding.responses import Json
from app.api.openapi import BODY, answers
from app.api.preconditions import header_parameter
from app.api.problems import HttpProblem
from app.api.schemas.fields import Name
from app.fleet.api import authorization, changes, reading, showing
from app.fleet.api.parameters import DryRun, Node, Note, audit, caller_of, precondition_of, state_of
from app.fleet.api.reading import StoredNode, etag_of
from app.fleet.api.route import STORE, FleetRoute, problems
from app.fleet.api.schemas import requests, responses

router = APIRouter(route_class=FleetRoute, tags=["nodes"])

_LABEL: Final = re.compile(r"([^=]{1,63})=(.{0,63})", re.DOTALL)
_CONDITIONS: Final[dict[str, Any]] = {
    "parameters": [
        header_parameter(
            "If-Match", "Only if the node has one of these tags. `*`: only if there is such a node.", '"4711"'
        ),
        header_parameter("If-None-Match", "`*`: only if there is no such node.", "*"),
    ]
}


@router.get(
    "/fleet/nodes",
    operation_id="list_nodes",
    summary="List nodes",
    response_model=responses.FleetNodes,
    responses=answers(responses.FleetNodes, "By name.") | problems(*STORE),
)
async def list_nodes(
    request: Request,
    label: Annotated[
        str | None,
        Query(
            max_length=1000,
            description="With these labels only; several are separated by commas.",
            examples=["role=edge"],
        ),
    ] = None,
    state: Annotated[responses.NodeState | None, Query(description="In this state only.")] = None,
    after: Annotated[Name | None, Query(description="Those after this node only.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """List nodes with their labels, what they say of themselves, and how each of their tables is."""
    wanted = _labels(label)
    found = [
        node
        for node in (await reading.read_nodes(state_of(request).etcd)).values()
        if wanted.items() <= node.node.labels.items()
        and state in {None, node.state}
        and (after is None or node.name > after)
        and authorization.may_see_node(request, node.node.labels)
    ]
    following = found[limit - 1].name if len(found) > limit else None
    return Json(responses.FleetNodes(nodes=[_seen(request, node) for node in found[:limit]], next=following))


def _labels(text: str | None) -> dict[str, str]:
    """Return the labels of a text like "role=edge,site=fra".

    Raises:
        HttpProblem: validation: it is no such text.
    """
    parts = [] if not text else text.split(",")
    found = [_LABEL.fullmatch(part) for part in parts]
    if any(each is None for each in found):
        errors = [{"loc": "query.label", "message": "is not like role=edge; separate several by commas"}]
        raise HttpProblem("validation", f"{errors[0]['loc']}: {errors[0]['message']}", facts={"errors": errors})
    return {each[1]: each[2] for each in found if each is not None}


def _seen(request: Request, node: StoredNode) -> responses.FleetNode:
    """Return the answer for a node, with the tables that the caller may see."""
    answer = showing.node_of(node)
    answer.tables = [each for each in answer.tables if authorization.may_see_table(request, each.table)]
    return answer


@router.get(
    "/fleet/nodes/{node}",
    operation_id="get_node",
    summary="Get a node",
    response_model=responses.FleetNode,
    responses=answers(responses.FleetNode, "The node.", headers=openapi.ETAG) | problems("node-unknown", *STORE),
)
async def get_node(request: Request, node: Node) -> Response:
    """Return a node. Its tag is that of its labels and user: it stays when only what the node says changes."""
    found = await reading.read_node(state_of(request).etcd, node)
    authorization.check_labels(request.scope, found.node.labels, f"node {node!r}")
    return Json(_seen(request, found), headers={"ETag": etag_of(found.item)})


@router.put(
    "/fleet/nodes/{node}",
    operation_id="put_node",
    summary="Add a node, or change its labels",
    response_model=responses.FleetNode,
    responses=answers(responses.FleetNode, "It has these labels.", headers=openapi.ETAG | openapi.DRY_RUN)
    | answers(responses.FleetNode, "It is added.", 201, headers=openapi.ETAG | openapi.LOCATION | openapi.DRY_RUN)
    | problems("precondition-failed", "malformed-header", "read-only", *BODY, *STORE),
    openapi_extra=_CONDITIONS,
)
async def put_node(
    request: Request, node: Node, body: requests.PutNode, note: Note = None, dry_run: DryRun = False
) -> Response:
    """Add a node with its user in etcd, which may read and write its own keys alone; or change its labels.

    A node that a table's selector matches by now gets the table with the next rollout, and none that it matches no more
    loses it.
    """
    authorization.check_labels(request.scope, body.labels, f"node {node!r}")
    user = body.user or node
    found, is_new = await changes.put_node(
        state_of(request).etcd,
        changes.WantedNode(node, body.labels, user),
        caller_of(request, note),
        precondition_of(request, "node"),
        lambda before: _check_bounds(request, before),
        dry_run=dry_run,
    )
    headers = {"ETag": etag_of(found.item)}
    if dry_run:
        headers["Dry-Run"] = "true"
    else:
        audit(request, node=node, labels=body.labels, user=user)
        if is_new:
            headers["Location"] = f"/fleet/nodes/{node}"
    return Json(_seen(request, found), 201 if is_new else 200, headers)


def _check_bounds(request: Request, before: StoredNode) -> None:
    """Check that a node, as it is, is within the bounds of the caller."""
    authorization.check_labels(request.scope, before.node.labels, f"node {before.name!r}")


@router.delete(
    "/fleet/nodes/{node}",
    operation_id="delete_node",
    summary="Remove a node",
    status_code=204,
    responses=openapi.no_content("It is removed.", openapi.DRY_RUN)
    | problems("node-unknown", "node-in-use", "precondition-failed", "malformed-header", "read-only", *STORE),
    openapi_extra=_CONDITIONS,
)
async def delete_node(request: Request, node: Node, note: Note = None, dry_run: DryRun = False) -> Response:
    """Remove a node with its user in etcd and all of its keys, so that nothing is left for its agent to read.

    The node itself keeps what it holds.
    """
    await changes.delete_node(
        state_of(request).etcd,
        node,
        caller_of(request, note),
        precondition_of(request, "node"),
        lambda before: _check_bounds(request, before),
        dry_run=dry_run,
    )
    if not dry_run:
        audit(request, node=node)
    return Response(status_code=204, headers={"Dry-Run": "true"} if dry_run else None)
