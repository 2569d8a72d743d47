"""HTTP/1.1 on one connection: uvicorn's, with bounds to what it leaves open, and with who is at the other end."""

import asyncio
import json
import socket
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.access.peers import Peer
from app.api.policy import NAMES, PEER
from app.api.problems import MEDIA_TYPE, PROBLEMS

_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


_PIPELINED: Final = 16  # requests that may wait for the answer to the one before
_UNREAD_SECONDS: Final = 30.0  # that an answer may wait to be read


class Bounds:
    """What a connection may take. One for all of them."""

    def __init__(self, connections: int = 4096, header_bytes: int = 32_768, header_seconds: float = 10.0) -> None:
        self.connections, self.header_bytes, self.header_seconds = connections, header_bytes, header_seconds


class Protocol(HttpToolsProtocol):
    """Thread rule: one event loop."""

    bounds = Bounds()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._peer: Peer | None = None
        self._names: tuple[str, ...] = ()
        self._head = 0  # bytes of the head that is coming
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look who it is, unless there are too many."""
        if len(self.connections) >= self.bounds.connections:
            transport.abort()
            return
        super().connection_made(transport)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_UNIX:
            self._peer = Peer.of(connection)
        certificate: dict[str, Any] = transport.get_extra_info("peercert") or {}
        self._names = tuple(name for _, name in certificate.get("subjectAltName", ()))
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end, or we, have gone."""
        self._stop_timer()
        self._stop_unread()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self._refused:
            return
        if self._in_head:
            self._head += len(data)
            if self._timer is None:  # the first bytes of another request
                self._start_timer()
        super().data_received(data)
        if self._in_head and self._head > self.bounds.header_bytes:
            self._refuse("headers-too-large", f"the head of a request has {self.bounds.header_bytes} bytes at the most")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._fields = 0
        self.scope[PEER] = self._peer  # type: ignore[typeddict-unknown-key]
        self.scope[NAMES] = self._names  # type: ignore[typeddict-unknown-key]

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field is there."""
        self._fields += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._stop_timer()
        if self._refused:
            return
        if len(self.pipeline) >= _PIPELINED:
            self._refused = True
            self.transport.abort()
            return
        if self._fields + len(self.url) > self.bounds.header_bytes:
            self._refuse("headers-too-large", f"the head of a request has {self.bounds.header_bytes} bytes at the most")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        self._in_head, self._head = True, 0
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed."""
        if not self._refused:
            self._refuse("malformed-header", f"that is no HTTP/1.1: {msg}")

    def pause_writing(self) -> None:
        """The other end does not read: for so long, and no longer."""
        self.flow.pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        self._stop_unread()
        self.flow.resume_writing()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def end_stream(self) -> None:
        """The service ends, and what a reader of events has not read by now it will not get."""
        scope: dict[str, Any] | None = getattr(self, "scope", None)  # before the first request there is none
        if scope is not None and scope.get("path") == "/events":
            self.transport.abort()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.bounds.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head and self._head and not self.transport.is_closing():
            self._refuse("request-timeout", f"the head did not end within {self.bounds.header_seconds:g} s")
        else:
            self.transport.close()  # connected, and silent since

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = getattr(self, "cycle", None)  # before the first request there is none
        return cycle is not None and not cycle.response_complete

    def _refuse(self, code: str, detail: str) -> None:
        """Answer here, as no request came to be, and close."""
        self._refused = True
        self._stop_timer()
        kind = PROBLEMS[code]
        facts = {
            "type": f"/problems/{code}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "code": code,
        }
        body = json.dumps(facts).encode() + b"\n"
        if not self._answering():
            self.transport.write(
                f"HTTP/1.1 {kind.status} {_REASONS[kind.status]}\r\ncontent-type: {MEDIA_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
        self.transport.close()
