"""Which versions of etcd keep nodes from the keys of others."""

import re
from typing import Final

from app.fleet_store.errors import VersionRefused

# Versions of etcd by (major, minor). Before these, a node can write the keys of another by a nested transaction:
_FIRST_SAFE_WRITES: Final = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
# Before these, it can read the keys of others by a watch up to the end of all keys:
_FIRST_SAFE_READS: Final = {(3, 5): 33, (3, 6): 14, (3, 7): 1}


def version_warning(version: str, endpoint: str) -> str | None:
    """Return a warning if this version of etcd lets nodes read the keys of others; None: it does not.

    Args:
        version: Such as `3.5.30`.
        endpoint: The member that has it, for the text.

    Raises:
        VersionRefused: It lets nodes write the keys of others, or is no version.
    """
    try:
        major, minor, patch = map(int, re.split(r"[-+]", version, maxsplit=1)[0].split("."))
    except ValueError as error:
        message = f"{endpoint}: {version!r} is no version of etcd"
        raise VersionRefused(message) from error
    series = (major, minor)
    if series < (3, 4) or patch < _FIRST_SAFE_WRITES.get(series, 0):
        message = (
            f"{endpoint} runs etcd {version}, which lets each node write the keys of all others; "
            "upgrade it to 3.4.42, 3.5.28, 3.6.9 or later"
        )
        raise VersionRefused(message)
    if series < (3, 5) or patch < _FIRST_SAFE_READS.get(series, 0):
        return (
            f"{endpoint} runs etcd {version}, which lets each node read the keys of all others; "
            "upgrade it to 3.5.33, 3.6.14, 3.7.1 or later"
        )
    return None
