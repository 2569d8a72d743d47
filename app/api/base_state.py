"""What every application here has in common: who may do what, the limits, and the audit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from app.access.rights import Right
from app.api.audit import Audit
from app.api.authorization import Authentication
from app.api.limits import Limits, LongAnswers


class BaseState(ABC):
    """What a request is answered with, whatever is served. Thread rule: one event loop.

    Attributes:
        rights: By operation id, the right that it needs.
        authentication: How the service knows who asks. It is another object after the configuration was read anew.
        limits: What one caller may take.
        long_answers: Bounds the long answers that are being made.
        audit: Where attempts are recorded.
    """

    rights: Mapping[str, Right]

    def __init__(self, authentication: Authentication | None, limits: Limits | None, audit: Audit) -> None:
        """Put it together.

        Args:
            authentication: How the service knows who asks. None: everybody who can connect may do everything.
            limits: What one caller may take. None: the default ones.
            audit: Where attempts are recorded.
        """
        self.authentication = authentication or Authentication()
        self.limits = limits or Limits()
        self.long_answers = LongAnswers()
        self.audit = audit

    @property
    @abstractmethod
    def is_stopping(self) -> bool:
        """Whether the service refuses requests, as it ends."""

    @abstractmethod
    def check_access(self, scope: Scope, operation: str, path: Mapping[str, Any]) -> None:
        """Authenticate the caller of a request, and check that it may do what it asks for.

        Args:
            scope: The ASGI scope of the request.
            operation: The operation id of the route.
            path: The parameters of the path.

        Raises:
            HttpProblem: It may not.
        """

    @abstractmethod
    def add_request(self, operation: str, status: int, seconds: float) -> None:
        """Count a request that was answered.

        Args:
            operation: The operation id of its route.
            status: The status of the answer.
            seconds: How long it took.
        """
