"""Rights: what a role may do, and within which bounds."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Literal

MAX_INDEX: Final = (1 << 32) - 1

Role = Literal["reader", "writer", "admin", "metrics"]


class Right(Enum):
    """What a route asks for."""

    NONE = auto()  # open to everybody: it tells nothing
    READ = auto()
    WRITE = auto()  # entries, test runs
    ADMIN = auto()  # hold, release, reconcile, protected entries
    METRICS = auto()
    DOCS = auto()

    __hash__ = object.__hash__  # Enum's own, written in Python, would be the most of what a check costs


_READER: Final = frozenset({Right.NONE, Right.READ, Right.METRICS, Right.DOCS})
RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    "reader": _READER,
    "writer": _READER | {Right.WRITE},
    "admin": _READER | {Right.WRITE, Right.ADMIN},
    "metrics": frozenset({Right.NONE, Right.METRICS}),
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """Indexes, as `8-15` and `60` name them: (first, last) of each, both in it."""

    parts: tuple[tuple[int, int], ...]

    def __contains__(self, index: int) -> bool:
        return any(first <= index <= last for first, last in self.parts)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ranges":
        """From what was written. ValueError says what is wrong."""
        return cls(tuple(_range(text) for text in texts))


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(each.isascii() and each.isdigit() and int(each) <= MAX_INDEX for each in numbers):
        message = 'is neither an index like "60" nor a range like "0-3"'
        raise ValueError(message)
    if int(numbers[0]) > int(numbers[1]):
        message = "is a range that ends before it begins"
        raise ValueError(message)
    return int(numbers[0]), int(numbers[1])


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, bounded to maps, entries and programs (names they are held under). None: to all."""

    role: Role
    maps: frozenset[str] | None = None
    entries: Ranges | None = None
    programs: frozenset[str] | None = None
    is_unbounded: bool = field(init=False)  # whether it may do everything

    def __post_init__(self) -> None:
        bounds = {self.maps, self.entries, self.programs}
        object.__setattr__(self, "is_unbounded", self.role == "admin" and bounds == {None})

    def allows(self, right: Right) -> bool:
        """Whether the role has this right, somewhere."""
        return right in RIGHTS[self.role]

    def has_map(self, name: str) -> bool:
        """Whether this map is within the bounds."""
        return self.maps is None or name in self.maps

    def has_entry(self, index: int) -> bool:
        """Whether entries with this index are."""
        return self.entries is None or index in self.entries

    def has_program(self, name: str | None) -> bool:
        """Whether this program is; None: one that is not held."""
        return self.programs is None or name in self.programs


NONE: Final = Ranges(())
EVERYTHING: Final = Grant("admin")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks; `name` says also how that is known: `token:deploy`, `unix:root`. `grant` None: no right at all."""

    name: str
    grant: Grant | None
