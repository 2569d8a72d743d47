"""HTTP/1.1 on one connection: uvicorn's, with bounds to what it leaves open, and with who is at the other end."""

import asyncio
import socket
from typing import Any, Final

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.access.certificates import names_of
from app.access.peers import Peer
from app.api.authorization import NAMES, PEER
from app.api.limits import Bounds
from app.api.problems import HttpProblem, bare_problem
from app.server.fast_path import FastPath, FastRequest
from app.server.framing import addressed, ambiguity, length_alone

_UNREAD_SECONDS: Final = 30.0  # that an answer may wait to be read
_IDLE_SECONDS: Final = 5.0  # that a connection may be silent between two requests


class Connection(HttpToolsProtocol):
    """`direct`: what takes requests that may go the direct way; None: all go the regular one.

    Thread rule: one event loop.
    """

    direct: FastPath | None = None
    cycle: Any  # the request that came last: a RequestResponseCycle or a Plain; None: none has come yet
    scope: Scope  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.plain: FastRequest | None = None  # is coming, and may go the direct way
        self._idle_since = 0.0
        self._unread: asyncio.TimerHandle | None = None
        self._date: tuple[Any, bytes] = None, b""  # uvicorn's headers for every answer, as they are and as bytes

    def begin_plain(self) -> bool:
        """The head is there. Whether the request may go the direct way: then nothing else has to be done for it."""
        method = self.parser.get_method()
        if self.direct is None or self.is_under_way() or self.flow.write_paused:
            return False
        headers = FastRequest.headers_of(method, self.url, self.headers)
        if headers is None or self.parser.get_http_version() != "1.1":
            return False
        self.cycle = self.plain = FastRequest(self, method, self.url, headers, self.scope)
        return True

    def end_plain(self) -> bool:
        """All of the request is there. Whether it goes the direct way."""
        plain, self.plain = self.plain, None
        if plain is None or self.direct is None:
            return False
        self.direct.take(plain)
        return True

    def leave_direct_way(self) -> None:
        """The rest of a body may come late, or never: the regular way knows what to do then."""
        plain, self.plain = self.plain, None
        if plain is not None:
            self.fall_back(plain, more_body=True)

    def is_under_way(self) -> bool:
        """Whether the request that came last is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def answer(self, plain: FastRequest, status_line: bytes, rest: bytes) -> None:
        """The answer to a request that went the direct way."""
        plain.response_complete = True
        if not plain.disconnected:
            headers, date = self._date
            if headers is not self.server_state.default_headers:
                headers = self.server_state.default_headers
                date = b"".join([b"%b: %b\r\n" % field for field in headers])
                self._date = headers, date
            self.transport.write(b"%b%b%b" % (status_line, date, rest))
            if not plain.keep_alive:
                self.transport.close()
        self.on_response_complete()

    def fall_back(self, plain: FastRequest, *, more_body: bool = False) -> None:
        """A request that might have gone the direct way goes the regular one."""
        scope, path = plain.scope, plain.path.decode("ascii")
        scope.update(method=plain.method.decode(), path=path, raw_path=plain.path, query_string=b"")
        cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=plain.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body, cycle.more_body, cycle.disconnected = bytearray(plain.body), more_body, plain.disconnected
        cycle.message_event.set()
        if self.cycle is plain:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }

    def on_response_complete(self) -> None:
        """One request is answered: the next one in line, or a time in which nothing comes."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        # One timer for many requests, that looks when it ends: to set one for each would cost each several µs.
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(_IDLE_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        """Close, if nothing has come for so long; while something comes, other timers run."""
        self.timeout_keep_alive_task = None
        left = self._idle_since + _IDLE_SECONDS - self.loop.time()
        if self.is_under_way() or self.is_coming():
            return
        if left > 0:
            self._look_again_in(left)
        else:
            super().timeout_keep_alive_handler()

    def is_coming(self) -> bool:
        """For heirs: whether some of a request's head is there."""
        return False

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        """The other end does not read: for so long, and no longer."""
        self.flow.pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        self.stop_unread()
        self.flow.resume_writing()

    def stop_unread(self) -> None:
        """Whether it reads is of no interest any more."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


_PIPELINED: Final = 16  # requests that may wait for the answer to the one before
_PER_BYTE: Final = 8  # bytes that frame one byte of a body: a chunk of its own takes 5


class Protocol(Connection):
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
        self._fields = 0  # bytes of header fields, and of the trailer's
        self._framing = 0  # bytes of a body that are not its content, so far
        self._running: RequestResponseCycle | None = None  # self.cycle is the one that came last
        self._after: bytes | None = None  # what is told when all requests before it are answered
        self._broken: str | None = None  # why the rest of the body of the last request will never come
        self._is_upgrade = False  # as which the parser takes a request that is none to us
        self._again = False  # the parser is told a head again, that a body may follow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look who it is, unless there are too many."""
        if len(self.connections) >= self.bounds.connections:
            transport.abort()
            return
        super().connection_made(transport)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_UNIX:
            self._peer = Peer.of(connection)
        self._names = names_of(transport.get_extra_info("peercert") or {})
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end, or we, have gone."""
        self._stop_timer()
        self.stop_unread()
        if self.transport is not None:
            super().connection_lost(exc)
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self._refused:
            return
        if self._in_head:
            self._head += len(data)
        else:
            self._framing += len(data)
        self._feed(data)
        if self.plain is not None:
            self.leave_direct_way()
        if self._in_head and self._head > self.bounds.header_bytes:
            self._refuse("headers-too-large", f"the head of a request has {self.bounds.header_bytes} bytes at the most")
        elif self._in_head and self._head and self._timer is None:  # some of a head: the rest has to come in time
            self._start_timer()
        elif not self._in_head and self._framing > self.bounds.header_bytes:
            self._refuse("malformed-header", "the chunks are more than what is in them")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._refused:
                self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("that is no HTTP/1.1")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on as if none was asked for: the parser would take what follows to be of another protocol.

        Another parser is told the request again, with no more of its head than tells how long the body is.
        """
        self._is_upgrade, self._again = False, True
        self.parser = httptools.HttpRequestParser(self)
        self._feed(length_alone(self.scope["method"].encode(), self.headers))
        if rest and not self._refused:
            self._feed(rest)

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._again:
            return
        super().on_message_begin()
        self._fields = 0
        self.scope[PEER], self.scope[NAMES] = self._peer, self._names

    def on_url(self, url: bytes) -> None:
        """Some of the target is there."""
        if not self._again:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field is there; or one of the trailer, of which nothing is made."""
        if self._in_head and not self._again:
            self._fields += len(name) + len(value)
            name = name.lower()
            if name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._again:
            self._again = False
            return
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
        if self.begin_plain():
            self._in_head, self._framing = False, 0
            return
        why = ambiguity(self.parser.get_http_version(), self.headers)
        if why is not None:
            self._refuse("malformed-header", why)
            return
        if not self.url.startswith(b"/"):
            self.headers[:] = addressed(self.url, self.headers)
        self._is_upgrade = self.parser.should_upgrade()
        super().on_headers_complete()
        self._in_head, self._framing = False, 0

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        if self.plain is not None:  # its length was told, so nothing frames it
            self.plain.body += body
            return
        self._framing = max(self._framing - len(body) * (_PER_BYTE + 1), -self.bounds.header_bytes)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        if self._is_upgrade:
            return  # it is told again, with its body
        self._in_head, self._head = True, 0
        if not self.end_plain() and not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed."""
        self._refuse("malformed-header", msg)

    def end_stream(self) -> None:
        """The service ends, and what a reader of events has not read by now it will not get."""
        scope: dict[str, Any] | None = getattr(self, "scope", None)  # before the first request there is none
        if scope is not None and scope.get("path") == "/events":
            self.transport.abort()

    def is_coming(self) -> bool:
        """Whether some of a request's head is there."""
        return self._in_head and self._head > 0

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, self._bounded(cycle, app))  # type: ignore[arg-type]

    def _bounded(self, cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            async def received() -> Message:
                message = await receive()
                if self._broken is not None and cycle is self.cycle:
                    raise HttpProblem("malformed-header", self._broken)
                return message

            await app(scope, received, send)

        return run

    def on_response_complete(self) -> None:
        """One request is answered."""
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._after is not None and not self.transport.is_closing():
            self.transport.write(self._after)
            self.transport.close()

    def _refuse(self, code: str, detail: str) -> None:
        """Answer here, where no request came to be, once those before are answered; close. Once is enough."""
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        cycle: RequestResponseCycle | None = getattr(self, "cycle", None)  # before the first request there is none
        if cycle is None or cycle.response_complete:
            if self._in_head:
                self.transport.write(bare_problem(code, detail))
            self.transport.close()
        elif self._in_head:
            self._after = bare_problem(code, detail)
            self._timer = self.loop.call_later(self.bounds.header_seconds, self.transport.close)
        elif cycle.response_started:
            self.transport.close()
        else:
            self._broken = detail
            cycle.message_event.set()
