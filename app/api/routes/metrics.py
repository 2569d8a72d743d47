"""What is counted and timed, for Prometheus: /metrics."""

from collections.abc import Iterable, Iterator
from typing import Final

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app import __version__
from app.api.metric_families import filled, gauge, histogram
from app.api.openapi import Responses, problems
from app.api.routing import StrictRoute
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap, HeldProgram

router = APIRouter(route_class=StrictRoute, tags=["service"])

_RESPONSES: Final[Responses] = {
    200: {"description": "In the text format of Prometheus, or as OpenMetrics where that is asked for."}
}


class Collector:
    """Collects the metrics when somebody asks. Labels are the names of held maps, and fixed sets."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Return the metrics. prometheus_client calls it."""
        registry, counters = self._service.registry, self._service.counters
        info = {"version": __version__, "kernel": registry.kernel.name}
        yield InfoMetricFamily("jumptable", "The service and what it works on.", value=info)
        family = CounterMetricFamily(
            "jumptable_changes", "Changes of entries, by what became of them.", labels=("kind", "outcome")
        )
        yield filled(family, dict(counters.changes))
        yield histogram(
            "jumptable_kernel_call_seconds",
            "Calls of the kernel.",
            ("call",),
            {(k,): t for k, t in registry.kernel_timings.items()},
        )
        yield histogram(
            "jumptable_journal_commit_seconds", "Writing to the journal, until it is in.", (), {(): counters.journal}
        )
        wal_bytes = {(): self._service.journal.wal_bytes}
        yield gauge("jumptable_journal_wal_bytes", "Size of the journal's -wal file.", (), wal_bytes)
        yield histogram(
            "jumptable_request_seconds", "Requests, until they were answered; without streams of events.",
            ("operation", "status"), {(name, str(status)): t for (name, status), t in counters.requests.items()},
        )  # fmt: skip
        fast = CounterMetricFamily("jumptable_fast_requests", "Of these requests, those that went the fast way.")
        fast.add_metric((), counters.fast_requests)
        yield fast
        yield from self._maps()
        lines = CounterMetricFamily(
            "jumptable_log_lines_dropped",
            "Lines that were not written: of the log or the audit file, as it took no more; or one event repeated.",
            labels=("kind",),
        )
        yield filled(lines, {(kind,): n for each in counters.dropped_lines for kind, n in each().items()})
        unavailable = [held.object is None for held in registry.programs]
        yield gauge("jumptable_programs", "Held programs.", (), {(): len(unavailable)})
        yield gauge("jumptable_programs_unavailable", "Those that could not be opened.", (), {(): sum(unavailable)})
        objects = [loaded.reason is not None for loaded in self._service.objects]
        yield gauge("jumptable_objects", "Object files that are loaded.", (), {(): len(objects)})
        yield gauge("jumptable_objects_unavailable", "Those that are not loaded again.", (), {(): sum(objects)})
        moved = {("map",): _moved(registry.maps), ("program",): _moved(registry.programs)}
        yield gauge("jumptable_pins_moved", "Held objects whose pin led elsewhere at the last look.", ("kind",), moved)
        yield gauge(
            "jumptable_unconfirmed_changes",
            "Changes that wait to be confirmed.",
            (),
            {(): len(self._service.changes.confirmations)},
        )
        left = self._service.changes.confirmations.seconds_left
        yield gauge(
            "jumptable_unconfirmed_seconds_left",
            "Until the first of them is undone; there is none where nothing waits.",
            (),
            {} if left is None else {(): left},
        )
        failing = self._service.journal.failing is not None
        yield gauge(
            "jumptable_journal_failing", "1: changes cannot be journalled, and are put back.", (), {(): failing}
        )
        yield gauge(
            "jumptable_keeper_failing",
            "1: the keeper has ended, or does not answer.",
            (),
            {(): registry.kernel.failure is not None},
        )
        yield gauge("jumptable_event_readers", "Readers of /events.", (), {(): self._service.feed.readers})

    def _maps(self) -> Iterator[Metric]:
        maps = list(self._service.registry.maps)
        yield gauge("jumptable_maps", "Held maps.", (), {(): len(maps)})
        unavailable = sum(held.object is None for held in maps)
        yield gauge("jumptable_maps_unavailable", "Those that could not be opened.", (), {(): unavailable})
        known = {(held.name,): held.expected for held in maps if held.expected is not None and held.object is not None}
        drift = {name: len(expected.drift) for name, expected in known.items()}
        yield gauge("jumptable_drift_entries", "Entries that are not as recorded, at the last look.", ("map",), drift)
        used = {name: expected.used for name, expected in known.items()}
        yield gauge("jumptable_entries_used", "Entries that point to a program, at the last look.", ("map",), used)
        sizes = {(held.name,): held.object.max_entries for held in maps if held.object is not None}
        yield gauge("jumptable_entries_max", "Entries that there are.", ("map",), sizes)


def _moved(held: Iterable[HeldMap | HeldProgram]) -> int:
    return sum(each.moved is not None for each in held)


def collectors(service: Service) -> CollectorRegistry:
    """Return what /metrics reports: about the service, and about the process."""
    registry = CollectorRegistry()
    registry.register(Collector(service))
    ProcessCollector(registry=registry)
    return registry


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Tell all figures to Prometheus",
    response_class=PlainTextResponse,
    responses=_RESPONSES | problems(),
)
async def get_metrics(request: Request) -> Response:
    """Return the metrics. Drift and used entries are those of the last check, every `drift_interval` seconds."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.collectors), media_type=media_type)
