"""Whole tables where the kernel offers nothing better: one command an entry."""

import errno
from array import array

from app.bpf.kernel import Kernel


def map_ids(kernel: Kernel, fd: int, start: int, stop: int) -> "array[int]":
    """As Kernel.map_ids."""
    ids = array("I", bytes(4 * (stop - start)))
    for index, id_ in kernel.map_entries(fd, start, stop):
        ids[index - start] = id_
    return ids


def map_write(kernel: Kernel, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """As Kernel.map_write."""
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
