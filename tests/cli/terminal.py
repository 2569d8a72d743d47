"""The command line with a person at a terminal: a process on a pseudo terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 30.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """What a person sees and types."""

    def __init__(self, process: "subprocess.Popen[bytes]", fd: int) -> None:
        self.process, self._fd, self._seen = process, fd, b""

    @property
    def text(self) -> str:
        """All that was shown, without colours."""
        return _ESCAPES.sub("", self._seen.decode(errors="replace")).replace("\r\n", "\n")

    @property
    def has_colours(self) -> bool:
        return b"\x1b[" in self._seen

    def wait_for(self, pattern: str) -> None:
        """Read until the text matches."""
        deadline = time.monotonic() + _SECONDS
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.text}"
            assert self._read(), f"it ended without {pattern!r}:\n{self.text}"

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        self.type("\x03")

    def hang_up(self) -> None:
        """Close the terminal, as a lost ssh connection does."""
        self.close()
        self.process.wait(_SECONDS)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def end(self) -> int:
        """Read until it ends, and return its exit status."""
        while self._read():
            pass
        return self.process.wait(_SECONDS)

    def _read(self) -> bool:
        """Read what is there, waiting for it. False: the other end is closed."""
        if not select.select([self._fd], [], [], 1.0)[0]:
            return True
        try:
            part = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return False
        self._seen += part
        return bool(part)


@contextmanager
def terminal(*arguments: str, env: dict[str, str], stdin: int | None = None) -> Iterator[Terminal]:
    """Run `jumptable ARGUMENTS` on a terminal of its own. `stdin`: another standard input than the terminal."""
    ours, theirs = pty.openpty()
    # It becomes the terminal that the process is controlled by: /dev/tty, Ctrl-C, and a signal when it is closed.
    code = "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); from app.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=theirs if stdin is None else stdin,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **env},
        start_new_session=True,
    )
    os.close(theirs)
    person = Terminal(process, ours)
    try:
        yield person
    finally:
        process.kill()
        process.wait(_SECONDS)
        person.close()
