"""What requests bring of many entries, as JSON: checked at once where that can be, and else one by one."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter, methodcaller
from typing import Annotated, Any, Final, Self

from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from app.api.schemas.fields import U32
from app.api.schemas.requests import Input, ProgramObject, ProgramReference, given, without
from app.api.schemas.responses import EntryProgram
from app.service.objects.source import checked_name
from app.store.records import NUMBERS

Given = str | ProgramObject | EntryProgram | None

_NULL: Final = object()


class ListedEntry(Input):
    """One entry of a table. An entry as GET answers it can be sent back."""

    index: U32 = Field(examples=[3])
    program: ProgramReference | None = Field(description="null: empty.", examples=["drop", None])
    map: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")


@dataclass(frozen=True, slots=True)
class Listed:
    """The entries that are listed: `indexes`, u32, and for each what it is to point to; null: empty."""

    indexes: "array[int]"
    programs: Sequence[Given]

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        each = handler.generate_schema(Annotated[list[ListedEntry], Field(fail_fast=True)])
        return core_schema.no_info_wrap_validator_function(cls._of, each)

    @classmethod
    def _of(cls, value: Any, one_by_one: ValidatorFunctionWrapHandler) -> "Listed":
        found = _listed_at_once(value) if isinstance(value, list) else None
        if found is not None:
            return found
        entries: list[ListedEntry] = one_by_one(value)
        return cls(array(NUMBERS, [each.index for each in entries]), [each.program for each in entries])


def _names_at_once(value: Any, one_by_one: ValidatorFunctionWrapHandler) -> Any:
    """A list of names; `one_by_one` tells what is wrong."""
    try:
        return (isinstance(value, list) and _programs_at_once(value)) or one_by_one(value)
    except (TypeError, ValueError):
        return one_by_one(value)


class UpdateEntries(Input):
    """The entries to change, in this order. What GET answers can be sent back."""

    entries: Listed
    map: Any = Field(None, description="Ignored.")
    max_entries: Any = Field(None, description="Ignored.")
    etag: Any = Field(None, description="Ignored.")
    next: None = Field(None, description="A page is not the whole table: only null is taken.")


class ReplaceEntries(Input):
    """The whole table: what is not listed is cleared. Either `entries`, or `programs`, where the place is the index."""

    model_config = ConfigDict(
        json_schema_extra={"if": given("entries"), "then": without("programs"), "else": given("programs")}
    )

    entries: Listed | None = None
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


def _listed_at_once(entries: list[Any]) -> Listed | None:
    """None: something is wrong, and to be told of by whoever looks at each."""
    try:
        indexes = list(map(itemgetter("index"), entries))
        named = list(map(itemgetter("program"), entries))
        if set().union(*entries) - ListedEntry.model_fields.keys() or set(map(type, indexes)) - {int}:
            return None
        programs = _programs_at_once(named)
        return None if programs is None else Listed(array(NUMBERS, indexes), programs)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _programs_at_once(programs: list[Any]) -> Sequence[Given] | None:
    """Each name and each object is checked once, as a table of 65,536 has few. ValueError, TypeError, or None."""
    types = set(map(type, programs))
    if types <= {str, type(None)}:
        for name in set(programs) - {None}:
            checked_name(name)
        return programs
    objects = programs if types == {dict} else [_as_object(each) for each in programs]
    if set().union(*objects) - ProgramObject.model_fields.keys():
        return None
    parts = [list(map(methodcaller("get", part), objects)) for part in ("name", "id", "pinned")]
    # Told apart by type as well: 1 and true are equal.
    for part, type_ in zip(parts, (str, int, str), strict=True):
        if set(map(type, part)) - {type_, type(None), object}:
            return None
    keys = list(zip(*parts, strict=True))
    made = {key: _program(*key) for key in dict.fromkeys(keys)}
    return list(map(made.__getitem__, keys))


def _as_object(program: Any) -> Any:
    if isinstance(program, str):
        return {"name": program}
    return {"name": _NULL} if program is None else program


def _program(name: Any, id_: Any, pinned: Any) -> ProgramObject | None:
    if name is _NULL:
        return None
    parts = {"name": name, "id": id_, "pinned": pinned}
    return ProgramObject.model_validate({part: value for part, value in parts.items() if value is not None})
