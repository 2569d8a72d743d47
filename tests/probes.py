"""What the kernel that runs the tests can do, asked by trying it. Its version would not tell: distributions backport.

Each probe returns None where the kernel can, and else a sentence that says what it cannot, for `needs`.
The probes ask in the shortest way, and not as the project does: a fault of the project must not look like a kernel
without the feature.
"""

import ctypes
import errno
import functools
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from app import native
from app.bpf import asm, attr
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf
from app.bpf.uapi import BPF_F_RDONLY, BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS, AttachType, Cmd, MapType, ProgType
from app.sandbox.capabilities import drop_capabilities

_MODE: Final = os.environ.get("KERNEL_TESTS", "")
# Kernel tests fail where the kernel or the privileges for all of them are missing.
REQUIRED: Final = _MODE in {"required", "probed"}
# Kernel tests fail even where this kernel cannot do what one of them is about.
NOTHING_MAY_LACK: Final = _MODE == "required"


def needs(lack: str | None) -> None:
    """Skip the test that calls it where the kernel lacks something; with KERNEL_TESTS=required, fail it.

    Args:
        lack: What a probe has returned.
    """
    if lack is None:
        return
    if NOTHING_MAY_LACK:
        pytest.fail(f"KERNEL_TESTS=required, but {lack}")
    pytest.skip(lack)


def examples(count: int) -> int:
    """How many random examples a test tries: `count` on the machine itself, and a tenth of it in an emulated guest."""
    return count // 10 if REQUIRED and not NOTHING_MAY_LACK else count


def _refusal(load: Callable[[LinuxKernel], int]) -> int | None:
    """Return the errno with which the kernel refuses to make an fd. None: it makes it."""
    kernel = LinuxKernel()
    try:
        kernel.close(load(kernel))
    except OSError as error:
        return error.errno
    return None


@functools.cache
def writer() -> str | None:
    """Programs that bpf(2) runs by itself (BPF_PROG_TYPE_SYSCALL), as the writer of tables is one."""
    refusal = _refusal(lambda kernel: kernel.prog_load(ProgType.SYSCALL, asm.returns(0), flags=BPF_F_SLEEPABLE))
    return None if refusal is None else "this kernel has no BPF_PROG_TYPE_SYSCALL, so no writer of tables"


@functools.cache
def btf() -> str | None:
    """Type information of the kernel itself, by which the reader of tables is assembled."""
    return None if Path("/sys/kernel/btf/vmlinux").exists() else "this kernel provides no BTF, so no reader of tables"


@functools.cache
def bpf_without_capability() -> str | None:
    """Whether a process without capabilities may call bpf(2) for what needs none, as on an fd that it holds."""
    refused: list[int | None] = []

    def ask() -> None:
        drop_capabilities([])  # of this thread alone
        try:
            LinuxKernel().map_info(-1)
        except OSError as error:
            refused.append(error.errno)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return "this kernel refuses every bpf(2) call without CAP_BPF" if refused == [errno.EPERM] else None


@functools.cache
def xdp_frags() -> str | None:
    """XDP programs for packets in several buffers."""
    refusal = _refusal(lambda kernel: kernel.prog_load(ProgType.XDP, asm.returns(2), flags=BPF_F_XDP_HAS_FRAGS))
    return None if refusal is None else "this kernel has no XDP for packets in several buffers (BPF_F_XDP_HAS_FRAGS)"


@functools.cache
def freeze_needs_write() -> str | None:
    """Whether only an fd that is open for writing can freeze a map."""
    kernel = LinuxKernel()
    fields = attr.MapCreate(map_type=MapType.ARRAY, key_size=4, value_size=4, max_entries=1, map_flags=BPF_F_RDONLY)
    fd = bpf(Cmd.MAP_CREATE, fields)
    try:
        kernel.map_freeze(fd)
    except OSError as error:
        return None if error.errno == errno.EPERM else f"this kernel refuses to freeze: errno {error.errno}"
    finally:
        kernel.close(fd)
    return "this kernel lets an fd that is open for reading alone freeze a map"


@functools.cache
def memlock_as_in_memory() -> str | None:
    """Whether the kernel counts the memory of a map as Linux 6.18 does, which the kernel in memory imitates."""
    kernel = LinuxKernel()
    fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1)
    found = re.search(r"^memlock:\t(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    kernel.close(fd)
    counted = int(found[1]) if found else 0
    return None if counted == 320 else f"this kernel counts {counted} bytes for an array of one entry, and not 320"


def _takes_packet(type_: int, size: int) -> bool:
    """Whether a program of this type runs on a packet of so many bytes."""
    kernel = LinuxKernel()
    fd = kernel.prog_load(type_, asm.returns(1))
    try:
        kernel.prog_test_run(fd, bytes(size))
    except OSError:
        return False
    finally:
        kernel.close(fd)
    return True


@functools.cache
def least_packet(type_: int) -> str | None:
    """Whether the kernel refuses to run programs of this type on packets that are shorter than an Ethernet header."""
    return f"this kernel runs programs of type {type_} on a packet of one byte" if _takes_packet(type_, 1) else None


@functools.cache
def skb_of_a_page() -> str | None:
    """Whether packets that become an skb have to fit into a page."""
    takes = _takes_packet(ProgType.SCHED_CLS, 8000)
    return "this kernel makes an skb of more than one page in a test run" if takes else None


@functools.cache
def iterators() -> str | None:
    """Iterators over maps and programs."""
    names = Path("/proc/kallsyms").read_text("ascii").split()
    wanted = {"bpf_iter_bpf_map", "bpf_iter_bpf_prog", "bpf_map_seq_ops", "bpf_prog_seq_ops"}
    lack = "this kernel has no BPF iterators over maps and programs"
    return btf() or (None if wanted & set(names) else lack)


@functools.cache
def compares_attach_types() -> str | None:
    """Whether an array refuses an XDP program with another attach type than its first one has."""
    kernel = LinuxKernel()
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 2)
    programs = [
        kernel.prog_load(ProgType.XDP, asm.returns(2), expected_attach_type=each) for each in (0, AttachType.XDP)
    ]
    try:
        for index, program in enumerate(programs):
            kernel.map_update(array, index, program)
    except OSError:
        return None
    finally:
        for fd in (array, *programs):
            kernel.close(fd)
    return "this kernel does not compare the attach types of the programs in an array"


@functools.cache
def tcx() -> str | None:
    """Programs of tc by links."""
    fields = attr.Query(target=socket.if_nametoindex("lo"), attach_type=AttachType.TCX_INGRESS)
    try:
        bpf(Cmd.PROG_QUERY, fields)
    except OSError as error:
        if error.errno != errno.ENOENT:
            return "this kernel has no tcx"
    return None


@functools.cache
def veth() -> str | None:
    """Pairs of virtual interfaces, which are a module in most kernels."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    pair = ["link", "add", "one", "type", "veth", "peer", "name", "two"]
    done = subprocess.run(
        ["unshare", "--net", str(shutil.which("ip", path=path)), *pair], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"this kernel makes no veth: {done.stderr.strip()}"


@functools.cache
def landlock() -> str | None:
    """Landlock, by asking for its version."""
    version = int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))  # landlock_create_ruleset
    return None if version > 0 else "this kernel has no Landlock"


@functools.cache
def own_fdinfo() -> str | None:
    """Whether a process may read its own fdinfo after it has changed its user."""
    code = "import os; fd = os.open('/', 0); os.setresuid(65534, 65534, 65534); open(f'/proc/self/fdinfo/{fd}').read()"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=False)
    return None if done.returncode == 0 else "this kernel lets only root read the fdinfo of a process with another user"


@functools.cache
def unlimited_maps() -> str | None:
    """Whether maps can be made whatever RLIMIT_MEMLOCK is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        refusal = _refusal(lambda kernel: kernel.map_create(MapType.ARRAY, 4, 4, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return None if refusal is None else "this kernel counts maps against RLIMIT_MEMLOCK"


def c_extension() -> str | None:
    """What the project has in C. It is built where the project is installed, and not for other machines."""
    return None if native.is_built else "the C extension is not built for this machine"
