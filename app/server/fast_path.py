"""The fast path: answers a read or a change of one entry without ASGI and FastAPI.

Most requests are of this kind, and the general way costs several times what they need. The fast path decides nothing of
its own: routes, schemas, access rights and the service are those of the general way. It only answers requests that
succeed. Any other request falls back to the application, which answers it in full.
"""

import asyncio
import functools
import re
import time
from functools import partial
from typing import Final, Protocol

from pydantic_core import from_json
from starlette.types import Scope

from app.api.answers import read_answer, set_answer
from app.api.audit import Audit
from app.api.authorization import AUTHORIZATION, Authentication, check_access
from app.api.json_members import RepeatedMembers, check_members
from app.api.limits import Limits
from app.api.problems import HttpProblem
from app.api.schemas import fields, requests
from app.api.schemas.responses import Answer
from app.api.scope import FAILED, OPERATION, REQUEST_ID, context_of, request_id_of
from app.api.state import State
from app.service.changes.entries import SetResult, write_entry
from app.service.errors import JournalUnavailable, ServiceError
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName

_OPERATIONS: Final = {b"GET": "get_entry", b"PUT": "set_entry"}
_MAX_BODY_BYTES: Final = 256  # bytes of one that names a program
# A request with any other header may mean more than its first line and its body say.
_ELIGIBLE_HEADERS: Final = frozenset(
    {b"host", b"authorization", b"content-type", b"content-length", b"connection", b"user-agent", b"accept",
     b"accept-encoding", b"accept-language", b"x-request-id"}
)  # fmt: skip
_STATUS_LINES: Final = {200: b"HTTP/1.1 200 OK\r\n", 201: b"HTTP/1.1 201 Created\r\n"}
_ENTRIES_PATH: Final = re.compile(rb"/maps/([^/]+)/entries")  # without the index
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
        if method not in _OPERATIONS or not target.startswith(b"/maps/") or not by_name.keys() <= _ELIGIBLE_HEADERS:
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


class _UnusualRequest(Exception):
    """It goes the regular way."""


class FastPath:
    """Answers requests that may go the fast way: it decides nothing, and gives only answers to what goes well."""

    def __init__(self, state: State) -> None:
        """Answer requests with this service, by this policy."""
        self._service: Service = state.service
        self._authentication: Authentication = state.authentication
        self._limits: Limits = state.limits
        self._audit: Audit = state.audit
        self._reads: list[FastRequest] = []  # that arrived in this turn of the event loop

    def take(self, request: FastRequest) -> None:
        """Answer a PUT with the next group of changes, and a GET with all that arrive in this turn of the event loop.

        The answers to those leave one after another, so that no client wakes up in between and takes the processor.
        """
        if request.method != b"GET":
            self._take(request)
            return
        self._reads.append(request)
        if len(self._reads) == 1:
            asyncio.get_running_loop().call_soon(self._take_reads)

    def _take_reads(self) -> None:
        reads, self._reads = self._reads, []
        for request in reads:
            self._take(request)

    def _take(self, request: FastRequest) -> None:
        try:
            index, held = self._admit(request)
            if request.method == b"GET":
                self._answer(request, read_answer(request.scope, self._service, held, index))
                return
            name = _program_named_by(request.body)
        except (_UnusualRequest, ServiceError, HttpProblem):
            request.connection.fall_back(request)
            return
        except Exception as error:  # noqa: BLE001 - the regular way answers it
            request.scope[FAILED] = error
            request.connection.fall_back(request)
            return
        changes, context = self._service.changes, context_of(request.scope)
        changes.group.submit(
            held,
            partial(write_entry, changes, held, index, name, context),
            partial(self._finish_set, request, held, index),
        )

    def _finish_set(
        self, request: FastRequest, held: HeldMap, index: int, result: SetResult | None, error: BaseException | None
    ) -> None:
        """Answer a PUT that is journalled, or let the regular way tell what is wrong."""
        if error is None and result is not None:
            self._answer(request, set_answer(request.scope, self._service.registry, held, index, result))
            return
        if isinstance(error, JournalUnavailable) or not isinstance(error, ServiceError):
            request.scope[FAILED] = error  # it was tried, and is not to be tried again
        request.connection.fall_back(request)

    def _admit(self, request: FastRequest) -> tuple[int, HeldMap]:
        """Return the index of the entry and its map.

        Raises:
            HttpProblem, ServiceError: Whoever asks may not, or there is no such map.
            _UnusualRequest: The regular way knows more.
        """
        folder, _, last = request.path.rpartition(b"/")
        found = _ENTRIES_PATH.fullmatch(folder)
        if found is None:
            raise _UnusualRequest
        name, scope, operation = found[1].decode("latin-1"), request.scope, _OPERATIONS[request.method]
        scope[OPERATION], scope["path"] = operation, request.path.decode("latin-1")
        scope[AUTHORIZATION] = request.headers.get(b"authorization")
        scope[REQUEST_ID] = request_id_of(request.headers)
        if self._service.is_stopping:
            raise _UnusualRequest
        check_access(scope, operation, name, self._authentication, self._limits)
        try:
            index = fields.decimal(last.decode("latin-1"))
        except ValueError:
            raise _UnusualRequest from None
        return index, self._service.registry.maps.get(name)

    def _answer(self, request: FastRequest, answer: Answer) -> None:
        request_id: str = request.scope[REQUEST_ID]
        lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers.items()])
        head = (
            f"{lines}content-length: {len(answer.body) + 1}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {request_id}\r\n\r\n"
        )
        request.connection.answer(
            request, _STATUS_LINES[answer.status], b"%b%b\n" % (head.encode("latin-1"), answer.body)
        )
        operation = _OPERATIONS[request.method]
        self._audit.attempt(request.scope, operation, answer.status, None, request_id)
        self._service.counters.add_request(operation, answer.status, time.perf_counter() - request.began)


@functools.lru_cache(maxsize=1024)
def _parse(body: bytes) -> str | None:
    """Return the held name of a program, if a body says nothing else."""
    try:
        value = from_json(body, allow_inf_nan=False)
        check_members(body, value)
        given = requests.SetEntry.model_validate(value)
    except (ValueError, RepeatedMembers):
        return None
    ref = requests.program_ref(given.program)
    return ref.name if isinstance(ref, ByName) and given.flags == 0 else None


def _program_named_by(body: bytes) -> str:
    name = _parse(body) if len(body) <= _MAX_BODY_BYTES else None
    if name is None:
        raise _UnusualRequest
    return name
