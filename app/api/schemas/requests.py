"""What requests bring, as JSON."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from app.api.schemas.fields import MAX_ENTRIES, U32, Name, PinPath
from app.api.schemas.responses import EntryProgram
from app.bpf.uapi import MIN_PACKET
from app.service.objects.source import ById, Pinned
from app.service.registry.programs import ByName, ProgramRef


def _packet(text: str) -> str:
    if not re.fullmatch(r"([0-9A-Fa-f]{2})*", text) or text.endswith("\n"):
        message = "a packet is written in hex, two digits a byte, with nothing between them"
        raise ValueError(message)
    if len(text) // 2 < MIN_PACKET:
        message = f"a packet has {MIN_PACKET} bytes at least; this one has {len(text) // 2}"
        raise ValueError(message)
    return text


def without(*names: str) -> dict[str, Any]:
    """A schema for which all of these are left out or null."""
    return {"properties": {name: {"type": "null"} for name in names}}


def given(name: str) -> dict[str, Any]:
    """A schema for which this is there, and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class Input(BaseModel):
    """What a request brings: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ProgramObject(Input):
    """A program by its held name, else by its id; or by its pin. What else GET answers is ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": given("pinned"),
            "then": without("name", "id"),
            "else": {"if": without("name"), "then": given("id")},
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


class SetEntry(Input):
    """What an entry is to point to. An entry as GET answers it can be sent back."""

    program: ProgramReference = Field(examples=["drop", {"id": 812}, {"pinned": "/sys/fs/bpf/drop"}])
    flags: int = Field(0, ge=0, le=(1 << 53) - 1, description="Only 0 (BPF_ANY): the kernel knows no other here.")
    map: Any = Field(None, description="Ignored.")
    index: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")


class CreateMap(Input):
    """The array to make where the pin does not exist."""

    max_entries: int = Field(ge=1, le=MAX_ENTRIES, examples=[64])


class HoldProgram(Input):
    """Where to open what is to be held: one of the two."""

    model_config = ConfigDict(json_schema_extra={"if": given("pinned"), "then": without("id"), "else": given("id")})

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
            "if": given("pinned"),
            "then": without("id"),
            "else": {"allOf": [given("id"), without("create")]},
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
