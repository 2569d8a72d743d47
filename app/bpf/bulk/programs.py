"""Whole tables by two programs inside the kernel: loading them, proving them, running them.

Where the kernel or the rights of this process do not allow a program, there is none, and one_by_one.py does it.
"""

import ctypes
import errno
import os
import struct
import threading
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from app.bpf import attr, btf
from app.bpf.bulk import fallback as one_by_one
from app.bpf.bulk import map_lookup as map_of_fd
from app.bpf.bulk import reader as table_reader
from app.bpf.bulk import writer as table_writer
from app.bpf.bulk.map_lookup import FOUND, PACKET, READING, TOLD
from app.bpf.bulk.reader import AT_ONCE, CAST
from app.bpf.bulk.writer import Writing
from app.bpf.kernel import Kernel
from app.bpf.syscall import bpf, bpf_retrying, call_holding_gil, call_releasing_gil
from app.bpf.uapi import BPF_F_SLEEPABLE, BPF_F_WRONLY, Cmd, MapType, ProgType


class TablePrograms(NamedTuple):
    """The fds of both; None: it cannot be had here."""

    writer: int | None = None
    reader: int | None = None


_PROOF: Final = AT_ONCE + 8  # entries of the arrays on which the reader is tried
_NO_FD: Final = (1 << 30) - 1  # beyond what any process may have open: fs.nr_open

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
        except (OSError, LookupError, struct.error):
            programs.append(None)  # no rights, lockdown, no BTF, or a kernel that is too old or too new
    return TablePrograms(*programs)


def load_writer(kernel: Kernel) -> int:
    """PROG_LOAD of the writer, as this kernel takes its loop: Linux 6.9, else 5.14. OSError.

    Both programs were tried on 6.1, 6.12 and 6.18.
    """

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
    """PROG_LOAD of the reader for this very kernel, proven: by casts, else by copies.

    OSError, LookupError, struct.error.
    """
    with ExitStack() as stack:

        def kept(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        # First what shows whether there are any rights. The second is open to be written alone.
        maps = kept(_scratch()), kept(_scratch(BPF_F_WRONLY))
        layout = btf.layout(table_reader.FIELDS, [CAST])
        finder = kept(kernel.prog_load(ProgType.XDP, map_of_fd.finder(layout), "table_proof"))
        map_fops = _map_fops(finder, maps)
        if CAST in layout.numbers:
            with suppress(OSError):
                return _self_tested(kernel, table_reader.reader(layout, map_fops, cast=True), maps, finder)
        return _self_tested(kernel, table_reader.reader(layout, map_fops, cast=False), maps, finder)


def _scratch(flags: int = 0) -> int:
    fields = attr.MapCreate(
        map_type=MapType.PROG_ARRAY, key_size=4, value_size=4, max_entries=_PROOF, map_flags=flags, map_name=b"proof"
    )
    return bpf(Cmd.MAP_CREATE, fields)


def _map_fops(finder: int, maps: tuple[int, int]) -> int:
    """The address of the kernel's bpf_map_fops: that of all maps, and of nothing else. OSError."""
    run = _Run(finder)
    told = [run.found(fd) for fd in (*maps, finder)]
    of_map, of_other_map, of_program = (f_op for f_op, _ in told)
    size = int(Path("/proc/self/status").read_text("ascii").split("FDSize:")[1].split()[0])
    if of_map != of_other_map or of_map == of_program or {max_fds for _, max_fds in told} != {size}:
        raise OSError(errno.ENOTSUP, "the files of this process are not where they should be")
    return of_map


def _self_tested(kernel: Kernel, code: bytes, maps: tuple[int, int], other: int) -> int:
    """PROG_LOAD. OSError also unless it tells of an array what lookups tell, and refuses all else."""
    reader = kernel.prog_load(ProgType.XDP, code, "table_reader")
    try:
        self_test(kernel, reader, maps, other)
    except BaseException:
        os.close(reader)
        raise
    return reader


def self_test(kernel: Kernel, reader: int, maps: tuple[int, int], other: int) -> None:
    """Compare what the reader finds with lookups. OSError where they differ."""
    fd, for_writing = maps
    for index, program in ((0, reader), (3, other), (AT_ONCE - 1, other), (AT_ONCE, reader)):
        kernel.map_update(fd, index, program)
    run, id_, size = _Run(reader), kernel.map_info(fd).id, _PROOF
    ids = array("I", bytes(2 * PACKET))
    tells = [run.ask(fd, id_, size, at, size, ids, at) for at in (0, AT_ONCE)]
    refused = ((fd, id_ + 1, size, 0, 1), (fd, id_, size - 1, 0, 1), (fd, id_, size, 0, size + 1),
               (for_writing, kernel.map_info(for_writing).id, size, 0, 1), (reader, id_, size, 0, 1),
               (_NO_FD, id_, size, 0, 1))  # fmt: skip
    if not all(tells) or ids[:size] != one_by_one.map_ids(kernel, fd, 0, size) or any(run.ask(*a) for a in refused):
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
        bpf_retrying(Cmd.PROG_TEST_RUN, fields, call_holding_gil)
        return bool(fields.retval == TOLD)

    def found(self, fd: int) -> tuple[int, int]:
        """What the finder puts there. OSError."""
        if not self.ask(fd, 0, 0, 0, 0):
            raise OSError(errno.ENOTSUP, "it finds no file")
        f_op, max_fds = FOUND.unpack_from(self._packet)
        return f_op, max_fds


def write(program: int, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """As Kernel.map_write, by the writer; it keeps nothing of what it is given. OSError: the kernel does not run it."""
    one_by_one.check(indexes, values)
    count, done = len(indexes), 0
    behind = bytes(4 * table_writer.AT_ONCE)
    indexes, values = indexes + array("I", behind), values + array("i", behind)
    writing = Writing(map_fd=fd)
    at, values_at = indexes.buffer_info()[0], values.buffer_info()[0]
    while done < count:
        writing.count, writing.indexes, writing.values = count - done, at + 4 * done, values_at + 4 * done
        number = run_writer(program, writing)
        done += writing.done
        if number:
            return done, number
    return done, 0


def run_writer(program: int, writing: Writing) -> int:
    """One run, which may end before all is done: the errno of what was refused, or 0. Without the GIL. OSError."""
    fields = attr.TestRunContext(prog_fd=program, ctx_size_in=ctypes.sizeof(writing), ctx_in=ctypes.addressof(writing))
    bpf_retrying(Cmd.PROG_TEST_RUN, fields, call_releasing_gil)
    return int(fields.retval)


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
