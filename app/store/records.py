"""What the journal keeps, as plain frozen records."""

from dataclasses import dataclass, replace
from typing import Any, Literal

State = Literal["applied", "unconfirmed", "confirmed", "reverted", "expired"]
# `expire`: undone, as nobody confirmed it; `reconcile`, `restore`: drift was written over with what is recorded, at a
# caller's wish or at the start; `adopt`: drift was taken as what is to be.
Kind = Literal["set", "clear", "replace", "update", "revert", "expire", "reconcile", "restore", "adopt"]


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A program as it was when it was recorded. `pinned`: a path it is known by; None where there is none.

    `id` 0: it was recorded in an earlier boot, and which one it is now is not known.
    """

    name: str | None
    id: int
    tag: str | None
    pinned: str | None = None


@dataclass(slots=True, unsafe_hash=True)  # as good as frozen: a table has many, and frozen ones take long to make
class EntryChange:
    """One entry of a change. None: empty."""

    index: int
    before: ProgramRecord | None
    after: ProgramRecord | None


@dataclass(slots=True)  # not frozen, as making a frozen one takes three times as long
class Change:
    """A change of entries. `at`, `confirm_by`: seconds since 1970; `reverts`: what it undoes; `id`: 0 until journalled.

    `map_id` and `boot_id` tell which array it was: ids, also those of programs, mean nothing beyond their boot.
    """

    map: str
    map_id: int
    boot_id: str
    kind: Kind
    entries: tuple[EntryChange, ...]
    at: float
    actor: str
    request_id: str
    note: str | None = None
    state: State = "applied"
    reverts: int | None = None
    confirm_by: float | None = None
    id: int = 0


def expire(change: Change, at: float, actor: str) -> Change:
    """The change that undoes one that nobody has confirmed."""
    entries = tuple(EntryChange(entry.index, entry.after, entry.before) for entry in change.entries)
    return replace(
        change, id=0, kind="expire", entries=entries, at=at, actor=actor, note=None, state="applied",
        reverts=change.id, confirm_by=None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Waiting:
    """A change that is undone unless it is confirmed; `change.id` 0: it was still being written.

    `after`: the last change that was journalled before it;
    `deadline`: seconds of CLOCK_BOOTTIME, in the boot of the change; `keeps`: (program id, path) of the pins that were
    made for the undo; `token`: its name until it has an id.
    """

    token: str
    change: Change
    deadline: float
    keeps: tuple[tuple[int, str], ...] = ()
    after: int = 0


@dataclass(eq=False, slots=True)
class Event:
    """Something that happened. `change`: of `change`, `confirmed`, `expired`; `data`: what is told of others."""

    id: int
    type: Literal["change", "confirmed", "expired", "drift", "map", "program"]
    map: str | None
    change: Change | None = None
    data: dict[str, Any] | None = None

    @property
    def weight(self) -> int:
        """How large it is: of a table with many entries as many as they are."""
        return 1 + len(self.change.entries if self.change is not None else ())


@dataclass(frozen=True, slots=True)
class Hold:
    """A map or a program that a request had held. `object_id` means nothing beyond the boot."""

    kind: Literal["map", "program"]
    name: str
    pinned: str | None
    object_id: int | None
    boot_id: str
    create_entries: int | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """The array that the recorded entries of a map are of."""

    map_id: int
    boot_id: str
