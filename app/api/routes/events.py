"""What happens, as server-sent events (WHATWG HTML, 9.2): /events."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from itertools import chain
from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from app.api.authorization import ACTOR, grant_of, may_still
from app.api.dependencies import check_held, service_of
from app.api.encoding.changes import change_chunks
from app.api.event_stream import EVENT_HEADERS, LAST_EVENT_ID, EventStream, last_event_id
from app.api.openapi import Responses, problems
from app.api.routing import StrictRoute
from app.api.schemas import fields
from app.api.scope import IS_HEAD
from app.api.visibility import event_data, event_view
from app.service.event_feed import Encoded, EventFeed
from app.store.records import Event

router = APIRouter(route_class=StrictRoute, tags=["changes"])

_SLICE: Final = 1 << 16  # bytes
_ASK_SECONDS: Final = 1.0  # between two looks at whether a reader may still read
_RESPONSES: Final[Responses] = {
    200: {
        "description": "Each event has an `id`, its type as `event`, and JSON as `data`: of `change`, `confirmed` and "
        "`expired` the change as /changes tells it; of `drift` the map, how many entries, and the first 100 of them as "
        "the map tells them; of `map` and `program` the name and what happened. Every 15 s without any: a comment.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/events",
    operation_id="watch_events",
    summary="Follow what happens",
    response_class=EventStream,
    responses=_RESPONSES
    | problems("map-unknown", "malformed-header", "too-many-requests", "events-expired", "journal-unavailable"),
    openapi_extra=LAST_EVENT_ID,
)
async def watch_events(
    request: Request,
    map: Annotated[fields.Name | None, Query(description="Of this map only; then none of programs.")] = None,  # noqa: A002
) -> Response:
    """Follow events; `curl -N` is enough. The stream ends with the service.

    Last-Event-ID continues it with no gap and no repeat.
    """
    feed = service_of(request).feed
    if map is not None:
        check_held(request, map)
    request.app.state.limits.check_readers(request.scope[ACTOR].sender)
    after = feed.start_of(last_event_id(request))
    if request.scope[IS_HEAD]:
        return Response(headers=EVENT_HEADERS, media_type=EventStream.media_type)
    grant = grant_of(request.scope)

    def wanted(event: Event) -> bool:
        if event.map is None:  # of a program
            return map is None and grant.has_program((event.data or {}).get("program"))
        return map in {None, event.map} and grant.has_map(event.map)

    return EventStream(_stream(feed, after, wanted, request.scope), feed.ended)


async def _stream(feed: EventFeed, after: int, wanted: Callable[[Event], bool], scope: Scope) -> AsyncGenerator[bytes]:
    yield b": after event %d\n\n" % after
    clock, asked = asyncio.get_running_loop().time, -math.inf
    async with aclosing(feed.read(after, wanted, _encoded, event_view(grant_of(scope)))) as batches:
        async for batch in batches:
            if clock() >= asked + _ASK_SECONDS:
                if not may_still(scope, "watch_events"):
                    return  # its token was revoked, or is over
                asked = clock()
            for content in _slices(batch):
                yield content
                if len(content) > _SLICE // 2:
                    await asyncio.sleep(0)  # others have their turn
            if not batch:
                yield b":\n\n"


def _slices(batch: list[Encoded]) -> Iterator[bytes]:
    """Join the parts of small events. What a reader has not taken yet waits in memory, once for each reader."""
    parts: list[bytes] = []
    size = 0
    for part in chain.from_iterable(batch):
        if size + len(part) > _SLICE:
            yield b"".join(parts)  # of one part alone no copy is made: it is that of all readers
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    if parts:
        yield b"".join(parts)


def _encoded(event: Event) -> Iterator[bytes]:
    """Encode an event, in parts that are no larger than a slice."""
    yield f"id: {event.id}\nevent: {event.type}\ndata: ".encode()
    if event.change is not None:
        for part in change_chunks(event.change):
            for start in range(0, len(part), _SLICE):
                yield part[start : start + _SLICE]
    else:
        yield json.dumps(event_data(event), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    yield b"\n\n"
