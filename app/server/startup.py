"""From the configuration to what is served: the kernel, the state folder, what is held, the user."""

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

import structlog

from app.access.rights import Ranges
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.config import Settings
from app.keeper.client import KeeperClient, KeeperKernel
from app.keeper.messages import KeeperConfig
from app.keeper.process import NEEDED
from app.sandbox.capabilities import drop_capabilities, effective_capabilities, switch_user
from app.sandbox.seccomp import install_filter
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store import journal

# kernel.unprivileged_bpf_disabled kept everything shut but to these (Linux 5.8, and before) until some 5.1x.
_FOR_BPF: Final = ["CAP_BPF", "CAP_SYS_ADMIN"]
# Its files, and what they begin with (sqlite.org/fileformat2.html); None: nothing tells.
_JOURNAL: Final = {"journal.db": b"SQLite format 3\0", "journal.db-wal": b"\x37\x7f\x06", "journal.db-shm": None}

log = structlog.get_logger()


class StartError(Exception):
    """Why the service cannot start, in one line."""


def make_kernel(name: str, keeper: KeeperClient | None = None, keep_dir: Path | None = None) -> Kernel:
    """The kernel of this name: `linux` or `memory`; `keeper`: opens and makes what this process may not."""
    if name == "memory":
        return MemoryKernel()
    kernel = LinuxKernel() if keeper is None else KeeperKernel(keeper, None if keep_dir is None else str(keep_dir))
    kernel.table_programs()  # now, and not while the first request waits
    return kernel


def lock_state(folder: Path) -> int:
    """Make the state folder and lock it, for as long as the fd that comes back is open. StartError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o022:
            message = f"state_dir {folder} can be written by others, who could forge the journal: chmod 700 it"
            raise StartError(message)
        # The folder belongs to the service's user: a link that one has put there would be followed, and given to it.
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
    except OSError as error:
        message = f"state_dir {folder}: {error.strerror}: make it writable, or set another"
        raise StartError(message) from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size:
        os.close(fd)
        message = f"state_dir {folder}: lock in it is no empty file of its own: somebody has put it there; remove it"
        raise StartError(message)
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
    if os.geteuid() != 0 or not {"CAP_CHOWN", "CAP_SETGID", "CAP_SETUID"} <= set(effective_capabilities()):
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


def start_keeper(settings: Settings, user: pwd.struct_passwd | None, *, is_given: bool = False) -> KeeperClient | None:
    """The process that keeps the privileges; None where there are none to keep. StartError.

    `is_given`: the socket is systemd's, which a look at whether it still answers would wake.
    """
    if not set(NEEDED) & set(effective_capabilities()):
        return None
    server, tls = settings.server, settings.tls
    held = [*settings.maps.values(), *settings.programs.values()]
    files = [] if tls is None else [tls.certificate, tls.key, *([] if tls.client_ca is None else [tls.client_ca])]
    duties = KeeperConfig(
        pin_dirs=tuple(str(folder) for folder in server.pin_dirs),
        pins=tuple(str(each.pinned) for each in held if each.pinned is not None),
        keep_dir=None if server.keep_dir is None else str(server.keep_dir),
        owner=(-1, -1) if user is None else (user.pw_uid, user.pw_gid),
        reads=tuple(str(file) for file in files),
        audit=None if settings.audit.file is None else str(settings.audit.file),
        tokens=None if settings.tokens is None else str(settings.token_file()),
        socket=str(server.socket) if not is_given and server.address is None else None,
    )
    try:
        return KeeperClient(duties)
    except OSError as error:
        message = f"the keeper, the process that keeps the privileges, does not start: {error.strerror or error}"
        raise StartError(message) from error


def check_state(settings: Settings, user: pwd.struct_passwd | None) -> None:
    """StartError where state_dir is a folder that others use as well, as /etc: it would be given to `user`."""
    folder = settings.server.state_dir
    with contextlib.suppress(FileNotFoundError):
        status = folder.stat()
        if user is None or user.pw_uid in {0, status.st_uid} or not status.st_mode & 0o005:
            return
        own = {"lock", *_JOURNAL, settings.token_file().name}
        others = sorted({each.name for each in folder.iterdir()} - own)
        if others:
            message = (
                f"state_dir {folder} has other things in it ({others[0]}), and would be given to {user.pw_name}: make "
                f"a folder of its own: install -d -m 0700 -o {user.pw_name} DIR"
            )
            raise StartError(message)


def become_user(settings: Settings, user: pwd.struct_passwd | None, lock: int) -> None:
    """Become `user`, having given it state_dir and the lock in it. StartError.

    What is left is the right to get to state_dir, wherever it is, until `give_up_rights`.
    """
    folder = settings.server.state_dir
    try:
        if user is not None and user.pw_uid != 0:
            check_state(settings, user)
            _give_journal(folder, user)
            os.fchown(lock, user.pw_uid, user.pw_gid)
            os.chown(folder, user.pw_uid, user.pw_gid)
            switch_user(user.pw_uid, user.pw_gid)
        elif os.geteuid() == 0:
            log.warning("stays root", reason="CAP_CHOWN, CAP_SETGID or CAP_SETUID is missing, or user is root")
        drop_capabilities(["CAP_DAC_READ_SEARCH"], spare=_FOR_BPF)
    except OSError as error:
        message = f"state_dir {folder} cannot be given to the service's user: {error.strerror}; CAP_DAC_OVERRIDE helps"
        raise StartError(message) from error


def _give_journal(folder: Path, user: pwd.struct_passwd) -> None:
    """Give `user` a journal of root's, as root puts back a copy. StartError, JournalDamaged.

    Only what is one: the folder is `user`'s, who could have put another file of root's there.
    """
    for name, magic in _JOURNAL.items():
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            status, begins = os.fstat(fd), os.read(fd, 16)
            if status.st_uid == user.pw_uid:
                continue
            is_whole = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not is_whole or magic is None or not begins.startswith(magic):
                journal.check(folder / "journal.db")
                message = f"{folder / name} belongs to uid {status.st_uid}: chown {user.pw_name} it, or move it away"
                raise StartError(message)
            os.fchown(fd, user.pw_uid, user.pw_gid)
        finally:
            os.close(fd)


def give_up_rights(kernel: Kernel) -> None:
    """Keep no capability, or the one without which this kernel answers no bpf(2), and only what is used of bpf(2)."""
    for kept in ([], *([each] for each in _FOR_BPF)):
        drop_capabilities(kept, spare=_FOR_BPF)
        if not _refuses_all(kernel):
            break
    drop_capabilities(kept)
    if kept:
        log.warning("keeps a capability", kept=kept, reason="this kernel answers no bpf(2) without it, as before 6.1")
    try:
        install_filter()
    except OSError as error:
        log.warning("its system calls are not filtered: what it holds it may also attach", reason=error.strerror)


def _refuses_all(kernel: Kernel) -> bool:
    try:
        kernel.map_info(-1)
    except OSError as error:
        return error.errno == errno.EPERM
    return False
