"""What the journal keeps, as plain frozen records."""

from dataclasses import dataclass
from typing import Literal

State = Literal["applied", "reverted"]


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A program as it was when it was recorded. `pinned`: a path it is known by; None where there is none."""

    name: str | None
    id: int
    tag: str | None
    pinned: str | None = None


@dataclass(frozen=True, slots=True)
class EntryChange:
    """One entry of a change. None: empty."""

    index: int
    before: ProgramRecord | None
    after: ProgramRecord | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of entries. `at`: seconds since 1970; `reverts`: what it undoes; `id`: 0 until it is journalled.

    `map_id` and `boot_id` tell which array it was: ids, also those of programs, mean nothing beyond their boot.
    """

    map: str
    map_id: int
    boot_id: str
    kind: str
    entries: tuple[EntryChange, ...]
    at: float
    actor: str
    request_id: str
    note: str | None = None
    state: State = "applied"
    reverts: int | None = None
    id: int = 0
