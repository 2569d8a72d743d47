"""The soak: mixed work for minutes, and whether memory stays."""

import statistics
import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, closing

from tests.benchmarks.bench import PROGRAMS, Bench, Server
from tests.benchmarks.servers import ours
from tests.benchmarks.table import Row, told

TABLES = {"soak64": 64, "soak1024": 1024}
_READERS = 20
_READ_SECONDS = 5.0
_GROWTH = 1.05
_MOST = 120e6  # bytes


def rows(bench: Bench, seconds: float) -> list[Row]:
    """Sets, gets, lists, tables, readers of events that come and go, and reverts, all at once, for so long."""
    with ours(bench, "soak", list(TABLES)) as server, ExitStack() as stack:
        done = threading.Event()
        events, reverts = _Events(bench, server, done), _Reverts(server, done)
        stack.callback(events.join)
        stack.callback(reverts.join)
        stack.callback(done.set)
        one, table = "/maps/soak64/entries", "/maps/soak1024/entries"
        loads = {
            name: stack.enter_context(
                bench.loading(server, path, bodies, connections=connections, pause=pause, seconds=seconds)
            )
            for name, path, bodies, connections, pause in (
                ("sets", f"{one}/%d", bench.changes(), 4, 0.002),
                ("gets", f"{one}/%d", "", 4, 0.002),
                ("lists of 64", one, "", 1, 0.02),
                ("lists of 1,024", table, "", 1, 0.1),
                ("tables of 1,024", table, bench.tables(1024), 1, 0.2),
            )
        }
        events.start()
        reverts.start()
        began = time.monotonic()
        marks = [_memory_at(server, began + when) for when in (seconds / 10, seconds)]
        counts = {name: told_()["count"] for name, told_ in loads.items()}
    for each in (events, reverts):
        if each.failed is not None:
            raise each.failed
    counts |= {"events read": events.count, "reverts": reverts.count}
    return _told(seconds, marks, counts)


def _memory_at(server: Server, when: float) -> float:
    """The median of the five seconds before: bytes."""
    sizes = []
    for left in (4, 3, 2, 1, 0):
        time.sleep(max(0.0, when - 0.5 - left - time.monotonic()))
        sizes.append(server.memory())
    return statistics.median(sizes)


def _told(seconds: float, marks: list[float], counts: dict[str, float]) -> list[Row]:
    growth = marks[1] / marks[0]
    sizes = f"after {seconds / 10:.0f} s {told(marks[0], 'B')}, after {seconds:.0f} s {told(marks[1], 'B')}"
    done = ", ".join(f"{count:,.0f} {name}" for name, count in counts.items())
    return [
        Row(f"a soak of {seconds:.0f} s", done),
        Row("memory after the soak", sizes, growth, "its first tenth", f"≤ {_GROWTH:g}", growth <= _GROWTH),
        Row("memory after the soak, in all", told(marks[1], "B"), goal=f"≤ {told(_MOST, 'B')}",
            reached=marks[1] <= _MOST),
    ]  # fmt: skip


class _Beside(threading.Thread, ABC):
    """Something that goes on until it is `done`, and counts. `failed`: what ended it before."""

    def __init__(self, server: Server, done: threading.Event) -> None:
        super().__init__()
        self.server, self.done = server, done
        self.count = 0.0
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            while not self.done.is_set():
                self.turn()
        except Exception as error:  # noqa: BLE001 - raised where the soak ends
            self.failed = error

    @abstractmethod
    def turn(self) -> None:
        """Once more."""


class _Events(_Beside):
    """Readers of events that come, read for a while, and go."""

    def __init__(self, bench: Bench, server: Server, done: threading.Event) -> None:
        super().__init__(server, done)
        self.bench = bench

    def turn(self) -> None:
        with self.bench.watched(self.server, _READERS) as told:
            self.done.wait(_READ_SECONDS)
            self.count += told()["events"]


class _Reverts(_Beside):
    """An entry that is set, and its change reverted."""

    def turn(self) -> None:
        with closing(self.server.connect()) as connection:
            put = self.server.ask(connection, "PUT", "/maps/soak64/entries/60", {"program": PROGRAMS[1]})
            self.server.ask(connection, "POST", f"/changes/{put['Change-Id']}/revert")
        self.count += 1
        self.done.wait(0.1)
