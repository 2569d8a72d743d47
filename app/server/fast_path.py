"""The fast path: answers a read or a change of one entry without ASGI and FastAPI.

Most requests are of this kind, and the general way costs several times what they need. The fast path decides nothing of
its own. What the head of a request means is found out once, by the parser, the routes and the access rights of the
general way, and kept by its bytes: a `Meaning`. The next request with the same head has the same meaning.

The requests that arrive in one turn of the event loop are gone through together (`HotStep`): read or write the entry,
then make the answer. The sets of one map are `Sets` of a group commit, so they share a row of the journal.

Only what succeeds is answered here. Any other request falls back: its bytes go to the parser, as if they came just now.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httptools
from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import Scope

from app.access.rights import Actor
from app.api.authorization import ACTOR, AUTHORIZATION, Authentication, check_access
from app.api.limits import Limits
from app.api.middleware import request_id_of
from app.api.problems import HttpProblem
from app.server.framing import Headers
from app.server.hot_step import FastRequest, HotMap, HotStep, Meaning
from app.service.errors import ServiceError
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap
from app.store.records import EntryWrite

_OPERATIONS: Final = {b"GET": "get_entry", b"PUT": "set_entry"}
_MAX_BODY_BYTES: Final = 256  # bytes of one that names a program
_MAX_MEANINGS: Final = 4096
_ENTRY: Final = re.compile(rb"(?:0|[1-9][0-9]{0,9}) HTTP/1\.1")  # what follows "/entries/"
# With one of these headers, a request means more than is looked at here.
_UNUSUAL_HEADERS: Final = frozenset(
    {b"content-encoding", b"expect", b"if-match", b"if-none-match", b"prefer", b"transfer-encoding", b"upgrade"}
)
# Headers that differ from request to request, and change nothing but the request id.
_PASSING_HEADER: Final = re.compile(rb"\r\n(?i:x-request-id|traceparent|tracestate):[ -~]*(?=\r\n|\Z)")
_REQUEST_ID: Final = re.compile(rb"\r\n(?i:x-request-id): *([ -~]*)")
_UNLIMITED: Final = Limits()


class FastConnection(Protocol):
    """What the fast path needs of a connection.

    Attributes:
        identity: Who connects: the address of the client, and then everything else that tells connections apart.
        scope: What the ASGI scopes of all requests have in common.
        meanings: The meanings that are known of its requests; FastPath puts them there.
    """

    identity: tuple[Any, ...]
    scope: dict[str, Any]
    meanings: "Meanings | None"

    def answer(self, request: FastRequest, answer: bytes) -> None:
        """Send the answer to a request."""

    def fall_back(self, request: FastRequest, failure: BaseException | None = None) -> None:
        """Let the application answer the request instead. `failure`: it was tried, and this is why it failed."""

    def default_header_lines(self) -> bytes:
        """Return the headers of every answer."""


@dataclass(eq=False, slots=True)
class Meanings:
    """What heads mean, for connections of one identity.

    Attributes:
        is_current: They still count.
        by_head: By the bytes of the request line up to the index, and those of the header fields.
    """

    is_current: bool
    by_head: dict[tuple[bytes, bytes], Meaning]


class FastPath:
    """Answers requests that may go the fast way. Thread rule: one event loop.

    Attributes:
        step: Reads, writes and answers.
        sets: By map, the sets that gather for the next group commit.
    """

    def __init__(self, app: FastAPI) -> None:
        """Know nothing yet. `app`: its routes, access rights and service count."""
        state = app.state
        self._app = app
        self._service: Service = state.service
        self._authentication: Authentication = state.authentication
        self._limits: Limits = state.limits
        self._meanings: dict[tuple[Any, ...], Meanings] = {}  # by what tells connections apart
        self._count = 0  # of meanings
        self._tokens_version = 0  # of the tokens by which the meanings were found
        self._maps: dict[HeldMap, HotMap] = {}
        self.step = HotStep(self._service, state.audit)
        self._reads: list[FastRequest] = []  # that arrived in this turn of the event loop
        self.sets: dict[HotMap, _MapSets] = {}  # that wait for the next group commit

    def take(self, connection: FastConnection, data: bytes) -> "FastRequest | int | None":
        """Take a request off what a connection has received, if it may go the fast way.

        Args:
            connection: It has no other request under way.
            data: What it has received.

        Returns:
            The request, which is answered soon, or falls back; an int: so many bytes of its body are still to come;
            None: it is for the parser.
        """
        head, end, body = data.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        front, _, last = line.rpartition(b"/entries/")
        if not end or not _ENTRY.fullmatch(last):
            return None
        known = connection.meanings
        if known is None or not known.is_current:
            known = connection.meanings = self._meanings_of(connection)
        meaning, request_id = known.by_head.get((front, fields)), None
        if meaning is None:
            meaning, request_id = self._find(connection, known, front, last, fields)
            if meaning is None:
                return None
        missing = meaning.body_bytes - len(body)
        if missing > 0:
            return missing
        if missing < 0:
            body, data = body[:missing], data[:missing]
        request = FastRequest(connection, meaning, int(last[:-9]), body, data, request_id)
        return request if self._admit(request) else None

    def _admit(self, request: FastRequest) -> bool:
        """Put a request where it is answered from. Returns False where the regular way would refuse it."""
        meaning = request.meaning
        if meaning.actor.expires is not None and time.time() >= meaning.actor.expires:
            return False
        if self._limits.requests_per_second is not None:
            try:
                self._limits.check_rate(meaning.actor.name)
            except HttpProblem:
                return False
            request.is_counted = True
        if meaning.is_write:
            sets = self.sets.get(meaning.map)
            if sets is None:
                sets = self.sets[meaning.map] = _MapSets(self, meaning.map)
                self._service.changes.group.submit(sets)
            sets.requests.append(request)
        else:
            self._reads.append(request)
            if len(self._reads) == 1:
                asyncio.get_running_loop().call_soon(self._answer_reads)
        return True

    def _answer_reads(self) -> None:
        """Answer the reads of this turn one after another, so that no client wakes up in between."""
        reads, self._reads = self._reads, []
        if not self.is_outdated():
            self.step.read(reads)
        self.step.finish(reads, 0, None)

    def is_outdated(self) -> bool:
        """Whether meanings no longer count, as tokens have changed or the service ends. They are then forgotten."""
        tokens = self._authentication.tokens
        if tokens is not None and self._tokens_version != (version := tokens.version()):
            self._tokens_version = version
            self.forget()
            return True
        return self._service.is_stopping

    def forget(self) -> None:
        """Forget all meanings."""
        for known in self._meanings.values():
            known.is_current = False
        self._meanings, self._maps, self._count = {}, {}, 0

    # What the regular way knows

    def _meanings_of(self, connection: FastConnection) -> Meanings:
        # Where callers prove who they are, the address means nothing.
        identity = connection.identity if self._authentication.is_open else connection.identity[1:]
        known = self._meanings.get(identity)
        if known is None:
            known = self._meanings[identity] = Meanings(is_current=True, by_head={})
        return known

    def _find(
        self, connection: FastConnection, known: Meanings, front: bytes, last: bytes, fields: bytes
    ) -> tuple[Meaning | None, str | None]:
        """Return what a head means whose bytes were not seen before, and the request id that it gives."""
        fields = b"\r\n" + fields
        sent = _REQUEST_ID.search(fields)
        rest = _PASSING_HEADER.sub(b"", fields)[2:]
        meaning = known.by_head.get((front, rest))
        if meaning is None:
            if rest == fields[2:] or not rest:
                sent = None
            self.is_outdated()  # so that what is found now is known to count
            meaning = self._meaning(connection, b"%b/entries/%b\r\n%b\r\n\r\n" % (front, last, rest))
            if meaning is None:
                return None, None
            self._count += 1
            if self._count > _MAX_MEANINGS:
                self.forget()
            elif known.is_current:
                known.by_head[front, rest] = meaning
        request_id = None if sent is None else request_id_of({b"x-request-id": sent[1].rstrip()})
        return meaning, request_id

    def _meaning(self, connection: FastConnection, head: bytes) -> Meaning | None:
        """Find out what a head means. None: it is not for the fast path, or the regular way would refuse it."""
        parsed = _Head.parsed(head)
        if parsed is None:
            return None
        operation = _OPERATIONS[parsed.method]
        fields = dict(parsed.headers)
        path = parsed.target.decode()
        folder = path.rpartition("/")[0]
        scope: Scope = {**connection.scope, "headers": parsed.headers, "path": path, "method": parsed.method.decode()}
        scope[AUTHORIZATION] = fields.get(b"authorization")
        route = next((each for each in self._app.routes if each.matches(scope)[0] is Match.FULL), None)
        if getattr(route, "operation_id", None) != operation:
            return None
        name = folder.split("/")[2]
        with suppress(HttpProblem, ServiceError):
            scope["app"], scope["route"] = self._app, route
            check_access(scope, operation, name, self._authentication, _UNLIMITED)
            actor: Actor = scope[ACTOR]
            held = self._service.registry.maps.get(name)
            held.opened()
            hot = self._maps.get(held)
            if hot is None or held.object is not hot.array:
                hot = self._maps[held] = HotMap(held)
            return Meaning(hot, operation, actor, int(fields.get(b"content-length", b"0")), f"{folder}/")
        return None


class _Head:
    """Parses the head of a request as a connection does."""

    def __init__(self) -> None:
        self.method, self.target = b"", b""
        self.headers: Headers = []
        self.is_complete = False

    @classmethod
    def parsed(cls, head: bytes) -> "_Head | None":
        """Return the parts of a head. None: the regular way has to look at it."""
        found = cls()
        parser = httptools.HttpRequestParser(found)
        try:
            parser.feed_data(head)
        except httptools.HttpParserError:
            return None
        found.method = parser.get_method()
        if not found.is_complete or parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return None
        return found if found._is_usual() else None

    def _is_usual(self) -> bool:
        names = [name for name, _ in self.headers]
        fields = dict(self.headers)
        if self.method not in _OPERATIONS or not self.target.startswith(b"/maps/") or b"host" not in fields:
            return False
        if len(fields) != len(names) or not _UNUSUAL_HEADERS.isdisjoint(fields):
            return False
        if any(mark in self.target for mark in b"?#%") or b"jt_" in self.target:
            return False
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return False
        if self.method == b"GET":
            return b"content-length" not in fields
        is_json = fields.get(b"content-type") == b"application/json"
        return is_json and 0 < int(fields.get(b"content-length", b"0")) <= _MAX_BODY_BYTES

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


class _MapSets:
    """The sets of one map that go the fast way in one group commit."""

    def __init__(self, fast_path: FastPath, map_: HotMap) -> None:
        self._fast_path, self._map, self.held = fast_path, map_, map_.held
        self.requests: list[FastRequest] = []

    def write(self) -> Sequence[EntryWrite]:
        """Write the entries. From here on, sets of this map gather for the next group."""
        fast_path = self._fast_path
        del fast_path.sets[self._map]
        return () if fast_path.is_outdated() else fast_path.step.write(self._map, self.requests)

    def finish(self, first_id: int, error: BaseException | None) -> None:
        """Answer what was written. The rest falls back."""
        self._fast_path.step.finish(self.requests, first_id, error)
