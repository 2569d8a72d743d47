"""The works: what each of the machines does in one round, and how that is compared."""

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from app import native
from tests.benchmarks.bench import ENV, PROGRAMS, Bench
from tests.benchmarks.table import Row, told

Measure = Callable[[Bench], float]
ROUNDS = 5
_BPFTOOL_CHANGES = 100
_MINIMAL = "Prefer: return=minimal"


@dataclass(frozen=True)
class Compared:
    """A ratio, taken within each round. `goal`: of it; `most`: of the median of `ours`; `name`: what it is about."""

    ours: str
    peer: str
    goal: float | None = None
    most: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Work:
    """`unit`: "/s" (more is better), "s" or "B" (less is better). One row of the table for each that is compared."""

    name: str
    unit: str
    measures: dict[str, Measure]
    compared: tuple[Compared, ...]


def rows(bench: Bench, work: Work, rounds: int = ROUNDS) -> list[Row]:
    """Measure it: the machines take turns, each second round the other way about."""
    found: list[dict[str, float]] = []
    for number in range(rounds):
        names = list(work.measures)[:: -1 if number % 2 else 1]
        found.append({name: work.measures[name](bench) for name in names})
    medians = {name: statistics.median(each[name] for each in found) for name in work.measures}
    return [
        _row(work, each, medians, statistics.median(one[each.ours] / one[each.peer] for one in found))
        for each in work.compared
    ]


def _row(work: Work, compared: Compared, medians: dict[str, float], ratio: float) -> Row:
    shown = medians if compared is work.compared[0] else [compared.ours, compared.peer]
    more = work.unit == "/s"
    goal, reached = "", True
    if compared.goal is not None:
        goal = f"{'≥' if more else '≤'} {compared.goal:g}"
        reached = ratio >= compared.goal if more else ratio <= compared.goal
    elif compared.most is not None:
        goal = f"≤ {told(compared.most, work.unit)}"
        reached = medians[compared.ours] <= compared.most
    return Row(
        work.name + (f", {compared.name}" if compared.name else ""),
        ", ".join(f"{name} {told(medians[name], work.unit)}" for name in shown),
        ratio,
        compared.peer,
        goal,
        reached,
        ratio if more else 1 / ratio,
        compared.goal if more or compared.goal is None else 1 / compared.goal,
    )


def one(server: str, connections: int, figure: str, *, change: bool, seconds: float = 1.0) -> Measure:
    """One entry set or got, on as many entries as connections."""

    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        path = f"/maps/{chosen.prefix}64/entries/%d"
        bodies = bench.changes() if change else ""
        return bench.load(chosen, path, bodies, connections=connections, seconds=seconds)[figure]

    return measure


def _list(server: str, size: int) -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        return bench.load(chosen, f"/maps/{chosen.prefix}{size}/entries", seconds=1.0 if size > 64 else 0.5)["p50"]

    return measure


def _replace(server: str, size: int, header: str = "") -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        path = f"/maps/{chosen.prefix}{size}/entries"
        return bench.load(chosen, path, bench.tables(size), header, seconds=2.0 if size > 1024 else 0.5)["p50"]

    return measure


def _beside_tables(server: str) -> Measure:
    """p99 of a set on another map while tables of 65,536 entries are replaced."""

    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        with bench.loading(chosen, f"/maps/{chosen.prefix}65536/entries", bench.tables(65_536), seconds=3.0) as tables:
            path = f"/maps/{chosen.prefix}64/entries/%d"
            p99 = bench.load(chosen, path, bench.changes(), seconds=2.5)["p99"]
            tables()
            return p99

    return measure


def _loop(what: str, size: int) -> Measure:
    return lambda bench: bench.loop(what, f"floor{size}", size)


def _bpftool(bench: Bench) -> float:
    """A bpftool for each change: changes a second."""
    began = time.perf_counter()
    for number in range(_BPFTOOL_CHANGES):
        subprocess.run(
            ["bpftool", "map", "update", "pinned", bench.pin("floor64"), "key", "3", "0", "0", "0",
             "value", "pinned", bench.pin(f"programs/{PROGRAMS[number % 2]}")],
            check=True, env=ENV,
        )  # fmt: skip
    return _BPFTOOL_CHANGES / (time.perf_counter() - began)


_turns = itertools.cycle(reversed(PROGRAMS))


def _batch(bench: Bench) -> float:
    """`bpftool batch` of 65,536 updates, each of which changes its entry: s."""
    table, program = bench.pin("bpftool65536"), bench.pin(f"programs/{next(_turns)}")
    file = bench.folder / "batch"
    with file.open("w") as lines:
        for index in range(65_536):
            key = " ".join(map(str, index.to_bytes(4, "little")))
            lines.write(f"map update pinned {table} key {key} value pinned {program}\n")
    began = time.perf_counter()
    subprocess.run(["bpftool", "batch", "file", file], check=True, stdout=subprocess.DEVNULL, env=ENV)
    return time.perf_counter() - began


def _both(measure: Callable[[str, int], Measure], size: int) -> dict[str, Measure]:
    return {"ours": measure("ours", size), "Go": measure("Go", size)}


def _many(connections: int) -> dict[str, Measure]:
    return {name: one(name, connections, "rate", change=True) for name in ("ours", "unix", "power", "Go")}


def _goal(in_c: float, in_python: float) -> float:
    """The goal with the C extension, or that without it."""
    return in_c if native.is_used else in_python


WORKS = [
    Work("set, 1 connection, median time", "s",
         {name: one(name, 1, "p50", change=True) for name in ("ours", "unix", "power", "Go")}
         | {"C": lambda bench: bench.loop("update", "floor64", 64) / 64},
         (Compared("ours", "Go", _goal(1.3, 2.5)), Compared("power", "Go", name="power"))),
    Work("set, 8 connections", "/s", _many(8) | {"bpftool": _bpftool},
         (Compared("ours", "Go", _goal(1.0, 0.6)), Compared("power", "Go", _goal(0.5, 0.3), name="power"),
          Compared("ours", "bpftool", _goal(40, 25), name="to a bpftool for each change"))),
    Work("set, 64 connections", "/s", _many(64),
         (Compared("ours", "Go", _goal(1.0, 0.5)), Compared("power", "Go", _goal(0.8, 0.5), name="power"))),
    Work("set, 1 connection, with TLS", "s",
         {name: one(name, 1, "p50", change=True) for name in ("tls", "ours", "Go")},
         (Compared("tls", "Go"), Compared("tls", "ours", name="to the same without TLS"))),
    *(Work(f"get, {connections} connection{'s' if connections > 1 else ''}", "/s",
           {name: one(name, connections, "rate", change=False) for name in ("ours", "Go")},
           (Compared("ours", "Go", _goal(1.2, 0.85) if connections == 8 else None),))
      for connections in (1, 8, 64)),
    Work("list 64", "s", _both(_list, 64) | {"C": _loop("lookup", 64)}, (Compared("ours", "Go"),)),
    Work("list 65,536", "s", _both(_list, 65_536) | {"C": _loop("lookup", 65_536)}, (Compared("ours", "Go", 0.5),)),
    *(Work(f"replace {size:,}", "s", _both(_replace, size) | {"C": _loop("update", size)},
           (Compared("ours", "Go", 2.5 if size == 64 else None),))
      for size in (64, 1024)),
    Work("replace 65,536", "s", _both(_replace, 65_536) | {"C": _loop("update", 65_536), "batch": _batch},
         (Compared("ours", "Go", 0.6), Compared("ours", "C", 1.0, name="to the C loop"),
          Compared("ours", "batch", name="to bpftool batch"))),
    Work("replace 65,536, return=minimal", "s",
         {"ours": _replace("ours", 65_536, _MINIMAL), "Go": _replace("Go", 65_536), "C": _loop("update", 65_536)},
         (Compared("ours", "Go", 0.6), Compared("ours", "C", 1.5, name="to the C loop"))),
    Work("p99 of a set beside tables of 65,536", "s",
         {"ours": _beside_tables("ours"), "Go": _beside_tables("Go")}, (Compared("ours", "Go", most=0.02),)),
]  # fmt: skip
