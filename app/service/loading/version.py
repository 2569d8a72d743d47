"""One version of an object file: what was loaded, and what keeps it alive."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType
from app.loader.messages import MapFacts, ProgramFacts
from app.service.loading.specification import Specification
from app.service.objects.program import OwnedFd, Program
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import Made, Pinned, Source


@dataclass(eq=False, slots=True)
class LoadedProgram:
    """A program of a version.

    Attributes:
        facts: What the file says of it.
        id: The kernel's id of the program. 0: it is not loaded.
        pin: Where the service has pinned it. None: nowhere.
        program: The open program. None: it is not open.
    """

    facts: ProgramFacts
    pin: str | None = None
    program: Program | None = None
    id: int = 0

    def open(self, program: Program) -> None:
        """Keep the program open from now on."""
        self.program, self.id = program, program.id

    @property
    def object(self) -> OwnedFd | None:
        """What keeps it open."""
        return self.program

    def opened(self) -> Program:
        """Return the program of a version that is loaded."""
        assert self.program is not None  # the version is loaded
        return self.program


@dataclass(eq=False, slots=True)
class LoadedMap:
    """A map of a version.

    Attributes:
        facts: What the file says of it.
        use: What has taken its place: the name of a held map, the path of a pin, or `previous`. None: it is new.
        id: The kernel's id of the map. 0: it is not known.
        pin: Where the service has pinned it. None: nowhere.
        object: What keeps it open. None: others do, as a held map has taken its place; or it is not open.
    """

    facts: MapFacts
    use: str | None = None
    id: int = 0
    pin: str | None = None
    object: OwnedFd | None = None

    @property
    def is_owned(self) -> bool:
        """Whether the object file keeps it: it was made for it, now or for an earlier version."""
        return self.use in {None, "previous"}


@dataclass(eq=False)
class Version:
    """What was loaded of an object file.

    Attributes:
        number: Its place among the versions under this name, from 1 on.
        specification: What the request asked for.
        digest: SHA-256 of the file, in hex.
        size: Of the file, in bytes.
        at: When it was loaded, in seconds since 1970.
        boot_id: The boot in which it was loaded.
        attach_types: See LoadRequest.
        programs: Its programs that are loaded, by name.
        maps: Its maps, by name.
        values: The initialisers that were left out: (map, index, program).
        unconfined: See LoadAnswer.
    """

    number: int
    specification: Specification
    digest: str
    size: int
    at: float
    boot_id: str
    attach_types: Mapping[int, int] = field(default_factory=dict)
    programs: dict[str, LoadedProgram] = field(default_factory=dict)
    maps: dict[str, LoadedMap] = field(default_factory=dict)
    values: list[tuple[str, int, str]] = field(default_factory=list)
    unconfined: tuple[str, ...] = ()

    def pinnable(self) -> Iterator[LoadedProgram | LoadedMap]:
        """Return what the service pins, always in the same order: programs, then maps."""
        yield from self.programs.values()
        yield from (each for each in self.maps.values() if each.is_owned)

    def pins(self) -> list[str]:
        """Return the paths at which the service has pinned what it keeps of the version."""
        return [each.pin for each in self.pinnable() if each.pin is not None]

    def arrays(self) -> dict[str, LoadedMap]:
        """Return the program arrays that the service keeps of the version, by name."""
        return {
            name: map_ for name, map_ in self.maps.items() if map_.is_owned and map_.facts.type == MapType.PROG_ARRAY
        }

    def program_ids(self) -> dict[int, str]:
        """Return the names of its programs by the kernel's ids."""
        return {each.program.id: name for name, each in self.programs.items() if each.program is not None}

    async def close(self) -> None:
        """Let go of all programs and maps. The kernel empties arrays then, which may take milliseconds."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """Let go of all programs and maps, and wait for the kernel."""
        for program in self.programs.values():
            if program.program is not None:
                program.program.close()
                program.program = None
        for map_ in self.maps.values():
            if map_.object is not None:
                map_.object.close()
                map_.object = None

    def open_pins(self, kernel: Kernel) -> None:
        """Open what is pinned.

        Raises:
            ServiceError: A pin leads to something else.
            OSError: A pin cannot be opened. What was opened stays open until `close`.
        """
        for program in self.programs.values():
            program.open(Program(kernel, kernel.obj_get(program.pin or "")))
        for map_ in self.maps.values():
            if map_.is_owned:
                map_.object = owned_map(kernel, kernel.obj_get(map_.pin or ""), map_.facts)

    def to_json(self) -> dict[str, Any]:
        """Return what has to be remembered of it, as values of which `pydantic_core.to_json` makes JSON."""
        return {
            "number": self.number,
            "specification": self.specification,
            "digest": self.digest,
            "size": self.size,
            "at": self.at,
            "boot_id": self.boot_id,
            "attach_types": self.attach_types,
            "programs": [{"facts": each.facts, "pin": each.pin} for each in self.programs.values()],
            "maps": [
                {"facts": each.facts, "use": each.use, "id": each.id, "pin": each.pin} for each in self.maps.values()
            ],
            "values": self.values,
            "unconfined": self.unconfined,
        }

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Self:
        """Return the version that `to_json` was made from. Nothing of it is open."""
        programs = [LoadedProgram(ProgramFacts(**each["facts"]), each["pin"]) for each in facts["programs"]]
        maps = [LoadedMap(MapFacts(**each["facts"]), each["use"], each["id"], each["pin"]) for each in facts["maps"]]
        return cls(
            **facts
            | {
                "specification": Specification.of_json(facts["specification"]),
                "attach_types": {int(type_): attach for type_, attach in facts["attach_types"].items()},
                "programs": {each.facts.name: each for each in programs},
                "maps": {each.facts.name: each for each in maps},
                "values": [(map_, index, program) for map_, index, program in facts["values"]],
                "unconfined": tuple(facts["unconfined"]),
            }
        )


def owned_map(kernel: Kernel, fd: int, facts: MapFacts) -> OwnedFd:
    """Take over the fd of a map: a ProgramArray if it is one."""
    return ProgramArray(kernel, fd) if facts.type == MapType.PROG_ARRAY else OwnedFd(kernel, fd)


def source_at(pin: str | None) -> Source:
    """Return where something of an object file can be opened again."""
    return Made() if pin is None else Pinned(pin)
