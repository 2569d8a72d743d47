"""The application: the parts put together, nothing opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount

from app import __version__
from app.api import about, changes, entries, events, maps, metrics, programs, tables
from app.api.documented import Problem
from app.api.envelope import REQUEST_ID, Envelope
from app.api.problems import Refused, problem, service_problem
from app.service.changes import Changes
from app.service.errors import ServiceError
from app.service.figures import Figures
from app.service.holding import Holding
from app.service.registry import Registry
from app.service.upkeep import Upkeep
from app.store.journal import Journal

_DESCRIPTION: Final = """
An HTTP API for eBPF program arrays (`BPF_MAP_TYPE_PROG_ARRAY`): the jump tables of `bpf_tail_call()`.

* Every read asks the kernel; an ETag changes also when somebody else's tool has written.
* A change of program is one overwrite: a packet sees the old or the new program, never an empty entry.
* Errors are `application/problem+json`; `GET /problems/{code}` explains each. Every answer has an `X-Request-ID`,
  the one of the request where it brought one.
* HEAD works wherever GET does.
"""

log = structlog.get_logger()


def create_app(
    registry: Registry, journal: Journal, *, keep_dir: str | None = None, drift_interval: float = 5.0
) -> FastAPI:
    """The application over what `registry` holds; `journal`: for what is changed; `drift_interval`: in seconds.

    Its lifespan undoes what is overdue before the first request, and goes on with what is done beside requests.
    """
    app = FastAPI(
        title="jumptable",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        exception_handlers={
            ServiceError: _on_service_error,
            Refused: _on_refused,
            HTTPException: _on_http_exception,
        },
    )
    figures = Figures()
    figures.time_calls(registry.kernel)
    journal.on_commit = figures.journal.add
    app.state.figures = figures
    app.state.changes = Changes(registry, journal, keep_dir=keep_dir, figures=figures)
    app.state.upkeep = Upkeep(app.state.changes, drift_interval)
    app.state.holding = Holding(app.state.changes, app.state.upkeep.drift)
    app.state.metrics = metrics.collectors(figures, app.state.changes)
    app.state.draining = False  # the server sets it once the service is on its way out
    app.add_middleware(Envelope)
    for module in (entries, tables, changes, events, maps, programs, about, metrics):
        # Not include_router(): that would match every request twice, and hide the routes from `_allow`.
        app.router.routes.extend(module.router.routes)
    app.mount("/docs/assets", about.assets)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    upkeep: Upkeep = app.state.upkeep
    await upkeep.start()
    upkeep.run()
    try:
        yield
    finally:
        await upkeep.finish()


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description.strip(), routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return service_problem(error, request.scope[REQUEST_ID])


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(error.code, error.detail, request.scope[REQUEST_ID], facts=error.facts, headers=error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What routing says: 404 and 405. (Nothing else raises HTTPException.)"""
    assert isinstance(error, HTTPException)
    path, request_id = request.scope["path"], request.scope[REQUEST_ID]
    if error.status_code == 404:
        return problem("not-found", f"there is nothing at {path[:256]!r}; /docs shows all there is", request_id)
    if error.status_code == 405:
        allow = ", ".join(_allow(request))
        detail = f"{request.method} is not a method of this resource; there are: {allow}"
        return problem("method-not-allowed", detail, request_id, headers={"Allow": allow})
    log.error("unexpected", status=error.status_code, detail=error.detail, request_id=request_id)
    return problem("internal", "the log tells what, under this request_id", request_id)


def _allow(request: Request) -> list[str]:
    """All methods of the path: FastAPI knows only those of the first route that matches."""
    scope = {**request.scope, "root_path": ""}  # a mount has left its own there
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= {"GET"} if isinstance(route, Mount) else route.methods
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
