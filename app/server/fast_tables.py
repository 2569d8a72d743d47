"""The fast path of small tables: PUT and PATCH of several entries, without ASGI and FastAPI.

What a head means was found out before: a `TableMeaning`. The body is read, the change is made, and the answer is
encoded by the functions that the routes use. Each request has a task: a client that goes, or a service that stops, does
not end it.

A request whose body is unusual falls back. One that was tried is not tried again: it falls back with the error, which
the general way answers with.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from app.access.rights import Actor
from app.api.audit import FACTS, Audit
from app.api.authorization import ACTOR
from app.api.encoding.changes import ENTRIES_PER_CHUNK
from app.api.json_members import RepeatedMembers, parse_json
from app.api.problems import HttpProblem
from app.api.scope import new_request_id
from app.api.table_changes import BODIES, TableAnswer, count_facts, requested_entries, table_answer
from app.server.framing import Headers, header_lines
from app.server.hot_step import FastRequest
from app.service.changes.origin import RequestContext
from app.service.changes.tables import RequestedEntries, change_table
from app.service.lifecycle import Service

MAX_ENTRIES: Final = ENTRIES_PER_CHUNK  # of a map: the answer then has one chunk
OPERATIONS: Final = {b"PUT": "replace_entries", b"PATCH": "update_entries"}
_MAX_BODIES: Final = 256  # of which it is kept what they ask for
_MAX_KEPT_BYTES: Final = 4096  # of each of them
_LINE_ENDS: Final = b"/entries HTTP/1.1"


class TableMeaning:
    """What the head of a request means.

    Attributes:
        map: The name of the map.
        operation: The operation id: `replace_entries` or `update_entries`.
        actor: Who sends it.
        body_bytes: The length of the body.
        path: The path.
        epoch: It counts for as long as this is the epoch of the FastPath.
        is_minimal: The client prefers an answer without the entries.
    """

    __slots__ = ("actor", "body_bytes", "epoch", "is_minimal", "map", "operation", "path")

    def __init__(
        self, map_: str, operation: str, actor: Actor, body_bytes: int, path: str, epoch: int, *, is_minimal: bool
    ) -> None:
        """Take what was found out."""
        self.map, self.operation, self.actor, self.body_bytes = map_, operation, actor, body_bytes
        self.path, self.epoch, self.is_minimal = path, epoch, is_minimal


def split_table_head(data: bytes) -> tuple[bytes, int, bytes, bytes] | None:
    """Split what was received as `split_head` does.

    Returns:
        The request line with its line end, 0, the header fields, and what comes behind the head. None: the head is
        incomplete, or it is not about a change of a table.
    """
    if not data.startswith((b"PUT /maps/", b"PATCH /maps/")):
        return None
    head, end, rest = data.partition(b"\r\n\r\n")
    line, line_end, fields = head.partition(b"\r\n")
    # What `split_head` returns has no line end, so one cannot be taken for the other.
    return (line + line_end, 0, fields, rest) if end and line_end and line.endswith(_LINE_ENDS) else None


class FastTables:
    """Changes small tables. Thread rule: one event loop."""

    def __init__(self, service: Service, audit: Audit, is_current: Callable[[int], bool]) -> None:
        """Begin with nothing.

        Args:
            service: What is worked on.
            audit: Records the requests.
            is_current: Whether what was found out in an epoch still counts.
        """
        self._service, self._audit, self._is_current = service, audit, is_current
        self._bodies: dict[tuple[str, bytes], RequestedEntries] = {}  # by the operation: what is known of bodies

    def begin(self, request: FastRequest) -> None:
        """Begin to answer a request. Its `meaning` is a TableMeaning."""
        self._service.changes.start(self._answer(request))

    async def _answer(self, request: FastRequest) -> None:
        meaning: TableMeaning = request.meaning
        held = self._service.registry.maps.find(meaning.map)
        is_small = held is not None and held.object is not None and held.object.max_entries <= MAX_ENTRIES
        is_usual = is_small and self._is_current(meaning.epoch)
        requested = self._requested(meaning.operation, request.body) if is_usual else None
        if held is None or requested is None:
            request.connection.fall_back(request)
            return
        request.request_id = request.request_id or new_request_id()
        grant = meaning.actor.grant
        assert grant is not None  # else the request was refused
        context = RequestContext(meaning.actor.name, request.request_id, grant=grant)
        is_replace = meaning.operation == "replace_entries"
        try:
            result = await change_table(self._service.changes, held, requested, context, replace=is_replace)
            answer = table_answer(result, is_minimal=meaning.is_minimal, facts=count_facts(result))
            text = _text(request, answer)
        except Exception as error:  # noqa: BLE001 - the general way answers with it
            if request.connection.is_lost:  # nobody is answered, but the attempt is recorded
                self._audit.aborted(meaning.actor, meaning.operation, meaning.path, request.request_id, error)
            request.connection.fall_back(request, error)
            return
        self._service.counters.add_request(meaning.operation, 200, time.perf_counter() - request.began)
        self._service.counters.fast_requests += 1
        scope: dict[str, Any] = {ACTOR: meaning.actor, "path": meaning.path, FACTS: answer.facts}
        self._audit.attempt(scope, meaning.operation, 200, None, request.request_id)
        request.connection.answer(request, text)

    def _requested(self, operation: str, body: bytes) -> RequestedEntries | None:
        """Return what a body asks for. None: the general way would refuse it.

        Who changes tables often has a few that take turns. So what a short body asks for is found out once.
        """
        known = self._bodies.get((operation, body))
        if known is not None:
            return known
        try:
            requested = requested_entries(BODIES[operation].model_validate(parse_json(body)))
        except (HttpProblem, RepeatedMembers, ValidationError):
            return None
        if len(body) <= _MAX_KEPT_BYTES:
            if len(self._bodies) >= _MAX_BODIES:
                self._bodies.clear()
            self._bodies[operation, body] = requested
        return requested


def _text(request: FastRequest, answer: TableAnswer) -> bytes:
    body = b"".join(answer.chunks) + b"\n"
    given = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    headers: Headers = [
        *given,
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
        (b"x-request-id", (request.request_id or "").encode()),
    ]
    return b"HTTP/1.1 200 OK\r\n%b%b\r\n%b" % (request.connection.default_header_lines(), header_lines(headers), body)
