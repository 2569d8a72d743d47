"""The command `jumptable check`: open all that `serve` would open, close it again, and report what is wrong."""

import fcntl
import os
import platform
import socket
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import click

from app import native
from app.access.peers import is_loopback
from app.access.tokens import TokenFile, TokensUnusable
from app.bpf.kernel import Ability, Kernel
from app.cli.common import CONFIG, load_or_fail
from app.config import Settings
from app.config import Tls as TlsSection
from app.keeper.paths import own_file
from app.keeper.process import KEPT, KEPT_FOR_OBJECTS, NEEDED
from app.loader.libbpf import LIBRARY, library
from app.sandbox import landlock, seccomp
from app.sandbox.capabilities import effective_capabilities
from app.server.assemble import make_kernel
from app.server.listen import ListenError, socket_group, unreachable_socket, unserved_socket
from app.server.open_files import share_open_files
from app.server.run import raise_memlock
from app.server.startup import MIN_FREE_BYTES, StartError, check_bpf_allowed, check_state, free_bytes, service_user
from app.server.tls import Tls, TlsError
from app.service.changes.undo_pins import check_keep_dir, foreign_names
from app.service.errors import PinUnusable, ServiceError
from app.service.lifecycle import source_of
from app.service.objects.opening import check_pinnable, open_array, open_program
from app.service.objects.source import ById, Source
from app.store import journal
from app.store.records import Hold

_ID_WARNING: Final = "is held by id: it is gone after a reboot, and an array is emptied when its last holder ends"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `mark`: WRONG where `serve` would not start, or would not get ready."""

    mark: Literal["ok", "warn", "WRONG"]
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.mark:5} {self.subject}: {self.detail}"


@click.command("check")
@CONFIG
def check_command(file: Path) -> None:
    """Check the configuration without changing anything.

    Opens all that serve would open, and says how to fix what is wrong. Exits with status 1 if something is WRONG.
    """
    settings = load_or_fail(file)
    status = 0
    for finding in findings(settings):
        click.echo(finding)
        if finding.mark == "WRONG":
            status = 1
    sys.exit(status)


def findings(settings: Settings) -> Iterator[Finding]:
    """Check everything, in the order of the configuration file. Changes nothing."""
    yield _user(settings)
    yield from _rights(settings)
    address = settings.server.address
    yield _socket(settings) if address is None else _tcp(*address, is_plain=settings.tls is None)
    unserved = unserved_socket(settings)
    if unserved is not None:
        yield Finding("warn", "server.host", unserved)
    yield _state_dir(settings)
    if settings.tokens is not None:
        yield _tokens(settings.token_file())
    if settings.tls is not None:
        yield _tls(settings.tls)
    yield _audit(settings.audit.file)
    recorded_holds: list[Hold] = []
    yield from _journal(settings.server.state_dir / "journal.db", recorded_holds)
    yield _open_files(settings, recorded_holds)
    try:
        if settings.server.kernel == "linux":
            raise_memlock()  # as serve does, so that the report is of what serve meets
        kernel = make_kernel(settings.server.kernel)
        check_bpf_allowed(kernel)
    except OSError as error:
        yield Finding("WRONG", "kernel", f"{error.strerror}: jumptable runs on x86-64 and aarch64")
        return
    except StartError as error:
        yield Finding("WRONG", "kernel", str(error))
        return
    yield Finding("ok", "kernel", f"{kernel.name}, {platform.release()} on {platform.machine()}")
    for ability in kernel.abilities:
        yield _ability(ability)
    yield Finding("ok", "implementation", native.told())
    yield from _pin_dirs(settings)
    yield from _objects(settings)
    yield _keep_dir(kernel, settings.server.keep_dir)
    yield from _maps_and_programs(kernel, settings, recorded_holds)


def _ability(ability: Ability) -> Finding:
    """Only what `serve` does with it makes a difference: a limit can be raised, the rest is as the kernel is."""
    is_trouble = ability.name == "memlock" and ability.can is False
    return Finding("warn" if is_trouble else "ok", f"kernel: {ability.name}", ability.detail)


def _user(settings: Settings) -> Finding:
    try:
        user = service_user(settings)
    except StartError as error:
        return Finding("WRONG", "server.user", str(error))
    if user is None:
        reason = "as it has no right to switch to another user"
        return Finding("ok", "server.user", f"the service stays uid {os.geteuid()}, {reason}")
    switch = f"the service switches to {user.pw_name} (uid {user.pw_uid})"
    if user.pw_name == settings.server.user:
        return Finding("ok", "server.user", switch)
    return Finding("warn", "server.user", f"there is no user {settings.server.user!r}, so {switch}")


def _rights(settings: Settings) -> Iterator[Finding]:
    """Which process will have which capabilities, if `serve` is started as this command is."""
    kept = [name for name in KEPT if name in effective_capabilities()]
    if not set(kept) & set(NEEDED):
        yield Finding(
            "ok",
            "rights",
            "one process without capabilities: it opens pins as their file permissions allow, opens nothing by id, "
            "and creates no arrays",
        )
        return
    user = service_user(settings)
    uid = os.geteuid() if user is None else user.pw_uid
    yield Finding("ok", "rights: keeper", f"uid {os.geteuid()}, {', '.join(kept)}")
    yield Finding("ok", "rights: listener", f"uid {uid}, no capability (before Linux 6.1 it keeps CAP_BPF)")
    missing = [name for name in KEPT if name not in kept]
    if missing:
        where = "deploy/README.md, section Who holds what, says what needs them"
        yield Finding("warn", "rights: keeper", f"lacks {', '.join(missing)}: {where}")


def _socket(settings: Settings) -> Finding:
    path = settings.server.socket
    try:
        group = socket_group(settings)
    except ListenError as error:
        return Finding("WRONG", "server.socket_group", str(error))
    try:
        if path.exists() and not path.is_socket():
            return Finding("WRONG", "server.socket", f"{path} is there and is no socket: remove it, or set another")
    except OSError as error:
        return Finding("WRONG", "server.socket", f"{path}: {error.strerror}: run check as the user that serves")
    finding = _writable_folder("server.socket", path.parent, str(path))
    unreachable = unreachable_socket(settings)
    if unreachable is not None and finding.mark == "ok":
        return Finding("warn", "server.socket", unreachable)
    if settings.peers and group is None and finding.mark == "ok":
        remedy = "set socket_group: without it the users of [peers] cannot connect"
        return Finding("warn", "server.socket", f"{path}: {remedy}")
    return finding


def _tcp(host: str, port: int, *, is_plain: bool) -> Finding:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family) as trial:
            found = str(trial.getsockname()[0])
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("warn", "server.host", f"{host} port {port}: {reason} (normal while the service runs)")
    if is_plain and not is_loopback(found):
        return Finding("warn", "server.host", f"{host} port {port}: tokens go in plain text: set [tls]")
    return Finding("ok", "server.host", f"{host} port {port}")


def _state_dir(settings: Settings) -> Finding:
    folder = settings.server.state_dir
    try:
        check_state(settings, service_user(settings))
        if folder.exists() and folder.stat().st_mode & 0o022:
            return Finding("WRONG", "server.state_dir", f"{folder} can be written by others: chmod 700 it")
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except StartError as error:
        return Finding("WRONG", "server.state_dir", str(error))
    except BlockingIOError:
        return _with_room(folder, Finding("ok", "server.state_dir", f"{folder}; a jumptable is using it now"))
    except OSError as error:
        return Finding("WRONG", "server.state_dir", f"{folder}: {error.strerror}: run check as the user that serves")
    finding = _writable_folder("server.state_dir", folder, str(folder))
    return _with_room(folder, finding) if finding.mark == "ok" else finding


def _with_room(folder: Path, finding: Finding) -> Finding:
    free = free_bytes(folder)
    if free < MIN_FREE_BYTES:
        return Finding("WRONG", "server.state_dir", f"the disk of {folder} is full: make room for the journal")
    if free < journal.MAX_BYTES:
        detail = f"{folder} has {free >> 20} MiB left, and the journal may take {journal.MAX_BYTES >> 20} MiB"
        return Finding("warn", "server.state_dir", detail)
    return finding


def _writable_folder(subject: str, folder: Path, detail: str) -> Finding:
    """Whether this user can write in the folder, or can make it."""
    nearest = folder if os.path.lexists(folder) else folder.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        return Finding("WRONG", subject, f"{detail}: {nearest} is no folder that this user may write in")
    return Finding("ok", subject, detail if nearest == folder else f"{detail} (serve makes {folder})")


def _tokens(file: Path) -> Finding:
    try:
        tokens = TokenFile(file).read()
        if file.exists() and set(NEEDED) & set(effective_capabilities()):
            os.close(own_file(str(file), os.O_RDONLY))  # as the keeper opens it
    except TokensUnusable as error:
        return Finding("WRONG", "tokens", str(error))
    except OSError as error:
        return Finding("WRONG", "tokens", f"{file}: {error.strerror}: it has to belong to root: chown it")
    return Finding("ok", "tokens", f"{file}; {len(tokens)} of them")


def _tls(section: TlsSection) -> Finding:
    try:
        Tls(section.certificate, section.key, section.client_ca)
    except TlsError as error:
        return Finding("WRONG", "tls", str(error))
    return Finding("ok", "tls", str(section.certificate))


def _audit(file: Path | None) -> Finding:
    if file is None:
        return Finding("ok", "audit", "goes to the log")
    if file.exists() and not file.is_file():
        return Finding("WRONG", "audit.file", f"{file} is no regular file: name another")
    if not file.parent.is_dir():
        return Finding("WRONG", "audit.file", f"{file}: its folder is missing: install -d -m 0700 {file.parent}")
    return Finding("ok", "audit.file", str(file))


def _journal(file: Path, recorded_holds: list[Hold]) -> Iterator[Finding]:
    """Adds to `recorded_holds` what requests had the service hold."""
    if os.access(file, os.R_OK):
        try:
            recorded_holds += journal.check(file)
            yield Finding("ok", "journal", str(file))
        except (journal.JournalDamaged, journal.JournalFailed) as error:
            yield Finding("WRONG", "journal", str(error))


def _open_files(settings: Settings, recorded_holds: list[Hold]) -> Finding:
    """What the limits come to under the RLIMIT_NOFILE of this command."""
    held = {*(("map", name) for name in settings.maps), *(("program", name) for name in settings.programs)}
    try:
        files = share_open_files(settings, len(held | {(hold.kind, hold.name) for hold in recorded_holds}))
    except StartError as error:
        return Finding("WRONG", "limits", str(error))
    if files.is_reduced:
        return Finding("warn", "limits", f"{files}, which is less than configured: raise it (ulimit -n, LimitNOFILE=)")
    return Finding("ok", "limits", str(files))


def _pin_dirs(settings: Settings) -> Iterator[Finding]:
    for folder in settings.server.pin_dirs:
        if settings.server.kernel == "linux" and not folder.is_dir():
            remedy = "is no folder: mount bpffs (mount -t bpf bpf /sys/fs/bpf)"
            yield Finding("warn", f"server.pin_dirs {folder}", remedy)


def _objects(settings: Settings) -> Iterator[Finding]:
    """Whether object files can be loaded, if any may be."""
    section = settings.objects
    if not section.limits().is_enabled:
        yield Finding("ok", "objects", "no object file can be loaded: neither object_dirs nor upload is set")
        return
    for folder in section.object_dirs:
        if not folder.is_dir():
            yield Finding("warn", f"objects.object_dirs {folder}", f"is no folder: install -d -m 0755 {folder}")
        elif folder.stat().st_mode & 0o022 or folder.stat().st_uid:
            remedy = "others than root can write it, and so choose what is loaded: chown root: and chmod 755 it"
            yield Finding("warn", f"objects.object_dirs {folder}", remedy)
    try:
        library()
    except (OSError, AttributeError) as error:
        remedy = "apt-get install libbpf1, or another release from 1.0 on; without it PUT /objects/{name} is 503"
        yield Finding("warn", "objects", f"{error}: {remedy}")
        return
    lacking = [each for each in KEPT_FOR_OBJECTS if each not in effective_capabilities()]
    if lacking and set(NEEDED) & set(effective_capabilities()):
        yield Finding(
            "warn", "objects", f"the keeper lacks {', '.join(lacking)}: deploy/README.md, section Object files"
        )
    if not landlock.version():
        detail = "this kernel has no Landlock (Linux 5.13), so the process that loads a file can open what any user can"
        yield Finding("warn", "objects", detail)
    if not seccomp.has_filters():
        detail = "this kernel has no seccomp filters, so the process that loads a file can make any system call"
        yield Finding("warn", "objects", detail)
    if settings.server.keep_dir is None:
        detail = "set server.keep_dir: without it, programs do not outlive the service, and files are loaded again"
        yield Finding("warn", "objects", detail)
    if not lacking:
        yield Finding("ok", "objects", f"{LIBRARY}; {'also' if section.upload else 'no'} files that requests bring")


def _keep_dir(kernel: Kernel, folder: Path | None) -> Finding:
    if folder is None:
        return Finding(
            "ok", "server.keep_dir", "is not set: confirm_within works only for changes that replace pinned programs"
        )
    try:
        check_keep_dir(kernel, str(folder))
        foreign = foreign_names(kernel.pins_in(str(folder)))
        if foreign:
            names = ", ".join(foreign)
            detail = f"{folder} holds what is not the service's ({names}): name a folder for the service alone"
            return Finding("WRONG", "server.keep_dir", detail)
    except PinUnusable as error:
        return Finding("WRONG", "server.keep_dir", str(error))
    except OSError as error:
        return Finding("WRONG", "server.keep_dir", f"{folder}: {error.strerror}: run check as the user that serves")
    return Finding("ok", "server.keep_dir", str(folder))


def _maps_and_programs(kernel: Kernel, settings: Settings, recorded_holds: list[Hold]) -> Iterator[Finding]:
    """Those of the configuration, and those that requests had the service hold."""
    # A name in the configuration overrides the same name in the journal. An id is valid only until the next reboot.
    configured: dict[str, Collection[str]] = {"map": settings.maps, "program": settings.programs}
    holds = [
        hold
        for hold in recorded_holds
        if hold.name not in configured[hold.kind] and (hold.pinned is not None or hold.boot_id == kernel.boot_id)
    ]
    names_by_id: dict[int, str] = {}
    for name, map_ in settings.maps.items():
        create_entries = None if map_.create is None else map_.create.max_entries
        yield from _map(kernel, name, map_.source(), create_entries, names_by_id)
    for hold in holds:
        if hold.kind == "map":
            yield from _map(kernel, hold.name, source_of(hold), hold.create_entries, names_by_id)
    for name, program in settings.programs.items():
        yield from _program(kernel, name, program.source())
    for hold in holds:
        if hold.kind == "program":
            yield from _program(kernel, hold.name, source_of(hold))


def _map(
    kernel: Kernel, name: str, source: Source, create_entries: int | None, names_by_id: dict[int, str]
) -> Iterator[Finding]:
    """`names_by_id`: the maps that were checked before; this one is added."""
    subject = f"map {name}"
    try:
        with open_array(kernel, source) as array:
            other = names_by_id.setdefault(array.id, name)
            if other != name:
                yield Finding("WRONG", subject, f"is the same array as map {other}: remove one of the two")
                return
            used = len(array.indices())
            yield Finding("ok", subject, f"id {array.id}, {used} of {array.max_entries} entries used")
            if isinstance(source, ById):
                yield Finding("warn", subject, _ID_WARNING)
            if create_entries not in {None, array.max_entries}:
                yield Finding(
                    "warn", subject, f"create asks for {create_entries} entries, but it exists with {array.max_entries}"
                )
    except ServiceError as error:
        if create_entries is not None and isinstance(error, PinUnusable) and error.errno == "ENOENT":
            yield _missing_map(kernel, subject, error.pinned)
        else:
            yield Finding("WRONG", subject, str(error))


def _missing_map(kernel: Kernel, subject: str, path: str) -> Finding:
    """Whether `serve` can create it."""
    try:
        check_pinnable(kernel, path)
    except PinUnusable as error:
        return Finding("WRONG", subject, f"is not there, and cannot be made: {error}")
    return Finding("ok", subject, f"is not there yet; serve makes it and pins it at {path}")


def _program(kernel: Kernel, name: str, source: Source) -> Iterator[Finding]:
    subject = f"program {name}"
    try:
        with open_program(kernel, source) as program:
            yield Finding("ok", subject, f"id {program.id}, type {program.type}")
            if isinstance(source, ById):
                yield Finding("warn", subject, _ID_WARNING)
    except ServiceError as error:
        yield Finding("WRONG", subject, str(error))
