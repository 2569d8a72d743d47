"""The log and the audit file: nobody waits for them, and nobody fills them."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.api.audit import Audit
from app.server import line_writer, logging
from app.server.line_writer import LineWriter

SMALL_QUEUE = "import app.server.line_writer as w; w._MAX_WAITING_BYTES = 20_000"


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads and that is full: the end to read and the end to write, which blocks."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, b"." * 4095 + b"\n")
    except BlockingIOError:
        os.set_blocking(writes, True)
    yield reads, writes
    os.close(reads)
    os.close(writes)


def read_until(reads: int, text: bytes) -> bytes:
    found = b""
    while text not in found:
        chunk = os.read(reads, 65536)
        assert chunk, f"no {text!r} in {found[-2000:]!r}"
        found += chunk
    return found


@pytest.mark.field
def test_a_log_that_nobody_reads_stops_nothing_and_tells_what_was_dropped(full_pipe: tuple[int, int]) -> None:
    """Field 15: a log that nobody reads stops the service."""
    reads, writes = full_pipe
    process = subprocess.Popen(
        [sys.executable, "-c", f"{SMALL_QUEUE}\nfrom app.__main__ import main\nmain()", "demo", "--port", "0",
         "--kernel", "memory"],
        stdout=subprocess.PIPE, stderr=writes, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        with process.stdout as output:
            url = next(line.split()[-1] for line in output if "-X DELETE" in line).partition("/maps")[0]
            with httpx.Client(base_url=url, timeout=20) as client:
                until(lambda: answers(client))
                dropped = 0.0
                while not dropped:
                    for name in ("pass", "drop"):
                        assert client.put("/maps/jump_table/entries/3", json={"program": name}).status_code < 300
                    dropped = metric(client, 'jumptable_log_lines_dropped_total{kind="log"}')
                log = read_until(reads, b"lines of the log were dropped")
                assert b'"event":"set_entry"' in log
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        read_until(reads, b'"event":"stopping"')
    finally:
        process.kill()
        process.wait(20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def metric(client: httpx.Client, name: str) -> float:
    return next(float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name))


@pytest.mark.field
@pytest.mark.parametrize("stderr", ["/dev/full", None])
def test_service_serves_without_a_log(stderr: str | None, tmp_path: Path) -> None:
    """Field 15: standard error is closed, or takes nothing."""
    redirection = "2>&-" if stderr is None else f"2>{stderr}"
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$0" -m app demo --port 0 --kernel memory {redirection}', sys.executable],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with process.stdout as output:
            url = next(line.split()[-1] for line in output if "-X DELETE" in line).partition("/maps")[0]
            with httpx.Client(base_url=url, timeout=20) as client:
                until(lambda: answers(client))
                assert client.put("/maps/jump_table/entries/3", json={"program": "drop"}).status_code == 201
                assert str(Path(f"/proc/{process.pid}/fd/2").readlink()) == (stderr or os.devnull)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.field
def test_lines_that_wait_are_written_when_somebody_reads(full_pipe: tuple[int, int]) -> None:
    """Field 15: whoever logs waits for the reader of the log."""
    reads, writes = full_pipe
    told: list[int] = []
    writer = LineWriter(writes, told.append)
    writer.put(b"before the start\n")
    writer.start()
    for number in range(100):
        writer.put(b"%d\n" % number)
    size = line_writer._MAX_WAITING_BYTES
    writer.put(b"x" * (size - 2000) + b"\n")
    writer.put(b"y" * 2000 + b"\n" + b"z\n")
    assert writer.dropped == 2
    reader = threading.Thread(target=read_until, args=(reads, b"last\n"))
    reader.start()
    until(lambda: told)
    writer.put(b"last\n")
    reader.join(20)
    writer.close(5)
    assert told == [2]
    assert not reader.is_alive()


@pytest.mark.field
def test_end_waits_for_the_reader_for_a_bounded_time(full_pipe: tuple[int, int]) -> None:
    """Field 15: a log that nobody reads keeps the service from ending."""
    reads, writes = full_pipe
    writer = LineWriter(writes, lambda _: None)
    writer.start()
    writer.put(b"a\n")
    began = time.monotonic()
    writer.close(0.2)
    assert time.monotonic() - began < 10
    read_until(reads, b"a\n")  # the thread ends: it has written what waited
    until(lambda: "lines" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.field
def test_audit_file_on_a_slow_disk_holds_up_nobody(full_pipe: tuple[int, int], tmp_path: Path) -> None:
    """Field 15: a slow disk under audit.file stops the service."""
    reads, writes = full_pipe
    other = tmp_path / "audit.jsonl"
    fds = [os.dup(writes), os.open(other, os.O_WRONLY | os.O_CREAT)]
    audit = Audit(other, opened=lambda _: fds.pop(0), make_writer=logging.file_writer)
    scope = {"path": "/maps/a/entries/1"}
    audit.attempt(scope, "set_entry", 201, None, "one")
    audit.reopen()
    audit.attempt(scope, "set_entry", 201, None, "two")
    line = read_until(reads, b"one").split(b"\n")
    audit.close()
    assert line
    assert [json.loads(each)["request_id"] for each in other.read_text().splitlines()] == ["two"]


@pytest.mark.field
def test_lost_audit_lines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field 15: a full disk under audit.file loses lines without a word."""
    told: list[dict[str, object]] = []
    monkeypatch.setattr(logging.log, "warning", lambda event, **facts: told.append({"event": event, **facts}), False)
    audit = Audit(
        Path("/dev/full"), opened=lambda _: os.open("/dev/full", os.O_WRONLY), make_writer=logging.file_writer
    )
    audit.attempt({"path": "/maps/a/entries/1"}, "set_entry", 201, None, "one")
    audit.close()
    [lost] = told
    assert (lost["event"], lost["event_lost"]) == ("the audit file cannot be written", "set_entry")
    assert (lost["request_id"], lost["error"]) == ("one", "No space left on device")


@pytest.mark.field
def test_nonblocking_file_gets_every_line() -> None:
    """Field 15: lines are lost where standard error is shared with a process that set O_NONBLOCK."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETFL, os.O_NONBLOCK)
    writer = LineWriter(writes, lambda _: None)
    writer.start()
    writer.put(b"x" * 200_000 + b"\n")
    writer.put(b"last\n")
    assert len(read_until(reads, b"last\n")) == 200_006
    writer.close(5)
    os.close(reads)
    os.close(writes)


@pytest.mark.field
def test_one_event_is_logged_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field 29: what clients send fills the log."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    repetitions = logging._Repetitions()
    assert [repetitions.admit("gone") for _ in range(14)] == [0] * 10 + [None] * 4
    assert repetitions.admit("another") == 0
    now += 1
    assert [repetitions.admit("gone") for _ in range(2)] == [4, 0]
    assert repetitions.dropped == 4
    assert all(repetitions.process(None, "info", {"event": "set_entry", "outcome": "done"}) for _ in range(50))


@pytest.mark.field
def test_long_texts_are_cut() -> None:
    """Field 29: what clients send fills the log."""
    cut = logging._shorten(None, "info", {"path": "/" * 30_000, "exception": "x" * 30_000 + "the end", "n": 1})
    assert len(cut["path"]) < 1100
    assert len(cut["exception"]) < 8200
    assert cut["exception"].endswith("the end")


def test_line_that_comes_after_dropped_ones_is_written_also_without_the_thread() -> None:
    """As at the end of the service: whoever logs is told to log that lines were dropped, within that line."""
    script = """
import structlog
from app.server import logging
logging.configure()
logging._writer._drop(b"1\\n2\\n")
structlog.get_logger().info("the last line")
logging.finish()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [
        "the last line",
        "lines of the log were dropped: nobody read it, or it could not be written",
    ]
