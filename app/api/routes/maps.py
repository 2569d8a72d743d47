"""Held maps: /maps."""

import contextlib
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.access.rights import Grant
from app.api import openapi
from app.api.authorization import ASK, forbidden, grant_of
from app.api.dependencies import DryRun, add_audit_facts, change_headers, check_holdable, context_of, service_of
from app.api.encoding.responses import Json
from app.api.openapi import BODY, KERNEL, answers, no_content, problems
from app.api.routing import StrictRoute
from app.api.schemas import parameters, requests, responses
from app.api.visibility import visible_drift, visible_entries
from app.bpf.uapi import prog_type_name
from app.service.errors import MapUnknown
from app.service.lifecycle import Service
from app.service.objects.program_array import UNREADABLE
from app.service.registry.held import HeldMap
from app.store.records import EMPTY

router = APIRouter(route_class=StrictRoute, tags=["maps"])


async def _map(service: Service, held: HeldMap, grant: Grant, *, just_opened: bool = False) -> responses.HeldMap:
    """Return what a caller is told of a map.

    Args:
        service: The service.
        held: The map.
        grant: Of the caller, who is told only of entries within its bounds.
        just_opened: The pin of the map was followed a moment ago, and is not followed again.
    """
    if not just_opened:
        await service.pins.check(held)
    if held.released:
        raise MapUnknown(held.name)
    array = held.object
    warnings = service.registry.maps.warnings(held)
    if held.expected is not None:
        lost = held.expected.lost.items()
        warnings += [f"entry {index} is not restored: {why}" for index, why in lost if grant.has_entry(index)]
    if array is None:
        return responses.HeldMap(
            name=held.name, id=None, kernel_name=None, max_entries=None, used=None, flags=None, memlock=None,
            frozen=None, owner=None, pins=held.pins, created_here=held.created_here,
            protected=held.protected.texts(), state="unavailable", reason=held.reason, drift=[],
            waiting=_waiting(held, grant), warnings=warnings,
        )  # fmt: skip
    found = await held.read()
    used = len(found) - visible_entries(grant, found).count(EMPTY)
    drift = await service.drift.check(held, found=found)
    if held.object is not array:
        return await _map(service, held, grant)  # opened anew meanwhile
    state = array.state()
    if state == UNREADABLE:
        warnings.append("memlock, frozen and owner are not known: the kernel lets only root read them, by the keeper")
    owner = None
    if state.owner_type is not None:
        owner = responses.Owner(program_type=prog_type_name(state.owner_type), jited=state.owner_jited)
    return responses.HeldMap(
        name=held.name,
        id=array.id,
        kernel_name=array.info.name,
        max_entries=array.max_entries,
        used=used,
        drift=[responses.Drift.model_validate(each, from_attributes=True) for each in visible_drift(grant, drift)],
        waiting=_waiting(held, grant),
        flags=array.info.flags,
        memlock=state.memlock,
        frozen=state.frozen,
        owner=owner,
        pins=held.pins,
        created_here=held.created_here,
        protected=held.protected.texts(),
        state="held",
        reason=None,
        warnings=warnings,
    )


def _waiting(held: HeldMap, grant: Grant) -> list[responses.WaitingEntries]:
    """Return the changes of a map that wait for their confirmation, with the entries that the caller may see."""
    waiting = {} if held.unconfirmed is None else held.unconfirmed.waiting
    visible = {
        id_: (confirm_by, sorted(filter(grant.has_entry, indexes))) for id_, (confirm_by, indexes) in waiting.items()
    }
    return [
        responses.WaitingEntries.model_validate({"change": id_, "confirm_by": confirm_by, "entries": indexes})
        for id_, (confirm_by, indexes) in sorted(visible.items())
        if indexes
    ]


@router.get(
    "/maps",
    operation_id="list_maps",
    summary="List the held maps",
    response_model=responses.Maps,
    responses=answers(responses.Maps, "All of them, by name.") | problems(*KERNEL),
)
async def list_maps(request: Request) -> Response:
    """List the held maps, by name. Maps that could not be opened yet are among them."""
    registry, maps = service_of(request).registry, []
    grant = grant_of(request.scope)
    for held in sorted((each for each in registry.maps if grant.has_map(each.name)), key=lambda each: each.name):
        with contextlib.suppress(MapUnknown):  # released while others had their turn
            maps.append(await _map(service_of(request), held, grant))
    return Json(responses.Maps(maps=maps))


@router.get(
    "/maps/{name}",
    operation_id="get_map",
    summary="Tell all of one map",
    response_model=responses.HeldMap,
    responses=answers(responses.HeldMap, "The map.") | problems("map-unknown", *KERNEL),
)
async def get_map(request: Request, name: parameters.MapName) -> Response:
    """Return a map: its size, what fits into it, and what keeps it alive."""
    registry = service_of(request).registry
    return Json(await _map(service_of(request), registry.maps.get(name), grant_of(request.scope)))


@router.put(
    "/maps/{name}",
    operation_id="hold_map",
    summary="Hold a map under a name",
    response_model=responses.HeldMap,
    responses=answers(responses.HeldMap, "The name was held already; it was opened again.", headers=openapi.DRY_RUN)
    | answers(responses.HeldMap, "Held from now on.", 201, headers=openapi.DRY_RUN | openapi.LOCATION)
    | problems(
        "map-unknown",
        "name-taken",
        "last-reference",
        "not-a-program-array",
        "pin-unusable",
        "pin-not-allowed",
        "in-use",
        "read-only",
        "journal-unavailable",
        *KERNEL,
        *BODY,
    ),
)
async def hold_map(
    request: Request,
    name: parameters.MapName,
    body: requests.HoldMap,
    force: Annotated[bool, Query(description="Also where the array held so far may then be emptied for good.")] = False,
    dry_run: DryRun = False,
) -> Response:
    """Open a program array by its pin or its id, and hold it until it is released, also after a restart.

    With `create`, an array is made and pinned there if the pin does not exist.
    """
    create_entries = None if body.create is None else body.create.max_entries
    service, source, context = service_of(request), body.source(), context_of(request.scope)
    check_holdable(request, source, service.registry.maps.find(name), force=force)
    held, is_new = await service.holds.hold_map(name, source, create_entries, context, force=force, dry_run=dry_run)
    try:
        answer = await _map(service, held, grant_of(request.scope), just_opened=True)
    finally:
        if dry_run:
            held.release()
    if not dry_run:
        add_audit_facts(request.scope, map=name, map_id=answer.id, created=answer.created_here)
    headers = change_headers(dry_run=dry_run, location=f"/maps/{name}" if is_new else None)
    return Json(answer, 201 if is_new else 200, headers)


@router.delete(
    "/maps/{name}",
    operation_id="release_map",
    summary="Release a map",
    status_code=204,
    responses=no_content("Released.")
    | problems("map-unknown", "last-reference", "in-use", "read-only", "journal-unavailable", *KERNEL),
)
async def release_map(
    request: Request,
    name: parameters.MapName,
    force: Annotated[bool, Query(description="Also where the kernel may then empty it for good.")] = False,
    dry_run: DryRun = False,
) -> Response:
    """Release a map. Its pin stays, and so do its entries.

    A map whose pin the service does not know is refused with 409.
    """
    if force and not grant_of(request.scope).is_unbounded:
        raise forbidden(request.scope, f"a caller with bounds may not release by force; {ASK}")
    await service_of(request).holds.release_map(name, context_of(request.scope), force=force, dry_run=dry_run)
    if not dry_run:
        add_audit_facts(request.scope, map=name, force=force)
    return Response(status_code=204, headers=change_headers(dry_run=dry_run))
