"""What goes in and out as JSON."""

import functools
import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from starlette.responses import Response

from app.bpf.uapi import MAX_INDEX, MIN_PACKET
from app.service.held import NAME_PATTERN, ById, Pinned, checked_name
from app.service.program import ProgramSummary
from app.service.programs import ByName, ProgramRef
from app.store.records import Change as ChangeRecord
from app.store.records import Kind, State

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,9}")
MAX_ENTRIES: Final = 1 << 20  # an array of 8 MiB; far more than any is known to have


def _decimal(text: Any) -> int:
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or int(text) > MAX_INDEX:
        message = f"must be a decimal number from 0 to {MAX_INDEX}, without sign or leading zeros"
        raise ValueError(message)
    return int(text)


def _packet(text: str) -> str:
    if not re.fullmatch(r"([0-9A-Fa-f]{2})*", text) or text.endswith("\n"):
        message = "a packet is written in hex, two digits a byte, with nothing between them"
        raise ValueError(message)
    if len(text) // 2 < MIN_PACKET:
        message = f"a packet has {MIN_PACKET} bytes at least; this one has {len(text) // 2}"
        raise ValueError(message)
    return text


Name = Annotated[
    str,
    AfterValidator(checked_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN}),
]
U32 = Annotated[int, Field(ge=0, le=MAX_INDEX)]
MapName = Annotated[Name, Path(description="The name the map is held under.", examples=["jump_table"])]
ProgramName = Annotated[Name, Path(description="The name the program is held under.", examples=["drop"])]
Decimal = Annotated[
    int,
    PlainValidator(_decimal),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_INDEX}),
]
Index = Annotated[Decimal, Path(description="u32, below the map's max_entries; decimal.", examples=[3])]
PinPath = Annotated[
    str, Field(min_length=1, max_length=4095, description="Absolute path in bpffs.", examples=["/sys/fs/bpf/drop"])
]


class Json(Response):
    """An answer in JSON that ends in a newline, as a terminal likes it."""

    media_type = "application/json"

    def __init__(self, content: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content.model_dump_json().encode() + b"\n", status, headers)


class Input(BaseModel):
    """What a request brings: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


# Requests


class ProgramObject(Input):
    """A program by its held name, else by its id; or by its pin. What else GET answers is ignored."""

    name: Name | None = None
    id: U32 | None = None
    pinned: PinPath | None = None
    type: Any = Field(None, description="Ignored.")
    tag: Any = Field(None, description="Ignored.")
    kernel_name: Any = Field(None, description="Ignored.")
    loaded_at: Any = Field(None, description="Ignored.")

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.pinned is not None and (self.name is not None or self.id is not None):
            message = "pinned goes alone, without name or id"
            raise ValueError(message)
        if self.pinned is None and self.name is None and self.id is None:
            message = "one of name, id and pinned is needed"
            raise ValueError(message)
        return self


class EntryProgram(BaseModel):
    """The program that an entry points to. What is null the kernel tells only with CAP_SYS_ADMIN."""

    name: str | None = Field(description="The name it is held under; null: the service does not hold it.")
    id: int = Field(ge=0, le=MAX_INDEX, strict=True, examples=[812])
    type: str | None = Field(examples=["xdp"])
    tag: str | None = Field(examples=["46728abc63e3a679"])
    kernel_name: str | None = Field(examples=["xdp_drop"])
    loaded_at: datetime | None

    model_config = ConfigDict(frozen=True)

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


def _form(value: Any) -> str | None:
    if isinstance(value, dict):
        return "<entry>" if value.keys() == EntryProgram.model_fields.keys() else "<object>"
    return "<name>" if isinstance(value, str) else None


# With a discriminator, so that an error speaks of the form that was meant, and not of all. EntryProgram is among them
# so that a typed client can send back what it was answered.
ProgramReference = Annotated[
    Annotated[Name, Tag("<name>")]
    | Annotated[ProgramObject, Tag("<object>")]
    | Annotated[EntryProgram, Tag("<entry>")],
    Discriminator(
        _form,
        custom_error_type="program_reference",
        custom_error_message='a program is its held name, or an object: {"name": …}, {"id": …} or {"pinned": …}',
    ),
]


class SetEntry(Input):
    """What an entry is to point to. An entry as GET answers it can be sent back."""

    program: ProgramReference = Field(examples=["drop", {"id": 812}, {"pinned": "/sys/fs/bpf/drop"}])
    flags: int = Field(0, ge=0, lt=1 << 64, description="Only 0 (BPF_ANY): the kernel knows no other here.")
    map: Any = Field(None, description="Ignored.")
    index: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")


class ListedEntry(Input):
    """One entry of a table. An entry as GET answers it can be sent back."""

    index: U32 = Field(examples=[3])
    program: ProgramReference | None = Field(description="null: empty.", examples=["drop", None])
    map: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")


class UpdateEntries(Input):
    """The entries to change, in this order. What GET answers can be sent back."""

    entries: Annotated[list[ListedEntry], Field(fail_fast=True)]
    map: Any = Field(None, description="Ignored.")
    max_entries: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    next: None = Field(None, description="A page is not the whole table: only null is taken.")


class ReplaceEntries(Input):
    """The whole table: what is not listed is cleared. Either `entries`, or `programs`, where the place is the index."""

    entries: Annotated[list[ListedEntry], Field(fail_fast=True)] | None = None
    programs: Annotated[list[ProgramReference | None], Field(fail_fast=True)] | None = Field(
        None, examples=[["pass", None, "drop"]]
    )
    map: Any = Field(None, description="Ignored.")
    max_entries: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    next: None = Field(None, description="A page is not the whole table: only null is taken.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.entries is None) == (self.programs is None):
            message = "exactly one of entries and programs is needed"
            raise ValueError(message)
        return self


class CreateMap(Input):
    """The array to make where the pin does not exist."""

    max_entries: int = Field(ge=1, le=MAX_ENTRIES, examples=[64])


class HoldProgram(Input):
    """Where to open what is to be held: one of the two."""

    pinned: PinPath | None = None
    id: U32 | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pinned is None) == (self.id is None):
            message = "exactly one of pinned and id is needed"
            raise ValueError(message)
        return self

    def source(self) -> Pinned | ById:
        """The source that this names."""
        return Pinned(self.pinned) if self.pinned is not None else ById(self.id or 0)


class HoldMap(HoldProgram):
    """Where to open the map, and whether to make it."""

    create: CreateMap | None = None

    @model_validator(mode="after")
    def _created_at_a_pin(self) -> Self:
        if self.create is not None and self.pinned is None:
            message = "create goes with pinned: that is where the new array is pinned"
            raise ValueError(message)
        return self


class Reconcile(Input):
    """How drift is to end."""

    to: Literal["journal", "kernel"] = Field(
        description="`journal`: what is recorded is put back. `kernel`: what the kernel has is recorded."
    )


class RunProgram(Input):
    """A packet to run the program on."""

    packet: Annotated[
        str,
        AfterValidator(_packet),
        WithJsonSchema(
            {
                "type": "string",
                "pattern": "^([0-9A-Fa-f]{2}){14,}$",
                "description": "In hex; 14 bytes at least, at most what the kernel takes.",
                "examples": ["0300000000000000000000000000"],
            }
        ),
    ]
    repeat: int = Field(1, ge=1, le=1_000_000)


def program_ref(given: "str | ProgramObject | EntryProgram") -> ProgramRef:
    """The reference that a body names: by name where it has one, else by id, else by pin."""
    if isinstance(given, str):
        return ByName(given)
    if given.name is not None:
        return ByName(given.name)
    if given.id is not None:
        return ById(given.id)
    return Pinned(given.pinned or "")


# Answers


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
    kind: Kind = Field(
        description="`expire`: undone, as nobody confirmed it; `reconcile`, `restore`: what was recorded was put back, "
        "at a caller's wish or at the start; `adopt`: what the kernel had was recorded, and nothing was written."
    )
    entries: list[ChangedEntry]
    confirm_by: datetime | None = Field(description="When it is undone, unless it is confirmed before.")
    state: State
    reverts: int | None = Field(description="The change that this one undoes.")

    @staticmethod
    def of(record: ChangeRecord) -> "Change":
        """From the journal's record."""
        return Change.model_validate(record, from_attributes=True)


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


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """All that is configured could be opened."""

    status: Literal["ready"] = "ready"
    reasons: list[str]


class Version(BaseModel):
    """What runs."""

    name: str = "jumptable"
    version: str = Field(examples=["0.1.0"])
    kernel: str = Field(description="linux, or memory: then nothing is real.", examples=["linux"])
    kernel_release: str = Field(examples=["6.18.44"])


class Explanation(BaseModel):
    """What a problem's code means."""

    code: str = Field(examples=["entry-empty"])
    status: int = Field(examples=[404])
    title: str
    remedy: str
