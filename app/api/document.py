"""The OpenAPI document: what FastAPI finds out of the routes, the form of problems, and how it is known who asks."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.access.rights import Right
from app.api.authorization import RIGHTS, Authentication
from app.api.openapi import Problem

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
