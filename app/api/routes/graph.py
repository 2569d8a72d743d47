"""Who jumps where: /graph."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.authorization import grant_of
from app.api.dependencies import check_held, service_of
from app.api.encoding.graph import graph_chunks
from app.api.encoding.pictures import dot, mermaid
from app.api.encoding.responses import long_json
from app.api.openapi import KERNEL, answers, problems
from app.api.routing import StrictRoute
from app.api.schemas import fields, responses
from app.api.visibility import visible_graph
from app.service.errors import ProgramUnknown
from app.service.graph.findings import find_in_part
from app.service.graph.reader import in_slices

router = APIRouter(route_class=StrictRoute, tags=["graph"])

_PICTURES = {"dot": (dot, "text/vnd.graphviz"), "mermaid": (mermaid, "text/vnd.mermaid")}

_ANSWERS = answers(responses.Graph, "The graph.")
_ANSWERS[200]["content"] = {media_type: {"schema": {"type": "string"}} for _, media_type in _PICTURES.values()}


@router.get(
    "/graph",
    operation_id="get_graph",
    summary="Tell who jumps where",
    response_model=responses.Graph,
    responses=_ANSWERS | problems("map-unknown", "map-unavailable", "program-unknown", "program-unavailable", *KERNEL),
)
async def get_graph(
    request: Request,
    map: Annotated[fields.Name | None, Query(description="Only what is connected with this held map.")] = None,  # noqa: A002
    program: Annotated[fields.Name | None, Query(description="Only what is connected with this held program.")] = None,
    format: Annotated[  # noqa: A002
        Literal["json", "dot", "mermaid"],
        Query(description="JSON, or the text of a picture for Graphviz (`dot -Tsvg`) or Mermaid."),
    ] = "json",
) -> Response:
    """Return all loaded programs and program arrays, the jumps between them, and what follows from that.

    Jumps are found in the code that the kernel has loaded. It also says what is attached, which entries are never
    reached, which jumps fall through, and whether programs lead to each other. Callers with bounds get the maps and
    entries within them.
    """
    registry, grant = service_of(request).registry, grant_of(request.scope)
    arrays, programs = list[int](), list[int]()
    if map is not None:
        check_held(request, map)
        arrays = [registry.maps.get(map).opened().id] if grant.has_map(map) else []
    if program is not None:
        if not grant.has_program(program):
            raise ProgramUnknown(program)
        programs = [registry.programs.get(program).opened().id]
    graph = await service_of(request).graph.read()
    part = await in_slices(visible_graph(grant, graph))
    if map is not None or program is not None:
        part = part.around(programs, arrays)
    findings = await in_slices(find_in_part(graph, part))
    if format == "json":
        return long_json(graph_chunks(part, findings))
    draw, media_type = _PICTURES[format]
    return Response(draw(part, findings), media_type=media_type)
