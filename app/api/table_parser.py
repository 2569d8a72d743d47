"""Parsing the body of a large table in pieces, so that other requests are answered meanwhile.

pydantic_core parses a body at once, and holds the interpreter until it is done: for the largest body that is permitted
these are seconds. So the list of entries is cut between two of them every 64 KiB. Each piece is parsed and validated,
and only an index and a program of each entry are kept. The first piece with an error ends it, and so does one entry
more than the map has.
"""

import asyncio
import re
from array import array
from collections.abc import AsyncIterator
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from app.api.json_members import MESSAGE, RepeatedMembers, check_members
from app.api.schemas.requests import MAX_MEMBERS
from app.api.schemas.table_requests import ListedEntries, ListedProgram, ListedPrograms, PieceValidator
from app.store.number_arrays import NUMBERS

_PIECE_BYTES: Final = 1 << 16  # of the body that are parsed at a time, about 1 ms; no entry may be longer
_MAX_PROGRAMS: Final = 1 << 16  # different ones in a body; each would be opened
_BLANKS: Final = re.compile(rb"[ \t\r\n]*+")
# A string, or one character of structure. A quote alone begins a string that does not end.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|["{}\[\],:]', re.DOTALL)
_DEPTH: Final = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}


class MalformedTable(Exception):
    """The body is no JSON."""


class InvalidTable(Exception):
    """The body is JSON, but no table.

    Attributes:
        errors: As pydantic gives them: `loc` is a place in the body.
    """

    def __init__(self, errors: list[Any]) -> None:
        super().__init__(errors)
        self.errors = errors


async def parse_table(body: bytearray, max_entries: int) -> dict[str, Any]:
    """Parse the body of a request that changes a table.

    Args:
        body: The body, which loses the blanks at its end.
        max_entries: Of the map. Entries after one more than that are not looked at, because the body is refused anyway.

    Returns:
        The members of the body's object. Its lists of entries and of programs are validated.

    Raises:
        MalformedTable: The body is no JSON.
        InvalidTable: An entry or a program is wrong. The errors are those of the first that is.
    """
    parser = _Parser(body)
    if parser.next() in b'["-0123456789tfn':
        raise InvalidTable([{"loc": (), "msg": "Input should be an object"}])
    parser.skip(b"{")
    members: dict[str, Any] = {}
    if parser.next() == b"}":
        parser.skip(b"}")
        parser.check_end()
        return members
    for _ in range(MAX_MEMBERS):
        name = parser.value(b":")
        parser.skip(b":")
        if not isinstance(name, str):
            raise parser.malformed("key must be a string")
        if name in members:
            raise InvalidTable([{"loc": (name,), "msg": MESSAGE}])
        if name not in {"entries", "programs"} or parser.next() != b"[":
            members[name] = parser.value(b",}", name)
        else:
            collected = _Entries() if name == "entries" else _Programs()
            async for piece in parser.elements(name):
                if collected.add(piece) > max_entries:
                    return members | {name: collected.result()}
                if collected.validator.distinct > _MAX_PROGRAMS:
                    raise InvalidTable([{"loc": (name,), "msg": f"has more than {_MAX_PROGRAMS} different programs"}])
                await asyncio.sleep(0)  # let other requests run
            members[name] = collected.result()
        if parser.next() == b"}":
            parser.skip(b"}")
            parser.check_end()
            return members
        parser.skip(b",")
    raise InvalidTable([{"loc": (), "msg": f"has more than {MAX_MEMBERS} members"}])


class _Parser:
    """A place in a body. It finds where values end, and pydantic_core parses them.

    Attributes:
        at: The place, in bytes.
    """

    def __init__(self, body: bytearray) -> None:
        del body[len(body.rstrip(b" \t\r\n")) :]
        self._body = body
        self.at = 0

    def next(self) -> bytes:
        """Go to the next character that is not blank, and return it. At the end of the body it is empty."""
        found = _BLANKS.match(self._body, self.at)
        self.at = self.at if found is None else found.end()
        return bytes(self._body[self.at : self.at + 1])

    def skip(self, expected: bytes) -> None:
        """Go behind a character.

        Raises:
            MalformedTable: It is not there.
        """
        if self.next() != expected:
            what = f"expected `{expected.decode()}`"
            raise self.malformed(what)
        self.at += 1

    def malformed(self, what: str) -> MalformedTable:
        """Return the error that something is wrong here."""
        return MalformedTable(f"{what} at byte {self.at}")

    def check_end(self) -> None:
        """Check that nothing follows.

        Raises:
            MalformedTable: Something does.
        """
        if self.next():
            raise self.malformed("trailing characters")

    def value(self, ends: bytes, *place: str) -> Any:
        """Parse a short value.

        Args:
            ends: The characters that may follow it.
            place: Of the value, for the error.
        """
        self.next()
        piece, depth = self._piece(), 0
        for token in _TOKEN.finditer(piece):
            text = token[0]
            if text == b'"':
                break
            if not depth and text in ends:
                value = self._parsed(piece[: token.start()])
                _check_members(piece[: token.start()], value, *place)
                self.at += token.start()
                return value
            depth += _DEPTH.get(text, 0)
        raise self._no_end(piece, *place)

    async def elements(self, name: str) -> AsyncIterator[list[Any]]:
        """Parse the list that begins here, some elements at a time."""
        self.skip(b"[")
        count, is_done = 0, False
        # Where a piece most likely ends. If it does not, parsing it fails, and it is gone through token by token.
        likely = b"}," if name == "entries" else b","
        while not is_done:
            piece = self._piece()
            cut = piece.rfind(likely) + len(likely) - 1
            elements: list[Any] | None = None
            if cut >= len(likely):
                try:
                    elements = from_json(b"[%b]" % piece[:cut], allow_inf_nan=False)
                except ValueError:
                    elements = None
            if elements is None:
                cut, is_done = _last_cut(piece)
                if cut < 0:
                    raise self._no_end(piece, name, count)
                elements = self._parsed(b"[%b]" % piece[:cut])
            _check_members(piece[:cut], elements, name, first=count)
            if not elements and (count or not is_done):
                raise self.malformed("expected a value")
            count += len(elements)
            self.at += cut + 1
            yield elements

    def _piece(self) -> bytes:
        return bytes(self._body[self.at : self.at + _PIECE_BYTES])

    def _parsed(self, piece: bytes) -> Any:
        try:
            return from_json(piece, allow_inf_nan=False)
        except ValueError as error:
            what = f"{error}, counted from a place"
            raise self.malformed(what) from error

    def _no_end(self, piece: bytes, *place: str | int) -> Exception:
        if len(piece) < _PIECE_BYTES:
            return self.malformed("the body ends within a value that begins")
        try:
            from_json(b"[" + piece, allow_inf_nan=False, allow_partial=True)
        except ValueError as error:
            return self.malformed(f"{error}, counted from a place")
        return InvalidTable([{"loc": place, "msg": f"has more than {_PIECE_BYTES} bytes"}])


def _check_members(piece: bytes, value: Any, *place: str, first: int | None = None) -> None:
    """Check that no object gives a member more than once.

    Args:
        piece: JSON, or elements of a list without its brackets.
        value: What it was parsed to.
        place: Its place in the body.
        first: For elements of a list, the place of the first of them in the list.

    Raises:
        InvalidTable: One does.
    """
    try:
        check_members(piece if first is None else b"[%b]" % piece, value)
    except RepeatedMembers as error:
        errors = [
            {
                **each,
                "loc": (
                    *place,
                    *([] if first is None else [first + each["loc"][0]]),
                    *each["loc"][first is not None :],
                ),
            }
            for each in error.errors
        ]
        raise InvalidTable(errors) from error


def _last_cut(piece: bytes) -> tuple[int, bool]:
    """Find where a piece of a list can be cut.

    Args:
        piece: What begins within a list, before one of its elements.

    Returns:
        The place of the end of the list, and true; or the place of the last comma between two elements, and false. The
        place is -1 where there is neither.
    """
    cut, depth = -1, 0
    for token in _TOKEN.finditer(piece):
        text = token[0]
        if text == b'"':
            break
        if not depth and text == b"]":
            return token.start(), True
        if not depth and text == b",":
            cut = token.start()
        depth += _DEPTH.get(text, 0)
    return cut, False


class _Entries:
    """The entries of a table, as far as they were parsed."""

    def __init__(self) -> None:
        self._indexes: array[int] = array(NUMBERS)
        self._programs: list[ListedProgram] = []
        self.validator = PieceValidator()

    def add(self, entries: list[Any]) -> int:
        """Validate some more, and return how many there are."""
        try:
            valid = self.validator.entries(entries)
        except ValidationError as error:
            raise _invalid(error, "entries", len(self._indexes)) from error
        self._indexes += valid.indexes
        self._programs += valid.programs
        return len(self._indexes)

    def result(self) -> ListedEntries:
        return ListedEntries(self._indexes, self._programs)


class _Programs:
    """The programs of a table in the short form, as far as they were parsed."""

    def __init__(self) -> None:
        self._programs = ListedPrograms()
        self.validator = PieceValidator()

    def add(self, programs: list[Any]) -> int:
        """Validate some more, and return how many there are."""
        try:
            self._programs += self.validator.programs(programs)
        except ValidationError as error:
            raise _invalid(error, "programs", len(self._programs)) from error
        return len(self._programs)

    def result(self) -> ListedPrograms:
        return self._programs


def _invalid(error: ValidationError, name: str, before: int) -> InvalidTable:
    """Return the error with its places in the whole list. `before`: how many elements were valid before this piece."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return InvalidTable(
        [{"loc": (name, before + int(each["loc"][0]), *each["loc"][1:]), "msg": each["msg"]} for each in errors]
    )
