"""How the agent tells the node itself how it is: a file for `jumptable status`, and metrics for Prometheus."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.agent.status_file import BEAT_SECONDS, boot_seconds
from app.fleet_store.documents import TableState, TableStatus

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


class Reporter(Collector):
    """Keeps the file, and the metrics. Thread rule: `collect` may be called by any thread."""

    def __init__(self, node: str, file: Path) -> None:
        """Write nothing yet."""
        self._node, self._file = node, file
        self._report = self._made(connected=False, since=time.time(), error="not connected yet")
        self._connections = 0
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
        before, connected = self._report, not error
        since = before.since if connected == before.connected else time.time()
        report = self._made(
            connected=connected, since=since, error=error, warnings=warnings, tables=tables, troubles=troubles
        )
        if report.connected and not before.connected:
            self._connections += 1
        if report.connected != before.connected:
            log.info("the fleet's store answers" if report.connected else "the fleet's store does not answer",
                     reason=report.error or None)  # fmt: skip
        is_due = report.beat - before.beat >= BEAT_SECONDS
        if is_due or not self._is_written or msgspec.structs.replace(report, beat=before.beat) != before:
            self._report = report
            self._write()

    def _write(self) -> None:
        draft = self._file.with_suffix(".new")
        try:
            draft.write_bytes(msgspec.json.encode(self._report) + b"\n")
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

    def serve(self, address: str) -> None:
        """Serve /metrics on an address like `127.0.0.1:9105`, by a thread.

        Raises:
            OSError: The address cannot be used.
        """
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        registry.register(self)
        start_http_server(int(port), host.strip("[]"), registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        report = self._report
        yield GaugeMetricFamily(
            "jumptable_agent_connected", "Whether the fleet's store answers", value=float(report.connected)
        )
        yield GaugeMetricFamily(
            "jumptable_agent_connection_since_seconds",
            "Since when the store answers, or does not, in seconds since 1970",
            value=report.since,
        )
        yield CounterMetricFamily(
            "jumptable_agent_connections", "How often the store began to answer", value=self._connections
        )
        states = GaugeMetricFamily("jumptable_agent_table_state", "1: the state of a table", labels=["table", "state"])
        revisions = GaugeMetricFamily(
            "jumptable_agent_table_revision", "The revision of a table that the node holds", labels=["table"]
        )
        troubles = GaugeMetricFamily(
            "jumptable_agent_table_stuck", "Whether a table gets no further at present", labels=["table"]
        )
        for name, status in report.tables.items():
            for state in TableState:
                states.add_metric([name, state], float(state is status.state))
            if status.revision is not None:
                revisions.add_metric([name], status.revision)
            troubles.add_metric([name], float(name in report.troubles))
        yield from (states, revisions, troubles)
