"""Whether a program would fit an array, found out without touching the array."""

import errno
from typing import Literal

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, prog_type_name
from app.service.errors import ProgramBusy, kernel_failure
from app.service.program import Program
from app.service.program_array import ProgramArray, misfit

Fit = Literal["tried", "type-only"]


def check_fit(kernel: Kernel, array: ProgramArray, program: Program, seed: Program | None) -> Fit:
    """Put `seed` into a scratch array of one entry, then `program`: the kernel answers as the real array would.

    `seed`: a program that `array` holds or that is called from one; None where there is none. Then, and where no
    scratch array can be made (CAP_BPF), only the type is compared: `type-only`. Raises ProgramIncompatible.
    """
    state = array.state()
    if state.owner_type is not None and prog_type_name(state.owner_type) != program.type:
        raise misfit(state, program)
    scratch = None if seed is None else _scratch(kernel)
    if scratch is None or seed is None:
        return "type-only"
    try:
        kernel.map_update(scratch, 0, seed.fd)
        kernel.map_update(scratch, 0, program.fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise misfit(state, program) from error
        if error.errno == errno.EBUSY:
            raise ProgramBusy(program.id) from error
        raise kernel_failure("MAP_UPDATE_ELEM", error) from error
    finally:
        kernel.close(scratch)
    return "tried"


def _scratch(kernel: Kernel) -> int | None:
    try:
        return kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1, "scratch")
    except OSError:
        return None
