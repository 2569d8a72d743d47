"""Serve the application: uvicorn, with a listener, a protocol and a way to stop of our own."""

import asyncio
import codecs
import contextlib
import gc
import importlib
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import structlog
import uvicorn
from starlette.types import ASGIApp

from app.api import deferred
from app.api.audit import Audit
from app.api.limits import Bounds
from app.api.state import State
from app.bpf.linux import LinuxKernel
from app.sandbox.abilities import counts_map_memory
from app.server import late_imports, logging
from app.server.connection import Connection
from app.server.fast_path import FastPath
from app.server.keeper_watch import KeeperWatch
from app.server.listen import ListenError
from app.server.reload import Reload
from app.server.systemd import Notifier
from app.server.tls import Tls
from app.server.tls_handshake import TlsHandshake

_GRACE_SECONDS: Final = 10  # for requests that are being answered when the service stops
_STREAM_GRACE_SECONDS: Final = 1.0  # for streams of events

log = structlog.get_logger()


def raise_open_files() -> None:
    """Raise RLIMIT_NOFILE to its hard limit: each held object and each connection is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def raise_memlock() -> None:
    """Raise RLIMIT_MEMLOCK as far as it may be raised, where the kernel counts maps and programs against it.

    Kernel: those before Linux 5.11 do. Where they do not, the limit stays as it is: it bounds mlock(2) alone.
    """
    if counts_map_memory(LinuxKernel()) is not True:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(OSError, ValueError):  # it takes CAP_SYS_RESOURCE to go beyond the hard limit
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return


def preload(uid: int) -> None:
    """Import what is otherwise imported later, when the process may no longer be allowed to read the files.

    Args:
        uid: Of the user that the process is then.
    """
    for module in ("uvicorn.lifespan.on", "uvicorn.loops.uvloop"):
        importlib.import_module(module)
    for encoding in ("ascii", "latin-1", "idna"):
        codecs.lookup(encoding)
    late_imports.prepare(uid)


def serve(
    state: State,
    listener: socket.socket,
    bounds: Bounds | None = None,
    tls: Tls | None = None,
    manager: Notifier | None = None,
    watch: KeeperWatch | None = None,
    reload: Reload | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until `watch` ends the service. Requests being answered then get 10 s to end.

    Args:
        state: What requests are answered with.
        listener: A listening socket, which is closed at the end.
        bounds: The limits of a connection; None: the default ones.
        tls: The TLS context; None: without TLS.
        manager: Receives READY, WATCHDOG and STOPPING; None: nobody does.
        watch: Ends the service after its keeper; None: there is no keeper.
        reload: Reads the configuration anew on SIGHUP; None: there is none.

    Raises:
        ListenError: The service could not start.
    """
    state.service.counters.dropped_lines.append(logging.dropped_lines)
    Connection.fast_path = FastPath(state)
    # A thread that writes a table returns from the kernel every few ms. It then waits 0.5 ms for the GIL, not 5 ms.
    sys.setswitchinterval(0.0005)
    served = Served(deferred.Application(state), state.service.stop, state.audit, watch, reload)
    serve_application(served, listener, bounds, tls, manager)


class Served(NamedTuple):
    """What is served, and what it does when the process is told something.

    Attributes:
        application: The application, for ASGI.
        stop: Called when the service is to stop: from then on it refuses requests.
        audit: Its file is opened anew on SIGHUP.
        watch: Ends the service after its keeper; None: there is no keeper.
        reload: Reads the configuration anew on SIGHUP; None: that is not possible.
    """

    application: ASGIApp
    stop: Callable[[], None]
    audit: Audit
    watch: KeeperWatch | None = None
    reload: Reload | None = None


def serve_application(
    served: Served,
    listener: socket.socket,
    bounds: Bounds | None = None,
    tls: Tls | None = None,
    manager: Notifier | None = None,
) -> None:
    """Serve an application, until SIGTERM or SIGINT: see `serve`.

    Raises:
        ListenError: The service could not start.
    """
    if tls is not None:
        TlsHandshake.tls = tls
    config = uvicorn.Config(
        served.application,
        loop="uvloop",
        http=Connection if tls is None else TlsHandshake,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    logging.start()
    Connection.bounds = bounds or Bounds()
    # The imported modules live as long as the process: the garbage collector skips them from here on.
    gc.freeze()
    config.load()
    server = _Server(config, served, manager or Notifier({}))
    server.run(sockets=[listener])
    if not server.started:
        raise ListenError("the service could not start; the log tells why")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, served: Served, manager: Notifier) -> None:
        super().__init__(config)
        self._served = served
        self._manager = manager
        self._watching: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._manager.notify("READY=1")
            if self._manager.watchdog_interval_seconds:
                self.notify_watchdog()
            if self._served.watch is not None:
                self._watching = asyncio.create_task(self._served.watch.run(self._begin_stop))

    def notify_watchdog(self) -> None:
        """Tell the watchdog periodically that the event loop runs."""
        self._manager.notify_watchdog()
        asyncio.get_running_loop().call_later(self._manager.watchdog_interval_seconds, self.notify_watchdog)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals. uvicorn's method would raise the signal again at the end: the exit status would not be 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        yield

    def _hang_up(self) -> None:
        self._reopen_audit()
        if self._served.reload is not None and not self.should_exit:
            task = asyncio.create_task(self._served.reload.run())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    def _reopen_audit(self) -> None:
        try:
            self._served.audit.reopen()
        except OSError as error:
            log.warning("the audit file cannot be opened anew; the old one is written on", reason=error.strerror)

    def _end_streams(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.end_stream()

    def _stop(self, number: int) -> None:
        if self.should_exit:
            self.force_exit |= number == signal.SIGINT  # a second Ctrl-C ends the grace
            return
        self._begin_stop()
        log.info("stopping", signal=signal.Signals(number).name)

    def _begin_stop(self) -> None:
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()
        self._served.stop()
        asyncio.get_running_loop().call_later(_STREAM_GRACE_SECONDS, self._end_streams)
        self.should_exit = True
        self._manager.notify("STOPPING=1")
