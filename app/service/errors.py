"""What can go wrong, as one tree. Each error has a stable code, one sentence, and its facts as attributes.

ServiceError
├── MapUnknown, ProgramUnknown              no such name is held
├── EntryEmpty, IndexOutOfRange             of an entry
├── NotAProgramArray                        what a program array is to be made from is none
│   ├── NotAMap, MapGone                    it is no map at all
│   └── WrongMapType, WrongKeySize, WrongValueSize
├── NotAProgram, ProgramNotFound            what a program is to be made from is none
├── ProgramIncompatible, ProgramBusy        the array does not take the program
├── ProgramNotRunnable, PacketRefused       of a test run
├── ArrayTooLarge                           of making an array
├── UnsupportedFlags, MapFrozen             of a write
├── PinUnusable, PinNotAllowed              of a path in bpffs
├── LastReference, NameTaken                of holding and releasing
├── DuplicateIndex, WriteRefused            of a whole table
├── ChangeUnknown, ChangeConflict, ChangeNotRevertible, NotRestorable
├── EntryWaits, AlreadyConfirmed, AlreadyUndone, InUse      of confirmations
├── Forbidden, EntryProtected               of rights
├── EventsExpired                           of resuming a stream of events
├── JournalUnavailable, JournalUnreadable, Stopping
├── MapUnavailable, ProgramUnavailable      held, but it could not be opened
└── KernelPermission, KernelError           any other errno
"""

import errno
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from app.bpf.uapi import errno_name


@dataclass(eq=False)
class ServiceError(Exception):
    """The root. `code` is the problem's name to the outside, `facts()` what else is told of it."""

    code: ClassVar[str] = "internal"
    sentence: ClassVar[str] = "something went wrong"

    def __str__(self) -> str:
        return self.sentence.format(**self.facts())

    def facts(self) -> dict[str, Any]:
        """The attributes by name, as JSON can carry them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(eq=False)
class MapUnknown(ServiceError):
    """No map is held under this name."""

    code = "map-unknown"
    sentence = "no map is held under the name {map!r}; GET /maps lists them"
    map: str


@dataclass(eq=False)
class ProgramUnknown(ServiceError):
    """No program is held under this name (the one in the path)."""

    code = "program-unknown"
    sentence = "no program is held under the name {program!r}; GET /programs lists them"
    program: str


@dataclass(eq=False)
class EntryEmpty(ServiceError):
    """The entry points to no program."""

    code = "entry-empty"
    sentence = "entry {index} is empty"
    index: int


@dataclass(eq=False)
class IndexOutOfRange(ServiceError):
    """The index is not below the array's max_entries."""

    code = "index-out-of-range"
    sentence = "index {index} is out of range: the array has {max_entries} entries, 0 is the first"
    index: int
    max_entries: int


@dataclass(eq=False)
class BodyIndexOutOfRange(IndexOutOfRange):
    """The same, of an index in a request's body."""


@dataclass(eq=False)
class NotAProgramArray(ServiceError):
    """What a program array was to be made from is none."""

    code = "not-a-program-array"


@dataclass(eq=False)
class NotAMap(NotAProgramArray):
    """It is no map. `kind`: what it is."""

    sentence = "that is no map but: {kind}"
    kind: str


@dataclass(eq=False)
class MapGone(NotAProgramArray):
    """No map has this id."""

    sentence = "there is no map with id {id}"
    id: int


@dataclass(eq=False)
class WrongMapType(NotAProgramArray):
    """It is a map of another type."""

    sentence = "the map is of type {map_type}, not prog_array"
    map_type: str


@dataclass(eq=False)
class WrongKeySize(NotAProgramArray):
    """Its keys are not u32."""

    sentence = "the map's keys have {key_size} bytes, not 4"
    key_size: int


@dataclass(eq=False)
class WrongValueSize(NotAProgramArray):
    """Its values are not u32."""

    sentence = "the map's values have {value_size} bytes, not 4"
    value_size: int


@dataclass(eq=False)
class NotAProgram(ServiceError):
    """What a program was to be made from is none. `kind`: what it is."""

    code = "not-a-program"
    sentence = "that is no program but: {kind}"
    kind: str


@dataclass(eq=False)
class ProgramNotFound(ServiceError):
    """A request's body refers to a program that does not exist. `program`: its name or id."""

    code = "program-not-found"
    sentence = "there is no program {program!r}: name one that is held (GET /programs), or give a live id or a pin"
    program: str | int


@dataclass(eq=False)
class ProgramIncompatible(ServiceError):
    """The array does not take the program. `owner_program_type`: None where the kernel does not tell it."""

    code = "program-incompatible"
    sentence = "the program does not fit the array: {reason}; {remedy}"
    reason: str
    remedy: str
    owner_program_type: str | None
    program_type: str


@dataclass(eq=False)
class ProgramBusy(ServiceError):
    """The kernel refuses a program that a freplace program extends."""

    code = "program-busy"
    sentence = "the program is extended by an freplace program, and such a one cannot be tail-called"
    program_id: int


@dataclass(eq=False)
class ProgramNotRunnable(ServiceError):
    """BPF_PROG_TEST_RUN does not run this type on a packet."""

    code = "program-not-runnable"
    sentence = "the kernel cannot run a program of type {program_type} on a packet"
    program_type: str


@dataclass(eq=False)
class PacketRefused(ServiceError):
    """The kernel does not take a packet of this size (bytes)."""

    code = "validation"
    sentence = "the kernel refuses to run a program of type {program_type} on a packet of {packet_bytes} bytes"
    program_type: str
    packet_bytes: int


@dataclass(eq=False)
class ArrayTooLarge(ServiceError):
    """The kernel has no memory for an array of so many entries."""

    code = "validation"
    sentence = "the kernel has no memory for an array of {max_entries} entries"
    max_entries: int


@dataclass(eq=False)
class UnsupportedFlags(ServiceError):
    """A program array knows only BPF_ANY."""

    code = "unsupported-flags"
    sentence = "flags {flags}: the kernel takes only 0 (BPF_ANY) here; for 'create only' use If-None-Match: *"
    flags: int


@dataclass(eq=False)
class MapFrozen(ServiceError):
    """User space may not change the array any more."""

    code = "map-frozen"
    sentence = "the array is frozen: user space can never change it again; make a new one"


@dataclass(eq=False)
class PinUnusable(ServiceError):
    """Nothing can be opened at this path. `errno`: its name."""

    code = "pin-unusable"
    sentence = "cannot open the pin {pinned!r}: {errno}; {remedy}"
    pinned: str
    errno: str
    remedy: str


@dataclass(eq=False)
class PinNotAllowed(ServiceError):
    """Requests may name pins only below the configured folders."""

    code = "pin-not-allowed"
    sentence = "the path {pinned!r} leads outside of pin_dirs, the folders below which requests may name pins"
    pinned: str
    pin_dirs: tuple[str, ...]


@dataclass(eq=False)
class LastReference(ServiceError):
    """Letting go would empty the array for good."""

    code = "last-reference"
    sentence = (
        "map {map!r} is not pinned at a path that the service knows: if nobody else holds it, the kernel empties it "
        "for good when it is let go; pin it first (bpftool map pin id {id} PATH), or DELETE with ?force=true"
    )
    map: str
    id: int


@dataclass(eq=False)
class NameTaken(ServiceError):
    """The name, or the object, is held already."""

    code = "name-taken"
    sentence = "{name!r} cannot be held so: {reason}"
    name: str
    reason: str


@dataclass(eq=False)
class DuplicateIndex(ServiceError):
    """A table names an index twice."""

    code = "duplicate-index"
    sentence = "index {index} is listed more than once"
    index: int


@dataclass(eq=False)
class ChangeUnknown(ServiceError):
    """No change has this id, or it was pruned."""

    code = "change-unknown"
    sentence = "there is no change {id}, or it is too old and was pruned"
    id: int


@dataclass(eq=False)
class ChangeConflict(ServiceError):
    """Entries no longer hold what the change put there. `entries`: which, and what they hold."""

    code = "change-conflict"
    sentence = "change {id} cannot be undone: since then other changes were made to its entries"
    id: int
    entries: list[dict[str, Any]]


@dataclass(eq=False)
class ChangeNotRevertible(ServiceError):
    """The change cannot be undone at all."""

    code = "change-not-revertible"
    sentence = "change {id} cannot be undone: {reason}"
    id: int
    reason: str


@dataclass(eq=False)
class NotRestorable(ServiceError):
    """What is to be put back, or kept for it, cannot be. `entries`: index and reason of each."""

    code = "change-not-revertible"
    sentence = "the map {map!r} cannot be put back: {reason}"
    map: str
    reason: str
    entries: list[dict[str, Any]]


@dataclass(eq=False)
class EntryWaits(ServiceError):
    """Another change of the entry waits to be confirmed."""

    code = "change-conflict"
    sentence = "entry {index} waits for the confirmation of change {change}: confirm or revert that one first"
    index: int
    change: int


@dataclass(eq=False)
class Forbidden(ServiceError):
    """Whoever asks may not change this entry, or not so."""

    code = "forbidden"
    sentence = "{actor} may not change entry {index}: {reason}"
    actor: str
    index: int
    reason: str


@dataclass(eq=False)
class EntryProtected(ServiceError):
    """Only an admin may change this entry."""

    code = "entry-protected"
    sentence = "entry {index} is protected by the configuration: it takes the role admin"
    index: int


@dataclass(eq=False)
class AlreadyConfirmed(ServiceError):
    """The change needs no confirmation, or no more. `state`: what it is."""

    code = "already-confirmed"
    sentence = "change {id} waits for no confirmation: it is {state}, and stands"
    id: int
    state: str


@dataclass(eq=False)
class AlreadyUndone(ServiceError):
    """The confirmation came too late. `state`: what the change is."""

    code = "change-conflict"
    sentence = "change {id} is {state}, and cannot be confirmed any more: make it anew"
    id: int
    state: str


@dataclass(eq=False)
class InUse(ServiceError):
    """A change that waits for its confirmation would need it to be undone."""

    code = "in-use"
    sentence = (
        "{name!r} is needed to undo change {change}, which waits for its confirmation: confirm or revert it first"
    )
    name: str
    change: int


@dataclass(eq=False)
class EventsExpired(ServiceError):
    """The journal knows no more, or not at all, what came after this event. `first`: the first that it can tell."""

    code = "events-expired"
    sentence = (
        "what came after event {after} cannot be told, as the journal has it no more, or never had it: the first that "
        "it has is {first}; read the tables, then follow without Last-Event-ID"
    )
    after: int
    first: int


@dataclass(eq=False)
class JournalUnavailable(ServiceError):
    """The change could not be journalled, so it was undone. `left`: the indexes where that failed."""

    code = "journal-unavailable"
    sentence = "{reason}; put back: {put_back}"
    reason: str
    put_back: bool
    left: list[int]


@dataclass(eq=False)
class JournalUnreadable(ServiceError):
    """The journal cannot be read."""

    code = "journal-unavailable"
    sentence = "{reason}"
    reason: str


@dataclass(eq=False)
class Stopping(ServiceError):
    """The service ends before the change was whole."""

    code = "draining"
    sentence = "the service is stopping"


@dataclass(eq=False)
class WriteRefused(ServiceError):
    """The kernel refused one entry of several; its code is that of `cause`. `left`: what could not be put back."""

    sentence = "entry {index}: {cause}; put back: {put_back}"
    cause: ServiceError
    index: int
    put_back: bool
    left: list[int]

    def facts(self) -> dict[str, Any]:
        """Those of the cause beside its own."""
        return self.cause.facts() | {
            "index": self.index,
            "cause": str(self.cause),
            "put_back": self.put_back,
            "left": self.left,
        }


@dataclass(eq=False)
class MapUnavailable(ServiceError):
    """The map is held by configuration, but it could not be opened yet."""

    code = "map-unavailable"
    sentence = "map {map!r} is unavailable: {reason}; it is tried again every few seconds"
    map: str
    reason: str


@dataclass(eq=False)
class ProgramUnavailable(ServiceError):
    """The program is held by configuration, but it could not be opened yet."""

    code = "program-unavailable"
    sentence = "program {program!r} is unavailable: {reason}; it is tried again every few seconds"
    program: str
    reason: str


@dataclass(eq=False)
class KernelPermission(ServiceError):
    """The kernel refuses for want of a right. `capability`: the one that is missing."""

    code = "kernel-permission"
    sentence = "the kernel refuses {command} ({errno}): the service lacks {capability}"
    command: str
    errno: str
    capability: str


@dataclass(eq=False)
class KernelError(ServiceError):
    """Any other errno."""

    code = "kernel-error"
    sentence = "the kernel refuses {command}: {errno}"
    command: str
    errno: str


class KeeperGone(KernelError):
    """The process that opens and makes for this one has ended."""

    sentence = "the keeper, which opens and makes for the service, has ended: restart the service"


# Who may do what: kernel/bpf/syscall.c, as of Linux 6.18.
_CAPABILITIES: Final = {
    "MAP_CREATE": "CAP_BPF",
    "MAP_GET_FD_BY_ID": "CAP_SYS_ADMIN",
    "PROG_GET_FD_BY_ID": "CAP_SYS_ADMIN",
    "PROG_LOAD": "CAP_BPF and CAP_NET_ADMIN (xdp, sched_cls) or CAP_PERFMON (kprobe, tracepoint)",
    "OBJ_PIN": "write permission to that folder of bpffs, or CAP_DAC_OVERRIDE",
}


def kernel_failure(command: str, error: OSError) -> ServiceError:
    """The error for an errno that has no meaning of its own in `command` (a name of enum bpf_cmd, without BPF_)."""
    name = errno_name(error.errno or 0)
    if error.errno in {errno.EPERM, errno.EACCES}:
        capability = _CAPABILITIES.get(command, "CAP_BPF, or a file descriptor that was opened for writing")
        return KernelPermission(command, name, capability)
    return KeeperGone(command, name) if error.errno == errno.EPIPE else KernelError(command, name)
