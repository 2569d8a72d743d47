"""The errors of object files, as a part of the tree of `app.service.errors`.

ServiceError
├── ObjectUnknown, FileNotAllowed, FileUnusable, FileChanging       finding one
├── LoaderUnavailable, ObjectUnreadable, ObjectUnsupported, ObjectTooLarge, ObjectTimeout   reading one
├── ProgramTypeUnknown, ProgramTypeNotAllowed, ProgramNotInObject, MapNotInObject, MapNotHeld, MapNotReplaceable,
│   VariableUnknown, VariableTooLong, ValuesOnReplacedMap, PinningRefused                   what is asked of one
├── ObjectRefused, RelocationFailed, KfuncMissing, JumpIncompatible the kernel refuses one
└── ObjectInUse, NoSuccessor                versions of one
"""

from dataclasses import dataclass
from typing import Any

from app.service.errors import ServiceError


@dataclass(eq=False)
class ObjectUnknown(ServiceError):
    """No object file is loaded under the name."""

    code = "object-unknown"
    sentence = "no object file is loaded under the name {object!r}; load one first: PUT /objects/{object}"
    object: str


@dataclass(eq=False)
class FileNotAllowed(ServiceError):
    """Requests may not load this file."""

    code = "file-not-allowed"
    sentence = "{reason}"
    reason: str


@dataclass(eq=False)
class FileUnusable(ServiceError):
    """The object file cannot be read. `errno`: the name of the errno, such as `ENOENT`."""

    code = "file-unusable"
    sentence = "the object file {file!r} cannot be read: {errno}; {remedy}"
    file: str
    errno: str
    remedy: str


@dataclass(eq=False)
class FileChanging(ServiceError):
    """The object file was written while it was read."""

    code = "file-changing"
    sentence = "the object file {file!r} changed while it was read; send the request again when it is complete"
    file: str


@dataclass(eq=False)
class LoaderUnavailable(ServiceError):
    """Object files cannot be loaded here."""

    code = "loader-unavailable"
    sentence = "object files cannot be loaded: {reason}"
    reason: str


@dataclass(eq=False)
class ObjectTimeout(ServiceError):
    """The object file took too long, so the process that loads it was ended."""

    code = "object-timeout"
    sentence = "the object file was not loaded in time; make its programs smaller, or raise objects.timeout"


@dataclass(eq=False)
class ObjectUnreadable(ServiceError):
    """The bytes are no object file. `signal`: that the process which read them died of; None: it did not."""

    code = "object-unreadable"
    sentence = "the object file cannot be read: {reason}; compile it anew with clang -target bpf -g"
    reason: str
    signal: str | None


@dataclass(eq=False)
class ObjectUnsupported(ServiceError):
    """The object file is of a kind that the service does not load."""

    code = "object-unsupported"
    sentence = "the object file is not supported: {reason}"
    reason: str


@dataclass(eq=False)
class ObjectTooLarge(ServiceError):
    """The object file, or its maps, would take more than is allowed.

    Attributes:
        map: The map with which the limit is exceeded. None: the file itself is too large.
        bytes: What is asked for.
        limit: What is allowed, in bytes.
        max_entries: The entries of that map.
        max_map_entries: How many entries a map may have.
    """

    code = "object-too-large"
    sentence = (
        "with map {map!r} of {max_entries} entries, the maps of the object file would take {bytes} bytes; {limit} "
        "bytes and {max_map_entries} entries are allowed: give it fewer with maps.{map}.max_entries, or raise "
        "objects.map_bytes or objects.max_map_entries"
    )
    map: str | None
    bytes: int
    limit: int
    max_entries: int | None = None
    max_map_entries: int | None = None

    def __str__(self) -> str:
        if self.map is not None:
            return super().__str__()
        return f"the object file has more than {self.limit} bytes; send a smaller one, or raise objects.max_bytes"


@dataclass(eq=False)
class ProgramNotInObject(ServiceError):
    """The request names a program that the object file does not have. `programs`: those that it has."""

    code = "program-not-found"
    sentence = "the object file has no program {program!r}; name one of those that it has (programs)"
    program: str
    programs: list[str]


@dataclass(eq=False)
class MapNotInObject(ServiceError):
    """The request names a map that the object file does not have. `maps`: those that it has."""

    code = "map-not-found"
    sentence = "the object file has no map {map!r}; name one of those that it has (maps)"
    map: str
    maps: list[str]


@dataclass(eq=False)
class MapNotHeld(ServiceError):
    """The body of the request names a map that is not held."""

    code = "map-not-found"
    sentence = "no map is held under the name {map!r}; give the name of a held one, or hold it first: PUT /maps/{map}"
    map: str


@dataclass(eq=False)
class ProgramTypeUnknown(ServiceError):
    """The section of a program does not tell its type."""

    code = "program-type-unknown"
    sentence = (
        "section {section!r} does not tell the type of program {program!r}; name it with programs.{program}.type, or "
        'compile it in a section such as SEC("xdp")'
    )
    program: str
    section: str


@dataclass(eq=False)
class ProgramTypeNotAllowed(ServiceError):
    """Programs of this type may not be loaded."""

    code = "program-type-not-allowed"
    sentence = (
        "program {program!r} is of type {program_type}, which may not be loaded; leave it out with "
        "programs.{program}.load = false, or add the type to objects.program_types"
    )
    program: str
    section: str
    program_type: str


@dataclass(eq=False)
class MapNotReplaceable(ServiceError):
    """The map that is to take the place of one of the object file has another shape.

    Attributes:
        map: The map of the object file.
        differences: Each field in which the two differ, and what it is in the object and in the map.
    """

    code = "map-not-replaceable"
    sentence = "map {map!r} of the object file cannot be replaced by this one: {how}; give one of the same shape"
    map: str
    differences: list[dict[str, Any]]

    def __str__(self) -> str:
        how = ", ".join(f"{each['field']} is {each['map']} and not {each['object']}" for each in self.differences)
        return self.sentence.format(map=self.map, how=how or "libbpf refuses it")


class NoPreviousMap(MapNotReplaceable):
    """There is no version before, or it has no such map."""

    def __str__(self) -> str:
        return (
            f"map {self.map!r} of the object file cannot be that of the version before: there is none; leave out "
            '"use": "previous"'
        )


@dataclass(eq=False)
class VariableUnknown(ServiceError):
    """The object file has no such global variable. `variables`: those that it has."""

    code = "variable-unknown"
    sentence = (
        "the object file has no global variable {variable!r}; name one of those that it has (variables), and compile "
        "it with -g"
    )
    variable: str
    variables: list[str]


@dataclass(eq=False)
class VariableTooLong(ServiceError):
    """The value does not fit the variable. `size`: of the variable, in bytes."""

    code = "variable-too-long"
    sentence = "the value of variable {variable!r} does not fit into its {size} bytes: {reason}"
    variable: str
    size: int
    reason: str


@dataclass(eq=False)
class ValuesOnReplacedMap(ServiceError):
    """The object file has initialisers (.values) for a map that another one replaces, which may be in use.

    `index` and `program`: the first of them.
    """

    code = "values-on-replaced-map"
    sentence = (
        "the object file puts program {program!r} into entry {index} of map {map!r}, and another map is to take its "
        'place; send "values": "set" to write its initialisers as a change, or "ignore" to leave them out'
    )
    map: str
    index: int
    program: str


@dataclass(eq=False)
class PinningRefused(ServiceError):
    """The object file asks for a map to be pinned by name."""

    code = "pinning-refused"
    sentence = (
        'map {map!r} of the object file asks to be pinned by name; send "pinning": "ignore" to make it as any other, '
        'or "hold" to keep it for the versions to come (which takes server.keep_dir)'
    )
    map: str


@dataclass(eq=False)
class ObjectRefused(ServiceError):
    """The kernel refuses a program or a map of the object file.

    Attributes:
        program: The program. None: it is not known which.
        errno: The name of the errno.
        message: The verifier's reason.
        instruction: The `index` and the `text` of the instruction. None: it is not known.
        source: The `file`, the `line` and the `text` that it came from. None: it is not known.
        log_tail: The last lines of the verifier's log.
    """

    code = "object-refused"
    sentence = "the kernel refuses {what}: {message}; {remedy}"
    program: str | None
    errno: str
    message: str
    instruction: dict[str, Any] | None
    source: dict[str, Any] | None
    log_tail: list[str]

    def __str__(self) -> str:
        what = "the object file" if self.program is None else f"program {self.program!r}"
        remedy, source = (
            "mend its source, and compile it anew (log_tail has the end of the verifier's log)",
            self.source,
        )
        if source is not None:
            place = "the line" if source["file"] is None else f"{source['file']}:{source['line']}"
            remedy = f"mend {place}, and compile it anew: {source['text']}"
        return self.sentence.format(what=what, message=self.message, remedy=remedy)


@dataclass(eq=False)
class RelocationFailed(ServiceError):
    """The object file refers to something that this kernel does not have. `program`: None: it is not known which."""

    code = "relocation-failed"
    sentence = "the object file does not fit this kernel: {relocation}; ask for it with bpf_core_field_exists() first"
    program: str | None
    relocation: str


@dataclass(eq=False)
class KfuncMissing(ServiceError):
    """The object file calls a kernel function that this kernel does not have."""

    code = "kfunc-missing"
    sentence = "this kernel has no function {function!r} for programs; declare it __weak and ask before you call it"
    function: str


@dataclass(eq=False)
class JumpIncompatible(ServiceError):
    """A program of an object file cannot be loaded, as it has to do with an array that takes other programs.

    Attributes:
        program: The program.
        maps: The maps of the object file that it may be about.
        reason: How the program differs from those that the array takes.
        owner_program_type: The type that the array takes; None if the kernel does not report it.
        program_type: The type of the program.
        owner_attach_type: The expected attach type that the array takes; None if the kernel does not report it.
        attach_type: The expected attach type with which the program was to be loaded.
    """

    code = "program-incompatible"
    sentence = (
        "program {program!r} does not fit an array that it goes into or jumps through, which is one of {maps}: "
        "{reason}; load it as the programs of that array are loaded (programs.{program}.attach_type, the same section "
        "name and flags), or let the object file have an array of its own"
    )
    program: str
    maps: list[str]
    reason: str
    owner_program_type: str | None
    program_type: str
    owner_attach_type: str | None
    attach_type: str


@dataclass(eq=False)
class ObjectInUse(ServiceError):
    """Entries hold programs of the object file that would be gone.

    Attributes:
        object: The name of the object file.
        entries: The `map`, the `index` and the `program` of each.
    """

    code = "in-use"
    sentence = "entries hold programs of object file {object!r} that would be gone (entries); {remedy}"
    object: str
    entries: list[dict[str, Any]]
    remedy: str


@dataclass(eq=False)
class NoSuccessor(ServiceError):
    """Entries hold a program that the new version does not have, so they cannot be moved to it."""

    code = "in-use"
    sentence = (
        "entries hold program {program!r}, which the new version of object file {object!r} does not have; clear them "
        "or set them to another program first"
    )
    object: str
    program: str
    entries: list[dict[str, Any]]
