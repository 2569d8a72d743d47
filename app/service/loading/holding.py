"""How the programs and arrays of object files are held in the registry, under names that begin with theirs."""

from collections.abc import Collection
from contextlib import AsyncExitStack

from app.service.drift.detector import DriftDetector
from app.service.errors import NameTaken
from app.service.loading.errors import ObjectUnsupported
from app.service.loading.loaded_object import LoadedObject
from app.service.loading.version import source_at
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import checked_name
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry


class Holding:
    """Holds what belongs to object files. Thread rule: one event loop."""

    def __init__(self, registry: Registry, drift: DriftDetector) -> None:
        """Hold nothing yet.

        Args:
            registry: Where they are held.
            drift: Learns what the entries of new arrays are expected to hold.
        """
        self._registry = registry
        self._drift = drift

    def check_names(self, after: LoadedObject) -> None:
        """Check that all names can be given.

        Raises:
            ObjectUnsupported: One is no name.
            NameTaken: Something else is held under it.
        """
        for full, held in (
            *((full, self._registry.programs.find(full)) for full in after.programs()),
            *((full, self._registry.maps.find(full)) for full in after.arrays()),
        ):
            try:
                checked_name(full)
            except ValueError as error:
                reason = f"it would be held as {full!r}, and {error}; choose a shorter name for the object file"
                raise ObjectUnsupported(reason) from None
            if held is not None and held.part_of != after.name:
                raise NameTaken(full, "the name is held already; release that one, or choose another for the object")

    async def lock(self, stack: AsyncExitStack, name: str, maps: Collection[str] = ()) -> None:
        """Lock all names, these maps, and everything that is held of the object file, in this order."""
        registry = self._registry
        await stack.enter_async_context(registry.programs.holding)
        await stack.enter_async_context(registry.maps.holding)
        concerned: list[HeldMap | HeldProgram] = [
            *(each for each in registry.maps if each.part_of == name or each.name in maps),
            *(each for each in registry.programs if each.part_of == name),
        ]
        for each in sorted(concerned, key=lambda held: (held.kind, held.name)):
            await stack.enter_async_context(each.lock)

    def hold(self, after: LoadedObject) -> None:
        """Hold the programs and arrays of a version under their names, and no others. Call it under their locks."""
        name, registry = after.name, self._registry
        programs, arrays = after.programs(), after.arrays()
        for full, program in programs.items():
            registry.programs.replace(full, source_at(program.pin), program.opened().copy(), name)
        for full, map_ in arrays.items():
            assert isinstance(map_.object, ProgramArray)
            registry.maps.replace(full, source_at(map_.pin), map_.object.copy(), name)
        for held in registry.programs:
            if held.part_of == name and held.name not in programs:
                registry.programs.remove(held.name)
        for held_map in registry.maps:
            if held_map.part_of == name and held_map.name not in arrays:
                registry.maps.remove(held_map.name)

    def hold_unavailable(self, loaded: LoadedObject) -> None:
        """Hold the names, so that nobody else takes them, and readiness tells that they are unavailable."""
        registry, name = self._registry, loaded.name
        for full, program in loaded.programs().items():
            if program.pin is not None and registry.programs.find(full) is None:
                registry.programs.add(HeldProgram(full, source_at(program.pin), part_of=name))
        for full, map_ in loaded.arrays().items():
            if map_.pin is not None and registry.maps.find(full) is None:
                registry.maps.add(HeldMap(full, source_at(map_.pin), part_of=name, created_here=True))

    def let_go(self, name: str) -> None:
        """Hold nothing of an object file any more. Call it under the locks."""
        for held in self._registry.programs:
            if held.part_of == name:
                self._registry.programs.remove(held.name)
        for held_map in self._registry.maps:
            if held_map.part_of == name:
                self._registry.maps.remove(held_map.name)

    async def begin_arrays(self, loaded: LoadedObject) -> None:
        """Learn what the entries of new arrays are expected to hold: what they hold now."""
        for full in loaded.arrays():
            held = self._registry.maps.find(full)
            if held is not None:
                await self._drift.begin(held, anew=True)
