"""Stops or kills the agent's own process at a chosen step: `blow("after change", 9)`, before the agent starts."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from app.agent import table
from app.agent.agent import StoreTeller
from app.agent.local import LocalService

# The steps in their order: what they call, and with which arguments it is this step.
Step = tuple[Any, str, Callable[[tuple[Any, ...], dict[str, Any]], bool]]
STEPS: dict[str, Step] = {
    "dry run": (LocalService, "try_update", lambda _, __: True),
    "change": (LocalService, "update", lambda _, __: True),
    "unconfirmed": (StoreTeller, "tell", lambda args, _: args[2].state == "unconfirmed"),
    "checks": (table, "failed_check", lambda _, __: True),
    "revert": (LocalService, "revert", lambda _, __: True),
    "confirm": (LocalService, "confirm", lambda _, __: True),
    "applied": (StoreTeller, "tell", lambda args, _: args[2].state == "applied"),
    "unhealthy": (StoreTeller, "tell", lambda args, _: args[2].state == "unhealthy"),
}


def blow(point: str, number: int) -> None:
    """Send the signal when the agent comes to the point for the first time."""
    when, _, name = point.partition(" ")
    owner, attribute, is_step = STEPS[name]
    call = getattr(owner, attribute)
    burnt: list[bool] = []

    @wraps(call)
    async def fused(*args: Any, **named: Any) -> Any:
        is_now = not burnt and is_step(args, named)
        if is_now:
            burnt.append(True)
            if when == "before":
                os.kill(os.getpid(), number)
        result = await call(*args, **named)
        if is_now and when == "after":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, attribute, fused)
