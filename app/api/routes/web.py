"""The files of the pages for browsers: that of a node, and that of the fleet."""

import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

import app
from app.api.openapi import Responses, answers
from app.api.problems import HttpProblem
from app.api.routing import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["service"])

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_IMPORTED_NAME: Final = re.compile(rb"""(\b(?:from|import)\s*\(?\s*)(["'])([@a-z][\w@/-]*)\2""")

# Scripts and styles are files of this service, and nothing else is: no inline code, no other site, no frame around the
# page. Trusted Types forbid to make HTML of text (CSP Level 3; Trusted Types, W3C).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Cache-Control": "private, no-cache",  # kept, and asked for again: 304 unless the service is another one
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept, Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    media_type: str
    content: bytes
    compressed: bytes
    etag: str


def _files() -> dict[str, _File]:
    """Read the files of the page, by path.

    They stay in memory, as the process that serves them may not be allowed to read where they are. Modules import
    libraries by name, as in `from "preact"`. Browsers need a path, and an import map would be inline code, so the names
    become paths here.
    """
    root = Path(app.__path__[0], "web")  # as it is now: the process may have got other ways to its files
    libraries = json.loads((root / "vendor" / "vendor.json").read_bytes())
    paths = {each["import"].encode(): f"/web/vendor/{each['file']}".encode() for each in libraries}

    def with_path(found: re.Match[bytes]) -> bytes:
        return found[1] + found[2] + paths[found[3]] + found[2]

    files = {}
    for file in root.rglob("*"):
        suffix = file.suffix
        if suffix not in _MEDIA_TYPES:
            continue
        content = file.read_bytes()
        if suffix in {".js", ".mjs"}:
            content = _IMPORTED_NAME.sub(with_path, content)
        etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
        files[str(file.relative_to(root))] = _File(
            _MEDIA_TYPES[suffix], content, gzip.compress(content, 9, mtime=0), etag
        )
    return files


_FILES: Final = _files()


@router.get("/web/{path:path}", operation_id="get_web_file", include_in_schema=False, response_class=Response)
async def get_web_file(request: Request, path: str) -> Response:
    """Return a file that the page needs."""
    if path not in _FILES:
        raise HttpProblem("not-found", f"there is no file {path[:64]!r} of the page; open / in a browser")
    return _sent(request, _FILES[path])


def index_or_page(index: type[BaseModel]) -> Responses:
    """Return the `responses` of a route that answers with an index of this model, and to a browser with a page."""
    told = answers(index, "The index; to a browser (Accept: text/html) the page.")[200]
    return {
        200: {**told, "content": {"text/html": {"schema": {"type": "string"}}}},
        304: {"description": "The page is still that of If-None-Match."},
    }


def page(request: Request, path: str) -> Response:
    """Return a page, by the path of its file below `app/web`."""
    return _sent(request, _FILES[path])


def is_for_browser(request: Request) -> bool:
    """Return whether the header Accept (RFC 9110, 12.5.1) of a request names text/html, and does not refuse it."""
    for part in request.headers.get("accept", "").split(","):
        media_type, *parameters = (each.strip().lower() for each in part.split(";"))
        if media_type == "text/html":
            return not any(re.fullmatch(r"q=0(\.0*)?", each) for each in parameters)
    return False


def _sent(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    content = file.content
    if re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", request.headers.get("accept-encoding", "")):
        content, headers["Content-Encoding"] = file.compressed, "gzip"
    return Response(content, headers=headers, media_type=file.media_type)
