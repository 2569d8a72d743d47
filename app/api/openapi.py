"""The OpenAPI document: what routes add to it, and how it is put together.

Routes build their `responses` with `answers`, `no_content` and `problems`. `document` adds the schema of a problem and
how callers are authenticated, and writes schemas in the form that generators of clients understand.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from app.access.rights import Right
from app.api.authorization import CHANGING, Authentication
from app.api.problems import MEDIA_TYPE, problem_type_of

Responses = dict[int | str, dict[str, Any]]

# The codes of the problems that every route of every application can answer, and those of the service of a node.
COMMON: Final = (
    "validation",
    "unauthenticated",
    "forbidden",
    "actor-not-allowed",
    "host-not-allowed",
    "too-many-requests",
    "headers-too-large",
    "internal",
    "draining",
)
_ALWAYS: Final = (*COMMON, "keeper-unavailable")
# Further codes: those of every route with a body, and those of every route that asks the kernel.
BODY: Final = ("malformed-json", "request-timeout", "body-too-large", "media-type-unsupported")
KERNEL: Final = ("kernel-permission", "kernel-error")

# Integers beyond these bounds do not fit into the 32 bits that generators give to an integer without a format.
_INT32: Final = (-(1 << 31), (1 << 31) - 1)

_EXAMPLE_REQUEST_ID: Final = "9f1c2d3e4b5a69788796a5b4c3d2e1f0"


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string"}}}


# Headers of responses, for the `headers` of `answers`.
ETAG: Final = _header("ETag", "The entity tag. It changes when the kernel holds something else.")
DRY_RUN: Final = _header("Dry-Run", "`true` after a dry run.")
CHANGE_ID: Final = _header("Change-Id", "The id of the change that was made.")
PREFERENCE: Final = _header("Preference-Applied", "`return=minimal` if the entries of the change are left out.")
LOCATION: Final = _header("Location", "The path of the new resource.")

# Headers of problems, by status.
_PROBLEM_HEADERS: Final = {
    401: _header("WWW-Authenticate", "How to authenticate (RFC 6750)."),
    429: _header("Retry-After", "How many seconds to wait before the next attempt."),
}

_ACTOR_PARAMETER: Final = {
    "name": "Jumptable-Actor",
    "in": "header",
    "required": False,
    "description": "Who has asked a fleet for the change. Only for its agent: see `actor-not-allowed`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    "example": "alice",
}
_TOKEN: Final = {"type": "http", "scheme": "bearer", "description": "A token that `jumptable token new` has printed."}
_CERTIFICATE: Final = {"type": "mutualTLS", "description": "A client certificate of the configured CA."}


class Problem(BaseModel):
    """An error, as RFC 9457 defines it. Further members give the facts of its code."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/entry-empty"])
    title: str = Field(examples=["The entry is empty"])
    status: int = Field(examples=[404])
    detail: str = Field(
        examples=["entry 3 is empty; PUT a program there first, or send ?allow_missing=true with a DELETE"]
    )
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


def no_content(description: str, headers: dict[str, Any] = DRY_RUN | CHANGE_ID) -> Responses:
    """Return the `responses` of a route for a success without a body (204)."""
    return {204: {"description": description, "headers": headers}}


def problems(*codes: str, in_body: str | None = None, always: Iterable[str] = _ALWAYS) -> Responses:
    """Return the `responses` of a route for its problems, by status, with an example of each code.

    Args:
        codes: The codes of the route's own problems. Those of every route are added.
        in_body: One of these codes that the body of the request causes. Its status is then 422.
        always: The codes of every route of the application.
    """
    responses: Responses = {}
    for code in dict.fromkeys((*codes, *always)):
        problem_type = problem_type_of(code)
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


def document(
    app: FastAPI,
    authentication: Authentication,
    rights: Mapping[str, Right],
    tags: Mapping[str, str],
    *,
    has_agents: bool,
) -> dict[str, Any]:
    """Make the OpenAPI document of an application.

    Args:
        app: The application.
        authentication: How it knows who asks.
        rights: By operation id, the right that it needs.
        tags: The tags of its routes with their descriptions, in the order in which the document shows them.
        has_agents: Agents of a fleet may be among its callers, and name who asks.
    """
    schema = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description.strip(),
        contact={"name": "The maintainers of jumptable"},
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "The service that answers with this document."}],
        tags=[{"name": name, "description": description} for name, description in tags.items()],
        routes=app.routes,
    )
    schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
    for each in _schemas(schema):
        _simplify(each)
        if "anyOf" in each:
            each["anyOf"] = _alternatives(each["anyOf"], schema["components"]["schemas"])
    for parameter in _parameters(schema):
        _drop_null(parameter)
    _add_security(schema, authentication, rights)
    if has_agents and authentication.peers is not None:
        _add_actor_header(schema, rights)
    return schema


def _schemas(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each JSON schema that describes a value: all but the conditions in `if`, `then`, `else` and `not`."""
    found = list(document["components"]["schemas"].values())
    for path in document["paths"].values():
        for operation in path.values():
            parts = [*operation.get("parameters", []), operation.get("requestBody", {})]
            for response in operation["responses"].values():
                parts += [response, *response.get("headers", {}).values()]
            for part in parts:
                media = part.get("content", {}).values()
                found += [each["schema"] for each in (part, *media) if "schema" in each]
    while found:
        schema = found.pop()
        yield schema
        found += schema.get("properties", {}).values()
        for keyword in ("anyOf", "oneOf", "allOf"):
            found += schema.get(keyword, [])
        for keyword in ("items", "additionalProperties"):
            if isinstance(schema.get(keyword), dict):
                found.append(schema[keyword])


def _parameters(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schema of each parameter in the document."""
    for path in document["paths"].values():
        for operation in path.values():
            yield from (parameter["schema"] for parameter in operation.get("parameters", []))


def _simplify(schema: dict[str, Any]) -> None:
    """Write one schema in the form that generators of clients understand. It allows the same values as before."""
    # Generators name types by titles. Those of pydantic repeat the names of members, which clash with other types.
    schema.pop("title", None)
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if schema.get("type") == "integer" and keyword in schema:
            schema[keyword] = int(schema[keyword])  # FastAPI makes a float of it
    if schema.get("type") == "integer":
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        schema.setdefault("format", "int32" if _INT32[0] <= low and high <= _INT32[1] else "int64")


def _alternatives(schemas: list[dict[str, Any]], components: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of an anyOf, each once, and those that require more members first.

    FastAPI lists the models of a response twice. Generated clients take the first alternative that fits.
    """
    once = [each for number, each in enumerate(schemas) if each not in schemas[:number]]

    def required(schema: dict[str, Any]) -> int:
        return len(components.get(schema.get("$ref", "").rpartition("/")[2], schema).get("required", ()))

    return sorted(once, key=required, reverse=True)


def _drop_null(schema: dict[str, Any]) -> None:
    """Take null out of the schema of a parameter: a parameter is left out, and has no way to say null."""
    kinds = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])


def _add_actor_header(schema: dict[str, Any], rights: Mapping[str, Right]) -> None:
    """Add the header Jumptable-Actor to the operations that change something."""
    for path in schema["paths"].values():
        for operation in path.values():
            if rights[operation["operationId"]] in CHANGING:
                operation.setdefault("parameters", []).append(_ACTOR_PARAMETER)


def _add_security(schema: dict[str, Any], authentication: Authentication, rights: Mapping[str, Right]) -> None:
    """Add the ways to authenticate to the document. There are none if only peers of the unix socket are known."""
    schemes: dict[str, Any] = {}
    if authentication.tokens is not None:
        schemes["token"] = _TOKEN
    if authentication.certificates:
        schemes["certificate"] = _CERTIFICATE
    if not schemes:
        schema["security"] = []
        return
    schema["components"]["securitySchemes"] = schemes
    security: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    if authentication.peers is not None:
        security.append({})  # on the unix socket the kernel says who the caller is
    for path in schema["paths"].values():
        for operation in path.values():
            right = rights[operation["operationId"]]
            operation["security"] = [] if right is Right.NONE else security
            if right is Right.DOCS and authentication.tokens is not None and {} not in security:
                operation["security"] = [*security, {}]  # without a token it tells less
