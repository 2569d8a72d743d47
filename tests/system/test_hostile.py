"""Random bytes over a real socket cause no 500, gain no right and leave nothing behind."""

import contextlib
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.access.tokens import Token, TokenFile
from tests.running import Service, connect, resident_bytes, running, until_closed
from tests.system.test_exposed import configured

OPEN = re.compile(
    rb"/(healthz|readyz|problems/[a-z-]+|docs|openapi\.json|docs/assets/[a-z.-]+|web/[A-Za-z0-9/.-]+)?(\?.*)?"
)
tried_300_times = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
# Bytes that end neither a line nor a target.
in_line = st.binary(max_size=60).map(lambda each: re.sub(rb"[\r\n]", b"", each))
in_target = in_line.map(lambda each: each.replace(b" ", b""))
pieces = st.sampled_from(
    [b"/", b"//", b".", b"..", b"%00", b"%0d%0a", b"%2F", b"%2e%2e", b"%", b"%zz", b"%ff", b"?", b"&", b"=", b"#", b";",
     b"\\", b"*", b"http://", b"a" * 3000, b"maps", b"jump_table", b"entries", b"3", b"programs", b"drop", b"events",
     b"healthz", b"docs", b"assets", b"metrics", b"openapi.json", b"changes", b"dry_run=true", b"limit=1", b"\xff",
     "ä".encode()]
)  # fmt: skip
targets = st.lists(pieces | in_target, max_size=8).map(lambda parts: b"/" + b"".join(parts))
methods = st.sampled_from([b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"POST", b"OPTIONS", b"TRACE"])
names = st.sampled_from(
    [b"If-Match", b"If-None-Match", b"X-Request-ID", b"Last-Event-ID", b"Origin", b"Content-Type", b"Accept",
     b"Content-Encoding", b"Cookie", b"Expect", b"Connection", b"Upgrade", b"X-Forwarded-For"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def secret(folder: Path) -> bytes:
    """The token of a reader."""
    file = TokenFile(folder / "state/tokens.json")
    (folder / "state").mkdir()
    file.add(Token("strong", "", "admin", time.time()))
    return file.add(Token("weak", "", "reader", time.time())).encode()


@pytest.fixture(scope="module")
def service(folder: Path, secret: bytes) -> Iterator[Service]:
    config = configured(folder, "[tokens]\n[limits]\nevent_readers = 6\n",
                        'host = "127.0.0.1"\nport = 0\nuser = "root"')  # fmt: skip
    with running("serve", "--config", str(config)) as service:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        service.url = f"http://127.0.0.1:{port}"
        service.wait_for("serving")
        for target in (b"/healthz", b"/maps", b"/docs/assets/swagger-ui.css"):  # so that lazy parts are loaded
            until_closed(service, head(b"GET", target))
        yield service


@pytest.fixture(autouse=True)
def nothing_is_left(service: Service) -> Iterator[None]:
    """After each test the service still answers, has no new open files and little new memory, and logged no error."""
    before, bytes_before = fds(service), resident_bytes(service)
    yield
    assert status(until_closed(service, head(b"GET", b"/healthz"))) == 200
    deadline = time.monotonic() + 20
    while left := fds(service) - before:
        assert time.monotonic() < deadline, left
    assert resident_bytes(service) < bytes_before + 20 * 1024 * 1024
    assert not [line for line in service.lines if "Traceback" in line or "internal error" in line]


def fds(service: Service) -> Counter[str]:
    """The open files of the service, counted by target. All sockets count as one target."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{service.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[str(link.readlink()).partition(":")[0]] += 1
    return found


def head(method: bytes, target: bytes, *fields: bytes) -> bytes:
    lines = (b"%b %b HTTP/1.1" % (method, target), b"Host: localhost", *fields, b"Connection: close", b"", b"")
    return b"\r\n".join(lines)


def status(answer: bytes) -> int:
    """The status of a single answer. An answer that refuses is a problem."""
    assert answer.count(b"HTTP/1.1 ") == 1
    found = int(answer[9:12])
    if found >= 400:
        assert b"\r\ncontent-type: application/problem+json\r\n" in answer
    return found


@tried_300_times
@given(methods, targets)
@example(b"GET", b"/docs/assets/" + b"a" * 3000)
@example(b"GET", b"/docs/assets/%00")
@example(b"GET", b"/docs/assets/..%2f..%2f..%2fetc/passwd")
@example(b"GET", b"/docs/assets/../../../etc/passwd")
@example(b"GET", b"//maps")
@example(b"GET", b"/healthz/../maps")
@example(b"GET", b"/healthz%2f..%2fmaps")
@example(b"GET", b"/healthz;/../maps")
def test_target_without_a_token_reaches_only_open_routes(service: Service, method: bytes, target: bytes) -> None:
    found = status(until_closed(service, head(method, target)))
    assert found < 500
    assert found >= 400 or OPEN.fullmatch(target.partition(b"#")[0])


@tried_300_times
@given(st.sampled_from([b"Bearer ", b"bearer  ", b"Basic ", b"Bearer jt_", b""]), in_line)
@example(b"Bearer ", b"jt_" + b"A" * 43)
@example(b"Bearer ", b"\xff\xfe")
@example(b"Bearer ", b"x" * 20_000)
def test_random_token_is_refused(service: Service, kind: bytes, token: bytes) -> None:
    assert status(until_closed(service, head(b"GET", b"/maps", b"Authorization: " + kind + token))) in {400, 401}


@tried_300_times
@given(st.data())
def test_altered_token_is_refused(service: Service, secret: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(secret)))
    more = data.draw(st.binary(max_size=3).map(lambda each: re.sub(rb"[\r\n]", b"", each)))
    token = secret[:at] + more + secret[data.draw(st.integers(0, len(secret))) :]
    found = status(until_closed(service, head(b"DELETE", b"/maps/jump_table", b"Authorization: Bearer " + token)))
    assert found in {400, 401} if token.strip() != secret else found == 403


@tried_300_times
@given(methods, targets, st.lists(st.tuples(names | in_line, in_line), max_size=4))
def test_reader_changes_nothing_whatever_the_headers(
    service: Service, secret: bytes, method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    if target.startswith(b"/events") and method == b"GET":
        method = b"HEAD"  # a stream has no end
    lines = [b"%b: %b" % field for field in fields]
    answer = until_closed(service, head(method, target, b"Authorization: Bearer " + secret, *lines))
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    found = status(answer)
    assert found < 500
    assert found >= 400 or method in {b"GET", b"HEAD"}


@tried_300_times
@given(st.lists(in_line | st.sampled_from([b"\r\n", b"\n", b"\r", b"GET / HTTP/1.1", b": ", b"\r\n\r\n"]), max_size=12))
def test_random_bytes_get_neither_success_nor_500(service: Service, parts: list[bytes]) -> None:
    answer = until_closed(service, b"".join(parts) + b"\r\n\r\n\0\r\n\r\n")
    assert not re.search(rb"HTTP/1\.1 (2|5)", answer)


def test_one_caller_cannot_take_every_event_reader_slot(service: Service, folder: Path, secret: bytes) -> None:
    other = TokenFile(folder / "state/tokens.json").add(Token("other", "", "reader", time.time())).encode()

    def follow(secret: bytes) -> tuple[socket.socket, int]:
        connection = connect(service)
        fields = b"Host: localhost\r\nAuthorization: Bearer " + secret
        connection.sendall(b"GET /events HTTP/1.1\r\n%b\r\n\r\n" % fields)
        return connection, int(connection.recv(65536)[9:12])

    mine = [follow(secret) for _ in range(6)]
    theirs = [follow(other) for _ in range(4)]
    assert [status for _, status in mine] == [200, 200, 200, 429, 429, 429]
    assert [status for _, status in theirs] == [200, 200, 200, 429]
    for connection, _ in mine + theirs:
        connection.close()
    deadline = time.monotonic() + 20
    while True:  # their places are free again
        connection, found = follow(secret)
        connection.close()
        if found == 200:
            break
        assert found == 429
        assert time.monotonic() < deadline, "places are left taken"
