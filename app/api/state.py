"""What the routes find in their request."""

from typing import Annotated, cast

import structlog
from fastapi import Query
from starlette.requests import Request

from app.api.envelope import REQUEST_ID
from app.service.registry import Registry

DryRun = Annotated[bool, Query(description="Check everything and answer as if, but change nothing.")]

log = structlog.get_logger()


def registry_of(request: Request) -> Registry:
    """What the service holds."""
    return cast("Registry", request.app.state.registry)


def headers_of(*, dry_run: bool, **headers: str) -> dict[str, str]:
    """The headers of an answer to a change."""
    return headers | ({"Dry-Run": "true"} if dry_run else {})


def log_change(request: Request, event: str, *, dry_run: bool, **facts: object) -> None:
    """One line a change: what was asked, and by which request. None for a dry run."""
    if not dry_run:
        log.info(event, request_id=request.scope[REQUEST_ID], **facts)
