"""Object files: /objects."""

import asyncio
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.audit import entries_facts
from app.api.dependencies import ConfirmWithin, DryRun, Note, add_audit_facts, context_of, service_of
from app.api.encoding.changes import change_chunks, entries_chunks
from app.api.encoding.responses import Json
from app.api.openapi import BODY, KERNEL, answers, no_content, problems
from app.api.preconditions import OBJECT_PARAMETERS, Conditions
from app.api.problems import HttpProblem
from app.api.routing import CONTENT, ObjectRoute
from app.api.schemas import object_requests, object_responses, parameters
from app.service.loading.object_files import ObjectPrecondition, ObjectResult

router = APIRouter(route_class=ObjectRoute, tags=["objects"])

_LOADING = (
    "file-not-allowed", "file-unusable", "file-changing", "object-unreadable", "object-unsupported",
    "object-too-large", "object-timeout", "object-refused", "relocation-failed", "kfunc-missing",
    "program-type-unknown", "program-type-not-allowed", "program-not-found", "program-incompatible", "map-not-found",
    "map-not-replaceable", "variable-unknown", "variable-too-long", "values-on-replaced-map", "pinning-refused",
    "loader-unavailable",
)  # fmt: skip
_CHANGING = (
    "name-taken", "in-use", "change-conflict", "change-not-revertible", "map-frozen", "map-unavailable", "pin-moved",
    "pin-not-allowed", "pin-unusable", "not-a-program-array", "program-busy", "index-out-of-range", "read-only",
    "journal-unavailable", "malformed-header", "precondition-failed",
)  # fmt: skip


@router.get(
    "/objects",
    operation_id="list_objects",
    summary="List the object files that are loaded",
    response_model=object_responses.ObjectFiles,
    responses=answers(object_responses.ObjectFiles, "All of them, by name.") | problems(),
)
async def list_objects(request: Request) -> Response:
    """List the object files that are loaded, by name. Those that could not be loaded again yet are among them."""
    objects = service_of(request).objects
    told = [object_responses.ObjectFile.of(each) for each in objects]
    upload, object_dirs = objects.options.upload, list(objects.options.object_dirs)
    return Json(object_responses.ObjectFiles(objects=told, upload=upload, object_dirs=object_dirs))


@router.get(
    "/objects/{name}",
    operation_id="get_object",
    summary="Tell all of one object file",
    response_model=object_responses.ObjectFile,
    responses=answers(object_responses.ObjectFile, "The object file.", headers=openapi.ETAG)
    | problems("object-unknown"),
)
async def get_object(request: Request, name: parameters.ObjectName) -> Response:
    """Return an object file: its programs and maps, which of them are held, and the version before."""
    loaded = service_of(request).objects.get(name)
    return Json(object_responses.ObjectFile.of(loaded), headers={"ETag": loaded.etag})


@router.put(
    "/objects/{name}",
    operation_id="load_object",
    summary="Load an object file, or a new version of it",
    response_model=object_responses.LoadedObjectFile | object_responses.DryLoadedObjectFile,
    responses=answers(
        object_responses.LoadedObjectFile | object_responses.DryLoadedObjectFile,
        "A new version is loaded; or the same file was loaded with the same options already, and nothing was.",
        headers=openapi.ETAG | openapi.DRY_RUN | openapi.CHANGE_ID,
    )
    | answers(
        object_responses.LoadedObjectFile | object_responses.DryLoadedObjectFile,
        "Loaded, and held from now on.",
        201,
        headers=openapi.ETAG | openapi.DRY_RUN | openapi.CHANGE_ID | openapi.LOCATION,
    )
    | problems(*_LOADING, *_CHANGING, *BODY, *KERNEL, in_body="index-out-of-range"),
    openapi_extra=OBJECT_PARAMETERS
    | {
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def load_object(
    request: Request,
    name: parameters.ObjectName,
    body: object_requests.LoadObject,
    note: Note = None,
    confirm_within: ConfirmWithin = None,
    dry_run: DryRun = False,
    options: Annotated[
        str | None,
        Query(
            description="For application/octet-stream: how to load the file, as JSON: the other body without `file`.",
            examples=['{"variables":{"verdict":1}}'],
            pattern=r"^\s*\{",
        ),
    ] = None,
) -> Response:
    """Load an eBPF object file with libbpf. Its programs and arrays are then held as NAME.program and NAME.map.

    The body is JSON that names a file of the service's machine, or the file itself as application/octet-stream: then
    `options` says how to load it.
    All is checked first. If the kernel refuses a program, or an entry cannot be changed, everything is as before.
    """
    service, content = service_of(request), request.scope.get(CONTENT)
    if content is None and not body.file:
        raise HttpProblem("validation", "body.file: name the file, or send it as application/octet-stream")
    if content is None and options is not None:
        raise HttpProblem("validation", "query.options: it is for application/octet-stream; put them into the body")
    if content is not None and body.file:
        raise HttpProblem("validation", "query.options: the body is the file itself, so leave `file` out")
    if service.objects.find(name) is None:
        request.app.state.limits.check_held(len(service.registry.maps) + len(service.registry.programs))
    result = await service.objects.put(
        name,
        content,
        body.specification(),
        context_of(request.scope, note, confirm_within),
        precondition=_precondition(request),
        dry_run=dry_run,
    )
    changes = [applied.change for _, applied in result.applied if applied.change is not None]
    if not dry_run:
        version = result.loaded.version
        add_audit_facts(
            request.scope,
            object=name,
            version=version.number,
            file=version.specification.file,
            sha256=version.digest,
            changes=[{"change": each.id, "map": each.map, **entries_facts(each.entries)} for each in changes],
        )
    headers = {"ETag": result.loaded.etag}
    if changes:
        headers["Change-Id"] = ", ".join(str(each.id) for each in changes)
    if dry_run:
        headers["Dry-Run"] = "true"
    elif result.is_new:
        headers["Location"] = f"/objects/{name}"
    await asyncio.sleep(0)  # others have their turn
    return Json(b"".join(_encoded(result, is_kept=service.objects.are_kept)), 201 if result.is_new else 200, headers)


def _encoded(result: ObjectResult, *, is_kept: bool) -> Iterator[bytes]:
    """Encode the answer. Changes and entries may be many, so pydantic does not encode these."""
    will_be_pinned = result.fit is not None and is_kept
    told = object_responses.ObjectFile.of(result.loaded, will_be_pinned=will_be_pinned).model_dump_json()
    changes = [applied.change for _, applied in result.applied if applied.change is not None]
    yield f'{{"object":{told},"changes":['.encode()
    for place, change in enumerate(changes):
        yield b"," if place else b""
        yield from change_chunks(change)
    yield b"]"
    if result.fit is not None:
        yield f',"fit":"{result.fit}","entries":['.encode()
        for place, (map_, entries) in enumerate(result.entries):
            yield b"," if place else b""
            empty = object_responses.EntriesOfMap(map=map_, entries=[]).model_dump_json()
            yield from entries_chunks(empty, entries)
        yield b"]"
    yield b"}"


@router.delete(
    "/objects/{name}",
    operation_id="unload_object",
    summary="Unload an object file",
    status_code=204,
    responses=no_content("Unloaded.")
    | problems(
        "object-unknown", "in-use", "read-only", "journal-unavailable", "malformed-header", "precondition-failed",
        *KERNEL,
    ),
    openapi_extra=OBJECT_PARAMETERS,
)  # fmt: skip
async def unload_object(request: Request, name: parameters.ObjectName, dry_run: DryRun = False) -> Response:
    """Release the programs and arrays of an object file. The entries of its own arrays go with them.

    While entries of other held maps hold its programs it is refused with 409.
    """
    await service_of(request).objects.delete(
        name, context_of(request.scope), precondition=_precondition(request), dry_run=dry_run
    )
    if not dry_run:
        add_audit_facts(request.scope, object=name)
    return Response(status_code=204, headers={"Dry-Run": "true"} if dry_run else None)


def _precondition(request: Request) -> ObjectPrecondition:
    conditions = Conditions.of(request)

    def check(etag: str | None) -> None:
        header = conditions.failed(etag)
        if header is not None:
            there = "nothing is loaded under the name" if etag is None else f"the tag of what is loaded is {etag}"
            detail = f"{header} does not hold: {there}; if you still want the change, send it with that"
            current = None if etag is None else {"etag": etag}
            raise HttpProblem("precondition-failed", detail, facts={"current": current})

    return check
