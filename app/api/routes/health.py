"""The service itself: health and version."""

import platform
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app import __version__, native
from app.access.rights import Right
from app.api.authorization import grant_of
from app.api.dependencies import service_of
from app.api.encoding.responses import Json
from app.api.error_responses import problem
from app.api.openapi import answers, problems
from app.api.routing import StrictRoute
from app.api.scope import REQUEST_ID
from app.keeper.kernel import KeeperKernel
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.pins import moved_warning

router = APIRouter(route_class=StrictRoute, tags=["service"])


class Health(BaseModel):
    """The process answers requests."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Everything that is configured could be opened."""

    status: Literal["ready"] = "ready"
    reasons: list[str]


class Ability(BaseModel):
    """Something that kernels differ in."""

    name: str = Field(examples=["writer"])
    can: bool | None = Field(description="null: it is not known.")
    detail: str = Field(examples=["whole tables are written inside the kernel, in one call for many entries"])


class Version(BaseModel):
    """What is running."""

    name: str = "jumptable"
    version: str = Field(examples=["0.1.0"])
    kernel: str = Field(description="linux, or memory: then nothing is real.", examples=["linux"])
    kernel_release: str = Field(examples=["6.18.44"])
    implementation: str = Field(
        description="What answers most requests: `C extension`, or `pure Python` and why.", examples=["C extension"]
    )
    abilities: list[Ability] = Field(description="What this kernel can and cannot, asked when the service started.")
    keeper: Literal["running", "failing"] | None = Field(
        description="The process that opens what this one may not. failing: /readyz says why; null: there is none."
    )
    uptime_seconds: int = Field(description="How long the service has been running.", examples=[86400])


@router.get(
    "/healthz",
    operation_id="get_health",
    summary="Tell whether the process answers",
    response_model=Health,
    responses=answers(Health, "It does.") | problems(),
)
async def get_health() -> Response:
    """Answer a liveness probe. It says nothing about maps and programs."""
    return Json(Health())


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Tell whether all that is configured could be opened",
    response_model=Readiness,
    responses=answers(Readiness, "It could.")
    | problems("map-unavailable", "program-unavailable", "journal-unavailable"),
)
async def get_readiness(request: Request) -> Response:
    """Say whether the service is ready.

    It is 503 with `reasons` while a map, program or object file could not be opened, a pin leads to another object, the
    keeper has ended, tokens cannot be checked, the journal is lost or its last write failed, or the service stops.
    Callers who may not read everything get no reasons.
    """
    service = service_of(request)
    if service.is_stopping:
        reasons = ["the service is stopping"]
        return problem("draining", reasons[0], request.scope[REQUEST_ID], facts={"reasons": reasons})
    registry = service.registry
    unavailable = registry.unavailable()
    reasons = [
        f"{'map' if isinstance(held, HeldMap) else 'program'} {held.name!r}: {held.reason}" for held in unavailable
    ]
    reasons += [f"object file {each.name!r}: {each.reason}" for each in service.objects.unavailable()]
    await service.pins.check_all()
    moved = [held for held in (*registry.maps, *registry.programs) if held.moved is not None]
    reasons += [warning for warning in map(moved_warning, moved) if warning is not None]
    failure = registry.kernel.failure
    if failure is not None:
        reasons.append(str(failure.strerror))
    tokens = request.app.state.authentication.tokens
    if tokens is not None and tokens.degraded_reason is not None:
        reasons.append(f"tokens cannot be checked: {tokens.degraded_reason}")
    failing = service.journal.failing
    if failing is not None:
        reasons.append(failing)
    if reasons:
        concerned = [*unavailable, *moved]
        only_programs = concerned and all(isinstance(held, HeldProgram) for held in concerned)
        code = "program-unavailable" if only_programs else "map-unavailable"
        if len(reasons) == 1 and failing is not None:
            code = "journal-unavailable"
        grant = grant_of(request.scope)
        if not grant.allows(Right.READ) or grant.maps is not None or grant.programs is not None:
            reasons = []
        detail = "; ".join(reasons) or "something that is to be held could not be opened"
        return problem(code, detail, request.scope[REQUEST_ID], facts={"reasons": reasons})
    return Json(Readiness(reasons=[]))


@router.get(
    "/version",
    operation_id="get_version",
    summary="Tell what runs",
    response_model=Version,
    responses=answers(Version, "The versions.") | problems(),
)
async def get_version(request: Request) -> Response:
    """Return the version of the service, the kernel that it works on, and how long it has been running."""
    service = service_of(request)
    kernel = service.registry.kernel
    keeper: Literal["running", "failing"] | None = None
    if isinstance(kernel, KeeperKernel):
        keeper = "running" if kernel.failure is None else "failing"
    return Json(
        Version(
            version=__version__,
            kernel=kernel.name,
            kernel_release=platform.release(),
            implementation=native.told(),
            abilities=[Ability(name=each.name, can=each.can, detail=each.detail) for each in kernel.abilities],
            keeper=keeper,
            uptime_seconds=int(service.uptime()),
        )
    )
