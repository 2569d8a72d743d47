"""What was changed: /changes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.authorization import ASK, forbidden, grant_of
from app.api.dependencies import (
    ConfirmWithin,
    DryRun,
    Force,
    Note,
    add_audit_facts,
    check_held,
    context_of,
    service_of,
)
from app.api.encoding.changes import EntriesPrebuilt, change_chunks
from app.api.encoding.responses import long_json
from app.api.openapi import BODY, KERNEL, answers, problems
from app.api.problems import HttpProblem
from app.api.routes.entries import CHANGE, WRITE
from app.api.routes.tables import answer
from app.api.routing import StrictRoute
from app.api.schemas import fields, parameters, requests, responses
from app.api.visibility import visible_change
from app.service.changes.permissions import check_confirmation
from app.service.changes.revert import revert_change
from app.service.drift.reconcile import reconcile_to_journal, reconcile_to_kernel
from app.service.errors import ChangeUnknown
from app.service.objects.source import Made
from app.service.registry.held import HeldMap
from app.store.records import Change, ChangeFilter, ChangeKind, ChangeState

router = APIRouter(route_class=StrictRoute, tags=["changes"])

_PART: Final = 1 << 18  # bytes of an answer that are made at a stretch
# For a caller with bounds, who may not see every change, and for one who asks for the first entries only, several pages
# of the journal make one answer: until it has so many entries, or so many pages were read.
_MAX_ENTRIES: Final = 4096
_MAX_PAGES: Final = 16


def _maps(request: Request, wanted: str | None) -> list[str] | None:
    """Return the maps whose changes the caller may see. None: all."""
    grant = grant_of(request.scope)
    if wanted is not None:
        check_held(request, wanted)
        return [wanted] if grant.has_map(wanted) else []
    return None if grant.maps is None else sorted(grant.maps)


def _change(request: Request, id_: int) -> Change:
    """Return a change, as far as the caller may see it."""
    change = visible_change(grant_of(request.scope), service_of(request).changes.get(id_))
    if change is None:
        raise ChangeUnknown(id_)
    return change


def _whole_change(request: Request, id_: int) -> Change:
    """The change. Whoever asks has to be allowed to see all of it."""
    change = service_of(request).changes.get(id_)
    visible = _change(request, id_)
    if len(visible.entries) < len(change.entries):
        raise forbidden(
            request.scope, f"change {id_} also has entries that are not among the entries of this caller; {ASK}"
        )
    return change


ChangeId = Annotated[fields.Decimal, Path(description="As the Change-Id header tells it.", examples=[17])]


@router.get(
    "/changes",
    operation_id="list_changes",
    summary="List the changes",
    response_model=responses.Changes,
    responses=answers(responses.Changes, "By rising id, or by falling id.")
    | problems("map-unknown", "journal-unavailable"),
)
async def list_changes(  # noqa: PLR0913, PLR0917 - each is a query parameter
    request: Request,
    map: Annotated[fields.Name | None, Query(description="Of this map only.")] = None,  # noqa: A002
    after: Annotated[fields.Decimal, Query(description="With a higher id only.")] = 0,
    before: Annotated[fields.Decimal | None, Query(description="With a lower id only.")] = None,
    request_id: Annotated[str | None, Query(description="Of this request only.")] = None,
    index: Annotated[fields.Decimal | None, Query(description="That wrote this entry only.")] = None,
    state: Annotated[ChangeState | None, Query(description="In this state only.")] = None,
    actor: Annotated[str | None, Query(description="By this actor only, as `actor` of a change names it.")] = None,
    kind: Annotated[ChangeKind | None, Query(description="Of this kind only.")] = None,
    since: Annotated[fields.Time | None, Query(description="Made at this time or later: RFC 3339.")] = None,
    until: Annotated[fields.Time | None, Query(description="Made before this time: RFC 3339.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="asc: oldest first; desc: newest first.")] = "asc",
    limit: Annotated[
        int, Query(ge=1, le=1000, description="The most that are answered; fewer, where they have many entries.")
    ] = 100,
    entries: Annotated[
        int | None,
        Query(
            ge=0,
            le=1000,
            description="The most entries of each change: the first ones, or with `index` those from that entry on. "
            "`entry_count` tells how many there are. Left out: all.",
        ),
    ] = None,
) -> Response:
    """List who changed what, when, by which request and why. The oldest changes may have been deleted.

    A page ends with `next` if there are more: send it as `after`, or with `order=desc` as `before`. A caller with
    bounds gets the entries within them. A page may then be empty, and be followed by others.
    """
    service, grant, newest_first = service_of(request), grant_of(request.scope), order == "desc"
    wanted = ChangeFilter(_maps(request, map), index, state, actor, kind, request_id, since, until)
    if index is not None and not grant.has_entry(index):
        wanted = replace(wanted, maps=[])
    shown: list[tuple[Change, int]] = []
    pages, shown_entries = 0, 0
    while True:
        page, following = await service.changes.find(
            wanted, after=after, before=before, newest_first=newest_first, limit=limit - len(shown)
        )
        visible = [change for each in page if (change := visible_change(grant, each)) is not None]
        found = [_shortened(each, entries, index) for each in visible]
        shown, pages = shown + found, pages + 1
        shown_entries += sum(len(each.entries) for each, _ in found)
        is_enough = len(shown) >= limit or shown_entries >= _MAX_ENTRIES or pages >= _MAX_PAGES
        if following is None or (grant.entries is None and entries is None) or is_enough:
            break
        after, before = (after, following) if newest_first else (following, before)
    envelope = responses.Changes(changes=[], next=following).model_dump_json().encode()
    return long_json(_joined(envelope, shown))


def _shortened(change: Change, entries: int | None, index: int | None) -> tuple[Change, int]:
    """Return a change with so many entries, from that with the index on, and how many it has. None: with all."""
    count = change.entry_count
    if entries is None or count <= entries:
        return change, count
    start = 0 if index is None else change.entries.indexes.index(index)
    return replace(change, entries=change.entries.part(start, start + entries)), count


def _joined(envelope: bytes, page: list[tuple[Change, int]]) -> Iterator[bytes]:
    """Put changes into an empty list, in chunks: several small changes make one, a large one makes several."""
    text, _, last = envelope.partition(b"]")
    for number, (change, entry_count) in enumerate(page):
        text += b"," if number else b""
        for part in change_chunks(change, entry_count=entry_count):
            text += part
            if len(text) > _PART:
                yield text
                text = b""
    yield text + b"]" + last


@router.get(
    "/changes/{id}",
    operation_id="get_change",
    summary="Tell one change",
    response_model=responses.Change,
    responses=answers(responses.Change, "The change.") | problems("change-unknown", "journal-unavailable"),
)
async def get_change(request: Request, id: ChangeId) -> Response:  # noqa: A002
    """Return a change, with what each of its entries held before and after."""
    return long_json(change_chunks(_change(request, id)))


@router.post(
    "/changes/{id}/confirm",
    operation_id="confirm_change",
    summary="Let a change stand",
    response_model=responses.Change,
    responses=answers(responses.Change, "It stands.")
    | problems("change-unknown", "already-confirmed", *CHANGE, "map-unknown"),
)
async def confirm_change(request: Request, id: ChangeId) -> Response:  # noqa: A002
    """Confirm a change that was made with `confirm_within`, so that it is not undone."""
    service = service_of(request)
    change = _whole_change(request, id)
    held = service.registry.maps.find(change.map) or HeldMap(change.map, Made())
    check_confirmation(service.registry.programs, held, change, context_of(request.scope))
    confirmed = await service.changes.confirmations.confirm(change, context_of(request.scope).actor)
    add_audit_facts(request.scope, change=id, map=confirmed.map)
    return long_json(change_chunks(confirmed))


@router.post(
    "/changes/{id}/revert",
    operation_id="revert_change",
    summary="Undo a change",
    response_model=responses.Applied | responses.DryApplied,
    responses=answers(
        responses.Applied | responses.DryApplied, "What was done.", headers=openapi.DRY_RUN | openapi.CHANGE_ID
    )
    | problems(
        "change-unknown",
        *WRITE,
        "map-unknown",
        "map-unavailable",
        "program-incompatible",
        "program-busy",
        *KERNEL,
    ),
)
async def revert_change_route(
    request: Request,
    id: ChangeId,  # noqa: A002
    force: Annotated[
        bool,
        Query(
            description="Also where a later change has written one of its entries, or where the pin of the map "
            "leads to another object by now."
        ),
    ] = False,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """Give each entry of a change back what it held before.

    It is refused with 409, unless all entries still hold what the change put there, and no later change that stands has
    written them. The service keeps the programs that
    the last 10,000 changes replaced (at most 4,096 programs). After a restart it finds a program again by its id, name
    or pin, if the program still exists. A change cannot be reverted after a reboot, or if the map's name stands for
    another array now. A revert is itself a change, and can be reverted.
    """
    name = _whole_change(request, id).map
    context = context_of(request.scope, note, confirm_within, force=force)
    prebuilt = EntriesPrebuilt()
    result = await revert_change(
        service_of(request).changes, id, context, force=force, dry_run=dry_run, background_steps=prebuilt.build
    )
    return await answer(request, name, result, dry_run=dry_run, prebuilt=prebuilt, reverts=id)


@router.post(
    "/maps/{name}/reconcile",
    operation_id="reconcile_map",
    summary="End the drift of a map",
    response_model=responses.Applied | responses.DryApplied,
    responses=answers(
        responses.Applied | responses.DryApplied, "What was done.", headers=openapi.DRY_RUN | openapi.CHANGE_ID
    )
    | problems(
        "map-unknown",
        "map-unavailable",
        *WRITE,
        "program-incompatible",
        "program-busy",
        *BODY,
        *KERNEL,
    ),
)
async def reconcile_map(
    request: Request,
    name: parameters.MapName,
    body: requests.Reconcile,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> Response:
    """End the drift of a map.

    `journal`: every entry that has drifted gets back what the journal expects, or none does. `kernel`: the journal
    takes over what the kernel holds. Nothing is written to the kernel then, and `unchanged` counts these entries.
    """
    service = service_of(request)
    changes, drift, held = service.changes, service.drift, service.registry.maps.get(name)
    context = context_of(request.scope, note, confirm_within, force=force)
    if body.to == "journal":
        result = await reconcile_to_journal(changes, drift, held, context, dry_run=dry_run)
    elif confirm_within is None:
        result = await reconcile_to_kernel(changes, drift, held, context, dry_run=dry_run)
    else:
        raise HttpProblem(
            "validation", "query.confirm_within: nothing is written, so nothing can be undone; leave it out"
        )
    return await answer(request, name, result, dry_run=dry_run, to=body.to)
