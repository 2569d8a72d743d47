"""What the kernel tells of all programs and arrays, on both kernels."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from app.bpf import asm, btf, iterators
from app.bpf.inventory import ArrayOwner
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import BPF_F_XDP_HAS_FRAGS, AttachType, MapType, ProgType
from tests import probes


@pytest.fixture(autouse=True)
def iterators_are_there(request: pytest.FixtureRequest) -> None:
    """The kernel in memory always lists; Linux from 5.9 on, with BTF."""
    if request.node.get_closest_marker("kernel"):
        probes.needs(probes.iterators())


@contextmanager
def opened(kernel: Kernel) -> Iterator[ExitStack]:
    """Closes each fd that it is told of."""
    with ExitStack() as stack:
        yield stack


def array(kernel: Kernel, stack: ExitStack, entries: int = 8) -> tuple[int, int]:
    """A new program array: its fd and its id."""
    fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, entries, "table")
    stack.callback(kernel.close, fd)
    return fd, kernel.map_info(fd).id


def program(kernel: Kernel, stack: ExitStack, code: bytes, *, attach_type: int = 0, flags: int = 0) -> tuple[int, int]:
    """A new XDP program: its fd and its id."""
    fd = kernel.prog_load(ProgType.XDP, code, "hop", expected_attach_type=attach_type, flags=flags)
    stack.callback(kernel.close, fd)
    return fd, kernel.prog_info(fd).id


def test_owner_of_an_array_is_its_first_program(kernel: Kernel) -> None:
    if kernel.name == "linux":
        probes.needs(probes.compares_attach_types())
    with opened(kernel) as stack:
        fd, id_ = array(kernel, stack)
        assert kernel.owner_of(id_) is None
        kernel.map_update(fd, 0, program(kernel, stack, asm.returns(2), attach_type=AttachType.XDP)[0])
        owner = ArrayOwner(ProgType.XDP, AttachType.XDP, jited=True, xdp_frags=False, has_prototype=False)
        assert kernel.owner_of(id_) == owner
        kernel.map_delete(fd, 0)
        assert kernel.owner_of(id_) == owner


def test_what_is_loaded_is_listed_with_what_arrays_compare(kernel: Kernel) -> None:
    if kernel.name == "linux":
        probes.needs(probes.xdp_frags())
    with opened(kernel) as stack:
        fd, id_ = array(kernel, stack, 5)
        program_fd, number = program(kernel, stack, asm.returns(2), attach_type=37, flags=BPF_F_XDP_HAS_FRAGS)
        loaded, info = kernel.loaded(), kernel.prog_info(program_fd)
        found, listed = loaded.programs[number], loaded.arrays[id_]
        assert (listed.id, listed.name, listed.max_entries, listed.users) == (id_, "table", 5, 1)
        assert (found.name, found.type, found.attach_type, found.xdp_frags) == ("hop", ProgType.XDP, 37, True)
        assert (found.load_time, found.constant_jumps) == (info.load_time, ())
        second = kernel.dup(fd)
        assert kernel.loaded().arrays[id_].users == (2 if kernel.name == "memory" else 1)  # one open file
        kernel.close(second)


def test_jumps_by_a_constant_index_are_listed(kernel: Kernel) -> None:
    with opened(kernel) as stack:
        fd, id_ = array(kernel, stack)
        code = b"".join(
            (
                asm.mov_reg(6, 1), asm.map_fd(2, fd), asm.mov(3, 7), asm.tail_call(),
                asm.mov_reg(1, 6), asm.map_fd(2, fd), asm.mov(3, 2), asm.tail_call(), asm.returns(0),
            )
        )  # fmt: skip
        _, number = program(kernel, stack, code)
        found = kernel.loaded().programs[number]
        assert (found.constant_jumps, found.has_more_jumps) == (((id_, 2), (id_, 7)), False)


@pytest.mark.kernel
def test_more_jumps_than_the_iterator_lists_are_told_of() -> None:
    kernel = LinuxKernel()
    with opened(kernel) as stack:
        fd, _ = array(kernel, stack, 1024)
        jump = asm.mov_reg(1, 6) + asm.map_fd(2, fd)
        jumps = b"".join(jump + asm.mov(3, index) + asm.tail_call() for index in range(600))
        _, number = program(kernel, stack, asm.mov_reg(6, 1) + jumps + asm.returns(0))
        found = kernel.loaded().programs[number]
        assert (len(found.constant_jumps), found.has_more_jumps) == (iterators.MAX_CONSTANT_JUMPS, True)
        assert kernel.codes([number])[number].jumps[0].indexes == tuple(range(600))  # type: ignore[index]


@pytest.mark.kernel
def test_a_list_takes_no_reference() -> None:
    """An array that is listed all the time is emptied as soon as its last user is gone."""
    kernel = LinuxKernel()
    has_ended = threading.Event()

    def list_all() -> None:
        while not has_ended.is_set():
            kernel.loaded()

    thread = threading.Thread(target=list_all)
    thread.start()
    try:
        for _ in range(20):
            fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "table")
            id_ = kernel.map_info(fd).id
            kernel.close(fd)
            while (listed := kernel.loaded().arrays.get(id_)) is not None:
                assert listed.users == 0
    finally:
        has_ended.set()
        thread.join()


@pytest.mark.kernel
def test_lists_are_read_without_any_capability() -> None:
    probes.needs(probes.bpf_without_capability())
    links, (reader, writer) = iterators.loaded(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writer, b"%d" % len(iterators.read(links).programs))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert int(os.read(reader, 16)) > 0
    finally:
        os.close(reader)
        os.waitpid(child, 0)


@pytest.mark.kernel
@pytest.mark.parametrize("is_separate", [True, False])
def test_owner_is_read_where_this_kernel_and_older_ones_have_it(*, is_separate: bool) -> None:
    """Both ways assemble; the one that this kernel has is used in all tests above."""
    layout = btf.layout(iterators._FIELDS, iterators._FUNCTIONS, optional=iterators._OPTIONAL_FIELDS)
    offsets = {key: offset for key, offset in layout.offsets.items() if "owner" not in f"{key}"}
    if is_separate:
        offsets |= {("bpf_map", "owner"): 0} | dict.fromkeys([("bpf_map_owner", "type"), ("bpf_map_owner", "jited")], 0)
    else:
        offsets |= dict.fromkeys([("bpf_map", "owner.type"), ("bpf_map", "owner.jited")], 0)
    kernel = LinuxKernel()
    assert len(iterators.assemble_arrays(layout._replace(offsets=offsets))) % 8 == 0
    assert kernel.loaded().programs
