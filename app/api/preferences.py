"""What a client would rather get: the header Prefer (RFC 7240)."""

import re
from typing import Any, Final

from starlette.requests import Request

from app.api.preconditions import header_parameter

_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"?+)++')  # up to a comma that is not quoted
MINIMAL: Final = "return=minimal"

# The header as the OpenAPI document describes it. Routes do not declare it, for the reason that `preconditions` gives.
PARAMETER: Final[dict[str, Any]] = header_parameter(
    "Prefer",
    "`return=minimal` (RFC 7240): leave the entries out of the change in the answer. A dry run tells them all the "
    "same. Other preferences are ignored.",
    MINIMAL,
)


def prefers_minimal(request: Request) -> bool:
    """Return whether the client wants no more of an answer than it needs. Of several `return`, the first counts."""
    for line in request.headers.getlist("Prefer"):
        for preference in _PREFERENCE.findall(line):
            name, _, value = preference.partition(";")[0].partition("=")
            if name.strip().lower() == "return":
                return bool(value.strip().strip('"') == "minimal")
    return False
