"""The application: the parts put together, nothing opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp

from app import __version__
from app.api.audit import Audit
from app.api.authorization import Authentication
from app.api.limits import Limits, LongAnswers
from app.api.middleware import RequestMiddleware
from app.api.openapi import document
from app.api.routes import changes, docs, entries, events, health, maps, metrics, programs, tables
from app.api.routes import objects as objects_routes
from app.service.lifecycle import Service
from app.service.loading.object_files import NO_LOADER, ObjectOptions
from app.service.registry.registry import Registry
from app.store.journal import Journal

_DESCRIPTION: Final = """
An HTTP API for eBPF program arrays (`BPF_MAP_TYPE_PROG_ARRAY`): the jump tables of `bpf_tail_call()`.

* Every read asks the kernel; an ETag changes also when somebody else's tool has written.
* A change of program is one overwrite: a packet sees the old or the new program, never an empty entry.
* Errors are `application/problem+json`; `GET /problems/{code}` explains each. Every answer has an `X-Request-ID`,
  the one of the request where it brought one.
* HEAD works wherever GET does.
"""


class _Application(FastAPI):
    """FastAPI, with the envelope in the place of its layers for errors, telemetry, body limits and dependencies."""

    def build_middleware_stack(self) -> ASGIApp:
        """What a request goes through before it is routed."""
        return RequestMiddleware(self.router)


def create_app(
    registry: Registry,
    journal: Journal,
    *,
    keep_dir: str | None = None,
    drift_interval: float = 5.0,
    authentication: Authentication | None = None,
    limits: Limits | None = None,
    audit: Audit | None = None,
    objects: ObjectOptions = NO_LOADER,
) -> FastAPI:
    """Put the application together. Nothing is opened yet.

    Its lifespan starts the service before the first request, and keeps it up to date beside the requests.

    Args:
        registry: The maps and programs.
        journal: The journal, open.
        keep_dir: The folder in bpffs where programs are pinned that an undo may need after a restart.
        drift_interval: Seconds between two checks of all tables.
        authentication: How the service knows who asks. None: everybody who can connect may do everything.
        limits: What one caller may take.
        audit: Where attempts are recorded.
        objects: How object files are loaded.
    """
    app = _Application(
        title="jumptable",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.authentication = authentication or Authentication()
    app.state.limits = limits or Limits()
    app.state.long_answers = LongAnswers()
    app.state.audit = audit or Audit()
    app.state.service = Service(
        registry,
        journal,
        keep_dir=keep_dir,
        drift_interval=drift_interval,
        objects=objects,
        delivery=app.state.audit.buffered,
    )
    app.state.service.changes.on_automatic = app.state.audit.automatic
    app.state.metrics = metrics.collectors(app.state.service)
    for module in (entries, tables, changes, events, maps, programs, objects_routes, health, docs, metrics):
        # Not include_router(): that would match every request twice, and hide the routes from `_allow`.
        app.router.routes.extend(module.router.routes)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.start()
    service.run()
    try:
        yield
    finally:
        await service.finish()
