"""ProgramArray behaves like aya's ProgramArray, on both kernels."""

import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bpf import asm
from app.bpf.kernel import Kernel, MapInfo
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import BPF_F_RDONLY, BPF_F_XDP_HAS_FRAGS, MapType, ProgType
from app.cli.demo import entry
from app.service.errors import (
    EntryEmpty,
    IndexOutOfRange,
    KernelError,
    KernelPermission,
    MapFrozen,
    NotAMap,
    NotAProgramArray,
    ProgramBusy,
    ProgramIncompatible,
    UnsupportedFlags,
    WrongKeySize,
    WrongMapType,
    WrongValueSize,
)
from app.service.objects.opening import make_array
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from tests.conftest import load


@pytest.fixture
def array(kernel: Kernel) -> Iterator[ProgramArray]:
    with make_array(kernel, "table", 8) as array:
        yield array


@pytest.fixture
def program(kernel: Kernel) -> Iterator[Program]:
    with load(kernel) as program:
        yield program


class TestInit:
    def test_program_array_is_accepted(self, array: ProgramArray) -> None:
        assert (array.max_entries, array.info.name) == (8, "table")

    @pytest.mark.parametrize("type_", [MapType.HASH, MapType.ARRAY])
    def test_other_map_type_is_refused_and_named(self, kernel: Kernel, type_: MapType) -> None:
        fd = kernel.map_create(type_, 4, 4, 8)
        with pytest.raises(WrongMapType, match=f"the map is of type {type_.name.lower()}; give one of type prog_array"):
            ProgramArray(kernel, fd)

    def test_program_is_refused(self, kernel: Kernel) -> None:
        fd = kernel.prog_load(ProgType.XDP, asm.returns(2))
        with pytest.raises(NotAMap, match="the object is not a map, it is a prog;"):
            ProgramArray(kernel, fd)

    @pytest.mark.parametrize(("key_size", "value_size", "expected"), [(8, 4, WrongKeySize), (4, 8, WrongValueSize)])
    def test_other_key_or_value_size_is_refused(
        self, key_size: int, value_size: int, expected: type[NotAProgramArray]
    ) -> None:
        """Linux never creates such an array, so the test uses a kernel that reports wrong sizes."""

        class Lying(MemoryKernel):
            def map_info(self, fd: int) -> MapInfo:
                return dataclasses.replace(super().map_info(fd), key_size=key_size, value_size=value_size)

        kernel = Lying()
        with pytest.raises(expected, match="8 bytes; give a program array"):
            ProgramArray(kernel, kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8))

    def test_refused_descriptor_is_closed(self, kernel: Kernel) -> None:
        fd = kernel.map_create(MapType.HASH, 4, 4, 8)
        with pytest.raises(WrongMapType):
            ProgramArray(kernel, fd)
        with pytest.raises(OSError, match="descriptor"):
            kernel.close(fd)


class TestSet:
    def test_set_entry_points_to_the_program(self, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        assert array.get(3) == program.id

    @pytest.mark.parametrize("index", [8, 9, 0xFFFFFFFF, -1])
    def test_index_out_of_range_is_refused(self, array: ProgramArray, program: Program, index: int) -> None:
        with pytest.raises(IndexOutOfRange) as caught:
            array.set(index, program)
        assert caught.value.facts() == {"index": index, "max_entries": 8}

    @pytest.mark.parametrize("flags", [1, 2, 4, 1 << 63])
    def test_flags_are_refused(self, array: ProgramArray, program: Program, flags: int) -> None:
        with pytest.raises(UnsupportedFlags):
            array.set(3, program, flags)
        assert array.get(3) is None

    def test_incompatible_type_is_refused_and_both_types_are_told(
        self, kernel: Kernel, array: ProgramArray, program: Program
    ) -> None:
        array.set(3, program)
        with load(kernel, type_=ProgType.SOCKET_FILTER) as other, pytest.raises(ProgramIncompatible) as caught:
            array.set(3, other)
        assert (caught.value.owner_program_type, caught.value.program_type) == ("xdp", "socket_filter")
        assert "takes only programs of type xdp" in str(caught.value)
        assert array.get(3) == program.id

    def test_incompatible_program_of_the_same_type_is_refused_with_the_causes(
        self, kernel: Kernel, array: ProgramArray, program: Program
    ) -> None:
        array.set(3, program)
        with load(kernel, flags=BPF_F_XDP_HAS_FRAGS) as other, pytest.raises(ProgramIncompatible) as caught:
            array.set(4, other)
        assert (caught.value.owner_program_type, caught.value.program_type) == ("xdp", "xdp")
        assert "expected_attach_type, XDP frags" in str(caught.value)

    def test_frozen_array_is_refused(self, kernel: Kernel, array: ProgramArray, program: Program) -> None:
        kernel.map_freeze(array.fd)
        with pytest.raises(MapFrozen):
            array.set(3, program)

    def test_array_opened_for_reading_refuses_writes(
        self, kernel: Kernel, pins: Path, program: Program, array: ProgramArray
    ) -> None:
        kernel.obj_pin(array.fd, f"{pins}/table")
        with ProgramArray(kernel, kernel.obj_get(f"{pins}/table", BPF_F_RDONLY)) as readable:
            with pytest.raises(KernelPermission, match="opened for writing"):
                readable.set(3, program)
            assert readable.get(3) is None

    @pytest.mark.parametrize(
        ("number", "expected"), [(errno.EBUSY, ProgramBusy), (errno.ENOMEM, KernelError), (524, KernelError)]
    )
    def test_simulated_errno_becomes_its_error(self, number: int, expected: type[Exception]) -> None:
        class Refusing(MemoryKernel):
            def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
                raise OSError(number, "refused")

        kernel = Refusing()
        with make_array(kernel, "table", 8) as array, load(kernel) as program, pytest.raises(expected):
            array.set(3, program)

    def test_memory_that_rlimit_memlock_refuses_is_told_as_such(self) -> None:
        class Full(MemoryKernel):
            def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
                raise OSError(errno.EDQUOT, "refused")

        with pytest.raises(KernelPermission, match=r"EPERM.*RLIMIT_MEMLOCK") as caught:
            make_array(Full(), "table", 8)
        assert "CAP_BPF" not in str(caught.value)


class TestClearIndex:
    def test_cleared_entry_is_empty(self, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        array.clear_index(3)
        assert array.get(3) is None

    def test_clearing_an_empty_entry_fails(self, array: ProgramArray) -> None:
        with pytest.raises(EntryEmpty):
            array.clear_index(3)

    def test_index_out_of_range_is_refused(self, array: ProgramArray) -> None:
        with pytest.raises(IndexOutOfRange):
            array.clear_index(8)

    def test_frozen_array_is_refused(self, kernel: Kernel, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        kernel.map_freeze(array.fd)
        with pytest.raises(MapFrozen):
            array.clear_index(3)


class TestIndices:
    def test_indices_and_ids_tell_the_filled_entries(self, array: ProgramArray, program: Program) -> None:
        for index in (7, 0, 3):
            array.set(index, program)
        assert array.indices() == [0, 3, 7]
        assert list(array.ids()) == [program.id if index in {0, 3, 7} else 0 for index in range(array.max_entries)]
        assert list(array.ids(1, 7)) == [0, 0, program.id, 0, 0, 0]

    def test_empty_array_has_no_indices(self, array: ProgramArray) -> None:
        assert array.indices() == []


class TestGet:
    def test_index_out_of_range_is_no_empty_entry(self, array: ProgramArray) -> None:
        """The kernel answers ENOENT in both cases."""
        assert array.get(7) is None
        with pytest.raises(IndexOutOfRange):
            array.get(8)


class TestClose:
    def test_second_close_is_harmless_and_later_use_fails(self, kernel: Kernel) -> None:
        array = make_array(kernel, "table", 8)
        array.close()
        array.close()
        with pytest.raises(ValueError, match="closed"):
            array.get(0)

    def test_caller_falls_through_once_the_array_is_closed(self, kernel: Kernel, program: Program) -> None:
        array = make_array(kernel, "table", 8)
        with Program(kernel, kernel.prog_load(ProgType.XDP, entry(array.fd))) as caller:
            array.set(3, program)
            assert caller.run(bytes([3]) + bytes(13)).meaning == "XDP_PASS"
            array.close()
            assert any(caller.run(bytes([3]) + bytes(13)).returned == 0 for _ in range(1_000_000))
