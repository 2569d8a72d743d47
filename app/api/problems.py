"""The one table from what went wrong to its HTTP status, and its form: application/problem+json (RFC 9457)."""

import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.service.errors import BodyIndexOutOfRange, ServiceError, WriteRefused

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One sort of problem: what it is called, what it means, and what to do."""

    status: int
    title: str
    remedy: str


PROBLEMS: Final[dict[str, ProblemType]] = {
    "malformed-json": ProblemType(
        400, "The body is not JSON", "Send one JSON value in UTF-8; the detail says where it ends."
    ),
    "malformed-header": ProblemType(
        400, "A header cannot be read", 'Entity tags are quoted: If-Match: "…", or *; copy them from an ETag.'
    ),
    "unauthenticated": ProblemType(401, "It is not known who asks", "Send a token: Authorization: Bearer …"),
    "forbidden": ProblemType(
        403, "Whoever asks has no right to this", "Ask whoever gives the rights: the detail tells which."
    ),
    "entry-protected": ProblemType(403, "The entry is protected", "Only the role admin may change it."),
    "read-only": ProblemType(403, "The service is read only", "Take read_only out of the configuration, and restart."),
    "pin-not-allowed": ProblemType(
        403, "This path may not be named", "Pin below one of the folders in pin_dirs, or widen pin_dirs and restart."
    ),
    "map-unknown": ProblemType(404, "No such map", "GET /maps lists the names; PUT /maps/{name} holds another."),
    "program-unknown": ProblemType(
        404, "No such program", "GET /programs lists the names; PUT /programs/{name} holds one."
    ),
    "change-unknown": ProblemType(404, "No such change", "GET /changes lists those that are kept."),
    "entry-empty": ProblemType(404, "The entry is empty", "PUT a program there; DELETE takes ?allow_missing=true."),
    "index-out-of-range": ProblemType(404, "No such entry", "Indexes run from 0 to max_entries - 1."),
    "not-found": ProblemType(404, "No such resource", "GET /openapi.json tells all paths."),
    "method-not-allowed": ProblemType(405, "Not a method of this resource", "The Allow header lists the methods."),
    "request-timeout": ProblemType(408, "The body did not arrive in time", "Send it faster, and say when it ends."),
    "change-conflict": ProblemType(
        409,
        "Another change is in the way",
        "Of the same entries: confirm or revert the one that waits, revert later ones first, or set what you want.",
    ),
    "change-not-revertible": ProblemType(
        409,
        "What was there cannot be put back",
        "Pin the programs, or set keep_dir; or set the entries to what you want.",
    ),
    "already-confirmed": ProblemType(
        409, "The change waits for no confirmation", "It stands; POST …/revert undoes it."
    ),
    "in-use": ProblemType(409, "A change that waits would need it", "Confirm or revert the change first."),
    "name-taken": ProblemType(
        409, "The name, or the object, is held already", "Choose another name, or release that one."
    ),
    "last-reference": ProblemType(
        409, "The array would be emptied for good", "Pin the array first, or say ?force=true if that is what you want."
    ),
    "program-busy": ProblemType(409, "The program is extended by another", "Detach the freplace program first."),
    "map-frozen": ProblemType(409, "The array is frozen", "That is for good: make a new array."),
    "events-expired": ProblemType(
        410, "The journal goes back not that far", "Read the tables anew, then follow without Last-Event-ID."
    ),
    "precondition-failed": ProblemType(
        412, "The entry is not as you thought", "Look at current, decide again, and send its etag."
    ),
    "body-too-large": ProblemType(
        413, "The body is too large", "64 KiB are the most; for a table 512 bytes more for each of max_entries."
    ),
    "media-type-unsupported": ProblemType(
        415, "The body is not declared as JSON", "Content-Type: application/json; with curl: --json instead of -d."
    ),
    "validation": ProblemType(
        422, "The request is not as it should be", "errors tells each place and what belongs there."
    ),
    "program-not-found": ProblemType(422, "No such program", "Name one that GET /programs lists, a live id, or a pin."),
    "program-incompatible": ProblemType(
        422, "The program does not fit the array", "The first program fixes what fits: see reason and remedy."
    ),
    "not-a-program-array": ProblemType(422, "Not a program array", "Give a map of type prog_array."),
    "not-a-program": ProblemType(422, "Not a program", "Give a pin or an id of a loaded program."),
    "program-not-runnable": ProblemType(
        422, "The kernel cannot run such a program", "Types that run on a packet do: xdp, sched_cls, socket_filter …"
    ),
    "host-not-allowed": ProblemType(
        421, "Not a name of this machine", "On loopback, Host and Origin have to be localhost or a loopback address."
    ),
    "headers-too-large": ProblemType(
        431, "The head of the request is too large", "limits.header_bytes tells how much it may be."
    ),
    "too-many-requests": ProblemType(429, "Too many requests", "Wait as long as Retry-After tells."),
    "unsupported-flags": ProblemType(422, "The kernel knows no such flags here", "Leave flags out, or send 0."),
    "duplicate-index": ProblemType(422, "An index is listed twice", "List each index once."),
    "pin-unusable": ProblemType(422, "The pin cannot be opened", "The detail tells the errno and what to do."),
    "kernel-permission": ProblemType(
        500, "The service lacks a right", "Give the service the capability that the detail names."
    ),
    "kernel-error": ProblemType(500, "The kernel refused", "errno tells why; the journal of the kernel may tell more."),
    "internal": ProblemType(
        500, "An error of the service itself", "Report it with the request_id: the log has the rest."
    ),
    "map-unavailable": ProblemType(
        503, "The map could not be opened", "Mend what reason tells; it is tried again by itself."
    ),
    "program-unavailable": ProblemType(
        503, "The program could not be opened", "Mend what reason tells; it is tried again by itself."
    ),
    "journal-unavailable": ProblemType(
        503, "The journal cannot be used", "put_back tells whether a change was undone. Mend what the detail tells."
    ),
    "draining": ProblemType(503, "The service is stopping", "Ask again when it is back."),
}


class HttpProblem(Exception):
    """A request that is refused by what HTTP says of it; the codes are those of PROBLEMS."""

    def __init__(
        self, code: str, detail: str, *, headers: dict[str, str] | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.headers, self.facts = headers or {}, facts or {}


def problem(
    code: str,
    detail: str,
    request_id: str,
    *,
    facts: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    in_body: bool = False,
) -> Response:
    """The answer for a problem of this code, with its facts beside the standard members.

    `in_body`: what a path would be 404 for is 422 there.
    """
    kind = PROBLEMS[code]
    status = 422 if in_body else kind.status
    standard = {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    told = standard | {name: fact for name, fact in (facts or {}).items() if name not in standard}
    content = json.dumps(told, separators=(",", ":"))
    return Response(content + "\n", status, headers, MEDIA_TYPE)


def service_problem(error: ServiceError, request_id: str) -> Response:
    """The answer for an error of the service."""
    in_body = isinstance(error, BodyIndexOutOfRange)
    code = error.cause.code if isinstance(error, WriteRefused) else error.code
    return problem(code, str(error), request_id, facts=error.facts(), in_body=in_body)


def bare_problem(code: str, detail: str) -> bytes:
    """The answer as it goes over the wire, where no request came to be; it ends the connection."""
    body = problem(code, detail, os.urandom(16).hex()).body
    status = HTTPStatus(PROBLEMS[code].status)
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + bytes(body)


log = structlog.get_logger()


def code_of(error: ServiceError | HttpProblem | HTTPException) -> str | None:
    """Its code; None for what routing says."""
    if isinstance(error, HTTPException):
        return None
    return error.cause.code if isinstance(error, WriteRefused) else error.code


def failure(error: ServiceError | HttpProblem | HTTPException, scope: Scope, request_id: str) -> Response:
    """The problem that an error is told as."""
    if isinstance(error, ServiceError):
        return service_problem(error, request_id)
    if isinstance(error, HttpProblem):
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
