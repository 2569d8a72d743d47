"""Who asks for a change."""

from dataclasses import dataclass

from app.access.rights import EVERYTHING, Grant


@dataclass(slots=True)
class RequestContext:
    """Who asks for a change, by which request, and why; `confirm_within`: s until it is undone unless confirmed.

    `grant`: what they may do; the service itself may do everything.
    """

    actor: str
    request_id: str
    note: str | None = None
    confirm_within: int | None = None
    grant: Grant = EVERYTHING
