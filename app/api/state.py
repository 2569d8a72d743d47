"""What the routes find in their request."""

from typing import Annotated, cast

import structlog
from fastapi import Query
from starlette.requests import Request

from app.api.envelope import REQUEST_ID
from app.service.changes import Changes, Origin
from app.service.registry import Registry
from app.store.records import Change

DryRun = Annotated[bool, Query(description="Check everything and answer as if, but change nothing.")]

log = structlog.get_logger()


Note = Annotated[str | None, Query(max_length=1000, description="Kept with the change: why it was made.")]


def changes_of(request: Request) -> Changes:
    """What changes entries, and keeps the journal."""
    return cast("Changes", request.app.state.changes)


def origin_of(request: Request, note: str | None) -> Origin:
    """Who asks. Without authentication only the way is known: the unix socket, or an address."""
    client = request.client
    actor = f"tcp:{client.host}" if client is not None and client.host else "unix"
    return Origin(actor, request.scope[REQUEST_ID], note)


def registry_of(request: Request) -> Registry:
    """What the service holds."""
    return changes_of(request).registry


def headers_of(*, dry_run: bool, change: Change | None = None, **headers: str) -> dict[str, str]:
    """The headers of an answer to a change."""
    if change is not None:
        headers["Change-Id"] = str(change.id)
    return headers | ({"Dry-Run": "true"} if dry_run else {})


def log_change(request: Request, event: str, **facts: object) -> None:
    """One line a change: what was done, and by which request."""
    log.info(event, request_id=request.scope[REQUEST_ID], **facts)
