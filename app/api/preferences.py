"""What a client would rather get: the header Prefer (RFC 7240)."""

import re
from collections.abc import Iterable
from typing import Final

_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"?+)++')  # up to a comma that is not quoted
MINIMAL: Final = "return=minimal"


def prefers_minimal(lines: Iterable[str]) -> bool:
    """Return whether the client wants no more of an answer than it needs. Of several `return`, the first counts.

    Args:
        lines: The values of the headers Prefer.
    """
    for line in lines:
        for preference in _PREFERENCE.findall(line):
            name, _, value = preference.partition(";")[0].partition("=")
            if name.strip().lower() == "return":
                return bool(value.strip().strip('"') == "minimal")
    return False
