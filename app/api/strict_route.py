"""A route that takes nothing it does not know: query parameters, media types and bodies."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.problems import Refused

MAX_BODY: Final = 64 * 1024  # bytes
_DRAINED: Final = 4 * 1024 * 1024  # bytes of a too large body that are read, so that its sender hears the answer
_BODY_SECONDS: Final = 10.0

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """FastAPI's route, with the checks that it leaves out made in front."""

    def get_route_handler(self) -> Handler:
        """The handler with the checks in front of it."""
        handle = super().get_route_handler()
        known = frozenset(field.alias for field in self.dependant.query_params)
        takes_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            _check_query(request, known)
            if takes_body:
                request = _JsonRequest(request, await _read_json(request))
            return await handle(request)

        return strict


class _JsonRequest(Request):
    """A request whose body is parsed already."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"parsed"

    async def json(self) -> Any:
        return self._value


def _check_query(request: Request, known: frozenset[str]) -> None:
    seen = [name for name, _ in request.query_params.multi_items()]
    errors = [
        {"loc": f"query.{name}", "message": f"no such parameter; there are: {', '.join(sorted(known)) or 'none'}"}
        for name in seen
        if name not in known
    ]
    errors += [{"loc": f"query.{name}", "message": "given twice"} for name in set(seen) if seen.count(name) > 1]
    if errors:
        detail = f"{errors[0]['loc']}: {errors[0]['message']}"
        raise Refused("validation", detail, facts={"errors": errors})


async def _read_json(request: Request) -> Any:
    body = await _read_body(request)
    if not body:
        raise Refused("malformed-json", "the body is empty")
    media_type = request.headers.get("content-type", "")
    if media_type.split(";", 1)[0].strip().lower() != "application/json":
        detail = f"Content-Type is {media_type!r}, not application/json (curl --json sends it)"
        raise Refused("media-type-unsupported", detail, headers={"Accept": "application/json"})
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused("malformed-json", str(error)) from error


async def _read_body(request: Request) -> bytes:
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY:
                    body += chunk
                elif size > _DRAINED:
                    break
    except TimeoutError as error:
        raise Refused("request-timeout", f"the body did not end within {_BODY_SECONDS:.0f} s") from error
    if size > MAX_BODY:
        raise Refused("body-too-large", f"the body has more than {MAX_BODY} bytes", facts={"max_bytes": MAX_BODY})
    return bytes(body)
