"""The agent's metrics for Prometheus. They are imported only where they are configured, as they take a megabyte."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.agent.report import Reporter
from app.fleet_store.documents import TableState


def serve(reporter: Reporter, address: str) -> None:
    """Serve /metrics on an address like `127.0.0.1:9105`, by a thread.

    Raises:
        OSError: The address cannot be used.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_Metrics(reporter))
    start_http_server(int(port), host.strip("[]"), registry)


class _Metrics(Collector):
    """Thread rule: any thread may collect."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        report = self._reporter.report
        yield GaugeMetricFamily(
            "jumptable_agent_connected", "Whether the fleet's store answers", value=float(report.connected)
        )
        yield GaugeMetricFamily(
            "jumptable_agent_connection_since_seconds",
            "Since when the store answers, or does not, in seconds since 1970",
            value=report.since,
        )
        yield CounterMetricFamily(
            "jumptable_agent_connections", "How often the store began to answer", value=self._reporter.connections
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
