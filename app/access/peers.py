"""Peers on the unix socket: known by the kernel's word (SO_PEERCRED, SO_PEERGROUPS)."""

import functools
import ipaddress
import os
import pwd
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from app.access.rights import EVERYTHING, Actor, Grant

_SO_PEERGROUPS: Final = 59  # include/uapi/asm-generic/socket.h, Linux 4.13
_GROUP_BYTES: Final = 1024  # the most that Python's getsockopt() takes
_NOBODY: Final = 65_534
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected. `gids`: the primary and the supplementary groups."""

    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """The peer of a connected unix socket."""
        _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        gids = {gid}
        with suppress(OSError):  # an older kernel, or more than 256 groups
            packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES)
            gids.update(struct.unpack(f"{len(packed) // 4}I", packed))
        return cls(uid, frozenset(gids))


@dataclass(frozen=True, slots=True)
class PeerRule:
    """What peers with this uid, or in this group, may do: one of the two is set."""

    name: str
    grant: Grant
    uid: int | None = None
    gid: int | None = None


class Peers:
    """Root and the service's own user may do everything; others by the first rule that fits them."""

    def __init__(self, rules: Sequence[PeerRule] = ()) -> None:
        self._rules = rules

    def actor(self, peer: Peer) -> Actor:
        """Who that is."""
        name = f"unix:{_user(peer.uid)}"
        # As nobody, other daemons run too, and whoever is unmapped in a user namespace: so that one is never "own".
        if peer.uid == 0 or (peer.uid == os.geteuid() and peer.uid != _NOBODY):
            return Actor(name, EVERYTHING)
        for rule in self._rules:
            if rule.uid == peer.uid or (rule.gid is not None and rule.gid in peer.gids):
                return Actor(f"{name} ({rule.name})", rule.grant)
        return Actor(name, None)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether this address, with or without a zone, is one that this machine alone can reach."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback
