"""A route that takes nothing it does not know: query parameters, media types and bodies.

FastAPI declares and documents it; what a request brings is taken apart here, as FastAPI's own way neither refuses what
is unknown nor tells malformed JSON from a wrong shape, and takes longer than all the rest of a request.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from itertools import chain, islice
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

_MAX_BODY: Final = 64 * 1024  # bytes
_MAX_ENTRY: Final = 512  # bytes more for each of max_entries, in the body of a table
_DRAINED: Final = 4 * 1024 * 1024  # bytes of a too large body that are read, so that its sender hears the answer
_BODY_SECONDS: Final = 10.0
_ERRORS_TOLD: Final = 20
_SPACED_COLONS: Final = (b" :", b"\t:", b"\n:", b"\r:")
_CONTAINERS: Final = frozenset({dict, list})

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

        # In the place of FastAPI's, which opens stacks for dependencies that there are none of here.
        self.app = answer

    def max_body(self, request: Request) -> int:  # noqa: ARG002 - for heirs
        """The largest body that this request may have: bytes."""
        return _MAX_BODY

    def get_route_handler(self) -> Handler:
        """What handles a request; by its signature the endpoint says what it wants."""
        wanted = self.dependant
        if wanted.call is None or wanted.dependencies or wanted.header_params or wanted.cookie_params:
            message = f"{self.path}: a strict route knows path, query and body parameters only"
            raise TypeError(message)
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = wanted.call
        body_field = wanted.body_params[0] if wanted.body_params else None
        query_fields: dict[str, _Field] = {field.alias: field for field in wanted.query_params}
        defaults = {field.name: field.get_default() for field in wanted.query_params}

        operation = self.operation_id or self.name

        async def handle(request: Request) -> Response:
            state = request.app.state
            name = request.path_params.get("name")
            check_access(request.scope, operation, name, state.authentication, state.limits)
            taken = _ParsedRequest(defaults)
            if request.scope["query_string"]:
                taken.query(request, query_fields)
            for field in wanted.path_params:
                taken.field(field, request.path_params[field.alias], "path", field.alias)
            if body_field is not None:
                taken.body(body_field, *await _read_json(request, self.max_body(request)))
            taken.refuse()
            if taken.values.get("dry_run"):
                add_audit_facts(request.scope, dry_run=True)
            if wanted.request_param_name is not None:
                taken.values[wanted.request_param_name] = request
            return await endpoint(**taken.values)

        return handle


class TableRoute(StrictRoute):
    """A route whose body is a whole table."""

    def max_body(self, request: Request) -> int:
        """More for a larger table."""
        with contextlib.suppress(MapUnknown, MapUnavailable):
            held = service_of(request).registry.maps.get(request.path_params["name"])
            return _MAX_BODY + _MAX_ENTRY * held.opened().max_entries
        return _MAX_BODY


class _ParsedRequest:
    """What was taken from a request: values by the endpoint's parameter, and what is wrong."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.values = dict(defaults)
        self.errors: list[dict[str, str]] = []

    def field(self, field: _Field, value: Any, *location: str) -> None:
        """One value, checked against its declaration."""
        self.values[field.name], errors = field.validate(value, loc=location)
        for error in errors or ():
            # A part in angle brackets tells only which form of a value was taken to be meant.
            place = ".".join(str(part) for part in error["loc"] if not str(part).startswith("<"))
            self.errors.append({"loc": place, "message": error["msg"].removeprefix("Value error, ")})

    def query(self, request: Request, fields: dict[str, _Field]) -> None:
        """All of the query: each parameter known, and given once."""
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

    def body(self, field: _Field, value: Any, repeated: list[str]) -> None:
        """The body. `repeated`: the places of members that it gives more than once."""
        self.errors += [{"loc": place, "message": "given more than once"} for place in repeated]
        if not repeated:
            self.field(field, value, "body")

    def refuse(self) -> None:
        """Refused where anything is wrong."""
        if self.errors:
            first = self.errors[0]
            raise HttpProblem(
                "validation", f"{first['loc']}: {first['message']}", facts={"errors": self.errors[:_ERRORS_TOLD]}
            )


def repeated_members(body: bytes, value: Any) -> list[str]:
    """Return the places of members that an object gives more than once, of which only the last one would count.

    Args:
        body: JSON.
        value: What it was parsed to, by a parser that keeps the last one.
    """
    # Each member has a colon behind its name, so there are at least as many as members. Strings may have more of them,
    # but few have one behind a quotation mark.
    members = _count_members(value)
    if body.count(b":") == members:
        return []
    is_spaced = any(text[:1] in body and text in body for text in _SPACED_COLONS)
    if not is_spaced and body.count(b'":') == members:
        return []
    parsed = json.loads(body, object_pairs_hook=_Members, parse_int=str)
    return list(islice(_repeated_below(parsed, "body"), _ERRORS_TOLD))


def _count_members(value: Any) -> int:
    """Return how many members all objects have together. A table has many: level by level is the fastest."""
    count, level = 0, [value]
    while level:
        objects = [each for each in level if type(each) is dict]
        lists = [each for each in level if type(each) is list]
        count += sum(map(len, objects))
        below = list(chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(lists)))
        if _CONTAINERS.isdisjoint(map(type, below)):
            break
        level = [each for each in below if type(each) in _CONTAINERS]
    return count


class _Members(list[tuple[str, Any]]):
    """The members of an object, each as often as it is given."""


def _repeated_below(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        return
    is_object = isinstance(value, _Members)
    if is_object:
        counts = Counter(name for name, _ in value)
        yield from (f"{place}.{name[:64]}" for name, count in counts.items() if count > 1)
    for name, each in value if is_object else enumerate(value):
        yield from _repeated_below(each, f"{place}.{str(name)[:64]}")


async def _read_json(request: Request, max_body: int) -> tuple[Any, list[str]]:
    """Return the body's value, and the places of members that it gives more than once."""
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
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HttpProblem("malformed-json", str(error)) from error
    return value, repeated_members(body, value)


async def _read_body(request: Request, max_body: int) -> bytes:
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            more = True
            while more and size <= max_body + _DRAINED:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size <= max_body:
                    body += chunk
    except TimeoutError as error:
        raise HttpProblem("request-timeout", f"the body did not end within {_BODY_SECONDS:.0f} s") from error
    request.scope[BODY_IS_READ] = not more
    if size > max_body:
        raise HttpProblem("body-too-large", f"the body has more than {max_body} bytes", facts={"max_bytes": max_body})
    return bytes(body)
