"""Run the service as a process that always ends with the test."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

WAIT_SECONDS = float(os.environ.get("TEST_WAIT_SECONDS", "30"))  # an emulated machine takes longer for everything
_CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
kernel = "memory"
[maps.jump_table]
pinned = "/sys/fs/bpf/jump_table"
create = {{ max_entries = 16 }}
"""


@dataclass
class Service:
    """A running `jumptable`. It answers at `url`, and over the unix socket `socket` if that is set."""

    process: subprocess.Popen[str]
    url: str = "http://jumptable"
    socket: Path | None = None
    lines: list[str] = field(default_factory=list)
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def client(self) -> httpx.Client:
        """A new httpx client on the service."""
        transport = None if self.socket is None else httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url=self.url, timeout=WAIT_SECONDS)

    def curl(self) -> list[str]:
        """The first words of a curl command for the service."""
        return ["curl", "-s", *([] if self.socket is None else ["--unix-socket", str(self.socket)])]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the output that matches, and return the match."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self.changed:
            self.changed.wait_for(lambda: found() or self.ended, WAIT_SECONDS)
            match = found()
        assert match, f"no {pattern!r} in its output:\n{''.join(self.lines)}"
        return match

    def output(self) -> str:
        """Wait for the end of the process, and return its whole output."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended, WAIT_SECONDS), "it has not ended"
        return "".join(self.lines)


def connect(service: Service) -> socket.socket:
    """A TCP connection to the service, for bytes that no HTTP client sends."""
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def until_closed(service: Service, sent: bytes) -> bytes:
    """Send these bytes, and return everything the service answers until it closes the connection."""
    with connect(service) as connection:
        connection.sendall(sent)
        answers = b""
        while chunk := connection.recv(65536):
            answers += chunk
        return answers


def resident_bytes(service: Service) -> int:
    """The resident memory of the process, in bytes."""
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(*arguments: str, env: dict[str, str] | None = None, first: str = "") -> Iterator[Service]:
    """Run `jumptable ARGUMENTS` after the Python statements `first`. The process has ended when the context ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{first}\nfrom app.__main__ import main\nmain()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )
    service = Service(process)
    reader = threading.Thread(target=_read, args=(service,))
    reader.start()
    try:
        yield service
    finally:
        process.terminate()  # lets it clean up
        try:
            process.wait(WAIT_SECONDS)
        finally:
            process.kill()
            reader.join(WAIT_SECONDS)


def _read(service: Service) -> None:
    assert service.process.stdout is not None
    with service.process.stdout as output:
        for line in output:
            with service.changed:
                service.lines.append(line)
                service.changed.notify_all()
    with service.changed:
        service.ended = True
        service.changed.notify_all()


def write_config(folder: Path) -> Path:
    """Write a configuration for `serve` below `folder`, with the kernel in memory and one map, and return its path."""
    file = folder / "jumptable.toml"
    file.write_text(_CONFIG.format(folder=folder))
    return file


@contextmanager
def demo(*arguments: str, env: dict[str, str] | None = None, first: str = "") -> Iterator[Service]:
    """Run `jumptable demo` on a free port, and wait until it answers."""
    with running("demo", "--port", "0", *arguments, env=env, first=first) as service:
        service.url = service.wait_for(r"(http://\S+)/docs")[1]
        _until_it_answers(service)
        yield service


@contextmanager
def serve(config: Path, socket: Path, *, first: str = "") -> Iterator[Service]:
    """Run `jumptable serve`, and wait until it answers."""
    with running("serve", "--config", str(config), first=first) as service:
        service.socket = socket
        service.wait_for("serving")
        _until_it_answers(service)
        yield service


def _until_it_answers(service: Service) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    with service.client() as client:
        while True:
            try:
                client.get("/healthz")
            except httpx.TransportError:
                assert service.process.poll() is None, "it ended"
                assert time.monotonic() < deadline, "it does not answer"
            else:
                return
