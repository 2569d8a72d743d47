"""What the service keeps in the ASGI scope of a request, on both ways of a request."""

import os
import re
from collections.abc import Mapping
from typing import Final

# Keys of the ASGI scope.
REQUEST_ID: Final = "jumptable.request_id"  # str
IS_HEAD: Final = "jumptable.is_head"  # bool
BODY_IS_READ: Final = "jumptable.body_is_read"  # bool: all of the body was read
FAILED: Final = "jumptable.failed"  # the exception with which the fast path failed to answer the request

_RANDOM_BYTES: Final = 4096  # that are asked for at once
_ID_DIGITS: Final = 32
_SAFE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the request's own X-Request-ID if it is safe to repeat, else a new id.

    Args:
        headers: The headers of the request, by lower-case name.
    """
    sent = headers.get(b"x-request-id")
    if sent is not None and _SAFE_REQUEST_ID.fullmatch(text := sent.decode("latin-1")):
        return text
    return new_request_id()


class _RandomIds:
    """Random ids of 128 bits. To ask the kernel for many at once takes a tenth of the time."""

    def __init__(self) -> None:
        self._hex, self._position = "", 0

    def next(self) -> str:
        """Return the next one, as 32 hexadecimal digits."""
        if self._position >= len(self._hex):
            self._hex, self._position = os.urandom(_RANDOM_BYTES).hex(), 0
        start, self._position = self._position, self._position + _ID_DIGITS
        return self._hex[start : self._position]


new_request_id: Final = _RandomIds().next
