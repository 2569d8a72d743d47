"""What the OpenAPI document tells of each route beyond what FastAPI finds out by itself."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from app.access.rights import Right
from app.api.authorization import RIGHTS, Authentication
from app.api.problems import MEDIA_TYPE, PROBLEMS

Responses = dict[int | str, dict[str, Any]]

ETAG: dict[str, Any] = {"ETag": {"description": "Changes with what the kernel holds.", "schema": {"type": "string"}}}
DRY_RUN: dict[str, Any] = {"Dry-Run": {"description": "`true` after a dry run.", "schema": {"type": "string"}}}

CHANGE_ID: dict[str, Any] = {"Change-Id": {"description": "Of what was applied.", "schema": {"type": "string"}}}
LOCATION: dict[str, Any] = {"Location": {"description": "Where it is from now on.", "schema": {"type": "string"}}}

# By status: headers that every such problem has.
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "How to tell who asks (RFC 6750).", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds until it may be tried again.", "schema": {"type": "string"}}},
}

# What every route can answer, and what every route with a body can.
_ALWAYS = (
    "validation",
    "unauthenticated",
    "forbidden",
    "host-not-allowed",
    "too-many-requests",
    "headers-too-large",
    "internal",
    "draining",
)
BODY = ("malformed-json", "request-timeout", "body-too-large", "media-type-unsupported")
KERNEL = ("kernel-permission", "kernel-error")


class Problem(BaseModel):
    """RFC 9457, with the facts of its code beside the standard members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/entry-empty"])
    title: str = Field(examples=["The entry is empty"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["entry 3 is empty"])
    code: str = Field(examples=["entry-empty"])
    request_id: str = Field(examples=["9f1c2d3e4b5a69788796a5b4c3d2e1f0"])


def problems(*codes: str, in_body: str | None = None) -> Responses:
    """The `responses` of a route for these codes, by status, each with an example; `in_body`: one that is 422 here."""
    responses: Responses = {}
    for code in dict.fromkeys((*codes, *_ALWAYS)):
        kind = PROBLEMS[code]
        status = 422 if in_body == code else kind.status
        response = responses.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        if status in _HEADERS:
            response["headers"] = _HEADERS[status]
        response["description"] += f"{'; ' if response['description'] else ''}{code}: {kind.title}"
        response["content"][MEDIA_TYPE]["examples"][code] = {
            "summary": kind.title,
            "value": {
                "type": f"/problems/{code}",
                "title": kind.title,
                "status": status,
                "detail": kind.remedy,
                "code": code,
                "request_id": "9f1c2d3e4b5a69788796a5b4c3d2e1f0",
            },
        }
    return responses


def no_content(description: str) -> Responses:
    """The `responses` of a route for a success that answers nothing."""
    return {204: {"description": description, "headers": DRY_RUN | CHANGE_ID}}


def answers(model: Any, description: str, status: int = 200, *, headers: dict[str, Any] | None = None) -> Responses:
    """The `responses` of a route for a success."""
    return {status: {"model": model, "description": description, "headers": headers or {}}}


_TOKEN: Final = {"type": "http", "scheme": "bearer", "description": "What `jumptable token new` has printed."}
_CERTIFICATE: Final = {
    "type": "mutualTLS",
    "description": "A certificate of the configured CA.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of this application, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description.strip(), routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        _tell_who_is_asked(schema, app.state.authentication)
        app.openapi_schema = schema
    return app.openapi_schema


def _tell_who_is_asked(schema: dict[str, Any], authentication: Authentication) -> None:
    """Nothing where whoever can connect is let in, and where the unix socket tells who it is."""
    schemes: dict[str, Any] = {}
    if authentication.tokens is not None:
        schemes["token"] = _TOKEN
    if authentication.certificates:
        schemes["certificate"] = _CERTIFICATE
    if not schemes:
        return
    schema["components"]["securitySchemes"] = schemes
    wanted: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    if authentication.peers is not None:
        wanted.append({})  # over the unix socket it is known without
    for path in schema["paths"].values():
        for operation in path.values():
            if RIGHTS[operation["operationId"]] is not Right.NONE:
                operation["security"] = wanted
