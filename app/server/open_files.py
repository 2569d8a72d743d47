"""How the open files that the process may have (RLIMIT_NOFILE) are shared out, so that none is missing when it counts.

Each connection, each held map or program, and each replaced program that is kept for an undo is an open file. Where the
limit is too low for all that the configuration allows, each of the three gets its part. A reserve stays free for what
opens files for a moment: the keeper's answers, undos, dry runs, readiness.
"""

import resource
from dataclasses import dataclass
from typing import Final

from app.config import Settings
from app.server.startup import StartError
from app.service.changes.replaced_programs import MAX_PROGRAMS

_OWN_FILES: Final = 28  # the log, the journal, the event loop, the channel to the keeper, the programs for tables …
_MIN_RESERVE, _MAX_RESERVE = 12, 256
_RESERVED_SHARE: Final = 8  # one file of so many
_MIN_CONNECTIONS: Final = 8
_MIN_REPLACED: Final = 4
_UNLIMITED: Final = 1 << 20  # what an unlimited number counts as


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The shares.

    Attributes:
        limit: RLIMIT_NOFILE.
        connections: How many connections there may be at a time.
        held: How many maps and programs may be held at a time.
        replaced: How many replaced programs are kept open.
        is_reduced: One of them is less than what is configured.
    """

    limit: int
    connections: int
    held: int
    replaced: int
    is_reduced: bool

    def __str__(self) -> str:
        return (
            f"RLIMIT_NOFILE {self.limit} is enough for {self.connections} connections, {self.held} held maps and "
            f"programs, and {self.replaced} replaced programs"
        )


def open_files_limit() -> int:
    """Return the hard limit, which the service raises its own to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if hard == resource.RLIM_INFINITY else hard


def share_open_files(settings: Settings, held: int, limit: int | None = None) -> OpenFiles:
    """Share out the open files.

    Args:
        settings: What is wanted.
        held: How many maps and programs are held from the start.
        limit: RLIMIT_NOFILE; None: that of this process.

    Raises:
        StartError: They are not enough for what is held and a few connections.
    """
    limit = open_files_limit() if limit is None else limit
    reserve = min(max(limit // _RESERVED_SHARE, _MIN_RESERVE), _MAX_RESERVE)
    left = limit - _OWN_FILES - reserve - held
    limits = settings.limits
    wanted = limits.connections, max(0, limits.held - held), MAX_PROGRAMS
    if sum(wanted) <= left:
        return OpenFiles(limit, limits.connections, limits.held, MAX_PROGRAMS, is_reduced=False)
    least = min(_MIN_CONNECTIONS, limits.connections), 0, _MIN_REPLACED
    if left < sum(least):
        needed = limit - left + sum(least)
        message = (
            f"RLIMIT_NOFILE is {limit}, which is too low to hold {held} maps and programs and serve: raise it to "
            f"{max(1024, 2 * needed)} (ulimit -n, or LimitNOFILE= of the unit)"
        )
        raise StartError(message)
    spare = left - sum(least)
    connections, more, replaced = (
        low + min(part - low, spare * (part - low) // (sum(wanted) - sum(least)))
        for low, part in zip(least, wanted, strict=True)
    )
    return OpenFiles(limit, connections, held + more, replaced, is_reduced=True)
