"""Responses with JSON. Long ones are encoded while they are read, so they are never in memory as a whole."""

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.limits import LongAnswers
from app.api.scope import IS_HEAD

_SENT_BYTES: Final = 128 * 1024  # before the reader has to have read them


class Json(Response):
    """A JSON response. It ends in a newline, so that a terminal shows its prompt on a new line."""

    media_type = "application/json"

    def __init__(self, content: BaseModel | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = content if isinstance(content, bytes) else content.model_dump_json().encode()
        super().__init__(text + b"\n", status, headers)


def long_json(chunks: Iterator[bytes], headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON body that may be long.

    Args:
        chunks: The body, one chunk at least. To encode one should take about 1 ms, so that other requests do not wait.
        headers: Headers of the response.
    """
    first, second = next(chunks), next(chunks, None)
    if second is None:
        return Json(first, headers=headers)
    return _ChunkedJson(chain((first, second), chunks, (b"\n",)), headers)


class _ChunkedJson(Response):
    """A response of unknown length, which HTTP/1.1 sends with the chunked transfer coding."""

    media_type = "application/json"

    def __init__(self, chunks: Iterator[bytes], headers: dict[str, str] | None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        long_answers: LongAnswers = scope["app"].state.long_answers
        chunk = None if scope[IS_HEAD] else next(self._chunks, None)
        while chunk is not None:
            for start in range(0, len(chunk), _SENT_BYTES):
                part = chunk[start : start + _SENT_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
                await long_answers.until_read(send)
            async with long_answers.turn:
                chunk = next(self._chunks, None)
                await asyncio.sleep(0)  # let other requests run
        await send({"type": "http.response.body", "body": b"", "more_body": False})
