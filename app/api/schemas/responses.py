"""What is answered, as JSON."""

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import Response

from app.api.schemas.fields import NAME_SCHEMA
from app.bpf.uapi import MAX_INDEX
from app.service.objects.program import ProgramSummary
from app.store.records import ChangeKind, ChangeState


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers by name, and JSON without its newline: what both ways of a request send."""

    status: int
    headers: dict[str, str]
    body: bytes


class Json(Response):
    """An answer in JSON that ends in a newline, as a terminal likes it."""

    media_type = "application/json"

    def __init__(self, content: BaseModel | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = content if isinstance(content, bytes) else content.model_dump_json().encode()
        super().__init__(text + b"\n", status, headers)


class EntryProgram(BaseModel):
    """The program that an entry points to. What is null the kernel tells only with CAP_SYS_ADMIN."""

    name: Annotated[str, NAME_SCHEMA] | None = Field(
        description="The name it is held under; null: the service does not hold it."
    )
    id: int = Field(ge=0, le=MAX_INDEX, strict=True, examples=[812])
    type: str | None = Field(examples=["xdp"])
    tag: str | None = Field(examples=["46728abc63e3a679"])
    kernel_name: str | None = Field(examples=["xdp_drop"])
    loaded_at: datetime | None

    # Nothing else: it can be sent back, and what is sent has nothing unknown.
    model_config = ConfigDict(frozen=True, json_schema_extra={"additionalProperties": False})

    @staticmethod
    @functools.lru_cache(maxsize=4096)  # one object for all entries that point to the same program
    def of(summary: ProgramSummary) -> "EntryProgram":
        """From what the service tells."""
        return EntryProgram(
            name=summary.name,
            id=summary.id,
            type=summary.type,
            tag=summary.tag,
            kernel_name=summary.kernel_name,
            loaded_at=summary.loaded_at,
        )


class Entry(BaseModel):
    """One populated entry."""

    map: str = Field(examples=["jump_table"])
    index: int = Field(examples=[3])
    etag: str = Field(examples=['"0f1e2d3c4b5a6978"'])
    program: EntryProgram


class DryEntry(Entry):
    """The entry as it would be."""

    fit: Literal["tried", "type-only"] = Field(
        description="Whether the kernel was asked on a scratch array, or only the type could be compared.",
    )


class Entries(BaseModel):
    """The populated entries of a map, by rising index."""

    map: str = Field(examples=["jump_table"])
    max_entries: int = Field(examples=[16])
    etag: str = Field(description="Of the whole table, also on a page.", examples=['"0f1e2d3c4b5a6978"'])
    entries: list[Entry]
    next: int | None = Field(description="The start of the next page; null: this was the last.")


class ChangedProgram(BaseModel):
    """A program as it was when it was recorded. It means nothing beyond its boot that `id` tells."""

    name: str | None
    id: int | None = Field(
        description="In a drift null for a program of an earlier boot that is not found again.", examples=[812]
    )
    tag: str | None
    pinned: str | None

    @field_validator("id")
    @classmethod
    def _known(cls, id_: int | None) -> int | None:
        return id_ or None


class ChangedEntry(BaseModel):
    """One entry of a change. null: empty."""

    index: int = Field(examples=[3])
    before: ChangedProgram | None
    after: ChangedProgram | None


class Change(BaseModel):
    """A change of entries, as it is journalled."""

    id: int = Field(examples=[17])
    at: datetime
    actor: str = Field(description="unix, or tcp: and an address.", examples=["unix"])
    request_id: str
    note: str | None
    map: str = Field(examples=["jump_table"])
    kind: ChangeKind = Field(
        description="`expire`: undone, as nobody confirmed it; `reconcile`, `restore`: what was recorded was put back, "
        "at a caller's wish or at the start; `adopt`: what the kernel had was recorded, and nothing was written."
    )
    entries: list[ChangedEntry]
    confirm_by: datetime | None = Field(description="When it is undone, unless it is confirmed before.")
    state: ChangeState
    reverts: int | None = Field(description="The change that this one undoes.")


class Changes(BaseModel):
    """Changes by rising id."""

    changes: list[Change]
    next: int | None = Field(description="What `after` is for the next page; null: this was the last.")


class Applied(BaseModel):
    """What was done."""

    change: Change | None = Field(description="null: nothing had to be written, or it was a dry run.")
    set: int
    cleared: int
    unchanged: int


class DryApplied(Applied):
    """What would be done."""

    fit: Literal["tried", "type-only"] = Field(
        description="Whether the kernel was asked on a scratch array, or only the type could be compared."
    )


class Owner(BaseModel):
    """What the first program has fixed, for as long as the array exists."""

    program_type: str = Field(examples=["xdp"])
    jited: bool | None


class Drift(BaseModel):
    """An entry where the kernel differs from what is recorded. null: empty."""

    index: int = Field(examples=[3])
    journal: ChangedProgram | None = Field(description="What it is to hold, by all that was changed here.")
    kernel: ChangedProgram | None = Field(description="What it holds.")


class Map(BaseModel):
    """A held map. While it is unavailable, what only the kernel knows is null."""

    name: str = Field(examples=["jump_table"])
    id: int | None = Field(examples=[41])
    kernel_name: str | None = Field(examples=["jump_table"])
    type: Literal["prog_array"] = "prog_array"
    max_entries: int | None = Field(examples=[16])
    used: int | None = Field(description="How many entries point to a program.", examples=[1])
    flags: int | None = Field(examples=[0])
    memlock: int | None = Field(description="Bytes.", examples=[440])
    frozen: bool | None
    owner: Owner | None = Field(description="null: no program was put in or refers to it yet, so any type fits.")
    pins: list[str] = Field(description="The paths it was opened or pinned by.")
    created_here: bool
    state: Literal["held", "unavailable"]
    reason: str | None = Field(description="Why it is unavailable.")
    drift: list[Drift] = Field(description="Where the kernel differs from what is recorded.")
    warnings: list[str]


class Maps(BaseModel):
    """All held maps."""

    maps: list[Map]


class Use(BaseModel):
    """An entry that points to the program."""

    map: str = Field(examples=["jump_table"])
    index: int = Field(examples=[3])


class Program(BaseModel):
    """A held program. While it is unavailable, what only the kernel knows is null."""

    name: str = Field(examples=["drop"])
    id: int | None = Field(examples=[812])
    type: str | None = Field(examples=["xdp"])
    tag: str | None = Field(examples=["46728abc63e3a679"])
    kernel_name: str | None = Field(examples=["xdp_drop"])
    loaded_at: datetime | None
    uid: int | None = Field(description="Of the user who loaded it.")
    map_ids: list[int]
    gpl: bool | None
    run_count: int | None = Field(description="Only counted while kernel.bpf_stats_enabled is 1.")
    run_time_ns: int | None = Field(description="Only counted while kernel.bpf_stats_enabled is 1.")
    state: Literal["held", "unavailable"]
    reason: str | None = Field(description="Why it is unavailable.")
    used_by: list[Use]


class Programs(BaseModel):
    """All held programs."""

    programs: list[Program]


class Run(BaseModel):
    """What came out of a test run."""

    returned: int = Field(description="u32.", examples=[2])
    meaning: str | None = Field(
        description="Its name, where the type gives it one. Null for other types.", examples=["XDP_PASS"]
    )
    duration_ns: int = Field(description="The mean of one run.")
    packet: str = Field(description="The packet as the program left it, in hex.")
