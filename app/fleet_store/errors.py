"""What can go wrong with etcd."""


class EtcdError(Exception):
    """The root of all errors of the client. The text is one line."""


class Unavailable(EtcdError):
    """No member answers in time, or there is no leader."""


class OutcomeUnknown(Unavailable):
    """A write was sent, and its answer did not arrive: it may have been made, or be made yet. Read before more."""


class PermissionDenied(EtcdError):
    """The certificate's user may not do this."""


class Compacted(EtcdError):
    """The revision from which to go on is no longer there: read everything anew.

    Attributes:
        revision: The oldest revision that is there.
    """

    def __init__(self, revision: int) -> None:
        super().__init__(f"what was before revision {revision} is compacted")
        self.revision = revision


class Refused(EtcdError):
    """Etcd refuses the request for another reason, such as a value that is too large or a full disk."""


class VersionRefused(EtcdError):
    """A member's version lets nodes write the keys of others."""
