"""What requests bring, as JSON."""

import contextlib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from app.api.fields import MAX_ENTRIES, U32, Name, PinPath
from app.api.outputs import EntryProgram
from app.bpf.uapi import MIN_PACKET
from app.service.held import ById, Pinned, checked_name
from app.service.programs import ByName, ProgramRef


def _packet(text: str) -> str:
    if not re.fullmatch(r"([0-9A-Fa-f]{2})*", text) or text.endswith("\n"):
        message = "a packet is written in hex, two digits a byte, with nothing between them"
        raise ValueError(message)
    if len(text) // 2 < MIN_PACKET:
        message = f"a packet has {MIN_PACKET} bytes at least; this one has {len(text) // 2}"
        raise ValueError(message)
    return text


def _without(*names: str) -> dict[str, Any]:
    """A schema for which all of these are left out or null."""
    return {"properties": {name: {"type": "null"} for name in names}}


def _given(name: str) -> dict[str, Any]:
    """A schema for which this is there, and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class Input(BaseModel):
    """What a request brings: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ProgramObject(Input):
    """A program by its held name, else by its id; or by its pin. What else GET answers is ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": _given("pinned"),
            "then": _without("name", "id"),
            "else": {"if": _without("name"), "then": _given("id")},
        }
    )

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


def _form(value: Any) -> str | None:
    if isinstance(value, dict):
        return "<object>"
    return "<name>" if isinstance(value, str) else None


# With a discriminator, so that an error speaks of the form that was meant, and not of all. EntryProgram is among them
# for the document alone, so that a typed client can send back what it was answered: it is a ProgramObject all the same.
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


def _names_at_once(value: Any, one_by_one: ValidatorFunctionWrapHandler) -> Any:
    """Of a list of names each name is checked once, as a table of 65,536 has few; `one_by_one` tells what is wrong."""
    if isinstance(value, list):
        with contextlib.suppress(ValueError, TypeError):  # what is no name cannot always be in a set
            distinct = set(value) - {None}
            if all(isinstance(name, str) and checked_name(name) for name in distinct):
                return value
    return one_by_one(value)


class SetEntry(Input):
    """What an entry is to point to. An entry as GET answers it can be sent back."""

    program: ProgramReference = Field(examples=["drop", {"id": 812}, {"pinned": "/sys/fs/bpf/drop"}])
    flags: int = Field(0, ge=0, le=(1 << 53) - 1, description="Only 0 (BPF_ANY): the kernel knows no other here.")
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

    model_config = ConfigDict(
        json_schema_extra={"if": _given("entries"), "then": _without("programs"), "else": _given("programs")}
    )

    entries: Annotated[list[ListedEntry], Field(fail_fast=True)] | None = None
    programs: Annotated[list[ProgramReference | None], Field(fail_fast=True), WrapValidator(_names_at_once)] | None = (
        Field(None, examples=[["pass", None, "drop"]])
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

    model_config = ConfigDict(json_schema_extra={"if": _given("pinned"), "then": _without("id"), "else": _given("id")})

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

    model_config = ConfigDict(
        json_schema_extra={
            "if": _given("pinned"),
            "then": _without("id"),
            "else": {"allOf": [_given("id"), _without("create")]},
        }
    )

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
    assert isinstance(given, ProgramObject)
    if given.name is not None:
        return ByName(given.name)
    if given.id is not None:
        return ById(given.id)
    return Pinned(given.pinned or "")
