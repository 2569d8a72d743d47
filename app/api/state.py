"""What all parts of the API share: the service, who may do what, the limits, and the audit."""

from app.api.audit import Audit
from app.api.authorization import Authentication
from app.api.limits import Limits, LongAnswers
from app.service.lifecycle import Service
from app.service.loading.object_files import NO_LOADER, ObjectOptions
from app.service.registry.registry import Registry
from app.store.journal import Journal


class State:
    """What a request is answered with, on both ways. Thread rule: one event loop.

    Attributes:
        service: The service.
        authentication: How the service knows who asks. It is another object after the configuration was read anew.
        limits: What one caller may take.
        long_answers: Bounds the long answers that are being made.
        audit: Where attempts are recorded.
    """

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
        self.authentication = authentication or Authentication()
        self.limits = limits or Limits()
        self.long_answers = LongAnswers()
        self.audit = audit or Audit()
        self.service = Service(
            registry,
            journal,
            keep_dir=keep_dir,
            drift_interval=drift_interval,
            objects=objects,
            delivery=self.audit.buffered,
        )
        self.service.changes.on_automatic = self.audit.automatic
