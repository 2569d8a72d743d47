"""The works: what each of the machines does in one round, and what comes of it."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench import PATH, PROGRAMS, Bench, Server

Measure = Callable[[Bench], float]
_BPFTOOL_CHANGES = 100


@dataclass(frozen=True)
class Work:
    """One line of the table. `unit`: "/s" (more is better) or "s" (less is better); `goal`: of `ours` to `peer`."""

    name: str
    unit: str
    measures: dict[str, Measure]
    peer: str
    goal: float | None = None
    ours: str = "ours"


def _changes(bench: Bench) -> str:
    return bench.bodies(*({"program": name} for name in PROGRAMS))


def _set(server: str, connections: int, figure: str = "rate") -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        path = f"/maps/{chosen.prefix}64/entries/%d"
        return bench.load(chosen, path, _changes(bench), connections=connections, seconds=1.0)[figure]

    return measure


def _get(server: str, connections: int) -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        return bench.load(chosen, f"/maps/{chosen.prefix}64/entries/%d", connections=connections, seconds=1.0)["rate"]

    return measure


def _list(server: str, size: int) -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        return bench.load(chosen, f"/maps/{chosen.prefix}{size}/entries", seconds=1.0 if size > 64 else 0.5)["p50"]

    return measure


def _tables(bench: Bench, size: int) -> str:
    """Two tables that differ in every entry."""
    return bench.bodies(*({"programs": [PROGRAMS[(index + turn) % 2] for index in range(size)]} for turn in range(2)))


def _replace(server: str, size: int) -> Measure:
    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        path = f"/maps/{chosen.prefix}{size}/entries"
        return bench.load(chosen, path, _tables(bench, size), seconds=2.0 if size > 1024 else 0.5)["p50"]

    return measure


def _beside_tables(server: str) -> Measure:
    """p99 of a set on another map while tables of 65,536 entries are replaced."""

    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        big = bench.servers[server.replace("go64", "go65536")]
        with bench.loading(big, f"/maps/{big.prefix}65536/entries", _tables(bench, 65_536), seconds=3.0):
            path = f"/maps/{chosen.prefix}64/entries/%d"
            return bench.load(chosen, path, _changes(bench), seconds=2.5)["p99"]

    return measure


def _bpftool(bench: Bench) -> float:
    began = time.perf_counter()
    for number in range(_BPFTOOL_CHANGES):
        subprocess.run(
            ["bpftool", "map", "update", "pinned", bench.pin("floor64"), "key", "3", "0", "0", "0",
             "value", "pinned", bench.pin(f"programs/{PROGRAMS[number % 2]}")],
            check=True, env={**os.environ, "PATH": PATH},
        )  # fmt: skip
    return _BPFTOOL_CHANGES / (time.perf_counter() - began)


def _batch(bench: Bench) -> float:
    """`bpftool batch` of 65,536 updates: s."""
    file = bench.folder / "batch"
    if not file.exists():
        file.write_text(
            "".join(
                f"map update pinned {bench.pin('floor65536')} key {' '.join(map(str, index.to_bytes(4, 'little')))} "
                f"value pinned {bench.pin('programs/drop')}\n"
                for index in range(65_536)
            )
        )
    began = time.perf_counter()
    subprocess.run(
        ["bpftool", "batch", "file", file], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": PATH}
    )
    return time.perf_counter() - began


def memory(server: Server) -> float:
    """Resident, with the keeper where there is one: bytes."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    total = 0
    for pid in (str(server.pid), *children):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1]) * 1024
    return total


WORKS = [
    Work("set, 1 connection, median", "s", {"ours": _set("ours", 1, "p50"), "Go": _set("go64", 1, "p50")}, "Go", 1.5),
    *(
        Work(f"set, {connections} connections", "/s",
             {"ours": _set("ours", connections), "unix": _set("ours, unix", connections),
              "power": _set("ours, power", connections), "Go": _set("go64", connections)}, "Go", 1.0)
        for connections in (8, 64)
    ),
    Work("set, 8 connections, power", "/s", {"ours": _set("ours, power", 8), "Go": _set("go64", 8)}, "Go", 0.6),
    Work("set, 8 connections, to one bpftool a change", "/s", {"ours": _set("ours", 8), "bpftool": _bpftool},
         "bpftool", 30),
    Work("get, 8 connections", "/s", {"ours": _get("ours", 8), "Go": _get("go64", 8)}, "Go", 1.0),
    Work("list 64", "s", {"ours": _list("ours", 64), "Go": _list("go64", 64)}, "Go"),
    Work("list 65,536", "s", {"ours": _list("ours", 65_536), "Go": _list("go65536", 65_536),
                              "C": lambda bench: bench.loop("lookup", "floor65536", 65_536)}, "Go", 0.5),
    *(
        Work(f"replace {size:,}", "s", {"ours": _replace("ours", size), "Go": _replace(f"go{size}", size)}, "Go", goal)
        for size, goal in ((64, None), (1024, None), (65_536, 0.6))
    ),
    Work("replace 65,536, to the C loop", "s", {"ours": _replace("ours", 65_536),
         "C": lambda bench: bench.loop("update", "floor65536", 65_536)}, "C", 1.0),
    Work("replace 65,536, to bpftool batch", "s", {"ours": _replace("ours", 65_536), "batch": _batch}, "batch"),
    Work("p99 of a set beside tables of 65,536", "s",
         {"ours": _beside_tables("ours"), "Go": _beside_tables("go64")}, "Go"),
]  # fmt: skip
