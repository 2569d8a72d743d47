"""A map or a program as it is held: under a name, opened from a source."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, Self, TypeVar

from app.access.rights import NONE, Ranges
from app.bpf.kernel import Kernel
from app.service.errors import MapUnavailable, MapUnknown, ProgramUnavailable, ProgramUnknown
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import Pinned, Source
from app.service.registry.expected import ExpectedTable
from app.service.registry.index_sets import UnconfirmedEntries
from app.store.number_arrays import NUMBERS

_LOOKUPS_PER_SLICE: Final = 2048  # entries that are read in the event loop, at most 5 ms, before others have their turn

T = TypeVar("T", ProgramArray, Program)
H = TypeVar("H")


class HeldLock(asyncio.Lock):
    """A lock that knows whether somebody waits for it: whoever waits gets it next, also where it is unlocked by now."""

    def __init__(self) -> None:
        """Make a lock that is free."""
        super().__init__()
        self._in_line = 0

    @property
    def is_free(self) -> bool:
        """Whether `acquire` returns at once."""
        return not self.locked() and not self._in_line

    async def acquire(self) -> Literal[True]:
        """Wait for the lock, and take it."""
        self._in_line += 1
        try:
            return await super().acquire()
        finally:
            self._in_line -= 1


@dataclass(frozen=True, slots=True)
class MovedPin:
    """Where the pin of a held object leads, if that is another object by now, as when its loader ran again.

    Attributes:
        path: The pin.
        id: The id of that object. None: it is of another kind.
    """

    path: str
    id: int | None


@dataclass(eq=False)
class Held(Generic[T]):
    """Something under a name.

    Attributes:
        name: The service's own name for it.
        source: Where it is opened from.
        object: The open object. None: it is unavailable.
        reason: Why it is unavailable.
        follow: When its pin leads to another object, that one is opened without a request.
        released: It is held no longer, and will not be again.
        moved: Its pin led to another object at the last look. Writers look at this mark, and never at the pin.
        announced: The mark that an event has told of.
        part_of: The name of the object file that it was loaded from, and with which it is released. None: of none.
        is_pinned: Its pin led to it when that was last looked at.
        lock: Held by whoever writes or runs it, and whoever closes its fd: so no thread uses an fd that is closed.
    """

    name: str
    source: Source
    object: T | None = None
    reason: str = "not opened yet"
    follow: bool = False
    released: bool = False
    moved: MovedPin | None = None
    announced: MovedPin | None = None
    part_of: str | None = None
    is_pinned: bool = field(default=False, init=False)
    lock: HeldLock = field(default_factory=HeldLock)

    def take(self, object_: T) -> Self:
        """Hold this object from now on, and close the one before."""
        if self.object is not None:
            self.object.close()
        self.object = object_
        self.moved = None
        self.is_pinned = isinstance(self.source, Pinned)  # from where it was opened just now
        return self

    @property
    def pins(self) -> list[str]:
        """The paths by which the service knows it."""
        return [self.source.path] if isinstance(self.source, Pinned) else []

    def release(self) -> None:
        """Close it for good."""
        self.released = True
        if self.object is not None:
            self.object.close()
            self.object = None


# Is called with what was opened, or is to be released, as the last: it raises what forbids that.
Veto = Callable[[H], Awaitable[None]]


async def no_veto(_: object) -> None:
    """Forbid nothing."""


@dataclass(eq=False)
class HeldMap(Held[ProgramArray]):
    """A program array under a name.

    Attributes:
        create_entries: max_entries of the array that is made where the pin does not exist. None: none is made.
        created_here: The service has made the array.
        restore: At the start, entries that are not as expected are written back.
        protected: The entries that only an admin may change.
        expected: What the entries are expected to hold. None: that is not known yet.
        writing: The entries that are being changed: there the kernel may be ahead of what is expected.
        undone: By token, entries that were written back, which the journal does not know yet.
        unconfirmed: The entries that wait for a confirmation. None: there are none.
    """

    kind: Literal["map"] = field(default="map", init=False)
    create_entries: int | None = None
    created_here: bool = False
    restore: bool = False
    protected: Ranges = NONE
    expected: ExpectedTable | None = None
    writing: Collection[int] = ()
    undone: dict[str, Collection[int]] = field(default_factory=dict)
    unconfirmed: UnconfirmedEntries | None = None
    _scan: "asyncio.Task[array[int]] | None" = None  # the one that runs
    _next_scan: "asyncio.Task[array[int]] | None" = None  # the one that begins when that has ended

    def opened(self) -> ProgramArray:
        """Return the array.

        Raises:
            MapUnknown: It is released.
            MapUnavailable: It could not be opened.
        """
        if self.released:
            raise MapUnknown(self.name)
        if self.object is None:
            raise MapUnavailable(self.name, self.reason)
        return self.object

    async def read(self) -> "array[int]":
        """Return the id of the program that each entry points to, by index; 0: none.

        The array is shared with others who read: do not change it. Others have their turn in between, so a large table
        may be seen half before and half after a change. However many read at once, one scan runs and one waits: nobody
        is answered by a scan that began before they asked.

        Raises:
            MapUnknown: It is released.
            MapUnavailable: It could not be opened.
            KernelError: The kernel refuses.
        """
        table = self.opened()
        if table.max_entries <= _LOOKUPS_PER_SLICE:
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
                found += self.opened().ids(len(found), len(found) + _LOOKUPS_PER_SLICE)
                await asyncio.sleep(0)
            if self.object is table:  # else another one has the name by now
                return found

    async def first(self) -> int | None:
        """Return the id of the first program that an entry points to. None: the array is empty."""
        for start in range(0, self.opened().max_entries, _LOOKUPS_PER_SLICE):
            for program_id in filter(None, self.opened().ids(start, start + _LOOKUPS_PER_SLICE)):
                return program_id
            await asyncio.sleep(0)
        return None

    def is_changing(self, index: int) -> bool:
        """Tell whether an entry is being changed, or was written back and the journal does not know yet."""
        return index in self.writing or any(index in each for each in self.undone.values())


@dataclass(eq=False)
class HeldProgram(Held[Program]):
    """A program under a name."""

    kind: Literal["program"] = field(default="program", init=False)

    def opened(self) -> Program:
        """Return the program.

        Raises:
            ProgramUnknown: It is released.
            ProgramUnavailable: It could not be opened.
        """
        if self.released:
            raise ProgramUnknown(self.name)
        if self.object is None:
            raise ProgramUnavailable(self.name, self.reason)
        return self.object


M = TypeVar("M", HeldMap, HeldProgram)


class Holdings(Generic[M]):
    """What is held, by name: all maps, or all programs. Thread rule: one event loop.

    Attributes:
        unknown: The error where nothing is held under a name.
    """

    unknown: type[MapUnknown | ProgramUnknown]

    def __init__(self, kernel: Kernel, pin_dirs: Sequence[str]) -> None:
        """Hold nothing yet. `pin_dirs`: the folders below which a request may name pins."""
        self._kernel = kernel
        self._pin_dirs = pin_dirs
        self._held: dict[str, M] = {}
        self._holding = asyncio.Lock()  # of whoever holds or releases

    @property
    def holding(self) -> asyncio.Lock:
        """The lock of whoever holds or releases. It comes before the locks of what is held."""
        return self._holding

    def __iter__(self) -> Iterator[M]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def find(self, name: str) -> M | None:
        """Return what is held under a name. None: there is nothing."""
        return self._held.get(name)

    def get(self, name: str) -> M:
        """Return what is held under the name in a path.

        Raises:
            MapUnknown: There is no such map.
            ProgramUnknown: There is no such program.
        """
        if name not in self._held:
            raise self.unknown(name)
        return self._held[name]

    def add(self, held: M) -> M:
        """Hold it from now on. It may still be unavailable."""
        self._held[held.name] = held
        return held
