"""ProgramArray: the semantics of aya's, on both kernels."""

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
    def test_takes_a_program_array(self, array: ProgramArray) -> None:
        assert (array.max_entries, array.info.name) == (8, "table")

    @pytest.mark.parametrize("type_", [MapType.HASH, MapType.ARRAY])
    def test_refuses_another_type_and_says_which(self, kernel: Kernel, type_: MapType) -> None:
        fd = kernel.map_create(type_, 4, 4, 8)
        with pytest.raises(WrongMapType, match=f"the map is of type {type_.name.lower()}, not prog_array"):
            ProgramArray(kernel, fd)

    def test_refuses_what_is_no_map(self, kernel: Kernel) -> None:
        fd = kernel.prog_load(ProgType.XDP, asm.returns(2))
        with pytest.raises(NotAMap, match="the object is not a map; it is a prog"):
            ProgramArray(kernel, fd)

    @pytest.mark.parametrize(("key_size", "value_size", "expected"), [(8, 4, WrongKeySize), (4, 8, WrongValueSize)])
    def test_refuses_other_sizes(self, key_size: int, value_size: int, expected: type[NotAProgramArray]) -> None:
        """No Linux makes such an array, so only a kernel that lies shows the check."""

        class Lying(MemoryKernel):
            def map_info(self, fd: int) -> MapInfo:
                return dataclasses.replace(super().map_info(fd), key_size=key_size, value_size=value_size)

        kernel = Lying()
        with pytest.raises(expected, match="8 bytes, not 4"):
            ProgramArray(kernel, kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8))

    def test_closes_what_it_refuses(self, kernel: Kernel) -> None:
        fd = kernel.map_create(MapType.HASH, 4, 4, 8)
        with pytest.raises(WrongMapType):
            ProgramArray(kernel, fd)
        with pytest.raises(OSError, match="descriptor"):
            kernel.close(fd)


class TestSet:
    def test_the_entry_points_to_the_program(self, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        assert array.get(3) == program.id

    @pytest.mark.parametrize("index", [8, 9, 0xFFFFFFFF, -1])
    def test_out_of_range(self, array: ProgramArray, program: Program, index: int) -> None:
        with pytest.raises(IndexOutOfRange) as caught:
            array.set(index, program)
        assert caught.value.facts() == {"index": index, "max_entries": 8}

    @pytest.mark.parametrize("flags", [1, 2, 4, 1 << 63])
    def test_flags_are_refused(self, array: ProgramArray, program: Program, flags: int) -> None:
        with pytest.raises(UnsupportedFlags):
            array.set(3, program, flags)
        assert array.get(3) is None

    def test_another_type_is_told_with_both(self, kernel: Kernel, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        with load(kernel, type_=ProgType.SOCKET_FILTER) as other, pytest.raises(ProgramIncompatible) as caught:
            array.set(3, other)
        assert (caught.value.owner_program_type, caught.value.program_type) == ("xdp", "socket_filter")
        assert "takes only programs of type xdp" in str(caught.value)
        assert array.get(3) == program.id

    def test_the_same_type_that_differs_otherwise_is_told_so(
        self, kernel: Kernel, array: ProgramArray, program: Program
    ) -> None:
        array.set(3, program)
        with load(kernel, flags=BPF_F_XDP_HAS_FRAGS) as other, pytest.raises(ProgramIncompatible) as caught:
            array.set(4, other)
        assert (caught.value.owner_program_type, caught.value.program_type) == ("xdp", "xdp")
        assert "expected_attach_type, XDP frags" in str(caught.value)

    def test_a_frozen_array(self, kernel: Kernel, array: ProgramArray, program: Program) -> None:
        kernel.map_freeze(array.fd)
        with pytest.raises(MapFrozen):
            array.set(3, program)

    def test_an_array_opened_for_reading(
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
    def test_errnos_that_no_test_can_cause(self, number: int, expected: type[Exception]) -> None:
        class Refusing(MemoryKernel):
            def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
                raise OSError(number, "refused")

        kernel = Refusing()
        with make_array(kernel, "table", 8) as array, load(kernel) as program, pytest.raises(expected):
            array.set(3, program)


class TestClearIndex:
    def test_the_entry_is_empty(self, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        array.clear_index(3)
        assert array.get(3) is None

    def test_an_empty_one_is_an_error(self, array: ProgramArray) -> None:
        with pytest.raises(EntryEmpty):
            array.clear_index(3)

    def test_out_of_range(self, array: ProgramArray) -> None:
        with pytest.raises(IndexOutOfRange):
            array.clear_index(8)

    def test_a_frozen_array(self, kernel: Kernel, array: ProgramArray, program: Program) -> None:
        array.set(3, program)
        kernel.map_freeze(array.fd)
        with pytest.raises(MapFrozen):
            array.clear_index(3)


class TestIndices:
    def test_only_those_that_point_to_a_program(self, array: ProgramArray, program: Program) -> None:
        for index in (7, 0, 3):
            array.set(index, program)
        assert array.indices() == [0, 3, 7]
        assert list(array.ids()) == [program.id if index in {0, 3, 7} else 0 for index in range(array.max_entries)]
        assert list(array.ids(1, 7)) == [0, 0, program.id, 0, 0, 0]

    def test_none(self, array: ProgramArray) -> None:
        assert array.indices() == []


class TestGet:
    def test_out_of_range_is_not_empty(self, array: ProgramArray) -> None:
        """The kernel says ENOENT for both."""
        assert array.get(7) is None
        with pytest.raises(IndexOutOfRange):
            array.get(8)


class TestClose:
    def test_twice_is_fine_and_use_is_an_error(self, kernel: Kernel) -> None:
        array = make_array(kernel, "table", 8)
        array.close()
        array.close()
        with pytest.raises(ValueError, match="closed"):
            array.get(0)

    def test_a_caller_falls_through_once_the_last_holder_is_gone(self, kernel: Kernel, program: Program) -> None:
        array = make_array(kernel, "table", 8)
        with Program(kernel, kernel.prog_load(ProgType.XDP, entry(array.fd))) as caller:
            array.set(3, program)
            assert caller.run(bytes([3]) + bytes(13)).meaning == "XDP_PASS"
            array.close()
            assert any(caller.run(bytes([3]) + bytes(13)).returned == 0 for _ in range(1_000_000))
