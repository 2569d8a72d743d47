"""Listening, serving and ending: uvicorn, with its sockets and its end made ours."""

import asyncio
import codecs
import contextlib
import gc
import importlib
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from app.api.limits import Bounds
from app.server.connection import Protocol
from app.server.fast_path import FastPath
from app.server.listen import ListenError
from app.server.systemd import Notifier
from app.server.tls import Tls

_GRACE_SECONDS: Final = 10
_STREAM_SECONDS: Final = 1.0  # for readers of events

log = structlog.get_logger()


def raise_open_files() -> None:
    """RLIMIT_NOFILE to its hard limit: every held object and every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def preload() -> None:
    """Import what is otherwise imported on the way: later the process may not be allowed to read where it is."""
    for module in ("uvicorn.lifespan.on", "uvicorn.loops.uvloop", "fastapi.telemetry._runtime"):
        importlib.import_module(module)
    for encoding in ("ascii", "latin-1", "idna"):
        codecs.lookup(encoding)


def serve(
    app: FastAPI,
    listener: socket.socket,
    bounds: Bounds | None = None,
    tls: Tls | None = None,
    manager: Notifier | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then give requests that are under way 10 s, and return. `manager`: is told."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    Protocol.bounds, Protocol.direct = bounds or Bounds(), FastPath(app)
    # What the imports made lives as long as the process: the garbage collector need not look at it time and again.
    # A table of 65,536 entries makes half a million objects and no cycles: it need not look hundreds of times at those.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # A thread that writes a table comes back from the kernel every few ms, and should not wait as long for its turn.
    sys.setswitchinterval(0.0005)
    config.load()
    config.ssl = None if tls is None else tls.context
    server = _Server(config, app, manager or Notifier({}))
    server.run(sockets=[listener])
    if not server.started:
        message = "the service could not start; the log tells why"
        raise ListenError(message)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, manager: Notifier) -> None:
        super().__init__(config)
        self._app = app
        self._manager = manager

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._manager.notify("READY=1")
            if self._manager.watchdog_interval_seconds:
                self.notify_watchdog()

    def notify_watchdog(self) -> None:
        """Tell the watchdog that the event loop goes round."""
        self._manager.notify_watchdog()
        asyncio.get_running_loop().call_later(self._manager.watchdog_interval_seconds, self.notify_watchdog)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In the place of uvicorn's, which raises the signal again at the end, so that the exit status is not 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reopen)
        yield

    def _reopen(self) -> None:
        try:
            self._app.state.audit.reopen()
        except OSError as error:
            log.warning("the audit file cannot be opened anew; the old one is written on", reason=error.strerror)

    def _end_streams(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.end_stream()

    def _stop(self, number: int) -> None:
        if self.should_exit:
            self.force_exit |= number == signal.SIGINT  # Ctrl-C twice: without the grace
            return
        self._app.state.service.stop()
        asyncio.get_running_loop().call_later(_STREAM_SECONDS, self._end_streams)
        self.should_exit = True
        self._manager.notify("STOPPING=1")
        log.info("stopping", signal=signal.Signals(number).name)
