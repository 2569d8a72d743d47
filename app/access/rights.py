"""Rights: what a role may do, and to which maps, entries and programs it is restricted."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Literal

MAX_INDEX: Final = (1 << 32) - 1
_FEW: Final = 64  # indexes that are looked at one by one
_FLEET: Final = "fleet"  # that an actor is known from what the agent of a fleet says

Role = Literal["reader", "writer", "admin", "metrics"]


class Right(Enum):
    """The right that a route needs."""

    NONE = auto()  # health checks and the texts of problems: open to everybody
    READ = auto()
    WRITE = auto()  # entries, test runs
    ADMIN = auto()  # hold, release, reconcile, protected entries, object files
    INSPECT = auto()  # read what only an admin may see: object files, with the paths of their files
    METRICS = auto()
    DOCS = auto()  # the documentation; open to everybody where callers have tokens

    __hash__ = object.__hash__  # Enum's own is written in Python, and would take most of the time of a check


_READER: Final = frozenset({Right.NONE, Right.READ, Right.METRICS, Right.DOCS})
RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    "reader": _READER,
    "writer": _READER | {Right.WRITE},
    "admin": _READER | {Right.WRITE, Right.ADMIN, Right.INSPECT},
    "metrics": frozenset({Right.NONE, Right.METRICS}),
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of indexes. `parts`: the first and the last index of each, both included."""

    parts: tuple[tuple[int, int], ...]

    def __contains__(self, index: int) -> bool:
        return any(first <= index <= last for first, last in self.parts)

    def texts(self) -> list[str]:
        """Return the ranges as texts like "8-15" and "60", as `of` parses them."""
        return [str(first) if first == last else f"{first}-{last}" for first, last in self.parts]

    def slices(self, length: int) -> Iterator[slice]:
        """Return the ranges as slices of a table of this length. They may overlap."""
        for first, last in self.parts:
            if first < length:
                yield slice(first, min(last + 1, length))

    def mask(self, indexes: Collection[int]) -> bytes:
        """Return a byte for each index: 1 if it is within the ranges, else 0."""
        if len(indexes) <= _FEW:
            return bytes(index in self for index in indexes)
        marks = bytearray(max(indexes) + 1)
        for each in self.slices(len(marks)):
            marks[each] = b"\1" * (each.stop - each.start)
        return bytes(map(marks.__getitem__, indexes))

    def count(self, first: int, last: int) -> int:
        """Return how many of the indexes from `first` to `last` are within the ranges."""
        found, following = 0, first  # what is below `following` is counted
        for start, stop in sorted(self.parts):
            found += max(0, min(stop, last) - max(start, following) + 1)
            following = max(following, stop + 1)
        return found

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ranges":
        """Parse texts like "8-15" and "60".

        Raises:
            ValueError: One of them is no range of u32 indexes.
        """
        return cls(tuple(_parse_range(text) for text in texts))


def _parse_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(each.isascii() and each.isdigit() and int(each) <= MAX_INDEX for each in numbers):
        raise ValueError('is neither an index like "60" nor a range like "0-3"')
    if int(numbers[0]) > int(numbers[1]):
        raise ValueError("is a range that ends before it begins")
    return int(numbers[0]), int(numbers[1])


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, restricted to maps, entries and programs; in a fleet also to nodes with certain labels.

    Maps and programs are given by the names they are held under. None: no restriction.
    """

    role: Role
    maps: frozenset[str] | None = None
    entries: Ranges | None = None
    programs: frozenset[str] | None = None
    labels: frozenset[tuple[str, str]] | None = None
    is_unbounded: bool = field(init=False)  # whether it allows everything

    def __post_init__(self) -> None:
        restrictions = {self.maps, self.entries, self.programs, self.labels}
        object.__setattr__(self, "is_unbounded", self.role == "admin" and restrictions == {None})

    def allows(self, right: Right) -> bool:
        """Whether the role has this right, whatever the restrictions."""
        return right in RIGHTS[self.role]

    def has_map(self, name: str) -> bool:
        """Whether this map is within the restrictions."""
        return self.maps is None or name in self.maps

    def has_entry(self, index: int) -> bool:
        """Whether entries with this index are within the restrictions."""
        return self.entries is None or index in self.entries

    def has_program(self, name: str | None) -> bool:
        """Whether this program is within the restrictions. None: a program that is not held."""
        return self.programs is None or name in self.programs

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels, of a node or of a selector, have all those of the restrictions."""
        return self.labels is None or self.labels <= labels.items()


NONE: Final = Ranges(())
EVERYTHING: Final = Grant("admin")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who sends a request.

    Attributes:
        name: As changes name them. It says how that is known: `token:deploy`, `unix:root`.
        grant: What they may do. None: nothing.
        expires: When that ends, in seconds since 1970. None: it does not.
        may_name_others: They may say that others ask by way of them.
        via: Who has sent the request and named this actor. None: the actor has sent it.
    """

    name: str
    grant: Grant | None
    expires: float | None = None
    may_name_others: bool = False
    via: str | None = None

    @property
    def sender(self) -> str:
        """Who has sent the request, as limits count them."""
        return self.via or self.name

    def on_behalf_of(self, name: str) -> "Actor":
        """Return the actor for whom this one sends a request. The rights are those of this one."""
        return Actor(f"{_FLEET}:{name}", self.grant, self.expires, via=self.name)
