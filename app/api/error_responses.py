"""The responses that errors become: problems (RFC 9457), also for what the routing of Starlette refuses."""

from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.api.problems import INTERNAL_DETAIL, MEDIA_TYPE, HttpProblem, problem_body
from app.service.errors import BodyIndexOutOfRange, ServiceError, WriteRefused

_MAX_PATH_CHARS: Final = 256  # of a path that a detail repeats

log = structlog.get_logger()


def error_code(error: ServiceError | HttpProblem | HTTPException) -> str | None:
    """Return the problem code of an error, or None for an error of routing."""
    if isinstance(error, HTTPException):
        return None
    return error.cause.code if isinstance(error, WriteRefused) else error.code


def error_response(error: ServiceError | HttpProblem | HTTPException, scope: Scope, request_id: str) -> Response:
    """Return the response for an error.

    Args:
        error: The error. An `HTTPException` comes from Starlette's routing: 404 or 405.
        scope: The ASGI scope of the request.
        request_id: The id of the request.
    """
    if isinstance(error, ServiceError):
        return service_problem(error, request_id)
    if isinstance(error, HttpProblem):
        return problem(error.code, error.detail, request_id, facts=error.facts, headers=error.headers)
    return _routing_problem(error, scope, request_id)


def service_problem(error: ServiceError, request_id: str) -> Response:
    """Return the response for an error of the service."""
    in_body = isinstance(error, BodyIndexOutOfRange)
    code = error.cause.code if isinstance(error, WriteRefused) else error.code
    return problem(code, str(error), request_id, facts=error.facts() | (error.entry or {}), in_body=in_body)


def problem(
    code: str,
    detail: str,
    request_id: str,
    *,
    facts: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    in_body: bool = False,
) -> Response:
    """Return the response for a problem.

    Args:
        code: A key of `PROBLEMS`.
        detail: One sentence about this occurrence.
        request_id: The id of the request.
        facts: Members of the problem beside the standard ones. They never replace a standard member.
        headers: Headers of the response.
        in_body: Whether the body of the request caused the problem. The status is then 422, not 404.
    """
    status, content = problem_body(code, detail, request_id, facts=facts, in_body=in_body)
    return Response(content, status, headers, MEDIA_TYPE)


def _routing_problem(error: HTTPException, scope: Scope, request_id: str) -> Response:
    """Return the response for 404 and 405. Only Starlette's routing raises HTTPException."""
    if error.status_code == 404:
        path: str = scope["path"]
        there = f"there is no resource at {path[:_MAX_PATH_CHARS]!r}"
        without = path.rstrip("/")
        if without != path and _allowed_methods({**scope, "path": without}):
            detail = f"{there}; leave out the slash at the end: {without[:_MAX_PATH_CHARS]}"
        else:
            begins = sorted({f"/{route.path.split('/')[1]}" for route in scope["app"].routes} - {"/"})
            detail = f"{there}; send a path that begins with one of {', '.join(begins)}"
        return problem("not-found", detail, request_id)
    if error.status_code == 405:
        allow = ", ".join(_allowed_methods(scope))
        detail = f"the resource does not support {scope['method']}; it supports {allow}"
        return problem("method-not-allowed", detail, request_id, headers={"Allow": allow})
    log.error("unexpected", status=error.status_code, detail=error.detail, request_id=request_id)
    return problem("internal", INTERNAL_DETAIL, request_id)


def _allowed_methods(scope: Scope) -> list[str]:
    """Return all methods of the path. Starlette itself gives only those of the first route that matches."""
    methods: set[str] = set()
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
