"""Set, get and list through HTTP on one connection, against `bpftool map update` run once for each change.

    .venv/bin/python -m tests.benchmarks.http       (as root, with bpftool)

The two take turns; the figures are medians over the rounds, and the ratios are taken round by round. Every set changes
the entry. Not run by pytest.
"""

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable

import httpx

from tests.running import demo

ROUNDS = 7
REQUESTS = 1500  # of HTTP in a round
CHANGES = 150  # of bpftool in a round
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Connection:
    """One connection, and requests made beforehand: the client's own cost is to be small."""

    def __init__(self, url: str) -> None:
        parsed = httpx.URL(url)
        self._socket = socket.create_connection((parsed.host, parsed.port or 80))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """Send a request, and return the whole answer."""
        self._socket.sendall(request)
        answer = self._socket.recv(1 << 20)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(1 << 20)
        assert head.startswith(b"HTTP/1.1 20"), head
        return body

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def put(program: str) -> bytes:
    """The request that points entry 3 to a program."""
    body = json.dumps({"program": program}).encode()
    return (
        b"PUT /maps/jump_table/entries/3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def get(path: str) -> bytes:
    """The request for a path."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def rate(count: int, once: Callable[[int], object]) -> float:
    """How often a second `once` runs."""
    began = time.perf_counter()
    for number in range(count):
        once(number)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure, and print a table."""
    # Its log goes nowhere: to read it would cost this process time.
    quiet = "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 2)"
    with demo("--kernel", "linux", first=quiet) as service, service.client() as client:
        map_id = client.get("/maps/jump_table").json()["id"]
        ids = [client.get(f"/programs/{name}").json()["id"] for name in ("drop", "pass")]
        for index in range(16):
            client.put(f"/maps/jump_table/entries/{index}", json={"program": "drop"})
        connection = Connection(service.url)
        puts = [put("drop"), put("pass")]
        one, table = get("/maps/jump_table/entries/3"), get("/maps/jump_table/entries")

        def bpftool(number: int) -> None:
            subprocess.run(
                ["bpftool", "map", "update", "id", str(map_id), "key", "3", "0", "0", "0", "value", "id",
                 str(ids[number % 2])],
                check=True, env={**os.environ, "PATH": PATH}, stderr=subprocess.DEVNULL,
            )  # fmt: skip

        works: dict[str, Callable[[], float]] = {
            "bpftool map update": lambda: rate(CHANGES, bpftool),
            "set an entry": lambda: rate(REQUESTS, lambda number: connection.ask(puts[number % 2])),
            "get an entry": lambda: rate(REQUESTS, lambda _: connection.ask(one)),
            "list 16 entries": lambda: rate(REQUESTS, lambda _: connection.ask(table)),
        }
        rounds = [{name: work() for name, work in works.items()} for _ in range(ROUNDS)]
        connection.close()
    for name in works:
        median = statistics.median(each[name] for each in rounds)
        ratio = statistics.median(each[name] / each["bpftool map update"] for each in rounds)
        print(f"{name:20} {median:8.0f} / s   {ratio:5.2f} x bpftool")


if __name__ == "__main__":
    main()
