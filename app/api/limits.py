"""How much of the service one may take."""

import contextlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final

from app.api.problems import HttpProblem

_ACTORS_KEPT: Final = 1024


class Bounds:
    """What a connection may take. One for all of them."""

    def __init__(self, connections: int = 4096, header_bytes: int = 32_768, header_seconds: float = 10.0) -> None:
        self.connections, self.header_bytes, self.header_seconds = connections, header_bytes, header_seconds


class Limits:
    """`event_readers` (half of them for one actor), `held`: at a time.

    `requests_per_second`, `burst`: of one actor; None: any number.
    """

    def __init__(
        self,
        event_readers: int = 2048,
        held: int = 4096,
        requests_per_second: float | None = None,
        burst: int = 100,
    ) -> None:
        self.event_readers, self.held = event_readers, held
        self._rate, self._burst = requests_per_second, burst
        self._readers: Counter[str] = Counter()  # by actor
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when that was

    def check_rate(self, actor: str) -> None:
        """Refused with 429 where this actor has asked too often (a token bucket)."""
        if self._rate is None:
            return
        now = time.monotonic()
        left, at = self._buckets.pop(actor, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._rate)
        self._buckets[actor] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _ACTORS_KEPT:
            self._buckets.popitem(last=False)
        if left < 1:
            detail = f"{actor} may ask {self._rate:g} times a second"
            raise too_many(detail, (1 - left) / self._rate)

    def check_readers(self, actor: str) -> None:
        """Refused with 429 where that many follow the events already, or this actor alone half as many."""
        readers = self._readers.total()
        if readers >= self.event_readers:
            detail = f"{readers} readers follow the events already"
            raise too_many(detail, 10)
        if self._readers[actor] >= (self.event_readers + 1) // 2:
            detail = f"{self._readers[actor]} readers of {actor} follow the events already; the rest is for others"
            raise too_many(detail, 10)

    @contextlib.contextmanager
    def reading(self, actor: str) -> Iterator[None]:
        """One reader more, meanwhile."""
        self._readers[actor] += 1
        try:
            yield
        finally:
            self._readers[actor] -= 1
            if not self._readers[actor]:
                del self._readers[actor]

    def check_held(self, held: int) -> None:
        """Refused with 429 where that much is held already."""
        if held >= self.held:
            detail = f"{held} maps and programs are held already: release some, or raise limits.held"
            raise too_many(detail, 60)


def too_many(detail: str, seconds: float) -> HttpProblem:
    """429 (RFC 6585, 4), to be tried again after so many seconds."""
    return HttpProblem("too-many-requests", detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})
