"""What the service keeps in the ASGI scope of a request, on both ways of a request."""

import os
import re
from collections.abc import Mapping
from typing import Final

from starlette.types import Scope

from app.access.rights import Actor
from app.api.authorization import ACTOR
from app.service.changes.origin import RequestContext

# Keys of the ASGI scope.
REQUEST_ID: Final = "jumptable.request_id"  # str
IS_HEAD: Final = "jumptable.is_head"  # bool
BODY_IS_READ: Final = "jumptable.body_is_read"  # bool: all of the body was read
FAILED: Final = "jumptable.failed"  # the exception with which the fast path failed to answer the request
OPERATION: Final = "jumptable.operation"  # str: the operation id of its route; set by the fast path

_SAFE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the request's own X-Request-ID if it is safe to repeat, else a new id.

    Args:
        headers: The headers of the request, by lower-case name.
    """
    sent = headers.get(b"x-request-id")
    if sent is not None and _SAFE_REQUEST_ID.fullmatch(text := sent.decode("latin-1")):
        return text
    return os.urandom(16).hex()


def context_of(
    scope: Scope, note: str | None = None, confirm_within: int | None = None, *, force: bool = False
) -> RequestContext:
    """Return what a change knows of its request.

    Args:
        scope: Of a request that was let in.
        note: Why, in the words of the caller.
        confirm_within: Seconds until it is undone unless somebody confirms it.
        force: Use what is held also where its pin leads to another object by now.
    """
    actor: Actor = scope[ACTOR]
    assert actor.grant is not None  # else it was not let in
    return RequestContext(actor.name, scope[REQUEST_ID], note, confirm_within, actor.grant, force)
