"""One line for each attempt to change anything, and for whatever is denied: to the log, or to a file of its own."""

import errno
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic_core import to_json
from starlette.types import Scope

from app.api.policy import ACTOR, CHANGING, RIGHTS

FACTS: Final = "jumptable.facts"  # key in the scope: what a route has to tell of what it did
_TOKEN: Final = re.compile("jt_[A-Za-z0-9_-]{20,}")  # pasted into a path
_DENIED: Final = {401, 403, 421, 429}

log = structlog.get_logger()


def open_audit(file: Path) -> int:
    """An fd to append to it. OSError."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Audit:
    """Where the lines go. Neither tokens nor bodies are in them."""

    def __init__(
        self, file: Path | None = None, *, fsync: bool = False, opened: Callable[[Path], int] = open_audit
    ) -> None:
        """`file`: of its own; None: to the log; `opened`: gives an fd to append to it. OSError."""
        self._file, self._fsync, self._opened, self._fd = file, fsync, opened, -1
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
        actor, facts = scope.get(ACTOR), scope.get(FACTS, {})
        told: dict[str, Any] = {
            "request_id": request_id,
            "actor": None if actor is None else actor.name,
            "outcome": _outcome(status),
            "status": status,
            **({} if code is None else {"code": code}),
            "path": _TOKEN.sub("jt_…", scope["path"][:256]),
            **facts,
        }
        if self._fd < 0:
            log.info(operation, **told)
            return
        at = datetime.now(UTC).isoformat()
        try:
            line = to_json({"at": at, "what": operation, **told}, fallback=repr) + b"\n"
            if os.write(self._fd, line) < len(line):  # then the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(self._fd)
        except OSError as error:
            log.warning("the audit file cannot be written", reason=error.strerror, event_lost=operation, **told)


def _outcome(status: int) -> str:
    if not status:
        return "aborted"
    if status in _DENIED:
        return "denied"
    return "done" if status < 400 else "refused" if status < 500 else "failed"
