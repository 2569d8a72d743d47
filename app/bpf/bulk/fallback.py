"""Whole tables where the kernel offers nothing better: one command an entry."""

import errno
from array import array
from typing import Final

from app.bpf.kernel import Kernel

_ATTEMPTS: Final = 100  # a program of a device that is gone has no id for good: bpf_prog_offload_destroy()


def map_ids(kernel: Kernel, fd: int, start: int, stop: int) -> "array[int]":
    """As Kernel.map_ids."""
    ids = array("I", bytes(4 * (stop - start)))
    for index, id_ in kernel.map_entries(fd, start, stop):
        ids[index - start] = id_ or _looked_up_again(kernel, fd, index)
    return ids


def _looked_up_again(kernel: Kernel, fd: int, index: int) -> int:
    """For an id of 0: the program was just going away (bpf_prog_free_id()), so by now another is there, or none."""
    for _ in range(_ATTEMPTS):
        try:
            if id_ := kernel.map_lookup(fd, index):
                return id_
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            break
    return 0


def check(indexes: "array[int]", values: "array[int]") -> None:
    """ValueError unless there are as many u32 indexes as i32 values: in other arrays -1 would be something else."""
    if len(indexes) != len(values) or indexes.typecode != "I" or values.typecode != "i":
        raise ValueError("as many indexes (u32) as values (i32)")


def map_write(kernel: Kernel, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """As Kernel.map_write."""
    check(indexes, values)
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


class OneByOne:
    """For a kernel that has no better way."""

    def map_ids(self: Kernel, fd: int, start: int, stop: int) -> "array[int]":
        """One by one."""
        return map_ids(self, fd, start, stop)

    def map_write(self: Kernel, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """One by one."""
        return map_write(self, fd, indexes, values)
