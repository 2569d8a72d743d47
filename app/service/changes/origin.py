"""Who asks for a change, by which request, and why."""

from dataclasses import dataclass
from typing import Final

from app.access.rights import EVERYTHING, Grant

SERVICE_ACTOR: Final = "jumptable"  # the actor of changes that the service makes by itself


@dataclass(slots=True)
class RequestContext:
    """What every change knows of the request that asks for it.

    Attributes:
        actor: Who asks, as the journal names them: `token:deploy`, `unix:root`, `jumptable`.
        request_id: The request's X-Request-ID.
        note: Why, in the words of the caller.
        confirm_within: Seconds after which the change is undone unless somebody confirms it. None: it stands.
        grant: What the actor may do. The service itself may do everything.
        force: Use the held map and the held programs also where their pins lead to other objects by now.
    """

    actor: str
    request_id: str
    note: str | None = None
    confirm_within: int | None = None
    grant: Grant = EVERYTHING
    force: bool = False
