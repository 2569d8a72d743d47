"""The server itself: whether it is alive and ready, its metrics and version, and where to go on."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app import __version__
from app.access.rights import Right
from app.api.authorization import ACTOR, grant_of
from app.api.encoding.responses import Json
from app.api.error_responses import problem
from app.api.metric_families import gauge, histogram
from app.api.openapi import COMMON, Responses, answers
from app.api.problems import FLEET_PROBLEMS, PROBLEMS, HttpProblem, ProblemType
from app.api.routes import web
from app.api.routes.problems import Explanation, explanation
from app.api.scope import REQUEST_ID
from app.fleet.api import reading
from app.fleet.api.parameters import state_of
from app.fleet.api.route import STORE, FleetRoute, etcd_errors_told, problems
from app.fleet.api.schemas import responses
from app.fleet.api.state import FleetState
from app.fleet_store import keys
from app.fleet_store.documents import Leader

router = APIRouter(route_class=FleetRoute, tags=["service"])

_PROBE_SECONDS: Final = 5.0  # that etcd has to answer a probe
_LINKS: Final = {
    "tables": "/fleet/tables",
    "rollouts": "/fleet/rollouts",
    "nodes": "/fleet/nodes",
    "events": "/fleet/events",
    "history": "/fleet/history",
    "ready": "/readyz",
    "version": "/version",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "docs": "/docs",
}
# Those of the general problems that this API can answer.
_GENERAL: Final = (
    *COMMON, "malformed-json", "malformed-header", "read-only", "not-found", "method-not-allowed", "request-timeout",
    "events-expired", "precondition-failed", "body-too-large", "media-type-unsupported",
)  # fmt: skip
PROBLEM_TYPES: Final[dict[str, ProblemType]] = {code: PROBLEMS[code] for code in _GENERAL} | FLEET_PROBLEMS
_METRICS: Final[Responses] = {
    200: {"description": "In the text format of Prometheus, or as OpenMetrics where that is asked for."}
}


@router.get(
    "/",
    operation_id="get_index",
    summary="Tell where to go on, and who asks",
    response_model=responses.FleetIndex,
    responses=web.index_or_page(responses.FleetIndex) | problems(),
)
async def get_index(request: Request) -> Response:
    """Return an index of links, and what the caller may do. A browser gets the page instead."""
    if web.is_for_browser(request):
        return web.page(request, "fleet/index.html")
    actor = request.scope[ACTOR]
    caller = None
    if actor is not None:
        grant = actor.grant
        caller = responses.FleetCaller(
            actor=actor.name,
            role=None if grant is None else grant.role,
            tables=None if grant is None or grant.maps is None else sorted(grant.maps),
            entries=None if grant is None or grant.entries is None else grant.entries.texts(),
            programs=None if grant is None or grant.programs is None else sorted(grant.programs),
            labels=None if grant is None or grant.labels is None else dict(sorted(grant.labels)),
        )
    read_only = state_of(request).authentication.read_only
    index = responses.FleetIndex(version=__version__, links=_LINKS, read_only=read_only, caller=caller)
    return Json(index, headers={"Cache-Control": "no-store", "Vary": "Accept, Authorization"})


@router.get(
    "/livez",
    operation_id="get_liveness",
    summary="Tell whether the process answers",
    response_model=responses.Liveness,
    responses=answers(responses.Liveness, "It does.") | problems(),
)
async def get_liveness() -> Response:
    """Answer a liveness probe. It says nothing about etcd: to restart the server would not mend that."""
    return Json(responses.Liveness())


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Tell whether etcd answers",
    response_model=responses.FleetReadiness,
    responses=answers(responses.FleetReadiness, "It does.") | problems(*STORE),
)
async def get_readiness(request: Request) -> Response:
    """Say whether etcd has a leader, answers this server, and is of a version that keeps nodes apart."""
    state = state_of(request)
    if state.is_stopping:
        reasons = ["the server is stopping"]
        return problem("draining", reasons[0], request.scope[REQUEST_ID], facts={"reasons": reasons})
    is_told = grant_of(request.scope).allows(Right.READ)
    try:
        with etcd_errors_told():
            async with asyncio.timeout(_PROBE_SECONDS):
                warnings = await state.etcd.check_versions()
                leader = await state.etcd.get(keys.CONTROLLER)
    except TimeoutError as error:
        raise HttpProblem("store-unavailable", f"etcd does not answer within {_PROBE_SECONDS:.0f} s") from error
    except HttpProblem as error:
        if not is_told:
            raise HttpProblem(error.code, "etcd cannot be used; GET /readyz says more to those who may read") from error
        raise
    name = None if leader is None or not is_told else Leader.from_bytes(leader.value).name
    return Json(responses.FleetReadiness(leader=name, warnings=warnings if is_told else []))


@router.get(
    "/version",
    operation_id="get_version",
    summary="Tell what runs",
    response_model=responses.FleetVersion,
    responses=answers(responses.FleetVersion, "The versions.") | problems(*STORE),
)
async def get_version(request: Request) -> Response:
    """Return the version of the server, those of etcd's members, and how long the server has been running."""
    state = state_of(request)
    members = await state.etcd.members()
    versions = [each.version for each in members]
    return Json(responses.FleetVersion(version=__version__, etcd=versions, uptime_seconds=int(state.uptime())))


@router.get(
    "/problems/{code}",
    operation_id="explain_problem",
    summary="Tell what a problem's code means",
    response_model=Explanation,
    responses=answers(Explanation, "What it means, and what to do.") | problems("not-found"),
)
async def explain_problem(code: str) -> Response:
    """Explain a problem. The `type` of a problem leads here."""
    return explanation(code, PROBLEM_TYPES)


class _Figures:
    """Metrics that are known already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return them. prometheus_client calls it."""
        return iter(self._families)


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Tell all figures to Prometheus",
    response_class=PlainTextResponse,
    responses=_METRICS | problems(),
)
async def get_metrics(request: Request) -> Response:
    """Return the metrics. While etcd is away, those of the fleet are missing, and jumptable_fleet_store_up is 0."""
    state = state_of(request)
    families = [
        InfoMetricFamily("jumptable_fleet", "The server of the fleet.", value={"version": __version__}),
        histogram(
            "jumptable_fleet_request_seconds",
            "Requests, until they were answered; without streams of events.",
            ("operation", "status"),
            {(name, str(status)): timing for (name, status), timing in state.requests.items()},
        ),
        gauge("jumptable_fleet_event_readers", "Readers of /fleet/events.", (), {(): state.limits.readers}),
    ]
    is_up = True
    try:
        with etcd_errors_told():
            async with asyncio.timeout(_PROBE_SECONDS):
                families += await _of_the_fleet(state)
    except (TimeoutError, HttpProblem):
        is_up = False
    families.append(gauge("jumptable_fleet_store_up", "1: etcd has answered.", (), {(): is_up}))
    registry = CollectorRegistry()
    registry.register(_Figures(families))
    ProcessCollector(registry=registry)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=media_type)


async def _of_the_fleet(state: FleetState) -> list[Metric]:
    """Return what etcd knows, in figures."""
    nodes = (await reading.read_nodes(state.etcd)).values()
    rollouts = await reading.read_rollouts(state.etcd)
    tables = await state.etcd.range(keys.TABLES, keys_only=True)
    leader = await state.etcd.get(keys.CONTROLLER)
    members = await state.etcd.members()
    states, phases = Counter(each.state for each in nodes), Counter(each.rollout.phase for each in rollouts)
    running = {(each.rollout.table,): each.rollout.since for each in rollouts if not each.rollout.phase.finished}
    on_nodes = Counter(
        (name, "unknown" if table.answer is None else str(table.answer.state))
        for node in nodes
        for name, table in node.tables.items()
        if table.desired is not None
    )
    return [
        gauge("jumptable_fleet_nodes", "Nodes, by their state.", ("state",), {(k,): n for k, n in states.items()}),
        gauge("jumptable_fleet_tables", "Tables.", (), {(): len(tables.items)}),
        gauge(
            "jumptable_fleet_table_nodes",
            "Nodes of each table, by what they say to it; unknown: nothing yet.",
            ("table", "state"),
            dict(on_nodes),
        ),
        gauge(
            "jumptable_fleet_rollouts",
            "Rollouts that are kept, by their phase.",
            ("phase",),
            {(str(phase),): n for phase, n in phases.items()},
        ),
        gauge(
            "jumptable_fleet_rollout_since_seconds",
            "Since when the rollout that has not ended is in its phase and wave, in seconds since 1970.",
            ("table",),
            running,
        ),
        gauge("jumptable_fleet_controller_elected", "1: a controller leads.", (), {(): leader is not None}),
        gauge(
            "jumptable_fleet_store_bytes",
            "The size of etcd's database.",
            ("member",),
            {(each.endpoint,): each.database_bytes for each in members},
        ),
    ]
