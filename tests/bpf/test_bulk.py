"""Whole tables inside the kernel: each form of both programs, tables that change during a read, and the fallback."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from array import array as numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.bpf import asm, attr, btf
from app.bpf.asm import Jump
from app.bpf.bulk import fallback, programs
from app.bpf.bulk.map_lookup import ANSWERED, PACKET_BYTES, READ_REQUEST
from app.bpf.bulk.programs import TablePrograms
from app.bpf.bulk.reader import CAST, ENTRIES_PER_RUN, FIELDS
from app.bpf.bulk.writer import WriteRequest
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf_retrying
from app.bpf.uapi import BPF_F_WRONLY, Cmd, MapType, ProgType
from tests import probes

pytestmark = pytest.mark.kernel

ENTRIES = 65_536


class Table:
    """A program array, the fds of some programs to put into it, and their `ids` in the same order."""

    def __init__(self, kernel: LinuxKernel, entries: int, programs: int = 2) -> None:
        self.kernel = kernel
        self.fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, entries)
        self.programs = [kernel.prog_load(ProgType.XDP, asm.returns(number)) for number in range(programs)]
        self.ids = [kernel.prog_info(fd).id for fd in self.programs]

    def close(self) -> None:
        for fd in (self.fd, *self.programs):
            self.kernel.close(fd)


@contextmanager
def closing(table: Table) -> Iterator[Table]:
    try:
        yield table
    finally:
        table.close()


def unknown(label: str) -> Jump:
    """An instruction that no kernel has."""
    return Jump(b"\xff" + bytes(7), label)


@pytest.fixture(params=["as this kernel has them", "as older kernels have them"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LinuxKernel]:
    """With bulk programs of its own: the newest form, and that for kernels without may_goto and bpf_rdonly_cast()."""
    if request.param == "as older kernels have them":
        monkeypatch.setattr(asm, "may_goto", unknown)
        monkeypatch.setattr(programs, "CAST", "none_such")
    kernel = LinuxKernel()
    loaded = programs.load(kernel)
    monkeypatch.setattr(kernel, "table_programs", lambda: loaded)
    lacks = (probes.writer(), probes.btf())
    assert [fd is None for fd in loaded] == [lack is not None for lack in lacks], "all that the kernel can is loaded"
    yield kernel
    for fd in loaded:
        if fd is not None:
            kernel.close(fd)


@pytest.fixture
def table(kernel: LinuxKernel) -> Iterator[Table]:
    with closing(Table(kernel, ENTRIES)) as table:
        yield table


def looked_up(table: Table, start: int = 0, stop: int = ENTRIES) -> "numbers[int]":
    return fallback.map_ids(table.kernel, table.fd, start, stop)


class TestTables:
    def test_65536_entries_are_written_and_read(self, table: Table) -> None:
        first, second = table.programs
        for values in ([first, second] * (ENTRIES // 2), [second, -1, first, first] * (ENTRIES // 4), [-1] * ENTRIES):
            written = table.kernel.map_write(table.fd, numbers("I", range(ENTRIES)), numbers("i", values))
            assert written == (ENTRIES, 0)
            ids = dict(zip((first, second, -1), (*table.ids, 0), strict=True))
            assert list(table.kernel.map_ids(table.fd, 0, ENTRIES)) == [ids[value] for value in values]
            assert table.kernel.map_ids(table.fd, 1000, 3000) == looked_up(table, 1000, 3000)

    def test_a_million_entries_are_written_and_read(self, kernel: LinuxKernel) -> None:
        with closing(Table(kernel, 1 << 20)) as table:
            indexes = numbers("I", range(1 << 20))
            values = numbers("i", table.programs * (1 << 19))
            values[777_777], values[1_000_000] = -1, -1
            assert kernel.map_write(table.fd, indexes, values) == (1 << 20, 0)
            ids = numbers("I", table.ids * (1 << 19))
            ids[777_777], ids[1_000_000] = 0, 0
            assert kernel.map_ids(table.fd, 0, 1 << 20) == ids

    def test_a_waiting_delete_lets_other_threads_run_and_ends_the_run_for_signals(self, table: Table) -> None:
        """A delete that waits for a grace period ends the run after 20 ms, and the next run continues.

        With a single CPU, there is no grace period to wait for.
        """
        probes.needs(probes.writer())
        kernel = table.kernel
        callers = [kernel.prog_load(ProgType.XDP, _constant_jumps(table.fd, range(8)))]
        kernel.map_write(table.fd, numbers("I", range(8)), numbers("i", table.programs * 4))
        indexes, values = numbers("I", range(8)), numbers("i", [-1] * 8)
        writing = WriteRequest(table.fd, 8, indexes.buffer_info()[0], values.buffer_info()[0])
        waited = time.perf_counter()
        programs.run_writer(kernel.table_programs().writer or -1, writing)
        waited = time.perf_counter() - waited
        assert 0 < writing.done < 8 or waited < 0.02, "a run ends after 20 ms, once its last entry is written"
        kernel.map_write(table.fd, indexes, numbers("i", table.programs * 4))
        others, ended = 0, threading.Event()

        def write() -> None:
            assert kernel.map_write(table.fd, indexes, values) == (8, 0)
            ended.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not ended.is_set():
            others += 1
        thread.join()
        assert others > 100 or waited < 0.02
        assert not any(looked_up(table, 0, 8))
        for fd in callers:
            kernel.close(fd)

    def test_memory_that_cannot_be_read_is_efault_and_writes_nothing(self, table: Table) -> None:
        probes.needs(probes.writer())
        indexes = numbers("I", [1])
        writing = WriteRequest(table.fd, 1, indexes.buffer_info()[0], 8)
        assert programs.run_writer(table.kernel.table_programs().writer or -1, writing) == errno.EFAULT
        assert writing.done == 0
        assert not any(looked_up(table, 0, 8))

    def test_a_write_only_fd_cannot_be_read(self, table: Table, bpffs: Path) -> None:
        table.kernel.obj_pin(table.fd, f"{bpffs}/table")
        fd = table.kernel.obj_get(f"{bpffs}/table", BPF_F_WRONLY)
        assert table.kernel.map_write(fd, numbers("I", [1]), numbers("i", table.programs[:1])) == (1, 0)
        with pytest.raises(PermissionError):
            table.kernel.map_ids(fd, 0, 8)
        table.kernel.close(fd)
        assert table.kernel.map_ids(table.fd, 0, 8) == looked_up(table, 0, 8)


def _constant_jumps(array: int, indexes: range) -> bytes:
    """A program that jumps to each index by a constant; the kernel patches its code when such an entry changes."""
    code = asm.mov_reg(6, 1)
    for index in indexes:
        code += asm.mov_reg(1, 6) + asm.map_fd(2, array) + asm.mov(3, index) + asm.tail_call()
    return code + asm.returns(2)


class TestConcurrentChanges:
    """Reading a table while it changes."""

    def test_an_entry_that_flips_is_read_as_one_of_the_two_programs(self, table: Table) -> None:
        kernel, indexes = table.kernel, numbers("I", range(ENTRIES))
        values = [numbers("i", table.programs[turn : turn + 1] * ENTRIES) for turn in (0, 1)]
        kernel.map_write(table.fd, indexes, values[0])
        ended, flips = threading.Event(), 0

        def flip() -> None:
            nonlocal flips
            while not ended.is_set():
                flips += 1
                assert kernel.map_write(table.fd, indexes, values[flips % 2]) == (ENTRIES, 0)

        seen: set[int] = set()
        mixed, enough = 0, 3 if probes.writer() else 20  # without the writer, a flip takes a call for each entry
        with _meanwhile(flip, ended):
            while (len(seen) < 2 or not mixed or flips < enough) and not ended.is_set():
                time.sleep(0)  # the other thread has its turn
                ids = set(kernel.map_ids(table.fd, 0, ENTRIES))
                seen |= ids
                mixed += len(ids) == 2
        assert seen == set(table.ids)
        assert mixed, "some were read in the midst of a flip"

    def test_a_freed_program_is_never_read_after_its_successor(self, kernel: LinuxKernel) -> None:
        """Each entry holds one short-lived program after the other: a read returns ids that were there, in order."""
        with closing(Table(kernel, 2 * ENTRIES_PER_RUN, 0)) as table:
            indexes, ended = numbers("I", range(2 * ENTRIES_PER_RUN)), threading.Event()
            given = [_put_new(kernel, table, indexes)]

            def replace() -> None:
                while not ended.is_set():
                    given.append(_put_new(kernel, table, indexes))

            last, seen = given[0], set[int]()
            with _meanwhile(replace, ended):
                deadline = time.monotonic() + 60
                while len(seen) < 200 and time.monotonic() < deadline and not ended.is_set():
                    ids = kernel.map_ids(table.fd, 0, 2 * ENTRIES_PER_RUN)
                    time.sleep(0)  # the other thread has its turn
                    assert min(ids) >= last, "an entry never goes back, and never is empty"
                    seen |= set(ids)
                    last = min(ids)
            assert seen <= set(given)
            assert len(seen) >= 200

    def test_several_threads_use_the_programs_at_once(self, kernel: LinuxKernel) -> None:
        wrong: list[str] = []

        def work(number: int) -> None:
            with closing(Table(kernel, 5000)) as table:
                for turn in range(20):
                    value = -1 if turn % 5 == 4 else table.programs[turn % 2]
                    done = kernel.map_write(table.fd, numbers("I", range(5000)), numbers("i", [value] * 5000))
                    id_ = 0 if value < 0 else table.ids[turn % 2]
                    if done != (5000, 0) or set(kernel.map_ids(table.fd, 0, 5000)) != {id_}:
                        wrong.append(f"{number} {turn} {done}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@contextmanager
def _meanwhile(do: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            failed.append(error)
            ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


def _put_new(kernel: LinuxKernel, table: Table, indexes: "numbers[int]") -> int:
    """Put a new program into all entries, which alone keep it alive, and return its id."""
    fd = kernel.prog_load(ProgType.XDP, asm.returns(2))
    id_ = kernel.prog_info(fd).id
    assert kernel.map_write(table.fd, indexes, numbers("i", [fd] * len(indexes))) == (len(indexes), 0)
    kernel.close(fd)
    return id_


class TestReader:
    """The reader alone, with the requests of an attacker."""

    def test_any_request_is_answered_as_lookups_answer_or_refused(self, table: Table) -> None:
        kernel, chance = table.kernel, random.Random(1)
        other = Table(kernel, 700)
        hash_ = kernel.map_create(MapType.HASH, 4, 4, ENTRIES)
        read, write = os.pipe()
        for each, entries in ((table, ENTRIES), (other, 700)):
            values = numbers("i", [each.programs[index % 2] if index % 3 else -1 for index in range(entries)])
            kernel.map_write(each.fd, numbers("I", range(entries)), values)
        fds = [*[table.fd, other.fd] * 9, hash_, read, *table.programs, *range(8), 1 << 20, 1 << 31, (1 << 32) - 1]
        ids = [kernel.map_info(fd).id for fd in (table.fd, other.fd, hash_)]
        told = 0
        for _ in range(20_000):
            fd, id_ = chance.choice(fds), chance.choice([*ids, *ids, 0, ids[0] + 1, (1 << 32) - 1])
            start = chance.choice([0, 1, 600, 699, 700, 65_000, ENTRIES, 1 << 31])
            stop = chance.choice([start, start + 1, start + 512, start + 600, start - 1, 700, ENTRIES, (1 << 32) - 1])
            size = chance.choice([700, ENTRIES, ENTRIES - 1, 0, 1 << 31])
            answer = _asked(kernel, fd, id_, size, start % (1 << 32), stop % (1 << 32))
            if answer is None:
                continue
            told += 1
            assert (fd, id_, size) in {(table.fd, ids[0], ENTRIES), (other.fd, ids[1], 700)}
            assert start <= stop <= size
            end = min(stop, start + ENTRIES_PER_RUN)
            assert answer[: end - start] == fallback.map_ids(kernel, fd, start, end)
        assert told > 100
        for fd in (hash_, read, write):
            os.close(fd)
        other.close()


def _asked(kernel: LinuxKernel, *reading: int) -> "numbers[int] | None":
    """The answer of the reader; None where it refuses, with a packet of zeros."""
    packet = numbers("B", READ_REQUEST.pack(*reading).ljust(PACKET_BYTES, b"\xaa"))
    at = packet.buffer_info()[0]
    fields = attr.TestRun(
        prog_fd=kernel.table_programs().reader,
        data_size_in=PACKET_BYTES,
        data_size_out=PACKET_BYTES,
        data_in=at,
        data_out=at,
    )
    bpf_retrying(Cmd.PROG_TEST_RUN, fields)
    if fields.retval != ANSWERED:
        assert not any(packet)
        return None
    return numbers("I", packet.tobytes())


class TestFallback:
    """Where a program cannot be loaded, one command per entry does the same."""

    @pytest.mark.parametrize("kept", [[], ["CAP_BPF"], ["CAP_BPF", "CAP_NET_ADMIN"]])
    def test_without_capabilities_each_entry_takes_one_command(self, kept: list[str]) -> None:
        if not kept:
            probes.needs(probes.bpf_without_capability())
        code = f"""
from array import array
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.sandbox.capabilities import drop_capabilities
kernel = LinuxKernel()
table, program = kernel.map_create(3, 4, 4, 8), kernel.prog_load(6, asm.returns(1))
drop_capabilities({kept!r})
assert kernel.table_programs() == (None, None)
assert kernel.map_write(table, array("I", [1, 2]), array("i", [program, -1])) == (2, 0)
assert list(kernel.map_ids(table, 0, 3)) == [0, kernel.prog_info(program).id, 0]
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_the_writer_needs_no_more_than_two_capabilities(self) -> None:
        probes.needs(probes.writer())
        code = """
from app.bpf.linux import LinuxKernel
from app.sandbox.capabilities import drop_capabilities
drop_capabilities(["CAP_BPF", "CAP_PERFMON"])
programs = LinuxKernel().table_programs()
assert programs.writer is not None and programs.reader is None
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize(
        "changed", [None, b"", b"no BTF", btf.VMLINUX.read_bytes()[:100_000]], ids=["none", "empty", "other", "short"]
    )
    def test_without_usable_btf_there_is_no_reader(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bytes | None
    ) -> None:
        monkeypatch.setattr(btf, "VMLINUX", tmp_path / "vmlinux")
        if changed is not None:
            (tmp_path / "vmlinux").write_bytes(changed)
        _only_the_writer()

    @pytest.mark.parametrize(
        "field",
        [(name, field) for name, fields in FIELDS.items() for field in fields],
        ids=".".join,
    )
    @pytest.mark.parametrize("cast", [True, False])
    def test_a_reader_with_a_wrong_offset_fails_its_self_test(
        self, monkeypatch: pytest.MonkeyPatch, field: tuple[str, str], cast: bool
    ) -> None:
        """As if the kernel's BTF were wrong: the self-test compares the reader with lookups and rejects it."""
        right = btf.layout

        def wrong(*args: object) -> btf.Layout:
            found = right(FIELDS, [CAST] if cast else [])
            return found._replace(offsets={**found.offsets, field: found.offsets[field] + 8})

        monkeypatch.setattr(btf, "layout", wrong)
        _only_the_writer()

    def test_the_programs_can_be_switched_off(self) -> None:
        kernel = LinuxKernel()
        kernel.use_bulk_programs = False
        assert kernel.table_programs() == TablePrograms(None, None)


def _only_the_writer() -> None:
    loaded = programs.load(LinuxKernel())
    if loaded.writer is not None:
        os.close(loaded.writer)
    assert (loaded.writer is None) == (probes.writer() is not None)
    assert loaded.reader is None
