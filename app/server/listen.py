"""The socket that the service listens on: passed by systemd, a unix socket, or TCP."""

import contextlib
import errno
import grp
import ipaddress
import os
import pwd
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from app.access.peers import is_loopback
from app.config import ServiceSettings
from app.server.systemd import passed_sockets

_BACKLOG: Final = 1024  # connections that wait to be accepted

log = structlog.get_logger()


class ListenError(Exception):
    """The service cannot listen. The text is one line: why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `address`: where it listens, as facts for the log; `close`: to be called at the end."""

    socket: socket.socket
    address: Mapping[str, str | int]
    close: Callable[[], None]


def passed_socket(settings: ServiceSettings) -> socket.socket | None:
    """The listening socket that systemd passes to the service (socket activation). None: it passes none.

    Raises:
        ListenError: There are several, or clients could connect that the configuration cannot identify.
    """
    sockets = passed_sockets()
    if not sockets:
        return None
    [listener, *others] = sockets
    if others:
        message = f"systemd passes {len(sockets)} sockets, but one is served: leave one ListenStream= in the unit"
        raise ListenError(message)
    if listener.family == socket.AF_UNIX:
        path = Path(listener.getsockname())
        if path.stat().st_mode & 0o007:
            message = f"the socket {path} is open to everybody: set SocketMode=0660 in its unit"
            raise ListenError(message)
    elif not settings.authenticates():
        raise ListenError("systemd passes a TCP socket, which needs authentication: add [tokens], or a unix socket")
    return listener


def open_listener(
    settings: ServiceSettings, user: pwd.struct_passwd | None, passed: socket.socket | None = None
) -> Listener:
    """Listen where the configuration says.

    Args:
        settings: The configuration.
        user: Who gets the unix socket; None: the user that this process runs as.
        passed: The socket that systemd passes, which is used instead of the configured one.

    Raises:
        ListenError: The address cannot be used, or there is no such group.
    """
    if passed is not None:
        return Listener(passed, {"systemd_socket": str(passed.getsockname())}, passed.close)
    if settings.server.address is not None:
        return _tcp_listener(settings, *settings.server.address)
    return _unix_listener(settings, user)


def unserved_socket(settings: ServiceSettings) -> str | None:
    """What to say where the configuration names both a unix socket and an address. None: it names one of them."""
    server = settings.server
    if server.address is None or "socket" not in server.model_fields_set:
        return None
    return f"both an address and the socket {server.socket} are set: only the address is served; remove one of them"


def unreachable_socket(settings: ServiceSettings) -> str | None:
    """What to say where the mode of the socket's folder keeps `socket_group` out. None: it does not.

    Raises:
        ListenError: There is no such group.
    """
    folder, group = settings.server.socket.parent, socket_group(settings)
    if group is None or not folder.exists():
        return None
    status = folder.stat()
    if status.st_mode & (stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH):
        return None
    name = settings.server.socket_group
    return f"the mode of {folder} keeps the group {name} away from the socket: chmod 755 {folder}"


def _tcp_listener(settings: ServiceSettings, host: str, port: int) -> Listener:
    unserved = unserved_socket(settings)
    if unserved is not None:
        log.warning("the socket is not served", reason=unserved)
    listener = listen_tcp(host, port, only_loopback=False)
    address, number = listener.getsockname()[:2]
    if settings.tls is None and not is_loopback(address):
        log.warning("tokens go over the network in plain text", remedy="set [tls]", host=address)
    return Listener(listener, {"host": address, "port": number}, listener.close)


def _unix_listener(settings: ServiceSettings, user: pwd.struct_passwd | None) -> Listener:
    path, group = settings.server.socket, socket_group(settings)
    uid, own_group = (-1, -1) if user is None else (user.pw_uid, user.pw_gid)
    listener = listen_unix(path, uid, own_group if group is None else group)
    unreachable = unreachable_socket(settings)
    if unreachable is not None:
        log.warning("the socket cannot be reached", reason=unreachable)
    inode = path.stat().st_ino

    def close() -> None:
        listener.close()
        # After a switch of the user this can fail. The keeper removes the socket then, or the next start does.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if path.stat().st_ino == inode:
                path.unlink()

    return Listener(listener, {"socket": str(path)}, close)


def socket_group(settings: ServiceSettings) -> int | None:
    """The gid of `socket_group`. None: it is not configured.

    Raises:
        ListenError: There is no such group.
    """
    name = settings.server.socket_group
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError as error:
        message = f"there is no group {name!r}: create it with groupadd {name}, or set another socket_group"
        raise ListenError(message) from error


def listen_unix(path: Path, uid: int, gid: int) -> socket.socket:
    """Listen on a unix socket. It has this owner and mode 0660 before anybody can connect.

    Args:
        path: Where. A socket file that nobody listens on is replaced. The folder is made where it is missing.
        uid: The owner; -1: this process's own.
        gid: The group; -1: this process's own.

    Raises:
        ListenError: Something else is at `path`, somebody listens there, or the folder is not writable.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            message = f"{path} is there already and is no socket: remove it, or set another socket"
            raise ListenError(message)
        if _accepts_connections(path):
            message = f"{path}: another process is listening there: stop it, or set another socket"
            raise ListenError(message)
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        umask = os.umask(0o022)  # that of this process may be tighter, and nobody else could reach the socket
        try:
            path.parent.mkdir(mode=0o755, exist_ok=True)
        finally:
            os.umask(umask)
        umask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        os.chown(path, uid, gid, follow_symlinks=False)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {path}: {error.strerror or error}; make its folder writable, or set another socket"
        raise ListenError(message) from error
    return listener


def listen_tcp(host: str, port: int, *, only_loopback: bool) -> socket.socket:
    """Listen on TCP.

    Args:
        host: A name or an address.
        port: 0: any free port.
        only_loopback: Refuse an address that other machines can reach.

    Raises:
        ListenError: The address or the port cannot be used, or other machines can reach it.
    """
    try:
        found = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        address = ipaddress.ip_address(found.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        if only_loopback and not is_loopback(found):
            shown = host if host == found else f"{host} ({found})"
            message = f"{shown} can be reached by others: without authentication only loopback is served"
            raise ListenError(message)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        listener = socket.create_server((str(address), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        remedy = "; choose another port" if error.errno == errno.EADDRINUSE else ""
        message = f"cannot listen on {host} port {port}: {error.strerror or error}{remedy}"
        raise ListenError(message) from error
    return listener


def _accepts_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
