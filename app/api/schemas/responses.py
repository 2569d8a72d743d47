"""The bodies of responses."""

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import Response

from app.api.schemas.fields import NAME_SCHEMA
from app.bpf.uapi import MAX_INDEX
from app.service.objects.program import ProgramSummary
from app.store.records import ChangeKind, ChangeState

FIT: Final = (
    "How it was checked whether the programs fit the array. `tried`: the kernel accepted them in a scratch array. "
    "`type-only`: only the types were compared, so the kernel may still refuse the real write."
)
_WOULD_CHANGE: Final = "The entries that would be changed, in this order."
_BPF_STATS: Final = "The kernel counts it only while kernel.bpf_stats_enabled is 1."
REASON: Final = "Why it is unavailable; null: it is held."


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers by name, and JSON without its newline: what both ways of a request send."""

    status: int
    headers: dict[str, str]
    body: bytes


class Json(Response):
    """A JSON response. It ends in a newline, so that a terminal shows its prompt on a new line."""

    media_type = "application/json"

    def __init__(self, content: BaseModel | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = content if isinstance(content, bytes) else content.model_dump_json().encode()
        super().__init__(text + b"\n", status, headers)


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


class Entries(BaseModel):
    """The entries of a map that point to a program, by rising index."""

    map: str = Field(examples=["jump_table"])
    max_entries: int = Field(examples=[16])
    etag: str = Field(
        description="The entity tag of the whole table, even on a page of it.", examples=['"0f1e2d3c4b5a6978"']
    )
    entries: list[Entry]
    next: int | None = Field(description="The `start` of the next page; null: this is the last one.")


class ChangedProgram(BaseModel):
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


class ChangedEntry(BaseModel):
    """One entry of a change: its programs before and after. null: the entry is empty."""

    index: int = Field(examples=[3])
    before: ChangedProgram | None
    after: ChangedProgram | None


class DryEntry(Entry):
    """The entry as it would be after the change, from a dry run."""

    fit: Literal["tried", "type-only"] = Field(description=FIT)
    entries: list[ChangedEntry] = Field(description=_WOULD_CHANGE)


class Change(BaseModel):
    """A change of entries, as the journal records it."""

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
    entries: list[ChangedEntry]
    confirm_by: datetime | None = Field(
        description="When the change is undone unless it is confirmed before; null: it needs no confirmation."
    )
    confirmed_by: str | None = Field(description="Who confirmed it, named as `actor` is; null: nobody.")
    confirmed_at: datetime | None = Field(description="When it was confirmed; null: it was not.")
    state: ChangeState
    reverts: int | None = Field(description="The id of the change that this one undoes.")


class Changes(BaseModel):
    """Changes, by rising id; with `order=desc` by falling id."""

    changes: list[Change]
    next: int | None = Field(
        description="The value of `after` for the next page, or of `before` with `order=desc`; null: this is the last "
        "one."
    )


class Applied(BaseModel):
    """The result of a change of entries. `set`, `cleared` and `unchanged` are numbers of entries."""

    change: Change | None = Field(description="The change; null: nothing had to be written, or this was a dry run.")
    set: int
    cleared: int
    unchanged: int


class DryApplied(Applied):
    """The result that a change of entries would have, from a dry run."""

    fit: Literal["tried", "type-only"] = Field(description=FIT)
    entries: list[ChangedEntry] = Field(description=_WOULD_CHANGE)


class Owner(BaseModel):
    """What the first program in the array has fixed. It stays so for as long as the array exists."""

    program_type: str = Field(examples=["xdp"])
    jited: bool | None


class Drift(BaseModel):
    """An entry in which the kernel and the journal differ. null: the entry is empty."""

    index: int = Field(examples=[3])
    journal: ChangedProgram | None = Field(
        description="The program that the entry should point to, by the journalled changes."
    )
    kernel: ChangedProgram | None = Field(description="The program that the entry points to.")


class HeldMap(BaseModel):
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
    pins: list[str] = Field(description="The paths at which the service opened or pinned the map.")
    created_here: bool
    state: Literal["held", "unavailable"]
    reason: str | None = Field(description=REASON)
    drift: list[Drift] = Field(description="The entries in which the kernel and the journal differ.")
    waiting: list[WaitingEntries] = Field(description="The changes that wait for their confirmation, by rising id.")
    warnings: list[str]


class Maps(BaseModel):
    """All held maps."""

    maps: list[HeldMap]


class Use(BaseModel):
    """An entry that points to the program."""

    map: str = Field(examples=["jump_table"])
    index: int = Field(examples=[3])


class Program(BaseModel):
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
    used_by: list[Use]
    pins: list[str] = Field(description="The path at which the service opened the program.")
    warnings: list[str]


class Programs(BaseModel):
    """All held programs."""

    programs: list[Program]


class Run(BaseModel):
    """The result of a test run."""

    returned: int = Field(description="The return value of the program, u32.", examples=[2])
    meaning: str | None = Field(
        description="The name of the return value; null: values of this type of program have none.",
        examples=["XDP_PASS"],
    )
    duration_ns: int = Field(description="The mean duration of one run, in nanoseconds.")
    packet: str = Field(description="The packet after the run, in hex.")
