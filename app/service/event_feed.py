"""The event feed: delivers the journal's events to any number of readers."""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from app.service.errors import EventsExpired, JournalUnreadable
from app.store.journal import Journal, JournalFailed
from app.store.records import Batch, Event

# Sizes of events are weights: the number of entries of the change, plus 1.
_RECENT_WEIGHT: Final = 16_384  # of all recent events together, which are kept in memory
_MAX_CACHED_WEIGHT: Final = 1024  # of an event whose encoding is cached; all encodings together take at most 3 MB
_MAX_ONE_PART_WEIGHT: Final = 64  # of an event that is encoded as a single part

_EVENTS_PER_BATCH: Final = 64  # that a reader gets at once
_CACHED_PAGES: Final = 8  # of older events; readers that are behind often read the same ones

_READERS_PER_SLICE: Final = 8  # woken before other tasks run; a reader takes about 100 us
_MIN_PAUSE_SECONDS: Final = 0.02  # between rounds of waking, so that readers get several events at once
_PAUSE_TO_ROUND_RATIO: Final = 2  # a pause lasts at least so many times as long as its round
_KEEPALIVE_SECONDS: Final = 15.0  # after which a reader without events gets an empty batch

Encode = Callable[[Event], Iterator[bytes]]
# Returns what one reader gets of an event: the event itself, an event with a part of it, or None.
View = Callable[[Event], Event | None]


class Encoded:
    """The encoding of an event, in parts, shared by its readers.

    A part is computed when the first reader reaches it, and kept for the others.
    """

    __slots__ = ("__weakref__", "_computed", "_rest")

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._computed: list[bytes] = []
        self._rest = parts

    def __iter__(self) -> Iterator[bytes]:
        for position in count():
            if position == len(self._computed):
                part = next(self._rest, None)
                if part is None:
                    return
                self._computed.append(part)
            yield self._computed[position]


@dataclass(eq=False, slots=True)
class _CachedEvent:
    """An event, its size, and its encoding.

    `weight` is 1, plus the number of entries of its change. `small` lives as long as this object. `large` lives only as
    long as a reader refers to it.
    """

    event: Event
    weight: int
    small: Encoded | None = None
    large: "weakref.ref[Encoded] | None" = None

    def encoded(self, encode: Encode) -> Encoded:
        """The encoding, the same for all readers. `encode` is called if it is not cached."""
        cached = self.small if self.large is None else self.large()
        if cached is not None:
            return cached
        weight = self.weight
        if weight <= _MAX_CACHED_WEIGHT:
            parts = encode(self.event)
            self.small = Encoded(iter((b"".join(parts),)) if weight <= _MAX_ONE_PART_WEIGHT else parts)
            return self.small
        fresh = Encoded(encode(self.event))
        self.large = weakref.ref(fresh)
        return fresh

    def seen(self, encode: Encode, view: View | None) -> Encoded | None:
        """The encoding for one reader. Readers that get the whole event share it. None: the reader does not get it."""
        event = self.event if view is None else view(self.event)
        if event is None:
            return None
        return self.encoded(encode) if event is self.event else Encoded(encode(event))


def _cached(event: Event) -> _CachedEvent:
    return _CachedEvent(event, 1 + (0 if event.change is None else len(event.change.entries.indexes)))


class EventFeed:
    """Delivers the journal's events to readers. Call its methods from one event loop only.

    A reader has no queue. It only knows the id of the last event that it got, and asks for those after it: `_after`
    takes them from the recent events in memory, or from the journal if the reader is further behind. So a slow reader
    uses no memory, and does not slow down the writers of events. If the journal has pruned what comes next, the
    reader's stream ends.

    Publishing costs the writer next to nothing. It adds the event to the recent ones and starts the waker, a task that
    runs while there are readers to wake. In each round the waker wakes two kinds of readers: those that sleep until
    there is a new event, and the backlog, those that have more to read and wait for their turn. A few are woken at a
    time, and other tasks run in between. Then the waker pauses in proportion to the duration of the round, so that
    readers use a limited share of the event loop however many there are.

    Attributes:
        ended: Set when all streams have to end.
        readers: The number of streams.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recent: deque[_CachedEvent] = deque()
        self._recent_weight = 0
        self._pages: dict[int, list[_CachedEvent]] = {}  # older events, by the id before the first of the page
        # What the last reader got last. This keeps a large encoding alive until all readers of the round have it.
        self._last_delivered: list[Encoded] = []
        self._has_news = False  # events that the sleeping readers were not woken for
        self._sleeping: set[asyncio.Future[None]] = set()  # of readers that wait for a new event
        self._backlog: list[asyncio.Future[None]] = []  # of readers that have more to read, and wait for their turn
        self._waker: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.readers = 0
        journal.on_events = self._publish

    def _publish(self, events: Sequence[Event | Batch]) -> None:
        """Take new events from the journal. Without a reader, they need not be made: a later one finds them there."""
        if not self.readers:
            self._recent.clear()
            self._recent_weight = 0
            return
        for one in events:
            for event in one.events() if isinstance(one, Batch) else (one,):
                cached = _cached(event)
                self._recent.append(cached)
                self._recent_weight += cached.weight
        while self._recent_weight > _RECENT_WEIGHT and len(self._recent) > 1:
            self._recent_weight -= self._recent.popleft().weight
        self._has_news = True
        if self._sleeping:
            self._start_waker()

    def _start_waker(self) -> None:
        self._waker = self._waker or asyncio.get_running_loop().create_task(self._wake_readers())

    async def _wake_readers(self) -> None:
        """The waker: wakes readers in rounds, with pauses, until there are none to wake."""
        clock = asyncio.get_running_loop().time
        while ready := self._take_ready():
            # The minimum pause gathers events for sleeping readers. If none sleeps, it would only delay the backlog.
            pause, began = _MIN_PAUSE_SECONDS if self._sleeping else 0.0, clock()
            for number, future in enumerate(ready, 1):
                if not future.done():
                    future.set_result(None)
                if number % _READERS_PER_SLICE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._last_delivered = []
            await asyncio.sleep(max(pause, _PAUSE_TO_ROUND_RATIO * (clock() - began)))
        self._waker = None
        self._pages.clear()

    def _take_ready(self) -> list[asyncio.Future[None]]:
        """The readers of the next round: the backlog, and the sleeping ones if there is a new event for them."""
        ready, self._backlog = self._backlog, []
        if self._has_news:
            self._has_news = False
            ready += self._sleeping
        return ready

    def stop(self) -> None:
        """End all streams, and streams that begin later at once."""
        self.ended.set()
        for future in (*self._sleeping, *self._backlog):
            if not future.done():
                future.set_result(None)

    def start_of(self, after: int | None) -> int:
        """The id of the event after which a stream begins.

        Args:
            after: The id of the last event that the reader knows. None: begin with the next event that happens.

        Raises:
            EventsExpired: The event after it is pruned, or there is no event with this id yet.
            JournalUnreadable: The journal cannot be read.
        """
        last = self._journal.last_event
        if after is None:
            return last
        pruned = self._pruned_event()
        if not pruned <= after <= last:
            raise EventsExpired(after, pruned + 1)
        return after

    def _pruned_event(self) -> int:
        try:
            return self._journal.pruned_event()
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error

    async def read(
        self, after: int, wanted: Callable[[Event], bool], encode: Encode, view: View | None = None
    ) -> AsyncGenerator[list[Encoded]]:
        """Yield batches of the events after `after`, as they happen. Yield an empty batch after 15 s without any.

        The stream ends with the service. It also ends if what comes next is pruned, or the journal cannot be read.

        Args:
            after: The id of the event before the first.
            wanted: Selects the events for this reader.
            encode: Encodes an event. All readers must pass the same function, because they share its results.
            view: Makes of a selected event what this reader gets of it. None: all of it.
        """
        self.readers += 1
        clock = asyncio.get_running_loop().time
        yielded_at = clock()
        try:
            while not self.ended.is_set():
                encoded: list[Encoded] = []  # drops the references to the last batch while this reader waits
                if after < self._journal.last_event:
                    await self._wait_for_turn()
                else:
                    await self._wait_for_event(yielded_at + _KEEPALIVE_SECONDS - clock())
                found = self._after(after)
                if found is None or self.ended.is_set():
                    return
                if found:
                    after = found[-1].event.id
                    seen = (each.seen(encode, view) for each in found if wanted(each.event))
                    encoded = [each for each in seen if each is not None]
                    self._last_delivered = encoded[-1:]
                if encoded or clock() >= yielded_at + _KEEPALIVE_SECONDS:
                    yielded_at = clock()
                    yield encoded
        finally:
            self.readers -= 1

    async def _wait_for_turn(self) -> None:
        """Join the backlog. So readers that catch up do not all run at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backlog.append(future)
        self._start_waker()
        await future

    async def _wait_for_event(self, timeout: float) -> None:  # noqa: ASYNC109 - it is no error if it passes
        """Sleep until there is a new event, but at most `timeout` seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            self._sleeping.discard(future)

    def _after(self, after: int) -> list[_CachedEvent] | None:
        """The next batch after this event. None if the events are pruned, or the journal cannot be read."""
        if after >= self._journal.last_event:
            return []
        if self._recent and after >= self._recent[0].event.id - 1:
            first = after - self._recent[0].event.id + 1
            return list(islice(self._recent, first, first + _EVENTS_PER_BATCH))
        if after not in self._pages:
            page = self._read_page(after)
            if not page:
                return None
            while len(self._pages) >= _CACHED_PAGES:
                del self._pages[next(iter(self._pages))]
            self._pages[after] = page
        return self._pages[after]

    def _read_page(self, after: int) -> list[_CachedEvent]:
        try:
            if after < self._journal.pruned_event():
                return []
            return [_cached(event) for event in self._journal.events(after, _EVENTS_PER_BATCH)]
        except JournalFailed:
            return []
