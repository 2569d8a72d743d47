"""What the process does to itself before it serves: the state folder, the keeper, the user and the capabilities.

`app.cli.serve` calls these in order. The order matters: each step needs rights that a later one gives up.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import stat
from pathlib import Path
from typing import Final

import structlog

from app.bpf.kernel import Kernel
from app.config import Settings
from app.keeper.client import KeeperClient
from app.keeper.messages import KeeperConfig
from app.keeper.process import NEEDED
from app.sandbox.abilities import refuses_all
from app.sandbox.capabilities import drop_capabilities, effective_capabilities, switch_user
from app.sandbox.seccomp import install_filter
from app.store import journal

_SWITCH_USER_CAPABILITIES: Final = {"CAP_CHOWN", "CAP_SETGID", "CAP_SETUID"}
# Some kernels refuse every bpf(2) to a process that has neither (kernel.unprivileged_bpf_disabled, before Linux 6.1).
_BPF_CAPABILITIES: Final = ["CAP_BPF", "CAP_SYS_ADMIN"]
# The journal's files, and how their content begins (sqlite.org/fileformat2.html). None: it has no fixed beginning.
_JOURNAL_FILES: Final = {"journal.db": b"SQLite format 3\0", "journal.db-wal": b"\x37\x7f\x06", "journal.db-shm": None}

MIN_FREE_BYTES: Final = 1 << 20  # on the disk of the state folder. With less it counts as full

log = structlog.get_logger()


class StartError(Exception):
    """The service cannot start. The text is one line: why, and the remedy."""


def service_user(settings: Settings) -> pwd.struct_passwd | None:
    """The user to switch to. None: this process is not root, or lacks the capabilities to switch.

    Raises:
        StartError: Neither the configured user nor nobody exists.
    """
    if os.geteuid() != 0 or not set(effective_capabilities()) >= _SWITCH_USER_CAPABILITIES:
        return None
    for name in (settings.server.user, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    message = f"neither the user {settings.server.user!r} nor nobody exists: create one, or set another user"
    raise StartError(message)


def lock_state(folder: Path) -> int:
    """Make `state_dir` where it is missing, and lock it against other services.

    Returns:
        An fd. The lock lasts as long as it is open.

    Raises:
        StartError: The folder cannot be used, or another service has locked it.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o022:
            message = f"state_dir {folder} can be written by others, who could forge the journal: chmod 700 it"
            raise StartError(message)
        # The service's user owns the folder. A link that this user has put there must not be followed: what it leads
        # to would be given to the user.
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "make it writable, or set another state_dir"
        message = f"state_dir {folder}: {error.strerror}: {remedy}"
        raise StartError(message) from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size:
        os.close(fd)
        message = f"{folder / 'lock'} is not the empty file that the service makes: remove it"
        raise StartError(message)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        message = f"state_dir {folder} is held by another jumptable: stop that one, or set another state_dir"
        raise StartError(message) from error
    return fd


def free_bytes(folder: Path) -> int:
    """The space that users other than root have left on the disk of a folder, or of the one that it is to be made in.

    0 where no file can be made any more (inodes).
    """
    found = os.statvfs(folder if folder.exists() else folder.parent)
    has_inodes = not found.f_files or found.f_favail
    return found.f_bavail * found.f_frsize if has_inodes else 0


def open_journal(settings: Settings) -> journal.Journal:
    """Open the journal, or create it.

    Raises:
        StartError: The disk is full, which SQLite tells in several ways.
        JournalDamaged, JournalFailed: As `Journal`.
    """
    folder = settings.server.state_dir
    try:
        return journal.Journal(folder / "journal.db", settings.server.durability)
    except journal.JournalFailed as error:
        if free_bytes(folder) < MIN_FREE_BYTES:
            message = f"the disk of state_dir {folder} is full: make room for the journal ({error})"
            raise StartError(message) from error
        raise


def start_keeper(
    settings: Settings,
    user: pwd.struct_passwd | None,
    *,
    has_passed_socket: bool = False,
    config_file: Path | None = None,
) -> KeeperClient | None:
    """Start the process that keeps the privileges. None: this process has none to keep.

    Args:
        settings: The configuration.
        user: Who gets `keep_dir`; None: nobody but who makes it.
        has_passed_socket: systemd listens on the socket. The keeper must leave it alone: it would connect to see
            whether it is stale, and systemd would start the service again.
        config_file: The configuration file, absolute, which the keeper opens when it is read anew.

    Raises:
        StartError: It does not start.
    """
    if not set(NEEDED) & set(effective_capabilities()):
        return None
    server, tls = settings.server, settings.tls
    held = [*settings.maps.values(), *settings.programs.values()]
    tls_files = [] if tls is None else [file for file in (tls.certificate, tls.key, tls.client_ca) if file is not None]
    config = KeeperConfig(
        pin_dirs=tuple(str(folder) for folder in server.pin_dirs),
        pins=tuple(str(each.pinned) for each in held if each.pinned is not None),
        keep_dir=None if server.keep_dir is None else str(server.keep_dir),
        owner=(-1, -1) if user is None else (user.pw_uid, user.pw_gid),
        reads=tuple(str(file) for file in (*tls_files, config_file) if file is not None),
        audit=None if settings.audit.file is None else str(settings.audit.file),
        tokens=None if settings.tokens is None else str(settings.token_file()),
        socket=str(server.socket) if not has_passed_socket and server.address is None else None,
        objects=settings.objects.limits(),
    )
    try:
        return KeeperClient(config)
    except OSError as error:
        message = f"the keeper, the process that keeps the privileges, does not start: {error.strerror or error}"
        raise StartError(message) from error


def switch_to_service_user(settings: Settings, user: pwd.struct_passwd | None, lock: int) -> None:
    """Give `user` the state folder, and become that user.

    Until `give_up_rights` the process can still reach the state folder, whoever owns the folders above it.

    Args:
        settings: The configuration.
        user: None: stay the user that this process runs as.
        lock: The fd of `lock_state`.

    Raises:
        StartError: The state folder cannot be given away.
        JournalDamaged: What is in the place of the journal is none.
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
            reason = "it lacks CAP_CHOWN, CAP_SETGID or CAP_SETUID, or the configured user is root"
            log.warning("the service stays root", reason=reason)
        drop_capabilities(["CAP_DAC_READ_SEARCH"], spare=_BPF_CAPABILITIES)
    except OSError as error:
        message = (
            f"state_dir {folder} cannot be given to the service's user: {error.strerror}: "
            "start with the capability CAP_DAC_OVERRIDE, or chown it"
        )
        raise StartError(message) from error


def check_state(settings: Settings, user: pwd.struct_passwd | None) -> None:
    """Check that the state folder can be given to `user`. A shared folder, such as /etc, must not be given away.

    Raises:
        StartError: There are files of others in it.
    """
    folder = settings.server.state_dir
    with contextlib.suppress(FileNotFoundError):
        status = folder.stat()
        if user is None or user.pw_uid in {0, status.st_uid} or not status.st_mode & 0o005:
            return
        own = {"lock", "objects", *_JOURNAL_FILES, settings.token_file().name}
        others = sorted({each.name for each in folder.iterdir()} - own)
        if others:
            message = (
                f"state_dir {folder} has other things in it ({others[0]}), and would be given to {user.pw_name}: make "
                f"a folder for the service alone: install -d -m 0700 -o {user.pw_name} DIR"
            )
            raise StartError(message)


def _give_journal(folder: Path, user: pwd.struct_passwd) -> None:
    """Give `user` a journal that belongs to root, as after root has put back a copy.

    Nothing else is given away: `user` owns the folder, and could have moved another file of root's there.
    """
    for name, beginning in _JOURNAL_FILES.items():
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            status, content = os.fstat(fd), os.read(fd, 16)
            if status.st_uid == user.pw_uid:
                continue
            has_one_name = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not has_one_name or beginning is None or not content.startswith(beginning):
                journal.check(folder / "journal.db")
                message = f"{folder / name} belongs to uid {status.st_uid}: chown {user.pw_name} it, or move it away"
                raise StartError(message)
            os.fchown(fd, user.pw_uid, user.pw_gid)
        finally:
            os.close(fd)


def check_bpf_allowed(kernel: Kernel) -> None:
    """Check that the kernel answers bpf(2) to this process.

    Raises:
        StartError: It refuses every call.
    """
    if refuses_all(kernel):
        message = (
            "this kernel answers no bpf(2) call of a process without CAP_BPF, as those before Linux 6.1 do: start as "
            "root, or with the capability CAP_BPF (AmbientCapabilities=), or set kernel.unprivileged_bpf_disabled to "
            "0; in a container, its seccomp profile has to allow bpf(2)"
        )
        raise StartError(message)


def give_up_rights(kernel: Kernel) -> None:
    """Give up all capabilities, and install the filter of system calls.

    One capability stays where this kernel refuses every bpf(2) call without it.
    """
    for kept in ([], *([each] for each in _BPF_CAPABILITIES)):
        drop_capabilities(kept, spare=_BPF_CAPABILITIES)
        if not refuses_all(kernel):
            break
    drop_capabilities(kept)
    if kept:
        reason = "without it this kernel refuses every bpf(2) call, as those before Linux 6.1 do"
        log.warning("the service keeps a capability", kept=kept, reason=reason)
    try:
        install_filter()
    except OSError as error:
        log.warning("system calls are not filtered: the service could attach what it holds", reason=error.strerror)
