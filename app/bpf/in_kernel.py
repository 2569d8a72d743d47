"""Whole tables by two programs inside the kernel: loading them, proving them, running them.

Where the kernel or the rights of this process do not allow a program, there is none, and one_by_one.py does it.
"""

import ctypes
import errno
import os
import threading
from array import array
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from app.bpf import attr, btf, map_of_fd, one_by_one, table_reader, table_writer
from app.bpf.kernel import Kernel
from app.bpf.map_of_fd import PACKET, READING, TOLD
from app.bpf.syscall import bpf_again, long, short
from app.bpf.table_reader import AT_ONCE, CAST
from app.bpf.table_writer import Writing
from app.bpf.uapi import BPF_F_SLEEPABLE, Cmd, MapType, ProgType


class TablePrograms(NamedTuple):
    """The fds of both; None: it cannot be had here."""

    writer: int | None = None
    reader: int | None = None


_loaded: TablePrograms | None = None
_lock: Final = threading.Lock()


def loaded(kernel: Kernel) -> TablePrograms:
    """Those of this process, which loads them when it is asked for the first time (0.1 s). Thread rule: any."""
    global _loaded  # noqa: PLW0603
    with _lock:
        if _loaded is None:
            _loaded = load(kernel)
        return _loaded


def load(kernel: Kernel) -> TablePrograms:
    """Load both; the fds are the caller's. It takes CAP_BPF and CAP_PERFMON, and CAP_NET_ADMIN for the reader."""
    programs: list[int | None] = []
    for do in (load_writer, load_reader):
        try:
            programs.append(do(kernel))
        except (OSError, LookupError):  # no rights, lockdown, no BTF, or a kernel that is too old or too new
            programs.append(None)
    return TablePrograms(*programs)


def load_writer(kernel: Kernel) -> int:
    """PROG_LOAD of the writer, as this kernel takes its loop (Linux 6.9, else 5.14). OSError."""

    def loaded_as(*, bounded: bool) -> int:
        code = table_writer.writer(bounded=bounded)
        return kernel.prog_load(ProgType.SYSCALL, code, "table_writer", flags=BPF_F_SLEEPABLE)

    try:
        return loaded_as(bounded=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return loaded_as(bounded=True)


def load_reader(kernel: Kernel) -> int:
    """PROG_LOAD of the reader for this very kernel, proven: by casts, else by copies. OSError, LookupError."""
    with ExitStack() as stack:
        # First what shows whether there are any rights.
        scratch = kernel.map_create(MapType.PROG_ARRAY, 4, 4, AT_ONCE + 8, "table_proof")
        stack.callback(os.close, scratch)
        layout = btf.layout(table_reader.FIELDS, [CAST])
        finder = kernel.prog_load(ProgType.XDP, map_of_fd.operations(layout), "table_proof")
        stack.callback(os.close, finder)
        found = _Run(finder)
        if not found.ask(scratch, 0, 0, 0, 0):
            raise OSError(errno.ENOTSUP, "the file behind an fd is not where it should be")
        if CAST in layout.numbers:
            with suppress(OSError):
                return _proven(kernel, table_reader.reader(layout, found.first_word(), cast=True), scratch, finder)
        return _proven(kernel, table_reader.reader(layout, found.first_word(), cast=False), scratch, finder)


def _proven(kernel: Kernel, code: bytes, scratch: int, other: int) -> int:
    reader = kernel.prog_load(ProgType.XDP, code, "table_reader")
    try:
        _prove(kernel, scratch, reader, other)
    except BaseException:
        os.close(reader)
        raise
    return reader


def _prove(kernel: Kernel, scratch: int, reader: int, other: int) -> None:
    """OSError unless the reader tells of an array what the kernel's own lookups tell, and refuses all else."""
    for index, program in ((0, reader), (3, other), (AT_ONCE - 1, other), (AT_ONCE, reader)):
        kernel.map_update(scratch, index, program)
    info, run = kernel.map_info(scratch), _Run(reader)
    size, id_ = info.max_entries, info.id
    ids = array("I", bytes(2 * PACKET))
    tells = [run.ask(scratch, id_, size, at, size, ids, at) for at in (0, AT_ONCE)]
    told = ids[:size] == one_by_one.map_ids(kernel, scratch, 0, size)
    refused = ((scratch, id_ + 1, size, 0, 1), (scratch, id_, size - 1, 0, 1), (scratch, id_, size, 0, size + 1),
               (reader, id_, size, 0, 1), (1 << 30, id_, size, 0, 1))  # fmt: skip
    if not all(tells) or not told or any(run.ask(*each) for each in refused):
        raise OSError(errno.ENOTSUP, "the reader does not tell what is there")


class _Run:
    """Runs a program on a packet of one's own. Thread rule: one."""

    def __init__(self, program: int) -> None:
        self._packet = ctypes.create_string_buffer(PACKET)
        self._fields = attr.TestRun(prog_fd=program, data_size_in=PACKET, data_in=ctypes.addressof(self._packet))

    def ask(
        self, fd: int, id_: int, max_entries: int, start: int, stop: int, ids: "array[int] | None" = None, at: int = 0
    ) -> bool:
        """Whether it tells, into `ids` from index `at` on (PACKET bytes). A few µs, so with the GIL. OSError."""
        READING.pack_into(self._packet, 0, fd, id_, max_entries, start, stop)
        fields = self._fields
        fields.data_out = fields.data_in if ids is None else ids.buffer_info()[0] + ids.itemsize * at
        fields.data_size_out = PACKET
        bpf_again(Cmd.PROG_TEST_RUN, fields, short)
        return bool(fields.retval == TOLD)

    def first_word(self) -> int:
        """What was told, where `ids` were not given: a u64."""
        return int.from_bytes(self._packet.raw[:8], "little")


def write(program: int, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """As Kernel.map_write, by the writer; it keeps nothing of what it is given. OSError: the kernel does not run it."""
    if len(indexes) != len(values):
        raise ValueError("as many indexes as values")
    count, done = len(indexes), 0
    context = Writing(map_fd=fd)
    fields = attr.TestRunContext(prog_fd=program, ctx_size_in=ctypes.sizeof(context), ctx_in=ctypes.addressof(context))
    at, values_at = indexes.buffer_info()[0], values.buffer_info()[0]
    while done < count:
        context.count, context.indexes, context.values = count - done, at + 4 * done, values_at + 4 * done
        bpf_again(Cmd.PROG_TEST_RUN, fields, long)
        done += context.done
        if fields.retval:
            return done, fields.retval
    return done, 0


def read(kernel: Kernel, program: int, fd: int, start: int, stop: int) -> "array[int]":
    """As Kernel.map_ids, by the reader, and by plain lookups where it refuses. OSError."""
    info, run = kernel.map_info(fd), _Run(program)
    ids = array("I", bytes(4 * (stop - start) + PACKET))  # the kernel writes whole packets
    for at in range(start, stop, AT_ONCE):
        end = min(at + AT_ONCE, stop)
        if not run.ask(fd, info.id, info.max_entries, at, end, ids, at - start):
            ids[at - start : end - start] = one_by_one.map_ids(kernel, fd, at, end)
    del ids[stop - start :]
    return ids
