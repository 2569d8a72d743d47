"""What all parts of the API share: the service, and what `BaseState` has."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from app.api.audit import Audit
from app.api.authorization import RIGHTS, Authentication, check_access
from app.api.base_state import BaseState
from app.api.limits import Limits
from app.service.lifecycle import Service
from app.service.loading.object_files import NO_LOADER, ObjectOptions
from app.service.registry.registry import Registry
from app.store.journal import Journal


class State(BaseState):
    """What a request is answered with, on both ways. Thread rule: one event loop.

    Attributes:
        service: The service.
    """

    rights = RIGHTS

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        *,
        keep_dir: str | None = None,
        drift_interval: float = 5.0,
        authentication: Authentication | None = None,
        limits: Limits | None = None,
        audit: Audit | None = None,
        objects: ObjectOptions = NO_LOADER,
    ) -> None:
        """Put it together. Nothing is opened, and nothing runs yet.

        Args:
            registry: The maps and programs.
            journal: The journal, open.
            keep_dir: The folder in bpffs where programs are pinned that an undo may need after a restart.
            drift_interval: Seconds between two checks of all tables.
            authentication: How the service knows who asks. None: everybody who can connect may do everything.
            limits: What one caller may take.
            audit: Where attempts are recorded.
            objects: How object files are loaded.
        """
        super().__init__(authentication, limits, audit or Audit())
        self.service = Service(
            registry,
            journal,
            keep_dir=keep_dir,
            drift_interval=drift_interval,
            objects=objects,
            delivery=self.audit.buffered,
        )
        self.service.changes.on_automatic = self.audit.automatic

    @property
    def is_stopping(self) -> bool:
        """Whether the service refuses requests, as it ends."""
        return self.service.is_stopping

    def check_access(self, scope: Scope, operation: str, path: Mapping[str, Any]) -> None:
        """Check that the caller may do what it asks for: see `app.api.authorization`."""
        check_access(scope, operation, path.get("name"), self.authentication, self.limits)

    def add_request(self, operation: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.service.counters.add_request(operation, status, seconds)
