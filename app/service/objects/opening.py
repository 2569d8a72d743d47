"""Opening program arrays and programs: from a pin, by id, or newly created.

This module also decides which paths a request may name (`resolve_pin`), and turns the errnos of pins into errors with a
remedy.
"""

import asyncio
import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

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
from app.service.objects.program import OwnedFd, Program
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import ById, Pinned, Source

T = TypeVar("T", bound=OwnedFd)


async def open_in_thread(open_: Callable[[], T]) -> T:
    """Open something in a thread, as the keeper may take its time, and return it.

    Args:
        open_: Returns something with a method `close`, which is called if this is cancelled meanwhile.
    """
    task = asyncio.ensure_future(asyncio.to_thread(open_))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: None if done.cancelled() or done.exception() else done.result().close())
        raise


def open_array(kernel: Kernel, source: Source) -> ProgramArray:
    """Open a program array.

    Raises:
        PinUnusable, PinNotAllowed: Nothing can be opened at the path.
        MapGone: No map has this id.
        NotAProgramArray: What was opened is another object.
        KernelPermission, KernelError: Any other errno.
        TypeError: The source is `Made`.
    """
    return ProgramArray(kernel, _open(kernel, source, is_map=True))


def open_program(kernel: Kernel, source: Source) -> Program:
    """Open a program.

    Raises:
        PinUnusable, PinNotAllowed: Nothing can be opened at the path.
        ProgramNotFound: No program has this id.
        NotAProgram: What was opened is another object.
        KernelPermission, KernelError: Any other errno.
        TypeError: The source is `Made`.
    """
    return Program(kernel, _open(kernel, source, is_map=False))


def open_or_make_array(
    kernel: Kernel, name: str, source: Source, max_entries: int | None, *, pin: bool = True
) -> tuple[ProgramArray, bool]:
    """Open a program array, or create it and pin it where nothing is at its path.

    Args:
        kernel: The kernel port.
        name: The name under which the service holds the array; the new array gets it as its name in the kernel.
        source: Only a `Pinned` source can be created.
        max_entries: The size of a new array; None: do not create one.
        pin: Whether to pin a new array. False serves dry runs, which check instead that it could be pinned.

    Returns:
        (the array, whether it was created).

    Raises:
        ArrayTooLarge: The kernel has no memory for it.
        ServiceError: As `open_array`.
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
    """Create a program array that is pinned nowhere.

    Args:
        kernel: The kernel port.
        name: The array's name in the kernel; characters that it does not accept become `_`.
        max_entries: u32, at least 1.

    Raises:
        ArrayTooLarge: The kernel has no memory for it.
        KernelPermission, KernelError: Any other errno.

    Kernel:
        MAP_CREATE, Linux 4.2.
    """
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
        message = f"cannot open {source}: only a pin or an id can be opened"
        raise TypeError(message)
    try:
        return kernel.map_get_fd_by_id(source.id) if is_map else kernel.prog_get_fd_by_id(source.id)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise (MapGone(source.id) if is_map else ProgramNotFound(source.id)) from error
        raise kernel_failure("MAP_GET_FD_BY_ID" if is_map else "PROG_GET_FD_BY_ID", error) from error


# The remedy by errno, for OBJ_GET and OBJ_PIN.
_REMEDIES: Final = {
    errno.ENOENT: "nothing is pinned there, or the folder does not exist",
    errno.EACCES: "it is no pin in a bpffs, or its mode and owner deny the service access",
    errno.EPERM: "the name contains a dot, or bpf(2) is denied (seccomp; no CAP_BPF before Linux 6.1)",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "the path is too long",
    errno.EEXIST: "something is pinned there already",
    errno.ENOTEMPTY: "the folder contains files that are not the service's: name another one",
    errno.EROFS: "this bpffs is mounted read-only",
    errno.EINVAL: "the path must be absolute, in UTF-8 and without NUL characters",
}
# Where OBJ_PIN has another remedy than OBJ_GET.
_PIN_REMEDIES: Final = _REMEDIES | {
    errno.ENOENT: "the folder does not exist",
    errno.EACCES: "the mode and owner of the folder do not let the service pin there",
}


def resolve_pin(path: str, pin_dirs: Sequence[str]) -> str:
    """Resolve `..` and symbolic links in a path, and check that the result is below one of `pin_dirs`.

    Args:
        path: As a request names it.
        pin_dirs: Folders, whose own links are resolved as well.

    Returns:
        The resolved path.

    Raises:
        PinNotAllowed: The path leads elsewhere.
        PinUnusable: The text cannot be a path: not absolute, with a NUL, or not in UTF-8.
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
    """Return the source with its path resolved and checked by `resolve_pin`; any source but a pin stays as it is."""
    return Pinned(resolve_pin(source.path, pin_dirs)) if isinstance(source, Pinned) else source


def open_pin(kernel: Kernel, path: str) -> int:
    """Open what is pinned at a path, and return the fd, which the caller then owns.

    Raises:
        PinUnusable, PinNotAllowed: Nothing can be opened there.
        KernelPermission, KernelError: Any other errno.

    Kernel:
        OBJ_GET, Linux 4.4.
    """
    try:
        return kernel.obj_get(path)
    except OSError as error:
        raise pin_failure(kernel, path, "OBJ_GET", error) from error


def check_pinnable(kernel: Kernel, path: str) -> None:
    """Check whether something could be pinned at a path, without pinning anything.

    Raises:
        PinUnusable, PinNotAllowed: OBJ_PIN would refuse it.
        KernelPermission, KernelError: Any other errno.
    """
    try:
        kernel.check_pin(path)
    except OSError as error:
        raise pin_failure(kernel, path, "OBJ_PIN", error) from error


def pin_failure(kernel: Kernel, path: str, command: str, error: OSError) -> ServiceError:
    """Return the error for an errno of OBJ_GET or OBJ_PIN.

    Args:
        kernel: The kernel port.
        path: The path of the pin.
        command: `OBJ_GET` or `OBJ_PIN`.
        error: What the kernel port has raised.
    """
    if error.errno == errno.EXDEV:  # from the keeper, which resolves links in folders that this process may not enter
        return PinNotAllowed(path, ())
    if error.errno not in _REMEDIES:
        return kernel_failure(command, error)
    if error.errno in {errno.ENOENT, errno.EPERM, errno.EACCES} and not kernel.in_bpffs(path):
        remedy = "no bpffs is mounted there: mount -t bpf bpf /sys/fs/bpf"
        return PinUnusable(path, errno_name(error.errno), remedy)
    remedies = _PIN_REMEDIES if command == "OBJ_PIN" else _REMEDIES
    return PinUnusable(path, errno_name(error.errno), remedies[error.errno])


def _unusable(path: str, number: int) -> PinUnusable:
    return PinUnusable(path, errno_name(number), _REMEDIES.get(number, "name the path of a pin in bpffs"))
