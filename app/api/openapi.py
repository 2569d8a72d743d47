"""The OpenAPI document: what routes add to it, and how it is put together.

Routes build their `responses` with `answers`, `no_content` and `problems`. `document` adds the schema of a problem and
how callers are authenticated.
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from app.access.rights import Right
from app.api.authorization import RIGHTS, Authentication
from app.api.problems import MEDIA_TYPE, PROBLEMS

Responses = dict[int | str, dict[str, Any]]

# The codes of the problems that every route can answer.
_ALWAYS: Final = (
    "validation",
    "unauthenticated",
    "forbidden",
    "host-not-allowed",
    "too-many-requests",
    "headers-too-large",
    "internal",
    "draining",
    "keeper-unavailable",
)
# Further codes: those of every route with a body, and those of every route that asks the kernel.
BODY: Final = ("malformed-json", "request-timeout", "body-too-large", "media-type-unsupported")
KERNEL: Final = ("kernel-permission", "kernel-error")

_EXAMPLE_REQUEST_ID: Final = "9f1c2d3e4b5a69788796a5b4c3d2e1f0"


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string"}}}


# Headers of responses, for the `headers` of `answers`.
ETAG: Final = _header("ETag", "The entity tag. It changes when the kernel holds something else.")
DRY_RUN: Final = _header("Dry-Run", "`true` after a dry run.")
CHANGE_ID: Final = _header("Change-Id", "The id of the change that was made.")
LOCATION: Final = _header("Location", "The path of the new resource.")

# Headers of problems, by status.
_PROBLEM_HEADERS: Final = {
    401: _header("WWW-Authenticate", "How to authenticate (RFC 6750)."),
    429: _header("Retry-After", "How many seconds to wait before the next attempt."),
}

_TOKEN: Final = {"type": "http", "scheme": "bearer", "description": "A token that `jumptable token new` has printed."}
_CERTIFICATE: Final = {"type": "mutualTLS", "description": "A client certificate of the configured CA."}


class Problem(BaseModel):
    """An error, as RFC 9457 defines it. Further members give the facts of its code."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/entry-empty"])
    title: str = Field(examples=["The entry is empty"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["entry 3 is empty"])
    code: str = Field(examples=["entry-empty"])
    request_id: str = Field(examples=[_EXAMPLE_REQUEST_ID])


def answers(model: Any, description: str, status: int = 200, *, headers: dict[str, Any] | None = None) -> Responses:
    """Return the `responses` of a route for a success.

    Args:
        model: The type of the body.
        description: What the answer means.
        status: The status of the answer.
        headers: Its headers, such as `ETAG | DRY_RUN`.
    """
    return {status: {"model": model, "description": description, "headers": headers or {}}}


def no_content(description: str) -> Responses:
    """Return the `responses` of a route for a success without a body (204)."""
    return {204: {"description": description, "headers": DRY_RUN | CHANGE_ID}}


def problems(*codes: str, in_body: str | None = None) -> Responses:
    """Return the `responses` of a route for its problems, by status, with an example of each code.

    Args:
        codes: The codes of the route's own problems. Those of every route are added.
        in_body: One of these codes that the body of the request causes. Its status is then 422.
    """
    responses: Responses = {}
    for code in dict.fromkeys((*codes, *_ALWAYS)):
        problem_type = PROBLEMS[code]
        status = 422 if in_body == code else problem_type.status
        response = responses.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        if status in _PROBLEM_HEADERS:
            response["headers"] = _PROBLEM_HEADERS[status]
        response["description"] += f"{'; ' if response['description'] else ''}{code}: {problem_type.title}"
        response["content"][MEDIA_TYPE]["examples"][code] = {
            "summary": problem_type.title,
            "value": {
                "type": f"/problems/{code}",
                "title": problem_type.title,
                "status": status,
                "detail": problem_type.remedy,
                "code": code,
                "request_id": _EXAMPLE_REQUEST_ID,
            },
        }
    return responses


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application. It is built on the first call."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description.strip(), routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        _add_security(schema, app.state.authentication)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_security(schema: dict[str, Any], authentication: Authentication) -> None:
    """Add the ways to authenticate to the document. There are none if only peers of the unix socket are known."""
    schemes: dict[str, Any] = {}
    if authentication.tokens is not None:
        schemes["token"] = _TOKEN
    if authentication.certificates:
        schemes["certificate"] = _CERTIFICATE
    if not schemes:
        return
    schema["components"]["securitySchemes"] = schemes
    security: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    if authentication.peers is not None:
        security.append({})  # on the unix socket the kernel says who the caller is
    for path in schema["paths"].values():
        for operation in path.values():
            if RIGHTS[operation["operationId"]] is not Right.NONE:
                operation["security"] = security
