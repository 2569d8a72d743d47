"""What the kernel can do for this process. The kernel is asked by trying: a version number does not tell.

Distributions backport, and a container or lockdown may take away what the version promises.
"""

import errno
import resource
import struct
import threading
from collections.abc import Callable
from typing import Final

from app.bpf import btf
from app.bpf.bulk import programs as bulk_programs
from app.bpf.kernel import Ability, Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, errno_name
from app.sandbox.capabilities import drop_capabilities

# The functions that the kernel has for each kind of object that an iterator can list.
_ITERATORS: Final = ("bpf_iter_bpf_map", "bpf_iter_bpf_prog")
_NOT_WITHOUT_CAP_BPF: Final = (
    "no: this kernel refuses every bpf(2) call of a process without CAP_BPF, as those before Linux 6.1 do while "
    "kernel.unprivileged_bpf_disabled is not 0"
)


def abilities(kernel: LinuxKernel) -> tuple[Ability, ...]:
    """Return what the kernel can, with the rights of this process. The first call takes about 0.1 s.

    Args:
        kernel: The kernel of this machine, as this process itself reaches it.
    """
    loaded = kernel.table_programs()
    return (
        _program("writer", loaded.writer, bulk_programs.load_writer, kernel, "written"),
        _program("reader", loaded.reader, bulk_programs.load_reader, kernel, "read"),
        _iterators(),
        _without_capability(kernel),
        _memlock(kernel),
    )


def _program(name: str, loaded: int | None, load: Callable[[Kernel], int], kernel: Kernel, done: str) -> Ability:
    """Tell whether a program of `app.bpf.bulk` is there; if not, why."""
    if loaded is not None:
        return Ability(
            name, can=True, detail=f"whole tables are {done} inside the kernel, in one call for many entries"
        )
    try:
        kernel.close(load(kernel))
        why = "it was not loaded at the start"
    except (OSError, LookupError, struct.error) as error:
        why = _reason(error)
    return Ability(name, can=False, detail=f"whole tables are {done} with one call for each entry: {why}")


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"its BTF does not describe what the program needs ({error})"
    name = errno_name(error.errno or 0)
    if error.errno in {errno.EPERM, errno.EACCES}:
        return f"the process lacks CAP_BPF, CAP_PERFMON or CAP_NET_ADMIN ({name})"
    if error.errno == errno.ENOENT:
        return "this kernel provides no BTF (/sys/kernel/btf/vmlinux)"
    return f"this kernel does not take the program ({name})"


def _iterators() -> Ability:
    try:
        can = all(map(btf.has_name, _ITERATORS))
    except OSError:
        return Ability("iterators", can=False, detail="this kernel provides no BTF (/sys/kernel/btf/vmlinux)")
    has = "has" if can else "does not have"
    return Ability("iterators", can=can, detail=f"this kernel {has} BPF iterators over maps and programs (Linux 5.9)")


def refuses_all(kernel: Kernel) -> bool:
    """Tell whether the kernel refuses this thread even a call that needs no rights."""
    try:
        kernel.map_info(-1)
    except OSError as error:
        return error.errno == errno.EPERM
    return False


def _without_capability(kernel: Kernel) -> Ability:
    """Try a call in a thread that drops its capabilities: they belong to a thread, not to the process."""
    refused: list[bool] = []

    def ask() -> None:
        drop_capabilities([])
        refused.append(refuses_all(kernel))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if not refused:
        return Ability("without capability", can=None, detail="not known: capabilities cannot be dropped here")
    if refused[0]:
        return Ability("without capability", can=False, detail=_NOT_WITHOUT_CAP_BPF)
    detail = "a process without capabilities may use the maps and programs that it holds open"
    return Ability("without capability", can=True, detail=detail)


def counts_map_memory(kernel: Kernel) -> bool | None:
    """Tell whether the kernel counts the memory of maps and programs against RLIMIT_MEMLOCK, as before Linux 5.11.

    Sets the limit to 0 for the time of one call: call it before there are other threads.

    Returns:
        None where this process may not make a map, so that it does not matter.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        counts = not _can_make_map(kernel)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return None if counts and not _can_make_map(kernel) else counts


def _can_make_map(kernel: Kernel) -> bool:
    try:
        kernel.close(kernel.map_create(MapType.ARRAY, 4, 4, 1))
    except OSError:
        return False
    return True


def _memlock(kernel: Kernel) -> Ability:
    counts, (limit, _) = counts_map_memory(kernel), resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if counts is None:
        return Ability("memlock", can=None, detail="not known: the process may not make a map (CAP_BPF)")
    if not counts:
        return Ability("memlock", can=True, detail="the memory of maps does not count against RLIMIT_MEMLOCK")
    told = "the memory of maps and programs counts against RLIMIT_MEMLOCK, as before Linux 5.11"
    if limit == resource.RLIM_INFINITY:
        return Ability("memlock", can=True, detail=f"{told}, and that is unlimited")
    detail = f"{told}, and that is {limit >> 10} KiB: raise it (ulimit -l unlimited, LimitMEMLOCK=infinity)"
    return Ability("memlock", can=False, detail=detail)
