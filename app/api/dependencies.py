"""What the routes take from their request: the service, who asks, and the query parameters that many have."""

from typing import Annotated, cast

from fastapi import Query
from starlette.requests import Request
from starlette.types import Scope

from app.access.rights import Actor
from app.api.audit import FACTS
from app.api.authorization import ACTOR, ASK, forbidden, grant_of
from app.api.scope import REQUEST_ID
from app.service.changes.origin import RequestContext
from app.service.lifecycle import Service
from app.service.objects.source import Source
from app.service.registry.held import HeldMap, HeldProgram

DryRun = Annotated[bool, Query(description="Check everything and answer as if, but change nothing.")]
ConfirmWithin = Annotated[
    int | None,
    Query(
        ge=1,
        le=86_400,
        description="Seconds: undone then, also by a service that was restarted in between, unless POST "
        "/changes/{id}/confirm comes before.",
    ),
]
Force = Annotated[
    bool,
    Query(
        description="Also where the pin of the map, or of a program that is named, leads to another object by now than "
        "the one that is held."
    ),
]
Warnings = Annotated[
    bool,
    Query(
        description="Tell in `warnings` what that makes worse for the jumps between programs, by the graph of "
        "GET /graph. It takes as long as that. A dry run always tells."
    ),
]
Note = Annotated[str | None, Query(max_length=1000, description="Kept with the change: why it was made.")]


def service_of(request: Request) -> Service:
    """Return the service."""
    return cast("Service", request.app.state.service)


def context_of(
    scope: Scope, note: str | None = None, confirm_within: int | None = None, *, force: bool = False
) -> RequestContext:
    """Return what a change knows of its request.

    Args:
        scope: Of a request that was let in.
        note: Why, in the words of the caller.
        confirm_within: Seconds until it is undone unless somebody confirms it.
        force: Use what is held also where its pin leads to another object by now.
    """
    actor: Actor = scope[ACTOR]
    assert actor.grant is not None  # else it was not let in
    return RequestContext(actor.name, scope[REQUEST_ID], note, confirm_within, actor.grant, force)


def check_holdable(request: Request, source: Source, was: HeldMap | HeldProgram | None, *, force: bool = False) -> None:
    """Check that a request may hold something.

    Args:
        request: The request.
        source: Where it is to be opened.
        was: What is held under the name so far.
        force: Also where that may empty an array.

    Raises:
        HttpProblem: Too much is held already; or another source for the name would void the bounds of the caller.
    """
    if was is None:
        registry = service_of(request).registry
        request.app.state.limits.check_held(len(registry.maps) + len(registry.programs))
    actor: Actor = request.scope[ACTOR]
    is_unbounded = actor.grant is not None and actor.grant.is_unbounded
    if not is_unbounded and (was is None or was.source != source or force):
        raise forbidden(request.scope, f"a caller with bounds may only open again what is held, without force; {ASK}")


def check_held(request: Request, name: str) -> None:
    """Check that a map to which a request restricts a list is held. Of maps beyond their bounds callers learn nothing.

    Raises:
        MapUnknown: It is not held.
    """
    if grant_of(request.scope).has_map(name):
        service_of(request).registry.maps.get(name)


def add_audit_facts(scope: Scope, **facts: object) -> None:
    """Add what was done to the line that the audit writes for the request."""
    scope.setdefault(FACTS, {}).update(facts)
