"""Answers that may be long: made while they are sent, so that they are never in memory as a whole."""

import asyncio
from collections.abc import Iterator
from itertools import chain

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.middleware import IS_HEAD
from app.api.schemas.responses import Json


def long_json(parts: Iterator[bytes], headers: dict[str, str] | None = None) -> Response:
    """The answer in these parts of JSON, each of which takes about a millisecond to make."""
    first, second = next(parts), next(parts, None)
    if second is None:
        return Json(first, headers=headers)
    return _LongJson(chain((first, second), parts, (b"\n",)), headers)


class _LongJson(Response):
    """Its length is not known when it begins: HTTP/1.1 then sends it in chunks."""

    media_type = "application/json"

    def __init__(self, parts: Iterator[bytes], headers: dict[str, str] | None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in () if scope[IS_HEAD] else self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # others have their turn
        await send({"type": "http.response.body", "body": b"", "more_body": False})
