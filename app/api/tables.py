"""A whole table, or several of its entries: PUT and PATCH of /maps/{name}/entries."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api import documented, fields, inputs, outputs
from app.api.conditions import TABLE_PARAMETERS, Conditions, table_etag
from app.api.documented import BODY, KERNEL, answers, problems
from app.api.entries import CHANGE, REFERENCE
from app.api.problems import Refused
from app.api.state import ConfirmWithin, DryRun, Note, changes_of, headers_of, origin_of, tell
from app.api.strict_route import TableRoute
from app.service.entries import TablePrecondition, TableResult, change_table
from app.service.origin import Origin
from app.service.programs import ProgramRef

router = APIRouter(route_class=TableRoute, tags=["entries"])

Wanted = list[tuple[int, ProgramRef | None]]

_RESPONSES = (
    answers(
        outputs.Applied | outputs.DryApplied, "What was done.", headers=documented.DRY_RUN | documented.CHANGE_ID
    )
    | problems(
        "map-unknown",
        "map-unavailable",
        *CHANGE,
        "malformed-header",
        "precondition-failed",
        "duplicate-index",
        "index-out-of-range",
        *REFERENCE,
        *BODY,
        *KERNEL,
        in_body="index-out-of-range",
    )
)  # fmt: skip


class _References(dict[str | None, ProgramRef | None]):
    """What each name of a body refers to: made once for all entries that have the same."""

    def __missing__(self, name: str | None) -> ProgramRef | None:
        self[name] = None if name is None else inputs.program_ref(name)
        return self[name]

    def of(self, given: "str | inputs.ProgramObject | outputs.EntryProgram | None") -> ProgramRef | None:
        """The reference."""
        return self[given] if given is None or isinstance(given, str) else inputs.program_ref(given)


def _precondition(request: Request) -> TablePrecondition:
    conditions = Conditions.of(request)
    boot_id = changes_of(request).registry.kernel.boot_id

    def check(map_id: int, entries: list[tuple[int, int]]) -> None:
        etag = table_etag(boot_id, map_id, entries)
        header = conditions.failed(etag)
        if header is not None:
            detail = f"{header} does not hold: the table's tag is {etag}"
            raise Refused("precondition-failed", detail, facts={"current": {"etag": etag}})

    return check


def _applied(result: TableResult) -> bytes:
    """The answer to a change of several entries."""
    counts = {"set": result.set, "cleared": result.cleared, "unchanged": result.unchanged}
    if result.fit is not None:
        return outputs.DryApplied(change=None, **counts, fit=result.fit).model_dump_json().encode()
    applied = outputs.Applied(change=None, **counts).model_dump_json().encode()
    if result.change is None:
        return applied
    return applied.replace(b'"change":null', b'"change":%b' % outputs.change_json(result.change), 1)


def answer(request: Request, result: TableResult, *, dry_run: bool, **facts: object) -> Response:
    """The whole answer, with `facts` for the audit's line where something was changed."""
    if result.change is not None:
        tell(request.scope, change=result.change.id, map=result.change.map, **facts)
    return outputs.Json(_applied(result), headers=headers_of(dry_run=dry_run, change=result.change))


async def _change(
    request: Request, name: str, wanted: Wanted, origin: Origin, *, replace: bool, dry_run: bool
) -> Response:
    changes = changes_of(request)
    result = await change_table(
        changes,
        changes.registry.maps.get(name),
        wanted,
        origin,
        replace=replace,
        precondition=_precondition(request),
        dry_run=dry_run,
    )
    return answer(request, result, dry_run=dry_run, set=result.set, cleared=result.cleared)


@router.put(
    "/maps/{name}/entries",
    operation_id="replace_entries",
    summary="Replace the whole table",
    response_model=outputs.Applied | outputs.DryApplied,
    responses=_RESPONSES,
    openapi_extra=TABLE_PARAMETERS,
)
async def replace_entries(
    request: Request,
    name: fields.MapName,
    body: inputs.ReplaceEntries,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """Entries that are not listed are cleared. What GET answers can be PUT back.

    Everything that can be known is checked first, then the sets are written in the order listed, then the clears by
    falling index; if the kernel refuses one midway, what was written is put back. Each entry changes at once, the
    table does not: list callees before the entries that lead to them.
    """
    references = _References()
    if body.entries is not None:
        wanted = [(entry.index, references.of(entry.program)) for entry in body.entries]
    else:
        wanted = [(index, references.of(program)) for index, program in enumerate(body.programs or ())]
    origin = origin_of(request, note, confirm_within)
    return await _change(request, name, wanted, origin, replace=True, dry_run=dry_run)


@router.patch(
    "/maps/{name}/entries",
    operation_id="update_entries",
    summary="Change several entries",
    response_model=outputs.Applied | outputs.DryApplied,
    responses=_RESPONSES,
    openapi_extra=TABLE_PARAMETERS,
)
async def update_entries(
    request: Request,
    name: fields.MapName,
    body: inputs.UpdateEntries,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
) -> Response:
    """The entries listed, in that order; `"program": null` clears one. Checked and put back as a whole table is."""
    references = _References()
    wanted = [(entry.index, references.of(entry.program)) for entry in body.entries]
    origin = origin_of(request, note, confirm_within)
    return await _change(request, name, wanted, origin, replace=False, dry_run=dry_run)
