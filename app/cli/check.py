"""What `jumptable check` finds: all that `serve` would open, opened and closed again."""

import os
from collections.abc import Iterator
from pathlib import Path

from app.access.tokens import TokenFile, TokensUnusable
from app.bpf.kernel import Kernel
from app.cli.ground import Finding, of_the_ground
from app.keeper.paths import own_file
from app.keeper.process import NEEDED
from app.sandbox.capabilities import effective
from app.server.settings import Settings
from app.server.startup import make_kernel
from app.server.tls import Tls, TlsError
from app.service.changes.undo_pins import check_keep_dir
from app.service.errors import PinUnusable, ServiceError
from app.service.lifecycle import source_of
from app.service.objects.opening import open_array, open_program
from app.service.objects.pins import check_pinnable
from app.service.registry.held import ById, Source
from app.store import journal
from app.store.records import Hold


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
            if settings.token_file().exists() and set(NEEDED) & set(effective()):
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
