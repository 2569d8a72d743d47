"""A table whose entries are called by a constant index: to clear one waits for an RCU grace period for each caller."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import ProgType
from tests.benchmarks.bench import PROGRAMS, Bench
from tests.benchmarks.works import Compared, Measure, Work, one

SIZE = 64
COUNTS = (1, 31)


@contextmanager
def loaded(bench: Bench, tables: dict[str, int]) -> Iterator[None]:
    """For each array so many programs that call its entry 0 by a constant, for as long as this lasts.

    Kernel: check_helper_call() of the verifier, then prog_array_map_poke_run(); /work is theirs at each change.
    """
    kernel = LinuxKernel()
    held = []
    try:
        for table, count in tables.items():
            array = kernel.obj_get(bench.pin(table))
            code = asm.map_fd(2, array) + asm.mov(3, 0) + asm.tail_call() + asm.returns(2)
            held += [array, *(kernel.prog_load(ProgType.XDP, code, "caller") for _ in range(count))]
        yield
    finally:
        for fd in held:
            kernel.close(fd)


def _beside_clears(server: str, count: int, path: str, *, change: bool) -> Measure:
    """p99 of what is asked while entry 0 of the called table is cleared, and set again, in a loop."""

    def measure(bench: Bench) -> float:
        chosen = bench.servers[server]
        clears = bench.bodies({"program": PROGRAMS[0]}, "DELETE")
        called = f"/maps/{chosen.prefix}called{count}/entries"
        with bench.loading(chosen, f"{called}/0", clears, seconds=2.0) as clearing:
            asked = path.format(called=called, prefix=chosen.prefix)
            p99 = bench.load(chosen, asked, bench.changes() if change else "", seconds=1.5)["p99"]
            clearing()
            return p99

    return measure


def _works(count: int) -> list[Work]:
    callers = f"{count} constant-index caller{'s' if count > 1 else ''}"

    def beside(path: str, *, change: bool) -> dict[str, Measure]:
        return {name: _beside_clears(name, count, path, change=change) for name in ("ours", "Go")}

    return [
        Work(f"p99 of a set on another map while an entry with {callers} is cleared", "s",
             beside("/maps/{prefix}64/entries/1", change=True)
             | {"alone": one("ours", 1, "p99", change=True), "Go alone": one("Go", 1, "p99", change=True)},
             (Compared("ours", "alone", 2.0 if count > 1 else None),)),
        Work(f"p99 of a get of that table, {callers}", "s", beside("{called}/1", change=False),
             (Compared("ours", "Go"),)),
        Work(f"p99 of a set of that table, {callers}", "s", beside("{called}/1", change=True),
             (Compared("ours", "Go"),)),
    ]  # fmt: skip


WORKS = [work for count in COUNTS for work in _works(count)]
