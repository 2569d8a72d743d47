"""All that the service holds."""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

from app.bpf.kernel import Kernel
from app.service.counters import TIMED_CALLS, Timing, timed_kernel
from app.service.errors import MapUnavailable, MapUnknown, ServiceError
from app.service.objects.source import ById, Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.maps import Maps
from app.service.registry.pins import follow_pin
from app.service.registry.programs import ByName, ProgramRef, Programs

_OPENED_TOGETHER: Final = 64  # each is an open file beside those that are held already


class Registry:
    """Held maps and programs on one kernel. Thread rule: one event loop.

    Attributes:
        kernel: The kernel, with its calls timed.
        untimed_kernel: The same for those who time the calls themselves.
        kernel_timings: How long the calls take, by name.
        maps: The held maps.
        programs: The held programs.
    """

    def __init__(self, kernel: Kernel, pin_dirs: Sequence[str] = ()) -> None:
        """Hold nothing yet.

        Args:
            kernel: Where maps and programs are.
            pin_dirs: The folders below which a request may name pins.
        """
        self.kernel_timings = {name: Timing() for name in TIMED_CALLS}
        self.untimed_kernel = kernel
        self.kernel = timed_kernel(kernel, self.kernel_timings)
        self.maps = Maps(self.kernel, pin_dirs)
        self.programs = Programs(self.kernel, pin_dirs)

    def unavailable(self) -> list[HeldMap | HeldProgram]:
        """Return what is held, but could not be opened."""
        return [held for held in (*self.maps, *self.programs) if held.object is None]

    def open_unavailable(self) -> list[HeldMap | HeldProgram]:
        """Try to open what could not be opened, and return what now is. The rest gets the reason."""
        opened: list[HeldMap | HeldProgram] = []
        unavailable = self.unavailable()
        for start in range(0, len(unavailable), _OPENED_TOGETHER):
            together = unavailable[start : start + _OPENED_TOGETHER]
            with self._opened_ahead(together):
                opened += [held for held in together if self._open(held)]
        return opened

    def _opened_ahead(self, together: Sequence[HeldMap | HeldProgram]) -> AbstractContextManager[None]:
        ids: dict[str, list[int]] = {"map": [], "program": []}
        for held in together:
            if isinstance(held.source, ById):
                ids[held.kind].append(held.source.id)
        pins = [held.source.path for held in together if isinstance(held.source, Pinned)]
        return self.kernel.opened_ahead(pins, ids["map"], ids["program"])

    def _open(self, held: HeldMap | HeldProgram) -> bool:
        """Return whether it could be opened. If not, it gets the reason."""
        try:
            if isinstance(held, HeldMap):
                self.maps.open(held)
            else:
                self.programs.open(held)
        except ServiceError as error:
            held.reason = str(error)
            return False
        return True

    async def check_pins(self) -> None:
        """Look which of the held objects their pins still lead to. Where that cannot be seen now, nothing changes."""
        for held in (*self.maps, *self.programs):
            follow_pin(self.kernel, held)
            await asyncio.sleep(0)

    async def held_here_alone(self) -> list[str]:
        """Return what may be lost for good when this process ends, like `map 'a'`: as far as it knows, nothing pins it.

        A program is not lost if it is in a pinned array.
        """
        lost = [f"map {held.name!r}" for held in self.maps if held.object is not None and not held.is_pinned]
        programs = [held for held in self.programs if held.object is not None and not held.is_pinned]
        used: set[int] = set()
        for held in self.maps if programs else ():
            if held.is_pinned:
                with contextlib.suppress(MapUnavailable, MapUnknown):  # or released while others had their turn
                    used.update(await held.read())
        return lost + [f"program {each.name!r}" for each in programs if each.object and each.object.id not in used]

    async def seeds_for(self, held: HeldMap) -> list[ProgramRef]:
        """Return programs that are known to fit a map's array: one that it holds, and one that calls into it."""
        array = held.opened()
        entry = None if array.state().owner_type is None else await held.first()
        caller = self.programs.caller_of(array.id)
        found: list[ProgramRef] = [] if entry is None else [ById(entry)]
        return found if caller is None else [*found, ByName(caller.name)]

    def close(self) -> None:
        """Close everything."""
        self.maps.close()
        self.programs.close()
