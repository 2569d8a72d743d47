"""The audit: one line for each attempt to change anything and for each denied request.

The lines go to the log or to a file of their own. They contain neither tokens nor request bodies. The reason
of a refusal may repeat the value that was refused.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from pydantic_core import from_json, to_json
from starlette.types import Scope

from app.access.rights import Actor, Right
from app.api.authorization import ACTOR, CHANGING, RIGHTS
from app.service.errors import ServiceError
from app.store.records import EMPTY, Change, EntryChanges, ProgramRecord

FACTS: Final = "jumptable.facts"  # key of the ASGI scope: a dict of what the route adds to its line
_TOKEN: Final = re.compile("jt_[A-Za-z0-9_-]{20,}")  # a caller may have pasted one into a path
_MAX_PATH_CHARS: Final = 256
_CLOSE_SECONDS: Final = 2.0  # that the end of the process waits for a slow disk
_MAX_REASON_CHARS: Final = 300
_MAX_ENTRIES: Final = 20  # of one change in one line
_NO_REGULAR_FILE: Final = "it is no regular file"
_DENIED_STATUSES: Final = {401, 403, 421, 429}

# Each line: the operation, and its facts, as the members of a JSON object.
Lines = Sequence[tuple[str, bytes]]

log = structlog.get_logger()


def open_audit(file: Path) -> int:
    """Open a file for appending, and create it with mode 0600 if it does not exist.

    Returns:
        The file descriptor. The caller closes it.

    Raises:
        OSError: The file cannot be opened, or is no regular file.
    """
    try:
        # O_NONBLOCK: a FIFO without a reader would block the service.
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, _NO_REGULAR_FILE) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, _NO_REGULAR_FILE)
    return fd


class FileWriter(Protocol):
    """Writes lines to a file in a thread of its own."""

    def put(self, lines: bytes) -> None:
        """Write lines, soon."""

    def switch(self, fd: int) -> None:
        """Write to another file from here on, and take over its fd."""

    def close(self, seconds: float) -> None:
        """Write what waits, for so long at most, and close the file."""


def _log_each(lines: Lines) -> None:
    for operation, facts in lines:
        log.info(operation, **from_json(b"{%b}" % facts))


class Audit:
    """Writes the lines of the audit.

    Args:
        file: The audit file; None: the lines go to the log.
        fsync: Whether each write to the file is followed by fsync(2).
        opened: Opens the file for appending and returns the file descriptor.
        to_log: Writes lines to the log.
        make_writer: Makes a writer for the fd of the file, which it takes over; for lines that nobody waits for, so
            without `fsync`. None: each line is written before the request goes on.
        rights: By operation id, the right that it needs. Attempts of those that change something are recorded.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        fsync: bool = False,
        opened: Callable[[Path], int] = open_audit,
        to_log: Callable[[Lines], None] = _log_each,
        make_writer: Callable[[int], FileWriter] | None = None,
        rights: Mapping[str, Right] = RIGHTS,
    ) -> None:
        self._file, self._fsync, self._open, self._fd = file, fsync, opened, -1
        self._to_log, self._make_writer = to_log, None if fsync else make_writer
        self._rights = rights
        self.writer: FileWriter | None = None
        self._lines: list[tuple[str, bytes]] = []
        self._is_buffered = False
        self._lost = 0  # lines that went to the log, as the file cannot be written
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, after logrotate has moved it away.

        Raises:
            OSError: The file cannot be opened. The lines then still go to the old one.
        """
        if self._file is not None:
            fd = self._open(self._file)
            if self.writer is not None:
                self.writer.switch(fd)
            elif self._make_writer is not None:
                self.writer = self._make_writer(fd)
            else:
                self.close()
                self._fd = fd

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close(_CLOSE_SECONDS)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def automatic(self, change: Change) -> None:
        """Record a change that the service has made by itself: an undo that was due, or a restore."""
        facts = {
            "request_id": change.request_id,
            "actor": change.actor,
            "outcome": "done",
            "change": change.id or None,
            "map": change.map,
            "reverts": change.reverts or None,
            **entries_facts(change.entries),
        }
        self._add(change.kind, facts)

    def attempt(
        self,
        scope: Scope,
        operation: str,
        status: int,
        code: str | None,
        request_id: str,
        reason: str | None = None,
    ) -> None:
        """Record one request, if it was an attempt to change something or was denied.

        Args:
            scope: The ASGI scope of the request.
            operation: The operation id of its route.
            status: The status of the response; 0: the connection ended before there was one.
            code: The code of the problem, if the response is one.
            request_id: The id of the request.
            reason: The detail of the problem, if the response is one.
        """
        if self._rights.get(operation) not in CHANGING and status not in _DENIED_STATUSES:
            return
        actor, path = scope.get(ACTOR), scope["path"][:_MAX_PATH_CHARS]
        facts: dict[str, Any] = {
            "request_id": request_id,
            "actor": None if actor is None else actor.name,
            **({} if actor is None or actor.via is None else {"via": actor.via}),
            "outcome": _outcome(status),
            "status": status,
        }
        if code is not None:
            facts["code"] = code
            facts["reason"] = _TOKEN.sub("jt_…", reason or "")[:_MAX_REASON_CHARS]
        facts["path"] = _TOKEN.sub("jt_…", path) if "jt_" in path else path
        facts.update(scope.get(FACTS, ()))
        self._add(operation, facts)

    def aborted(self, actor: Actor, operation: str, path: str, request_id: str, error: BaseException) -> None:
        """Record a request of the fast path that has failed, and whose client has gone."""
        code = error.code if isinstance(error, ServiceError) else "internal"
        self.attempt({ACTOR: actor, "path": path}, operation, 0, code, request_id, str(error))

    def _add(self, operation: str, facts: dict[str, Any]) -> None:
        self.add(operation, [to_json(facts, fallback=repr)[1:-1]])

    def add(self, operation: str, lines: Iterable[bytes]) -> None:
        """Record requests of the fast path.

        Args:
            operation: The operation id of their route.
            lines: For each, the facts that `attempt` would tell, as the members of a JSON object.
        """
        self._lines += [(operation, facts) for facts in lines]
        if not self._is_buffered:
            self._write()

    @contextlib.contextmanager
    def buffered(self) -> Iterator[None]:
        """Keep the lines of the `with` block back, and write them together at its end."""
        self._is_buffered = True
        try:
            yield
        finally:
            self._is_buffered = False
            if self._lines:
                self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if self._fd < 0 and self.writer is None:
            self._to_log(lines)
            return
        at = datetime.now(UTC).isoformat().encode()
        text = b"".join(
            [b'{"at":"%b","what":"%b",%b}\n' % (at, operation.encode(), facts) for operation, facts in lines]
        )
        if self.writer is not None:
            self.writer.put(text)
            return
        try:
            if os.write(self._fd, text) < len(text):  # the kernel writes a part only if the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(self._fd)
        except OSError as error:
            for operation, facts in lines:
                lost = from_json(b"{%b}" % facts)
                log.warning("the audit file cannot be written", error=error.strerror, event_lost=operation, **lost)
            self._lost += len(lines)
            return
        if self._lost:
            log.info("the audit file can be written again", lines_in_the_log=self._lost)
            self._lost = 0


def program_fact(record: ProgramRecord | None) -> dict[str, Any] | None:
    """A program as a line tells it. None: the entry is empty."""
    return None if record is None else {"name": record.name, "id": record.id or None}


def entries_facts(entries: EntryChanges) -> dict[str, Any]:
    """What a line tells of the entries of a change: how many, and the first of them with their programs."""
    told = {number: program_fact(record) for number, record in entries.programs.items()} | {EMPTY: None}
    first = [
        {"index": index, "before": told[before], "after": told[after]}
        for index, before, after in islice(
            zip(entries.indexes, entries.before, entries.after, strict=True), _MAX_ENTRIES
        )
    ]
    return {"count": len(entries), "entries": first}


def _outcome(status: int) -> str:
    if not status:
        return "aborted"
    if status in _DENIED_STATUSES:
        return "denied"
    return "done" if status < 400 else "refused" if status < 500 else "failed"
