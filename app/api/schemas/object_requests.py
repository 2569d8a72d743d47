"""The body of a request that loads an object file."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from app.api.schemas.fields import U32, Name, PinPath
from app.api.schemas.requests import Input, schema_with, schema_without
from app.bpf.uapi import MAX_INDEX, PROG_TYPE_NAMES
from app.service.loading.specification import MapOptions, ProgramOptions, Specification, Switch

_MAX_NAMED: Final = 256  # programs, maps or variables in one request
_INT64: Final = (-(1 << 63), (1 << 64) - 1)  # what a variable of 8 bytes holds, with or without a sign


def _program_type(name: str) -> str:
    if name not in PROG_TYPE_NAMES[1:]:
        message = f"is no type of programs; there are: {', '.join(PROG_TYPE_NAMES[1:])}"
        raise ValueError(message)
    return name


def _variable(value: bool | int | str) -> bool | int | str:
    if isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]:
        raise ValueError("a number has at most 64 bits")
    return value


# The name of a program, a map or a variable in an object file.
Symbol = Annotated[str, Field(min_length=1, max_length=256)]
ProgramTypeName = Annotated[
    str, AfterValidator(_program_type), WithJsonSchema({"type": "string", "enum": list(PROG_TYPE_NAMES[1:])})
]
Variable = Annotated[
    bool | int | str,
    AfterValidator(_variable),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 1 - (1 << 53), "maximum": (1 << 53) - 1},
                {"type": "string"},
            ]
        }
    ),
]


class ProgramToLoad(Input):
    """How one program is loaded. What is left out is as its section says."""

    type: ProgramTypeName | None = Field(None, description="The type, for a section that does not tell it.")
    attach_type: Literal["auto"] | Annotated[int, Field(ge=0, le=MAX_INDEX)] = Field(
        "auto",
        description="The expected_attach_type, a number of enum bpf_attach_type. `auto`, as if it were left out: what "
        "the arrays take that it has to do with, else what its section says.",
        examples=["auto", 37],
    )
    load: bool | None = Field(None, description="false: it is left out.")


class MapToLoad(Input):
    """How one map is made, or which one takes its place. A map of variables is named after its section: `.bss`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": schema_with("use"),
            "then": schema_without("pinned", "max_entries"),
            "else": {"if": schema_with("pinned"), "then": schema_without("max_entries")},
        }
    )

    use: Name | None = Field(
        None,
        description="The name of a held map that takes its place, or `previous`: that of the version before.",
        examples=["jump_table", "previous"],
    )
    pinned: PinPath | None = Field(None, description="The pin of a program array that takes its place.")
    max_entries: Annotated[int, Field(ge=1, le=MAX_INDEX)] | None = Field(
        None, description="The number of entries, where it is to be another than the file says."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(each is not None for each in (self.use, self.pinned, self.max_entries)) > 1:
            message = "use, pinned and max_entries exclude each other"
            raise ValueError(message)
        return self


class SwitchTo(Input):
    """The one entry that leads to the object: it is overwritten last, so everything changes for packets at once."""

    map: Name = Field(examples=["root"])
    index: U32 = Field(examples=[0])
    program: Symbol = Field(description="The program of the object file.", examples=["entry"])


class LoadObject(Input):
    """Which object file to load, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["file"],  # where the body is JSON
            "if": schema_with("switch"),
            "then": {
                "properties": {"move": {"const": False}, "values": {"enum": ["refuse", "ignore"]}},
                "additionalProperties": True,
            },
        }
    )

    file: Annotated[str, Field(min_length=1, max_length=4095)] = Field(
        "",
        description="The absolute path of the file, below one of objects.object_dirs.",
        examples=["/etc/jumptable/objects/parser.o"],
    )
    programs: dict[Symbol, ProgramToLoad] = Field({}, max_length=_MAX_NAMED, description="By name.")
    maps: dict[Symbol, MapToLoad] = Field({}, max_length=_MAX_NAMED, description="By name.")
    variables: dict[Symbol, Variable] = Field(
        {},
        max_length=_MAX_NAMED,
        description="The values of global variables: numbers for 1, 2, 4 or 8 bytes, texts for arrays of characters.",
    )
    values: Literal["refuse", "set", "ignore"] = Field(
        "refuse",
        description="What becomes of the initialisers (`.values`) of an array that is replaced; those of new arrays "
        "are written. `set`: a change of entries is made of them.",
    )
    pinning: Literal["refuse", "ignore", "hold"] = Field(
        "refuse",
        description="What becomes of maps that ask to be pinned by name. `hold`: later versions get the same map.",
    )
    move: bool = Field(
        default=False,
        description="Entries of held maps that hold a program of the version before get the new one of the same name.",
    )
    switch: SwitchTo | None = Field(None, description="The entry that is overwritten last.")

    @model_validator(mode="after")
    def _switch_is_alone(self) -> Self:
        if self.switch is not None and (self.move or self.values == "set"):
            message = "switch changes one entry, so it goes neither with move nor with values = set"
            raise ValueError(message)
        return self

    def specification(self) -> Specification:
        """Return what the body asks for."""
        return Specification(
            file=self.file or None,
            programs={
                name: ProgramOptions(
                    each.type, None if isinstance(each.attach_type, str) else each.attach_type, each.load
                )
                for name, each in self.programs.items()
            },
            maps={name: MapOptions(each.use, each.pinned, each.max_entries) for name, each in self.maps.items()},
            variables=dict(self.variables),
            values=self.values,
            pinning=self.pinning,
            move=self.move,
            switch=None if self.switch is None else Switch(self.switch.map, self.switch.index, self.switch.program),
        )
