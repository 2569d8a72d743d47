"""What goes wrong again and again: said once when it begins, and once when it ends."""

import structlog

log = structlog.get_logger()


class Troubles:
    """Logs a trouble of a map when it begins, when its reason changes, and when it ends.

    Thread rule: one event loop.
    """

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], str] = {}

    def begin(self, what: str, map_: str, reason: str) -> None:
        """Note that something fails. Only the first of several calls with the same reason is logged.

        Args:
            what: What fails, as the log says it.
            map_: The name of the map.
            reason: Why.
        """
        if self._reasons.get((what, map_)) != reason:
            self._reasons[what, map_] = reason
            log.warning(what, map=map_, reason=reason)

    def end(self, what: str, map_: str) -> None:
        """Note that it works. It is logged if it has failed before."""
        if self._reasons.pop((what, map_), None) is not None:
            log.info("over", trouble=what, map=map_)
