"""What a table is to hold, in compact form: programs, and runs of entries that hold the same one."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Final, Self

from app.fleet_store.keys import checked_name

MAX_BYTES: Final = 512 << 10  # of the compact form. etcd takes 1.5 MiB a request
MAX_ENTRIES: Final = 1 << 20  # in the range
_MAX_INDEX: Final = (1 << 32) - 1
_MAX_TAGS: Final = 16  # allowed tags of a program
_MAX_JSON_BYTES: Final = 32 << 20  # what the compact form may grow to when it is unpacked
_TAG_DIGITS: Final = frozenset("0123456789abcdef")


class BadSpecification(ValueError):
    """It is no specification of a table. The text is one line: what is wrong with it."""


@dataclass(frozen=True, slots=True, order=True)
class ProgramName:
    """A program, by the name under which the node's service holds it.

    Attributes:
        name: The held name.
        tags: If there are any, the program must have one of these tags: 16 hexadecimal digits each. Kernels differ in
            how they compute a tag, so a fleet with several kernels lists several.
    """

    name: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring entries with the same program.

    Attributes:
        first: The first index, u32.
        last: The last index, u32.
        program: What they are to hold; None: they are to be empty.
    """

    first: int
    last: int
    program: ProgramName | None


@dataclass(frozen=True, slots=True)
class Specification:
    """What the entries of a range are to hold. Entries outside of the range are none of the fleet's business.

    Attributes:
        first: The first index of the range, u32.
        last: The last index of the range, u32.
        runs: All entries of the range, by rising index, without gaps. Neighbours differ in their program.
    """

    first: int
    last: int
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= _MAX_INDEX:
            message = (
                f"the range {self.first}-{self.last} is none: 0 to {_MAX_INDEX}, the first number not above the last"
            )
            raise BadSpecification(message)
        if self.size > MAX_ENTRIES:
            message = f"the range has {self.size} entries; at most {MAX_ENTRIES} are allowed"
            raise BadSpecification(message)
        ends = [(self.first - 1, self.first - 1), *((run.first, run.last) for run in self.runs)]
        if any(after != before + 1 for (_, before), (after, _) in pairwise(ends)) or ends[-1][1] != self.last:
            message = f"the runs do not cover the range {self.first}-{self.last} from end to end"
            raise BadSpecification(message)
        if any(run.last < run.first for run in self.runs):
            raise BadSpecification("a run ends before it begins")
        if any(before.program == after.program for before, after in pairwise(self.runs)):
            raise BadSpecification("two neighbouring runs hold the same program")

    @property
    def size(self) -> int:
        """How many entries the range has."""
        return self.last - self.first + 1

    @classmethod
    def from_programs(cls, first: int, programs: Sequence[ProgramName | None]) -> Self:
        """Make a specification of what each entry is to hold, from `first` on.

        Raises:
            BadSpecification: It would be none.
        """
        runs, index = [], first
        for program, group in groupby(programs):
            length = sum(1 for _ in group)
            runs.append(Run(index, index + length - 1, program))
            index += length
        return cls(first, first + len(programs) - 1, tuple(runs))

    @classmethod
    def from_entries(cls, first: int, last: int, entries: Mapping[int, ProgramName | None]) -> Self:
        """Make a specification of a range. Entries that are not among `entries` are to be empty.

        Raises:
            BadSpecification: An index is outside of the range, or the range is none.
        """
        outside = [index for index in entries if not first <= index <= last]
        if outside:
            message = f"entry {min(outside)} is outside of the range {first}-{last}"
            raise BadSpecification(message)
        runs: list[Run] = []
        index = first
        for filled in sorted(entries):
            if index < filled:
                _append(runs, Run(index, filled - 1, None))
            _append(runs, Run(filled, filled, entries[filled]))
            index = filled + 1
        if index <= last:
            _append(runs, Run(index, last, None))
        return cls(first, last, tuple(runs))

    def programs(self) -> list[ProgramName]:
        """Return the programs that it names, each once."""
        return sorted({run.program for run in self.runs if run.program is not None})

    def entries(self) -> Iterator[tuple[int, ProgramName | None]]:
        """Yield each index of the range with what it is to hold."""
        for run in self.runs:
            for index in range(run.first, run.last + 1):
                yield index, run.program

    def covers(self, other: "Specification") -> bool:
        """Whether each entry of the other one's range is in this one's."""
        return self.first <= other.first and other.last <= self.last

    def to_bytes(self) -> bytes:
        """Return the compact form. Equal specifications have equal bytes.

        Raises:
            BadSpecification: It is larger than MAX_BYTES.
        """
        programs = self.programs()
        numbers: dict[ProgramName | None, int] = {program: place for place, program in enumerate(programs, 1)}
        numbers[None] = 0
        document = {
            "range": [self.first, self.last],
            "programs": [[program.name, *program.tags] for program in programs],
            "runs": [number for run in self.runs for number in (run.last - run.first + 1, numbers[run.program])],
        }
        packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), level=9)
        if len(packed) > MAX_BYTES:
            message = f"the table takes {len(packed)} bytes in compact form; at most {MAX_BYTES} are allowed"
            raise BadSpecification(message)
        return packed

    @classmethod
    def from_bytes(cls, packed: bytes) -> Self:
        """Return the specification of a compact form.

        Raises:
            BadSpecification: These bytes are none.
        """
        document = _unpacked(packed)
        try:
            first, last = map(_number, document["range"])
            programs: list[ProgramName | None] = [None, *(_program(each) for each in document["programs"])]
            numbers = [_number(each) for each in document["runs"]]
            runs, index = [], first
            for length, program in zip(numbers[::2], numbers[1::2], strict=True):
                runs.append(Run(index, index + length - 1, programs[program]))
                index += length
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = f"the specification is malformed: {error}"
            raise BadSpecification(message) from error
        return cls(first, last, tuple(runs))


def _append(runs: list[Run], run: Run) -> None:
    """Add a run that begins where the last one ends, and merge the two if they hold the same program."""
    if runs and runs[-1].program == run.program:
        run = Run(runs.pop().first, run.last, run.program)
    runs.append(run)


def _unpacked(packed: bytes) -> dict[str, Any]:
    if len(packed) > MAX_BYTES:
        message = f"the specification has {len(packed)} bytes; at most {MAX_BYTES} are allowed"
        raise BadSpecification(message)
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, _MAX_JSON_BYTES)
        document = json.loads(text) if unpacker.eof else None
    except (zlib.error, ValueError, RecursionError) as error:
        message = f"the specification cannot be unpacked: {error}"
        raise BadSpecification(message) from error
    if not isinstance(document, dict):
        raise BadSpecification("the specification is cut off, too large or no JSON object")
    return document


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INDEX:
        message = f"{value!r} is no number from 0 to {_MAX_INDEX}"
        raise ValueError(message)
    return value


def _program(value: object) -> ProgramName:
    if not isinstance(value, list) or not 1 <= len(value) <= 1 + _MAX_TAGS:
        message = f"{value!r} is no program with at most {_MAX_TAGS} tags"
        raise ValueError(message)
    name, *tags = value
    if not isinstance(name, str):
        message = f"{name!r} is no name of a program"
        raise TypeError(message)
    for tag in tags:
        if not isinstance(tag, str) or len(tag) != 16 or not _TAG_DIGITS.issuperset(tag):
            message = f"{tag!r} is no tag: 16 hexadecimal digits, in lower case"
            raise ValueError(message)
    return ProgramName(checked_name(name), tuple(tags))
