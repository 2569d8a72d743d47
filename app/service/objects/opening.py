"""From a source to an open object: by pin, by id, or made anew."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, errno_name
from app.service.errors import (
    ArrayTooLarge,
    MapGone,
    PinNotAllowed,
    PinUnusable,
    ProgramNotFound,
    ServiceError,
    kernel_failure,
)
from app.service.objects.program import Program
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import ById, Pinned, Source


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


_REMEDIES: Final = {
    errno.ENOENT: "nothing is pinned there, or the folder does not exist",
    errno.EACCES: "it is no pin in bpffs, or its mode or owner keeps the service out",
    errno.EPERM: "the name has a dot in it, or bpf(2) is denied (seccomp; no CAP_BPF before Linux 6.1)",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.ELOOP: "its symbolic links go round in a circle",
    errno.ENAMETOOLONG: "the path is too long",
    errno.EEXIST: "something else was pinned there just now",
    errno.ENOTEMPTY: "the folder is there, and what is in it is not the service's: name another",
    errno.EROFS: "that bpffs is mounted read-only",
    errno.EINVAL: "it must be an absolute path, and a name in bpffs has no dot",
}


def resolve_pin(path: str, pin_dirs: Sequence[str]) -> str:
    """The path with `..` and symbolic links resolved, which is below one of `pin_dirs`.

    Errors: PinNotAllowed; PinUnusable for what cannot be a path at all.
    """
    if not path.startswith("/") or "\0" in path:
        raise _unusable(path, errno.EINVAL)
    try:
        resolved = Path(os.path.realpath(os.fsencode(path)).decode())
        allowed = [Path(each).resolve() for each in pin_dirs]
    except (OSError, ValueError) as error:
        raise _unusable(path, getattr(error, "errno", errno.EINVAL)) from error
    if not any(each in resolved.parents for each in allowed):
        raise PinNotAllowed(path, tuple(pin_dirs))
    return str(resolved)


def allowed_source(source: Source, pin_dirs: Sequence[str]) -> Source:
    """The source with its path resolved, where it is a pin. Errors: as `resolve_pin`."""
    return Pinned(resolve_pin(source.path, pin_dirs)) if isinstance(source, Pinned) else source


def open_pin(kernel: Kernel, path: str) -> int:
    """Open what is pinned at `path`; the fd is the caller's. Errors: PinUnusable, KernelError. Kernel: OBJ_GET, 4.4."""
    try:
        return kernel.obj_get(path)
    except OSError as error:
        raise pin_failure(kernel, path, "OBJ_GET", error) from error


def check_pinnable(kernel: Kernel, path: str) -> None:
    """What OBJ_PIN would refuse a new pin at `path` for, without making one. Errors: PinUnusable."""
    try:
        kernel.check_pin(path)
    except OSError as error:
        raise pin_failure(kernel, path, "OBJ_PIN", error) from error


def pin_failure(kernel: Kernel, path: str, command: str, error: OSError) -> ServiceError:
    """The error for an errno of OBJ_GET or OBJ_PIN."""
    if error.errno == errno.EXDEV:  # a keeper says so of links in folders that this process may not enter
        return PinNotAllowed(path, ())
    if error.errno not in _REMEDIES:
        return kernel_failure(command, error)
    if error.errno in {errno.ENOENT, errno.EPERM, errno.EACCES} and not kernel.in_bpffs(path):
        remedy = "no bpffs is mounted there: mount -t bpf bpf /sys/fs/bpf"
        return PinUnusable(path, errno_name(error.errno), remedy)
    return _unusable(path, error.errno)


def _unusable(path: str, number: int) -> PinUnusable:
    return PinUnusable(path, errno_name(number), _REMEDIES.get(number, "see errno(3)"))
