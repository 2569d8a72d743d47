"""Clients on the unix socket: the kernel says who they are (SO_PEERCRED, SO_PEERGROUPS)."""

import contextlib
import functools
import ipaddress
import os
import pwd
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.access.rights import EVERYTHING, Actor, Grant

_SO_PEERGROUPS: Final = 59  # include/uapi/asm-generic/socket.h, Linux 4.13
_MAX_GROUPS_BYTES: Final = 1024  # the largest buffer that Python's getsockopt() takes: 256 groups
_NOBODY: Final = 65_534
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """The user at the other end of a unix socket. `gids`: the primary and the supplementary groups."""

    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """The peer of a connected unix socket.

        Kernel: SO_PEERGROUPS since 4.13. Where it fails, or there are more than 256 groups, only the primary counts.
        """
        _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        gids = {gid}
        with contextlib.suppress(OSError):
            packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
            gids.update(struct.unpack(f"{len(packed) // 4}I", packed))
        return cls(uid, frozenset(gids))


@dataclass(frozen=True, slots=True)
class PeerRule:
    """What a user, or the members of a group, may do.

    Attributes:
        name: The name of the rule.
        grant: What they may do.
        uid: The user; or:
        gid: the group. Exactly one of the two is set.
        on_behalf: They may say that others ask by way of them.
    """

    name: str
    grant: Grant
    uid: int | None = None
    gid: int | None = None
    on_behalf: bool = False


class Peers:
    """The rights of peers: root and the service's own user are admin, others get those of the first rule that fits."""

    def __init__(self, rules: Sequence[PeerRule] = ()) -> None:
        self._rules = rules

    def actor(self, peer: Peer) -> Actor:
        """The peer as an actor. One that no rule fits has no right."""
        name = f"unix:{_user_name(peer.uid)}"
        # Other daemons also run as nobody, and users that a user namespace does not map appear as nobody. So nobody is
        # never taken for the service's own user.
        if peer.uid == 0 or (peer.uid == os.geteuid() and peer.uid != _NOBODY):
            return Actor(name, EVERYTHING)
        for rule in self._rules:
            if rule.uid == peer.uid or (rule.gid is not None and rule.gid in peer.gids):
                return Actor(f"{name} ({rule.name})", rule.grant, may_name_others=rule.on_behalf)
        return Actor(name, None)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this IP address. False for names. A zone (`%eth0`) is ignored."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback
