"""All that the service holds."""

from collections.abc import Sequence

from app.bpf.kernel import Kernel
from app.service.errors import ServiceError
from app.service.objects.source import ById
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.maps import Maps
from app.service.registry.programs import ByName, ProgramRef, Programs


class Registry:
    """Held maps and programs on one kernel. Thread rule: one event loop."""

    def __init__(self, kernel: Kernel, pin_dirs: Sequence[str] = ()) -> None:
        """`pin_dirs`: the folders below which a request may name pins."""
        self.kernel = kernel
        self.maps = Maps(kernel, pin_dirs)
        self.programs = Programs(kernel, pin_dirs)

    def unavailable(self) -> list[HeldMap | HeldProgram]:
        """What is held, but could not be opened."""
        return [held for held in (*self.maps, *self.programs) if held.object is None]

    def open_unavailable(self) -> list[HeldMap | HeldProgram]:
        """Try to open what is not; what now is. The rest gets the reason."""
        opened: list[HeldMap | HeldProgram] = []
        for held in self.unavailable():
            try:
                if isinstance(held, HeldMap):
                    self.maps.open(held)
                else:
                    self.programs.open(held)
            except ServiceError as error:
                held.reason = str(error)
            else:
                opened.append(held)
        return opened

    async def seeds_for(self, held: HeldMap) -> list[ProgramRef]:
        """Programs that are known to fit the map's array: one that it holds, and one that calls into it."""
        array = held.opened()
        entry = None if array.state().owner_type is None else await held.first()
        caller = self.programs.caller_of(array.id)
        found: list[ProgramRef] = [] if entry is None else [ById(entry)]
        return found if caller is None else [*found, ByName(caller.name)]

    def close(self) -> None:
        """Let everything go."""
        self.maps.close()
        self.programs.close()
