"""From a source to an open object: by pin, by id, or made anew."""

import errno
import re

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType
from app.service.errors import ArrayTooLarge, MapGone, PinUnusable, ProgramNotFound, kernel_failure
from app.service.objects.pins import check_pinnable, open_pin, pin_failure
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.registry.held import ById, Pinned, Source


def open_array(kernel: Kernel, source: Source) -> ProgramArray:
    """Open a program array. Errors: PinUnusable, MapGone and the rest of NotAProgramArray, Kernel…"""
    return ProgramArray(kernel, _open(kernel, source, is_map=True))


def open_program(kernel: Kernel, source: Source) -> Program:
    """Open a program. Errors: PinUnusable, ProgramNotFound, NotAProgram, Kernel…"""
    return Program(kernel, _open(kernel, source, is_map=False))


def open_or_make_array(
    kernel: Kernel, name: str, source: Source, max_entries: int | None, *, pin: bool = True
) -> tuple[ProgramArray, bool]:
    """Open a program array; where its pin does not exist and `max_entries` is given, make it and pin it there.

    True: it was made. `pin=False`: but not pinned. Errors: as `open_array`.
    """
    try:
        return open_array(kernel, source), False
    except PinUnusable as error:
        if max_entries is None or error.errno != "ENOENT" or not isinstance(source, Pinned):
            raise
    if not pin:
        check_pinnable(kernel, source.path)
    array = make_array(kernel, name, max_entries)
    try:
        if pin:
            kernel.obj_pin(array.fd, source.path)
    except OSError as error:
        array.close()
        raise pin_failure(kernel, source.path, "OBJ_PIN", error) from error
    return array, True


def make_array(kernel: Kernel, name: str, max_entries: int) -> ProgramArray:
    """Make a program array that is pinned nowhere. Kernel: MAP_CREATE."""
    kernel_name = re.sub(r"[^A-Za-z0-9_.]", "_", name)
    try:
        return ProgramArray(kernel, kernel.map_create(MapType.PROG_ARRAY, 4, 4, max_entries, kernel_name))
    except OSError as error:
        if error.errno in {errno.ENOMEM, errno.E2BIG}:
            raise ArrayTooLarge(max_entries) from error
        raise kernel_failure("MAP_CREATE", error) from error


def _open(kernel: Kernel, source: Source, *, is_map: bool) -> int:
    if isinstance(source, Pinned):
        return open_pin(kernel, source.path)
    if not isinstance(source, ById):
        message = f"nothing can be opened from {source}"
        raise TypeError(message)
    try:
        return kernel.map_get_fd_by_id(source.id) if is_map else kernel.prog_get_fd_by_id(source.id)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise (MapGone(source.id) if is_map else ProgramNotFound(source.id)) from error
        raise kernel_failure("MAP_GET_FD_BY_ID" if is_map else "PROG_GET_FD_BY_ID", error) from error
