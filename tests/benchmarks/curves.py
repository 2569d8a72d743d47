"""Costs that grow: time and memory against what there is much of."""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from app.bpf.linux import LinuxKernel
from app.store.journal import Journal
from app.store.records import Array, Change, EntryChange, EntryChanges, Hold, ProgramRecord
from tests.benchmarks.bench import PROGRAMS, Bench, Figures, Server, pin_programs
from tests.benchmarks.servers import ours
from tests.benchmarks.table import told
from tests.store.tables import table_of

_ENTRIES = (16, 256, 4096, 65_536, 1 << 20)
_MAPS = (1, 10, 100, 1000)
_PROGRAMS = (2, 100, 1000, 10_000)
_HOLDS = 5
_READERS = (1, 10, 100, 1000)
_CHANGES = (1 << 10, 10 << 10, 100 << 10, 1000 << 10)
MEMORY = "memory"


@dataclass(frozen=True)
class Curve:
    """`points`: (how many, {what: s, and of `memory` bytes})."""

    of: str
    points: list[tuple[int, Figures]]

    def markdown(self) -> str:
        """A table; its last line tells how each grew over the last step: 1 is linear, 0 flat."""
        names = list(self.points[0][1])
        lines = [f"| {self.of} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for number, figures in self.points:
            each = [told(figures[name], "B" if name == MEMORY else "s") for name in names]
            lines.append(f"| {number:,} | {' | '.join(each)} |")
        lines.append(f"| growth | {' | '.join(f'{self.growth(name):.2f}' for name in names)} |")
        return "\n".join(lines)

    def growth(self, name: str) -> float:
        """The exponent of the last step: the logarithm of its growth to that of the numbers."""
        (number, before), (last, after) = self.points[-2:]
        return math.log(after[name] / before[name]) / math.log(last / number)


@contextmanager
def _started(bench: Bench, name: str, tables: list[str]) -> Iterator[tuple[Server, Figures]]:
    """The service, and the time of its start."""
    began = time.perf_counter()
    with ours(bench, name, tables) as server:
        yield server, {"start": time.perf_counter() - began}


def _set(bench: Bench, server: Server, table: str) -> float:
    return bench.load(server, f"/maps/{table}/entries/0", bench.changes(), seconds=1.0)["p50"]


def _get(bench: Bench, server: Server, path: str) -> float:
    return bench.load(server, path, seconds=0.5)["p50"]


def entries(bench: Bench) -> Curve:
    """Against the entries of an array, all of them filled."""
    points = []
    for size in _ENTRIES:
        table = f"entries{size}"
        bench.pin_array(table, size)
        with _started(bench, table, [table]) as (server, figures):
            figures["set"] = _set(bench, server, table)
            figures["list"] = _get(bench, server, f"/maps/{table}/entries")
            figures["replace"] = bench.load(server, f"/maps/{table}/entries", bench.tables(size), seconds=0.5)["p50"]
            figures[MEMORY] = server.memory()
        points.append((size, figures))
    return Curve("entries", points)


def maps(bench: Bench) -> Curve:
    """Against held maps, of 16 entries each."""
    tables = [f"held{number}" for number in range(_MAPS[-1])]
    more = [f"more{number}" for number in range(_HOLDS)]
    for table in tables + more:
        bench.pin_array(table, 16)
    points = []
    for count in _MAPS:
        with _started(bench, f"maps{count}", tables[:count]) as (server, figures):
            figures["set"] = _set(bench, server, tables[0])
            figures["list of maps"] = _get(bench, server, "/maps")
            figures["hold"] = _hold(server, {f"/maps/{name}": bench.pin(name) for name in more})
            figures[MEMORY] = server.memory()
        points.append((count, figures))
    return Curve("held maps", points)


def programs(bench: Bench) -> Curve:
    """Against held programs; all but two are held as by requests before the start."""
    bench.pin_array("programs64", 64)
    more = [f"more{number}" for number in range(_HOLDS)]
    names = [f"program{number}" for number in range(_PROGRAMS[-1] - len(PROGRAMS))]
    pin_programs(bench, more + names)
    points = []
    for count in _PROGRAMS:
        name = f"programs{count}"
        asyncio.run(_remember(bench, _journal(bench, name), names[: count - len(PROGRAMS)]))
        with _started(bench, name, ["programs64"]) as (server, figures):
            figures["set"] = _set(bench, server, "programs64")
            figures["list of programs"] = _get(bench, server, "/programs")
            pins = {f"/programs/{each}": bench.pin(f"programs/{each}") for each in more}
            figures["hold"] = _hold(server, pins)
            figures[MEMORY] = server.memory()
        points.append((count, figures))
    return Curve("held programs", points)


def _hold(server: Server, pins: dict[str, str]) -> float:
    """Have the service hold what is pinned: the median time of a request, s."""
    times = []
    with closing(server.connect()) as connection:
        for path, pin in pins.items():
            began = time.perf_counter()
            server.ask(connection, "PUT", path, {"pinned": pin})
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _journal(bench: Bench, name: str) -> Journal:
    """The journal of the service that will be started under this name."""
    file = bench.folder / name / "state" / "journal.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    return Journal(file, "process")


async def _remember(bench: Bench, journal: Journal, names: list[str]) -> None:
    boot_id = LinuxKernel().boot_id
    for name in names:
        pin = bench.pin(f"programs/{name}")
        await journal.save_hold(Hold("program", name, pin, None, boot_id), {"program": name, "what": "held"})
    journal.close()


def readers(bench: Bench) -> Curve:
    """Against readers of events, to each of whom each change is told."""
    bench.pin_array("readers64", 64)
    points = []
    with ours(bench, "readers", ["readers64"]) as server:
        for count in _READERS:
            with bench.watched(server, count) as watched:
                figures = {"set": _set(bench, server, "readers64")}
                paced = bench.load(server, "/maps/readers64/entries/0", bench.changes(), seconds=2.0, pause=0.1)
                figures |= {"set, 10 a second": paced["p50"], "get": _get(bench, server, "/maps/readers64/entries/0")}
                figures[MEMORY] = server.memory()
                watched()
            points.append((count, figures))
    return Curve("readers of events", points)


def journal(bench: Bench) -> Curve:
    """Against the changes that were journalled, of which 100,000 are kept."""
    bench.pin_array("journal64", 64)
    points, written = [], 0
    for count in _CHANGES:
        asyncio.run(_fill(bench, _journal(bench, "journal"), written, count))
        written = count
        with _started(bench, "journal", ["journal64"]) as (server, figures):
            figures["set"] = _set(bench, server, "journal64")
            figures["get"] = _get(bench, server, "/maps/journal64/entries/0")
            figures["list of 100 changes"] = _get(bench, server, "/changes?limit=100")
            figures["last change of a map"] = _get(bench, server, "/changes?map=journal64&before=1000000000&limit=1")
            figures[MEMORY] = server.memory()
        points.append((count, figures))
    return Curve("changes journalled", points)


async def _fill(bench: Bench, journal: Journal, begin: int, end: int) -> None:
    """Journal changes from one number to another, as the service would. The last leave `drop` everywhere."""
    kernel, opened = LinuxKernel(), []
    records = []
    for name in PROGRAMS:
        opened.append(kernel.obj_get(bench.pin(f"programs/{name}")))
        info = kernel.prog_info(opened[-1])
        records.append(ProgramRecord(name, info.id, info.tag, bench.pin(f"programs/{name}")))
    opened.append(kernel.obj_get(bench.pin("journal64")))
    array = Array(kernel.map_info(opened[-1]).id, kernel.boot_id)
    for fd in opened:
        kernel.close(fd)
    if begin == 0:
        await journal.save_expected_table("journal64", array, table_of(dict.fromkeys(range(64), records[0])))
    for number in range(begin, end):
        turn = number // 64 % 2
        entry = EntryChange(number % 64, records[turn], records[1 - turn])
        await journal.append(
            Change(
                "journal64",
                array.map_id,
                array.boot_id,
                "set",
                EntryChanges.of([entry]),
                time.time(),
                "bench",
                f"request{number}",
            )
        )
    journal.close()


CURVES: tuple[Callable[[Bench], Curve], ...] = (entries, maps, programs, readers, journal)
