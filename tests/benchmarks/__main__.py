"""How fast it is, side by side with its peers: .venv/bin/python -m tests.benchmarks  (as root)

The machines take turns; the figures are medians over the rounds, and each ratio is taken within its round. Not run by
pytest. It needs golang-go, golang-github-cilium-ebpf-dev, gcc and bpftool (apt-get install).
"""

import statistics
import sys

from tests.benchmarks.bench import Bench, prepared
from tests.benchmarks.works import WORKS, Work, memory

ROUNDS = 5


def told(value: float, unit: str) -> str:
    """A figure, to read."""
    if unit == "/s":
        return f"{value:,.0f} /s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def line(bench: Bench, work: Work) -> str:
    """One line of the table, in Markdown."""
    rounds = [{name: measure(bench) for name, measure in work.measures.items()} for _ in range(ROUNDS)]
    medians = {name: statistics.median(each[name] for each in rounds) for name in work.measures}
    ratio = statistics.median(each[work.ours] / each[work.peer] for each in rounds)
    goal = ""
    if work.goal is not None:
        goal = f"{'≥' if work.unit == '/s' else '≤'} {work.goal:g}"
        reached = ratio >= work.goal if work.unit == "/s" else ratio <= work.goal
        goal += "" if reached else " (not reached)"
    figures = ", ".join(f"{name} {told(value, work.unit)}" for name, value in medians.items())
    return f"| {work.name} | {figures} | {ratio:.2f} x {work.peer} | {goal} |"


def main() -> None:
    """Measure, and print a table. Arguments: only the works whose name has one of them in it."""
    with prepared() as bench:
        print("| work | medians | ratio | goal |\n|---|---|---|---|")
        print(f"| memory at rest, with the keeper | {memory(bench.servers['ours']) / 2**20:.0f} MiB | | |")
        for work in WORKS:
            if len(sys.argv) < 2 or any(part in work.name for part in sys.argv[1:]):
                print(line(bench, work), flush=True)
        print(f"| memory afterwards | {memory(bench.servers['ours']) / 2**20:.0f} MiB | | |")


main()
