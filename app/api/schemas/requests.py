"""The bodies of requests, except those of whole tables."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from app.api.schemas.fields import MAX_ENTRIES, U32, Name, PinPath
from app.api.schemas.responses import EntryProgram
from app.bpf.uapi import MIN_PACKET
from app.service.objects.source import ById, Pinned
from app.service.registry.programs import ByName, ProgramRef

MAX_MEMBERS: Final = 16  # of one object


def _validated_packet(text: str) -> str:
    if not re.fullmatch(r"([0-9A-Fa-f]{2})*", text) or text.endswith("\n"):
        message = "a packet is written as hex digits, two for each byte, with nothing between them"
        raise ValueError(message)
    if len(text) // 2 < MIN_PACKET:
        message = f"a packet has {MIN_PACKET} bytes at least; this one has {len(text) // 2}"
        raise ValueError(message)
    return text


def schema_without(*names: str) -> dict[str, Any]:
    """Return a JSON schema of objects in which all of these members are absent or null."""
    # With additionalProperties, linters that look for unknown members take this part of a schema for complete.
    return {"properties": {name: {"type": "null"} for name in names}, "additionalProperties": True}


def schema_with(name: str) -> dict[str, Any]:
    """Return a JSON schema of objects in which this member is present and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class Input(BaseModel):
    """The base of request bodies. Unknown members are refused, and values are not converted to other types."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Leave defaults out: with one, openapi-typescript takes a member for required. Descriptions say them."""
        schema = handler(core_schema)
        for member in handler.resolve_ref_schema(schema).get("properties", {}).values():
            member.pop("default", None)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, value: Any) -> Any:
        # Before pydantic makes an error of each unknown member, which takes 10 us and 1 KB.
        if isinstance(value, dict) and len(value) > MAX_MEMBERS:
            message = f"has {len(value)} members, and may have {MAX_MEMBERS}"
            raise ValueError(message)
        return value


class ProgramObject(Input):
    """A reference to a program, by `name`, `id` or `pinned`. If `name` is not null, `id` is ignored.

    A program as responses show it, with its other members, is accepted as well; see `EntryProgram`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "if": schema_with("pinned"),
            "then": schema_without("name", "id"),
            "else": {"if": schema_without("name"), "then": schema_with("id")},
        }
    )

    name: Name | None = None
    id: U32 | None = None
    pinned: PinPath | None = None
    # Ignored. They are not in the schema, as generated clients refuse what fits two schemas of a oneOf.
    type: SkipJsonSchema[Any] = None
    tag: SkipJsonSchema[Any] = None
    kernel_name: SkipJsonSchema[Any] = None
    loaded_at: SkipJsonSchema[Any] = None

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.pinned is not None and (self.name is not None or self.id is not None):
            message = "pinned cannot be combined with name or id"
            raise ValueError(message)
        if self.pinned is None and self.name is None and self.id is None:
            message = "one of name, id and pinned is required"
            raise ValueError(message)
        return self


def _reference_form(value: Any) -> str | None:
    if isinstance(value, dict):
        return "<object>"
    return "<name>" if isinstance(value, str) else None


# The discriminator makes an error speak of the form that was meant, and not of every form. EntryProgram is one of them
# only for the OpenAPI document, so that a typed client can send back what it received; it validates as a ProgramObject.
# It has a name of its own in the OpenAPI document, so that generators make one type of it.
ProgramReference = TypeAliasType(
    "ProgramReference",
    Annotated[
        Annotated[Name, Tag("<name>")]
        | Annotated[ProgramObject, Tag("<object>")]
        | Annotated[EntryProgram, Tag("<entry>")],
        Discriminator(
            _reference_form,
            custom_error_type="program_reference",
            custom_error_message=(
                'a program is the name of a held one, or an object: {"name": …}, {"id": …} or {"pinned": …}'
            ),
        ),
    ],
)


class SetEntry(Input):
    """The program that an entry is to point to. The entry that GET returns is accepted as well."""

    program: ProgramReference = Field(examples=["drop", {"id": 812}, {"pinned": "/sys/fs/bpf/drop"}])
    flags: int = Field(
        0,
        ge=0,
        le=(1 << 53) - 1,
        description="Only 0 (BPF_ANY), as if it were left out: the kernel supports no other flags here.",
    )
    map: Any = Field(None, description="Ignored.")
    index: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    waiting: Any = Field(None, description="Ignored.")
    warnings: Any = Field(None, description="Ignored.")


class CreateMap(Input):
    """The array to create if the pin does not exist."""

    max_entries: int = Field(ge=1, le=MAX_ENTRIES, examples=[64])


class HoldProgram(Input):
    """Where to open the object to hold: exactly one of `pinned` and `id`."""

    model_config = ConfigDict(
        json_schema_extra={"if": schema_with("pinned"), "then": schema_without("id"), "else": schema_with("id")}
    )

    pinned: PinPath | None = None
    id: U32 | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pinned is None) == (self.id is None):
            message = "exactly one of pinned and id is required"
            raise ValueError(message)
        return self

    def source(self) -> Pinned | ById:
        """Return the source that the body names."""
        return Pinned(self.pinned) if self.pinned is not None else ById(self.id or 0)


class HoldMap(HoldProgram):
    """Where to open the map to hold: exactly one of `pinned` and `id`. With `create`, a missing pin is created."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": schema_with("pinned"),
            "then": schema_without("id"),
            "else": {"allOf": [schema_with("id"), schema_without("create")]},
        }
    )

    create: CreateMap | None = None

    @model_validator(mode="after")
    def _create_has_a_pin(self) -> Self:
        if self.create is not None and self.pinned is None:
            message = "create requires pinned, the path at which the new array is pinned"
            raise ValueError(message)
        return self


class Reconcile(Input):
    """How to end the drift of a map."""

    to: Literal["journal", "kernel"] = Field(
        description="`journal`: put back what the journal says. `kernel`: keep what the kernel holds, and record it."
    )


class RunProgram(Input):
    """The packet on which to run the program, and how often."""

    packet: Annotated[
        str,
        AfterValidator(_validated_packet),
        WithJsonSchema(
            {
                "type": "string",
                "pattern": "^([0-9A-Fa-f]{2}){14,}$",
                "description": "The packet in hex. It has 14 bytes or more; the kernel sets the largest size.",
                "examples": ["0300000000000000000000000000"],
            }
        ),
    ]
    repeat: int = Field(1, ge=1, le=1_000_000, description="How often to run it; once, if left out.")


def program_ref(program: "str | ProgramObject | EntryProgram") -> ProgramRef:
    """Return the reference to a program in a body: by its name if it has one, else by its id, else by its pin."""
    if isinstance(program, str):
        return ByName(program)
    assert isinstance(program, ProgramObject)
    if program.name is not None:
        return ByName(program.name)
    if program.id is not None:
        return ById(program.id)
    return Pinned(program.pinned or "")
