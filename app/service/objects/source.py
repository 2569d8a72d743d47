"""The sources from which a map or a program is opened, and the names under which the service holds them."""

import functools
import re
from dataclasses import dataclass
from typing import Final

_NAME: Final = r"[A-Za-z0-9_.-]{1,64}"
NAME_PATTERN: Final = f"^{_NAME}$"


@functools.lru_cache(maxsize=4096)  # most requests name few maps and programs
def checked_name(name: str) -> str:
    """Return the name unchanged if a map or a program may be held under it.

    Raises:
        ValueError: The name has other characters or another length than NAME_PATTERN, or is `.` or `..`.
    """
    if not re.fullmatch(_NAME, name):
        message = "a name has 1 to 64 characters of A-Z a-z 0-9 _ . - (give a pin or an id as an object)"
        raise ValueError(message)
    if name in {".", ".."}:
        message = "HTTP clients remove . and .. from a path before they send it, so these cannot be names"
        raise ValueError(message)
    return name


@dataclass(frozen=True, slots=True)
class Pinned:
    """Opened from a path in a bpffs."""

    path: str


@dataclass(frozen=True, slots=True)
class ById:
    """Opened by the id that the kernel gave it, u32. The id is valid until the next boot."""

    id: int


@dataclass(frozen=True, slots=True)
class Made:
    """Created by the service itself, and pinned nowhere. It cannot be opened a second time."""


Source = Pinned | ById | Made
