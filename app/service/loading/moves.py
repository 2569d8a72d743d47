"""Which entries of held maps change with a new version of an object file, and to which program."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from app.service.changes.changes import Part
from app.service.changes.plan import WritePlan
from app.service.errors import BodyIndexOutOfRange
from app.service.loading.errors import (
    MapNotHeld,
    NoSuccessor,
    ObjectInUse,
    ObjectUnsupported,
    ProgramNotInObject,
    ValuesOnReplacedMap,
)
from app.service.loading.specification import Switch
from app.service.loading.version import LoadedProgram, Version
from app.service.registry.programs import Uses
from app.service.registry.registry import Registry
from app.store.number_arrays import NUMBERS

_MAX_ENTRIES_TOLD: Final = 20  # in one problem


@dataclass(slots=True)
class WantedEntries:
    """What entries are to hold, by map and index, in the order in which they are written. The switch comes last."""

    entries: dict[str, dict[int, LoadedProgram]] = field(default_factory=dict)
    switch: Switch | None = None

    def add(self, map_: str, index: int, program: LoadedProgram) -> None:
        """Want an entry to hold a program. What was wanted of it before counts no more."""
        self.entries.setdefault(map_, {})[index] = program

    def maps(self) -> list[str]:
        """Return the names of the maps that are written."""
        return list(self.entries)


def wanted_entries(
    registry: Registry, name: str, fresh: Version, earlier: Sequence[Version], uses: Uses
) -> WantedEntries:
    """Return which entries are to change with a version.

    Args:
        registry: What is held.
        name: The name of the object file.
        fresh: The version, which is loaded.
        earlier: The versions before that are loaded, the newest first. The last one of two will be gone.
        uses: Which entries of held maps hold which program.

    Raises:
        NoSuccessor: An entry is to be moved to a program that the version does not have.
        ObjectInUse: An entry holds a program that will be gone.
        ObjectUnsupported: The switch is in an array that goes with the version before.
        ProgramNotInObject: The switch names a program that the version does not have.
        ValuesOnReplacedMap: The initialisers are for an array that is not held, so a change of it cannot be journalled.
    """
    wanted, asked = WantedEntries(), fresh.specification
    for map_, index, program in fresh.values if asked.values == "set" else ():
        array_name = _name_of_array(registry, fresh, map_)
        if array_name is None or program not in fresh.programs:
            raise ValuesOnReplacedMap(map_, index, program)
        wanted.add(array_name, index, fresh.programs[program])
    if asked.switch is not None:
        if _goes(registry, name, fresh, asked.switch.map):
            reason = f"switch names {asked.switch.map!r}, which is its own array; name the table that leads to it"
            raise ObjectUnsupported(reason)
        _add_switch(registry, fresh, asked.switch, wanted)
    moved: list[tuple[str, int, str]] = []
    in_use = []
    for place, version in enumerate(earlier):
        for id_, program in version.program_ids().items():
            left = [
                (map_, index)
                for map_, index in uses.get(id_, ())
                if index not in wanted.entries.get(map_, ()) and not _goes(registry, name, fresh, map_)
            ]
            if left and asked.move and program not in fresh.programs:
                raise NoSuccessor(name, program, _told(left, program))
            moved += [(map_, index, program) for map_, index in left if asked.move]
            if place and not asked.move:
                in_use += _told(left, program)
    for map_, index, program in sorted(moved):
        wanted.add(map_, index, fresh.programs[program])
    if in_use:
        remedy = 'send "move": true, or set them to other programs first'
        raise ObjectInUse(name, in_use[:_MAX_ENTRIES_TOLD], remedy)
    return wanted


def _add_switch(registry: Registry, fresh: Version, switch: Switch, wanted: WantedEntries) -> None:
    if switch.program not in fresh.programs:
        raise ProgramNotInObject(switch.program, sorted(fresh.programs))
    held = registry.maps.find(switch.map)
    if held is None:
        raise MapNotHeld(switch.map)
    if switch.index >= held.opened().max_entries:
        raise BodyIndexOutOfRange(switch.index, held.opened().max_entries)
    wanted.add(switch.map, switch.index, fresh.programs[switch.program])
    wanted.switch = switch


def parts_of(registry: Registry, wanted: WantedEntries, found: Mapping[str, "array[int]"]) -> list[Part]:
    """Return the plans of what changes anything. Call it under the locks of these maps.

    Args:
        registry: What is held.
        wanted: What entries are to hold.
        found: What the entries of each map hold.
    """
    parts = []
    for name, entries in wanted.entries.items():
        programs = {each.opened().id: each.opened() for each in entries.values()}
        plan = WritePlan(
            array(NUMBERS, entries),
            array(NUMBERS, [found[name][index] for index in entries]),
            array(NUMBERS, [each.opened().id for each in entries.values()]),
            programs,
            {each.opened().id: each.pin for each in entries.values() if each.pin is not None},
        ).changing()
        if len(plan):
            is_switch = wanted.switch is not None and wanted.switch.map == name and len(entries) == 1
            parts.append(Part(registry.maps.get(name), "set" if is_switch else "update", plan))
    return parts


def check_unused(registry: Registry, name: str, versions: Sequence[Version], uses: Uses) -> None:
    """Check that no entry, but of the arrays of the object file itself, holds a program of these versions.

    Raises:
        ObjectInUse: One does.
    """
    in_use = [
        {"map": map_, "index": index, "program": program}
        for version in versions
        for id_, program in version.program_ids().items()
        for map_, index in uses.get(id_, ())
        if registry.maps.get(map_).part_of != name
    ]
    if in_use:
        raise ObjectInUse(name, in_use[:_MAX_ENTRIES_TOLD], "clear them or set them to other programs first")


def _goes(registry: Registry, name: str, fresh: Version, map_: str) -> bool:
    """Whether this array belongs to the object file, and not to the new version."""
    held = registry.maps.find(map_)
    if held is None or held.part_of != name or held.object is None:
        return False
    return held.object.id not in {each.id for each in fresh.maps.values()}


def _name_of_array(registry: Registry, fresh: Version, map_: str) -> str | None:
    """Return the name under which the array is held that has taken the place of a map. None: it is not held."""
    id_ = fresh.maps[map_].id
    return next((each.name for each in registry.maps if each.object is not None and each.object.id == id_), None)


def _told(uses: Sequence[tuple[str, int]], program: str) -> list[dict[str, object]]:
    return [{"map": map_, "index": index, "program": program} for map_, index in uses[:_MAX_ENTRIES_TOLD]]
