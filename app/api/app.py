"""The application: FastAPI with the routes. `app.api.deferred` loads it."""

from typing import Any, Final, cast

from fastapi import FastAPI
from starlette.datastructures import State as AnyState
from starlette.types import ASGIApp

from app import __version__
from app.api.authorization import Authentication
from app.api.middleware import RequestMiddleware
from app.api.openapi import document
from app.api.routes import changes, docs, entries, events, graph, health, maps, metrics, programs, tables, web
from app.api.routes import objects as object_routes
from app.api.state import State

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

    def __init__(self, state: State) -> None:
        super().__init__(
            title="jumptable",
            version=__version__,
            description=_DESCRIPTION,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        )
        self.state = cast("AnyState", state)
        self.collectors = metrics.collectors(state.service)
        self._documented: Authentication | None = None  # the one that `openapi_schema` tells of
        for module in (
            entries,
            tables,
            changes,
            events,
            maps,
            programs,
            object_routes,
            graph,
            health,
            docs,
            metrics,
            web,
        ):
            # Not include_router(): that would match every request twice, and hide the routes from `_allow`.
            self.router.routes.extend(module.router.routes)

    def build_middleware_stack(self) -> ASGIApp:
        """What a request goes through before it is routed."""
        return RequestMiddleware(self.router)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. It is made when it is first asked for, and when there is another authentication."""
        authentication: Authentication = self.state.authentication
        if self.openapi_schema is None or self._documented is not authentication:
            self.openapi_schema, self._documented = document(self, authentication), authentication
        return self.openapi_schema


def create_app(state: State) -> FastAPI:
    """Make the application that answers requests with `state`. Its service has to be started."""
    return _Application(state)
