"""One line for each attempt to change anything, and for whatever is denied: to the log, or to a file of its own."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic_core import to_json
from starlette.types import Scope

from app.api.authorization import ACTOR, CHANGING, RIGHTS

FACTS: Final = "jumptable.facts"  # key in the scope: what a route has to tell of what it did
_TOKEN: Final = re.compile("jt_[A-Za-z0-9_-]{20,}")  # pasted into a path
_DENIED: Final = {401, 403, 421, 429}

# What was done, and the facts of it.
Lines = Sequence[tuple[str, dict[str, Any]]]

log = structlog.get_logger()


def open_audit(file: Path) -> int:
    """An fd to append to it. OSError."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _one_by_one(lines: Lines) -> None:
    for what, told in lines:
        log.info(what, **told)


class Audit:
    """Where the lines go. Neither tokens nor bodies are in them."""

    def __init__(
        self,
        file: Path | None = None,
        *,
        fsync: bool = False,
        opened: Callable[[Path], int] = open_audit,
        to_log: Callable[[Lines], None] = _one_by_one,
    ) -> None:
        """`file`: of its own; None: to the log; `opened`: gives an fd to append to it. OSError.

        `to_log`: writes lines to the log.
        """
        self._file, self._fsync, self._opened, self._fd = file, fsync, opened, -1
        self._log = to_log
        self._lines: list[tuple[str, dict[str, Any]]] = []
        self._is_buffering = False
        self.reopen()

    def reopen(self) -> None:
        """After the file was moved away (logrotate). OSError."""
        if self._file is not None:
            fd = self._opened(self._file)
            self.close()
            self._fd = fd

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def attempt(self, scope: Scope, operation: str, status: int, code: str | None, request_id: str) -> None:
        """Tell of one request, if it is to be told of."""
        if RIGHTS.get(operation) not in CHANGING and status not in _DENIED:
            return
        actor, path = scope.get(ACTOR), scope["path"]
        told: dict[str, Any] = {
            "request_id": request_id,
            "actor": None if actor is None else actor.name,
            "outcome": _outcome(status),
            "status": status,
        }
        if code is not None:
            told["code"] = code
        told["path"] = _TOKEN.sub("jt_…", path[:256]) if "jt_" in path else path[:256]
        told.update(scope.get(FACTS, ()))
        self._lines.append((operation, told))
        if not self._is_buffering:
            self._write()

    @contextmanager
    def buffered(self) -> Iterator[None]:
        """Write all lines of the attempts within this context at its end, at once."""
        self._is_buffering = True
        try:
            yield
        finally:
            self._is_buffering = False
            if self._lines:
                self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if self._fd < 0:
            self._log(lines)
            return
        at = datetime.now(UTC).isoformat()
        try:
            text = b"".join([to_json({"at": at, "what": what, **told}, fallback=repr) + b"\n" for what, told in lines])
            if os.write(self._fd, text) < len(text):  # then the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(self._fd)
        except OSError as error:
            for what, told in lines:
                log.warning("the audit file cannot be written", reason=error.strerror, event_lost=what, **told)


def _outcome(status: int) -> str:
    if not status:
        return "aborted"
    if status in _DENIED:
        return "denied"
    return "done" if status < 400 else "refused" if status < 500 else "failed"
