"""What is counted and timed for /metrics. Counting costs a few additions; the sums are made when somebody asks."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Final

from app.bpf.kernel import Kernel

# Upper bounds of a histogram, in seconds: from a system call to a clear that waits for its grace period, and to a
# commit on a slow disk.
BOUNDS: Final = (
    2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
TIMED_CALLS: Final = (
    "map_lookup", "map_entries", "map_update", "map_delete", "prog_test_run", "obj_get", "obj_pin", "map_get_fd_by_id",
    "prog_get_fd_by_id", "map_create", "map_ids", "map_write",
)  # fmt: skip


class Timing:
    """How long something takes: how often up to each of BOUNDS and beyond, and in all.

    Attributes:
        counts: By bucket, how often. The last one is for what takes longer than the last bound.
        total: Seconds.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count it once more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def add_several(self, count: int, total: float, longest: float) -> None:
        """Count it several times. One took the longest time, in seconds; the rest count as equally long."""
        if count > 1:
            self.counts[bisect_left(BOUNDS, (total - longest) / (count - 1))] += count - 1
        if count:
            self.counts[bisect_left(BOUNDS, longest)] += 1
        self.total += total


class Counters:
    """What one service has counted since its start.

    Thread rule: any thread; a count may be lost where two threads add to the same one.

    Attributes:
        changes: Changes of entries, by kind and outcome.
        journal: Commits of the journal.
        requests: Requests, by operation and status.
        fast_requests: How many of them went the fast way.
        dropped_lines: Each returns how many lines of the log or the audit were dropped, by the reason.
    """

    def __init__(self) -> None:
        self.changes: Counter[tuple[str, str]] = Counter()
        self.journal = Timing()
        self.requests: dict[tuple[str, int], Timing] = {}
        self.fast_requests = 0
        self.dropped_lines: list[Callable[[], Mapping[str, int]]] = []

    def add_request(self, operation: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.timing(operation, status).add(seconds)

    def timing(self, operation: str, status: int) -> Timing:
        """Return how long requests of this operation and status take. It counts them."""
        timing = self.requests.get((operation, status))
        if timing is None:
            timing = self.requests[operation, status] = Timing()
        return timing


def timed_kernel(kernel: Kernel, timings: Mapping[str, Timing]) -> Kernel:
    """Return the same kernel with its calls timed, by name. The caller's own object stays as it is."""
    timed = copy(kernel)
    for name, timing in timings.items():
        setattr(timed, name, _timed(kernel, name, timing))
    return timed


def _timed(kernel: Kernel, name: str, timing: Timing) -> Callable[..., Any]:
    clock, counts = time.perf_counter, timing.counts

    def timed(*args: Any) -> Any:
        began = clock()
        try:
            return getattr(kernel, name)(*args)
        finally:
            seconds = clock() - began
            counts[bisect_left(BOUNDS, seconds)] += 1  # as Timing.add does, without the cost of a call
            timing.total += seconds

    return timed
