"""One connection to uvicorn, on which a request may go the direct way, and where idle ones cost nothing."""

import asyncio
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.server.fast_path import Direct, Plain

_UNREAD_SECONDS: Final = 30.0  # that an answer may wait to be read
_IDLE_SECONDS: Final = 5.0  # that a connection may be silent between two requests


class Connection(HttpToolsProtocol):
    """`direct`: what takes requests that may go the direct way; None: all go the regular one.

    Thread rule: one event loop.
    """

    direct: Direct | None = None
    cycle: Any  # the request that came last: a RequestResponseCycle or a Plain; None: none has come yet
    scope: Scope  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.plain: Plain | None = None  # is coming, and may go the direct way
        self._idle_since = 0.0
        self._unread: asyncio.TimerHandle | None = None
        self._date: tuple[Any, bytes] = None, b""  # uvicorn's headers for every answer, as they are and as bytes

    def begin_plain(self) -> bool:
        """The head is there. Whether the request may go the direct way: then nothing else has to be done for it."""
        method = self.parser.get_method()
        if self.direct is None or self.is_under_way() or self.flow.write_paused:
            return False
        headers = Plain.headers_of(method, self.url, self.headers)
        if headers is None or self.parser.get_http_version() != "1.1":
            return False
        self.cycle = self.plain = Plain(self, method, self.url, headers, self.scope)
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
            self.give_up(plain, more_body=True)

    def is_under_way(self) -> bool:
        """Whether the request that came last is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def answer(self, plain: Plain, status_line: bytes, rest: bytes) -> None:
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

    def give_up(self, plain: Plain, *, more_body: bool = False) -> None:
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
