"""What requests to the fleet are answered with."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from app.api.audit import Audit
from app.api.authorization import Authentication, admit
from app.api.base_state import BaseState
from app.api.limits import Limits
from app.fleet.api.authorization import RIGHTS, check_table
from app.fleet_store.errors import VersionRefused
from app.fleet_store.etcd import Etcd
from app.fleet_store.signatures import Signer
from app.service.counters import Timing


class FleetState(BaseState):
    """What a request is answered with. Thread rule: one event loop.

    Attributes:
        refusal: Why etcd must not be used; None: it may be. Set once its version is known to have holes.
        signer: Signs what nodes are asked for.
        usable: Set while etcd may be used: its version is known, and keeps nodes apart.
        unusable: Set while it must not be used.
        ended: Set when the server is to stop.
        requests: How long requests took, by operation and status.
    """

    rights = RIGHTS

    def __init__(
        self,
        signer: Signer,
        *,
        authentication: Authentication | None = None,
        limits: Limits | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Put it together.

        Args:
            signer: Signs what nodes are asked for.
            authentication: How the server knows who asks. None: everybody who can connect may do everything.
            limits: What one caller may take.
            audit: Where attempts are recorded.
        """
        super().__init__(authentication, limits, audit or Audit(rights=RIGHTS))
        self.signer = signer
        self.refusal: str | None = None
        self._etcd: Etcd | None = None
        self.usable, self.unusable = asyncio.Event(), asyncio.Event()
        self.ended = asyncio.Event()
        self.requests: dict[tuple[str, int], Timing] = {}
        self._started = time.monotonic()

    @property
    def etcd(self) -> Etcd:
        """The store.

        Raises:
            VersionRefused: It must not be used.
        """
        if self.refusal is not None:
            raise VersionRefused(self.refusal)
        assert self._etcd is not None  # the application has not started
        return self._etcd

    def refuse(self, reason: str | None) -> None:
        """Say that etcd must not be used, and why. None: it may be."""
        self.refusal = reason
        now, before = (self.usable, self.unusable) if reason is None else (self.unusable, self.usable)
        before.clear()
        now.set()

    def use(self, etcd: Etcd) -> None:
        """Use this store. It is made in the event loop, so only when the application starts."""
        self._etcd = etcd

    @property
    def is_stopping(self) -> bool:
        """Whether the server refuses requests, as it ends."""
        return self.ended.is_set()

    def uptime(self) -> float:
        """Return for how long the server has been running, in seconds."""
        return time.monotonic() - self._started

    def check_access(self, scope: Scope, operation: str, path: Mapping[str, Any]) -> None:
        """Authenticate the caller, and check its right and that the table in the path is within its bounds."""
        admit(scope, operation, RIGHTS[operation], self.authentication, self.limits)
        if "table" in path:
            check_table(scope, str(path["table"]))

    def add_request(self, operation: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests.setdefault((operation, status), Timing()).add(seconds)
