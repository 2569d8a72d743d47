"""Object files that are loaded in a loop, and what others notice of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.bench import Bench, Server
from tests.benchmarks.works import Compared, Work, one
from tests.compiled import object_file

_FILE = "objects/parser.o"


@contextmanager
def _loading(bench: Bench, server: Server) -> Iterator[None]:
    """New versions of an object file of four programs are loaded one after another, for as long as this lasts.

    Raises:
        RuntimeError: None was.
    """
    file = bench.folder / _FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(object_file("parser"))
    has_ended, loads = threading.Event(), 0

    def load() -> None:
        nonlocal loads
        connection = server.connect()
        while not has_ended.is_set():
            server.ask(connection, "PUT", "/objects/loaded", {"file": str(file), "variables": {"verdict": loads % 5}})
            loads += 1
        server.ask(connection, "DELETE", "/objects/loaded")
        connection.close()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
    if not loads:
        raise RuntimeError("no object file was loaded meanwhile")


def _beside_loads(bench: Bench) -> float:
    """p99 of a set while object files are loaded."""
    chosen = bench.servers["ours"]
    with _loading(bench, chosen):
        return bench.load(chosen, f"/maps/{chosen.prefix}64/entries/1", bench.changes(), seconds=2.5)["p99"]


WORKS = [
    Work("p99 of a set beside object files that are loaded", "s",
         {"ours": _beside_loads, "alone": one("ours", 1, "p99", change=True, seconds=2.5)},
         (Compared("ours", "alone", 2.0),)),
]  # fmt: skip
