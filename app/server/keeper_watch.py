"""What becomes of the service when its keeper has ended: the listener has no right to start another one."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from app.keeper.client import KeeperClient
from app.service.registry.registry import Registry

_POLL_SECONDS: Final = 0.5  # between two looks at the keeper
_POLLS_PER_PIN_CHECK: Final = 10  # the pins are looked at while there is a keeper, as nobody else can open them

log = structlog.get_logger()


class KeeperWatch:
    """Ends the service after its keeper, so that systemd starts both anew. Thread rule: one event loop."""

    def __init__(self, keeper: KeeperClient, registry: Registry, *, is_restarted: bool) -> None:
        """Watch nothing yet.

        Args:
            keeper: The keeper.
            registry: What the end of the service must not lose.
            is_restarted: Somebody starts the service again if it ends with a status that is not 0.
        """
        self._keeper, self._registry, self._is_restarted = keeper, registry, is_restarted
        self.has_ended_service = False

    async def run(self, stop: Callable[[], None]) -> None:
        """Watch until the keeper has ended and the service is told to stop, if that loses nothing.

        Args:
            stop: Begins the end of the service.
        """
        polls, is_hanging = 0, False
        while not self._keeper.has_ended:
            if polls % _POLLS_PER_PIN_CHECK == 0:
                await self._registry.check_pins()
            failure = self._keeper.failure
            if (failure is not None) != is_hanging and not self._keeper.has_ended:
                is_hanging = failure is not None
                if failure is not None:
                    log.warning("the keeper does not answer", reason=failure.strerror)
                else:
                    log.info("the keeper answers again")
            polls += 1
            await asyncio.sleep(_POLL_SECONDS)
        ended_by = self._keeper.ended_by
        if not self._is_restarted:
            log.error(
                "the keeper has ended, so nothing can be opened; what is held is still served; restart the service",
                ended_by=ended_by,
            )
            return
        reported: list[str] | None = None
        while lost := await self._registry.held_here_alone():
            if lost != reported:
                log.error(
                    "the keeper has ended, and the service goes on without it: its end would lose what is pinned "
                    "nowhere; release that, and the service ends, or pin it and restart the service",
                    unpinned=lost,
                    ended_by=ended_by,
                )
                reported = lost
            await asyncio.sleep(_POLL_SECONDS)
        log.error(
            "the keeper has ended: the service ends as well, so that systemd starts both; all it holds is pinned",
            ended_by=ended_by,
        )
        self.has_ended_service = True
        stop()
