"""Lines for a file, a pipe or a terminal, written by a thread of their own.

Whoever writes a line never waits: neither for a reader that does not read, nor for a slow disk.
"""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_MAX_WAITING_BYTES: Final = 4 << 20
_PIECE_BYTES: Final = 4096  # PIPE_BUF: a pipe that poll(2) reports as writable takes as much without blocking
_GATHER_SECONDS: Final = 0.02  # the thread waits as long for more lines, so that it wakes up seldom under load
_RETRY_SECONDS: Final = 0.05  # between two tries to write to a file that is set to O_NONBLOCK


class LineWriter:
    """Writes lines to a file descriptor.

    Before `start` and after `close`, lines are written at once if that cannot block, and otherwise wait. Lines are
    dropped if 4 MiB wait already, or if the file takes none.

    Thread rule: any thread may call any method.

    Args:
        fd: Where to write. The caller keeps it open; `switch` hands over others.
        tell_dropped: Is called when writing goes on after lines were dropped, with how many.
        tell_failed: Is called with the reason and the lines that the file did not take. None: nobody is told.
    """

    def __init__(
        self,
        fd: int,
        tell_dropped: Callable[[int], None],
        tell_failed: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self.dropped = 0  # lines, since the start
        self._fd, self._owned_fd = fd, -1
        self._tell_dropped, self._tell_failed = tell_dropped, tell_failed
        self._untold = 0  # dropped lines of which nobody was told
        self._waiting: deque[bytes | int] = deque()  # lines, or the fd of another file
        self._waiting_bytes = 0  # with those that are being written
        self._lock = threading.Lock()
        self._has_work, self._is_closing = threading.Event(), False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. It has the rights of the thread that calls this, so call it when those are given up."""
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def put(self, lines: bytes) -> None:
        """Write lines, soon."""
        with self._lock:
            if self._waiting_bytes + len(lines) > _MAX_WAITING_BYTES:
                self._drop(lines)
                return
            self._waiting.append(lines)
            self._waiting_bytes += len(lines)
        if self._thread is None:
            self._write_what_cannot_block()
        elif not self._has_work.is_set():
            self._has_work.set()

    def switch(self, fd: int) -> None:
        """Write to another file from here on. The writer closes this fd when it needs it no more."""
        with self._lock:
            self._waiting.append(fd)
        if self._thread is None:
            self._write_what_cannot_block()
        else:
            self._has_work.set()

    def close(self, seconds: float) -> None:
        """Write what waits, and end the thread. What cannot be written in time is given up."""
        until = time.monotonic() + seconds
        if self._thread is not None:
            self._is_closing = True
            self._has_work.set()
            self._thread.join(seconds)
            if self._thread.is_alive():
                return  # it may still write, so its file stays open
            self._thread = None
        self._write_what_cannot_block()
        while self._waiting and time.monotonic() < until:
            time.sleep(_RETRY_SECONDS)
            self._write_what_cannot_block()
        if self._owned_fd >= 0:
            os.close(self._owned_fd)
            self._owned_fd = -1

    def _drop(self, lines: bytes) -> None:
        count = lines.count(b"\n")
        self.dropped += count
        self._untold += count

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            if not self._is_closing:
                time.sleep(_GATHER_SECONDS)
            self._has_work.clear()
            while (lines := self._take(_MAX_WAITING_BYTES)) is not None:
                self._write(lines, can_wait=True)
            if self._is_closing and not self._waiting:
                return

    def _take(self, size: int) -> bytes | None:
        """Take lines of about this size off the queue, and another file that comes first. None: nothing waits."""
        taken: list[bytes] = []
        with self._lock:
            while self._waiting and size > 0:
                first = self._waiting[0]
                if isinstance(first, int):
                    if taken:
                        break
                    self._waiting.popleft()
                    if self._owned_fd >= 0:
                        os.close(self._owned_fd)
                    self._fd = self._owned_fd = first
                else:
                    taken.append(first)
                    size -= len(first)
                    self._waiting.popleft()
        return b"".join(taken) if taken else None

    def _write_what_cannot_block(self) -> None:
        poll = select.poll()
        while self._waiting:
            poll.register(self._fd, select.POLLOUT)
            with contextlib.suppress(OSError):
                if not poll.poll(0):
                    return
            lines = self._take(1)
            if lines is not None:
                self._write(lines, can_wait=False)

    def _write(self, lines: bytes, *, can_wait: bool) -> None:
        left = memoryview(lines)
        try:
            while left:
                try:
                    written = os.write(self._fd, left if can_wait else left[:_PIECE_BYTES])
                except BlockingIOError:
                    time.sleep(_RETRY_SECONDS)
                    continue
                left = left[written:]
        except OSError as error:
            lost = lines[len(lines) - len(left) :]
            with self._lock:
                self._drop(lost)
            if self._tell_failed is not None:
                self._tell_failed(error.strerror or str(error), lost)
        with self._lock:
            self._waiting_bytes -= len(lines)
            count = 0 if left else self._untold
            self._untold -= count
        if count:
            self._tell_dropped(count)
