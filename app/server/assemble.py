"""From the configuration to a listening socket and an application."""

import contextlib
import pwd
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI

from app import config as sections
from app.access.peers import Peers, is_loopback
from app.access.rights import Actor
from app.access.tokens import TokenFile, Tokens, TokensUnusable
from app.api.app import create_app
from app.api.audit import Audit, open_audit
from app.api.authorization import Authentication
from app.api.limits import Bounds, Limits
from app.config import Settings
from app.keeper.client import KeeperClient
from app.keeper.messages import Op
from app.server import logging as logs
from app.server.listen import ListenError, listen_tcp, listen_unix
from app.server.startup import group_of
from app.server.systemd import given_listeners
from app.server.tls import Tls, open_file
from app.service.registry.registry import Registry
from app.store.journal import Journal

log = structlog.get_logger()


def given_listener(settings: Settings) -> socket.socket | None:
    """The socket that systemd listens on for this service (socket activation). ListenError where it may not be used."""
    given = given_listeners()
    if not given:
        return None
    [listener, *others] = given
    if others:
        message = f"systemd gives {len(given)} sockets: one is served, so leave one ListenStream= in the unit"
        raise ListenError(message)
    if listener.family == socket.AF_UNIX:
        path = Path(listener.getsockname())
        if path.stat().st_mode & 0o007:
            message = f"the socket {path} is open to everybody: set SocketMode=0660 in its unit"
            raise ListenError(message)
    elif not settings.authenticates():
        message = "systemd gives a TCP socket, which needs authentication: add [tokens], or ListenStream= with a path"
        raise ListenError(message)
    return listener


def listen(
    settings: Settings, user: pwd.struct_passwd | None, given: socket.socket | None = None
) -> tuple[socket.socket, dict[str, Any], Callable[[], None]]:
    """The listening socket, what to log of it, and what to do at the end. StartError, ListenError."""
    if given is not None:
        return given, {"given": str(given.getsockname())}, given.close
    if settings.server.address is not None:
        listener = listen_tcp(*settings.server.address, only_loopback=False)
        address = str(listener.getsockname()[0])
        if settings.tls is None and not is_loopback(address):
            log.warning("tokens go over the network in plain text", remedy="set [tls]", host=address)
        return listener, {"host": address, "port": listener.getsockname()[1]}, listener.close
    path, group = settings.server.socket, group_of(settings)
    uid, own_group = (-1, -1) if user is None else (user.pw_uid, user.pw_gid)
    listener = listen_unix(path, uid, own_group if group is None else group)
    inode = path.stat().st_ino

    def end() -> None:
        listener.close()
        # Else the keeper does it, or the next start.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if path.stat().st_ino == inode:
                path.unlink()

    return listener, {"socket": str(path)}, end


def make_app(settings: Settings, registry: Registry, journal: Journal, keeper: KeeperClient | None = None) -> FastAPI:
    """The application as it is configured. ListenError: the audit file cannot be opened."""
    limits, keep_dir = settings.limits, settings.server.keep_dir
    try:
        audit = Audit(
            settings.audit.file,
            fsync=settings.audit.fsync,
            opened=open_audit if keeper is None else lambda file: _kept_audit(keeper, file),
            to_log=logs.info,
        )
    except OSError as error:
        message = (
            f"audit.file {settings.audit.file}: {error.strerror}: it has to be a file of root's in a folder of root's, "
            "or of the service's user in a folder of that one's"
        )
        raise ListenError(message) from error
    return create_app(
        registry,
        journal,
        keep_dir=None if keep_dir is None else str(keep_dir),
        drift_interval=settings.server.drift_interval,
        authentication=Authentication(
            peers=Peers([peer.rule(name) for name, peer in settings.peers.items()]),
            tokens=None if settings.tokens is None else _tokens(settings, keeper),
            certificates={} if settings.tls is None else _certificates(settings.tls),
            read_only=settings.server.read_only,
        ),
        audit=audit,
        limits=Limits(limits.event_readers, limits.held, limits.requests_per_second, limits.burst),
    )


def _kept_audit(keeper: KeeperClient, file: Path) -> int:
    """The keeper's where nobody else can write in its folder, and else one of this process's own."""
    try:
        return keeper.open(Op.AUDIT)
    except PermissionError:
        return open_audit(file)


def _tokens(settings: Settings, keeper: KeeperClient | None) -> Tokens:
    ask = None if keeper is None else lambda digest: keeper.ask(Op.TOKEN, text=digest)
    tokens = Tokens(TokenFile(settings.token_file()), ask)
    try:
        tokens.actor("")  # to know at the start what is wrong with them
    except TokensUnusable as error:
        log.warning("tokens cannot be checked", reason=str(error))
    return tokens


def _certificates(section: sections.Tls) -> dict[str, Actor]:
    return {client.san: Actor(f"certificate:{name}", client.grant()) for name, client in section.clients.items()}


def tls_of(settings: Settings, keeper: KeeperClient | None = None) -> Tls | None:
    """TLS as it is configured. TlsError."""
    section = settings.tls
    opened = open_file if keeper is None else lambda file: keeper.open(Op.READ, text=str(file))
    return None if section is None else Tls(section.certificate, section.key, section.client_ca, opened)


def bounds_of(settings: Settings) -> Bounds:
    """What a connection may take."""
    limits = settings.limits
    return Bounds(limits.connections, limits.header_bytes, limits.header_seconds)
