"""Limits on what callers may use: connections, requests a second, event streams, long answers, and held objects."""

import asyncio
import contextlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from typing import Final

from starlette.types import Send

from app.api.problems import HttpProblem

_MAX_BUCKETS: Final = 1024  # actors whose rate is tracked; the one who was idle longest is forgotten
_STALL_SECONDS: Final = 1.0  # that a reader of a long answer may read nothing while others wait
_READERS_RETRY_SECONDS: Final = 10
_HELD_RETRY_SECONDS: Final = 60


class ClientGone(Exception):
    """The client has gone, or reads nothing while others wait: no more of the answer has to be made."""


class Bounds:
    """Limits of the server on connections.

    Args:
        connections: How many may be open at a time.
        header_bytes: Largest size of a request's line and headers together, in bytes.
        header_seconds: How long they may take to arrive, in seconds.
        idle_seconds: How long a connection may stay open between two requests, in seconds.
    """

    def __init__(
        self,
        connections: int = 4096,
        header_bytes: int = 32_768,
        header_seconds: float = 10.0,
        idle_seconds: float = 75.0,
    ) -> None:
        self.connections, self.header_bytes = connections, header_bytes
        self.header_seconds, self.idle_seconds = header_seconds, idle_seconds


class Limits:
    """Limits of the API on callers.

    Args:
        event_readers: How many event streams may be open at a time. One actor may have half of them.
        held: How many maps and programs may be held at a time.
        requests_per_second: How many requests one actor may send a second, on average; None: any number.
        burst: How many requests one actor may send at once.
    """

    def __init__(
        self,
        event_readers: int = 2048,
        held: int = 4096,
        requests_per_second: float | None = None,
        burst: int = 100,
    ) -> None:
        self.change(event_readers, held, requests_per_second, burst)
        self._readers: Counter[str] = Counter()  # by actor
        # By actor: how many requests were left, and when that was.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def change(self, event_readers: int, held: int, requests_per_second: float | None, burst: int) -> None:
        """Set other limits. What is in use now stays counted."""
        self.event_readers, self.held = event_readers, held
        self.requests_per_second, self._burst = requests_per_second, burst

    @property
    def readers(self) -> int:
        """How many event streams are open."""
        return self._readers.total()

    def check_rate(self, actor: str) -> None:
        """Count one request of an actor, with a token bucket.

        Raises:
            HttpProblem: too-many-requests: the actor has sent too many.
        """
        if self.requests_per_second is None:
            return
        now = time.monotonic()
        left, updated = self._buckets.pop(actor, (float(self._burst), now))
        left = min(self._burst, left + (now - updated) * self.requests_per_second)
        self._buckets[actor] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if left < 1:
            detail = f"{actor} may send {self.requests_per_second:g} requests a second; wait before you send the next"
            raise too_many(detail, (1 - left) / self.requests_per_second)

    def check_readers(self, actor: str) -> None:
        """Check that an actor may open another event stream.

        Raises:
            HttpProblem: too-many-requests: all streams are in use, or this actor has its half of them.
        """
        readers = self._readers.total()
        if readers >= self.event_readers:
            detail = f"{readers} event streams are open already; close one, or raise limits.event_readers"
            raise too_many(detail, _READERS_RETRY_SECONDS)
        if self._readers[actor] >= (self.event_readers + 1) // 2:
            detail = (
                f"{actor} has {self._readers[actor]} event streams open already, and the rest is for other callers; "
                "close one, or raise limits.event_readers"
            )
            raise too_many(detail, _READERS_RETRY_SECONDS)

    @contextlib.contextmanager
    def reading(self, actor: str) -> Iterator[None]:
        """Count one event stream of an actor while the `with` block runs."""
        self._readers[actor] += 1
        try:
            yield
        finally:
            self._readers[actor] -= 1
            if not self._readers[actor]:
                del self._readers[actor]

    def check_held(self, held: int) -> None:
        """Check that another map or program may be held, when `held` of them are held already.

        Raises:
            HttpProblem: too-many-requests: the limit is reached.
        """
        if held >= self.held:
            detail = f"{held} maps and programs are held already; release some, or raise limits.held"
            raise too_many(detail, _HELD_RETRY_SECONDS)


class LongAnswers:
    """Bounds the long answers that are being made: how many at a time, and for whom.

    Args:
        at_a_time: How many. Each takes up to 3 MB until its reader has read it.
    """

    def __init__(self, at_a_time: int = 32) -> None:
        self._slots = asyncio.Semaphore(at_a_time)
        self._waiting = 0  # requests that wait for a slot
        # Held while a part is encoded and the event loop turns once: between two parts, all other requests have a turn.
        self.turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """Wait for a slot, and have it while the `with` block runs."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def until_read(self, send: Send) -> None:
        """Wait until the client has read most of what was sent.

        Raises:
            ClientGone: It is gone; or it reads nothing while others wait for a slot.
        """
        is_read = False
        while not is_read:
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                    is_read = True
            except TimeoutError:
                if self._waiting:
                    raise ClientGone from None


def too_many(detail: str, seconds: float) -> HttpProblem:
    """Return the problem too-many-requests (429; RFC 6585, 4), with Retry-After in whole seconds, at least 1."""
    return HttpProblem("too-many-requests", detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})
