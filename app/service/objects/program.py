"""One eBPF program, held by its file descriptor."""

import errno
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Self

from app.bpf.kernel import Kernel, ProgInfo, TestRun
from app.bpf.uapi import ENOTSUPP, MIN_PACKET, RETURN_NAMES, prog_type_name
from app.service.errors import NotAProgram, PacketRefused, ProgramNotRunnable, kernel_failure

# The kernel stamps a load with the time since boot, which needs the time of the boot to be told as a date. Taken once,
# so that one program's date never changes while the service runs.
_BOOT_TIME: Final = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

# What runs on a packet from user space: net/bpf/test_run.c.
_PACKET_TYPES: Final = {
    "socket_filter", "sched_cls", "sched_act", "xdp", "cgroup_skb", "lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local",
    "flow_dissector", "netfilter",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProgramSummary:
    """What an entry tells of its program. None: the service may not ask the kernel (CAP_SYS_ADMIN)."""

    id: int
    name: str | None = None  # the one it is held under, if any
    type: str | None = None
    tag: str | None = None
    kernel_name: str | None = None
    loaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came out of a test run. `duration`: ns, the mean of one run."""

    returned: int
    meaning: str | None
    duration: int
    packet: bytes


class OwnedFd:
    """Owns an fd from its making until `close`; a context manager that closes at its end. Thread rule: see heirs."""

    fd: int  # absent once it is closed

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self.fd = fd

    def __getattr__(self, name: str) -> int:
        """Tell, where the fd is missing, that it is closed. An attribute costs a lookup less than a property."""
        if name == "fd":
            message = f"this {type(self).__name__} is closed"
            raise ValueError(message)
        raise AttributeError(name)

    def close(self) -> None:
        """Let go of the fd. Twice is fine."""
        fd = self.__dict__.pop("fd", None)
        if fd is not None:
            self._kernel.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Program(OwnedFd):
    """A loaded program. Thread rule: `run` from one thread at a time, the rest from any."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        """Take over `fd`, and close it where it is no program: NotAProgram, KernelError.

        Kernel: OBJ_GET_INFO_BY_FD, Linux 4.13.
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
        """What the kernel tells of it now (its counters move)."""
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
        """What an entry tells of it, `name` being the one it is held under."""
        return self._summary if name is None else replace(self._summary, name=name)

    def run(self, packet: bytes, repeat: int = 1) -> RunResult:
        """Run it on a packet (14 bytes and more), `repeat` times, with its real side effects on maps.

        Errors: ProgramNotRunnable; PacketRefused (the kernel bounds the size by type); KernelError. May take seconds:
        call it in a thread. Kernel: PROG_TEST_RUN, Linux 4.12.
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
        return _told(self._info.type, result)


def loaded_at(info: ProgInfo) -> datetime:
    """When it was loaded, to the second."""
    return datetime.fromtimestamp(int(_BOOT_TIME + info.load_time / 1e9), UTC)


def _summary(info: ProgInfo) -> ProgramSummary:
    return ProgramSummary(
        id=info.id,
        type=prog_type_name(info.type),
        tag=info.tag,
        kernel_name=info.name,
        loaded_at=loaded_at(info),
    )


def _told(type_: int, result: TestRun) -> RunResult:
    meaning = RETURN_NAMES.get(type_, {}).get(result.returned)
    return RunResult(result.returned, meaning, result.duration, result.packet)
