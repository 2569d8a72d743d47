"""Routes that refuse everything they do not know: query parameters, media types and fields of bodies.

FastAPI declares and documents a route. Its requests are parsed here: FastAPI's own parser ignores what it does not
know, does not distinguish malformed JSON from a wrong shape, and takes longer than everything else that a request
needs.
"""

import asyncio
import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any, Final, Protocol

from fastapi import Query
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.dependencies import add_audit_facts, service_of
from app.api.json_members import MAX_BYTES, RepeatedMembers, parse_json
from app.api.problems import HttpProblem
from app.api.scope import BODY_IS_READ
from app.api.table_parser import InvalidTable, MalformedTable, parse_table
from app.service.errors import MapUnavailable, MapUnknown

_MAX_BYTES_PER_ENTRY: Final = 512  # that the body of a table may have more, for each of max_entries
_MAX_DRAINED_BYTES: Final = 4 * 1024 * 1024  # of a body that is too large, read so that its sender gets the answer
_BODY_TIMEOUT_SECONDS: Final = 10.0
_MAX_ERRORS: Final = 20  # in one answer

# Their answers may be long, and only so many of them are made at a time.
_LONG_READS: Final = frozenset({"list_entries", "list_changes", "get_change", "get_graph"})

_JSON, _FILE = "application/json", "application/octet-stream"

CONTENT: Final = "jumptable.content"  # key of the ASGI scope: the object file that a request brought

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Endpoint = Callable[..., Coroutine[Any, Any, Response]]
Pretty = Annotated[bool, Query(description="Indent the JSON of the answer, also of a problem.")]


class _Field(Protocol):
    """FastAPI's declaration of one parameter."""

    name: str

    @property
    def alias(self) -> str: ...

    def validate(self, value: Any, *, loc: tuple[int | str, ...]) -> tuple[Any, list[dict[str, Any]]]: ...

    def get_default(self) -> Any: ...


def _with_pretty(endpoint: Endpoint) -> Endpoint:
    """The endpoint with one more query parameter, which it does not see: the middleware does what it says."""

    @functools.wraps(endpoint)
    async def call(**values: Any) -> Response:
        del values["pretty"]
        return await endpoint(**values)

    signature = inspect.signature(endpoint)
    pretty = inspect.Parameter("pretty", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Pretty)
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), pretty]
    )
    return call


class StrictRoute(APIRoute):
    """A route whose endpoint is async, takes path, query, one body and the request, and returns a Response."""

    def __init__(self, path: str, endpoint: Endpoint, **named: Any) -> None:
        if isinstance(named.get("response_class"), DefaultPlaceholder):  # it answers JSON
            endpoint = _with_pretty(endpoint)
        super().__init__(path, endpoint, **named)
        handle = self.get_route_handler()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await handle(Request(scope, receive, send))
            await response(scope, receive, send)

        async def answer_at_length(scope: Scope, receive: Receive, send: Send) -> None:
            async with scope["app"].state.long_answers.making():
                await answer(scope, receive, send)

        # FastAPI's own would set up dependencies, and there are none here.
        self.app = answer_at_length if self.operation_id in _LONG_READS else answer

    async def read_body(self, request: Request) -> Any:
        """Read the body of a request, and parse it."""
        return parse_json(await read_json(request, MAX_BYTES))

    def get_route_handler(self) -> Handler:
        """Return what handles a request. The endpoint's signature declares what it takes."""
        declared = self.dependant
        if declared.call is None or declared.dependencies or declared.header_params or declared.cookie_params:
            message = f"{self.path}: a strict route knows path, query and body parameters only"
            raise TypeError(message)
        endpoint: Endpoint = declared.call
        body_field = declared.body_params[0] if declared.body_params else None
        query_fields: dict[str, _Field] = {field.alias: field for field in declared.query_params}
        defaults = {field.name: field.get_default() for field in declared.query_params}

        operation = self.operation_id or self.name

        async def handle(request: Request) -> Response:
            request.app.state.check_access(request.scope, operation, request.path_params)
            parsed = _ParsedRequest(defaults)
            if request.scope["query_string"]:
                parsed.query(request, query_fields)
            for field in declared.path_params:
                parsed.field(field, request.path_params[field.alias], "path", field.alias)
            if body_field is not None:
                try:
                    parsed.field(body_field, await self.read_body(request), "body")
                except (InvalidTable, RepeatedMembers) as error:
                    parsed.add_errors(error.errors, "body")
            parsed.raise_errors()
            if parsed.values.get("dry_run"):
                add_audit_facts(request.scope, dry_run=True)
            if declared.request_param_name is not None:
                parsed.values[declared.request_param_name] = request
            return await endpoint(**parsed.values)

        return handle


class TableRoute(StrictRoute):
    """A route whose body is a whole table."""

    async def read_body(self, request: Request) -> Any:
        """Read the body of a request, and parse it: in pieces if it is large. A larger table may have a larger one."""
        max_entries = 0
        with contextlib.suppress(MapUnknown, MapUnavailable):
            max_entries = service_of(request).registry.maps.get(request.path_params["name"]).opened().max_entries
        body = await read_json(request, MAX_BYTES + _MAX_BYTES_PER_ENTRY * max_entries)
        if len(body) <= MAX_BYTES:
            return parse_json(body)
        try:
            return await parse_table(body, max_entries)
        except MalformedTable as error:
            raise HttpProblem("malformed-json", str(error)) from error


class ObjectRoute(StrictRoute):
    """A route whose body is JSON, or an object file: then `scope[CONTENT]` is the file, and `options` is the JSON.

    Its requests take long in any case, so others have their turn before the body is read, and before and after the
    answer is sent.
    """

    def get_route_handler(self) -> Handler:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def handle_in_steps(request: Request) -> Response:
            response = await handle(request)
            response.background = BackgroundTask(asyncio.sleep, 0)
            await asyncio.sleep(0)
            return response

        return handle_in_steps

    async def read_body(self, request: Request) -> Any:
        """Read the body of a request, and parse it; of an object file, parse the query parameter `options`."""
        await asyncio.sleep(0)
        media_type = _media_type(request)
        if media_type == _JSON:
            return await super().read_body(request)
        if media_type != _FILE:
            detail = f"Content-Type is {media_type!r}; send {_FILE} for an object file itself, and {_JSON} to name one"
            raise HttpProblem("media-type-unsupported", detail, headers={"Accept": f"{_JSON}, {_FILE}"})
        request.scope[CONTENT] = bytes(await _read_body(request, service_of(request).objects.options.max_bytes))
        options = request.query_params.get("options")
        return {} if options is None else parse_json(options.encode())


class _ParsedRequest:
    """The values of a request, by the endpoint's parameter, and what is wrong with it."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.values = dict(defaults)
        self.errors: list[dict[str, str]] = []

    def field(self, field: _Field, value: Any, *location: str) -> None:
        """Check one value against its declaration, and keep it."""
        self.values[field.name], errors = field.validate(value, loc=location)
        self.add_errors(errors or ())

    def add_errors(self, errors: Iterable[dict[str, Any]], *location: str) -> None:
        """Keep errors as pydantic gives them. `location`: the part of the request that their places are in."""
        for error in errors:
            # A part in angle brackets is the form that a value was taken for, and no part of the request.
            place = ".".join(str(part) for part in (*location, *error["loc"]) if not str(part).startswith("<"))
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
                self.errors.append({"loc": f"query.{name}", "message": "given more than once; send it once"})
            elif counts[name]:
                self.field(field, request.query_params[name], "query", name)

    def raise_errors(self) -> None:
        """Raise HttpProblem, if anything is wrong."""
        if self.errors:
            first = self.errors[0]
            raise HttpProblem(
                "validation", f"{first['loc']}: {first['message']}", facts={"errors": self.errors[:_MAX_ERRORS]}
            )


def _media_type(request: Request) -> str:
    """Return the type of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


async def read_json(request: Request, max_body: int) -> bytearray:
    """Return the body of a request, if it is declared as JSON.

    Args:
        request: The request.
        max_body: How many bytes the body may have.

    Raises:
        HttpProblem: malformed-json: it is empty. media-type-unsupported, body-too-large or request-timeout.
    """
    body = await _read_body(request, max_body)
    if not body:
        raise HttpProblem("malformed-json", "the body is empty; send one JSON value")
    if _media_type(request) != _JSON:
        given = request.headers.get("content-type", "")
        detail = f"Content-Type is {given!r}, not {_JSON}; send that, as curl --json does"
        raise HttpProblem("media-type-unsupported", detail, headers={"Accept": _JSON})
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        detail = f"Content-Encoding is {encoding[:64]!r}; send the body as it is"
        raise HttpProblem("media-type-unsupported", detail, headers={"Accept-Encoding": "identity"})
    return body


async def _read_body(request: Request, max_body: int) -> bytearray:
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
        raise HttpProblem(
            "request-timeout",
            f"the body did not end within {_BODY_TIMEOUT_SECONDS:.0f} s; send it faster, and check its Content-Length",
        ) from error
    request.scope[BODY_IS_READ] = not more
    if size > max_body:
        detail = f"the body has more than {max_body} bytes; send less at once, a table in parts by PATCH"
        raise HttpProblem("body-too-large", detail, facts={"max_bytes": max_body})
    return body
