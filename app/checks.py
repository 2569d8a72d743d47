"""What `jumptable check` finds: all that `serve` would open, opened and closed again."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.bpf.kernel import Kernel
from app.bpf.privileges import effective
from app.service.errors import PinUnusable, ServiceError
from app.service.held import ById
from app.service.opening import open_array, open_program
from app.service.pins import check_pinnable
from app.settings import Map, Program, Settings
from app.start import StartError, group_of, make_kernel, user_of
from app.store import journal


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


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at everything, and change nothing."""
    for key in settings.without_effect():
        yield Finding("warn", key, "is set, but has no effect in this version")
    yield _user(settings)
    yield _socket(settings)
    yield _state(settings.server.state_dir)
    yield from _journal(settings.server.state_dir / "journal.db")
    try:
        kernel = make_kernel(settings.server.kernel)
    except OSError as error:
        yield Finding("WRONG", "kernel", f"{error.strerror}: jumptable runs on x86-64 and aarch64")
        return
    yield Finding("ok", "kernel", f"{kernel.name}; capabilities: {', '.join(effective()) or 'none'}")
    for folder in settings.server.pin_dirs:
        if settings.server.kernel == "linux" and not folder.is_dir():
            yield Finding(
                "warn", f"server.pin_dirs {folder}", "is no folder: mount bpffs (mount -t bpf bpf /sys/fs/bpf)"
            )
    names: dict[int, str] = {}
    for name, map_ in settings.maps.items():
        try:
            with open_array(kernel, map_.source()) as array:
                other = names.setdefault(array.id, name)
                if other != name:
                    yield Finding("WRONG", f"map {name}", f"is the same array as map {other}: remove one of the two")
                    continue
                used = len(array.indices())
                yield Finding("ok", f"map {name}", f"id {array.id}, {used} of {array.max_entries} entries used")
                yield from _by_id(f"map {name}", map_)
                if map_.create is not None and map_.create.max_entries != array.max_entries:
                    yield Finding(
                        "warn", f"map {name}", f"create asks for {map_.create.max_entries} entries, but it is there"
                    )
        except ServiceError as error:
            if map_.create is not None and isinstance(error, PinUnusable) and error.errno == "ENOENT":
                yield _would_make(kernel, name, map_)
            else:
                yield Finding("WRONG", f"map {name}", str(error))
    for name, held in settings.programs.items():
        try:
            with open_program(kernel, held.source()) as program:
                yield Finding("ok", f"program {name}", f"id {program.id}, type {program.type}")
                yield from _by_id(f"program {name}", held)
        except ServiceError as error:
            yield Finding("WRONG", f"program {name}", str(error))


def _by_id(subject: str, held: Map | Program) -> Iterator[Finding]:
    if isinstance(held.source(), ById):
        yield Finding(
            "warn", subject, "is held by id: gone with the boot, and an array is emptied with its last holder"
        )


def _would_make(kernel: Kernel, name: str, map_: Map) -> Finding:
    try:
        check_pinnable(kernel, str(map_.pinned))
    except PinUnusable as error:
        return Finding("WRONG", f"map {name}", f"is not there, and cannot be made: {error}")
    return Finding("ok", f"map {name}", f"is not there yet; serve makes it and pins it at {map_.pinned}")


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


def _socket(settings: Settings) -> Finding:
    path = settings.server.socket
    try:
        group_of(settings)
    except StartError as error:
        return Finding("WRONG", "server.socket_group", str(error))
    if path.exists() and not path.is_socket():
        return Finding("WRONG", "server.socket", f"{path} is there and is no socket: remove it, or set another")
    return _writable("server.socket", path.parent, str(path))


def _state(folder: Path) -> Finding:
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return Finding("ok", "server.state_dir", f"{folder}; a jumptable runs with it just now")
    except OSError as error:
        return Finding("WRONG", "server.state_dir", f"{folder}: {error.strerror}: run check as the user that serves")
    return _writable("server.state_dir", folder, str(folder))


def _journal(file: Path) -> Iterator[Finding]:
    if os.access(file, os.R_OK):
        try:
            journal.check(file)
            yield Finding("ok", "journal", str(file))
        except (journal.JournalDamaged, journal.JournalFailed) as error:
            yield Finding("WRONG", "journal", str(error))


def _writable(subject: str, folder: Path, told: str) -> Finding:
    """A folder that is writable, or that can be made in its parent."""
    nearest = folder if os.path.lexists(folder) else folder.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("WRONG", subject, f"{told}: {nearest} is no folder that this user may write in")
    return Finding("ok", subject, told if nearest == folder else f"{told} (is made)")
