"""The answer to whatever went wrong on the way of a request."""

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.api.problems import Refused, problem, service_problem
from app.service.errors import ServiceError, WriteRefused

log = structlog.get_logger()


def code_of(error: ServiceError | Refused | HTTPException) -> str | None:
    """Its code; None for what routing says."""
    if isinstance(error, HTTPException):
        return None
    return error.cause.code if isinstance(error, WriteRefused) else error.code


def failure(error: ServiceError | Refused | HTTPException, scope: Scope, request_id: str) -> Response:
    """The problem that an error is told as."""
    if isinstance(error, ServiceError):
        return service_problem(error, request_id)
    if isinstance(error, Refused):
        return problem(error.code, error.detail, request_id, facts=error.facts, headers=error.headers)
    return _of_routing(error, scope, request_id)


def _of_routing(error: HTTPException, scope: Scope, request_id: str) -> Response:
    """404 and 405. (Nothing else raises HTTPException.)"""
    if error.status_code == 404:
        detail = f"there is nothing at {scope['path'][:256]!r}; /docs shows all there is"
        return problem("not-found", detail, request_id)
    if error.status_code == 405:
        allow = ", ".join(_allow(scope))
        detail = f"{scope['method']} is not a method of this resource; there are: {allow}"
        return problem("method-not-allowed", detail, request_id, headers={"Allow": allow})
    log.error("unexpected", status=error.status_code, detail=error.detail, request_id=request_id)
    return problem("internal", "the log tells what, under this request_id", request_id)


def _allow(scope: Scope) -> list[str]:
    """All methods of the path: FastAPI knows only those of the first route that matches."""
    methods: set[str] = set()
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
