"""Reading and writing whole program arrays with one command per entry.

The kernel in memory always works this way, Linux where the programs of this package cannot be loaded or refuse.
"""

import errno
from array import array
from typing import Final

from app.bpf.kernel import Kernel

# A program whose network device is gone keeps the id 0 for good (bpf_prog_offload_destroy()), so the lookups must end.
_MAX_LOOKUPS: Final = 100


def map_ids(kernel: Kernel, fd: int, start: int, stop: int) -> "array[int]":
    """Read a range of a program array: `Kernel.map_ids`."""
    ids = array("I", bytes(4 * (stop - start)))
    for index, id_ in kernel.map_entries(fd, start, stop):
        ids[index - start] = id_ or _look_up_again(kernel, fd, index)
    return ids


def _look_up_again(kernel: Kernel, fd: int, index: int) -> int:
    """Return the id at an index whose lookup returned 0.

    A program that is being freed has the id 0 (bpf_prog_free_id()), so by now the entry holds another one or none.
    """
    for _ in range(_MAX_LOOKUPS):
        try:
            if id_ := kernel.map_lookup(fd, index):
                return id_
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            break
    return 0


def check_arrays(indexes: "array[int]", values: "array[int]") -> None:
    """Check the arguments of `Kernel.map_write`. In an array of another typecode, -1 would be another number.

    Raises:
        ValueError: Both arrays differ in length, or their typecodes are not `I` and `i`.
    """
    if len(indexes) != len(values) or indexes.typecode != "I" or values.typecode != "i":
        raise ValueError("as many indexes (u32) as values (i32) are needed")


def map_write(kernel: Kernel, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """Write many entries of a program array: `Kernel.map_write`."""
    check_arrays(indexes, values)
    for done, (index, value) in enumerate(zip(indexes, values, strict=True)):
        try:
            if value < 0:
                kernel.map_delete(fd, index)
            else:
                kernel.map_update(fd, index, value)
        except OSError as error:
            if value >= 0 or error.errno != errno.ENOENT:
                return done, error.errno or errno.EIO
    return len(indexes), 0


class OneCallPerEntry:
    """`map_ids` and `map_write` for a kernel that has no better way."""

    def map_ids(self: Kernel, fd: int, start: int, stop: int) -> "array[int]":
        """Read a range of a program array, one lookup per entry."""
        return map_ids(self, fd, start, stop)

    def map_write(self: Kernel, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """Write many entries of a program array, one command each."""
        return map_write(self, fd, indexes, values)
