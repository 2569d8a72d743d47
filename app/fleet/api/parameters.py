"""What routes take from their request: parameters, who asks, conditions, and the state."""

from typing import Annotated, cast

from fastapi import Path, Query
from starlette.requests import Request

from app.access.rights import Actor
from app.api.audit import FACTS
from app.api.authorization import ACTOR
from app.api.preconditions import Conditions
from app.api.problems import HttpProblem
from app.api.schemas.fields import Name
from app.api.scope import REQUEST_ID
from app.fleet.api.changes import Caller, Precondition
from app.fleet.api.state import FleetState

_MAX_NAME_CHARS = 256  # of a caller, as etcd holds it

Table = Annotated[
    Name, Path(description="The name of the table: that of the map on the nodes.", examples=["jump_table"])
]
Node = Annotated[Name, Path(description="The name of the node.", examples=["edge-1"])]
RolloutId = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9_.-]{1,64}-[1-9][0-9]{0,7}$",
        description="The id of the rollout: its table and revision.",
        examples=["jump_table-3"],
    ),
]
DryRun = Annotated[bool, Query(description="Check everything and answer as if, but change nothing.")]
Note = Annotated[str | None, Query(max_length=1000, description="Why; kept in the history.")]


def state_of(request: Request) -> FleetState:
    """Return the state of the server."""
    return cast("FleetState", request.app.state)


def caller_of(request: Request, note: str | None = None) -> Caller:
    """Return who changes something, and why."""
    actor: Actor = request.scope[ACTOR]
    return Caller(actor.name[:_MAX_NAME_CHARS], request.scope[REQUEST_ID], note or "")


def precondition_of(request: Request, kind: str) -> Precondition:
    """Return the conditions of a request.

    Args:
        request: The request.
        kind: Of what the tags are, for the detail.

    Raises:
        HttpProblem: malformed-header.
    """
    conditions = Conditions.of(request)

    def check(etag: str | None) -> None:
        header = conditions.failed(etag)
        if header is not None:
            there = f"there is no such {kind}" if etag is None else f"the tag of the {kind} is {etag}"
            detail = f"{header} does not hold: {there}; if you still want the change, send it with that"
            raise HttpProblem(
                "precondition-failed", detail, facts={"current": None if etag is None else {"etag": etag}}
            )

    return check


def audit(request: Request, **facts: object) -> None:
    """Add what was done to the line that the audit writes for the request."""
    request.scope.setdefault(FACTS, {}).update(facts)
