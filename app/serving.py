"""From the configuration to a listening socket and an application."""

import pwd
import socket
from collections.abc import Callable
from typing import Any

import structlog
from fastapi import FastAPI

from app import sections
from app.access.peers import Peers
from app.access.rights import Actor
from app.access.tokens import TokenFile, Tokens
from app.api.audit import Audit
from app.api.limits import Limits
from app.api.policy import Authentication, is_loopback
from app.main import create_app
from app.protocol import Bounds
from app.server import listen_tcp, listen_unix
from app.service.registry import Registry
from app.settings import Settings
from app.start import group_of
from app.store.journal import Journal
from app.tls import Tls

log = structlog.get_logger()


def listen(
    settings: Settings, user: pwd.struct_passwd | None
) -> tuple[socket.socket, dict[str, Any], Callable[[], None]]:
    """The listening socket, what to log of it, and what to do at the end. StartError, ListenError."""
    if settings.server.host is not None or settings.server.port is not None:
        host, port = settings.server.host or "127.0.0.1", settings.server.port or 0
        listener = listen_tcp(host, port, only_loopback=False)
        address = str(listener.getsockname()[0])
        if settings.tls is None and not is_loopback(address):
            log.warning("tokens go over the network in plain text", remedy="set [tls]", host=address)
        return listener, {"host": address, "port": listener.getsockname()[1]}, listener.close
    path, group = settings.server.socket, group_of(settings)
    uid, own_group = (-1, -1) if user is None else (user.pw_uid, user.pw_gid)
    listener = listen_unix(path, uid, own_group if group is None else group)
    inode = path.stat().st_ino

    def end() -> None:
        if path.exists() and path.stat().st_ino == inode:
            path.unlink()

    return listener, {"socket": str(path)}, end


def make_app(settings: Settings, registry: Registry, journal: Journal) -> FastAPI:
    """The application as it is configured."""
    limits, keep_dir = settings.limits, settings.server.keep_dir
    return create_app(
        registry,
        journal,
        keep_dir=None if keep_dir is None else str(keep_dir),
        drift_interval=settings.server.drift_interval,
        authentication=Authentication(
            peers=Peers([peer.rule(name) for name, peer in settings.peers.items()]),
            tokens=None if settings.tokens is None else Tokens(TokenFile(settings.token_file())),
            certificates={} if settings.tls is None else _certificates(settings.tls),
            read_only=settings.server.read_only,
        ),
        audit=Audit(settings.audit.file, fsync=settings.audit.fsync),
        limits=Limits(limits.event_readers, limits.held, limits.requests_per_second, limits.burst),
    )


def _certificates(section: sections.Tls) -> dict[str, Actor]:
    return {client.san: Actor(f"certificate:{name}", client.grant()) for name, client in section.clients.items()}


def tls_of(settings: Settings) -> Tls | None:
    """TLS as it is configured. TlsError."""
    section = settings.tls
    return None if section is None else Tls(section.certificate, section.key, section.client_ca)


def bounds_of(settings: Settings) -> Bounds:
    """What a connection may take."""
    limits = settings.limits
    return Bounds(limits.connections, limits.header_bytes, limits.header_seconds)
