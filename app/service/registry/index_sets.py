"""Sets of a table's entries that stay small when the table is large."""

from array import array
from collections.abc import Collection, Iterator, Mapping
from itertools import compress, count


class IndexSet(Collection[int]):
    """A set of indexes: one byte for each index up to the highest."""

    def __init__(self, indexes: Collection[int]) -> None:
        """Make the set of these indexes, u32 each."""
        if isinstance(indexes, range):
            self._marks = bytearray(indexes.start) + b"\1" * len(indexes)
            return
        self._marks = marks = bytearray(max(indexes, default=-1) + 1)
        for index in indexes:
            marks[index] = 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index < len(self._marks) and bool(self._marks[index])

    def __iter__(self) -> Iterator[int]:
        return compress(count(), self._marks)

    def __len__(self) -> int:
        return self._marks.count(1)


class UnconfirmedEntries(Mapping[int, int]):
    """The entries that wait for a confirmation: by index, the id of the change. 8 bytes for each up to the highest.

    Attributes:
        waiting: By the id of the change, its deadline in seconds since 1970 and its entries.
    """

    def __init__(self) -> None:
        self._changes = array("Q")
        self._count = 0
        self.waiting: dict[int, tuple[float, Collection[int]]] = {}

    def add(self, indexes: Collection[int], change_id: int, confirm_by: float) -> None:
        """Let these entries, none of which waits yet, wait for this change."""
        self.waiting[change_id] = confirm_by, indexes
        changes = self._changes
        changes.frombytes(bytes(8 * max(0, max(indexes, default=-1) + 1 - len(changes))))
        for index in indexes:
            changes[index] = change_id
        self._count += len(indexes)

    def remove(self, indexes: Collection[int], change_id: int) -> int:
        """Let those of these entries that wait for this change wait no longer. Return how many still wait."""
        changes = self._changes
        self.waiting.pop(change_id, None)
        for index in indexes:
            if index < len(changes) and changes[index] == change_id:
                changes[index] = 0
                self._count -= 1
        return self._count

    def __getitem__(self, index: int) -> int:
        if index >= len(self._changes) or not self._changes[index]:
            raise KeyError(index)
        return self._changes[index]

    def __iter__(self) -> Iterator[int]:
        return (index for index, change_id in enumerate(self._changes) if change_id)

    def __len__(self) -> int:
        return self._count
