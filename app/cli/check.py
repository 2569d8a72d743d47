"""What `jumptable check` finds: all that `serve` would open, opened and closed again."""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from app.access.peers import is_loopback
from app.access.tokens import TokenFile, TokensUnusable
from app.bpf.kernel import Kernel
from app.cli.common import CONFIG, load_or_fail
from app.config import Settings
from app.keeper.paths import own_file
from app.keeper.process import KEPT, NEEDED
from app.sandbox.capabilities import effective_capabilities
from app.server.startup import StartError, check_state, group_of, make_kernel, user_of
from app.server.tls import Tls, TlsError
from app.service.changes.undo_pins import check_keep_dir
from app.service.errors import PinUnusable, ServiceError
from app.service.lifecycle import source_of
from app.service.objects.opening import check_pinnable, open_array, open_program
from app.service.objects.source import ById, Source
from app.store import journal
from app.store.records import Hold


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
    kept = [name for name in KEPT if name in effective_capabilities()]
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


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at everything, and change nothing."""
    yield from of_the_ground(settings)
    yield from _access(settings)
    yield from _audit(settings)
    holds: list[Hold] = []
    yield from _journal(settings.server.state_dir / "journal.db", holds)
    try:
        kernel = make_kernel(settings.server.kernel)
    except OSError as error:
        yield Finding("WRONG", "kernel", f"{error.strerror}: jumptable runs on x86-64 and aarch64")
        return
    yield Finding("ok", "kernel", kernel.name)
    for folder in settings.server.pin_dirs:
        if settings.server.kernel == "linux" and not folder.is_dir():
            yield Finding(
                "warn", f"server.pin_dirs {folder}", "is no folder: mount bpffs (mount -t bpf bpf /sys/fs/bpf)"
            )
    yield from _keep_dir(kernel, settings)
    # What requests had held: the configuration has precedence.
    held = [hold for hold in holds if hold.name not in (settings.maps if hold.kind == "map" else settings.programs)]
    held = [hold for hold in held if hold.pinned is not None or hold.boot_id == kernel.boot_id]
    names: dict[int, str] = {}
    for name, map_ in settings.maps.items():
        yield from _map(kernel, name, map_.source(), None if map_.create is None else map_.create.max_entries, names)
    for hold in held:
        if hold.kind == "map":
            yield from _map(kernel, hold.name, source_of(hold), hold.create_entries, names)
    for name, program in settings.programs.items():
        yield from _program(kernel, name, program.source())
    for hold in held:
        if hold.kind == "program":
            yield from _program(kernel, hold.name, source_of(hold))


def _map(
    kernel: Kernel, name: str, source: Source, create_entries: int | None, names: dict[int, str]
) -> Iterator[Finding]:
    try:
        with open_array(kernel, source) as array:
            other = names.setdefault(array.id, name)
            if other != name:
                yield Finding("WRONG", f"map {name}", f"is the same array as map {other}: remove one of the two")
                return
            used = len(array.indices())
            yield Finding("ok", f"map {name}", f"id {array.id}, {used} of {array.max_entries} entries used")
            yield from _by_id(f"map {name}", source)
            if create_entries not in {None, array.max_entries}:
                yield Finding("warn", f"map {name}", f"create asks for {create_entries} entries, but it is there")
    except ServiceError as error:
        if create_entries is not None and isinstance(error, PinUnusable) and error.errno == "ENOENT":
            yield _would_make(kernel, name, error.pinned)
        else:
            yield Finding("WRONG", f"map {name}", str(error))


def _program(kernel: Kernel, name: str, source: Source) -> Iterator[Finding]:
    try:
        with open_program(kernel, source) as program:
            yield Finding("ok", f"program {name}", f"id {program.id}, type {program.type}")
            yield from _by_id(f"program {name}", source)
    except ServiceError as error:
        yield Finding("WRONG", f"program {name}", str(error))


def _access(settings: Settings) -> Iterator[Finding]:
    if settings.tokens is not None:
        try:
            kept = TokenFile(settings.token_file()).read()
            if settings.token_file().exists() and set(NEEDED) & set(effective_capabilities()):
                os.close(own_file(str(settings.token_file()), os.O_RDONLY))  # as the keeper opens it
            yield Finding("ok", "tokens", f"{settings.token_file()}; {len(kept)} of them")
        except TokensUnusable as error:
            yield Finding("WRONG", "tokens", str(error))
        except OSError as error:
            yield Finding(
                "WRONG", "tokens", f"{settings.token_file()}: {error.strerror}: it has to be root's: chown it"
            )
    if settings.tls is not None:
        try:
            Tls(settings.tls.certificate, settings.tls.key, settings.tls.client_ca)
            yield Finding("ok", "tls", str(settings.tls.certificate))
        except TlsError as error:
            yield Finding("WRONG", "tls", str(error))


def _audit(settings: Settings) -> Iterator[Finding]:
    file = settings.audit.file
    if file is None:
        yield Finding("ok", "audit", "goes to the log")
    elif file.exists() and not file.is_file():
        yield Finding("WRONG", "audit.file", f"{file} is no file: name another")
    elif not file.parent.is_dir():
        yield Finding("WRONG", "audit.file", f"{file}: its folder is missing: install -d -m 0700 {file.parent}")
    else:
        yield Finding("ok", "audit.file", str(file))


def _keep_dir(kernel: Kernel, settings: Settings) -> Iterator[Finding]:
    folder = settings.server.keep_dir
    if folder is None:
        yield Finding(
            "ok", "server.keep_dir", "is not set: confirm_within takes only changes that replace pinned programs"
        )
        return
    try:
        check_keep_dir(kernel, str(folder))
        yield Finding("ok", "server.keep_dir", str(folder))
    except PinUnusable as error:
        yield Finding("WRONG", "server.keep_dir", str(error))


def _by_id(subject: str, source: Source) -> Iterator[Finding]:
    if isinstance(source, ById):
        yield Finding(
            "warn", subject, "is held by id: gone with the boot, and an array is emptied with its last holder"
        )


def _would_make(kernel: Kernel, name: str, path: str) -> Finding:
    try:
        check_pinnable(kernel, path)
    except PinUnusable as error:
        return Finding("WRONG", f"map {name}", f"is not there, and cannot be made: {error}")
    return Finding("ok", f"map {name}", f"is not there yet; serve makes it and pins it at {path}")


def _journal(file: Path, holds: list[Hold]) -> Iterator[Finding]:
    """`holds`: gets what requests had held."""
    if os.access(file, os.R_OK):
        try:
            holds += journal.check(file)
            yield Finding("ok", "journal", str(file))
        except (journal.JournalDamaged, journal.JournalFailed) as error:
            yield Finding("WRONG", "journal", str(error))


@click.command("check")
@CONFIG
def check_command(file: Path) -> None:
    """Open all that serve would, change nothing, and tell what is wrong and how to mend it."""
    settings = load_or_fail(file)
    wrong = False
    for finding in findings(settings):
        wrong |= finding.is_wrong
        click.echo(finding.text)
    sys.exit(1 if wrong else 0)
