"""The bodies of responses."""

import functools
import operator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.api.schemas.fields import NAME_SCHEMA
from app.bpf.uapi import MAX_INDEX
from app.service.objects.program import ProgramSummary
from app.store.records import ChangeKind, ChangeState

FIT: Final = (
    "How it was checked whether the programs fit the array. `tried`: the kernel accepted them in a scratch array. "
    "`type-only`: only the types were compared, so the kernel may still refuse the real write."
)
WOULD_CHANGE: Final = "The entries that would be changed, in this order."
_WORSENED: Final = (
    "What the change makes worse, or in a dry run would, for the jumps between programs, by the graph of GET /graph: "
    "entries that are not reached, jumps to entries that are empty, cycles, and chains beyond the kernel's limit."
)
_BPF_STATS: Final = "The kernel counts it only while kernel.bpf_stats_enabled is 1."
REASON: Final = "Why it is unavailable; null: it is held."


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def optional_list(description: str, *, if_empty: bool = True) -> Any:
    """Return a field for a list that the schema does not require, without a default for clients to fill in.

    Some generated clients read the members of each alternative from every answer.

    Args:
        description: Of the field.
        if_empty: Whether an empty list is told.
    """
    exclude_if = None if if_empty else operator.not_
    return Field(default=[], exclude_if=exclude_if, json_schema_extra=_without_default, description=description)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers by name, and JSON without its newline: what both ways of a request send."""

    status: int
    headers: dict[str, str]
    body: bytes


class _BuiltLater(BaseModel):
    """The base of models that the fast path does not need: a start does not wait until they are built."""

    model_config = ConfigDict(defer_build=True)


class EntryProgram(BaseModel):
    """The program that an entry points to. Without CAP_SYS_ADMIN the kernel gives only its id; the rest may be null."""

    name: Annotated[str, NAME_SCHEMA] | None = Field(
        description="The name under which the service holds the program; null: it does not hold it."
    )
    id: int = Field(ge=0, le=MAX_INDEX, strict=True, examples=[812])
    type: str | None = Field(examples=["xdp"])
    tag: str | None = Field(examples=["46728abc63e3a679"])
    kernel_name: str | None = Field(examples=["xdp_drop"])
    loaded_at: datetime | None

    # Clients may send it back in a request, where no other members are allowed.
    model_config = ConfigDict(frozen=True, json_schema_extra={"additionalProperties": False})

    @staticmethod
    @functools.lru_cache(maxsize=4096)  # one object for all entries that point to the same program
    def of(summary: ProgramSummary) -> "EntryProgram":
        """Return the model for a program that an entry points to."""
        return EntryProgram(
            name=summary.name,
            id=summary.id,
            type=summary.type,
            tag=summary.tag,
            kernel_name=summary.kernel_name,
            loaded_at=summary.loaded_at,
        )


class Waiting(BaseModel):
    """A change that is undone unless it is confirmed in time."""

    change: int = Field(description="The id of the change.", examples=[17])
    confirm_by: datetime = Field(description="When the change is undone unless it is confirmed before.")


class WaitingEntries(Waiting):
    """A change of this map that is undone unless it is confirmed in time."""

    model_config = ConfigDict(defer_build=True)

    entries: list[int] = Field(description="The indexes of the entries that it has changed, rising.", examples=[[3]])


class Entry(BaseModel):
    """An entry that points to a program."""

    map: str = Field(examples=["jump_table"])
    index: int = Field(examples=[3])
    etag: str = Field(examples=['"0f1e2d3c4b5a6978"'])
    program: EntryProgram
    waiting: Waiting | None = Field(
        description="The change of this entry that waits for its confirmation; null: the program stays."
    )
    warnings: list[str] = optional_list(
        f"{_WORSENED} A GET tells what is so because the entry is not empty. Only with `warnings=true`.", if_empty=False
    )


class Entries(_BuiltLater):
    """The entries of a map that point to a program, by rising index."""

    map: str = Field(examples=["jump_table"])
    max_entries: int = Field(examples=[16])
    etag: str = Field(
        description="The entity tag of the whole table, even on a page of it.", examples=['"0f1e2d3c4b5a6978"']
    )
    entries: list[Entry]
    next: int | None = Field(description="The `start` of the next page; null: this is the last one.")


class ChangedProgram(_BuiltLater):
    """A program as it was when it was recorded. Its `id` is valid only until the machine reboots."""

    name: str | None
    id: int | None = Field(
        description="The kernel's id; null: the program is of an earlier boot and was not found again.",
        examples=[812],
    )
    tag: str | None
    pinned: str | None

    @field_validator("id")
    @classmethod
    def _null_for_zero(cls, id_: int | None) -> int | None:
        return id_ or None


class ChangedEntry(_BuiltLater):
    """One entry of a change: its programs before and after. null: the entry is empty."""

    index: int = Field(examples=[3])
    before: ChangedProgram | None
    after: ChangedProgram | None


class DryEntry(Entry):
    """The entry as it would be after the change, from a dry run."""

    model_config = ConfigDict(defer_build=True)

    warnings: list[str] = Field(description=_WORSENED)
    fit: Literal["tried", "type-only"] = Field(description=FIT)
    entries: list[ChangedEntry] = optional_list(WOULD_CHANGE)


class _ChangeMade(_BuiltLater):
    # What was done, by whom.

    id: int = Field(examples=[17])
    at: datetime
    actor: str = Field(
        description="Who made the change. `unix:USER` or `unix:USER (RULE)`: a local user on the unix socket, and the "
        "rule of the configuration that gives the rights. `token:NAME`: the holder of a token. `certificate:NAME`: the "
        "holder of a client certificate. `unix` or `tcp:ADDRESS`: a caller of a service without authentication. "
        "`jumptable`: the service itself.",
        examples=["unix"],
    )
    request_id: str
    note: str | None
    map: str = Field(examples=["jump_table"])
    kind: ChangeKind = Field(
        description="What was done. `expire`: a change was undone because nobody confirmed it in time. `reconcile` and "
        "`restore`: the entries were put back to what the journal says, at the request of a caller or when the service "
        "started. `adopt`: what the kernel held was recorded, and nothing was written."
    )


class _ChangedEntries(_BuiltLater):
    entries: list[ChangedEntry]


class _AppliedEntries(_BuiltLater):
    entries: list[ChangedEntry] = optional_list("Left out for those who prefer `return=minimal`.", if_empty=False)


class _ChangeState(_BuiltLater):
    # How large it is, and what became of it.
    entry_count: int = Field(description="How many entries it has, as far as the caller may see them.", examples=[1])
    confirm_by: datetime | None = Field(
        description="When the change is undone unless it is confirmed before; null: it needs no confirmation."
    )
    confirmed_by: str | None = Field(description="Who confirmed it, named as `actor` is; null: nobody.")
    confirmed_at: datetime | None = Field(description="When it was confirmed; null: it was not.")
    state: ChangeState
    reverts: int | None = Field(description="The id of the change that this one undoes.")


class Change(_ChangeState, _ChangedEntries, _ChangeMade):  # the fields come in the order from the last to the first
    """A change of entries, as the journal records it."""


class AppliedChange(_ChangeState, _AppliedEntries, _ChangeMade):
    """A change of entries that was just made, as the journal records it."""


class Changes(_BuiltLater):
    """Changes, by rising id; with `order=desc` by falling id."""

    changes: list[Change]
    next: int | None = Field(
        description="The value of `after` for the next page, or of `before` with `order=desc`; null: this is the last "
        "one."
    )


class Applied(_BuiltLater):
    """The result of a change of entries. `set`, `cleared` and `unchanged` are numbers of entries."""

    change: AppliedChange | None = Field(
        description="The change; null: nothing had to be written, or this was a dry run."
    )
    set: int
    cleared: int
    unchanged: int
    warnings: list[str] = optional_list(f"{_WORSENED} Only with `warnings=true`.", if_empty=False)


class DryApplied(Applied):
    """The result that a change of entries would have, from a dry run."""

    warnings: list[str] = Field(description=_WORSENED)
    fit: Literal["tried", "type-only"] = Field(description=FIT)
    entries: list[ChangedEntry] = optional_list(WOULD_CHANGE)


class Owner(_BuiltLater):
    """What the first program in the array has fixed. It stays so for as long as the array exists."""

    program_type: str = Field(examples=["xdp"])
    attach_type: str | None = Field(
        description="The expected attach type; `unset`: none; null: this kernel does not compare it, or does not tell.",
        examples=["xdp"],
    )
    jited: bool | None


class Caller(_BuiltLater):
    """A loaded program that jumps through the array with constant indexes, which the kernel patches in its code."""

    name: str | None = Field(description="The name under which the service holds the program; null: it does not.")
    id: int = Field(examples=[811])
    kernel_name: str = Field(examples=["entry"])
    indexes: list[int] = Field(description="The indexes, rising.", examples=[[3]])


class Drift(_BuiltLater):
    """An entry in which the kernel and the journal differ. null: the entry is empty."""

    index: int = Field(examples=[3])
    journal: ChangedProgram | None = Field(
        description="The program that the entry should point to, by the journalled changes."
    )
    kernel: ChangedProgram | None = Field(description="The program that the entry points to.")


class HeldMap(_BuiltLater):
    """A held map. While it is unavailable, fields that only the kernel knows are null."""

    name: str = Field(examples=["jump_table"])
    id: int | None = Field(examples=[41])
    kernel_name: str | None = Field(examples=["jump_table"])
    type: Literal["prog_array"] = "prog_array"
    max_entries: int | None = Field(examples=[16])
    used: int | None = Field(description="The number of entries that point to a program.", examples=[1])
    flags: int | None = Field(examples=[0])
    memlock: int | None = Field(description="The kernel memory of the map, in bytes.", examples=[440])
    frozen: bool | None
    owner: Owner | None = Field(
        description="What a program must match; null: the map never had a program, and none refers to it, so any fits."
    )
    callers: list[Caller] | None = Field(
        description="The loaded programs that jump to constant indexes of this map. To clear such an entry takes the "
        "kernel 8 ms and more for each. null: the kernel does not tell."
    )
    pins: list[str] = Field(description="The paths at which the service opened or pinned the map.")
    created_here: bool
    protected: list[str] = Field(
        description="The entries that only an admin may change: indexes, and ranges with both ends.",
        examples=[["0-3", "60"]],
    )
    state: Literal["held", "unavailable"]
    reason: str | None = Field(description=REASON)
    drift: list[Drift] = Field(description="The entries in which the kernel and the journal differ.")
    waiting: list[WaitingEntries] = Field(description="The changes that wait for their confirmation, by rising id.")
    warnings: list[str]


class Maps(_BuiltLater):
    """All held maps."""

    maps: list[HeldMap]


class Use(_BuiltLater):
    """An entry that points to the program."""

    map: str = Field(examples=["jump_table"])
    index: int = Field(examples=[3])


class Program(_BuiltLater):
    """A held program. While it is unavailable, fields that only the kernel knows are null."""

    name: str = Field(examples=["drop"])
    id: int | None = Field(examples=[812])
    type: str | None = Field(examples=["xdp"])
    tag: str | None = Field(examples=["46728abc63e3a679"])
    kernel_name: str | None = Field(examples=["xdp_drop"])
    loaded_at: datetime | None
    uid: int | None = Field(description="The id of the user who loaded the program.")
    map_ids: list[int]
    gpl: bool | None
    run_count: int | None = Field(description=f"How often the program has run. {_BPF_STATS}")
    run_time_ns: int | None = Field(description=f"How long it has run in all, in nanoseconds. {_BPF_STATS}")
    state: Literal["held", "unavailable"]
    reason: str | None = Field(description=REASON)
    used_by: list[Use] = Field(description="The entries that point to the program, or the first of them: see `uses`.")
    use_count: int = Field(description="How many entries point to the program.", examples=[1])
    pins: list[str] = Field(description="The path at which the service opened the program.")
    warnings: list[str]


class Programs(_BuiltLater):
    """All held programs."""

    programs: list[Program]


class Run(_BuiltLater):
    """The result of a test run."""

    returned: int = Field(description="The return value of the program, u32.", examples=[2])
    meaning: str | None = Field(
        description="The name of the return value; null: values of this type of program have none.",
        examples=["XDP_PASS"],
    )
    duration_ns: int = Field(description="The mean duration of one run, in nanoseconds.")
    packet: str = Field(description="The packet after the run, in hex.")


class GraphProgram(_BuiltLater):
    """A loaded program."""

    id: int = Field(examples=[812])
    name: str | None = Field(description="The name under which the service holds it; null: it does not hold it.")
    kernel_name: str = Field(examples=["parse_ip"])
    type: str = Field(examples=["xdp"])
    attach_type: str | None = Field(
        description="The expected attach type; `unset`: none; null: it could not be told.", examples=["xdp"]
    )
    code: Literal["read", "hidden"] = Field(
        description="Whether the kernel shows its code. Where it is `hidden`, or too long to be interpreted, the edges "
        "name every array that the program uses."
    )
    reached: Literal["attached", "unattached", "never"] = Field(
        description="`attached`: it is attached, or an attached program leads to it. `unattached`: it is in no array, "
        "or only such programs lead to it; something may run it that the kernel does not list, such as a socket. "
        "`never`: it is in an array, and nothing leads to it."
    )


class GraphEntry(_BuiltLater):
    """An entry that points to a program. `program`: its id."""

    index: int = Field(examples=[3])
    program: int = Field(examples=[812])


class GraphArray(_BuiltLater):
    """A program array."""

    id: int = Field(examples=[41])
    name: str | None = Field(description="The name under which the service holds it; null: it does not hold it.")
    kernel_name: str = Field(examples=["jump_table"])
    max_entries: int = Field(examples=[16])
    owner: Owner | None = Field(description="What a program must match; null: nothing yet, or it could not be told.")
    used: int | None = Field(
        description="The number of entries that point to a program; null: they could not be read.", examples=[1]
    )
    entries: list[GraphEntry] | None = Field(
        description="The entries that point to a program, by rising index, 1,024 at most; null: they could not be read."
    )


class GraphEdge(_BuiltLater):
    """A jump in the code of a program. `program` and `array` are ids."""

    program: int = Field(examples=[811])
    array: int = Field(examples=[41])
    indexes: list[int] | None = Field(
        description="Every index that the jump may take, rising; null: any, as with an index from a packet or a map.",
        examples=[[3]],
    )
    certain: bool = Field(
        description="true: each of the indexes has a place in the code that jumps there and nowhere else. false: the "
        "code chooses, maybe also from other arrays."
    )


class GraphAttachment(_BuiltLater):
    """A place where the kernel runs a program. `program`: its id."""

    program: int = Field(examples=[811])
    kind: str = Field(
        description="`xdp`, `tc`, `tcx`, `netkit`, `cgroup`, `perf_event` (with or without link), or a type of link.",
        examples=["xdp"],
    )
    where: str | None = Field(
        description="The interface and the direction or mode, the control group, or what is probed (`kprobe do_exit`); "
        "null: the kernel does not tell.",
        examples=["eth0 driver"],
    )
    attach_type: str | None = Field(examples=["tcx_ingress"])
    namespace: str | None = Field(
        description="The network namespace of the interface; null: that of the service's own, or none."
    )
    link: int | None = Field(description="The id of the link that attaches it; null: none does.")


_NOT_REACHED: Final = (
    "`no-caller`: no loaded program jumps through the array. `no-jump`: no loaded program jumps there. `not-reached`: "
    "only programs do that are never reached themselves."
)


class UnreachedProgram(_BuiltLater):
    """A program in an array to which nothing leads. `program`: its id."""

    program: int = Field(examples=[812])
    reason: Literal["no-caller", "no-jump", "not-reached"] = Field(description=_NOT_REACHED)


class UnreachedEntries(_BuiltLater):
    """Entries with a program to which nothing leads. `array`: its id."""

    array: int = Field(examples=[41])
    count: int = Field(description="How many there are.", examples=[1])
    indexes: list[int] = Field(description="The first 1,024 of them, rising.", examples=[[5]])
    reason: Literal["no-caller", "no-jump", "not-reached"] = Field(description=_NOT_REACHED)


class Unreached(_BuiltLater):
    """What is in an array, and is never reached."""

    programs: list[UnreachedProgram]
    entries: list[UnreachedEntries]


class EmptyJump(_BuiltLater):
    """A jump to an entry without a program: it falls through. `program` and `array` are ids."""

    program: int = Field(examples=[811])
    array: int = Field(examples=[41])
    index: int = Field(examples=[5])
    reason: Literal["empty", "out-of-range"]
    certain: bool = Field(description="As that of the edge.")


class Cycle(_BuiltLater):
    """Programs that lead to each other. `programs`: their ids."""

    programs: list[int] = Field(examples=[[811, 812]])
    certain: bool = Field(description="true: jumps that are certain suffice for it.")


class Chain(_BuiltLater):
    """The longest way from one program to another that leads to no cycle."""

    programs: list[int] = Field(description="The ids of the programs; each jumps to the next.", examples=[[811, 812]])
    jumps: int = Field(examples=[1])
    limit: int = Field(description="The most jumps that the kernel makes for one packet.", examples=[33])
    exceeds_limit: bool = Field(description="The jumps beyond the limit fall through.")


class Graph(_BuiltLater):
    """Who jumps where. Ids are the kernel's."""

    programs: list[GraphProgram]
    arrays: list[GraphArray]
    edges: list[GraphEdge]
    attachments: list[GraphAttachment]
    unreached: Unreached
    empty_jumps: list[EmptyJump] = Field(
        description="Jumps to entries without a program. Jumps to any index are left out."
    )
    cycles: list[Cycle]
    longest_chain: Chain | None = Field(description="null: no program jumps to another.")
    unseen: list[str] = Field(description="What could not be looked at, a sentence each.")
