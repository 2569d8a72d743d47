"""Loading, testing and running the two programs of this package.

`LinuxKernel` gets them from `loaded` and runs them with `read` and `write`. The keeper loads them as well and passes
their fds on to the process without privileges.
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
from app.bpf.bulk import fallback
from app.bpf.bulk.map_lookup import ANSWERED, FINDER_ANSWER, PACKET_BYTES, READ_REQUEST, assemble_finder
from app.bpf.bulk.reader import CAST, ENTRIES_PER_RUN, FIELDS, assemble_reader
from app.bpf.bulk.writer import ENTRIES_PER_COPY, WriteRequest, assemble_writer
from app.bpf.kernel import Kernel
from app.bpf.syscall import bpf, bpf_retrying, call_holding_gil, call_releasing_gil
from app.bpf.uapi import BPF_F_SLEEPABLE, BPF_F_WRONLY, Cmd, MapType, ProgType


class TablePrograms(NamedTuple):
    """The fds of the writer and the reader. None: this process or this kernel cannot load the program."""

    writer: int | None = None
    reader: int | None = None


_TEST_ENTRIES: Final = ENTRIES_PER_RUN + 8  # entries of the arrays of the self-test: more than one run reads
_NO_FD: Final = (1 << 30) - 1  # not open in any process: above fs.nr_open

_loaded: TablePrograms | None = None
_lock: Final = threading.Lock()


def loaded(kernel: Kernel) -> TablePrograms:
    """Return the programs of this process; the first call loads them (0.1 s). Thread rule: any thread."""
    global _loaded  # noqa: PLW0603
    with _lock:
        if _loaded is None:
            _loaded = load(kernel)
        return _loaded


def load(kernel: Kernel) -> TablePrograms:
    """Load both programs, as far as the kernel and the rights of this process allow it.

    The writer takes CAP_BPF and CAP_PERFMON, the reader CAP_NET_ADMIN as well.

    Returns:
        Their fds, which the caller owns.
    """
    programs: list[int | None] = []
    for load_one in (load_writer, load_reader):
        try:
            programs.append(load_one(kernel))
        except (OSError, LookupError, struct.error):
            programs.append(None)  # no rights, lockdown, no BTF, or a kernel that is too old or too new
    return TablePrograms(*programs)


def load_writer(kernel: Kernel) -> int:
    """Load the writer: with an unbounded loop (Linux 6.9), else with a bounded one (Linux 5.14).

    Both programs have been tried on Linux 6.1, 6.12 and 6.18.

    Returns:
        The fd.

    Raises:
        OSError: The kernel does not load it.
    """

    def load_as(*, bounded: bool) -> int:
        code = assemble_writer(bounded=bounded)
        return kernel.prog_load(ProgType.SYSCALL, code, "table_writer", flags=BPF_F_SLEEPABLE)

    try:
        return load_as(bounded=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return load_as(bounded=True)


def load_reader(kernel: Kernel) -> int:
    """Assemble the reader for the running kernel, load it and test it: with casts, else with copies.

    Returns:
        The fd.

    Raises:
        OSError: The kernel does not load it, provides no BTF, or the self-test fails.
        LookupError: The kernel's BTF lacks a field.
        struct.error: The kernel's BTF is truncated.
    """
    with ExitStack() as stack:

        def closing(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        # The maps come first: without rights that fails at once. The fd of the second one is open for writing only.
        maps = closing(_create_test_array()), closing(_create_test_array(BPF_F_WRONLY))
        layout = btf.layout(FIELDS, [CAST])
        finder = closing(kernel.prog_load(ProgType.XDP, assemble_finder(layout), "table_proof"))
        map_fops = _find_map_fops(finder, maps)
        if CAST in layout.ids:
            with suppress(OSError):
                return _load_tested(kernel, assemble_reader(layout, map_fops, cast=True), maps, finder)
        return _load_tested(kernel, assemble_reader(layout, map_fops, cast=False), maps, finder)


def _create_test_array(flags: int = 0) -> int:
    fields = attr.MapCreate(
        map_type=MapType.PROG_ARRAY,
        key_size=4,
        value_size=4,
        max_entries=_TEST_ENTRIES,
        map_flags=flags,
        map_name=b"proof",
    )
    return bpf(Cmd.MAP_CREATE, fields)


def _find_map_fops(finder: int, maps: tuple[int, int]) -> int:
    """Return the address of the kernel's bpf_map_fops, by which the reader recognises the file of a map.

    Raises:
        OSError: ENOTSUP if the finder's answers contradict what is known: two maps have the same operations, a program
            has others, and /proc/self/status has the size of the table of files.
    """
    run = _PacketRun(finder)
    answers = [run.find(fd) for fd in (*maps, finder)]
    of_map, of_other_map, of_program = (f_op for f_op, _ in answers)
    size = int(Path("/proc/self/status").read_text("ascii").split("FDSize:")[1].split()[0])
    if of_map != of_other_map or of_map == of_program or {max_fds for _, max_fds in answers} != {size}:
        raise OSError(errno.ENOTSUP, "the files of this process are not where the kernel's BTF says")
    return of_map


def _load_tested(kernel: Kernel, code: bytes, maps: tuple[int, int], other: int) -> int:
    """Load a reader and return its fd. OSError if the kernel does not load it or the self-test fails."""
    reader = kernel.prog_load(ProgType.XDP, code, "table_reader")
    try:
        self_test(kernel, reader, maps, other)
    except BaseException:
        os.close(reader)
        raise
    return reader


def self_test(kernel: Kernel, reader: int, maps: tuple[int, int], other: int) -> None:
    """Compare the reader's answers with plain lookups, and check that it refuses what it must refuse.

    Args:
        kernel: Makes the plain lookups.
        reader: The fd of the reader.
        maps: Two program arrays of _TEST_ENTRIES; the first one is filled, the fd of the second is write-only.
        other: The fd of another XDP program.

    Raises:
        OSError: ENOTSUP if an answer is wrong.
    """
    fd, write_only_fd = maps
    for index, program in ((0, reader), (3, other), (ENTRIES_PER_RUN - 1, other), (ENTRIES_PER_RUN, reader)):
        kernel.map_update(fd, index, program)
    run, id_, size = _PacketRun(reader), kernel.map_info(fd).id, _TEST_ENTRIES
    ids = array("I", bytes(2 * PACKET_BYTES))
    answers = [run.request(fd, id_, size, start, size, ids, start) for start in (0, ENTRIES_PER_RUN)]
    to_refuse = ((fd, id_ + 1, size, 0, 1), (fd, id_, size - 1, 0, 1), (fd, id_, size, 0, size + 1),
                 (write_only_fd, kernel.map_info(write_only_fd).id, size, 0, 1), (reader, id_, size, 0, 1),
                 (_NO_FD, id_, size, 0, 1))  # fmt: skip
    if (
        not all(answers)
        or ids[:size] != fallback.map_ids(kernel, fd, 0, size)
        or any(run.request(*wrong) for wrong in to_refuse)
    ):
        raise OSError(errno.ENOTSUP, "the reader's answers differ from those of plain lookups")


class _PacketRun:
    """Runs the reader or the finder on a packet of its own. Thread rule: one thread at a time."""

    def __init__(self, program: int) -> None:
        self._packet = ctypes.create_string_buffer(PACKET_BYTES)
        self._fields = attr.TestRun(prog_fd=program, data_size_in=PACKET_BYTES, data_in=ctypes.addressof(self._packet))

    def request(
        self, fd: int, id_: int, max_entries: int, start: int, stop: int, ids: "array[int] | None" = None, at: int = 0
    ) -> bool:
        """Send one READ_REQUEST. Takes a few microseconds and holds the GIL.

        Args:
            fd: The array.
            id_: Its id.
            max_entries: Its size.
            start: The first index to read.
            stop: The index behind the last one.
            ids: Where the answer goes; None leaves it in the packet. PACKET_BYTES are written.
            at: The position in `ids` where the answer begins.

        Returns:
            Whether the program answers; False where it refuses.

        Raises:
            OSError: The kernel does not run the program.
        """
        READ_REQUEST.pack_into(self._packet, 0, fd, id_, max_entries, start, stop)
        fields = self._fields
        fields.data_out = fields.data_in if ids is None else ids.buffer_info()[0] + ids.itemsize * at
        fields.data_size_out = PACKET_BYTES
        bpf_retrying(Cmd.PROG_TEST_RUN, fields, call_holding_gil)
        return bool(fields.retval == ANSWERED)

    def find(self, fd: int) -> tuple[int, int]:
        """Run the finder, and return (f_op of the file behind the fd, max_fds of this process's table of files).

        Raises:
            OSError: ENOTSUP if it finds no file.
        """
        if not self.request(fd, 0, 0, 0, 0):
            raise OSError(errno.ENOTSUP, "the finder finds no file behind an open fd")
        f_op, max_fds = FINDER_ANSWER.unpack_from(self._packet)
        return f_op, max_fds


def write(program: int, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
    """Write many entries with the writer: `Kernel.map_write`. Leaves the arguments as they are.

    Args:
        program: The fd of the writer.
        fd: A program array.
        indexes: u32.
        values: Fds of programs, i32; negative to clear.

    Returns:
        (number of entries written, errno with which the next one was refused, or 0).

    Raises:
        OSError: The kernel does not run the program.
        ValueError: As `Kernel.map_write`.
    """
    fallback.check_arrays(indexes, values)
    count, done = len(indexes), 0
    padding = bytes(4 * ENTRIES_PER_COPY)
    indexes, values = indexes + array("I", padding), values + array("i", padding)
    request = WriteRequest(map_fd=fd)
    indexes_address, values_address = indexes.buffer_info()[0], values.buffer_info()[0]
    while done < count:
        request.count = count - done
        request.indexes, request.values = indexes_address + 4 * done, values_address + 4 * done
        number = run_writer(program, request)
        done += request.done
        if number:
            return done, number
    return done, 0


def run_writer(program: int, request: WriteRequest) -> int:
    """Run the writer once, without the GIL. The run may end before all entries are written.

    Returns:
        The errno with which an entry was refused, or 0. `request.done` is the number of entries written.

    Raises:
        OSError: The kernel does not run the program.
    """
    fields = attr.TestRunContext(prog_fd=program, ctx_size_in=ctypes.sizeof(request), ctx_in=ctypes.addressof(request))
    bpf_retrying(Cmd.PROG_TEST_RUN, fields, call_releasing_gil)
    return int(fields.retval)


def read(kernel: Kernel, program: int, fd: int, start: int, stop: int) -> "array[int]":
    """Read a range of a program array with the reader, and with plain lookups where it refuses: `Kernel.map_ids`.

    Args:
        kernel: Makes the plain lookups.
        program: The fd of the reader.
        fd: A program array.
        start: The first index.
        stop: The index behind the last one.

    Raises:
        OSError: The kernel does not run the program, or refuses a lookup.
    """
    info, run = kernel.map_info(fd), _PacketRun(program)
    ids = array("I", bytes(4 * (stop - start) + PACKET_BYTES))  # the kernel writes whole packets
    for at in range(start, stop, ENTRIES_PER_RUN):
        end = min(at + ENTRIES_PER_RUN, stop)
        if not run.request(fd, info.id, info.max_entries, at, end, ids, at - start):
            ids[at - start : end - start] = fallback.map_ids(kernel, fd, at, end)
    del ids[stop - start :]
    return ids
