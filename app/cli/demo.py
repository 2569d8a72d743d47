"""What `jumptable demo` serves: a program array and programs for it, assembled by hand."""

from typing import Final

from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, ProgType
from app.service.errors import kernel_failure
from app.service.objects.opening import make_array
from app.service.objects.program import Program
from app.service.registry.registry import Registry

MAX_ENTRIES: Final = 16
NAME: Final = "jump_table"
_COUNTER_BYTES: Final = 8


def entry(array_fd: int) -> bytes:
    """Tail-call the entry that the packet's first byte names; XDP_ABORTED (0) where that falls through."""
    return b"".join(
        (
            asm.load(asm.WORD, 2, 1, 0),  # r2 = xdp_md.data
            asm.load(asm.WORD, 3, 1, 4),  # r3 = xdp_md.data_end
            asm.mov_reg(4, 2),
            asm.add(4, 1),
            asm.jump_gt(4, 3, 4),  # an empty packet: to the end
            asm.load(asm.BYTE, 3, 2),  # r3 = the packet's first byte
            asm.map_fd(2, array_fd),  # two instructions
            asm.tail_call(),  # r1 is the context still
            asm.returns(0),
        )
    )


def count(counter_fd: int) -> bytes:
    """Add one to the counter, and pass."""
    return asm.map_value(1, counter_fd) + asm.mov(2, 1) + asm.atomic_add(1, 2) + asm.returns(2)


def fill(registry: Registry) -> None:
    """Make the array and the programs, and hold them. KernelPermission, KernelError, or OSError for the counter."""
    kernel = registry.kernel
    array = make_array(kernel, NAME, MAX_ENTRIES)
    registry.maps.adopt(NAME, array)
    counter = kernel.map_create(MapType.ARRAY, 4, _COUNTER_BYTES, 1, "counter")
    programs = {
        "entry": entry(array.fd),
        "drop": asm.returns(1),
        "pass": asm.returns(2),
        "tx": asm.returns(3),
        "count": count(counter),
    }
    try:
        for name, instructions in programs.items():
            registry.programs.adopt(name, _loaded(kernel, name, instructions))
    finally:
        kernel.close(counter)  # `count` keeps it


def _loaded(kernel: Kernel, name: str, instructions: bytes) -> Program:
    try:
        return Program(kernel, kernel.prog_load(ProgType.XDP, instructions, name))
    except OSError as error:
        raise kernel_failure("PROG_LOAD", error) from error
