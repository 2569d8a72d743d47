"""Listening sockets: unix and TCP."""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from app.access.peers import is_loopback


class ListenError(Exception):
    """Why the service cannot listen, in one line."""


def listen_unix(path: Path, uid: int, gid: int) -> socket.socket:
    """A listening unix socket with this owner and mode 0660 from its first moment; a stale file is replaced.

    -1: the process's own uid or gid. ListenError where it cannot be.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            message = f"{path} is there already and is no socket: remove it, or set another socket"
            raise ListenError(message)
        if _answers(path):
            message = f"{path}: another process is listening there: stop it, or set another socket"
            raise ListenError(message)
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        umask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        os.chown(path, uid, gid, follow_symlinks=False)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {path}: {error.strerror or error}; make its folder writable, or set another socket"
        raise ListenError(message) from error
    return listener


def listen_tcp(host: str, port: int, *, only_loopback: bool) -> socket.socket:
    """A listening TCP socket; `only_loopback`: only where this machine alone can reach it. ListenError."""
    try:
        found = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        address = ipaddress.ip_address(found.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        if only_loopback and not is_loopback(found):
            told = host if host == found else f"{host} ({found})"
            message = f"{told} can be reached by others: without authentication only loopback is served"
            raise ListenError(message)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        listener = socket.create_server((str(address), port), family=family, backlog=1024)
    except OSError as error:
        remedy = "; choose another port" if error.errno == errno.EADDRINUSE else ""
        message = f"cannot listen on {host} port {port}: {error.strerror or error}{remedy}"
        raise ListenError(message) from error
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
