"""Streams of server-sent events (WHATWG HTML, 9.2), and how a reader says where to go on."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.authorization import ACTOR
from app.api.problems import HttpProblem

_GRACE_SECONDS: Final = 0.5
_ID: Final = re.compile(r"[0-9]{1,18}")
LAST_EVENT_ID: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "required": False,
            "description": "Go on after this event; 0: with the very first. Left out: with the next that happens.",
            "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
            "example": 17,
        }
    ]
}

# Nothing on the way is to keep it, nor to hold it back.
EVENT_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A stream that ends with the service, even if its reader does not read.

    Args:
        content: The events, encoded.
        ended: Set when the service ends.
        status_code: FastAPI looks here for the status that it documents.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], ended: asyncio.Event, status_code: int = 200) -> None:
        super().__init__(content, status_code, EVENT_HEADERS)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until there is no more, or nobody reads.

        When the service ends, it goes on for half a second at most.
        """
        with scope["app"].state.limits.reading(scope[ACTOR].sender):
            await self._write(receive, send)

    async def _write(self, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self.stream_response(send))
        others = [asyncio.create_task(_gone(receive)), asyncio.create_task(_over(self._ended))]
        try:
            await asyncio.wait([writing, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [writing, *others]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not writing.cancelled():
            writing.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _over(ended: asyncio.Event) -> None:
    await ended.wait()
    await asyncio.sleep(_GRACE_SECONDS)


def last_event_id(request: Request) -> int | None:
    """Return the number in the header Last-Event-ID of a request. None: there is no such header.

    Raises:
        HttpProblem: malformed-header: it is no decimal number.
    """
    text = request.headers.get("last-event-id")
    if text is None:
        return None
    if not _ID.fullmatch(text):
        raise HttpProblem(
            "malformed-header", "Last-Event-ID is no decimal number: send the id of the last event that came"
        )
    return int(text)
