"""The program arrays that are held under names."""

import asyncio
import contextlib
from collections.abc import Collection
from functools import partial
from typing import Final

from app.service.errors import (
    KernelError,
    LastReference,
    MapUnavailable,
    MapUnknown,
    NameTaken,
    ServiceError,
    SupersededArrayFilled,
)
from app.service.objects.opening import allowed_source, open_array, open_in_thread, open_or_make_array
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import ById, Made, Pinned, Source
from app.service.registry.held import HeldMap, Holdings, Veto, no_veto
from app.service.registry.pins import moved_warning
from app.service.registry.programs import Uses

_ENTRIES_PER_TURN: Final = 1024  # that are looked at before others have their turn, about 0.2 ms


class Maps(Holdings[HeldMap]):
    """Held program arrays by name. One array has one name. Thread rule: one event loop."""

    unknown = MapUnknown

    def adopt(self, name: str, array: ProgramArray) -> HeldMap:
        """Hold an array that the caller has made."""
        return self.add(HeldMap(name, Made(), array, created_here=True))

    def open_pinned(self, path: str) -> ProgramArray:
        """Open the array of a pin that a request names, which is held under no name. The caller closes it.

        Raises:
            ServiceError: As `hold` does.
        """
        return open_array(self._kernel, allowed_source(Pinned(path), self._pin_dirs))

    def replace(self, name: str, source: Source, array: ProgramArray, part_of: str) -> HeldMap:
        """Hold an array of an object file, in the place of the one that has the name so far. Call it under the lock.

        Args:
            name: The name.
            source: Where it can be opened again.
            array: The array. If it is another one than before, what is expected of its entries is forgotten.
            part_of: The name of the object file.
        """
        held = self._held.get(name)
        if held is None:
            held = self.add(HeldMap(name, source, part_of=part_of))
        if held.object is None or held.object.id != array.id:
            held.expected = None
        held.source, held.created_here = source, True
        return held.take(array)

    def remove(self, name: str) -> None:
        """Hold a map of an object file no longer. Call it under the map's lock."""
        self._held.pop(name).release()

    def open(self, held: HeldMap, *, pin: bool = True) -> None:
        """Open, or make, what is held. It raises as `hold` does.

        Args:
            held: What is held.
            pin: What is made is pinned.
        """
        array, created = open_or_make_array(self._kernel, held.name, held.source, held.create_entries, pin=pin)
        self._take(held, array)
        held.created_here = created

    async def _open_in_thread(self, held: HeldMap, *, pin: bool) -> None:
        """Open, or make, what is held, as `open` does."""
        created = False

        def open_() -> ProgramArray:
            nonlocal created
            array, created = open_or_make_array(self._kernel, held.name, held.source, held.create_entries, pin=pin)
            return array

        array = await open_in_thread(open_)
        self._take(held, array)
        held.created_here = created

    def _take(self, held: HeldMap, array: ProgramArray) -> None:
        for other in self._held.values():
            if other.object is not None and other.object.id == array.id and other.name != held.name:
                array.close()
                raise NameTaken(held.name, f"the same array is held under the name {other.name!r}; use that name")
        held.take(array)

    async def hold(
        self,
        name: str,
        source: Source,
        create_entries: int | None = None,
        *,
        force: bool = False,
        dry_run: bool = False,
        veto: Veto[HeldMap] = no_veto,
    ) -> tuple[HeldMap, bool]:
        """Hold a map for a request. A name that is held already is opened again.

        Args:
            name: The name to hold it under.
            source: Where to open it.
            create_entries: Where the pin does not exist, make an array with this max_entries and pin it there.
            force: Also where the array held so far may be emptied for good.
            dry_run: What is returned is held by nobody. Release it once it was looked at.
            veto: Is called with what was opened, as the last that can forbid it.

        Returns:
            What is held, and whether the name is new.

        Raises:
            NameTaken: The name has another map with entries in it, or the array has another name.
            LastReference: The array held so far may be emptied for good.
            NotAProgramArray: The source leads to something else.
            PinNotAllowed: The path is not below pin_dirs.
            PinUnusable: The pin cannot be opened.
            KernelPermission: A capability is missing.
            KernelError: The kernel refuses.
        """
        async with self._holding:
            held = self._held.get(name)
            if held is None or source != held.source:  # the configuration may name a pin that requests may not
                source = allowed_source(source, self._pin_dirs)
            fresh = HeldMap(name, source, create_entries=create_entries)
            if held is None:
                await self._open_in_thread(fresh, pin=not dry_run)
                await self._run_veto(fresh, veto)
                return (fresh if dry_run else self.add(fresh)), True
            async with held.lock:
                await self._open_again(held, fresh, force=force, pin=not dry_run)
                await self._run_veto(fresh, veto)
                if dry_run or fresh.object is None:
                    return fresh, False
                held.source, held.create_entries = fresh.source, fresh.create_entries
                held.created_here = fresh.created_here
                if held.object is None or held.object.id != fresh.object.id:
                    held.expected = None
                held.take(fresh.object)
                return held, False

    async def reopen(self, held: HeldMap, veto: Veto[HeldMap]) -> None:
        """Hold the array that the map's pin leads to now, also where the one held so far has entries.

        Args:
            held: The map.
            veto: Is called with what is held, as the last that can forbid it.

        Raises:
            ServiceError: As `hold` does.
        """
        async with self._holding, held.lock:
            old = held.opened()
            await veto(held)
            self._take(held, open_array(self._kernel, held.source))
            if held.opened().id != old.id:
                held.expected, held.created_here = None, False

    async def _run_veto(self, fresh: HeldMap, veto: Veto[HeldMap]) -> None:
        """Let go of what was just opened, and unpin what was just made, where the veto raises."""
        try:
            await veto(fresh)
        except BaseException:
            if fresh.created_here and fresh.pins:
                self._kernel.unpin(fresh.pins[0])
            fresh.release()
            raise

    async def _open_again(self, held: HeldMap, fresh: HeldMap, *, force: bool, pin: bool) -> None:
        """Open `fresh`, which is to take the place of `held`, unless that would lose entries."""
        old = held.object
        if old is None or await held.first() is None:
            await self._open_in_thread(fresh, pin=pin)
        else:
            array = await open_in_thread(partial(open_array, self._kernel, fresh.source))  # and never make one
            if array.id != old.id and fresh.source != held.source:
                array.close()
                raise NameTaken(held.name, "the name has another map with entries in it; release that one first")
            if array.id != old.id and not force:
                # Another array was pinned over the path of ours. Only this service may hold ours by now.
                array.close()
                raise SupersededArrayFilled(held.name, old.id)
            self._take(fresh, array)
        if old is not None and fresh.object is not None and fresh.object.id == old.id:
            fresh.created_here = held.created_here

    async def release(
        self, name: str, *, force: bool = False, dry_run: bool = False, veto: Veto[HeldMap] = no_veto
    ) -> None:
        """Release a map.

        Args:
            name: The name it is held under.
            force: Also where that may empty it for good.
            dry_run: Only check.
            veto: Is called with what is held, as the last that can forbid it.

        Raises:
            MapUnknown: Nothing is held under this name.
            LastReference: It may be emptied for good.
            KernelError: Whether it is pinned cannot be found out now.
        """
        async with self._holding, self.get(name).lock:
            held = self.get(name)
            if held.object is not None and not force and self.pinned_id(held) != held.object.id:
                raise LastReference(name, held.object.id)
            await veto(held)
            if not dry_run:
                del self._held[name]
                held.release()

    def pinned_id(self, held: HeldMap) -> int | None:
        """Return the id of the array that the map's pin leads to now. None: there is no pin, or it leads nowhere.

        Raises:
            KernelError: That cannot be found out now.
        """
        if not isinstance(held.source, Pinned):
            return None
        try:
            with open_array(self._kernel, held.source) as found:
                return found.id
        except KernelError:
            raise
        except ServiceError:
            return None

    @staticmethod
    def warnings(held: HeldMap) -> list[str]:
        """Return what may cost the map its entries, or sends changes elsewhere than expected, as of the last look."""
        if isinstance(held.source, ById):
            return ["held by id: not pinned, so emptied when the last holder goes, and gone with the boot"]
        if isinstance(held.source, Made):
            return ["made by the service and pinned nowhere: gone when the service ends"]
        if held.object is None:
            return []
        moved = moved_warning(held)
        if moved is not None:
            return [moved]
        warnings = []
        if not held.is_pinned:
            warnings.append(f"the pin {held.source.path} is gone: the array is emptied when its last holder goes")
        if held.create_entries not in {None, held.object.max_entries}:
            warnings.append(
                f"create asks for {held.create_entries} entries, but the array was there, with another number"
            )
        return warnings

    async def uses(self, programs: Collection[int] | None = None) -> Uses:
        """Return which entries of held maps point to which program. `programs`: only to these; None: to any."""
        found: Uses = {}
        wanted = None if programs is None else set(programs)
        for held in () if wanted == set() else self:
            with contextlib.suppress(MapUnavailable, MapUnknown):  # or released while others had their turn
                numbers = await held.read()
                for start in range(0, len(numbers), _ENTRIES_PER_TURN):
                    if start:
                        await asyncio.sleep(0)
                    part = numbers[start : start + _ENTRIES_PER_TURN]
                    if wanted is not None and wanted.isdisjoint(part):
                        continue
                    for index, program_id in enumerate(part, start):
                        if program_id and (wanted is None or program_id in wanted):
                            found.setdefault(program_id, []).append((held.name, index))
        return found

    def close(self) -> None:
        """Close everything."""
        for held in self._held.values():
            held.release()
        self._held.clear()
