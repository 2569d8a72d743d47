"""The stream of events, to any number of readers, none of whom holds up whoever makes the events."""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from app.service.errors import EventsExpired, JournalUnreadable
from app.store.journal import Journal, JournalFailed
from app.store.records import Event

_RECENT: Final = 16_384  # entries of events that are kept at hand
_SMALL: Final = 1024  # entries of one of them that is kept as text, too: of all of them at most 3 MB
_JOINED: Final = 64  # entries of one of them that is one part
_AT_ONCE: Final = 64  # events that a reader gets at a time
_WOKEN: Final = 8  # readers that are woken at a time: some 100 us for each
_PAGES: Final = 8  # of older events that are kept while readers are behind: many come to the same ones
_PAUSE: Final = 0.02  # s, between two rounds of waking, at least
_SHARE: Final = 2  # and so many times what a round has taken
_KEEPALIVE: Final = 15.0  # s

Encode = Callable[[Event], Iterator[bytes]]


class Encoded:
    """An event as its readers get it, in parts. Each is made when the first reader comes to it, for all of them."""

    __slots__ = ("__weakref__", "_made", "_rest")

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._made: list[bytes] = []
        self._rest = parts

    def __iter__(self) -> Iterator[bytes]:
        for place in count():
            if place == len(self._made):
                part = next(self._rest, None)
                if part is None:
                    return
                self._made.append(part)
            yield self._made[place]


@dataclass(eq=False, slots=True)
class _Recent:
    """`small`: kept for as long as the event is at hand; `large`: only for as long as somebody reads it."""

    event: Event
    small: Encoded | None = None
    large: "weakref.ref[Encoded] | None" = None

    def encoded(self, encode: Encode) -> Encoded:
        """As its readers get it: the same for all of them."""
        known = self.small if self.large is None else self.large()
        if known is not None:
            return known
        if self.event.weight <= _SMALL:
            self.small = Encoded(
                iter((b"".join(encode(self.event)),)) if self.event.weight <= _JOINED else encode(self.event)
            )
            return self.small
        fresh = Encoded(encode(self.event))
        self.large = weakref.ref(fresh)
        return fresh


class EventFeed:
    """Whoever makes an event leaves it here; readers come for it, each from where it is. Thread rule: one event loop.

    A reader has no queue: one that is slow finds in the journal what it has missed, and costs nothing meanwhile.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recent: deque[_Recent] = deque()
        self._weight = 0
        self._pages: dict[int, list[_Recent]] = {}  # of older events, by the one before, as they were read last
        self._shown: list[Encoded] = []  # the last event that a reader got, for the others, however large it is
        self._unseen = False
        self._sleeping: set[asyncio.Future[None]] = set()  # of readers that wait for an event
        self._behind: list[asyncio.Future[None]] = []  # of readers that have more to read, and wait for their turn
        self._relay: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.readers = 0
        journal.on_events = self._publish

    def _publish(self, events: list[Event]) -> None:
        """Leave events that the journal has; that readers are woken, later and by a task, is all that it costs here."""
        for event in events:
            self._recent.append(_Recent(event))
            self._weight += event.weight
        while self._weight > _RECENT and len(self._recent) > 1:
            self._weight -= self._recent.popleft().event.weight
        self._unseen = True
        if self._sleeping:
            self._relay = self._relay or asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        """Wake the readers, some at a time, with a turn for others in between; then a pause, and again if need be."""
        clock = asyncio.get_running_loop().time
        while ready := self._ready():
            pause, began = _PAUSE if self._sleeping else 0.0, clock()
            for number, future in enumerate(ready, 1):
                if not future.done():
                    future.set_result(None)
                if number % _WOKEN == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._shown = []
            await asyncio.sleep(max(pause, _SHARE * (clock() - began)))
        self._relay = None
        self._pages.clear()

    def _ready(self) -> list[asyncio.Future[None]]:
        """Those who are behind, and, where something has happened, those who wait for that."""
        ready, self._behind = self._behind, []
        if self._unseen:
            self._unseen = False
            ready += self._sleeping
        return ready

    def stop(self) -> None:
        """End all streams, and those that would begin."""
        self.ended.set()
        for future in (*self._sleeping, *self._behind):
            if not future.done():
                future.set_result(None)

    def start_of(self, after: int | None) -> int:
        """The event after which a stream begins; None: with the next that happens.

        EventsExpired where what came after it cannot be told without a gap; JournalUnreadable.
        """
        last = self._journal.last_event
        if after is None:
            return last
        pruned = self._pruned()
        if not pruned <= after <= last:
            raise EventsExpired(after, pruned + 1)
        return after

    def _pruned(self) -> int:
        try:
            return self._journal.pruned_event()
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error

    async def read(self, after: int, wanted: Callable[[Event], bool], encode: Encode) -> AsyncGenerator[list[Encoded]]:
        """The wanted ones of the events after this one, as they happen; nothing after every 15 s without any.

        It ends with the service, and where the reader was so slow that the journal knows no more what is next.
        """
        self.readers += 1
        clock = asyncio.get_running_loop().time
        told = clock()
        try:
            while not self.ended.is_set():
                encoded: list[Encoded] = []  # of the last events nothing is kept while this waits
                if after < self._journal.last_event:
                    await self._turn()
                else:
                    await self._sleep(told + _KEEPALIVE - clock())
                found = self._after(after)
                if found is None or self.ended.is_set():
                    return
                if found:
                    after = found[-1].event.id
                    encoded = [each.encoded(encode) for each in found if wanted(each.event)]
                    self._shown = encoded[-1:]
                if encoded or clock() >= told + _KEEPALIVE:
                    told = clock()
                    yield encoded
        finally:
            self.readers -= 1

    async def _turn(self) -> None:
        """However many have much to catch up with, others have their turn: they do not all go on at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._behind.append(future)
        self._relay = self._relay or asyncio.get_running_loop().create_task(self._wake())
        await future

    async def _sleep(self, seconds: float) -> None:
        """Wait for an event, so long at the most."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._sleeping.discard(future)

    def _after(self, after: int) -> list[_Recent] | None:
        """Some of the events after this one; None where they are gone."""
        if after >= self._journal.last_event:
            return []
        if self._recent and after >= self._recent[0].event.id - 1:
            first = after - self._recent[0].event.id + 1
            return list(islice(self._recent, first, first + _AT_ONCE))
        if after not in self._pages:
            try:
                is_there = after >= self._journal.pruned_event()
                page = [_Recent(event) for event in self._journal.events(after, _AT_ONCE)] if is_there else []
            except JournalFailed:
                page = []
            if not page:
                return None
            while len(self._pages) >= _PAGES:
                del self._pages[next(iter(self._pages))]
            self._pages[after] = page
        return self._pages[after]
