"""What is counted and timed, cheaply: a few additions each time, whatever asks for the sums."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from app.bpf.kernel import Kernel

# Upper bounds, in seconds: from a system call to a clear that waits for its grace period, and a commit on a slow disk.
BOUNDS: Final = (
    2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_TIMED: Final = (
    "map_lookup", "map_entries", "map_update", "map_delete", "prog_test_run", "obj_get", "obj_pin", "map_get_fd_by_id",
    "prog_get_fd_by_id", "map_create", "map_ids", "map_write",
)  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


class Timing:
    """How long something took: how often up to each of BOUNDS, and longer; and in all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0  # s

    def add(self, seconds: float) -> None:
        """Once more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Counters:
    """All of them, since the start. Thread rule: any; a count may be lost where two threads add to the same one."""

    def __init__(self) -> None:
        self.changes: Counter[tuple[str, str]] = Counter()  # by kind and outcome
        self.kernel = {name: Timing() for name in _TIMED}
        self.journal = Timing()
        self.requests: dict[tuple[str, int], Timing] = {}  # by operation and status

    def request(self, operation: str, status: int, seconds: float) -> None:
        """One request was answered."""
        timing = self.requests.get((operation, status))
        if timing is None:
            timing = self.requests[operation, status] = Timing()
        timing.add(seconds)

    def time_calls(self, kernel: Kernel) -> None:
        """Time what is asked of this kernel from now on."""
        for name, timing in self.kernel.items():
            setattr(kernel, name, _timed(getattr(kernel, name), timing))


def _timed(call: Callable[P, R], timing: Timing) -> Callable[P, R]:
    clock, add = time.perf_counter, timing.add

    @wraps(call)
    def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        began = clock()
        try:
            return call(*args, **kwargs)
        finally:
            add(clock() - began)

    return timed
