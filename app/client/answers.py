"""What the service answers, as it is in the JSON.

These are plain dicts with types for the type checker: nothing is converted, and members that a later version of the
service adds are kept. Times are text, as in "2026-11-22T15:04:05Z". The descriptions of the members are in the
OpenAPI document, which a test holds against this file.
"""

from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

Fit = Literal["tried", "type-only"]
State = Literal["applied", "unconfirmed", "confirmed", "reverted", "expired"]
Kind = Literal["set", "clear", "replace", "update", "revert", "expire", "reconcile", "restore", "adopt"]


class EntryProgram(TypedDict):
    """The program that an entry points to."""

    name: str | None
    id: int
    type: str | None
    tag: str | None
    kernel_name: str | None
    loaded_at: str | None


class Waiting(TypedDict):
    """A change that is undone unless it is confirmed in time."""

    change: int
    confirm_by: str


class WaitingEntries(Waiting):
    """A change of a map that is undone unless it is confirmed in time, and its entries."""

    entries: list[int]


class ChangedProgram(TypedDict):
    """A program as it was when it was recorded."""

    name: str | None
    id: int | None
    tag: str | None
    pinned: str | None


class ChangedEntry(TypedDict):
    """One entry of a change. null: the entry is empty."""

    index: int
    before: ChangedProgram | None
    after: ChangedProgram | None


class Entry(TypedDict):
    """An entry that points to a program. `warnings`: after a dry run, and if asked for."""

    map: str
    index: int
    etag: str
    program: EntryProgram
    waiting: Waiting | None
    fit: NotRequired[Fit]
    entries: NotRequired[list[ChangedEntry]]
    warnings: NotRequired[list[str]]


class Entries(TypedDict):
    """The entries of a map that point to a program, by rising index."""

    map: str
    max_entries: int
    etag: str
    entries: list[Entry]
    next: int | None


class Change(TypedDict):
    """A change of entries, as the journal has it."""

    id: int
    at: str
    actor: str
    request_id: str
    note: str | None
    map: str
    kind: Kind
    entries: list[ChangedEntry]
    entry_count: int
    confirm_by: str | None
    confirmed_by: str | None
    confirmed_at: str | None
    state: State
    reverts: int | None


class Changes(TypedDict):
    """A page of changes. `next`: `after` of the next page, or `before` with the order `desc`."""

    changes: list[Change]
    next: int | None


class Applied(TypedDict):
    """What a change of entries did, in numbers of entries.

    A dry run has `fit` and `entries`. `warnings` are there after a dry run, and if asked for.
    """

    change: Change | None
    set: int
    cleared: int
    unchanged: int
    fit: NotRequired[Fit]
    entries: NotRequired[list[ChangedEntry]]
    warnings: NotRequired[list[str]]


class EntriesOfMap(TypedDict):
    """What would be changed in one map."""

    map: str
    entries: list[ChangedEntry]


class LoadedObjectFile(TypedDict):
    """An object file that was loaded, and the changes of entries that this made. A dry run has `fit` and `entries`."""

    object: dict[str, Any]
    changes: list[Change]
    fit: NotRequired[Fit]
    entries: NotRequired[list[EntriesOfMap]]


class Owner(TypedDict):
    """What the first program in an array has fixed."""

    program_type: str
    attach_type: str | None
    jited: bool | None


class Caller(TypedDict):
    """A loaded program that jumps through an array with constant indexes."""

    name: str | None
    id: int
    kernel_name: str
    indexes: list[int]


class Drift(TypedDict):
    """An entry in which the kernel and the journal differ. null: the entry is empty."""

    index: int
    journal: ChangedProgram | None
    kernel: ChangedProgram | None


class HeldMap(TypedDict):
    """A held map. While it is unavailable, what only the kernel knows is null."""

    name: str
    id: int | None
    kernel_name: str | None
    type: Literal["prog_array"]
    max_entries: int | None
    used: int | None
    flags: int | None
    memlock: int | None
    frozen: bool | None
    owner: Owner | None
    callers: list[Caller] | None
    pins: list[str]
    created_here: bool
    protected: list[str]
    state: Literal["held", "unavailable"]
    reason: str | None
    drift: list[Drift]
    waiting: list[WaitingEntries]
    warnings: list[str]


class Use(TypedDict):
    """An entry that points to a program."""

    map: str
    index: int


class Program(TypedDict):
    """A held program. While it is unavailable, what only the kernel knows is null."""

    name: str
    id: int | None
    type: str | None
    tag: str | None
    kernel_name: str | None
    loaded_at: str | None
    uid: int | None
    map_ids: list[int]
    gpl: bool | None
    run_count: int | None
    run_time_ns: int | None
    state: Literal["held", "unavailable"]
    reason: str | None
    used_by: list[Use]
    use_count: int
    pins: list[str]
    warnings: list[str]


class Run(TypedDict):
    """What a test run of a program gave."""

    returned: int
    meaning: str | None
    duration_ns: int
    packet: str


NotReached = Literal["no-caller", "no-jump", "not-reached"]


class GraphProgram(TypedDict):
    """A loaded program. `name`: None where the service does not hold it."""

    id: int
    name: str | None
    kernel_name: str
    type: str
    attach_type: str | None
    code: Literal["read", "hidden"]
    reached: Literal["attached", "unattached", "never"]


class GraphEntry(TypedDict):
    """An entry that points to a program, by the program's id."""

    index: int
    program: int


class GraphArray(TypedDict):
    """A program array. `name`: None where the service does not hold it."""

    id: int
    name: str | None
    kernel_name: str
    max_entries: int
    owner: Owner | None
    used: int | None
    entries: list[GraphEntry] | None


class GraphEdge(TypedDict):
    """A jump in the code of a program. `program` and `array` are ids. `indexes`: None for any."""

    program: int
    array: int
    indexes: list[int] | None
    certain: bool


class GraphAttachment(TypedDict):
    """A place where the kernel runs a program, by the program's id."""

    program: int
    kind: str
    where: str | None
    attach_type: str | None
    namespace: str | None
    link: int | None


class UnreachedProgram(TypedDict):
    """A program in an array to which nothing leads, by its id."""

    program: int
    reason: NotReached


class UnreachedEntries(TypedDict):
    """Entries with a program to which nothing leads. `array`: its id. `indexes`: the first of them."""

    array: int
    count: int
    indexes: list[int]
    reason: NotReached


class Unreached(TypedDict):
    """What is in an array, and is never reached."""

    programs: list[UnreachedProgram]
    entries: list[UnreachedEntries]


class EmptyJump(TypedDict):
    """A jump to an entry without a program. `program` and `array` are ids."""

    program: int
    array: int
    index: int
    reason: Literal["empty", "out-of-range"]
    certain: bool


class Cycle(TypedDict):
    """Programs that lead to each other, by their ids."""

    programs: list[int]
    certain: bool


class Chain(TypedDict):
    """The longest way from one program to another that leads to no cycle, by the ids of the programs."""

    programs: list[int]
    jumps: int
    limit: int
    exceeds_limit: bool


class Graph(TypedDict):
    """Which programs jump where. `longest_chain`: None where no program jumps to another."""

    programs: list[GraphProgram]
    arrays: list[GraphArray]
    edges: list[GraphEdge]
    attachments: list[GraphAttachment]
    unreached: Unreached
    empty_jumps: list[EmptyJump]
    cycles: list[Cycle]
    longest_chain: Chain | None
    unseen: list[str]


class Ability(TypedDict):
    """Something that kernels differ in. `can`: None where it is not known."""

    name: str
    can: bool | None
    detail: str


class Version(TypedDict):
    """What is running."""

    name: str
    version: str
    kernel: str
    kernel_release: str
    implementation: str
    abilities: list[Ability]
    keeper: Literal["running", "failing"] | None
    uptime_seconds: int


class CallerRights(TypedDict):
    """Who asks, and what the caller may do. None: no restriction, or, as the role, no right."""

    actor: str
    role: Literal["reader", "writer", "admin", "metrics"] | None
    maps: list[str] | None
    entries: list[str] | None
    programs: list[str] | None


class ServiceIndex(TypedDict):
    """Where to go on, and who asks. `caller`: None where it is not known."""

    name: str
    version: str
    links: dict[str, str]
    read_only: bool
    caller: CallerRights | None


class ProgramReference(TypedDict, total=False):
    """A program by its held `name`, its `id`, or the path at which it is `pinned`: one of them."""

    name: str
    id: int
    pinned: str


class Written(NamedTuple):
    """What became of a change of one entry.

    Attributes:
        change: The id of the change; None: nothing had to be written, or it was a dry run.
        entry: The entry as it is now; None: it is empty.
    """

    change: int | None
    entry: Entry | None


class Readiness(NamedTuple):
    """Whether everything that is held could be opened.

    Attributes:
        ready: Whether it could.
        reasons: Why not. Callers who may not read everything get no reasons.
    """

    ready: bool
    reasons: list[str]


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        id: Its place in the sequence of events. `watch_events(after=id)` goes on after it.
        type: change, confirmed, expired, drift, map or program; later versions may have more.
        data: A `Change` for the first three.
    """

    id: int
    type: str
    data: dict[str, Any]
