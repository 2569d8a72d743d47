"""HTTP/1.1 on one connection: from received bytes to calls of the ASGI application, and back.

`Connection` feeds what it receives to llhttp (`httptools`), which calls back for each part of a request. When the head
of a request is complete, an `Exchange` (one request and its answer) calls the application; the body follows as it
arrives. A simple request for one entry is taken by `FastPath` instead, before the parser sees it. Both end in
`Connection.finish`, which starts the next request.

A request that breaks HTTP or exceeds a limit does not reach the application: `Connection.refuse` answers it, after the
answers to the requests before it, and closes the connection.
"""

import asyncio
import fcntl
import socket
import termios
from array import array
from collections import deque
from typing import Any, Final
from urllib.parse import unquote

import httptools
import structlog
import uvicorn
from starlette.types import Message, Scope
from uvicorn.server import ServerState

from app.access.certificates import names_of
from app.access.peers import Peer
from app.api.authorization import COUNTED, NAMES, PEER
from app.api.limits import Bounds, ClientGone
from app.api.problems import INTERNAL_DETAIL, HttpProblem, bare_problem
from app.api.scope import FAILED, Failure
from app.server.fast_path import FastPath, Meanings
from app.server.framing import (
    STATUS_LINES,
    Headers,
    ambiguity,
    head_without_upgrade,
    header_lines,
    unknown_method,
    with_target_host,
)
from app.server.hot_step import FastRequest

_UNREAD_ANSWER_TIMEOUT_SECONDS: Final = 30.0
_UNREAD_BYTES_RETRY_SECONDS: Final = 1.0  # when a connection is idle by the clock, but has bytes to read
# After its last answer, a connection goes on to read what the client still sends, and drops it. It does so until the
# client closes or one of these limits is reached.
_LINGER_SECONDS: Final = 10.0
_LINGER_QUIET_SECONDS: Final = 2.0  # without a byte received
_MAX_LINGER_BYTES: Final = 32 << 20
_MAX_WAITING_REQUESTS: Final = 16  # pipelined behind the one that is being answered
_BODY_BUFFER_BYTES: Final = 65_536  # with more, the connection stops reading until the application takes it
# How long a request of the fast path waits for the rest of its body: clients often send it in a packet of its own.
_REST_SECONDS: Final = 0.05
_MAX_FRAMING_PER_BODY_BYTE: Final = 8  # a chunk of one byte has 5 bytes of framing

log = structlog.get_logger()


class Exchange:
    """One request and its answer: `receive` and `send` of one call of the ASGI application.

    The application is trusted to send messages in order, and as many bytes of a body as content-length says.
    """

    def __init__(self, connection: "Connection", scope: Scope, *, keep_alive: bool) -> None:
        self.scope, self.keep_alive = scope, keep_alive
        self.body = bytearray()  # received, and not yet taken by the application
        self.body_error: str | None = None  # why the rest of the body will never come
        self.has_more_body = True
        self.changed = asyncio.Event()  # set when `receive` has something to return
        self.is_started = self.is_answered = False
        self._connection = connection
        self._unsent = b""  # the head, until the first part of the body comes, or the event loop has its turn
        self._expects_continue = dict(scope["headers"]).get(b"expect", b"").lower() == b"100-continue"
        self._is_chunked = False

    async def run(self) -> None:
        """Call the application. Close the connection if the answer is incomplete afterwards."""
        try:
            await self._connection.app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("internal error", path=self.scope["path"])
            if not self.is_started and not self._connection.is_closing:
                self._connection.transport.write(bare_problem("internal", INTERNAL_DETAIL))
        finally:
            if not self.is_answered:
                self._connection.give_up()

    async def receive(self) -> Message:
        """Return the next part of the body; `http.disconnect` once the answer is complete or the client has gone.

        Raises:
            HttpProblem: The rest of the body is malformed.
        """
        connection = self._connection
        if self._expects_continue and not connection.is_closing:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects_continue = False
        if not connection.is_lost and not self.is_answered:
            connection.transport.resume_reading()
            await self.changed.wait()
            self.changed.clear()
        if self.body_error is not None:
            raise HttpProblem("malformed-header", self.body_error)
        if connection.is_lost or self.is_answered:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.has_more_body}

    async def send(self, message: Message) -> None:
        """Send the head or a part of the body, once the client has read enough of what came before.

        Raises:
            ClientGone: The client has gone, so more of the body need not be made.
        """
        connection = self._connection
        await connection.writable.wait()
        if connection.is_lost or connection.is_closing:
            if message.get("more_body", False):
                raise ClientGone
            return
        if message["type"] == "http.response.start":
            self.is_started, self._expects_continue = True, False
            self._unsent = self._head(message["status"], message.get("headers", []))
            connection.call_soon(self._flush)
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if is_last else b"")
        elif self.scope["method"] == "HEAD":
            body = b""
        self._flush(body)
        if is_last:
            self.is_answered = True
            self.changed.set()
            if not self.keep_alive:
                connection.close()
            connection.finish()

    def _flush(self, body: bytes = b"") -> None:
        """Send the head if it is not sent yet, and a part of the body with it: one packet, or one record of TLS."""
        unsent, self._unsent = self._unsent + body, b""
        if unsent and not self._connection.is_lost:
            self._connection.transport.write(unsent)

    def _head(self, status: int, headers: Headers) -> bytes:
        added: Headers = []
        if (b"connection", b"close") in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            added.append((b"connection", b"close"))
        has_end = self.scope["method"] == "HEAD" or status in {204, 304} or b"content-length" in dict(headers)
        if not has_end and self.scope["http_version"] == "1.1":  # in HTTP/1.0, the body ends with the connection
            self._is_chunked = True
            added.append((b"transfer-encoding", b"chunked"))
        lines = header_lines([*headers, *added])
        return b"%b%b%b\r\n" % (STATUS_LINES[status], self._connection.default_header_lines(), lines)


class Connection(asyncio.Protocol):
    """One connection of a client. uvicorn makes it, and calls `shutdown` when the service stops.

    Not thread-safe: everything runs in the event loop.

    Attributes:
        bounds: What a client may take of the service.
        fast_path: Answers simple requests; None: the application answers every request.
    """

    bounds = Bounds()
    fast_path: FastPath | None = None

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        self.app: Any = config.loaded_app
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()  # whether the transport takes more to send
        self.writable.set()
        self.is_admitted = False  # it was counted before it was made
        self.is_lost = False
        self.is_closing = False  # nothing more is answered
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self.call_soon = self._loop.call_soon
        self._server_state, self._app_state = server_state, app_state
        self._connections: set[Any] = server_state.connections
        # What the scopes of all requests have in common.
        self.scope: dict[str, Any] = {"asgi": {"version": config.asgi_version, "spec_version": "2.3"}}
        self._default_headers: tuple[Headers, bytes] = [], b""  # the list of uvicorn, and its lines
        # The request that is being received.
        self._tcp: socket.socket | None = None  # None: not over TCP
        self._parser = self._make_parser()
        self._target, self._headers = b"", Headers()
        self._in_head = True  # False: in the body
        self._field_bytes = 0  # of header fields
        self._overhead_bytes = 0  # of the head, or of the body without its content, since that began
        self._receiving: Exchange | None = None  # set while its body is received
        # For the fast path.
        self.identity: tuple[Any, ...] = ()
        self.meanings: Meanings | None = None
        self._fast: FastRequest | None = None  # until it is answered
        self._backlog = b""  # received meanwhile
        self._is_eof_due = False  # the client has ended its side meanwhile
        self._incomplete = b""  # a request of the fast path without the rest of its body
        self._rest_timer: asyncio.TimerHandle | None = None  # runs while the rest is waited for
        self._failure: Failure | None = None  # of the fast path with the next request of the parser
        self._is_counted = False  # that one counts against requests_per_second already
        # The requests that are not answered yet, in order.
        self._running: FastRequest | Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._has_client_ended = False  # it sends no more
        self._is_refused = False  # what is received from now on is ignored
        self._refusal: bytes | None = None  # to be sent after the answers to these requests
        self._idle_since = 0.0  # time of the event loop
        self._idle_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None  # runs while writing is paused
        self._linger_timer: asyncio.TimerHandle | None = None
        self._dropped_bytes = 0  # received after the last request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Find out who connects. Abort if there are too many connections."""
        if len(self._connections) >= self.bounds.connections and not self.is_admitted:
            transport.abort()
            return
        self.transport = transport
        self._connections.add(self)
        local: socket.socket | None = transport.get_extra_info("socket")
        self._tcp = None if local is None or local.family == socket.AF_UNIX else local
        server, client = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self.scope |= {
            "type": "http",
            "http_version": "1.1",
            "server": server[:2] if isinstance(server, tuple) else (server, None),
            "client": client[:2] if isinstance(client, tuple) else None,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": "",
            PEER: Peer.of(local) if local is not None and local.family == socket.AF_UNIX else None,
            NAMES: names_of(transport.get_extra_info("peercert") or {}),
        }
        addresses = [None if each is None else each[0] for each in (self.scope["client"], self.scope["server"])]
        self.identity = *addresses, self.scope[PEER], tuple(self.scope[NAMES])
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the application that the client has gone, and drop the requests that wait."""
        self.is_lost = True
        self._connections.discard(self)
        self._stop_head_timer()
        for timer in (self._idle_timer, self._linger_timer, self._rest_timer):
            if timer is not None:
                timer.cancel()
        self.resume_writing()
        if isinstance(self._running, Exchange):
            self._running.changed.set()
        self._running = self._receiving = None
        self._waiting.clear()
        del self._parser  # ends a reference cycle

    def shutdown(self) -> None:
        """Close after the answer to the request that came last, or now."""
        self._wait_no_more()
        last = self._waiting[-1] if self._waiting else self._running
        if last is None:
            self.close()
        else:
            last.keep_alive = False

    def end_stream(self) -> None:
        """Abort a stream of events, which has no end of its own."""
        if self._is_stream():
            self.transport.abort()

    def _is_stream(self) -> bool:
        return isinstance(self._running, Exchange) and self._running.scope.get("path") == "/events"

    def eof_received(self) -> bool:
        """Close after the answers: the client sends no more, but may still read.

        A client that has gone looks the same as one that has only ended its side. So a stream of events ends: it would
        go on for nobody. TLS has no such state: the transport closes in any case.

        Returns:
            Whether the connection stays open.
        """
        if self.is_closing or self._is_stream() or self.transport.get_extra_info("sslcontext"):
            return False
        self._wait_no_more()
        if self._backlog:
            self._is_eof_due = True
            return True
        is_first, self._has_client_ended = not self._has_client_ended, True  # it comes again when reading is resumed
        if is_first and (not self._in_head or self._overhead_bytes):
            self.refuse("malformed-header", "the request ends before it is complete; send all of it")
        last = self._waiting[-1] if self._waiting else self._running
        if last is not None and self._refusal is None:
            last.keep_alive = False
        return last is not None

    def pause_writing(self) -> None:
        """Let `send` wait while the client does not read. Abort if that lasts too long."""
        self.writable.clear()
        self._unread_timer = self._loop.call_later(_UNREAD_ANSWER_TIMEOUT_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Let `send` go on: the client reads."""
        self.writable.set()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        """Pass what the client sends to the fast path or to the parser."""
        if self._fast is not None:
            self._backlog += data
            if len(self._backlog) > _BODY_BUFFER_BYTES:
                self.transport.pause_reading()
            return
        is_second_part = bool(self._incomplete)
        if is_second_part:
            data = self._take_incomplete() + data
        if (
            self.fast_path is None
            or self._running is not None
            or self._overhead_bytes
            or not self._in_head
            or self._is_refused
            or self._unread_timer is not None
        ):
            self._parse(data)
            return
        taken = self.fast_path.take(self, data)
        if taken is None or (is_second_part and isinstance(taken, int)):
            self._parse(data)
        elif isinstance(taken, int):
            self._incomplete = data
            self._acknowledge()
            self._rest_timer = self._loop.call_later(_REST_SECONDS, self._wait_no_more)
        else:
            if self._head_timer is not None:
                self._stop_head_timer()
            self._running = self._fast = taken
            self._backlog = data[len(taken.data) :]

    def _acknowledge(self) -> None:
        """Let the kernel acknowledge now what it has received, and not after 40 ms: tcp(7).

        A client that sends the body by itself may wait for that (Nagle's algorithm, RFC 9293, 3.7.4).
        """
        if self._tcp is not None:
            self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _take_incomplete(self) -> bytes:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        data, self._incomplete = self._incomplete, b""
        return data

    def _wait_no_more(self) -> None:
        """Pass an incomplete request to the parser."""
        if self._incomplete:
            self._parse(self._take_incomplete())

    def _parse(self, data: bytes) -> None:
        """Parse what the client sends. Refuse a head that is too large, and a body that is mostly framing."""
        if self._is_refused:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > _MAX_LINGER_BYTES:
                self.transport.abort()
            return
        self._overhead_bytes += len(data)
        self._feed(data)
        if self._overhead_bytes > self.bounds.header_bytes:
            if self._in_head:
                self._refuse_large_head()
            else:
                self.refuse("malformed-header", "the chunks are more than what is in them; send larger ones")
        elif self._in_head and self._overhead_bytes and self._head_timer is None:
            self._start_head_timer()
        if not self._in_head:
            self._acknowledge()

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # A request with `Connection: close` is answered even if the client sends more after it.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The service ignores upgrades (RFC 9110, 7.8), but this parser expects another protocol from here on. So a
            # new parser gets the request again, without its header Upgrade.
            if not self._is_refused:
                method, version = self._parser.get_method(), self._parser.get_http_version()
                head = head_without_upgrade(method, self._target, version, self._headers)
                self._parser = self._make_parser()
                self._feed(head + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:  # also for an error in a method that the parser calls
            unknown = unknown_method(data) if self._in_head and "method" in str(error) else None
            if unknown is None:
                self.refuse(
                    "malformed-header",
                    "that is no HTTP/1.1; send HTTP/1.1, and over TLS only where [tls] is configured",
                )
            else:
                self.refuse("method-unknown", f"there is no method {unknown} here; use GET, PUT, PATCH, POST or DELETE")

    def on_message_begin(self) -> None:
        """Forget the head of the request before."""
        self._target, self._headers, self._field_bytes = b"", [], 0
        self._overhead_bytes = self._overhead_bytes or 1  # the head begins behind another request

    def on_url(self, url: bytes) -> None:
        """Add a part of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field. Trailer fields, which follow a body, are ignored."""
        if self._in_head:
            self._field_bytes += len(name) + len(value)
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begin to answer the request, or refuse it: its head is complete."""
        self._stop_head_timer()
        if self._is_refused:
            return
        if len(self._waiting) >= _MAX_WAITING_REQUESTS:
            self._is_refused = True
            self.transport.abort()
        elif self._field_bytes + len(self._target) > self.bounds.header_bytes:
            self._refuse_large_head()
        elif self._begin_exchange():
            self._in_head, self._overhead_bytes = False, 0

    def _begin_exchange(self) -> bool:
        """Begin a request that the application answers; False: it is refused, or asks for an upgrade."""
        parser, headers = self._parser, self._headers
        method, version = parser.get_method(), parser.get_http_version()
        if method == b"CONNECT":  # what follows it is not HTTP
            self.refuse("method-unknown", "CONNECT is for proxies, and this is none: send another method")
            return False
        error = ambiguity(version, headers)
        if error is not None:
            self.refuse("malformed-header", error)
            return False
        url = httptools.parse_url(self._target)
        if parser.should_upgrade():
            return False
        path = url.path.decode("ascii")
        scope = {
            **self.scope,
            "http_version": version,
            "method": method.decode(),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": with_target_host(self._target, headers),
            "state": self._app_state.copy(),
        }
        if self._failure is not None:
            scope[FAILED], self._failure = self._failure, None
        if self._is_counted:
            scope[COUNTED], self._is_counted = True, False
        self._receiving = Exchange(self, scope, keep_alive=version == "1.1" and parser.should_keep_alive())
        if self._running is None:
            self._start(self._receiving)
        else:
            self.transport.pause_reading()
            self._waiting.append(self._receiving)
        return True

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        allowed = len(body) * (1 + _MAX_FRAMING_PER_BODY_BYTE)
        self._overhead_bytes = max(self._overhead_bytes - allowed, -self.bounds.header_bytes)
        exchange = self._receiving
        if exchange is not None and not exchange.is_answered and not self._is_refused:
            exchange.body += body
            if len(exchange.body) > _BODY_BUFFER_BYTES:
                self.transport.pause_reading()
            exchange.changed.set()

    def on_message_complete(self) -> None:
        """End the body: the request is complete."""
        self._in_head, self._overhead_bytes = True, 0
        if self._receiving is not None and not self._is_refused:
            self._receiving.has_more_body = False
            self._receiving.changed.set()
            self._receiving = None

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        task = self._loop.create_task(exchange.run())
        task.add_done_callback(self._server_state.tasks.discard)
        self._server_state.tasks.add(task)

    def fall_back(self, request: FastRequest, failure: BaseException | None = None) -> None:
        """Pass a request of the fast path to the parser, with what was received behind it.

        Args:
            request: The request.
            failure: It was tried, and this is why it failed. The application then answers with that.
        """
        self._running = self._fast = None
        if self.is_lost:
            return
        meaning = request.meaning
        self._failure = None if failure is None else Failure(failure, meaning.operation, meaning.actor)
        self._is_counted = request.is_counted
        data, self._backlog = request.data + self._backlog, b""
        self.transport.resume_reading()
        self._parse(data)
        if not request.keep_alive:
            self.shutdown()
        self._end_after_backlog()

    def answer(self, request: FastRequest, answer: bytes) -> None:
        """Answer a request of the fast path."""
        self._fast = None
        if not self.is_lost and not self.is_closing:
            self.transport.write(answer)
            if request.keep_alive and not self._backlog and not self._is_eof_due:
                self._running = None
                self._begin_idle()
                return
            if not request.keep_alive:
                self.close()
        self.finish()
        if self._backlog:
            data, self._backlog = self._backlog, b""
            self.data_received(data)
        self._end_after_backlog()

    def _end_after_backlog(self) -> None:
        """Do what `eof_received` could not do before the backlog was passed on."""
        if self._is_eof_due and self._fast is None:
            self._is_eof_due = False
            if not self.eof_received():
                self.close()

    def finish(self) -> None:
        """Go on after an answer: with the next request, with the refusal that waits, or idle."""
        self._running = None
        self._server_state.total_requests += 1
        if self.is_lost or self.is_closing or self.transport.is_closing():
            return
        self.transport.resume_reading()
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._refusal is not None:
            self.transport.write(self._refusal)
            self.close()
        else:
            self._begin_idle()

    def _begin_idle(self) -> None:
        # One timer serves many requests: it looks at the time when it ends. A timer for each would cost several µs.
        self._idle_since = self._loop.time()
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self.bounds.idle_seconds, self._check_idle)

    def refuse(self, code: str, detail: str) -> None:
        """Answer what cannot become an exchange with a problem, in its turn, and close. Later calls do nothing.

        For a malformed body, the answer is up to the application: `Exchange.receive` tells it.
        """
        if self._is_refused:
            return
        self._is_refused = True
        self._stop_head_timer()
        if self._running is None:
            if self._in_head:
                self.transport.write(bare_problem(code, detail))
            self.close()
        elif self._in_head:
            self._refusal = bare_problem(code, detail)
            self._head_timer = self._loop.call_later(self.bounds.header_seconds, self.close)
        elif self._receiving is None or self._receiving.is_started:
            self.close()
        else:
            self._receiving.body_error = detail
            self._receiving.changed.set()

    def _refuse_large_head(self) -> None:
        self.refuse(
            "headers-too-large",
            f"the head of a request has {self.bounds.header_bytes} bytes at the most; send shorter headers",
        )

    def close(self) -> None:
        """Close once everything written is sent. What the client still sends is dropped.

        Whoever closes a socket with bytes that nobody has read resets the connection, and the client may lose the
        answer (RFC 9112, 9.6). So if the client may still be sending, only this side of the connection ends now.
        """
        if self.is_closing or self.is_lost or self.transport.is_closing():
            return
        is_between_requests = self._in_head and not self._overhead_bytes and not self._is_refused
        self.is_closing = self._is_refused = True
        self._stop_head_timer()
        if self._has_client_ended or (is_between_requests and not self._unread_bytes()):
            self.transport.close()
            return
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()
        self.transport.resume_reading()
        self._linger(self._loop.time() + _LINGER_SECONDS, -1)

    def give_up(self) -> None:
        """Close after an incomplete answer. What the client does not read is dropped."""
        if self.writable.is_set():
            self.close()
        elif not self.is_lost:
            self.transport.abort()

    def _linger(self, until: float, dropped_bytes: int) -> None:
        """Close at this time of the event loop, or when the client has sent nothing for a while."""
        if self._dropped_bytes == dropped_bytes or self._loop.time() >= until:
            self.transport.close()
            self._linger_timer = self._loop.call_later(_UNREAD_ANSWER_TIMEOUT_SECONDS, self.transport.abort)
        else:
            self._linger_timer = self._loop.call_later(_LINGER_QUIET_SECONDS, self._linger, until, self._dropped_bytes)

    def default_header_lines(self) -> bytes:
        """Return the headers of every answer (the date), which uvicorn renews every second."""
        if self._default_headers[0] is not self._server_state.default_headers:
            headers = self._server_state.default_headers
            self._default_headers = headers, header_lines(headers)
        return self._default_headers[1]

    def _check_idle(self) -> None:
        self._idle_timer = None
        left = self._idle_since + self.bounds.idle_seconds - self._loop.time()
        if self._running is not None or self._incomplete or (self._in_head and self._overhead_bytes):
            return  # other limits of time apply
        if left > 0:
            self._idle_timer = self._loop.call_later(left, self._check_idle)
        elif self._unread_bytes():  # of a request that came at the last moment
            self._idle_timer = self._loop.call_later(_UNREAD_BYTES_RETRY_SECONDS, self._check_idle)
        else:
            self.close()

    def _unread_bytes(self) -> int:
        """Return how many received bytes the kernel holds that this process has not read."""
        local, unread = self.transport.get_extra_info("socket"), array("i", [0])
        if local is not None:
            fcntl.ioctl(local.fileno(), termios.FIONREAD, unread)
        return unread[0]

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self.bounds.header_seconds, self._end_slow_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        self._head_timer = None
        if self._in_head and self._overhead_bytes and not self.is_closing:
            self.refuse(
                "request-timeout", f"the head did not end within {self.bounds.header_seconds:g} s; send it faster"
            )
        else:
            self.close()  # the client has sent nothing since it connected
