"""Routes that refuse everything they do not know: query parameters, media types and fields of bodies.

FastAPI declares and documents a route. Its requests are parsed here: FastAPI's own parser ignores what it does not
know, does not distinguish malformed JSON from a wrong shape, and takes longer than everything else that a request
needs.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.authorization import check_access
from app.api.dependencies import add_audit_facts, service_of
from app.api.middleware import BODY_IS_READ
from app.api.problems import HttpProblem
from app.service.errors import MapUnavailable, MapUnknown

_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_BYTES_PER_ENTRY: Final = 512  # that the body of a table may have more, for each of max_entries
_MAX_DRAINED_BYTES: Final = 4 * 1024 * 1024  # of a body that is too large, read so that its sender gets the answer
_BODY_TIMEOUT_SECONDS: Final = 10.0
_MAX_ERRORS: Final = 20  # in one answer

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _Field(Protocol):
    """FastAPI's declaration of one parameter."""

    name: str

    @property
    def alias(self) -> str: ...

    def validate(self, value: Any, *, loc: tuple[int | str, ...]) -> tuple[Any, list[dict[str, Any]]]: ...

    def get_default(self) -> Any: ...


class StrictRoute(APIRoute):
    """A route whose endpoint is async, takes path, query, one body and the request, and returns a Response."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        handle = self.get_route_handler()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await handle(Request(scope, receive, send))
            await response(scope, receive, send)

        # FastAPI's own would set up dependencies, and there are none here.
        self.app = answer

    def max_body(self, request: Request) -> int:  # noqa: ARG002 - subclasses use it
        """Return how many bytes the body of this request may have."""
        return _MAX_BODY_BYTES

    def get_route_handler(self) -> Handler:
        """Return what handles a request. The endpoint's signature declares what it takes."""
        declared = self.dependant
        if declared.call is None or declared.dependencies or declared.header_params or declared.cookie_params:
            message = f"{self.path}: a strict route knows path, query and body parameters only"
            raise TypeError(message)
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = declared.call
        body_field = declared.body_params[0] if declared.body_params else None
        query_fields: dict[str, _Field] = {field.alias: field for field in declared.query_params}
        defaults = {field.name: field.get_default() for field in declared.query_params}

        operation = self.operation_id or self.name

        async def handle(request: Request) -> Response:
            state = request.app.state
            name = request.path_params.get("name")
            check_access(request.scope, operation, name, state.authentication, state.limits)
            parsed = _ParsedRequest(defaults)
            if request.scope["query_string"]:
                parsed.query(request, query_fields)
            for field in declared.path_params:
                parsed.field(field, request.path_params[field.alias], "path", field.alias)
            if body_field is not None:
                parsed.field(body_field, await _read_json(request, self.max_body(request)), "body")
            parsed.raise_errors()
            if parsed.values.get("dry_run"):
                add_audit_facts(request.scope, dry_run=True)
            if declared.request_param_name is not None:
                parsed.values[declared.request_param_name] = request
            return await endpoint(**parsed.values)

        return handle


class TableRoute(StrictRoute):
    """A route whose body is a whole table."""

    def max_body(self, request: Request) -> int:
        """Return how many bytes it may have: more for a larger table."""
        with contextlib.suppress(MapUnknown, MapUnavailable):
            held = service_of(request).registry.maps.get(request.path_params["name"])
            return _MAX_BODY_BYTES + _MAX_BYTES_PER_ENTRY * held.opened().max_entries
        return _MAX_BODY_BYTES


class _ParsedRequest:
    """The values of a request, by the endpoint's parameter, and what is wrong with it."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.values = dict(defaults)
        self.errors: list[dict[str, str]] = []

    def field(self, field: _Field, value: Any, *location: str) -> None:
        """Check one value against its declaration, and keep it."""
        self.values[field.name], errors = field.validate(value, loc=location)
        for error in errors or ():
            # A part in angle brackets is the form that a value was taken for, and no part of the request.
            place = ".".join(str(part) for part in error["loc"] if not str(part).startswith("<"))
            self.errors.append({"loc": place, "message": error["msg"].removeprefix("Value error, ")})

    def query(self, request: Request, fields: dict[str, _Field]) -> None:
        """Check the query: each parameter is known, and given once."""
        given = request.query_params.multi_items()
        counts = Counter(name for name, _ in given)
        for name in counts.keys() - fields.keys():
            known = ", ".join(sorted(fields)) or "none"
            self.errors.append({"loc": f"query.{name[:64]}", "message": f"no such parameter; there are: {known}"})
        for name, field in fields.items():
            if counts[name] > 1:
                self.errors.append({"loc": f"query.{name}", "message": "given more than once"})
            elif counts[name]:
                self.field(field, request.query_params[name], "query", name)

    def raise_errors(self) -> None:
        """Raise HttpProblem, if anything is wrong."""
        if self.errors:
            first = self.errors[0]
            raise HttpProblem(
                "validation", f"{first['loc']}: {first['message']}", facts={"errors": self.errors[:_MAX_ERRORS]}
            )


async def _read_json(request: Request, max_body: int) -> Any:
    body = await _read_body(request, max_body)
    if not body:
        raise HttpProblem("malformed-json", "the body is empty")
    media_type = request.headers.get("content-type", "")
    if media_type.split(";", 1)[0].strip().lower() != "application/json":
        detail = f"Content-Type is {media_type!r}, not application/json (curl --json sends it)"
        raise HttpProblem("media-type-unsupported", detail, headers={"Accept": "application/json"})
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        detail = f"Content-Encoding is {encoding[:64]!r}; send the body as it is"
        raise HttpProblem("media-type-unsupported", detail, headers={"Accept-Encoding": "identity"})
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HttpProblem("malformed-json", str(error)) from error


async def _read_body(request: Request, max_body: int) -> bytes:
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_SECONDS):
            more = True
            while more and size <= max_body + _MAX_DRAINED_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size <= max_body:
                    body += chunk
    except TimeoutError as error:
        raise HttpProblem("request-timeout", f"the body did not end within {_BODY_TIMEOUT_SECONDS:.0f} s") from error
    request.scope[BODY_IS_READ] = not more
    if size > max_body:
        raise HttpProblem("body-too-large", f"the body has more than {max_body} bytes", facts={"max_bytes": max_body})
    return bytes(body)
