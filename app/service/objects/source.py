"""Where a map or a program is opened from, and the names that they may have."""

import functools
import re
from dataclasses import dataclass
from typing import Final

_NAME: Final = r"[A-Za-z0-9_.-]{1,64}"
NAME_PATTERN: Final = f"^{_NAME}$"


@functools.lru_cache(maxsize=4096)  # most requests name few maps and programs
def checked_name(name: str) -> str:
    """The name, which maps and programs may have. ValueError where not."""
    if not re.fullmatch(_NAME, name):
        message = "a name has 1 to 64 characters of A-Z a-z 0-9 _ . - (a pin or an id goes as an object)"
        raise ValueError(message)
    if name in {".", ".."}:
        message = "clients take . and .. out of a path before they send it, so they are no names"
        raise ValueError(message)
    return name


@dataclass(frozen=True, slots=True)
class Pinned:
    """Opened from a path in bpffs."""

    path: str


@dataclass(frozen=True, slots=True)
class ById:
    """Opened by the kernel's number."""

    id: int


@dataclass(frozen=True, slots=True)
class Made:
    """Made by the service itself, and pinned nowhere."""


Source = Pinned | ById | Made
