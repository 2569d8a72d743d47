"""The OpenAPI document, and Swagger UI to read it."""

import importlib.resources
import json
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.api.problems import HttpProblem
from app.api.routing import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["service"])

# Swagger UI's files, as that package carries them: no page here needs the internet. In memory, as the process that
# serves them may not be allowed to read where they are.
_ASSETS: Final = {
    name: (importlib.resources.files("fastapi_offline").joinpath("static", name).read_bytes(), media_type)
    for name, media_type in (
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui.css", "text/css"),
        ("favicon.png", "image/png"),
    )
}


@router.get("/openapi.json", operation_id="get_openapi", include_in_schema=False)
async def get_openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return Response(json.dumps(request.app.openapi(), ensure_ascii=False) + "\n", media_type="application/json")


@router.get("/docs", operation_id="get_docs", include_in_schema=False, response_class=HTMLResponse)
async def get_docs() -> Response:
    """Return the page of Swagger UI."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="jumptable",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="/docs/assets/favicon.png",
        swagger_ui_parameters={"persistAuthorization": False},  # a token is forgotten with the page
    )


@router.get("/docs/assets/{name}", operation_id="get_docs_asset", include_in_schema=False, response_class=Response)
async def get_docs_asset(name: str) -> Response:
    """Return a file that the page needs."""
    if name not in _ASSETS:
        raise HttpProblem("not-found", f"there is no file {name[:64]!r}; there are: {', '.join(_ASSETS)}")
    content, media_type = _ASSETS[name]
    return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
