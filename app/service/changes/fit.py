"""Whether a program would fit an array, found out without touching the array."""

import errno
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Literal

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType
from app.service.errors import MapFrozen, ProgramBusy, ServiceError, kernel_failure
from app.service.objects.compatibility import Requirements
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry

# `tried`: the kernel was asked on a scratch array. `type-only`: only the types could be compared.
Fit = Literal["tried", "type-only"]


async def check_fit(registry: Registry, held: HeldMap, programs: Sequence[Program]) -> Fit:
    """Try whether programs fit a map's array, on a scratch array that takes what the real one takes.

    Args:
        registry: What the service holds. It finds a program that is known to fit.
        held: The map.
        programs: The programs to try.

    Raises:
        ProgramIncompatible: One does not fit.
        ProgramBusy: One is extended by a freplace program.
    """
    refs = await registry.seeds_for(held)
    with ExitStack() as stack:
        seeds = []
        for ref in refs:
            with suppress(ServiceError):  # gone meanwhile, or no right to open it by id
                seeds.append(stack.enter_context(registry.programs.resolve(ref)))
        return try_on_scratch(registry.kernel, held.opened(), programs, seeds)


def try_on_scratch(kernel: Kernel, array: ProgramArray, programs: Sequence[Program], seeds: Sequence[Program]) -> Fit:
    """Put a seed into a scratch array of one entry, then each program: the kernel answers as the real array would.

    Args:
        kernel: Where the scratch array is made (CAP_BPF). Where it cannot be, only the types are compared.
        array: The real array. It is never touched.
        programs: The programs to try.
        seeds: Programs that the real array holds, or that call into it, the surest first. Where there is none, the
            first of `programs` stands in for it.

    Raises:
        ProgramIncompatible: One does not fit.
        ProgramBusy: One is extended by a freplace program.

    Kernel: MAP_CREATE, MAP_UPDATE_ELEM (bpf_prog_map_compatible).
    """
    requirements = Requirements.of(kernel, array.fd)
    for program in programs:
        if requirements.differences(program):
            raise requirements.refusal(program)
    with ExitStack() as stack:
        try:
            scratch = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1, "scratch")
        except OSError:
            return "type-only"
        stack.callback(kernel.close, scratch)
        types = {program.type for program in programs}
        seeded = any(_goes_in(kernel, scratch, seed) for seed in seeds if not types or seed.type in types)
        for program in programs:
            try:
                kernel.map_update(scratch, 0, program.fd)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise Requirements.of(kernel, scratch).refusal(program) from error
                if error.errno == errno.EBUSY:
                    raise ProgramBusy(program.id) from error
                raise kernel_failure("MAP_UPDATE_ELEM", error) from error
    return "tried" if seeded else "type-only"


def check_not_frozen(array: ProgramArray) -> None:
    """Check that user space may write the array.

    Raises:
        MapFrozen: It is frozen for good.
    """
    if array.state().frozen:
        raise MapFrozen


def _goes_in(kernel: Kernel, scratch: int, seed: Program) -> bool:
    try:
        kernel.map_update(scratch, 0, seed.fd)
    except OSError:
        return False  # such as one that a freplace program extends: it fixes nothing that is known to be right
    return True
