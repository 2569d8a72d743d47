"""Held programs: /programs."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.access.rights import Grant
from app.api import openapi
from app.api.authorization import grant_of
from app.api.dependencies import DryRun, add_audit_facts, check_holdable, context_of, service_of
from app.api.encoding.changes import change_headers
from app.api.encoding.programs import program_chunks, programs_chunks
from app.api.encoding.responses import Json, long_json
from app.api.openapi import BODY, KERNEL, answers, no_content, problems
from app.api.problems import HttpProblem
from app.api.routing import StrictRoute
from app.api.schemas import fields, parameters, requests, responses
from app.service.lifecycle import Service
from app.service.objects.program import loaded_at
from app.service.program_runs import run_program as run_held_program
from app.service.registry.held import HeldProgram
from app.service.registry.programs import Uses

router = APIRouter(route_class=StrictRoute, tags=["programs"])


UsesShown = Annotated[
    fields.Decimal | None,
    Query(description="The most entries in `used_by`; `use_count` tells how many there are. Left out: all."),
]


def _told(
    service: Service, held: HeldProgram, uses: Uses, grant: Grant
) -> tuple[responses.Program, list[tuple[str, int]]]:
    """Return a program as it is told, but for its uses, and those of them that the caller may see."""
    found = [] if held.object is None else uses.get(held.object.id, [])
    if grant.maps is not None or grant.entries is not None:
        found = [(map_, index) for map_, index in found if grant.has_map(map_) and grant.has_entry(index)]
    return _program(service, held, len(found)), found


async def _uses_of(service: Service, held: HeldProgram) -> Uses:
    return await service.registry.maps.uses([] if held.object is None else [held.object.id])


def _program(service: Service, held: HeldProgram, use_count: int) -> responses.Program:
    warnings = service.registry.programs.warnings(held)
    if held.object is None:
        return responses.Program(
            name=held.name, id=None, type=None, tag=None, kernel_name=None, loaded_at=None, uid=None, map_ids=[],
            gpl=None, run_count=None, run_time_ns=None, state="unavailable", reason=held.reason, used_by=[],
            use_count=0, pins=held.pins, warnings=warnings,
        )  # fmt: skip
    info = held.object.info()
    return responses.Program(
        name=held.name,
        id=info.id,
        type=held.object.type,
        tag=info.tag,
        kernel_name=info.name,
        loaded_at=loaded_at(info),
        uid=info.uid,
        map_ids=list(info.map_ids),
        gpl=info.gpl,
        run_count=info.run_count,
        run_time_ns=info.run_time,
        state="held",
        reason=None,
        used_by=[],
        use_count=use_count,
        pins=held.pins,
        warnings=warnings,
    )


@router.get(
    "/programs",
    operation_id="list_programs",
    summary="List the held programs",
    response_model=responses.Programs,
    responses=answers(responses.Programs, "All of them, by name.") | problems(*KERNEL),
)
async def list_programs(request: Request, uses: UsesShown = None) -> Response:
    """List the held programs, by name. Programs that could not be opened yet are among them."""
    service, grant = service_of(request), grant_of(request.scope)
    for each in service.registry.programs:
        await service.pins.check(each)
    used = await service.registry.maps.uses()
    held = [each for each in service.registry.programs if grant.has_program(each.name)]
    told = [_told(service, each, used, grant) for each in sorted(held, key=lambda each: each.name)]
    return long_json(programs_chunks((program, found[:uses]) for program, found in told))


@router.get(
    "/programs/{name}",
    operation_id="get_program",
    summary="Tell all of one program",
    response_model=responses.Program,
    responses=answers(responses.Program, "The program.") | problems("program-unknown", *KERNEL),
)
async def get_program(request: Request, name: parameters.ProgramName, uses: UsesShown = None) -> Response:
    """Return a program: its type, its maps, the entries that point to it, and whether its pin leads to another one."""
    service = service_of(request)
    await service.pins.check(service.registry.programs.get(name))
    held = service.registry.programs.get(name)
    used = await _uses_of(service, held)
    program, found = _told(service, service.registry.programs.get(name), used, grant_of(request.scope))
    return long_json(program_chunks(program, found[:uses]))


@router.put(
    "/programs/{name}",
    operation_id="hold_program",
    summary="Hold a program under a name",
    response_model=responses.Program,
    responses=answers(responses.Program, "The name was held already; it was opened again.", headers=openapi.DRY_RUN)
    | answers(responses.Program, "Held from now on.", 201, headers=openapi.DRY_RUN | openapi.LOCATION)
    | problems(
        "program-unknown",
        "name-taken",
        "not-a-program",
        "program-not-found",
        "pin-unusable",
        "pin-not-allowed",
        "in-use",
        "read-only",
        "journal-unavailable",
        *KERNEL,
        *BODY,
    ),
)
async def hold_program(
    request: Request,
    name: parameters.ProgramName,
    body: requests.HoldProgram,
    dry_run: DryRun = False,
) -> Response:
    """Open a loaded program by its pin or its id, and hold it, so that entries can be set to its name.

    With the pin of a held program, what the pin leads to now is opened. Entries that hold the old program keep it.
    """
    check_holdable(request, body.source(), service_of(request).registry.programs.find(name))
    service, context = service_of(request), context_of(request.scope)
    held, is_new = await service.holds.hold_program(name, body.source(), context, dry_run=dry_run)
    try:
        program, found = _told(service, held, await _uses_of(service, held), grant_of(request.scope))
    finally:
        if dry_run:
            held.release()
    if not dry_run:
        add_audit_facts(request.scope, program=name, program_id=program.id)
    headers = change_headers(dry_run=dry_run, location=f"/programs/{name}" if is_new else None)
    return Json(b"".join(program_chunks(program, found)), 201 if is_new else 200, headers)


@router.delete(
    "/programs/{name}",
    operation_id="release_program",
    summary="Release a program",
    status_code=204,
    responses=no_content("Released.")
    | problems("program-unknown", "in-use", "read-only", "journal-unavailable", *KERNEL),
)
async def release_program(
    request: Request,
    name: parameters.ProgramName,
    dry_run: DryRun = False,
) -> Response:
    """Release a program. Entries that point to it still do: the kernel keeps it alive for them."""
    await service_of(request).holds.release_program(name, context_of(request.scope), dry_run=dry_run)
    if not dry_run:
        add_audit_facts(request.scope, program=name)
    return Response(status_code=204, headers=change_headers(dry_run=dry_run))


@router.post(
    "/programs/{name}/run",
    operation_id="run_program",
    summary="Run a program on a packet",
    response_model=responses.Run,
    responses=answers(responses.Run, "What came out.")
    | problems("program-unknown", "program-unavailable", "program-not-runnable", "read-only", *KERNEL, *BODY),
)
async def run_program(request: Request, name: parameters.ProgramName, body: requests.RunProgram) -> Response:
    """Run a program on a packet, with BPF_PROG_TEST_RUN.

    The real program runs, with its real tail calls and its real effects on maps. So a jump can be seen, or a program
    tried before it is put in. No packet leaves or enters the machine.
    """
    held = service_of(request).registry.programs.get(name)
    service = service_of(request)
    result = await run_held_program(held, bytes.fromhex(body.packet), body.repeat, lambda: service.is_stopping)
    if result is None:
        raise HttpProblem("draining", "the service is stopping; send the request again when it is back")
    return Json(
        responses.Run(
            returned=result.returned,
            meaning=result.meaning,
            duration_ns=result.duration,
            packet=result.packet.hex(),
        )
    )
