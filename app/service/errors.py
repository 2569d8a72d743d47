"""All errors of the service, as one tree. Each error has a stable code, one sentence, and its facts as attributes.

ServiceError
├── MapUnknown, ProgramUnknown              no object is held under the name
├── EntryEmpty, IndexOutOfRange             reading or clearing an entry
├── NotAProgramArray                        the object cannot be used as a program array
│   ├── NotAMap, MapGone                    it is not a map, or it does not exist
│   └── WrongMapType, WrongKeySize, WrongValueSize
├── NotAProgram, ProgramNotFound            the object is not a program, or it does not exist
├── ProgramIncompatible, ProgramBusy        the array refuses the program
├── ProgramNotRunnable, PacketRefused       test runs
├── ArrayTooLarge                           creating an array
├── UnsupportedFlags, MapFrozen             writing an entry
├── PinUnusable, PinNotAllowed              paths in bpffs
├── LastReference, NameTaken                holding and releasing
├── PinMoved                                the pin of what is held leads to another object now
├── DuplicateIndex, WriteRefused            changing several entries
├── ChangeUnknown, ChangeConflict, ChangeNotRevertible, NotRestorable      looking up and undoing changes
├── EntryWaits, AlreadyConfirmed, AlreadyUndone, InUse                     confirmations
├── Forbidden, EntryProtected               rights
├── EventsExpired                           resuming a stream of events
├── JournalUnavailable, JournalUnreadable   the journal cannot be written or read
├── PartOfObject                            what belongs to an object file; more of these: `loading/errors.py`
├── Stopping                                the service is shutting down
├── MapUnavailable, ProgramUnavailable      the object is held, but it could not be opened
└── KernelPermission, KernelError           any other errno
"""

import errno
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, cast

from app.bpf.uapi import errno_name


@dataclass(eq=False)
class ServiceError(Exception):
    """The root of all errors of the service.

    Attributes:
        code: The code of the problem that a caller sees.
        sentence: The template of `str(error)`: one sentence in which the facts are filled in.
    """

    code: ClassVar[str] = "internal"
    sentence: ClassVar[str] = "something went wrong"
    # Of a table: the index of the entry that it is about, and the program as the request names it there.
    entry = cast("dict[str, Any] | None", None)

    def __str__(self) -> str:
        return self.sentence.format(**self.facts())

    def facts(self) -> dict[str, Any]:
        """Return the attributes by name, as values that JSON can carry."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(eq=False)
class MapUnknown(ServiceError):
    """No map is held under the name."""

    code = "map-unknown"
    sentence = "no map is held under the name {map!r}; give the name of a held one, or hold it first: PUT /maps/{map}"
    map: str


@dataclass(eq=False)
class ProgramUnknown(ServiceError):
    """No program is held under the name in the path of the request."""

    code = "program-unknown"
    sentence = (
        "no program is held under the name {program!r}; give the name of a held one, or hold it first: "
        "PUT /programs/{program}"
    )
    program: str


@dataclass(eq=False)
class EntryEmpty(ServiceError):
    """The entry points to no program."""

    code = "entry-empty"
    sentence = "entry {index} is empty; PUT a program there first, or send ?allow_missing=true with a DELETE"
    index: int


@dataclass(eq=False)
class IndexOutOfRange(ServiceError):
    """The index in the path of the request is not below the array's max_entries."""

    code = "index-out-of-range"
    sentence = "index {index} is out of range; the array has {max_entries} entries, and the first index is 0"
    index: int
    max_entries: int


@dataclass(eq=False)
class BodyIndexOutOfRange(IndexOutOfRange):
    """The index in the body of the request is not below the array's max_entries."""


@dataclass(eq=False)
class NotAProgramArray(ServiceError):
    """The object cannot be used as a program array."""

    code = "not-a-program-array"


@dataclass(eq=False)
class NotAMap(NotAProgramArray):
    """The object is not a map. `kind`: what the kernel calls it, such as `prog` or `link`."""

    sentence = "the object is not a map, it is a {kind}; give the pin of a map of type prog_array"
    kind: str


@dataclass(eq=False)
class MapGone(NotAProgramArray):
    """No map has the id."""

    sentence = "no map has the id {id}; give the id of a loaded map, or its pin"
    id: int


@dataclass(eq=False)
class WrongMapType(NotAProgramArray):
    """The map is not a program array."""

    sentence = "the map is of type {map_type}; give one of type prog_array"
    map_type: str


@dataclass(eq=False)
class WrongKeySize(NotAProgramArray):
    """The keys of the map are not u32. `key_size`: bytes."""

    sentence = "the map's keys have {key_size} bytes; give a program array, whose keys have 4"
    key_size: int


@dataclass(eq=False)
class WrongValueSize(NotAProgramArray):
    """The values of the map are not u32. `value_size`: bytes."""

    sentence = "the map's values have {value_size} bytes; give a program array, whose values have 4"
    value_size: int


@dataclass(eq=False)
class NotAProgram(ServiceError):
    """The object is not a program. `kind`: what the kernel calls it, such as `map` or `link`."""

    code = "not-a-program"
    sentence = "the object is not a program, it is a {kind}; give the pin of a program"
    kind: str


@dataclass(eq=False)
class ProgramNotFound(ServiceError):
    """The body of the request refers to a program that does not exist. `program`: its name or id."""

    code = "program-not-found"
    sentence = "there is no program {program!r}; give the name of a held program, the id of a loaded program, or a pin"
    program: str | int


@dataclass(eq=False)
class ProgramIncompatible(ServiceError):
    """The array refuses the program.

    Attributes:
        reason: How the program differs from those that the array takes.
        remedy: What the caller can do.
        owner_program_type: The type that the array takes; None if the kernel does not report it.
        program_type: The type of the program.
        owner_attach_type: The expected attach type that the array takes; None if the kernel does not report it.
        attach_type: The expected attach type of the program; None if the kernel does not report it.
        program_id: The kernel's id of the program.
    """

    code = "program-incompatible"
    sentence = "the program does not fit the array: {reason}; {remedy}"
    reason: str
    remedy: str
    owner_program_type: str | None
    program_type: str
    owner_attach_type: str | None
    attach_type: str | None
    program_id: int


@dataclass(eq=False)
class ProgramBusy(ServiceError):
    """A freplace program extends the program, so the kernel does not put it into an array."""

    code = "program-busy"
    sentence = (
        "a freplace program extends program {program_id}, so it cannot be tail-called; "
        "detach the freplace program first"
    )
    program_id: int


@dataclass(eq=False)
class ProgramNotRunnable(ServiceError):
    """The kernel does not test-run this type of program on a packet (BPF_PROG_TEST_RUN)."""

    code = "program-not-runnable"
    sentence = (
        "the kernel cannot run a program of type {program_type} on a packet; run one of a type that takes one, such as "
        "xdp, sched_cls or socket_filter"
    )
    program_type: str


@dataclass(eq=False)
class PacketRefused(ServiceError):
    """The kernel refuses to run the program on a packet of this size. `packet_bytes`: the size in bytes."""

    code = "validation"
    sentence = (
        "the kernel refuses to run a program of type {program_type} on a packet of {packet_bytes} bytes; "
        "send a packet of another size"
    )
    program_type: str
    packet_bytes: int


@dataclass(eq=False)
class ArrayTooLarge(ServiceError):
    """The kernel has no memory for an array of this size."""

    code = "validation"
    sentence = "the kernel has no memory for an array of {max_entries} entries; ask for fewer"
    max_entries: int


@dataclass(eq=False)
class UnsupportedFlags(ServiceError):
    """The kernel takes only the flags 0 (BPF_ANY) for a program array."""

    code = "unsupported-flags"
    sentence = (
        "the kernel does not support flags {flags} here; send 0, and If-None-Match: * to write only an empty entry"
    )
    flags: int


@dataclass(eq=False)
class MapFrozen(ServiceError):
    """User space can no longer change the array (BPF_MAP_FREEZE)."""

    code = "map-frozen"
    sentence = "the array is frozen, so user space can never change it again; create a new array"


@dataclass(eq=False)
class PinUnusable(ServiceError):
    """The kernel refuses to open or make a pin at the path. `errno`: its name, such as `ENOENT`."""

    code = "pin-unusable"
    sentence = "cannot open the pin {pinned!r}: {errno}; {remedy}"
    pinned: str
    errno: str
    remedy: str


@dataclass(eq=False)
class PinNotAllowed(ServiceError):
    """The path is outside of the folders that requests may use."""

    code = "pin-not-allowed"
    sentence = (
        "the path {pinned!r} is outside of the folders that requests may use; choose a path below one of pin_dirs"
    )
    pinned: str
    pin_dirs: tuple[str, ...]


@dataclass(eq=False)
class LastReference(ServiceError):
    """Releasing the map would empty the array for good. `id`: the kernel's id of the map."""

    code = "last-reference"
    sentence = (
        "map {map!r} has no pin that the service knows, so the kernel may empty it for good when it is released; "
        "pin it first (bpftool map pin id {id} PATH), or send ?force=true"
    )
    map: str
    id: int


@dataclass(eq=False)
class SupersededArrayFilled(LastReference):
    """The pin leads to another array now, and holding that one would empty the array held so far for good."""

    sentence = (
        "the pin of map {map!r} leads to another array now, but the array that is held so far (id {id}) has entries, "
        "which the kernel clears if nobody else holds it; send ?force=true to hold the new one: what the entries are "
        "to hold stays recorded, and POST /maps/{map}/reconcile to the journal writes it into the new one; to keep the "
        "old one, pin it elsewhere first (bpftool map pin id {id} PATH)"
    )


@dataclass(eq=False)
class PinMoved(ServiceError):
    """The pin of a held map or program leads to another object now, so a change would use the superseded one.

    Attributes:
        kind: `map` or `program`.
        name: The name under which it is held.
        pinned: The pin.
        id: The id of the object that is held.
        leads_to: The id of the object that the pin leads to; None: it is of another kind.
    """

    code = "pin-moved"
    sentence = (
        "the pin {pinned!r} of {kind} {name!r} leads to another object now, while id {id} is held; PUT /{kind}s/{name} "
        "with the same pin opens the new one, or send ?force=true to use the one that is held"
    )
    kind: str
    name: str
    pinned: str
    id: int
    leads_to: int | None


@dataclass(eq=False)
class NameTaken(ServiceError):
    """The name or the object is already held. `name`: the name in the request."""

    code = "name-taken"
    sentence = "{name!r} cannot be held: {reason}"
    name: str
    reason: str


@dataclass(eq=False)
class DuplicateIndex(ServiceError):
    """A table lists an index twice."""

    code = "duplicate-index"
    sentence = "index {index} is listed more than once; list each index once"
    index: int


@dataclass(eq=False)
class ChangeUnknown(ServiceError):
    """No change has the id, or it was pruned, or the caller may not see it."""

    code = "change-unknown"
    sentence = (
        "there is no change {id}, or it was pruned because of its age; send the id of a change that GET /changes has"
    )
    id: int


@dataclass(eq=False)
class ChangeConflict(ServiceError):
    """Entries were written since, so the change cannot be undone.

    Attributes:
        id: The id of the change.
        entries: The entries that no longer hold what it put there, and what they hold now.
        change: The id of the last change that has written one of its entries since. None: another tool has.
    """

    code = "change-conflict"
    sentence = (
        "change {id} cannot be undone because its entries were changed since; revert the later changes first, or set "
        "the entries yourself (the member entries shows what they hold)"
    )
    id: int
    entries: list[dict[str, Any]]
    change: int | None

    def __str__(self) -> str:
        if self.entries or self.change is None:
            return super().__str__()
        return (
            f"change {self.id} cannot be undone because change {self.change} has written one of its entries since; "
            "revert that change first, or send ?force=true"
        )


@dataclass(eq=False)
class ChangeNotRevertible(ServiceError):
    """The change can never be undone."""

    code = "change-not-revertible"
    sentence = "change {id} cannot be undone: {reason}"
    id: int
    reason: str


@dataclass(eq=False)
class NotRestorable(ServiceError):
    """The previous programs cannot be put back, or cannot be kept for a later undo.

    Attributes:
        map: The name of the map.
        reason: Why not.
        entries: The index and the reason of each entry concerned.
    """

    code = "change-not-revertible"
    sentence = "the entries of map {map!r} cannot be put back: {reason}"
    map: str
    reason: str
    entries: list[dict[str, Any]]


@dataclass(eq=False)
class EntryWaits(ServiceError):
    """Another change of the entry waits for confirmation. `change`: its id."""

    code = "change-conflict"
    sentence = "change {change} of entry {index} waits for confirmation; confirm or revert that change first"
    index: int
    change: int


@dataclass(eq=False)
class Forbidden(ServiceError):
    """The caller has no right to change the entry, or to put this program there."""

    code = "forbidden"
    sentence = "{actor} may not change entry {index}: {reason}"
    actor: str
    index: int
    reason: str


@dataclass(eq=False)
class EntryProtected(ServiceError):
    """Only an admin may change the entry."""

    code = "entry-protected"
    sentence = (
        "entry {index} is protected by the configuration; send the request with the role admin, or take the index out "
        "of protected in the configuration"
    )
    index: int


@dataclass(eq=False)
class AlreadyConfirmed(ServiceError):
    """The change does not wait for confirmation. `state`: its state."""

    code = "already-confirmed"
    sentence = (
        "change {id} does not wait for confirmation: its state is {state}; there is nothing to confirm, and it stays "
        "in effect"
    )
    id: int
    state: str


@dataclass(eq=False)
class AlreadyUndone(ServiceError):
    """The confirmation came too late. `state`: what became of the change."""

    code = "change-conflict"
    sentence = "change {id} is {state} and can no longer be confirmed; make the change again"
    id: int
    state: str


@dataclass(eq=False)
class InUse(ServiceError):
    """A change that waits for confirmation needs the object for its undo. `change`: the id of that change."""

    code = "in-use"
    sentence = (
        "{name!r} is needed to undo change {change}, which waits for confirmation; confirm or revert that change first"
    )
    name: str
    change: int


@dataclass(eq=False)
class EventsExpired(ServiceError):
    """The journal does not have all events that follow an event.

    Attributes:
        after: The id of that event.
        first: The id of the first event that the journal has.
    """

    code = "events-expired"
    sentence = (
        "the stream cannot resume after event {after}, because the journal does not have all events since then "
        "(its first is {first}); read the tables again, then follow the events without Last-Event-ID"
    )
    after: int
    first: int


@dataclass(eq=False)
class JournalUnavailable(ServiceError):
    """The change could not be journalled, so it was undone.

    Attributes:
        reason: Why the journal could not be written.
        put_back: Whether all entries hold what they held before the change.
        left: The indexes of the entries that could not be put back.
    """

    code = "journal-unavailable"
    sentence = "the change could not be journalled, and {outcome}: {reason}; mend that, and send the request again"
    reason: str
    put_back: bool
    left: list[int]

    def __str__(self) -> str:
        return self.sentence.format(outcome=_undo_outcome(put_back=self.put_back), reason=self.reason)


@dataclass(eq=False)
class JournalUnreadable(ServiceError):
    """The journal cannot be read."""

    code = "journal-unavailable"
    sentence = "{reason}; mend that, and send the request again"
    reason: str


@dataclass(eq=False)
class PartOfObject(ServiceError):
    """The map or program belongs to an object file, and is held and released with it."""

    code = "in-use"
    sentence = "{name!r} belongs to object file {object!r}; change or release that one: /objects/{object}"
    name: str
    object: str


@dataclass(eq=False)
class Stopping(ServiceError):
    """The service stops before the change is complete."""

    code = "draining"
    sentence = "the service is stopping; send the request again when it is back"


@dataclass(eq=False)
class WriteRefused(ServiceError):
    """The kernel refused one of several writes, so the earlier writes were undone. The code is that of `cause`.

    Attributes:
        cause: Why the kernel refused the write.
        index: The entry that was refused.
        put_back: Whether all entries hold what they held before the change.
        left: The indexes of the entries that could not be put back.
    """

    sentence = "entry {index} could not be written, and {outcome}: {cause}"
    cause: ServiceError
    index: int
    put_back: bool
    left: list[int]

    def __str__(self) -> str:
        outcome = _undo_outcome(put_back=self.put_back)
        return self.sentence.format(index=self.index, outcome=outcome, cause=self.cause)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the cause and its own."""
        return self.cause.facts() | {
            "index": self.index,
            "cause": str(self.cause),
            "put_back": self.put_back,
            "left": self.left,
        }


@dataclass(eq=False)
class MapUnavailable(ServiceError):
    """The map is held, by the configuration or by an earlier request, but it could not be opened yet."""

    code = "map-unavailable"
    sentence = "map {map!r} is unavailable: {reason}; the service tries again every few seconds"
    map: str
    reason: str


@dataclass(eq=False)
class ProgramUnavailable(ServiceError):
    """The program is held, by the configuration or by an earlier request, but it could not be opened yet."""

    code = "program-unavailable"
    sentence = "program {program!r} is unavailable: {reason}; the service tries again every few seconds"
    program: str
    reason: str


@dataclass(eq=False)
class KernelPermission(ServiceError):
    """The service lacks a permission for a command of bpf(2).

    Attributes:
        command: The name of the command, without BPF_.
        errno: The name of the errno, such as `EPERM`.
        capability: The capability or permission that is missing.
    """

    code = "kernel-permission"
    sentence = "the kernel refuses {command} ({errno}): the service lacks {capability}; give it that, and restart it"
    command: str
    errno: str
    capability: str


@dataclass(eq=False)
class KernelError(ServiceError):
    """The kernel refuses a command of bpf(2) with an errno that no other error stands for."""

    code = "kernel-error"
    sentence = (
        "the kernel refuses {command}: {errno}; send the request again, and if that does not help, look for the cause "
        "in the kernel's log (dmesg)"
    )
    command: str
    errno: str


class KeeperGone(KernelError):
    """The keeper has ended: the privileged process that opens and creates kernel objects for the service."""

    code = "keeper-unavailable"
    sentence = "the keeper, which opens and creates kernel objects for the service, has ended; restart the service"


class KeeperSilent(KeeperGone):
    """The keeper does not answer in time."""

    sentence = (
        "the keeper, which opens and creates kernel objects for the service, does not answer; "
        "it is asked again when it has answered"
    )


# What each command of bpf(2) needs. Kernel: kernel/bpf/syscall.c, Linux 6.18.
_CAPABILITIES: Final = {
    "MAP_CREATE": "CAP_BPF",
    "MAP_GET_FD_BY_ID": "CAP_SYS_ADMIN",
    "PROG_GET_FD_BY_ID": "CAP_SYS_ADMIN",
    "PROG_LOAD": "CAP_BPF and CAP_NET_ADMIN (xdp, sched_cls) or CAP_PERFMON (kprobe, tracepoint)",
    "OBJ_PIN": "write permission to that folder of bpffs, or CAP_DAC_OVERRIDE",
}
_MEMLOCK: Final = (
    "room under RLIMIT_MEMLOCK, against which Linux before 5.11 counts maps (LimitMEMLOCK=infinity, "
    "ulimit -l unlimited)"
)


def kernel_failure(command: str, error: OSError) -> ServiceError:
    """Return the error for an errno that has no special meaning in a command.

    Args:
        command: A name of the kernel's enum bpf_cmd, without BPF_.
        error: What the command failed with.
    """
    name = errno_name(error.errno or 0)
    if error.errno == errno.EDQUOT:  # what the port makes of an EPERM for this reason
        return KernelPermission(command, "EPERM", _MEMLOCK)
    if error.errno in {errno.EPERM, errno.EACCES}:
        capability = _CAPABILITIES.get(command, "CAP_BPF, or a file descriptor that was opened for writing")
        return KernelPermission(command, name, capability)
    if error.errno == errno.ETIMEDOUT:
        return KeeperSilent(command, name)
    return KeeperGone(command, name) if error.errno == errno.EPIPE else KernelError(command, name)


def _undo_outcome(*, put_back: bool) -> str:
    return (
        "all entries were put back"
        if put_back
        else "not all entries could be put back (the member left lists the rest)"
    )
