"""What the entries of a map are to hold, by all that was changed through the service."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from app.store.records import Array, Change, ProgramRecord


@dataclass(eq=False)
class Recorded:
    """The journal's word on one array. Thread rule: one event loop.

    `drift`: the entries where the kernel is known to differ, and the id of what they hold; `to_restore`: those that
    are still to be put back since the start; `lost`: of them, why that cannot be done.
    """

    array: Array
    entries: dict[int, ProgramRecord]
    drift: dict[int, int | None] = field(default_factory=dict)
    to_restore: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)
    not_before: float = 0.0  # s, time.monotonic(): when to try again, where the journal could not be written
    used: int = 0  # entries that pointed to a program at the last look
    ids: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {index: program.id for index, program in self.entries.items()}

    def took(self, change: Change) -> None:
        """These entries are as the change says from now on."""
        for entry in change.entries:
            self.put(entry.index, entry.after)
            self.drift.pop(entry.index, None)
            self.to_restore.discard(entry.index)
            self.lost.pop(entry.index, None)

    def put(self, index: int, program: ProgramRecord | None) -> None:
        """Record one entry."""
        if program is None:
            self.entries.pop(index, None)
            self.ids.pop(index, None)
        else:
            self.entries[index] = program
            self.ids[index] = program.id

    def suspects(self, found: Iterable[tuple[int, int]]) -> set[int]:
        """The entries where what was read is not what is recorded."""
        read = dict(found)
        return set() if read == self.ids else {index for index, _ in read.items() ^ self.ids.items()}
