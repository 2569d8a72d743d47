"""What `jumptable check` finds of the ground that serve stands on: user, rights, socket and state_dir."""

import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.access.peers import is_loopback
from app.keeper.process import KEPT, NEEDED
from app.sandbox.capabilities import effective
from app.server.settings import Settings
from app.server.startup import StartError, check_state, group_of, user_of


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    mark: str  # ok, warn or WRONG
    subject: str
    detail: str

    @property
    def is_wrong(self) -> bool:
        """Whether `serve` would fail at it, or not be ready."""
        return self.mark == "WRONG"

    @property
    def text(self) -> str:
        """The line."""
        return f"{self.mark:5} {self.subject}: {self.detail}"


def of_the_ground(settings: Settings) -> Iterator[Finding]:
    """Look at it, and change nothing."""
    yield _user(settings)
    yield from _rights(settings)
    address = settings.server.address
    yield _socket(settings) if address is None else _tcp(*address, is_plain=settings.tls is None)
    yield _state(settings)


def _user(settings: Settings) -> Finding:
    try:
        user = user_of(settings)
    except StartError as error:
        return Finding("WRONG", "server.user", str(error))
    if user is None:
        return Finding("ok", "server.user", f"the service stays uid {os.geteuid()}, as it may not become another")
    told = f"the service becomes {user.pw_name} (uid {user.pw_uid})"
    if user.pw_name == settings.server.user:
        return Finding("ok", "server.user", told)
    return Finding("warn", "server.user", f"there is no user {settings.server.user!r}, so {told}")


def _rights(settings: Settings) -> Iterator[Finding]:
    """Who will hold which capability, if serve is started as check is."""
    kept = [name for name in KEPT if name in effective()]
    if not set(kept) & set(NEEDED):
        yield Finding(
            "ok", "rights", "one process with no capability: pins by their file permissions, nothing by id, no create"
        )
        return
    user = user_of(settings)
    who = f"uid {os.geteuid() if user is None else user.pw_uid}"
    yield Finding("ok", "rights: keeper", f"uid {os.geteuid()}, {', '.join(kept)}")
    yield Finding("ok", "rights: listener", f"{who}, no capability (before Linux 6.1 it keeps CAP_BPF)")
    missing = [name for name in KEPT if name not in kept]
    if missing:
        yield Finding("warn", "rights: keeper", f"lacks {', '.join(missing)}: README.md, Capabilities, tells for what")


def _socket(settings: Settings) -> Finding:
    path = settings.server.socket
    try:
        group_of(settings)
    except StartError as error:
        return Finding("WRONG", "server.socket_group", str(error))
    try:
        if path.exists() and not path.is_socket():
            return Finding("WRONG", "server.socket", f"{path} is there and is no socket: remove it, or set another")
    except OSError as error:
        return Finding("WRONG", "server.socket", f"{path}: {error.strerror}: run check as the user that serves")
    if settings.peers and settings.server.socket_group is None and _writable("", path.parent, "").mark == "ok":
        return Finding("warn", "server.socket", f"{path}: set socket_group, or [peers] other than root cannot connect")
    return _writable("server.socket", path.parent, str(path))


def _tcp(host: str, port: int, *, is_plain: bool) -> Finding:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family) as trial:
            found = str(trial.getsockname()[0])
    except OSError as error:
        why = error.strerror or str(error)
        return Finding("warn", "server.host", f"{host} port {port}: {why} (as it is where the service runs)")
    if is_plain and not is_loopback(found):
        return Finding("warn", "server.host", f"{host} port {port}: tokens go in plain text: set [tls]")
    return Finding("ok", "server.host", f"{host} port {port}")


def _state(settings: Settings) -> Finding:
    folder = settings.server.state_dir
    try:
        check_state(settings, user_of(settings))
        if folder.exists() and folder.stat().st_mode & 0o022:
            return Finding("WRONG", "server.state_dir", f"{folder} can be written by others: chmod 700 it")
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except StartError as error:
        return Finding("WRONG", "server.state_dir", str(error))
    except BlockingIOError:
        return Finding("ok", "server.state_dir", f"{folder}; a jumptable runs with it just now")
    except OSError as error:
        return Finding("WRONG", "server.state_dir", f"{folder}: {error.strerror}: run check as the user that serves")
    return _writable("server.state_dir", folder, str(folder))


def _writable(subject: str, folder: Path, told: str) -> Finding:
    """A folder that is writable, or that can be made in its parent."""
    nearest = folder if os.path.lexists(folder) else folder.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        return Finding("WRONG", subject, f"{told}: {nearest} is no folder that this user may write in")
    return Finding("ok", subject, told if nearest == folder else f"{told} (is made)")
