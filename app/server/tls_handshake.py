"""TLS handshakes, before there is a connection that speaks HTTP."""

import asyncio
import os
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from app.server.connection import Connection
from app.server.tls import Tls


class TlsHandshake(asyncio.Protocol):
    """A connection until its TLS handshake is complete. Then a `Connection` takes its place.

    The handshake is not left to the server of asyncio, which tells nobody of one that has begun or failed. Here it
    counts as a connection from its beginning, and has as much time as the head of a request.

    Attributes:
        tls: Makes the TLS context.
    """

    tls: Tls

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        self._connection = Connection(config, server_state, app_state, _loop)
        self._connection.is_admitted = True
        self._connections: set[Any] = server_state.connections
        self._task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the handshake. Abort if there are too many connections."""
        if len(self._connections) < Connection.bounds.connections:
            # The event loop makes another transport for the same socket.
            accepted = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            self._connections.add(self)
            self._task = asyncio.get_running_loop().create_task(self._run(accepted))
        transport.abort()

    def shutdown(self) -> None:
        """End the handshake: the service stops."""
        self._task.cancel()

    async def _run(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connection,
                accepted,
                ssl=self.tls.context,
                ssl_handshake_timeout=Connection.bounds.header_seconds,
            )
        except (
            OSError,
            asyncio.CancelledError,
        ):  # the client is gone, slow, or speaks no TLS
            accepted.close()
        finally:
            self._connections.discard(self)
