"""Authentication and authorization of requests.

`RIGHTS` is the one table from an operation to the right that it needs. `check_access` is the one place that
authenticates the caller of a request and checks that right.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from starlette.types import Scope

from app.access.peers import Peer, Peers, is_loopback
from app.access.rights import EVERYTHING, Actor, Grant, Right
from app.access.rights import RIGHTS as ROLES
from app.access.tokens import KeeperUnavailable, Tokens, TokensUnusable
from app.api.limits import Limits
from app.api.problems import HttpProblem

# Keys of the ASGI scope.
ACTOR: Final = "jumptable.actor"  # Actor or None; set by check_access
AUTHORIZATION: Final = "jumptable.authorization"  # the header's value, bytes or None; set by the middleware
PEER: Final = "jumptable.peer"  # the peer on a unix socket; set by the connection
NAMES: Final = "jumptable.names"  # the subject alternative names of the client's certificate; set by the connection
COUNTED: Final = "jumptable.counted"  # true once the request counts against requests_per_second

_ACTOR_HEADER: Final = b"jumptable-actor"
_ACTOR_NAME: Final = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")
_HOST_HEADERS: Final = frozenset({b"host", b"origin"})
_HOST: Final = re.compile(r"(?:https?://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")

# By operation id. Every route must be here.
RIGHTS: Final[dict[str, Right]] = {
    "get_health": Right.NONE,
    "get_readiness": Right.NONE,
    "explain_problem": Right.NONE,
    "get_index": Right.DOCS,
    "get_web_file": Right.DOCS,
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
    "get_graph": Right.READ,
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
    "list_objects": Right.INSPECT,
    "get_object": Right.INSPECT,
    "load_object": Right.ADMIN,
    "unload_object": Right.ADMIN,
}
# What these do may concern any map and any program.
UNBOUNDED_ONLY: Final = frozenset({"list_objects", "get_object", "load_object", "unload_object"})
ASK: Final = "stay within the bounds, or ask an admin of the service for wider ones"
CHANGING: Final = {Right.WRITE, Right.ADMIN}  # the rights of operations that change something

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Authentication:
    """How callers are authenticated.

    Without peers, tokens and certificates, every caller has all rights, as in the demo.

    Attributes:
        peers: Authenticates the peers of a unix socket.
        tokens: Authenticates bearer tokens.
        certificates: The actors of client certificates, by subject alternative name.
        read_only: Whether every operation that changes something is refused.
    """

    peers: Peers | None = None
    tokens: Tokens | None = None
    certificates: Mapping[str, Actor] = field(default_factory=dict)
    read_only: bool = False

    @property
    def is_open(self) -> bool:
        """Whether nobody has to prove who they are."""
        return self.peers is None and self.tokens is None and not self.certificates

    def actor(self, scope: Scope, authorization: bytes | None) -> Actor | None:
        """Return the caller of a request, or None if the request gives no proof of who sends it.

        A token counts before a certificate, and a certificate before the peer of a unix socket.

        Args:
            scope: The ASGI scope of the request.
            authorization: The value of its Authorization header.

        Raises:
            HttpProblem: unauthenticated: the token is not valid. keeper-unavailable: it cannot be checked now.
        """
        if self.is_open:
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

    def _bearer(self, authorization: bytes) -> Actor:
        scheme, _, secret = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthenticated("Authorization has no bearer token; send Authorization: Bearer TOKEN")
        logged_reason = None if self.tokens is None else self.tokens.degraded_reason
        try:
            actor = None if self.tokens is None else self.tokens.actor(secret.strip())
        except KeeperUnavailable as error:
            detail = "tokens cannot be checked now, as the keeper cannot be asked; the log and /readyz say why"
            raise HttpProblem("keeper-unavailable", detail) from error
        except TokensUnusable as error:
            if str(error) != logged_reason:
                log.warning("tokens cannot be checked", reason=str(error))
            if isinstance(error, KeeperUnavailable):
                detail = "tokens cannot be checked while the keeper is away; send the request again in a few seconds"
                raise HttpProblem("keeper-unavailable", detail) from error
            detail = (
                "tokens cannot be checked now; an operator has to mend the file of tokens, then send the request again"
            )
            raise unauthenticated(detail) from error
        if logged_reason is not None:
            log.info("tokens can be checked again")
        if actor is None:
            raise unauthenticated("the token is unknown, revoked or expired; send a valid one")
        return actor


def unauthenticated(detail: str) -> HttpProblem:
    """Return the problem unauthenticated (401), with the challenge of RFC 6750, 3."""
    return HttpProblem("unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="jumptable"'})


def forbidden(scope: Scope, detail: str) -> HttpProblem:
    """Return the problem forbidden (403). Its detail begins with the caller and its role.

    Call it only after `check_access` has authenticated the caller.
    """
    actor: Actor = scope[ACTOR]
    role = "no role" if actor.grant is None else f"role {actor.grant.role}"
    return HttpProblem("forbidden", f"{actor.name} ({role}): {detail}")


def _roles(right: Right) -> str:
    """Whom to ask for, where a right is missing."""
    return f"send the request with the role {' or '.join(role for role, rights in ROLES.items() if right in rights)}"


def grant_of(scope: Scope) -> Grant:
    """Return the grant of the caller. Without one, it is a grant that allows next to nothing.

    Call it only after `check_access`.
    """
    actor: Actor | None = scope[ACTOR]
    return Grant("metrics", frozenset()) if actor is None or actor.grant is None else actor.grant


def check_access(
    scope: Scope, operation: str, name: str | None, authentication: Authentication, limits: Limits
) -> None:
    """Authenticate the caller of a request and check that it may do what it asks for.

    Args:
        scope: The ASGI scope of the request. `scope[ACTOR]` becomes the caller, or None if it is not known.
        operation: The operation id of the route.
        name: The name of the map, program or object file in the path.
        authentication: How callers are authenticated.
        limits: Count the request against the caller's rate.

    Raises:
        HttpProblem: As `admit`; or forbidden: the name is beyond the bounds of the caller.
    """
    admit(scope, operation, RIGHTS[operation], authentication, limits)
    _check_bounds(scope, operation, name)


def admit(scope: Scope, operation: str, right: Right, authentication: Authentication, limits: Limits) -> None:
    """Authenticate the caller of a request and check that it has a right.

    Args:
        scope: The ASGI scope of the request. `scope[ACTOR]` becomes the caller, or None if it is not known.
        operation: The operation id of the route.
        right: The right that the operation needs.
        authentication: How callers are authenticated.
        limits: Count the request against the caller's rate.

    Raises:
        HttpProblem: host-not-allowed, unauthenticated, keeper-unavailable, too-many-requests, actor-not-allowed,
            malformed-header, forbidden or read-only.
    """
    check_host(scope)
    scope[ACTOR] = actor = None
    if right is Right.DOCS and authentication.tokens is not None:
        right = Right.NONE  # a browser opens a page without a token, which is typed into it
    try:
        scope[ACTOR] = actor = authentication.actor(scope, scope[AUTHORIZATION])
    except HttpProblem:
        if right is not Right.NONE:
            raise
    is_counted = limits.requests_per_second is not None and right is not Right.NONE and not scope.get(COUNTED)
    if actor is not None and is_counted:
        limits.check_rate(actor.name)
        scope[COUNTED] = True
    if right is not Right.NONE and actor is None:
        raise unauthenticated("the request has no token; send Authorization: Bearer TOKEN")
    scope[ACTOR] = actor = _who_asks(scope, actor)
    if right is not Right.NONE and (actor is None or actor.grant is None or not actor.grant.allows(right)):
        raise forbidden(scope, f"{operation} needs the right {right.name.lower()!r}; {_roles(right)}")
    if authentication.read_only and right in CHANGING:
        raise HttpProblem(
            "read-only", "the service is read-only by its configuration; take read_only out of it to make changes"
        )


def _who_asks(scope: Scope, sender: Actor | None) -> Actor | None:
    """Return who asks: whoever the header Jumptable-Actor names. Without the header it is the sender."""
    given = [value for name, value in scope["headers"] if name == _ACTOR_HEADER]
    if not given:
        return sender
    if sender is None or not sender.may_name_others:
        who = "a caller that is not known" if sender is None else sender.name
        detail = f"{who} may not name who asks in Jumptable-Actor; leave the header out"
        raise HttpProblem("actor-not-allowed", detail)
    if len(given) > 1 or not _ACTOR_NAME.fullmatch(given[0]):
        detail = "Jumptable-Actor is not one name of 1 to 128 printable ASCII characters"
        raise HttpProblem("malformed-header", detail)
    return sender.on_behalf_of(given[0].decode("ascii"))


def _check_bounds(scope: Scope, operation: str, name: str | None) -> None:
    """Check that what the path names is within the bounds of the caller."""
    if operation in UNBOUNDED_ONLY:
        if not grant_of(scope).is_unbounded:
            raise forbidden(scope, f"object files are for callers without bounds; {ASK}")
    elif name is not None and scope["path"].startswith("/maps/"):
        check_map(scope, name)
    elif name is not None and not grant_of(scope).has_program(name):
        raise forbidden(scope, f"program {name!r} is not among the programs of this caller; {ASK}")


def may_still(scope: Scope, operation: str) -> bool:
    """Return whether the caller of a request would still be allowed to send it now."""
    state = scope["app"].state
    authentication: Authentication = state.authentication
    try:
        actor = authentication.actor(scope, scope[AUTHORIZATION])
    except HttpProblem:
        return False
    return actor is not None and actor.grant is not None and actor.grant.allows(state.rights[operation])


def check_map(scope: Scope, name: str) -> None:
    """Check that the caller may use a map.

    Raises:
        HttpProblem: forbidden: the map is not among those of the caller's grant.
    """
    maps = grant_of(scope).maps
    if maps is not None and name not in maps:
        raise forbidden(scope, f"map {name!r} is not among the maps of this caller; {ASK}")


def check_entry(scope: Scope, index: int) -> None:
    """Check that the caller may see an entry.

    Raises:
        HttpProblem: forbidden: the entry is not among those of the caller's grant.
    """
    entries = grant_of(scope).entries
    if entries is not None and index not in entries:
        raise forbidden(scope, f"entry {index} is not among the entries of this caller; {ASK}")


def check_host(scope: Scope) -> None:
    """Check that Host and Origin are not those of a web page of another site.

    On a loopback address and on a unix socket, both have to name this machine. Such a page can reach the service by DNS
    rebinding, also through a unix socket that `ssh -L` has forwarded, and then sends the name of its own site. On a
    unix socket Host may also be a name without a dot: clients have to send some name there, and no site has such a one.
    Elsewhere Origin has to be that of Host in whatever may change something, as browsers show a client certificate also
    for what other sites send. They do not let those read the answer.

    Raises:
        HttpProblem: host-not-allowed: a header names another machine.
    """
    is_unix = scope.get(PEER) is not None
    server = scope.get("server")
    is_local = is_unix or (server is not None and server[0] and is_loopback(server[0]))
    may_change = not is_local and scope["method"] not in {"GET", "HEAD"}
    for name, value in scope["headers"]:
        if name not in _HOST_HEADERS:
            continue
        if is_local and not _is_local(value) and not (is_unix and name == b"host" and b"." not in value):
            detail = "does not name this machine; use localhost or a loopback address"
        elif may_change and name == b"origin" and (b"host", value.partition(b"://")[2]) not in scope["headers"]:
            detail = "is not that of Host; open the page of this service itself"
        else:
            continue
        text = value.decode("latin-1")[:100]
        raise HttpProblem("host-not-allowed", f"{name.decode().capitalize()} {text!r} {detail}")


@functools.lru_cache(maxsize=256)
def _is_local(value: bytes) -> bool:
    """Return whether a Host (`localhost:8080`) or an Origin (`http://localhost:8080`) names this machine."""
    found = _HOST.fullmatch(value.decode("latin-1"))
    return found is not None and (found[1].lower() == "localhost" or is_loopback(found[1].strip("[]")))
