"""What etcd holds, and what happens to it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value.

    Attributes:
        key: The key.
        value: Its value.
        create_revision: The revision of the store in which it was created.
        mod_revision: The revision of the store in which it was written last.
        lease: The lease that it hangs on; 0: none.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a prefix, as they were in one revision of the store."""

    revision: int
    items: dict[str, Item]


@dataclass(frozen=True, slots=True)
class Event:
    """A key was written, or removed.

    Attributes:
        key: The key.
        item: What it holds since; None: it was removed.
        revision: The revision of the store that did it.
    """

    key: str
    item: Item | None
    revision: int


@dataclass(frozen=True, slots=True)
class Events:
    """What happened after the snapshot or the events before. Events of one revision come together.

    Attributes:
        revision: The revision up to which everything is told by now.
        events: In order. Empty if etcd only tells how far it is.
    """

    revision: int
    events: tuple[Event, ...]
