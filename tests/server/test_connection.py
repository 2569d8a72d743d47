"""HTTP/1.1 over a real socket: requests whose end or host is ambiguous, several on one connection, and upgrades."""

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import limits
from app.api.limits import Bounds
from app.bpf.memory.kernel import MemoryKernel
from app.cli.demo import fill
from app.server import connection as connection_module
from app.server.connection import Connection
from app.service.objects.opening import make_array
from app.service.registry.registry import Registry
from tests.conftest import application
from tests.over_wire import OverWire, Pipe
from tests.running import Service, connect, demo, serve, until_closed, write_config
from tests.system.conftest import until

BODY = b'{"program":"drop"}'
CHUNKS = b"12\r\n" + BODY + b"\r\n0\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
PUT = b"PUT /maps/jump_table/entries/3?dry_run=true HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = PUT + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"Content-Length: 18\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
SMUGGLED = b"DELETE /programs/drop HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = GET + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with demo("--kernel", "memory") as service:
        yield service


def statuses(answers: bytes) -> list[int]:
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]
    refused = sum(status >= 400 for status in found)
    assert answers.count(b"content-type: application/problem+json") == refused
    assert answers.count(b'"request_id":') >= refused
    return found


def assert_nothing_was_smuggled(service: Service) -> None:
    with service.client() as client:
        assert client.get("/programs/drop").status_code == 200


REFUSED = {
    "length and chunks": PUT + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks and length": PUT + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKS,
    "chunked twice": PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunked and another": PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n" + CHUNKS,
    "another, chunked": PUT + b"Transfer-Encoding: cow, chunked\r\n\r\n" + CHUNKS,
    "gzip, chunked": PUT + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "chunked, identity": PUT + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "identity": PUT + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + BODY,
    "xchunked": PUT + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunked after a tab": PUT + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS,
    "chunked in 1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKS,
    "length twice": PUT + LENGTH + LENGTH + b"\r\n" + BODY,
    "two lengths": PUT + LENGTH + b"Content-Length: 4\r\n\r\n" + BODY,
    "lengths in a list": PUT + b"Content-Length: 18, 18\r\n\r\n" + BODY,
    "length with a sign": PUT + b"Content-Length: +18\r\n\r\n" + BODY,
    "negative length": PUT + b"Content-Length: -1\r\n\r\n" + BODY,
    "length in hex": PUT + b"Content-Length: 0x12\r\n\r\n" + BODY,
    "huge length": PUT + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "empty length": PUT + b"Content-Length: \r\n\r\n" + BODY,
    "bare LF": GET.replace(b"\r\n", b"\n") + b"\n",
    "bare LF after a field": GET + b"X: y\nZ: a\r\n\r\n",
    "bare CR in a field": GET + b"X: y\rZ: a\r\n\r\n",
    "folded field": GET + b"X: a\r\n b\r\n\r\n",
    "folded coding": PUT + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
    "blank before the colon": GET + b"X : a\r\n\r\n",
    "blank before the coding's colon": PUT + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "NUL in a value": GET + b"X: a\0b\r\n\r\n",
    "NUL in a name": GET + b"X\0: a\r\n\r\n",
    "no name": GET + b": a\r\n\r\n",
    "negative chunk": CHUNKED + b"-1\r\n",
    "chunk with 0x": CHUNKED + b"0x12\r\n" + BODY + b"\r\n0\r\n\r\n",
    "huge chunk": CHUNKED + b"f" * 18 + b"\r\n" + BODY,
    "chunk of 2**64": CHUNKED + b"10000000000000000\r\n" + BODY,
    "chunk longer than it says": CHUNKED + b"2\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk after a blank": CHUNKED + b"12 \r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk with bare LF": CHUNKED + CHUNKS.replace(b"\r\n", b"\n"),
    "LF in a chunk's extension": CHUNKED + CHUNKS.replace(b"12\r", b"12;a\n=b\r"),
    "authority for a target": b"GET localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": GET.replace(b"1.1", b"1.2") + b"\r\n",
    "HTTP/2.0": GET.replace(b"1.1", b"2.0") + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: localhost\r\n\r\n",
    "two media types": PUT + b"Content-Type: text/plain\r\n" + LENGTH + b"\r\n" + BODY,
    "control in the path": b"GET /a\1b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "UTF-8 in the path": "GET /maps/ä HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "two Authorizations": b"GET /maps HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nAuthorization: b\r\n"
    b"Connection: close\r\n\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED.keys())
def test_ambiguous_request_is_refused_once_and_the_connection_closed(service: Service, sent: bytes) -> None:
    assert statuses(until_closed(service, sent + SMUGGLED)) == [400]
    assert_nothing_was_smuggled(service)


ANSWERED = {
    "chunk extensions": (CHUNKED + b"12;a=b\r\n" + BODY + b"\r\n0;c\r\n\r\n", [201]),
    "an absolute target": (GET.replace(b"/healthz", b"http://localhost/healthz") + b"\r\n", [200]),
    "an absolute target elsewhere": (GET.replace(b"/healthz", b"http://evil.example/maps") + b"\r\n", [421]),
    "a target of *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", [404]),
    "an upgrade to websocket": (GET + WEBSOCKET + b"\r\n", [200]),
    "an upgrade to HTTP/2": (GET + H2C + b"\r\n", [200]),
    "an upgrade with a body": (PUT + H2C + LENGTH + b"\r\n" + BODY, [201]),
    "an upgrade with a body that hides a request": (
        PUT + H2C + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, [400]),
    "an upgrade with chunks": (PUT + H2C + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, [201]),
    "two upgrades": ((GET + H2C + b"\r\n") * 2, [200, 200]),
    "Expect": (PUT + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY, [100, 201]),
    "another Expect": (PUT + b"Expect: 200-maybe\r\n" + LENGTH + b"\r\n" + BODY, [201]),
    "empty lines before": (b"\r\n\r\n" + GET + b"\r\n", [200]),
    "two If-Match": (PUT + b'If-Match: "a"\r\nIf-Match: "b"\r\n' + LENGTH + b"\r\n" + BODY, [412]),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "expected"), ANSWERED.values(), ids=ANSWERED.keys())
def test_unambiguous_request_is_answered_and_the_connection_stays_open(
    service: Service, sent: bytes, expected: list[int]
) -> None:
    assert statuses(until_closed(service, sent + LAST)) == [*expected, 200]
    assert_nothing_was_smuggled(service)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET.replace(b"1.1", b"1.0") + b"\r\n", 200),
        (GET.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n", 200),
        (GET + b"Connection: close\r\n\r\n", 200),
        (GET + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED), 200),
        (GET.replace(b"healthz", b"nope") + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED), 404),
    ],
)
def test_nothing_is_answered_after_the_last_request(service: Service, sent: bytes, status: int) -> None:
    assert statuses(until_closed(service, sent + SMUGGLED)) == [status]
    assert_nothing_was_smuggled(service)


@pytest.mark.parametrize(
    ("wrong", "status"),
    [(b"GARBAGE\r\n\r\n", 400), (GET + b"X Y: z\r\n\r\n", 400), (GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431)],
)
@pytest.mark.parametrize("before", [1, 3])
def test_requests_before_a_malformed_one_are_answered(service: Service, wrong: bytes, status: int, before: int) -> None:
    sent = (GET + b"\r\n") * before + wrong + SMUGGLED
    assert statuses(until_closed(service, sent)) == [200] * before + [status]
    assert_nothing_was_smuggled(service)


def test_malformed_request_behind_a_body_in_parts_is_refused_after_the_answer(service: Service) -> None:
    with connect(service) as connection:
        for part in (PUT + LENGTH + b"\r\n", BODY[:5], BODY[5:] + b"GARBAGE\r\n\r\n"):
            connection.sendall(part)
        answers = b""
        while chunk := connection.recv(65536):
            answers += chunk
    assert statuses(answers) == [201, 400]


def test_trailer_fields_are_ignored(service: Service) -> None:
    """They are no headers of this request, nor of the next."""
    trailer = CHUNKS[:-2] + b'If-Match: "no"\r\nAuthorization: Bearer x\r\nX: y\r\n\r\n'
    assert statuses(until_closed(service, CHUNKED + trailer + LAST)) == [201, 200]


@pytest.mark.parametrize("more", [b"X: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
def test_endless_trailer_is_refused(service: Service, more: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(CHUNKED + CHUNKS[:-2] + b"X: ")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 50 * 1024 * 1024:
                connection.sendall(more * 64)
                sent += len(more) * 64
    assert sent < 60 * 1024 * 1024


def test_event_stream_with_a_request_behind_it_ends_with_the_connection(service: Service) -> None:
    """Otherwise a caller could take the places of all readers without a connection."""
    for _ in range(5):
        with connect(service) as connection:
            connection.sendall(GET.replace(b"healthz", b"events") + b"\r\n" + GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    deadline = time.monotonic() + 20
    with service.client() as client:
        while "jumptable_event_readers 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "readers are left"


def test_stream_in_http_1_0_ends_with_the_connection_and_not_with_a_chunk(service: Service) -> None:
    """RFC 9112, 6.1: no Transfer-Encoding in an answer to HTTP/1.0."""
    with connect(service) as connection:
        connection.sendall(b"GET /events HTTP/1.0\r\n\r\n")
        head = connection.recv(65536).partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head


def test_malformed_requests_leave_no_error_in_the_log(service: Service) -> None:
    until_closed(service, GET + WEBSOCKET + b"\r\n" + LAST)
    until_closed(service, b"GARBAGE\r\n\r\n")
    until_closed(service, b"CONNECT /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert not [line for line in service.lines if "uvicorn" in line or "Traceback" in line or '"error"' in line]


def configured(folder: Path, limits: str) -> Path:
    config = write_config(folder)
    config.write_text(f"{config.read_text()}\n[limits]\n{limits}\n")
    return config


@contextlib.contextmanager
def connect_unix(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        yield connection


def until_eof(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


@pytest.mark.field
def test_connection_is_closed_when_it_is_idle_for_as_long_as_configured(tmp_path: Path) -> None:
    """Field 17: a connection is closed while a client that polls still uses it."""
    assert Bounds().idle_seconds == 75, "by default longer than the usual interval of a client that polls"
    path = tmp_path / "run/api.sock"
    with serve(configured(tmp_path, "idle_seconds = 0.2"), path), connect_unix(path) as connection:
        connection.sendall(GET + b"\r\n")
        assert statuses(until_eof(connection)) == [200]


@pytest.mark.field
@pytest.mark.anyio
async def test_idle_connection_with_bytes_to_read_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field 17: a request that arrives at the last moment is lost."""
    monkeypatch.setattr(connection_module, "_UNREAD_BYTES_RETRY_SECONDS", 0.001)
    look, looks = Connection._unread_bytes, 0

    def counted(connection: Connection) -> int:
        nonlocal looks
        looks += 1
        return look(connection)

    monkeypatch.setattr(Connection, "_unread_bytes", counted)
    registry = Registry(MemoryKernel(), ["/sys/fs/bpf"])
    fill(registry)
    ours, theirs = socket.socketpair()
    with ours, theirs, application(registry) as app:
        pipe = Pipe(ours)
        connection = OverWire(app).connect(pipe)
        connection.bounds = Bounds(idle_seconds=0.0)
        theirs.send(GET)
        connection.data_received(GET + b"\r\n")
        assert statuses(await pipe.read()) == [200]
        await until(lambda: looks >= 2)
        assert not pipe.is_closing()
        ours.recv(65536)
        await until(pipe.is_closing)
        connection.connection_lost(None)
    registry.close()


def until_answered(service: Service, sent: bytes) -> bytes:
    """Send these bytes, end this side of the connection, and return everything that the service answers."""
    with connect(service) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return until_eof(connection)


@pytest.mark.field
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (GET + b"\r\n", [200]),
        (PUT + LENGTH + b"\r\n" + BODY, [200]),
        (PUT.replace(b"?dry_run=true", b"") + LENGTH + b"\r\n" + BODY + LAST, [200, 200]),
        ((GET + b"\r\n") * 9, [200] * 9),
        (GET + b"\r\n" + GET, [200, 400]),
        (GET, [400]),
        (PUT + LENGTH + b"\r\n" + BODY[:5], [400]),
        (GET + b"\r\n" + PUT + LENGTH + b"\r\n" + BODY[:5], [200, 400]),
        (GET + b"\r\nGARBAGE\r\n\r\n", [200, 400]),
        (b"", []),
    ],
)
def test_client_that_ends_its_side_gets_all_answers(service: Service, sent: bytes, expected: list[int]) -> None:
    """Field 19: a half-closed client learns nothing of what was done."""
    with service.client() as client:
        client.put("/maps/jump_table/entries/3", json={"program": "pass"})
    try:
        assert statuses(until_answered(service, sent)) == expected
    finally:
        with service.client() as client:
            client.delete("/maps/jump_table/entries/3")


@pytest.mark.field
def test_long_answer_to_a_client_that_has_ended_its_side_is_complete(tmp_path: Path) -> None:
    """Field 19: a half-closed client gets a part of a long answer, or nothing."""
    config, path = write_config(tmp_path), tmp_path / "run/api.sock"
    with serve(config, path), connect_unix(path) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        head, _, body = until_eof(connection).partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head


@pytest.mark.field
def test_event_stream_of_a_client_that_has_ended_its_side_is_closed(service: Service) -> None:
    """Field 19: a stream for a client that has gone must not go on."""
    with connect(service) as connection:
        connection.sendall(GET.replace(b"healthz", b"events") + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.shutdown(socket.SHUT_WR)
        until_eof(connection)


@pytest.mark.field
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/maps/jump_table/entries/3", 413),
        ("PUT", "/nowhere", 404),
        ("POST", "/healthz", 405),
    ],
)
def test_answer_that_comes_before_the_end_of_a_large_body_reaches_the_client(
    service: Service, method: str, path: str, status: int
) -> None:
    """Field 18: an early answer is lost in a reset."""
    url = httpx.URL(service.url)
    client = http.client.HTTPConnection(url.host, url.port, timeout=20)
    headers = {"Content-Type": "application/json"}
    client.request(method, path, b"x" * (20 << 20), headers)  # it sends all of the body before it reads
    assert client.getresponse().status == status
    client.close()


@pytest.mark.field
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"PUT /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", 405),
        (b"PUT /healthz HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", 400),
        (GET + b"X: " + b"a" * 40_000 + b"\r\n", 431),
    ],
)
def test_client_can_go_on_to_send_after_an_early_answer(tmp_path: Path, head: bytes, status: int) -> None:
    """Field 33: on the unix socket, a client that sends its body after its head gets EPIPE."""
    path = tmp_path / "run/api.sock"
    with serve(write_config(tmp_path), path), connect_unix(path) as connection:
        connection.sendall(head)
        assert statuses(until_eof(connection)) == [status]
        for _ in range(10):
            connection.sendall(b"x" * 100)


def open_files(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


@pytest.mark.field
@pytest.mark.parametrize("more", [b"", b"x" * (1 << 20)])
def test_connection_ends_after_an_early_answer_whatever_the_client_does(service: Service, more: bytes) -> None:
    """Field 18: a client that goes on to send, or neither sends nor closes, keeps no connection open."""
    with connect(service) as connection:
        connection.sendall(b"PUT /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n")
        assert statuses(until_eof(connection)) == [404]
        before, deadline = open_files(service), time.monotonic() + 20
        while open_files(service) >= before:
            assert time.monotonic() < deadline, "the connection is still open"
            with contextlib.suppress(ConnectionError):
                connection.sendall(more)
            time.sleep(0.01)


@pytest.mark.field
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", [501]),
        (b"CONNECT http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", [501]),
        (b"CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\n", [501]),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", [501]),
        (b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n", [501]),
        (b"DESCRIBE / HTTP/1.1\r\nHost: localhost\r\n\r\n", [501]),
        (b"GETX / HTTP/1.0\r\n\r\n", [501]),
        (GET + b"\r\nBREW /maps HTTP/1.1\r\nHost: localhost\r\n\r\n", [200, 501]),
        (b"BREW /\r\n\r\n", [400]),
        (GET + b"\r\nBREW\r\n\r\n", [200, 400]),
        (b"TRACE /maps HTTP/1.1\r\nHost: localhost\r\n\r\n" + LAST, [405, 200]),
        (b"PROPFIND /maps HTTP/1.1\r\nHost: localhost\r\n\r\n" + LAST, [405, 200]),
    ],
)
def test_methods_of_others_are_405_or_501(service: Service, sent: bytes, expected: list[int]) -> None:
    """Field 29: a method that is not ours is answered like broken HTTP."""
    assert statuses(until_closed(service, sent)) == expected


class UnreadPipe(Pipe):
    """A transport whose other end reads nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Connection
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)
        if data and self.connection.writable.is_set() and self.written > 65536:
            self.connection.pause_writing()

    def is_begun(self) -> bool:
        return self.written > 0


@pytest.mark.field
@pytest.mark.anyio
async def test_lists_that_nobody_reads_are_bounded_and_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field 28: lists that nobody reads take memory without bounds, and time from other requests."""
    kernel, size, count = MemoryKernel(), 20_000, 80
    registry = Registry(kernel, ["/sys/fs/bpf"])
    fill(registry)
    registry.maps.adopt("large", make_array(kernel, "large", size))
    with application(registry) as app:
        wire = OverWire(app)
        async with httpx.AsyncClient(transport=wire, base_url="http://localhost") as client:
            table = {"programs": ["drop"] * size}
            assert (await client.put("/maps/large/entries", json=table)).status_code == 200
            pipes = [UnreadPipe() for _ in range(count)]
            for pipe in pipes:
                pipe.connection = wire.connect(pipe)
                pipe.connection.data_received(GET.replace(b"/healthz", b"/maps/large/entries") + b"\r\n")
            await until(lambda: sum(pipe.is_begun() for pipe in pipes) == 32)
            assert (await client.get("/healthz")).status_code == 200
            assert sum(pipe.is_begun() for pipe in pipes) == 32
            assert max(pipe.written for pipe in pipes) < 2_000_000, "one part, and the next when it is read"
            monkeypatch.setattr(limits, "_STALL_SECONDS", 0.01)  # for those that begin from now on
            for pipe in pipes:
                if pipe.is_begun():  # its reader is gone
                    written = pipe.written
                    pipe.connection.connection_lost(None)
                    assert pipe.written == written
            await until(lambda: all(pipe.is_begun() for pipe in pipes))
            assert (await client.get("/maps/large/entries?limit=1")).status_code == 200
            for pipe in pipes:
                if not pipe.connection.is_lost:
                    pipe.connection.connection_lost(None)
            await until(lambda: not wire._state.tasks)
            assert max(pipe.written for pipe in pipes) < 2_000_000
    registry.close()


def test_client_that_sends_the_body_by_itself_does_not_wait_for_an_acknowledgement(service: Service) -> None:
    """Its kernel holds the body back until the head is acknowledged (Nagle), which a server's does after 40 ms."""
    head = PUT + LENGTH + b"\r\n"
    seconds = []
    with connect(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        for _ in range(60):  # a new connection acknowledges at once for a while
            began = time.perf_counter()
            connection.sendall(head)
            connection.sendall(BODY)
            answer = b""
            while not answer.endswith(b"}\n"):
                answer += connection.recv(65536)
            seconds.append(time.perf_counter() - began)
    # The median of what comes after that, so that a busy machine does not matter. Linux: TCP_DELACK_MIN is 40 ms.
    assert sorted(seconds[30:])[15] < 0.035


@pytest.mark.anyio
async def test_head_and_body_of_an_answer_are_one_write() -> None:
    """Over TCP that is one packet, and over TLS one record."""
    registry = Registry(MemoryKernel())
    fill(registry)
    with application(registry) as app:
        pipe = Pipe()
        connection = OverWire(app, direct=False).connect(pipe)
        connection.data_received(GET + b"\r\n")
        answer = await pipe.read()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"}\n")
        connection.connection_lost(None)
    registry.close()
