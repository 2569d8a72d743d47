"""Entity tags and conditional requests (RFC 9110, 8.8.3 and 13)."""

import re
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from app.api.problems import HttpProblem

_ETAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
# Each comma and blank can match in one way only, so no header makes the match slow.
_ETAG_LIST: Final = re.compile(rf"[ \t,]*{_ETAG}(?:[ \t]*,(?:[ \t]*{_ETAG})?)*[ \t]*")

_EXAMPLE_ETAG: Final = '"0f1e2d3c4b5a6978"'


def header_parameter(name: str, description: str, example: str) -> dict[str, Any]:
    """Return a header of requests as the OpenAPI document describes it."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


# These headers as the OpenAPI document describes them: for changes of an entry, for changes of a table, and for reads.
# Routes do not declare them as parameters, because FastAPI drops all but one of several lines of the same header.
PARAMETERS: Final[dict[str, Any]] = {
    "parameters": [
        header_parameter(
            "If-Match",
            "Make the change only if the entry has one of these tags. `*`: only if the entry is not empty.",
            _EXAMPLE_ETAG,
        ),
        header_parameter(
            "If-None-Match",
            "Make the change only if the entry has none of these tags. `*`: only if the entry is empty.",
            "*",
        ),
    ]
}
TABLE_PARAMETERS: Final = {
    "parameters": [
        header_parameter(
            "If-Match",
            "Make the change only if the table has one of these tags. `*`: in any case.",
            _EXAMPLE_ETAG,
        ),
        header_parameter(
            "If-None-Match",
            "Make the change only if the table has none of these tags. `*`: never.",
            "*",
        ),
    ]
}
OBJECT_PARAMETERS: Final = {
    "parameters": [
        header_parameter(
            "If-Match",
            "Only if what is loaded has one of these tags. `*`: only if something is loaded under the name.",
            _EXAMPLE_ETAG,
        ),
        header_parameter("If-None-Match", "`*`: only if nothing is loaded under the name.", "*"),
    ]
}
READ_PARAMETERS: Final = {
    "parameters": [
        header_parameter("If-None-Match", "Answer 304 if the resource still has one of these tags.", _EXAMPLE_ETAG),
    ]
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """If-Match and If-None-Match of a request: the tags as they were sent, or `["*"]`, or None without the header."""

    if_match: list[str] | None
    if_none_match: list[str] | None

    @classmethod
    def of(cls, request: Request) -> "Conditions":
        """Return both conditions of a request.

        Raises:
            HttpProblem: A header is malformed.
        """
        return cls(_tags(request, "If-Match"), _tags(request, "If-None-Match"))

    @classmethod
    def for_reading(cls, request: Request) -> "Conditions":
        """Return the conditions of a GET: If-None-Match alone. A GET ignores If-Match.

        Raises:
            HttpProblem: The header is malformed.
        """
        return cls(None, _tags(request, "If-None-Match"))

    def not_modified(self, etag: str) -> bool:
        """Return whether a GET of a resource with this tag is answered with 304."""
        return self.if_none_match is not None and _matches_weakly(etag, self.if_none_match)

    def failed(self, etag: str | None) -> str | None:
        """Return the name of the header that forbids a change, or None if the change may be made.

        Args:
            etag: The present tag of what is to be changed; None if it does not exist.
        """
        # If-Match compares strongly, so a weak tag never matches. If-None-Match compares weakly (RFC 9110, 8.8.3.2).
        if self.if_match is not None and (etag is None or not {"*", etag} & set(self.if_match)):
            return "If-Match"
        if self.if_none_match is not None and etag is not None and _matches_weakly(etag, self.if_none_match):
            return "If-None-Match"
        return None


def _matches_weakly(etag: str, tags: list[str]) -> bool:
    return any(tag == "*" or tag.removeprefix("W/") == etag for tag in tags)


def _tags(request: Request, header: str) -> list[str] | None:
    lines = request.headers.getlist(header)
    if not lines:
        return None
    text = ", ".join(lines)
    if text.strip(" \t") == "*":
        return ["*"]
    if not _ETAG_LIST.fullmatch(text):
        detail = (
            f"{header} is neither * nor a list of quoted tags; send tags as ETag shows them, such as {_EXAMPLE_ETAG}"
        )
        raise HttpProblem("malformed-header", detail)
    return re.findall(_ETAG, text)
