"""An httpx transport that passes requests as bytes to the server's protocol, without sockets."""

import asyncio
import socket
from typing import Any, cast

import h11
import httpx
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.api.state import State
from app.server.connection import Connection
from app.server.fast_path import FastPath


class CountingFastPath(FastPath):
    """Tells how many requests it has answered."""

    @property
    def answered(self) -> int:
        return self.service.counters.fast_requests


class OverWire(httpx.AsyncBaseTransport):
    """Sends each request on a connection of its own.

    Args:
        app: The application.
        direct: Whether simple requests go to the fast path, which is then `self.direct`.
    """

    def __init__(self, app: FastAPI, *, direct: bool = True) -> None:
        self.direct: CountingFastPath | None = CountingFastPath(cast("State", app.state)) if direct else None
        self._config = uvicorn.Config(
            app, http=Connection, ws="none", log_config=None, access_log=False, proxy_headers=False
        )
        self._config.load()
        self._state = ServerState()
        self._state.default_headers = [(b"date", b"Mon, 23 Nov 2026 00:00:00 GMT")]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer when it is complete."""
        client, pipe = h11.Connection(h11.CLIENT), Pipe()
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        content = await request.aread()
        sent = [client.send(head), client.send(h11.Data(content)) if content else b"", client.send(h11.EndOfMessage())]
        connection = self.connect(pipe)
        try:
            connection.data_received(b"".join(part or b"" for part in sent))
            return await _answer(client, pipe)
        finally:
            connection.connection_lost(None)

    def connect(self, pipe: "Pipe") -> Connection:
        """Make a connection that writes its answers to `pipe`."""
        connection = Connection(config=self._config, server_state=self._state, app_state={})
        connection.fast_path = self.direct
        connection.connection_made(pipe)
        return connection


async def _answer(client: h11.Connection, pipe: "Pipe") -> httpx.Response:
    response, content = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await pipe.read())
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            content += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            headers = [(name, value) for name, value in response.headers if name != b"date"]
            return httpx.Response(response.status_code, headers=headers, content=content)


class Pipe(asyncio.Transport):
    """A transport whose other end reads what the protocol writes."""

    def __init__(self, local: socket.socket | None = None) -> None:
        super().__init__({"sockname": ("192.0.2.1", 80), "peername": ("127.0.0.1", 123), "socket": local})
        self._written, self._is_closing = asyncio.Queue[bytes](), False

    async def read(self) -> bytes:
        """Wait for what is written next; empty once the transport is closed."""
        return await self._written.get()

    def write(self, data: Any) -> None:
        if data:
            self._written.put_nowait(bytes(data))

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._written.put_nowait(b"")

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._written.put_nowait(b"")

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
