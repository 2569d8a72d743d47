"""Whether a program would fit an array, found out without touching the array."""

import contextlib
import errno
from collections.abc import Sequence
from typing import Literal

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, prog_type_name
from app.service.errors import MapFrozen, ProgramBusy, ServiceError, kernel_failure
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray, incompatibility
from app.service.registry.programs import ProgramRef
from app.service.registry.registry import Registry

Fit = Literal["tried", "type-only"]


def check_fit(kernel: Kernel, array: ProgramArray, programs: Sequence[Program], seeds: Sequence[Program]) -> Fit:
    """Put a seed into a scratch array of one entry, then each program: the kernel answers as the real array would.

    `seeds`: programs that `array` holds or that call into it, the surest first. Where there is none, the first of the
    programs stands in for it, and where no scratch array can be made (CAP_BPF), only the types are compared:
    `type-only`. Errors: ProgramIncompatible, ProgramBusy.
    """
    state = array.state()
    for program in programs:
        if state.owner_type is not None and prog_type_name(state.owner_type) != program.type:
            raise incompatibility(state, program)
    with contextlib.ExitStack() as stack:
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
                    raise incompatibility(kernel.map_state(scratch), program) from error
                if error.errno == errno.EBUSY:
                    raise ProgramBusy(program.id) from error
                raise kernel_failure("MAP_UPDATE_ELEM", error) from error
    return "tried" if seeded else "type-only"


def _goes_in(kernel: Kernel, scratch: int, seed: Program) -> bool:
    try:
        kernel.map_update(scratch, 0, seed.fd)
    except OSError:
        return False  # such as one that an freplace program extends: it claims nothing that is known to be right
    return True


def fit_of(registry: Registry, array: ProgramArray, programs: Sequence[Program], refs: Sequence[ProgramRef]) -> Fit:
    """The same, with the seeds that `refs` lead to. Errors: as `check_fit`."""
    with contextlib.ExitStack() as stack:
        seeds = []
        for ref in refs:
            with contextlib.suppress(ServiceError):  # gone in the meantime, or no right to open it by id
                seeds.append(stack.enter_context(registry.programs.resolve(ref)))
        return check_fit(registry.kernel, array, programs, seeds)


def check_not_frozen(array: ProgramArray) -> None:
    """MapFrozen where it is."""
    if array.state().frozen:
        raise MapFrozen
