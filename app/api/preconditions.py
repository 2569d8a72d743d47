"""Entity tags and conditional requests (RFC 9110, 8.8.3 and 13)."""

import hashlib
import re
from array import array
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


def entry_etag(boot_id: str, map_id: int, index: int, program_id: int) -> str:
    """The tag of one entry: it changes with what the kernel holds there, whoever changed it.

    With the boot's id: beyond it the same numbers may come to mean something else.
    """
    return f'"{boot_id[:8]}-{map_id:x}-{index:x}-{program_id:x}"'


def table_etag(boot_id: str, map_id: int, ids: "array[int]") -> str:
    """The tag of a whole table; `ids`: of the program that each entry points to, by index."""
    return f'"{boot_id[:8]}-{map_id:x}-{hashlib.blake2b(ids, digest_size=8).hexdigest()}"'


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
