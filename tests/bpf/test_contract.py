"""One suite for both kernels: the kernel in memory must answer as Linux does, errno by errno."""

import errno
import os
from array import array as numbers
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import native
from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import BPF_F_RDONLY, BPF_F_XDP_HAS_FRAGS, ENOTSUPP, MAX_TAIL_CALL_CNT, MapType, ProgType
from app.cli.demo import count, entry
from tests import private_mounts, probes

PACKET = bytes([3]) + bytes(13)


@pytest.fixture(
    params=[
        "memory",
        *(
            pytest.param(each, marks=pytest.mark.kernel)
            for each in ("linux", "linux, one call per entry", "linux, in pure Python")
        ),
    ]
)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Each implementation of the port that runs in this process."""
    if request.param == "memory":
        return MemoryKernel()
    monkeypatch.setattr(native, "is_used", request.param != "linux, in pure Python")
    kernel = LinuxKernel()
    kernel.use_bulk_programs = request.param != "linux, one call per entry"
    return kernel


@pytest.fixture
def opened(kernel: Kernel) -> Iterator[Callable[[int], int]]:
    """Keep an fd, and close it when the test is over."""
    fds: list[int] = []

    def keep(fd: int) -> int:
        fds.append(fd)
        return fd

    yield keep
    for fd in fds:
        kernel.close(fd)


@pytest.fixture
def array(kernel: Kernel, opened: Callable[[int], int]) -> int:
    return opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8, "table"))


@pytest.fixture
def load(kernel: Kernel, opened: Callable[[int], int]) -> Callable[..., int]:
    """Load an XDP program that returns a number."""

    def loaded(value: int = 2, type_: int = ProgType.XDP, **more: int) -> int:
        return opened(kernel.prog_load(type_, asm.returns(value), f"ret{value}", **more))

    return loaded


def refusal(call: Callable[[], object]) -> int | None:
    """The errno with which a call is refused; None where it is not."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


class TestUpdate:
    def test_a_program_can_be_looked_up_by_its_id(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_update(array, 3, program)
        assert kernel.map_lookup(array, 3) == kernel.prog_info(program).id

    def test_the_same_program_again_is_no_error(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_update(array, 3, program)
        kernel.map_update(array, 3, program)

    @pytest.mark.parametrize(
        ("index", "flags", "number"),
        [(8, 0, errno.E2BIG), (0xFFFFFFFF, 0, errno.E2BIG), (0, 1, errno.EINVAL), (0, 2, errno.EINVAL),
         (8, 1, errno.EINVAL), (0, 1 << 40, errno.EINVAL)],
    )  # fmt: skip
    def test_an_index_or_flags_out_of_range_are_refused(
        self, kernel: Kernel, array: int, load: Callable[..., int], index: int, flags: int, number: int
    ) -> None:
        program = load()
        assert refusal(lambda: kernel.map_update(array, index, program, flags)) == number

    def test_a_value_that_is_no_program_is_refused(self, kernel: Kernel, array: int) -> None:
        assert refusal(lambda: kernel.map_update(array, 0, array)) == errno.EINVAL
        assert refusal(lambda: kernel.map_update(array, 0, 987654)) == errno.EBADF

    def test_an_update_of_something_else_than_a_map_is_refused(self, kernel: Kernel, load: Callable[..., int]) -> None:
        program = load()
        assert refusal(lambda: kernel.map_update(program, 0, program)) == errno.EINVAL
        assert refusal(lambda: kernel.map_update(987654, 0, program)) == errno.EBADF


class TestFit:
    def test_the_first_program_fixes_the_type(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        assert kernel.map_state(array).owner_type is None
        kernel.map_update(array, 0, load())
        assert kernel.map_state(array).owner_type == ProgType.XDP
        other = load(type_=ProgType.SOCKET_FILTER)
        assert refusal(lambda: kernel.map_update(array, 1, other)) == errno.EINVAL

    def test_clearing_every_entry_does_not_reset_the_type(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        kernel.map_update(array, 0, load())
        kernel.map_delete(array, 0)
        other = load(type_=ProgType.SOCKET_FILTER)
        assert refusal(lambda: kernel.map_update(array, 0, other)) == errno.EINVAL

    def test_loading_a_caller_fixes_the_type_as_well(
        self, kernel: Kernel, array: int, load: Callable[..., int], opened: Callable[[int], int]
    ) -> None:
        opened(kernel.prog_load(ProgType.XDP, entry(array)))
        assert kernel.map_state(array).owner_type == ProgType.XDP
        other = load(type_=ProgType.SOCKET_FILTER)
        assert refusal(lambda: kernel.map_update(array, 0, other)) == errno.EINVAL

    def test_a_caller_that_does_not_fit_is_not_loaded(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        kernel.map_update(array, 0, load(type_=ProgType.SOCKET_FILTER))
        assert refusal(lambda: kernel.prog_load(ProgType.XDP, entry(array))) == errno.EINVAL

    def test_xdp_frags_must_be_alike(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        if kernel.name == "linux":
            probes.needs(probes.xdp_frags())
        kernel.map_update(array, 0, load())
        other = load(flags=BPF_F_XDP_HAS_FRAGS)
        assert refusal(lambda: kernel.map_update(array, 1, other)) == errno.EINVAL

    def test_a_refused_program_changes_nothing(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_update(array, 0, program)
        refusal(lambda: kernel.map_update(array, 0, load(type_=ProgType.SOCKET_FILTER)))
        assert kernel.map_lookup(array, 0) == kernel.prog_info(program).id


class TestTables:
    def test_many_are_written_in_order(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        drop, tx = load(1), load(3)
        kernel.map_update(array, 5, drop)
        written = kernel.map_write(array, numbers("I", [1, 2, 5, 1, 7]), numbers("i", [drop, tx, -1, tx, -1]))
        assert written == (5, 0)
        id_ = kernel.prog_info(tx).id
        assert list(kernel.map_ids(array, 0, 8)) == [0, id_, id_, 0, 0, 0, 0, 0]
        assert list(kernel.map_ids(array, 2, 3)) == [id_]

    def test_the_first_refused_entry_ends_the_write(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        drop, other = load(1), load(2, ProgType.SOCKET_FILTER)
        written = kernel.map_write(array, numbers("I", range(4)), numbers("i", [drop, drop, other, drop]))
        assert written == (2, errno.EINVAL)
        assert [bool(id_) for id_ in kernel.map_ids(array, 0, 4)] == [True, True, False, False]

    def test_an_empty_write_and_an_empty_read_are_no_errors(self, kernel: Kernel, array: int) -> None:
        assert kernel.map_write(array, numbers("I"), numbers("i")) == (0, 0)
        assert not kernel.map_ids(array, 3, 3)

    def test_a_frozen_array_refuses_sets_and_clears(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_freeze(array)
        for value in (program, -1):
            assert kernel.map_write(array, numbers("I", [0]), numbers("i", [value])) == (0, errno.EPERM)

    def test_an_fd_or_an_index_that_does_not_exist_is_refused(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        program = load()
        assert kernel.map_write(array, numbers("I", [0]), numbers("i", [987654])) == (0, errno.EBADF)
        assert kernel.map_write(array, numbers("I", [8]), numbers("i", [program])) == (0, errno.E2BIG)

    @pytest.mark.parametrize("at", [0, 511, 512, 1024, 1299])
    @pytest.mark.parametrize(("wrong", "number"), [(987654, errno.EBADF), (-2, errno.EINVAL), (-3, errno.EINVAL)])
    def test_a_refused_entry_is_reported_at_any_position(
        self, kernel: Kernel, opened: Callable[[int], int], load: Callable[..., int], at: int, wrong: int, number: int
    ) -> None:
        array, program = opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1300)), load(1)
        value = {-2: array, -3: load(2, ProgType.SOCKET_FILTER)}.get(wrong, wrong)
        values = numbers("i", [program] * 1300)
        kernel.map_update(array, 0, program)
        values[at] = value
        assert kernel.map_write(array, numbers("I", range(1300)), values) == (at, number)
        id_ = kernel.prog_info(program).id
        assert list(kernel.map_ids(array, 0, 1300)) == [id_ if index < max(at, 1) else 0 for index in range(1300)]

    def test_clears_and_sets_mix_over_thousands_of_entries(
        self, kernel: Kernel, opened: Callable[[int], int], load: Callable[..., int]
    ) -> None:
        array, drop, tx = opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 3000)), load(1), load(3)
        wanted = [(drop, tx, -1)[index * index % 3 if index % 7 else 2] for index in range(3000)]
        ids = {drop: kernel.prog_info(drop).id, tx: kernel.prog_info(tx).id, -1: 0}
        for turn in (1, -1):
            indexes, values = numbers("I", range(3000))[::turn], numbers("i", wanted)
            assert kernel.map_write(array, indexes, values) == (3000, 0)
            assert list(kernel.map_ids(array, 0, 3000)) == [ids[value] for value in wanted[::turn]]
            assert list(kernel.map_ids(array, 500, 1100)) == [ids[value] for value in wanted[::turn][500:1100]]

    @pytest.mark.parametrize(("indexes", "values"), [("I", "I"), ("i", "i"), ("I", "q"), ("I", "")])
    def test_arrays_with_other_typecodes_are_refused(
        self, kernel: Kernel, array: int, indexes: str, values: str
    ) -> None:
        """0xFFFFFFFF as u32 is not -1."""
        with pytest.raises(ValueError, match="as many indexes"):
            kernel.map_write(array, numbers(indexes, [1]), numbers(values, [1]) if values else numbers("i"))

    def test_a_read_beyond_the_end_returns_empty_entries(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        program = load()
        kernel.map_update(array, 7, program)
        assert list(kernel.map_ids(array, 7, 600)) == [kernel.prog_info(program).id] + [0] * 592
        assert not any(kernel.map_ids(array, 8, 20))

    def test_a_write_or_read_of_something_else_than_an_array_is_refused(
        self, kernel: Kernel, load: Callable[..., int]
    ) -> None:
        program = load()
        for fd, number in ((987654, errno.EBADF), (program, errno.EINVAL)):
            for value in (program, -1):
                assert kernel.map_write(fd, numbers("I", [0]), numbers("i", [value])) == (0, number)
            assert refusal(lambda fd=fd: kernel.map_ids(fd, 0, 1)) == number  # type: ignore[misc]

    def test_a_read_only_fd_writes_nothing(
        self, kernel: Kernel, pins: Path, array: int, load: Callable[..., int]
    ) -> None:
        kernel.obj_pin(array, f"{pins}/table")
        program, fd = load(), kernel.obj_get(f"{pins}/table", BPF_F_RDONLY)
        kernel.map_update(array, 2, program)
        for value in (program, -1):
            assert kernel.map_write(fd, numbers("I", [2]), numbers("i", [value])) == (0, errno.EPERM)
        assert list(kernel.map_ids(fd, 1, 3)) == [0, kernel.prog_info(program).id]
        kernel.close(fd)

    def test_a_frozen_array_can_still_be_read(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_write(array, numbers("I", [1]), numbers("i", [program]))
        kernel.map_freeze(array)
        assert kernel.map_write(array, numbers("I", [1, 2]), numbers("i", [program, -1])) == (0, errno.EPERM)
        assert list(kernel.map_ids(array, 0, 3)) == [0, kernel.prog_info(program).id, 0]

    def test_a_packet_takes_the_jump_that_was_written(
        self, kernel: Kernel, array: int, load: Callable[..., int], opened: Callable[[int], int]
    ) -> None:
        caller, values = opened(kernel.prog_load(ProgType.XDP, entry(array))), [load(each) for each in range(1, 5)]
        for turn in range(4):
            turned = numbers("i", values[turn:] + values[:turn])
            assert kernel.map_write(array, numbers("I", range(4)), turned) == (4, 0)
            assert [kernel.prog_test_run(caller, bytes([index]) + bytes(13)).returned for index in range(4)] == [
                (index + turn) % 4 + 1 for index in range(4)
            ]
        assert kernel.map_write(array, numbers("I", [3]), numbers("i", [-1])) == (1, 0)
        assert kernel.prog_test_run(caller, PACKET).returned == 0


class TestDelete:
    def test_a_deleted_entry_is_empty(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        kernel.map_update(array, 3, load())
        kernel.map_delete(array, 3)
        assert refusal(lambda: kernel.map_lookup(array, 3)) == errno.ENOENT

    def test_an_empty_entry_or_an_index_out_of_range_is_refused(self, kernel: Kernel, array: int) -> None:
        assert refusal(lambda: kernel.map_delete(array, 3)) == errno.ENOENT
        assert refusal(lambda: kernel.map_delete(array, 8)) == errno.E2BIG
        assert refusal(lambda: kernel.map_delete(987654, 3)) == errno.EBADF


class TestLookup:
    def test_out_of_range_is_the_same_as_empty(self, kernel: Kernel, array: int) -> None:
        assert refusal(lambda: kernel.map_lookup(array, 3)) == errno.ENOENT
        assert refusal(lambda: kernel.map_lookup(array, 8)) == errno.ENOENT
        assert refusal(lambda: kernel.map_lookup(987654, 3)) == errno.EBADF


class TestFreeze:
    def test_a_frozen_array_refuses_writes_for_good(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        kernel.map_update(array, 0, program)
        kernel.map_freeze(array)
        assert kernel.map_state(array).frozen
        assert refusal(lambda: kernel.map_update(array, 0, program)) == errno.EPERM
        assert refusal(lambda: kernel.map_delete(array, 0)) == errno.EPERM
        # Kernels that let any fd freeze a map refuse the second time with an errno of its own.
        again = errno.EBUSY if kernel.name == "linux" and probes.freeze_needs_write() else errno.EPERM
        assert refusal(lambda: kernel.map_freeze(array)) == again
        assert kernel.map_lookup(array, 0) == kernel.prog_info(program).id


class TestInfo:
    def test_map_info_tells_what_the_map_was_created_with(self, kernel: Kernel, array: int) -> None:
        info = kernel.map_info(array)
        assert (info.type, info.key_size, info.value_size, info.max_entries, info.flags, info.name) == (
            MapType.PROG_ARRAY, 4, 4, 8, 0, "table",
        )  # fmt: skip

    def test_prog_info_tells_what_the_program_was_loaded_with(
        self, kernel: Kernel, array: int, opened: Callable[[int], int]
    ) -> None:
        info = kernel.prog_info(opened(kernel.prog_load(ProgType.XDP, entry(array), "entry")))
        assert (info.type, info.name, info.gpl, info.map_ids) == (
            ProgType.XDP, "entry", True, (kernel.map_info(array).id,),
        )  # fmt: skip
        assert len(info.tag) == 16
        assert info.load_time > 0

    def test_obj_kind_distinguishes_maps_and_programs(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        assert (kernel.obj_kind(array), kernel.obj_kind(load())) == ("map", "prog")

    def test_info_about_a_closed_fd_is_refused(self, kernel: Kernel) -> None:
        assert refusal(lambda: kernel.map_info(987654)) == errno.EBADFD
        assert refusal(lambda: kernel.prog_info(987654)) == errno.EBADFD
        assert refusal(lambda: kernel.map_state(987654)) == errno.ENOENT
        assert refusal(lambda: kernel.obj_kind(987654)) == errno.ENOENT

    @pytest.mark.parametrize("max_entries", [1, 16, 4096])
    def test_memlock_is_the_same_on_both_kernels(
        self, kernel: Kernel, opened: Callable[[int], int], max_entries: int
    ) -> None:
        if kernel.name == "linux":
            probes.needs(probes.memlock_as_in_memory())
        fd = opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, max_entries))
        assert kernel.map_state(fd).memlock == 312 + 8 * max_entries

    @pytest.mark.parametrize("max_entries", [1, 16, 4096])
    def test_memlock_counts_8_bytes_for_an_entry_and_at_most_two_pages_more(
        self, kernel: Kernel, opened: Callable[[int], int], max_entries: int
    ) -> None:
        memlock = kernel.map_state(opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, max_entries))).memlock
        assert memlock is not None
        assert 8 * max_entries <= memlock <= 8 * max_entries + 2 * os.sysconf("SC_PAGE_SIZE")


class TestCreate:
    @pytest.mark.parametrize(("key", "value", "entries"), [(8, 4, 1), (4, 8, 1), (4, 4, 0), (0, 4, 1)])
    def test_a_program_array_has_u32_keys_and_values(self, kernel: Kernel, key: int, value: int, entries: int) -> None:
        assert refusal(lambda: kernel.map_create(MapType.PROG_ARRAY, key, value, entries)) == errno.EINVAL

    def test_a_long_name_is_cut(self, kernel: Kernel, opened: Callable[[int], int]) -> None:
        fd = opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1, "a_name_of_more_than_15"))
        assert kernel.map_info(fd).name == "a_name_of_more_"

    @pytest.mark.parametrize("name", ["a-b", "a b", "a/b", "\u00d7"])
    def test_a_name_with_other_characters_is_refused(self, kernel: Kernel, name: str) -> None:
        assert refusal(lambda: kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1, name)) == errno.EINVAL

    def test_a_name_may_have_letters_of_latin_1(self, kernel: Kernel, opened: Callable[[int], int]) -> None:
        fd = opened(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1, "Tür"))
        assert kernel.map_info(fd).name == "Tür"


class TestIds:
    def test_maps_and_programs_are_opened_by_id(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load()
        for get, info, fd in (
            (kernel.map_get_fd_by_id, kernel.map_info, array),
            (kernel.prog_get_fd_by_id, kernel.prog_info, program),
        ):
            again = get(info(fd).id)
            assert info(again).id == info(fd).id
            kernel.close(again)

    def test_an_id_that_is_gone_is_enoent(self, kernel: Kernel) -> None:
        fd = kernel.prog_load(ProgType.XDP, asm.returns(2))
        gone = kernel.prog_info(fd).id
        kernel.close(fd)
        assert refusal(lambda: kernel.prog_get_fd_by_id(gone)) == errno.ENOENT
        assert refusal(lambda: kernel.map_get_fd_by_id(0x7FFFFFFF)) == errno.ENOENT

    def test_an_entry_keeps_its_program_alive(self, kernel: Kernel, array: int) -> None:
        fd = kernel.prog_load(ProgType.XDP, asm.returns(2))
        kernel.map_update(array, 0, fd)
        kernel.close(fd)
        again = kernel.prog_get_fd_by_id(kernel.map_lookup(array, 0))
        kernel.close(again)


class TestPins:
    def test_a_pin_keeps_the_array_and_its_entries(self, kernel: Kernel, pins: Path, load: Callable[..., int]) -> None:
        array, program = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8), load()
        kernel.obj_pin(array, f"{pins}/table")
        kernel.map_update(array, 0, program)
        kernel.close(array)
        again = kernel.obj_get(f"{pins}/table")
        assert kernel.map_lookup(again, 0) == kernel.prog_info(program).id
        kernel.close(again)

    def test_a_caller_alone_does_not_keep_the_entries(
        self, kernel: Kernel, array: int, load: Callable[..., int]
    ) -> None:
        """The last user reference empties an array, although a loaded program still jumps through it."""
        mortal = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8)
        caller = kernel.prog_load(ProgType.XDP, entry(mortal))
        kernel.map_update(mortal, 3, load(1))
        assert kernel.prog_test_run(caller, PACKET).returned == 1
        kernel.close(mortal)
        # Linux empties the array asynchronously.
        assert any(kernel.prog_test_run(caller, PACKET).returned == 0 for _ in range(1_000_000))
        kernel.close(caller)

    def test_wrong_paths_and_fds_are_refused(self, kernel: Kernel, pins: Path, array: int) -> None:
        kernel.obj_pin(array, f"{pins}/table")
        assert refusal(lambda: kernel.obj_pin(array, f"{pins}/table")) == errno.EEXIST
        assert refusal(lambda: kernel.obj_pin(array, f"{pins}/a.b")) == errno.EPERM
        assert refusal(lambda: kernel.obj_pin(987654, f"{pins}/other")) == errno.EINVAL
        assert refusal(lambda: kernel.obj_get(f"{pins}/other")) == errno.ENOENT

    def test_an_fd_opened_read_only_refuses_writes(
        self, kernel: Kernel, pins: Path, array: int, load: Callable[..., int]
    ) -> None:
        kernel.obj_pin(array, f"{pins}/table")
        program = load()
        fd = kernel.obj_get(f"{pins}/table", BPF_F_RDONLY)
        assert refusal(lambda: kernel.map_update(fd, 0, program)) == errno.EPERM
        assert refusal(lambda: kernel.map_delete(fd, 0)) == errno.EPERM
        kernel.close(fd)
        assert refusal(lambda: kernel.obj_get(f"{pins}/table", 1)) == errno.EINVAL

    def test_an_fd_opened_read_only_cannot_freeze(self, kernel: Kernel, pins: Path, array: int) -> None:
        if kernel.name == "linux":
            probes.needs(probes.freeze_needs_write())
        kernel.obj_pin(array, f"{pins}/table")
        fd = kernel.obj_get(f"{pins}/table", BPF_F_RDONLY)
        assert refusal(lambda: kernel.map_freeze(fd)) == errno.EPERM
        kernel.close(fd)


class TestRun:
    def test_the_jump_is_taken_at_once_after_each_change(
        self, kernel: Kernel, array: int, load: Callable[..., int], opened: Callable[[int], int]
    ) -> None:
        caller = opened(kernel.prog_load(ProgType.XDP, entry(array)))
        assert kernel.prog_test_run(caller, PACKET).returned == 0
        for value in (1, 2, 3):
            kernel.map_update(array, 3, load(value))
            assert kernel.prog_test_run(caller, PACKET).returned == value
        kernel.map_delete(array, 3)
        assert kernel.prog_test_run(caller, PACKET).returned == 0

    def test_out_of_range_falls_through(self, kernel: Kernel, array: int, opened: Callable[[int], int]) -> None:
        caller = opened(kernel.prog_load(ProgType.XDP, entry(array)))
        assert kernel.prog_test_run(caller, bytes([200]) + bytes(13)).returned == 0

    def test_tail_calls_end_at_the_limit(self, kernel: Kernel, array: int, opened: Callable[[int], int]) -> None:
        """A program that jumps to itself ends after one run more than the limit of tail calls."""
        counter = opened(kernel.map_create(MapType.ARRAY, 4, 8, 1))
        step = asm.mov_reg(6, 1) + asm.map_value(1, counter) + asm.mov(2, 1) + asm.atomic_add(1, 2)
        jump = asm.mov_reg(1, 6) + asm.map_fd(2, array) + asm.mov(3, 0) + asm.tail_call() + asm.returns(0)
        looping = opened(kernel.prog_load(ProgType.XDP, step + jump))
        kernel.map_update(array, 0, looping)
        assert kernel.prog_test_run(looping, PACKET).returned == 0
        assert kernel.map_lookup(counter, 0, 8) == MAX_TAIL_CALL_CNT + 1
        kernel.map_delete(array, 0)  # or the two would keep each other alive

    def test_the_counting_program_counts(self, kernel: Kernel, opened: Callable[[int], int]) -> None:
        counter = opened(kernel.map_create(MapType.ARRAY, 4, 8, 1))
        program = opened(kernel.prog_load(ProgType.XDP, count(counter)))
        assert kernel.prog_test_run(program, PACKET, 1000).returned == 2
        assert kernel.map_lookup(counter, 0, 8) == 1000

    def test_a_test_run_returns_the_packet(self, kernel: Kernel, load: Callable[..., int]) -> None:
        assert kernel.prog_test_run(load(), PACKET).packet == PACKET

    @pytest.mark.parametrize("type_", [ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.XDP])
    def test_packet_programs_run_on_packets_of_allowed_sizes(
        self, kernel: Kernel, load: Callable[..., int], type_: int
    ) -> None:
        program = load(1, type_=type_)
        assert kernel.prog_test_run(program, PACKET).returned == 1
        assert kernel.prog_test_run(program, bytes(3400)).returned == 1

    @pytest.mark.parametrize("type_", [ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.XDP])
    def test_packet_programs_do_not_run_on_less_than_an_ethernet_header(
        self, kernel: Kernel, load: Callable[..., int], type_: int
    ) -> None:
        if kernel.name == "linux":
            probes.needs(probes.least_packet(type_))
        program = load(1, type_=type_)
        assert refusal(lambda: kernel.prog_test_run(program, bytes(13))) == errno.EINVAL

    @pytest.mark.parametrize("type_", [ProgType.SOCKET_FILTER, ProgType.SCHED_CLS])
    def test_packets_for_an_skb_fit_into_a_page(self, kernel: Kernel, load: Callable[..., int], type_: int) -> None:
        if kernel.name == "linux":
            probes.needs(probes.skb_of_a_page())
        program = load(1, type_=type_)
        assert kernel.prog_test_run(program, bytes(3500)).returned == 1
        assert refusal(lambda: kernel.prog_test_run(program, bytes(4000))) == errno.EINVAL

    def test_packets_for_xdp_may_be_longer(self, kernel: Kernel, load: Callable[..., int]) -> None:
        if kernel.name == "linux":
            probes.needs(probes.xdp_frags())
        assert kernel.prog_test_run(load(1), bytes(4000)).returned == 1

    def test_other_objects_cannot_be_run(self, kernel: Kernel, array: int, load: Callable[..., int]) -> None:
        program = load(type_=ProgType.KPROBE)
        assert refusal(lambda: kernel.prog_test_run(program, PACKET)) == ENOTSUPP
        assert refusal(lambda: kernel.prog_test_run(array, PACKET)) == errno.EINVAL
        assert refusal(lambda: kernel.prog_test_run(987654, PACKET)) == errno.EBADF


class TestLoad:
    @pytest.mark.parametrize(
        ("instructions", "number"),
        [(b"", errno.E2BIG), (asm.mov(0, 2), errno.EINVAL), (b"\xff" * 16, errno.EINVAL),
         (asm.map_fd(1, 987654) + asm.returns(2), errno.EBADF)],
    )  # fmt: skip
    def test_invalid_instructions_are_refused(self, kernel: Kernel, instructions: bytes, number: int) -> None:
        assert refusal(lambda: kernel.prog_load(ProgType.XDP, instructions)) == number


class TestClose:
    def test_closing_twice_is_refused(self, kernel: Kernel) -> None:
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1)
        kernel.close(fd)
        assert refusal(lambda: kernel.close(fd)) == errno.EBADF

    def test_the_boot_id_is_a_uuid(self, kernel: Kernel) -> None:
        assert len(kernel.boot_id) == 36


@pytest.mark.field
@pytest.mark.kernel
@pytest.mark.parametrize(
    "name", ["back\\slash", "a space", "tab\there", "new\nline", "hash#", "\\040", "line\u2028end"]
)
def test_a_bpffs_is_known_whatever_its_path(tmp_path: Path, name: str) -> None:
    """Field 22: /proc/self/mounts escapes some characters of the path of a mount."""
    folder = tmp_path / name
    folder.mkdir()
    private_mounts.mount_bpffs(folder)
    try:
        assert LinuxKernel().in_bpffs(f"{folder}/pin")
        LinuxKernel().check_pin(f"{folder}/pin")
    finally:
        private_mounts.unmount(folder)
    assert not LinuxKernel().in_bpffs(f"{folder}/pin")
