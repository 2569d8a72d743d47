"""Starting the process that loads an object file, hearing its answer, and ending it."""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from app.bpf import attr
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf
from app.bpf.uapi import BPF_F_RDONLY, Cmd
from app.loader.files import read_file, sealed
from app.loader.messages import (
    MAX_ANSWER_BYTES,
    MAX_WARNING_BYTES,
    LoadAnswer,
    LoadRequest,
    MapFacts,
    ObjectLimits,
    ProgramFacts,
    Refusal,
)
from app.sandbox.channel import receive_with_fds, send_with_fds

# -S: without site-packages, of which it needs nothing, it starts in half of the time.
_CODE: Final = "import sys; sys.path.append(sys.argv[3]); from app.loader.process import main; main(*sys.argv[1:3])"
_ROOT: Final = str(Path(__file__).parents[2])
_BUFFER_BYTES: Final = 1 << 18  # of the channel: one answer has to fit
_END_SECONDS: Final = 0.5  # that a process which has closed its channel, or was killed, has to be gone
_SELF_END_SECONDS: Final = 1.0  # after its deadline, it ends by itself
_NICENESS: Final = 15  # more than that of the process that starts it: other requests come first
_MOST_NICENESS: Final = 19
_TIME_SIGNALS: Final = {signal.SIGALRM, signal.SIGXCPU}


class RunningLoader:
    """One process that loads one object file. Thread rule: one thread.

    Attributes:
        deadline: When it is given up, in seconds of time.monotonic().
    """

    code = _CODE  # what it runs; tests put in others, which hang or crash

    def __init__(self, request: LoadRequest, elf: int, maps: Sequence[int]) -> None:
        """Start it.

        Args:
            request: What to load, with the limits that count.
            elf: The object file, in sealed memory. It stays the caller's.
            maps: The maps that replace those of `request.replaced`. They stay the caller's.

        Raises:
            OSError: It cannot be started.
        """
        seconds = str(request.limits.timeout + _SELF_END_SECONDS)
        self._replaced = len(maps)
        self._program_types = request.limits.program_types
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._warnings, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with other:
                for each in (self._channel, other):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                self._channel.settimeout(0)
                with _read_only(maps) as replacing:
                    send_with_fds(self._channel, request.dump(), [elf, *replacing])
                self._process = subprocess.Popen(  # noqa: S603 - only code of this project
                    # -I: neither the environment nor the current folder decide what is imported.
                    [sys.executable, "-I", "-S", "-c", self.code, str(other.fileno()), seconds, _ROOT],
                    pass_fds=[other.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=writable,
                    env={},
                    cwd="/",
                )
        except BaseException:
            self._channel.close()
            os.close(self._warnings)
            raise
        finally:
            os.close(writable)
        with contextlib.suppress(OSError):  # where this process may not, all are alike
            niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS, _MOST_NICENESS)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)
        self.deadline = time.monotonic() + request.limits.timeout

    def fileno(self) -> int:
        """Return what can be polled: it is readable when there is an answer, or the process has ended."""
        return self._channel.fileno()

    def finish(self, kernel: Kernel) -> tuple[LoadAnswer, list[int]]:
        """Take the answer, if there is one by now, and end the process.

        The process may have been taken over by the file. So each fd is looked at, and an answer that does not fit its
        fds counts as none.

        Args:
            kernel: Tells what is behind an fd.

        Returns:
            (the answer, the fds that belong to it). The caller owns the fds.
        """
        content, fds, failure = b"", list[int](), None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            try:
                content, fds = receive_with_fds(self._channel, MAX_ANSWER_BYTES)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                failure = Refusal("kernel-error", {"command": "SCM_RIGHTS", "errno": "EMFILE"})
        is_late, status = time.monotonic() >= self.deadline, self._end(is_over=bool(content))
        if content:
            try:
                answer = LoadAnswer.load(content)
                self._check(answer, fds, kernel)
            except (ValueError, TypeError, KeyError, OSError, RecursionError):
                failure = Refusal("object-unreadable", {"reason": "the process that loads it answered nonsense"})
            else:
                return replace(answer, warnings=self._take_warnings()), fds
        for fd in fds:
            os.close(fd)
        return LoadAnswer(failure or _why_ended(status, is_late=is_late), warnings=self._take_warnings()), []

    def _check(self, answer: LoadAnswer, fds: Sequence[int], kernel: Kernel) -> None:
        """Check that the fds are the programs and maps that the answer names.

        Raises:
            ValueError: They are not.
        """
        if answer.refusal is not None and (fds or answer.programs or answer.maps):
            raise ValueError("a refusal brings nothing")
        if len(fds) != answer.fd_count or sum(each.is_replaced for each in answer.maps) > self._replaced:
            raise ValueError("the fds are not as many as the answer says")
        told_of: list[ProgramFacts | MapFacts] = [each for each in answer.programs if each.is_loaded]
        told_of += [each for each in answer.maps if not each.is_replaced]
        for fd, told in zip(fds, told_of, strict=True):
            if kernel.obj_kind(fd) != ("prog" if isinstance(told, ProgramFacts) else "map"):
                raise ValueError("an fd is of another kind than the answer says")
            type_ = kernel.prog_info(fd).type if isinstance(told, ProgramFacts) else kernel.map_info(fd).type
            if type_ != told.type or (isinstance(told, ProgramFacts) and type_ not in self._program_types):
                raise ValueError("a program or a map is of another type than the answer says, or than is allowed")

    def _end(self, *, is_over: bool) -> int | None:
        """End the process, and return its status as subprocess has it: minus the signal that it died of.

        None: it is still there. The keeper lacks the right to kill a process of another user, which then ends by
        itself: see `has_ended`.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            if not is_over and time.monotonic() < self.deadline:
                self._process.wait(_END_SECONDS)  # it has closed the channel, so it is about to end
        with contextlib.suppress(PermissionError):
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._channel.close()
        return self._process.poll()

    def kill(self) -> None:
        """End the process at once, as far as this process may. `finish` has to follow."""
        with contextlib.suppress(PermissionError):
            self._process.kill()

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone. It is at the latest a second after its deadline."""
        return self._process.poll() is not None

    def _take_warnings(self) -> str:
        content = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._warnings, MAX_WARNING_BYTES):
                content = (content + chunk)[-MAX_WARNING_BYTES:]
        os.close(self._warnings)
        return content.decode("utf-8", "replace")


def _why_ended(status: int | None, *, is_late: bool) -> Refusal:
    """Return why a process has ended without an answer. `status`: as subprocess has it; None: it is still there."""
    if is_late or (status is not None and -status in _TIME_SIGNALS):
        return Refusal("object-timeout")
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return Refusal("object-unreadable", {"reason": f"the process that loads it died of {name}", "signal": name})
    return Refusal("object-unreadable", {"reason": f"the process that loads it ended with status {status}"})


@contextlib.contextmanager
def _read_only(maps: Sequence[int]) -> Iterator[list[int]]:
    """Open maps once more, so that their values cannot be written by way of these fds.

    Where this process lacks CAP_SYS_ADMIN, the fds can do what the given ones can.

    Kernel:
        MAP_GET_FD_BY_ID with BPF_F_RDONLY, Linux 4.15.
    """
    kernel, opened = LinuxKernel(), list[int]()
    try:
        for fd in maps:
            try:
                fields = attr.GetId(id=kernel.map_info(fd).id, open_flags=BPF_F_RDONLY)
                opened.append(bpf(Cmd.MAP_GET_FD_BY_ID, fields))
            except PermissionError:
                opened.append(os.dup(fd))
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


class DirectLoader:
    """Reads and loads object files with the rights of this process. Thread rule: any thread."""

    def __init__(self, limits: ObjectLimits) -> None:
        """Load within these limits."""
        self._limits = limits
        self._kernel = LinuxKernel()
        self._running: set[RunningLoader] = set()
        self._is_closed = False

    def seal(self, content: bytes) -> int:
        """Return the fd of sealed memory with this content."""
        return sealed(content)

    def read_file(self, path: str) -> int:
        """Return the fd of sealed memory with the content of a file: see `files.read_file`."""
        return read_file(path, self._limits.object_dirs, self._limits.max_bytes)

    def load(self, request: LoadRequest, elf: int, maps: Sequence[int]) -> tuple[LoadAnswer, list[int]]:
        """Load an object file. It may take as long as the limits allow: call it in a worker thread.

        Args:
            request: What to load.
            elf: The object file, in sealed memory. It stays the caller's.
            maps: The maps that replace those of `request.replaced`. They stay the caller's.

        Returns:
            (what became of it, the fds of the programs that are loaded and of the maps that are not replaced).

        Raises:
            OSError: The process cannot be started. EPERM: a request brought the file, which is not allowed. ESHUTDOWN:
                this is closed.
        """
        running = RunningLoader(replace(request, limits=self._limits), elf, maps)
        self._running.add(running)
        try:
            if not self._is_closed:
                poll = select.poll()
                poll.register(running, select.POLLIN)
                poll.poll(1000 * self._limits.timeout)
        finally:
            self._running.discard(running)
            answer, fds = running.finish(self._kernel)
        if not self._is_closed:
            return answer, fds
        for fd in fds:
            os.close(fd)
        raise OSError(errno.ESHUTDOWN, "the loader is closed")

    def close(self) -> None:
        """End what is being loaded."""
        self._is_closed = True
        for running in list(self._running):
            running.kill()
