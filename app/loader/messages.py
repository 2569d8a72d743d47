"""What is said between the process that loads an object file and the one that started it.

The channel is a socketpair of type SOCK_SEQPACKET. The question is a LoadRequest as JSON, with the fd of the object
file (sealed memory) and then those of the maps that replace some of its own. The answer is a LoadAnswer as JSON, with
the fds of the programs and then those of the maps that it names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

MAX_REQUEST_BYTES: Final = 1 << 17
MAX_ANSWER_BYTES: Final = 1 << 17
MAX_LOG_CHARS: Final = 48 << 10  # of the verifier's log: its end
MAX_WARNING_BYTES: Final = 16 << 10  # of what libbpf prints: its end


@dataclass(frozen=True, slots=True)
class ObjectLimits:
    """What object files may ask for: the section [objects] of the configuration.

    Attributes:
        object_dirs: Folders below which files may be named.
        upload: Whether a request may bring a file.
        max_bytes: The largest file.
        map_bytes: The memory of all maps of one file.
        max_map_entries: The entries of one map.
        program_types: The numbers (enum bpf_prog_type) of the types of programs that may be loaded.
        timeout: Seconds after which a load is given up.
    """

    object_dirs: Sequence[str] = ()
    upload: bool = False
    max_bytes: int = 8 << 20
    map_bytes: int = 64 << 20
    max_map_entries: int = 1 << 20
    program_types: Sequence[int] = (6, 3, 1)
    timeout: float = 30.0

    @property
    def is_enabled(self) -> bool:
        """Whether any object file can be loaded."""
        return bool(self.object_dirs) or self.upload


NO_OBJECTS: Final = ObjectLimits()


@dataclass(frozen=True, slots=True)
class ProgramChoice:
    """How one program is loaded. None: as its section says.

    Attributes:
        type: Its number in enum bpf_prog_type.
        attach_type: Its expected_attach_type, a number in enum bpf_attach_type.
        load: Whether it is loaded at all.
    """

    type: int | None = None
    attach_type: int | None = None
    load: bool | None = None


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to do with an object file.

    Attributes:
        name: The name of the object; libbpf names the maps of variables after it.
        programs: How programs are loaded, by name.
        max_entries: The number of entries of maps that shall have another than the file says, by name.
        replaced: The names of the maps that are replaced, in the order of the fds that follow that of the file.
        variables: The values of global variables, by name.
        values: What to do with initialisers (`.values`) of program arrays that are replaced: `refuse` the file, or
            `report` and leave them out. Those of new arrays are always written.
        allow_pinning: Whether maps may ask to be pinned by name. They never are: that is the caller's.
        attach_types: By the number of a type of programs, the expected_attach_type of those of them that have none in
            `programs`. It takes the place of what their section says.
        limits: What the file may ask for. The keeper puts in its own.
    """

    name: str
    programs: Mapping[str, ProgramChoice] = field(default_factory=dict)
    max_entries: Mapping[str, int] = field(default_factory=dict)
    replaced: Sequence[str] = ()
    variables: Mapping[str, int | bool | str] = field(default_factory=dict)
    values: str = "refuse"
    allow_pinning: bool = False
    attach_types: Mapping[int, int] = field(default_factory=dict)
    limits: ObjectLimits = NO_OBJECTS

    def dump(self) -> bytes:
        """Return the request as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> Self:
        """Return the request that `dump` has written.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: The text is none.
        """
        facts = json.loads(text)
        facts["programs"] = {name: ProgramChoice(**each) for name, each in facts["programs"].items()}
        facts["attach_types"] = {int(type_): attach for type_, attach in facts["attach_types"].items()}
        return cls(**facts | {"limits": ObjectLimits(**facts["limits"])})


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A program of an object file. `is_loaded`: its fd comes with the answer."""

    name: str
    section: str
    type: int
    attach_type: int
    instructions: int
    is_loaded: bool


@dataclass(frozen=True, slots=True)
class MapFacts:
    """A map of an object file.

    Attributes:
        name: As libbpf names it.
        type: Its number in enum bpf_map_type.
        key_size: In bytes.
        value_size: In bytes.
        max_entries: Its number of entries, or of bytes for a ring buffer.
        flags: Those of MAP_CREATE.
        is_internal: It holds variables (`.data`, `.rodata`, `.bss`, `.kconfig`).
        is_pinned_by_name: The file asks for it to be pinned (LIBBPF_PIN_BY_NAME).
        is_replaced: A given map has taken its place.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    is_internal: bool
    is_pinned_by_name: bool
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an object file was not loaded.

    Attributes:
        code: The code of the problem, as far as the process knows it.
        facts: What belongs to that code.
        errno: The errno of libbpf or the kernel, or libbpf's own number from 4000 on. 0: there is none.
        log: The end of the verifier's log.
    """

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    errno: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """What became of an object file.

    Attributes:
        refusal: Why it was not loaded. None: it was.
        programs: The programs in the file.
        maps: The maps in the file.
        values: The initialisers that were left out: (map, index, program).
        unconfined: What this kernel lacks for confining the process: `landlock`, `seccomp`, `user`.
        warnings: What libbpf has printed. The process itself leaves it empty.
    """

    refusal: Refusal | None = None
    programs: Sequence[ProgramFacts] = ()
    maps: Sequence[MapFacts] = ()
    values: Sequence[tuple[str, int, str]] = ()
    unconfined: Sequence[str] = ()
    warnings: str = ""

    def dump(self) -> bytes:
        """Return the answer as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> Self:
        """Return the answer that `dump` has written.

        Raises:
            ValueError, TypeError, KeyError: The text is none.
        """
        facts = json.loads(text)
        return cls(
            refusal=None if facts["refusal"] is None else Refusal(**facts["refusal"]),
            programs=[ProgramFacts(**each) for each in facts["programs"]],
            maps=[MapFacts(**each) for each in facts["maps"]],
            values=[(str(map_), int(index), str(program)) for map_, index, program in facts["values"]],
            unconfined=[str(each) for each in facts["unconfined"]],
            warnings=str(facts["warnings"]),
        )

    @property
    def fd_count(self) -> int:
        """How many fds come with it: of each program that is loaded, then of each map that is not replaced."""
        return sum(each.is_loaded for each in self.programs) + sum(not each.is_replaced for each in self.maps)
