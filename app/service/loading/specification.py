"""What a request asks for when it loads an object file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

from app.bpf.uapi import PROG_TYPE_NAMES

PREVIOUS: Final = "previous"
Values = Literal["refuse", "set", "ignore"]
Pinning = Literal["refuse", "ignore", "hold"]


@dataclass(frozen=True, slots=True)
class ProgramOptions:
    """How a program is loaded.

    Attributes:
        type: The name of its type, as in `xdp`. None: as its section says.
        attach_type: Its expected_attach_type, a number in enum bpf_attach_type. None (`auto`): what the arrays take
            that it has to do with, else what its section says.
        load: Whether it is loaded. None: as its section says.
    """

    type: str | None = None
    attach_type: int | None = None
    load: bool | None = None

    @property
    def type_number(self) -> int | None:
        """The number of its type in enum bpf_prog_type. None: as its section says."""
        return None if self.type is None else PROG_TYPE_NAMES.index(self.type)


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a map is made, or which one takes its place.

    Attributes:
        use: The name of a held map that takes its place, or PREVIOUS for that of the version before. None: none does.
        pinned: The path of a pin whose map takes its place. None: none does.
        max_entries: Its number of entries. None: as the file says.
    """

    use: str | None = None
    pinned: str | None = None
    max_entries: int | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """The one entry that leads to the object: it is overwritten last, so the whole table changes in one moment."""

    map: str
    index: int
    program: str


@dataclass(frozen=True, slots=True)
class Specification:
    """What a request asks for.

    Attributes:
        file: The path of the object file. None: the request brought it.
        programs: How programs are loaded, by name.
        maps: How maps are made, by name. A map of variables has the name of its section, as in `.bss`.
        variables: The values of global variables, by name.
        values: What becomes of the initialisers of an array that is replaced: see `LoadRequest.values`; `set` writes
            them as a change of entries.
        pinning: What becomes of maps that ask to be pinned by name: `refuse` the file, `ignore` it, or `hold` the map
            for the versions to come.
        move: Entries that hold a program of an earlier version get the new one of the same name.
        switch: The entry that is overwritten last.
    """

    file: str | None = None
    programs: Mapping[str, ProgramOptions] = field(default_factory=dict)
    maps: Mapping[str, MapOptions] = field(default_factory=dict)
    variables: Mapping[str, int | bool | str] = field(default_factory=dict)
    values: Values = "refuse"
    pinning: Pinning = "refuse"
    move: bool = False
    switch: Switch | None = None

    def loads_like(self, other: "Specification") -> bool:
        """Whether it makes the same programs and maps of the same file."""
        return replace(self, file=None, move=False, switch=None) == replace(other, file=None, move=False, switch=None)

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Self:
        """Return the one whose members these are, from JSON."""
        return cls(
            **facts
            | {
                "programs": {name: ProgramOptions(**each) for name, each in facts["programs"].items()},
                "maps": {name: MapOptions(**each) for name, each in facts["maps"].items()},
                "switch": None if facts["switch"] is None else Switch(**facts["switch"]),
            }
        )
