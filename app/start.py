"""From the configuration to what is served: the kernel, the state folder, what is held, the user."""

import contextlib
import fcntl
import grp
import os
import pwd
from pathlib import Path
from typing import Final

import structlog

from app.access.rights import Ranges
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory import MemoryKernel
from app.bpf.privileges import become, effective, keep_only
from app.service.held import HeldMap, HeldProgram
from app.service.registry import Registry
from app.settings import Settings

# What the service goes on needing as another user: MAP_CREATE; *_GET_FD_BY_ID; pins of mode 0600 that are root's.
KEPT: Final = ["CAP_BPF", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]

log = structlog.get_logger()


class StartError(Exception):
    """Why the service cannot start, in one line."""


def make_kernel(name: str) -> Kernel:
    """The kernel of this name: `linux` or `memory`."""
    return MemoryKernel() if name == "memory" else LinuxKernel()


def lock_state(folder: Path) -> int:
    """Make the state folder and lock it, for as long as the fd that comes back is open. StartError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"state_dir {folder}: {error.strerror}: make it writable, or set another"
        raise StartError(message) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        message = f"state_dir {folder} is held by another jumptable: stop that one, or set another"
        raise StartError(message) from error
    return fd


def configure(registry: Registry, settings: Settings) -> None:
    """Hold what the configuration names; what cannot be opened is held as unavailable."""
    for name, map_ in settings.maps.items():
        entries = None if map_.create is None else map_.create.max_entries
        registry.maps.add(
            HeldMap(
                name,
                map_.source(),
                create_entries=entries,
                restore=map_.on_start == "restore",
                protected=Ranges.of(map_.protected),
            )
        )
    for name, program in settings.programs.items():
        registry.programs.add(HeldProgram(name, program.source()))
    registry.open_unavailable()


def user_of(settings: Settings) -> pwd.struct_passwd | None:
    """The user that the service becomes; None: it stays who it is, not being root or not free to change. StartError."""
    if os.geteuid() != 0 or not {"CAP_CHOWN", "CAP_SETGID", "CAP_SETUID"} <= set(effective()):
        return None
    for name in (settings.server.user, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    message = f"neither the user {settings.server.user!r} nor nobody exists: make one, or set user"
    raise StartError(message)


def group_of(settings: Settings) -> int | None:
    """The gid that may connect to the socket; None: not configured. StartError."""
    name = settings.server.socket_group
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError as error:
        message = f"there is no group {name!r}: groupadd {name}, or set another socket_group"
        raise StartError(message) from error


def drop_privileges(settings: Settings, user: pwd.struct_passwd | None, lock: int) -> None:
    """Become `user`, having given it state_dir and the lock in it; keep three capabilities at the most. StartError."""
    folder = settings.server.state_dir
    try:
        if user is not None and user.pw_uid != 0:
            os.fchown(lock, user.pw_uid, user.pw_gid)
            os.chown(folder, user.pw_uid, user.pw_gid)
            become(user.pw_uid, user.pw_gid)
        elif os.geteuid() == 0:
            log.warning("stays root", reason="CAP_CHOWN, CAP_SETGID or CAP_SETUID is missing, or user is root")
        keep_only(KEPT)
    except OSError as error:
        message = f"state_dir {folder} cannot be given to the service's user: {error.strerror}; CAP_DAC_OVERRIDE helps"
        raise StartError(message) from error
