"""What was changed: /changes."""

from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.authorization import grant_of
from app.api.dependencies import ConfirmWithin, DryRun, Note, add_audit_facts, context_of, service_of
from app.api.encoding.changes import EntriesPrebuilt, change_chunks
from app.api.encoding.responses import long_json
from app.api.openapi import BODY, KERNEL, answers, problems
from app.api.problems import HttpProblem
from app.api.routes.entries import CHANGE
from app.api.routes.tables import answer
from app.api.routing import StrictRoute
from app.api.schemas import fields, requests, responses
from app.service.changes.permissions import check_confirmation
from app.service.changes.revert import revert_change
from app.service.drift.reconcile import reconcile_to_journal, reconcile_to_kernel
from app.service.errors import ChangeUnknown, JournalUnreadable
from app.service.objects.source import Made
from app.service.registry.held import HeldMap
from app.store.journal import JournalFailed
from app.store.records import Change

router = APIRouter(route_class=StrictRoute, tags=["changes"])

_PART: Final = 1 << 18  # bytes of an answer that are made at a stretch


def _maps(request: Request, wanted: str | None) -> list[str] | None:
    """The maps of which changes are told; None: of all."""
    grant = grant_of(request.scope)
    if wanted is not None:
        return [wanted] if grant.has_map(wanted) else []
    return None if grant.maps is None else sorted(grant.maps)


def _change(request: Request, id_: int) -> Change:
    """The change, of a map that whoever asks may see."""
    change = service_of(request).changes.get(id_)
    if not grant_of(request.scope).has_map(change.map):
        raise ChangeUnknown(id_)
    return change


ChangeId = Annotated[fields.Decimal, Path(description="As the Change-Id header tells it.", examples=[17])]


@router.get(
    "/changes",
    operation_id="list_changes",
    summary="List the changes",
    response_model=responses.Changes,
    responses=answers(responses.Changes, "By rising id.") | problems("journal-unavailable"),
)
async def list_changes(
    request: Request,
    map: Annotated[fields.Name | None, Query(description="Of this map only.")] = None,  # noqa: A002
    after: Annotated[fields.Decimal, Query(description="With a higher id only.")] = 0,
    before: Annotated[fields.Decimal | None, Query(description="With a lower id only.")] = None,
    request_id: Annotated[str | None, Query(description="Of this request only.")] = None,
    limit: Annotated[
        int, Query(ge=1, le=1000, description="The most that are answered; fewer, where they have many entries.")
    ] = 100,
) -> Response:
    """Who changed what, when, by which request and why. Of the oldest some may have been pruned."""
    journal = service_of(request).journal
    try:
        page, more = journal.changes(
            maps=_maps(request, map),
            after=after,
            before=before,
            request_id=request_id,
            limit=limit,
        )
    except JournalFailed as error:
        raise JournalUnreadable(str(error)) from error
    told = responses.Changes(changes=[], next=page[-1].id if more else None).model_dump_json().encode()
    return long_json(_joined(told, page))


def _joined(told: bytes, page: list[Change]) -> Iterator[bytes]:
    """The list, in parts: of a large change some, of small changes several in one. `told`: without any of them."""
    text, _, last = told.partition(b"]")
    for number, change in enumerate(page):
        text += b"," if number else b""
        for part in change_chunks(change):
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
    """What each of its entries held before, and after."""
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
    """It was made with `confirm_within`, and is undone no more."""
    service = service_of(request)
    change = _change(request, id)
    held = service.registry.maps.find(change.map) or HeldMap(change.map, Made())
    check_confirmation(service.registry.programs, held, change, context_of(request.scope))
    confirmed = await service.changes.confirmations.confirm(change)
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
        *CHANGE,
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
    force: Annotated[bool, Query(description="Also where a later change has written one of its entries.")] = False,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """Each entry gets back what it held before, if all of them still hold what the change put there, and no later
    change that stands has written them; else 409.

    The service keeps the programs that the last 10,000 changes replaced (4,096 at the most); after a restart those that
    live by other means are found again, by id, name or pin. Not beyond a reboot, nor on another array of that name. A
    revert is itself a change, and can be reverted.
    """
    _change(request, id)
    context = context_of(request.scope, note, confirm_within)
    prebuilt = EntriesPrebuilt()
    result = await revert_change(
        service_of(request).changes, id, context, force=force, dry_run=dry_run, background_steps=prebuilt.build
    )
    return answer(request, result, dry_run=dry_run, prebuilt=prebuilt, reverts=id)


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
        *CHANGE,
        "program-incompatible",
        "program-busy",
        *BODY,
        *KERNEL,
    ),
)
async def reconcile_map(
    request: Request,
    name: fields.MapName,
    body: requests.Reconcile,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """To the journal: every entry that has drifted gets back what is recorded, or none does. To the kernel: what it has
    is recorded, and nothing is written; `unchanged` counts these entries."""
    service = service_of(request)
    changes, drift, held = service.changes, service.drift, service.registry.maps.get(name)
    context = context_of(request.scope, note, confirm_within)
    if body.to == "journal":
        result = await reconcile_to_journal(changes, drift, held, context, dry_run=dry_run)
    elif confirm_within is None:
        result = await reconcile_to_kernel(changes, drift, held, context, dry_run=dry_run)
    else:
        raise HttpProblem("validation", "query.confirm_within: nothing is written, so there is nothing to be undone")
    return answer(request, result, dry_run=dry_run, to=body.to)
