"""Maps and programs as they are held: under a name, opened from a source."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Generic, Self, TypeVar

from app.access.rights import NONE, Ranges
from app.service.errors import MapUnavailable, MapUnknown, ProgramUnavailable, ProgramUnknown
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import Pinned, Source
from app.service.registry.expected import ExpectedTable
from app.service.registry.index_sets import UnconfirmedEntries
from app.store.records import NUMBERS

# Lookups at a stretch in the event loop: at most 5 ms, then others have their turn.
_LOOKUPS_AT_A_STRETCH: Final = 2048


T = TypeVar("T", ProgramArray, Program)
H = TypeVar("H")


@dataclass(eq=False)
class Held(Generic[T]):
    """Something under a name. `object` is None while it is unavailable; `reason` then says why.

    `lock` puts in line whoever writes or runs it, and whoever lets its fd go: no thread uses an fd that is closed.
    """

    name: str
    source: Source
    object: T | None = None
    reason: str = "not opened yet"
    released: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, object_: T) -> Self:
        """Hold this object from now on, instead of the one before."""
        if self.object is not None:
            self.object.close()
        self.object = object_
        return self

    def release(self) -> None:
        """Let go for good."""
        self.released = True
        if self.object is not None:
            self.object.close()
            self.object = None


# What has the last word before something is held or released: it raises what forbids that.
Veto = Callable[[H], Awaitable[None]]


async def no_veto(_: object) -> None:
    """Nothing forbids it."""


@dataclass(eq=False)
class HeldMap(Held[ProgramArray]):
    """A program array under a name.

    `create_entries`: max_entries of the array that is made where the pin does not exist. `created_here`: it was.
    `restore`: at the start, entries that are not as they are recorded are put back.
    """

    create_entries: int | None = None
    created_here: bool = False
    restore: bool = False
    protected: Ranges = NONE  # entries that only an admin may change
    expected: ExpectedTable | None = None  # None: not yet, or another array has the name by now
    writing: Collection[int] = ()  # the entries that are being changed: the kernel may be ahead of what is recorded
    undone: dict[str, Collection[int]] = field(default_factory=dict)  # put back, which the journal does not know yet
    unconfirmed: UnconfirmedEntries = field(
        default_factory=UnconfirmedEntries
    )  # entries that wait for a confirmation: of which change
    _scan: "asyncio.Task[array[int]] | None" = None  # the one that runs
    _next_scan: "asyncio.Task[array[int]] | None" = None  # the one that begins when that has ended

    @property
    def pins(self) -> list[str]:
        """The paths by which the service knows it."""
        return [self.source.path] if isinstance(self.source, Pinned) else []

    def opened(self) -> ProgramArray:
        """The array. Errors: MapUnknown once released, MapUnavailable."""
        if self.released:
            raise MapUnknown(self.name)
        if self.object is None:
            raise MapUnavailable(self.name, self.reason)
        return self.object

    async def read(self) -> "array[int]":
        """The id of the program that each entry points to, by index; 0: none. It is others' as well: not to be changed.

        Lets others have their turn in between, so a large table may be seen half before, half after a change. However
        many read at once, one scan runs and one waits: nobody is answered by a scan that began before they asked.
        """
        table = self.opened()
        if table.max_entries <= _LOOKUPS_AT_A_STRETCH:
            return table.ids()
        if self._next_scan is None:
            self._next_scan = asyncio.create_task(self._scan_after(self._scan))
        return await asyncio.shield(self._next_scan)

    async def _scan_after(self, running: "asyncio.Task[array[int]] | None") -> "array[int]":
        if running is not None:
            await asyncio.wait([running])
        self._scan, self._next_scan = self._next_scan, None
        while True:
            table, found = self.opened(), array(NUMBERS)
            while len(found) < table.max_entries:
                found += self.opened().ids(len(found), len(found) + _LOOKUPS_AT_A_STRETCH)
                await asyncio.sleep(0)
            if self.object is table:  # else another one has the name by now
                return found

    async def first(self) -> int | None:
        """The id of the first program that an entry points to; None where the array is empty."""
        for start in range(0, self.opened().max_entries, _LOOKUPS_AT_A_STRETCH):
            for program_id in filter(None, self.opened().ids(start, start + _LOOKUPS_AT_A_STRETCH)):
                return program_id
            await asyncio.sleep(0)
        return None

    def is_changing(self, index: int) -> bool:
        """Whether this entry is just being changed, or was put back and the journal does not know yet."""
        return index in self.writing or any(index in each for each in self.undone.values())


@dataclass(eq=False)
class HeldProgram(Held[Program]):
    """A program under a name."""

    def opened(self) -> Program:
        """The program. Errors: ProgramUnknown once released, ProgramUnavailable."""
        if self.released:
            raise ProgramUnknown(self.name)
        if self.object is None:
            raise ProgramUnavailable(self.name, self.reason)
        return self.object
