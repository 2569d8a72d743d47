"""Who asks, and what for: the one table from route to right, and the one place where it is held against the asker."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from starlette.types import Scope

from app.access.peers import Peer, Peers, is_loopback
from app.access.rights import EVERYTHING, Actor, Grant, Right
from app.access.tokens import Tokens, TokensUnusable
from app.api.limits import Limits
from app.api.problems import HttpProblem

# Keys in the scope: who asks; the header, by the envelope; the peer on a unix socket, and the
# subject alternative names of a client's certificate, by the protocol.
ACTOR: Final = "jumptable.actor"
AUTHORIZATION: Final = "jumptable.authorization"
PEER: Final = "jumptable.peer"
NAMES: Final = "jumptable.names"
COUNTED: Final = "jumptable.counted"  # against the asker's requests_per_second

_HOSTS: Final = frozenset({b"host", b"origin"})
_HOST: Final = re.compile(r"(?:https?://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")

# By operation_id. What is not here nobody may do.
RIGHTS: Final[dict[str, Right]] = {
    "get_health": Right.NONE,
    "get_readiness": Right.NONE,
    "explain_problem": Right.NONE,
    "get_version": Right.READ,
    "get_metrics": Right.METRICS,
    "get_docs": Right.DOCS,
    "get_docs_asset": Right.DOCS,
    "get_openapi": Right.DOCS,
    "list_maps": Right.READ,
    "get_map": Right.READ,
    "list_entries": Right.READ,
    "get_entry": Right.READ,
    "list_programs": Right.READ,
    "get_program": Right.READ,
    "list_changes": Right.READ,
    "get_change": Right.READ,
    "watch_events": Right.READ,
    "set_entry": Right.WRITE,
    "clear_entry": Right.WRITE,
    "replace_entries": Right.WRITE,
    "update_entries": Right.WRITE,
    "confirm_change": Right.WRITE,
    "revert_change": Right.WRITE,
    "run_program": Right.WRITE,
    "reconcile_map": Right.ADMIN,
    "hold_map": Right.ADMIN,
    "release_map": Right.ADMIN,
    "hold_program": Right.ADMIN,
    "release_program": Right.ADMIN,
}
CHANGING: Final = {Right.WRITE, Right.ADMIN}


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Authentication:
    """How it is known who asks. Neither peers nor tokens: whoever can connect is admin, as in the demo."""

    peers: Peers | None = None
    tokens: Tokens | None = None
    certificates: Mapping[str, Actor] = field(default_factory=dict)  # by subject alternative name
    read_only: bool = False

    def actor(self, scope: Scope, authorization: bytes | None) -> Actor | None:
        """Who asks; None: that is not known, as no token came on TCP. Refused: with a token that is none."""
        if self.peers is None and self.tokens is None and not self.certificates:
            client = scope.get("client")
            return Actor(f"tcp:{client[0]}" if client and client[0] else "unix", EVERYTHING)
        if authorization is not None:
            return self._bearer(authorization)
        names: Sequence[str] = scope.get(NAMES, ())
        if names:
            known = (self.certificates[name] for name in names if name in self.certificates)
            return next(known, Actor(f"certificate:{names[0]}", None))
        peer: Peer | None = scope.get(PEER)
        return None if peer is None or self.peers is None else self.peers.actor(peer)

    def is_one_moment(self, *, begins: bool) -> None:
        """Whatever is asked until the moment ends is asked at once: the file of tokens is looked at once."""
        if self.tokens is not None:
            self.tokens.is_one_moment(begins=begins)

    def _bearer(self, authorization: bytes) -> Actor:
        kind, _, secret = authorization.decode("latin-1").partition(" ")
        if kind.lower() != "bearer":
            raise unauthenticated("that is no bearer token: send Authorization: Bearer TOKEN")
        known = None if self.tokens is None else self.tokens.degraded_reason
        try:
            actor = None if self.tokens is None else self.tokens.actor(secret.strip())
        except TokensUnusable as error:
            if str(error) != known:
                log.warning("tokens cannot be checked", reason=str(error))
            detail = "tokens cannot be checked: the log and /readyz tell why"
            raise unauthenticated(detail) from error
        if actor is None:
            raise unauthenticated("the token is unknown, revoked or over")
        return actor


def unauthenticated(detail: str) -> HttpProblem:
    """401 (RFC 6750, 3)."""
    return HttpProblem("unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="jumptable"'})


def forbidden(scope: Scope, detail: str) -> HttpProblem:
    """403."""
    actor: Actor = scope[ACTOR]
    role = "no role" if actor.grant is None else f"role {actor.grant.role}"
    return HttpProblem("forbidden", f"{actor.name} ({role}): {detail}")


def grant_of(scope: Scope) -> Grant:
    """What the asker may do, once the route is checked."""
    actor: Actor | None = scope[ACTOR]
    return Grant("metrics", frozenset()) if actor is None or actor.grant is None else actor.grant


def check_access(
    scope: Scope, operation: str, name: str | None, authentication: Authentication, limits: Limits
) -> None:
    """Who asks, and whether the operation, and the map or program in the path, are open to them. Refused where not."""
    check_host(scope)
    scope[ACTOR] = actor = None
    try:
        scope[ACTOR] = actor = authentication.actor(scope, scope[AUTHORIZATION])
    except HttpProblem:
        if RIGHTS[operation] is not Right.NONE:
            raise
    right = RIGHTS[operation]
    if actor is not None and right is not Right.NONE and not scope.get(COUNTED):
        limits.check_rate(actor.name)
        scope[COUNTED] = True
    if right is not Right.NONE:
        if actor is None:
            raise unauthenticated("send a token: Authorization: Bearer …")
        if actor.grant is None or not actor.grant.allows(right):
            raise forbidden(scope, f"{operation} needs the right {right.name.lower()}")
    if authentication.read_only and right in CHANGING:
        raise HttpProblem("read-only", "the service is configured to be read only")
    if name is not None and scope["path"].startswith("/maps/"):
        check_map(scope, name)
    elif name is not None and not grant_of(scope).has_program(name):
        raise forbidden(scope, f"program {name!r} is not among its programs")


def may_still(scope: Scope, operation: str) -> bool:
    """Whether whoever has asked would be let in again now."""
    authentication: Authentication = scope["app"].state.authentication
    try:
        actor = authentication.actor(scope, scope[AUTHORIZATION])
    except HttpProblem:
        return False
    return actor is not None and actor.grant is not None and actor.grant.allows(RIGHTS[operation])


def check_map(scope: Scope, name: str) -> None:
    """Refused where the map is beyond the asker's bounds."""
    if not grant_of(scope).has_map(name):
        raise forbidden(scope, f"map {name!r} is not among its maps")


def check_host(scope: Scope) -> None:
    """On loopback: Refused where Host or Origin are not, as a page elsewhere would send them (DNS rebinding)."""
    server = scope.get("server")
    if server is None or not server[0] or not is_loopback(server[0]):
        return
    for name, value in scope["headers"]:
        if name in _HOSTS and not _is_local(value):
            detail = f"{name.decode().capitalize()} is {value.decode('latin-1')[:100]!r}: not a name of this machine"
            raise HttpProblem("host-not-allowed", detail)


@functools.lru_cache(maxsize=256)
def _is_local(value: bytes) -> bool:
    """Of a Host (`localhost:8080`) or an Origin (`http://localhost:8080`)."""
    found = _HOST.fullmatch(value.decode("latin-1"))
    return found is not None and (found[1].lower() == "localhost" or is_loopback(found[1].strip("[]")))
