"""A loaded eBPF program that is kept open by an fd: its facts, and test runs of it."""

import errno
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Self

from app.bpf.kernel import Kernel, ProgInfo, TestRun
from app.bpf.uapi import ENOTSUPP, MIN_PACKET, RETURN_NAMES, prog_type_name
from app.service.errors import NotAProgram, PacketRefused, ProgramNotRunnable, kernel_failure

# The wall-clock time of the boot, in seconds. The kernel reports the load time of a program as time since the boot.
# Read once, so that the date of a program does not change while the service runs.
_BOOT_TIME: Final = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

# The types that BPF_PROG_TEST_RUN runs on a packet: net/bpf/test_run.c.
_PACKET_TYPES: Final = {
    "socket_filter", "sched_cls", "sched_act", "xdp", "cgroup_skb", "lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local",
    "flow_dissector", "netfilter",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProgramSummary:
    """The facts about the program of an entry.

    `name` is the name under which the service holds the program; None: it does not hold it. The other fields are None
    where the service may not open the program by its id (CAP_SYS_ADMIN).
    """

    id: int
    name: str | None = None
    type: str | None = None
    tag: str | None = None
    kernel_name: str | None = None
    loaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a test run.

    `returned` is the program's return value (u32), `meaning` its name (`XDP_PASS`) or None, `duration` the mean of one
    run in nanoseconds, `packet` the packet as the program left it.
    """

    returned: int
    meaning: str | None
    duration: int
    packet: bytes


class OwnedFd:
    """An object that owns an fd until `close`. A context manager, which closes it at the end."""

    fd: int  # absent once it is closed

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self.fd = fd

    def __getattr__(self, name: str) -> int:
        """Raise ValueError for the fd of a closed object. (A plain attribute is faster than a property.)"""
        if name == "fd":
            message = f"this {type(self).__name__} is closed"
            raise ValueError(message)
        raise AttributeError(name)

    def close(self) -> None:
        """Close the fd; do nothing if it is closed already."""
        fd = self.__dict__.pop("fd", None)
        if fd is not None:
            self._kernel.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Program(OwnedFd):
    """A loaded program. Thread rule: one thread at a time calls `run`; any thread may call the other methods."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        """Take over an fd; it is closed if this fails.

        Raises:
            NotAProgram: The fd is of another kind.
            KernelPermission, KernelError: The kernel reports nothing about it.

        Kernel:
            OBJ_GET_INFO_BY_FD, Linux 4.13.
        """
        super().__init__(kernel, fd)
        try:
            kind = kernel.obj_kind(fd)
            if kind != "prog":
                raise NotAProgram(kind)
            self._info = kernel.prog_info(fd)
            self._summary = _summary(self._info)
            self.id = self._info.id  # u32
            self.type = prog_type_name(self._info.type)  # xdp, sched_cls, …
        except OSError as error:
            self.close()
            raise kernel_failure("OBJ_GET_INFO_BY_FD", error) from error
        except NotAProgram:
            self.close()
            raise

    def info(self) -> ProgInfo:
        """Return its facts as of now: the counters change.

        Raises:
            KernelPermission, KernelError: The kernel reports nothing about it.
        """
        try:
            return self._kernel.prog_info(self.fd)
        except OSError as error:
            raise kernel_failure("OBJ_GET_INFO_BY_FD", error) from error

    def copy(self) -> "Program":
        """Return the same program with an fd of its own.

        Raises:
            KernelError: No fd is free.
        """
        try:
            fd = self._kernel.dup(self.fd)
        except OSError as error:
            raise kernel_failure("dup", error) from error
        copied = object.__new__(Program)
        OwnedFd.__init__(copied, self._kernel, fd)
        copied._info, copied._summary, copied.id, copied.type = self._info, self._summary, self.id, self.type
        return copied

    def summary(self, name: str | None = None) -> ProgramSummary:
        """Return the facts for an entry; `name` is the name under which the service holds the program, if it does."""
        return self._summary if name is None else replace(self._summary, name=name)

    def run(self, packet: bytes, repeat: int = 1) -> RunResult:
        """Run it on a packet, with its real side effects on maps. May take seconds: call it in a worker thread.

        Args:
            packet: At least 14 bytes; the kernel's upper bound depends on the type.
            repeat: The number of runs, at least 1.

        Raises:
            ProgramNotRunnable: The kernel cannot run this type on a packet.
            PacketRefused: The packet is too short or too long.
            KernelPermission, KernelError: Any other errno.

        Kernel:
            PROG_TEST_RUN, Linux 4.12.
        """
        if len(packet) < MIN_PACKET:
            raise PacketRefused(self.type, len(packet))
        try:
            result = self._kernel.prog_test_run(self.fd, packet, repeat)
        except OSError as error:
            if error.errno == ENOTSUPP or (error.errno == errno.EINVAL and self.type not in _PACKET_TYPES):
                raise ProgramNotRunnable(self.type) from error
            if error.errno in {errno.EINVAL, errno.EMSGSIZE, errno.E2BIG, errno.ENOMEM}:
                raise PacketRefused(self.type, len(packet)) from error
            raise kernel_failure("PROG_TEST_RUN", error) from error
        return _run_result(self._info.type, result)


def loaded_at(info: ProgInfo) -> datetime:
    """Return when a program was loaded, in UTC, to the second."""
    return datetime.fromtimestamp(int(_BOOT_TIME + info.load_time / 1e9), UTC)


def _summary(info: ProgInfo) -> ProgramSummary:
    return ProgramSummary(
        id=info.id,
        type=prog_type_name(info.type),
        tag=info.tag,
        kernel_name=info.name,
        loaded_at=loaded_at(info),
    )


def _run_result(type_: int, result: TestRun) -> RunResult:
    meaning = RETURN_NAMES.get(type_, {}).get(result.returned)
    return RunResult(result.returned, meaning, result.duration, result.packet)
