"""What the code of a problem means."""

from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.encoding.responses import Json
from app.api.openapi import answers, problems
from app.api.problems import PROBLEMS, HttpProblem, ProblemType
from app.api.routing import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["service"])


class Explanation(BaseModel):
    """What the code of a problem means."""

    code: str = Field(examples=["entry-empty"])
    status: int = Field(examples=[404])
    title: str
    remedy: str


def explanation(code: str, problem_types: Mapping[str, ProblemType]) -> Response:
    """Return the answer that explains one of these problems.

    Raises:
        HttpProblem: not-found: it is none of them.
    """
    if code not in problem_types:
        raise HttpProblem("not-found", f"there is no problem {code[:64]!r}; there are: {', '.join(problem_types)}")
    kind = problem_types[code]
    return Json(Explanation(code=code, status=kind.status, title=kind.title, remedy=kind.remedy))


@router.get(
    "/problems/{code}",
    operation_id="explain_problem",
    summary="Tell what a problem's code means",
    response_model=Explanation,
    responses=answers(Explanation, "What it means, and what to do.") | problems("not-found"),
)
async def explain_problem(code: str) -> Response:
    """Explain a problem. The `type` of a problem leads here."""
    return explanation(code, PROBLEMS)
