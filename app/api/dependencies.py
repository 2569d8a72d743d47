"""What the routes find in their request."""

from typing import Annotated, cast

from fastapi import Query
from starlette.requests import Request
from starlette.types import Scope

from app.access.rights import Actor
from app.api.audit import FACTS
from app.api.authorization import ACTOR, forbidden, grant_of
from app.api.middleware import REQUEST_ID
from app.service.changes.changes import Changes
from app.service.changes.origin import RequestContext
from app.service.holds import Holds
from app.service.lifecycle import Upkeep
from app.service.objects.source import Source
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.records import Change

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
Note = Annotated[str | None, Query(max_length=1000, description="Kept with the change: why it was made.")]


def changes_of(request: Request) -> Changes:
    """What changes entries, and keeps the journal."""
    return cast("Changes", request.app.state.changes)


def upkeep_of(request: Request) -> Upkeep:
    """What goes on beside requests."""
    return cast("Upkeep", request.app.state.upkeep)


def check_holdable(request: Request, source: Source, was: HeldMap | HeldProgram | None, *, force: bool = False) -> None:
    """Refused where too much is held, and where another source for a name would make bounds void.

    `was`: what is held under the name so far.
    """
    registry = registry_of(request)
    if was is None:
        request.app.state.limits.check_held(len(registry.maps) + len(registry.programs))
    if not grant_of(request.scope).is_unbounded and (was is None or was.source != source or force):
        raise forbidden(request.scope, "whoever has bounds may only open again what is held, without force")


def holding_of(request: Request) -> Holds:
    """What holds and releases."""
    return cast("Holds", request.app.state.holding)


def origin_of(request: Request, note: str | None = None, confirm_within: int | None = None) -> RequestContext:
    """Who asks."""
    return origin(request.scope, note, confirm_within)


def origin(scope: Scope, note: str | None = None, confirm_within: int | None = None) -> RequestContext:
    """The same, of a request's scope."""
    actor: Actor = scope[ACTOR]
    return RequestContext(actor.name, scope[REQUEST_ID], note, confirm_within, grant_of(scope))


def registry_of(request: Request) -> Registry:
    """What the service holds."""
    return changes_of(request).registry


def headers_of(*, dry_run: bool, change: Change | None = None, **headers: str) -> dict[str, str]:
    """The headers of an answer to a change."""
    if change is not None:
        headers["Change-Id"] = str(change.id)
    return headers | ({"Dry-Run": "true"} if dry_run else {})


def tell(scope: Scope, **facts: object) -> None:
    """What was done, for the line that the audit has of it."""
    scope.setdefault(FACTS, {}).update(facts)
