"""Paths in bpffs, and what may be opened there."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from app.bpf.kernel import Kernel
from app.bpf.uapi import errno_name
from app.service.errors import PinNotAllowed, PinUnusable, ServiceError, kernel_failure
from app.service.registry.held import Pinned, Source

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
