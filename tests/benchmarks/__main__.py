"""How fast it is, side by side with its peers: .venv/bin/python -m tests.benchmarks  (as root)

The machines take turns; the figures are medians over the rounds, and each ratio is taken within its round. A whole run
writes its table into the README beside it, and draws result.svg. Not run by pytest. It needs golang-go,
golang-github-cilium-ebpf-dev, gcc and bpftool (apt-get install). With JUMPTABLE_PURE_PYTHON=1, the service runs without
its C extension: that has a table and a picture of its own.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from app import native
from tests.benchmarks import callers, curves, plot, soak, states, table, works
from tests.benchmarks.bench import Bench, prepared
from tests.benchmarks.servers import go, ours
from tests.benchmarks.table import Row, told

FOLDER = Path(__file__).parent
_SIZES = {"64": 64, "1024": 1024, "65536": 65_536} | {f"called{count}": callers.SIZE for count in callers.COUNTS}
_OTHERS = {"unix64": 64, "power64": 64, "tls64": 64, "fresh64": 64, "memory64": 64, "floor64": 64, "floor1024": 1024,
           "floor65536": 65_536, "bpftool65536": 65_536}  # fmt: skip


def _measured(bench: Bench, chosen: list[str]) -> Iterator[Row]:
    """The rows of all works; of those alone whose name has one of `chosen` in it."""
    prefixed = {f"{prefix}{name}": size for prefix in ("ours", "go") for name, size in _SIZES.items()}
    for name, size in (prefixed | _OTHERS).items():
        bench.pin_array(name, size)
    called = {f"{prefix}called{count}": count for prefix in ("ours", "go") for count in callers.COUNTS}
    if not chosen or any("memory" in part for part in chosen):
        yield from states.memory(bench)
    with ExitStack() as stack:
        stack.enter_context(callers.loaded(bench, called))
        for name, server in {
            "Go": go(bench, [f"go{name}" for name in _SIZES]),
            "ours": ours(bench, "ours", [f"ours{name}" for name in _SIZES]),
            "unix": ours(bench, "unix", ["unix64"], unix=True),
            "power": ours(bench, "power", ["power64"], durability="power"),
            "tls": ours(bench, "tls", ["tls64"], tls=True),
        }.items():
            bench.servers[name] = stack.enter_context(server)
        for work in (*works.WORKS, *states.WORKS, *callers.WORKS):
            if not chosen or any(part in work.name for part in chosen):
                yield from works.rows(bench, work)
        if not chosen:
            afterwards = told(bench.servers["ours"].memory(), "B")
            yield Row("memory after all of this, with arrays of 65,536, 1,024 and 64 entries", f"ours {afterwards}")


def _results(arguments: argparse.Namespace) -> None:
    with prepared() as bench:
        rows = []
        for row in _measured(bench, arguments.works):
            rows.append(row)
            print(table.markdown([row]).splitlines()[-1], flush=True)
        if arguments.soak:
            for name, size in soak.TABLES.items():
                bench.pin_array(name, size)
            rows += soak.rows(bench, arguments.soak)
    print(table.markdown(rows))
    if not arguments.works and not arguments.print:
        name, file = ("benchmarks", "result.svg") if native.is_used else ("pure Python", "result-python.svg")
        (FOLDER / file).write_text(plot.bars(rows))
        table.write(name, f"{table.markdown(rows)}\n\n![Each work's speed beside its peer's, and the goals]({file})")


def _curves(arguments: argparse.Namespace) -> None:
    found = []
    with prepared() as bench:
        for measure in curves.CURVES:
            found.append(measure(bench))
            print(found[-1].markdown(), flush=True)
    if not arguments.print:
        (FOLDER / "curves.svg").write_text(plot.curves(found))
        picture = "![Time and memory against what grows](curves.svg)"
        table.write("curves", "\n\n".join([*(each.markdown() for each in found), picture]))


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("works", nargs="*", help="only works whose name has one of these in it; nothing is written")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="also mixed work for so long: 600")
    parser.add_argument("--curves", action="store_true", help="instead, what grows with what: ten minutes at the most")
    parser.add_argument("--print", action="store_true", help="write neither the README nor the pictures")
    arguments = parser.parse_args()
    if arguments.curves:
        _curves(arguments)
    else:
        _results(arguments)


main()
