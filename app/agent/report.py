"""How the agent tells the node itself how it is: by a file, for `jumptable status`."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from app.agent.status_file import BEAT_SECONDS, boot_seconds
from app.fleet_store.documents import TableStatus

log = structlog.get_logger()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent tells.

    Attributes:
        node: The name of the node in the fleet.
        pid: The process of the agent.
        beat: When the file was written, in seconds since boot (CLOCK_BOOTTIME), which nobody sets.
        connected: Whether the store answers.
        since: Since when that is so, in seconds since 1970.
        error: Why it does not; empty if it does.
        warnings: What an operator should know.
        tables: What the fleet is told of each table.
        troubles: Why tables get no further at present, by table.
    """

    node: str
    pid: int
    beat: float
    connected: bool
    since: float
    error: str = ""
    warnings: list[str] = []
    tables: dict[str, TableStatus] = {}
    troubles: dict[str, str] = {}


class Reporter:
    """Keeps the file, and what the metrics tell.

    Attributes:
        report: What the agent tells now. It is never changed, but another takes its place.
        connections: How often the store began to answer.
    """

    def __init__(self, node: str, file: Path) -> None:
        """Write nothing yet."""
        self._node, self._file = node, file
        self.report = self._made(connected=False, since=time.time(), error="not connected yet")
        self.connections = 0
        self._is_written = True

    def _made(self, **said: Any) -> Report:
        return Report(node=self._node, pid=os.getpid(), beat=boot_seconds(), **said)

    def update(self, error: str, warnings: list[str], tables: dict[str, TableStatus], troubles: dict[str, str]) -> None:
        """Tell how the agent is, if that has changed or it is time.

        Args:
            error: Why the fleet's store cannot be used; empty if it can.
            warnings: What an operator should know.
            tables: What the fleet is told of each table.
            troubles: Why tables get no further at present.
        """
        before, connected = self.report, not error
        since = before.since if connected == before.connected else time.time()
        report = self._made(
            connected=connected, since=since, error=error, warnings=warnings, tables=tables, troubles=troubles
        )
        if report.connected and not before.connected:
            self.connections += 1
        if report.connected != before.connected:
            log.info("the fleet's store answers" if report.connected else "the fleet's store does not answer",
                     reason=report.error or None)  # fmt: skip
        is_due = report.beat - before.beat >= BEAT_SECONDS
        if is_due or not self._is_written or msgspec.structs.replace(report, beat=before.beat) != before:
            self.report = report
            self._write()

    def _write(self) -> None:
        draft = self._file.with_suffix(".new")
        try:
            draft.write_bytes(msgspec.json.encode(self.report) + b"\n")
            draft.chmod(0o644)
            draft.replace(self._file)
        except OSError as error:
            if self._is_written:
                log.warning("the status file cannot be written", file=str(self._file), reason=error.strerror)
            self._is_written = False
        else:
            self._is_written = True

    def remove(self) -> None:
        """Remove the file, as the agent ends."""
        with suppress(OSError):
            self._file.unlink()
