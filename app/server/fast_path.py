"""The direct way: one entry, read or set with nothing unusual about it, is answered without ASGI and FastAPI.

Most requests are of that kind, and what a general route costs is several times what they need. Nothing is decided here:
the routes, the schema, the policy, what is read and written, and what is told of it are those of the regular way. It
only gives answers to what went well. Whatever is unusual, or refused, takes the regular way, which tells why.
"""

import asyncio
import functools
import re
import time
from typing import Final, Protocol

from fastapi import FastAPI
from pydantic_core import from_json
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from app.api.audit import Audit
from app.api.authorization import AUTHORIZATION, Authentication, check_access
from app.api.dependencies import origin
from app.api.limits import Limits
from app.api.middleware import FAILED, REQUEST_ID, request_id_of
from app.api.problems import HttpProblem
from app.api.routes.entries import read_entry, set_answer
from app.api.schemas import fields, requests
from app.service.changes.changes import Changes, PreparedChange
from app.service.changes.entries import SetResult, set_at_once
from app.service.counters import Counters
from app.service.errors import ServiceError
from app.service.lifecycle import Upkeep
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName

_OPERATIONS: Final = {b"GET": "get_entry", b"PUT": "set_entry"}
_MAX_BODY: Final = 256  # bytes of one that names a program
_PATHS_KEPT: Final = 4096
# With no other header a request means what its first line and its body say.
_USUAL: Final = frozenset(
    {b"host", b"authorization", b"content-type", b"content-length", b"connection", b"user-agent", b"accept",
     b"accept-encoding", b"accept-language", b"x-request-id"}
)  # fmt: skip
_STATUS: Final = {200: b"HTTP/1.1 200 OK\r\n", 201: b"HTTP/1.1 201 Created\r\n"}
_MORE_THAN_A_PATH: Final = re.compile(rb"[?#%]")


class FastRequest:
    """A request that the fast path may answer.

    Args:
        connection: Where it comes from.
        method: `GET` or `PUT`.
        path: The request target, which has no query and nothing percent-encoded.
        headers: Each header once, by its name in lower case.
        scope: The ASGI scope, without what depends on the method and the target.
    """

    body = b""
    keep_alive = True  # the connection stays open after the answer

    def __init__(
        self, connection: "FastConnection", method: bytes, path: bytes, headers: dict[bytes, bytes], scope: Scope
    ) -> None:
        self.connection, self.method, self.path, self.headers, self.scope = connection, method, path, headers, scope
        self.began = time.perf_counter()

    @staticmethod
    def eligible_headers(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
        """Return the headers by name, if the fast path may answer a request with this head, and else None."""
        by_name = dict(headers)
        if method not in _OPERATIONS or not target.startswith(b"/maps/") or not by_name.keys() <= _USUAL:
            return None
        if len(by_name) != len(headers) or b"host" not in by_name:
            return None
        if by_name.get(b"connection", b"keep-alive") != b"keep-alive" or _MORE_THAN_A_PATH.search(target):
            return None
        if b"content-length" in by_name:
            is_usual = method == b"PUT" and by_name.get(b"content-type") == b"application/json"
        else:
            is_usual = method == b"GET"
        return by_name if is_usual else None


class FastConnection(Protocol):
    """What the fast path needs of a connection."""

    def answer(self, request: FastRequest, status_line: bytes, rest: bytes) -> None:
        """Send the answer: the status line, the default headers, and `rest`."""

    def fall_back(self, request: FastRequest) -> None:
        """Let the application answer the request instead."""


_Written = tuple[FastRequest, HeldMap, int, SetResult]


class _Unusual(Exception):
    """It goes the regular way."""


class FastPath:
    """Takes requests, and answers those of one turn of the event loop together: their changes share a transaction."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._changes: Changes = app.state.changes
        self._upkeep: Upkeep = app.state.upkeep
        self._authentication: Authentication = app.state.authentication
        self._limits: Limits = app.state.limits
        self._audit: Audit = app.state.audit
        self._figures: Counters = app.state.counters
        self._waiting: list[FastRequest] = []
        self._task: asyncio.Task[None] | None = None
        # The name of the map and the route, by the method and the path but for its end.
        self._known: dict[tuple[bytes, bytes], tuple[str, BaseRoute]] = {}
        self.answered = 0

    def take(self, plain: FastRequest) -> None:
        """Answer it, soon."""
        self._waiting.append(plain)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                locked: list[HeldMap] = []
                try:
                    await self._answer_all(batch, locked)
                finally:
                    for held in locked:
                        held.lock.release()
        finally:
            self._task = None

    async def _answer_all(self, batch: list[FastRequest], locked: list[HeldMap]) -> None:
        """`locked` takes the maps of which the lock was taken."""
        self._audit.hold()
        self._authentication.is_one_moment(begins=True)
        try:
            written, all_begun = await self._do_all(batch, locked)
        finally:
            self._authentication.is_one_moment(begins=False)
            self._audit.let_go()
        if not written:
            return
        try:
            await self._changes.journal_all(all_begun)
        except Exception as error:  # noqa: BLE001 - the regular way tells it
            for plain, *_ in written:
                plain.scope[FAILED] = error
                plain.connection.fall_back(plain)
            return
        self._audit.hold()
        try:
            for each in written:
                self._tell_set(*each)
        finally:
            self._audit.let_go()

    async def _do_all(
        self, batch: list[FastRequest], locked: list[HeldMap]
    ) -> tuple[list[_Written], list[PreparedChange]]:
        """Answer what needs no journal, and write the rest."""
        written: list[_Written] = []
        all_begun: list[PreparedChange] = []
        for plain in batch:
            try:
                index, held = self._admitted(plain)
                if plain.method == b"GET":
                    self._tell(plain, 200, *read_entry(self._changes.registry, self._upkeep, held, index))
                    continue
                if held not in locked:
                    if held.lock.locked():
                        raise _Unusual
                    await held.lock.acquire()
                    locked.append(held)
                    self._authentication.is_one_moment(begins=True)  # another one, if that took time
                result, begun = set_at_once(self._changes, held, index, _named(plain.body), origin(plain.scope))
                if begun is None:
                    self._tell_set(plain, held, index, result)
                else:
                    written.append((plain, held, index, result))
                    all_begun.append(begun)
            except (_Unusual, ServiceError, HttpProblem):
                plain.connection.fall_back(plain)
            except Exception as error:  # noqa: BLE001 - the regular way tells it
                plain.scope[FAILED] = error
                plain.connection.fall_back(plain)
        return written, all_begun

    def _admitted(self, plain: FastRequest) -> tuple[int, HeldMap]:
        """The entry's index and its map, where whoever asks may ask for it. Refused, ServiceError, _Unusual."""
        folder, _, last = plain.path.rpartition(b"/")
        known = self._known.get((plain.method, folder))
        name, route = known or self._learn(plain, folder)
        scope = plain.scope
        scope["app"], scope["route"], scope["path"] = self._app, route, plain.path.decode("latin-1")
        scope[AUTHORIZATION] = plain.headers.get(b"authorization")
        scope[REQUEST_ID] = request_id_of(plain.headers)
        if self._app.state.draining:
            raise _Unusual
        check_access(scope, _OPERATIONS[plain.method], name, self._authentication, self._limits)
        try:
            index = fields.decimal(last.decode("latin-1"))
        except ValueError:
            raise _Unusual from None
        return index, self._changes.registry.maps.get(name)

    def _learn(self, plain: FastRequest, folder: bytes) -> tuple[str, BaseRoute]:
        """What the application's routes find in such a path. _Unusual where it is another operation."""
        scope = {"type": "http", "method": plain.method.decode(), "path": plain.path.decode("latin-1")}
        for route in self._app.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                if getattr(route, "operation_id", None) != _OPERATIONS[plain.method]:
                    break
                if len(self._known) >= _PATHS_KEPT:
                    self._known.clear()
                self._known[plain.method, folder] = found["path_params"]["name"], route
                return self._known[plain.method, folder]
        raise _Unusual

    def _tell_set(self, plain: FastRequest, held: HeldMap, index: int, result: SetResult) -> None:
        status, etag, entry = set_answer(plain.scope, self._changes.registry, held, index, result)
        self._tell(plain, status, etag, entry, "" if result.change is None else f"change-id: {result.change.id}\r\n")

    def _tell(self, plain: FastRequest, status: int, etag: str, entry: bytes, change: str = "") -> None:
        request_id: str = plain.scope[REQUEST_ID]
        head = (
            f"etag: {etag}\r\n{change}content-length: {len(entry) + 1}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {request_id}\r\n\r\n"
        )
        plain.connection.answer(plain, _STATUS[status], b"%b%b\n" % (head.encode("latin-1"), entry))
        self.answered += 1
        operation = _OPERATIONS[plain.method]
        self._audit.attempt(plain.scope, operation, status, None, request_id)
        self._figures.request(operation, status, time.perf_counter() - plain.began)


@functools.lru_cache(maxsize=1024)
def _parsed(body: bytes) -> ByName | None:
    """The program that a body names by its held name, if it says nothing else."""
    try:
        given = requests.SetEntry.model_validate(from_json(body, allow_inf_nan=False))
    except ValueError:
        return None
    ref = requests.program_ref(given.program)
    return ref if isinstance(ref, ByName) and given.flags == 0 else None


def _named(body: bytes) -> ByName:
    ref = _parsed(body) if len(body) <= _MAX_BODY else None
    if ref is None:
        raise _Unusual
    return ref
