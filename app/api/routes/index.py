"""The index of links, for whoever begins: /. A browser gets the page there."""

from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.access.rights import Role
from app.api.authorization import ACTOR
from app.api.encoding.responses import Json
from app.api.openapi import problems
from app.api.routes import web
from app.api.routing import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["service"])

_LINKS: Final = {
    "maps": "/maps",
    "programs": "/programs",
    "objects": "/objects",
    "changes": "/changes",
    "graph": "/graph",
    "events": "/events",
    "ready": "/readyz",
    "version": "/version",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "docs": "/docs",
}


class CallerRights(BaseModel):
    """Who asks, and what the caller may do. null: no restriction."""

    actor: str = Field(description="As changes name it.", examples=["token:deploy"])
    role: Role | None = Field(description="null: the caller may do nothing.")
    maps: list[str] | None
    entries: list[str] | None = Field(description="Indexes, and ranges with both ends.", examples=[["8-15", "60"]])
    programs: list[str] | None


class ServiceIndex(BaseModel):
    """Where to go on, and who asks."""

    name: str = "jumptable"
    version: str = Field(examples=["0.1.0"])
    links: dict[str, str] = Field(description="The paths to begin with.", examples=[_LINKS])
    read_only: bool = Field(description="Whether the service refuses every change.")
    caller: CallerRights | None = Field(description="null: it is not known who asks; send a token.")


@router.get(
    "/",
    operation_id="get_index",
    summary="Tell where to go on, and who asks",
    response_model=ServiceIndex,
    responses=web.index_or_page(ServiceIndex) | problems(),
)
async def get_index(request: Request) -> Response:
    """Return an index of links, and what the caller may do. A browser gets the page instead."""
    if web.is_for_browser(request):
        return web.page(request, "index.html")
    actor = request.scope[ACTOR]
    caller = None
    if actor is not None:
        grant = actor.grant
        caller = CallerRights(
            actor=actor.name,
            role=None if grant is None else grant.role,
            maps=None if grant is None or grant.maps is None else sorted(grant.maps),
            entries=None if grant is None or grant.entries is None else grant.entries.texts(),
            programs=None if grant is None or grant.programs is None else sorted(grant.programs),
        )
    read_only = request.app.state.authentication.read_only
    index = ServiceIndex(version=__version__, links=_LINKS, read_only=read_only, caller=caller)
    return Json(index, headers={"Cache-Control": "no-store", "Vary": "Accept, Authorization"})
