"""What all applications here have in common: FastAPI with this project's middleware, routes and OpenAPI document."""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, cast

from fastapi import FastAPI
from starlette.datastructures import State as AnyState
from starlette.types import ASGIApp

from app import __version__
from app.api.authorization import Authentication
from app.api.base_state import BaseState
from app.api.middleware import RequestMiddleware
from app.api.openapi import document


class Application(FastAPI):
    """FastAPI, with the envelope in the place of its layers for errors, telemetry, body limits and dependencies.

    Args:
        state: What requests are answered with.
        title: Its name.
        description: What it is, for the OpenAPI document.
        tags: The tags of the routes with their descriptions.
        modules: Those with the routes: each has a `router`.
        has_agents: Agents of a fleet may be among its callers.
        **options: Further ones of FastAPI.
    """

    def __init__(
        self,
        state: BaseState,
        *,
        title: str,
        description: str,
        tags: Mapping[str, str],
        modules: Iterable[ModuleType],
        has_agents: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            title=title,
            version=__version__,
            description=description,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
            **options,
        )
        self.state = cast("AnyState", state)
        self._tags, self._has_agents = tags, has_agents
        self._documented: Authentication | None = None  # the one that `openapi_schema` tells of
        for module in modules:
            # Not include_router(): that would match every request twice, and hide the routes from `_allow`.
            self.router.routes.extend(module.router.routes)

    def build_middleware_stack(self) -> ASGIApp:
        """What a request goes through before it is routed."""
        return RequestMiddleware(self.router)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. It is made when it is first asked for, and when there is another authentication."""
        authentication: Authentication = self.state.authentication
        if self.openapi_schema is None or self._documented is not authentication:
            self.openapi_schema = document(
                self, authentication, self.state.rights, self._tags, has_agents=self._has_agents
            )
            self._documented = authentication
        return self.openapi_schema
