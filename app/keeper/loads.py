"""How the keeper loads object files: a process of its own does it for each, while the keeper answers other questions.

The listener makes a socketpair, writes a LoadRequest with its fds into its own end, and passes the other end on with
`Op.LOAD_OBJECT`. The keeper puts its own limits into the request, starts a process for it, and later sends that
process's answer into the channel.
"""

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from app.bpf.kernel import Kernel
from app.loader.client import RunningLoader
from app.loader.files import check_sealed, content_of, read_file
from app.loader.messages import MAX_REQUEST_BYTES, LoadRequest, ObjectLimits
from app.sandbox.channel import receive_with_fds, send_with_fds

MAX_LOADS: Final = 2  # at a time: a process each
_MAX_ENDING: Final = 8  # processes that have answered, or are late, and are still there
_SECONDS_BETWEEN_LOOKS: Final = 0.5  # at processes that are about to end
_MAX_FILES: Final = 1024  # that were read and may be loaded


@dataclass(frozen=True, slots=True)
class _Load:
    """One load: the process, and the channel into which its answer goes."""

    loader: RunningLoader
    channel: socket.socket


class Loads:
    """Reads object files, and has them loaded. Thread rule: one thread."""

    def __init__(self, limits: ObjectLimits, kernel: Kernel) -> None:
        """Load nothing yet.

        Args:
            limits: What object files may ask for.
            kernel: Tells what is behind an fd.
        """
        self._limits = limits
        self._kernel = kernel
        self._running: dict[int, _Load] = {}  # by the fd that is polled
        self._ending: list[RunningLoader] = []  # that have answered, or are late, and are still there
        # SHA-256 of the files below object_dirs that were read. Where uploads are not allowed, only they are loaded.
        self._read: OrderedDict[bytes, None] = OrderedDict()

    def read_file(self, path: str) -> int:
        """Read an object file, and return the fd of sealed memory with its content: see `files.read_file`."""
        memory = read_file(path, self._limits.object_dirs, self._limits.max_bytes)
        if not self._limits.upload:
            self._read[_digest(memory)] = None
            while len(self._read) > _MAX_FILES:
                self._read.popitem(last=False)
        return memory

    def start(self, channel_fd: int) -> None:
        """Begin to load the object file of the request that waits in a channel.

        Args:
            channel_fd: The channel. It stays the caller's.

        Raises:
            OSError: EBUSY: too many are loaded just now. EPERM: object files cannot be loaded, or not this one.
                EINVAL, EFBIG: the channel, the request or its fds are not what they should be.
        """
        if not self._limits.is_enabled:
            raise OSError(errno.EPERM, "object files cannot be loaded")
        self._forget_ended()
        if len(self._running) >= MAX_LOADS or len(self._ending) >= _MAX_ENDING:
            raise OSError(errno.EBUSY, "too many object files are loaded at the same time")
        channel = socket.socket(fileno=os.dup(channel_fd))
        try:
            if (channel.family, channel.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
                raise OSError(errno.EINVAL, "the channel is of another kind")
            channel.settimeout(0)
            content, fds = receive_with_fds(channel, MAX_REQUEST_BYTES)
            try:
                loader = self._started(LoadRequest.load(content), fds)
            finally:
                for fd in fds:
                    os.close(fd)
        except BaseException:
            channel.close()
            raise
        self._running[loader.fileno()] = _Load(loader, channel)

    def _started(self, request: LoadRequest, fds: Sequence[int]) -> RunningLoader:
        if len(fds) != 1 + len(request.replaced):
            raise OSError(errno.EINVAL, "the fds are not as many as the request says")
        check_sealed(fds[0], self._limits.max_bytes)
        if not self._limits.upload and _digest(fds[0]) not in self._read:
            raise OSError(errno.EPERM, "only files below object_dirs can be loaded")
        for fd in fds[1:]:
            if self._kernel.obj_kind(fd) != "map":
                raise OSError(errno.EINVAL, "what replaces a map is no map")
        return RunningLoader(replace(request, limits=self._limits), fds[0], fds[1:])

    @property
    def fds(self) -> list[int]:
        """What to poll for answers of processes."""
        return list(self._running)

    @property
    def seconds_left(self) -> float | None:
        """How long until one of the processes is given up, or has to be looked after. None: there is none."""
        left = [load.loader.deadline - time.monotonic() for load in self._running.values()]
        left += [_SECONDS_BETWEEN_LOOKS] if self._ending else []
        return max(0.0, min(left)) if left else None

    def finish(self, ready: Sequence[int]) -> None:
        """Pass on the answers of processes that have ended, and give up those that are late.

        Args:
            ready: Those of `fds` that can be read.
        """
        now = time.monotonic()
        self._forget_ended()
        for fd, load in list(self._running.items()):
            if fd in ready or load.loader.deadline <= now:
                del self._running[fd]
                with load.channel:
                    answer, fds = load.loader.finish(self._kernel)
                    # Where the listener does not wait for it any more, nobody gets it.
                    with contextlib.suppress(OSError):
                        send_with_fds(load.channel, answer.dump(), fds)
                    for each in fds:
                        os.close(each)
                if not load.loader.has_ended:
                    self._ending.append(load.loader)

    def _forget_ended(self) -> None:
        self._ending = [loader for loader in self._ending if not loader.has_ended]

    def close(self) -> None:
        """End all processes."""
        for load in self._running.values():
            load.loader.deadline = 0.0
        self.finish(())


def _digest(memory: int) -> bytes:
    return hashlib.sha256(content_of(memory)).digest()
