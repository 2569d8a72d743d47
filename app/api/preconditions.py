"""Entity tags and conditional requests (RFC 9110, 8.8.3 and 13)."""

import re
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from app.api.problems import HttpProblem

_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
# Of commas and blanks each can be taken in one way only, so that no header makes the match slow.
_TAGS: Final = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,(?:[ \t]*{_TAG})?)*[ \t]*")

# For the OpenAPI document: FastAPI itself would drop all but one line of a header that came in several.
PARAMETERS: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": meaning,
            "schema": {"type": "string"},
            "example": example,
        }
        for name, meaning, example in (
            (
                "If-Match",
                "Only if the entry has one of these tags; `*`: only if it is not empty.",
                '"0f1e2d3c4b5a6978"',
            ),
            ("If-None-Match", "Only if the entry has none of these tags; `*`: only if it is empty.", "*"),
        )
    ]
}
TABLE_PARAMETERS: Final = {"parameters": [
    PARAMETERS["parameters"][0] | {"description": "Only if the table has one of these tags; `*`: whatever it has."},
    PARAMETERS["parameters"][1] | {"description": "Only if the table has none of these tags; `*`: never."},
]}  # fmt: skip
READ_PARAMETERS: Final = {"parameters": [PARAMETERS["parameters"][1] | {
    "description": "304 if the resource still has one of these tags.", "example": '"0f1e2d3c4b5a6978"',
}]}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conditions:
    """If-Match and If-None-Match of a request: tags as they were sent, `*` among them; None: no such header."""

    if_match: list[str] | None
    if_none_match: list[str] | None

    @classmethod
    def of(cls, request: Request) -> "Conditions":
        """Those of a request. Refused with malformed-header where one cannot be read."""
        return cls(_tags(request, "If-Match"), _tags(request, "If-None-Match"))

    @classmethod
    def for_reading(cls, request: Request) -> "Conditions":
        """If-None-Match alone: If-Match says nothing of a GET here. Refused as `of`."""
        return cls(None, _tags(request, "If-None-Match"))

    def not_modified(self, etag: str) -> bool:
        """Whether the answer to a GET is 304."""
        return self.if_none_match is not None and _weakly_among(etag, self.if_none_match)

    def failed(self, etag: str | None) -> str | None:
        """The header that forbids a change of what has this tag (None: it does not exist); None where none does."""
        # If-Match compares strongly, and a weak tag never equals; If-None-Match compares weakly (RFC 9110, 8.8.3.2).
        if self.if_match is not None and (etag is None or not {"*", etag} & set(self.if_match)):
            return "If-Match"
        if self.if_none_match is not None and etag is not None and _weakly_among(etag, self.if_none_match):
            return "If-None-Match"
        return None


def _weakly_among(etag: str, tags: list[str]) -> bool:
    return any(tag == "*" or tag.removeprefix("W/") == etag for tag in tags)


def _tags(request: Request, header: str) -> list[str] | None:
    lines = request.headers.getlist(header)
    if not lines:
        return None
    text = ", ".join(lines)
    if text.strip(" \t") == "*":
        return ["*"]
    if not _TAGS.fullmatch(text):
        raise HttpProblem(
            "malformed-header", f'{header} is neither * nor a list of quoted tags like "0f1e2d3c4b5a6978"'
        )
    return re.findall(_TAG, text)
