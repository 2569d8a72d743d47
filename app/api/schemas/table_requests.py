"""The bodies of requests that change many entries.

A table may have 65,536 entries and more, but few programs. So all entries are validated together, with each distinct
program once. If anything is wrong, pydantic validates the entries one by one and reports the place of the error.
"""

import contextlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter, methodcaller
from typing import Annotated, Any, Final, Self

from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from app.api.schemas.fields import U32
from app.api.schemas.requests import Input, ProgramObject, ProgramReference, schema_with, schema_without
from app.api.schemas.responses import EntryProgram
from app.service.objects.source import checked_name
from app.store.number_arrays import NUMBERS

# The program of one entry; None: the entry is to be empty.
ListedProgram = str | ProgramObject | EntryProgram | None

# The type null alone is unknown to generators of clients. This schema allows null alone as well.
NoNextPage = Annotated[
    None,
    Field(description="Must be null, because a page is not the whole table."),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "null"}], "not": {"type": "integer"}}),
]

_EMPTY: Final = object()  # stands for null in the place of a program's name


class ListedEntry(Input):
    """One entry of a table. An entry that GET returns is accepted as well."""

    index: U32 = Field(examples=[3])
    program: ProgramReference | None = Field(
        description="The program to put there; null: clear the entry.",
        examples=["drop", None],
    )
    map: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    waiting: Any = Field(None, description="Ignored.")


@dataclass(frozen=True, slots=True)
class ListedEntries:
    """The entries in a body, in the order listed.

    Attributes:
        indexes: The index of each entry, u32.
        programs: The program of each entry; None: it is to be empty.
    """

    indexes: "array[int]"
    programs: Sequence[ListedProgram]

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        one_by_one = handler.generate_schema(Annotated[list[ListedEntry], Field(fail_fast=True)])
        return core_schema.no_info_wrap_validator_function(cls._validate, one_by_one)

    @classmethod
    def _validate(cls, value: Any, one_by_one: ValidatorFunctionWrapHandler) -> "ListedEntries":
        if isinstance(value, cls):
            return value
        together = _validate_entries_together(value) if isinstance(value, list) else None
        if together is not None:
            return together
        entries: list[ListedEntry] = one_by_one(value)
        return cls(array(NUMBERS, [each.index for each in entries]), [each.program for each in entries])


class ListedPrograms(list[ListedProgram]):
    """The programs of a table in the short form, validated before."""


def _validate_programs(value: Any, one_by_one: ValidatorFunctionWrapHandler) -> Any:
    """Validate the short form of a table, in which the place of a program is its index."""
    if isinstance(value, ListedPrograms):
        return value
    try:
        return (isinstance(value, list) and _validate_programs_together(value)) or one_by_one(value)
    except (TypeError, ValueError):
        return one_by_one(value)


class UpdateEntries(Input):
    """The entries to change, in this order. A table that GET returns is accepted as well."""

    entries: ListedEntries
    map: Any = Field(None, description="Ignored.")
    max_entries: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    next: NoNextPage = None


class ReplaceEntries(Input):
    """The whole table: `entries`, or `programs`, in which the place is the index. All other entries are cleared."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": schema_with("entries"),
            "then": schema_without("programs"),
            "else": schema_with("programs"),
        }
    )

    entries: ListedEntries | None = None
    programs: (
        Annotated[list[ProgramReference | None], Field(fail_fast=True), WrapValidator(_validate_programs)] | None
    ) = Field(None, examples=[["pass", None, "drop"]])
    map: Any = Field(None, description="Ignored.")
    max_entries: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    next: NoNextPage = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.entries is None) == (self.programs is None):
            message = "exactly one of entries and programs is required"
            raise ValueError(message)
        return self


class PieceValidator:
    """Validates a table that comes in pieces. Equal programs in different pieces become the same object."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    @property
    def distinct(self) -> int:
        """How many different programs there are so far."""
        return len(self._known)

    def entries(self, piece: list[Any]) -> ListedEntries:
        """Return some of the entries.

        Raises:
            ValidationError: One is wrong; `loc` begins with its place in the piece.
        """
        together = _validate_entries_together(piece, self._known)
        if together is not None:
            return together
        entries = _ENTRIES.validate_python(piece)
        return ListedEntries(array(NUMBERS, [each.index for each in entries]), [each.program for each in entries])

    def programs(self, piece: list[Any]) -> Sequence[ListedProgram]:
        """Return some of the programs of the short form.

        Raises:
            ValidationError: One is wrong; `loc` begins with its place in the piece.
        """
        with contextlib.suppress(TypeError, ValueError):
            together = _validate_programs_together(piece, self._known)
            if together is not None:
                return together
        return _PROGRAMS.validate_python(piece)


_ENTRIES: Final = TypeAdapter(Annotated[list[ListedEntry], Field(fail_fast=True)])
_PROGRAMS: Final = TypeAdapter(Annotated[list[ProgramReference | None], Field(fail_fast=True)])


def _validate_entries_together(entries: list[Any], known: dict[Any, Any] | None = None) -> ListedEntries | None:
    """Validate a list of entries. None: something is wrong, and validating them one by one says what.

    Args:
        entries: The entries.
        known: The programs of entries before these, which this adds to.
    """
    try:
        indexes = list(map(itemgetter("index"), entries))
        references = list(map(itemgetter("program"), entries))
        if set().union(*entries) - ListedEntry.model_fields.keys() or set(map(type, indexes)) - {int}:
            return None
        programs = _validate_programs_together(references, known)
        return None if programs is None else ListedEntries(array(NUMBERS, indexes), programs)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _validate_programs_together(
    programs: list[Any], known: dict[Any, Any] | None = None
) -> Sequence[ListedProgram] | None:
    """Validate a list of programs, each distinct one once. None, ValueError or TypeError: something is wrong.

    Args:
        programs: The programs.
        known: Those that were validated before, which this adds to.
    """
    known = {} if known is None else known
    with contextlib.suppress(TypeError):  # objects
        names = set(programs)
        if set(map(type, names)) <= {str, type(None)}:
            for name in names - known.keys():
                known[name] = None if name is None else checked_name(name)
            return programs
    types = set(map(type, programs))
    objects = programs if types == {dict} else [_as_object(each) for each in programs]
    if set().union(*objects) - ProgramObject.model_fields.keys():
        return None
    columns = [list(map(methodcaller("get", member), objects)) for member in ("name", "id", "pinned")]
    # The types are checked here, because 1 and true are the same key of the dict below.
    for column, type_ in zip(columns, (str, int, str), strict=True):
        if set(map(type, column)) - {type_, type(None), object}:
            return None
    keys = list(zip(*columns, strict=True))
    for key in dict.fromkeys(keys):
        if key not in known:
            known[key] = _program(*key)
    return list(map(known.__getitem__, keys))


def _as_object(program: Any) -> Any:
    if isinstance(program, str):
        return {"name": program}
    return {"name": _EMPTY} if program is None else program


def _program(name: Any, id_: Any, pinned: Any) -> ProgramObject | None:
    if name is _EMPTY:
        return None
    members = {"name": name, "id": id_, "pinned": pinned}
    return ProgramObject.model_validate({member: value for member, value in members.items() if value is not None})
