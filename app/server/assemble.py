"""The objects that the configuration describes: the kernel, what is held, TLS and the application."""

import errno
from collections.abc import Mapping
from pathlib import Path

import structlog

from app.access.peers import Peers
from app.access.rights import Actor, Ranges, Right
from app.access.tokens import TokenFile, Tokens, TokensUnusable
from app.api.audit import Audit, open_audit
from app.api.authorization import RIGHTS, Authentication
from app.api.limits import Bounds, Limits
from app.api.state import State
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.config import Map, ServiceSettings, Settings
from app.config import Tls as TlsSection
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.loader import KeeperLoader
from app.keeper.messages import Op
from app.loader.client import DirectLoader
from app.sandbox.abilities import abilities
from app.server import logging
from app.server.line_writer import LineWriter
from app.server.logging import log_events
from app.server.open_files import OpenFiles
from app.server.startup import StartError
from app.server.tls import Tls, open_file
from app.service.loading.copies import Copies
from app.service.loading.loads import ObjectLoader
from app.service.loading.object_files import ObjectOptions
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal

log = structlog.get_logger()


def make_kernel(name: str, keeper: KeeperClient | None = None, keep_dir: Path | None = None) -> Kernel:
    """The kernel named "linux" or "memory".

    Args:
        name: As in the configuration.
        keeper: Opens and makes what this process must not; None: the process does it itself.
        keep_dir: As in the configuration; for the keeper alone.
    """
    if name == "memory":
        return MemoryKernel()
    kernel = LinuxKernel() if keeper is None else KeeperKernel(keeper, None if keep_dir is None else str(keep_dir))
    kernel.table_programs()  # loads them now, so that the first request does not wait for it
    kernel.abilities = abilities(kernel) if keeper is None else keeper.abilities()
    return kernel


def hold_configured(registry: Registry, settings: Settings) -> None:
    """Hold the maps and programs of the configuration. What cannot be opened is held as unavailable."""
    for name, section in settings.maps.items():
        registry.maps.add(held_map(name, section))
    for name, program in settings.programs.items():
        registry.programs.add(HeldProgram(name, program.source(), follow=program.follow))
    registry.open_unavailable()


def held_map(name: str, section: Map) -> HeldMap:
    """A map as the configuration describes it, not opened yet."""
    return HeldMap(
        name,
        section.source(),
        follow=section.follow,
        create_entries=None if section.create is None else section.create.max_entries,
        restore=section.on_start == "restore",
        protected=Ranges.of(section.protected),
    )


def make_tls(settings: ServiceSettings, keeper: KeeperClient | None = None) -> Tls | None:
    """TLS as configured; None: it is not configured.

    Args:
        settings: The configuration.
        keeper: Opens the files; None: this process does.

    Raises:
        TlsError: The files cannot be used.
    """
    section = settings.tls
    opener = open_file if keeper is None else lambda file: keeper.open(Op.READ, text=str(file))
    return None if section is None else Tls(section.certificate, section.key, section.client_ca, opener)


def held_at_start(settings: Settings, journal: Journal) -> int:
    """How many maps and programs are held from the start: those of the configuration, and those that requests held."""
    configured = {*(("map", name) for name in settings.maps), *(("program", name) for name in settings.programs)}
    return len(configured | {(hold.kind, hold.name) for hold in journal.holds()})


def make_state(
    settings: Settings,
    registry: Registry,
    journal: Journal,
    keeper: KeeperClient | None = None,
    files: OpenFiles | None = None,
    copies: Copies | None = None,
) -> State:
    """What requests are answered with, as configured.

    Args:
        settings: The configuration.
        registry: What is held.
        journal: Where changes are recorded.
        keeper: Opens the audit file and looks up tokens; None: this process does.
        files: How many files may be open for what; None: as many as configured.
        copies: Keeps copies of object files that requests bring; None: they cannot be loaded again.

    Raises:
        StartError: The audit file cannot be opened.
    """
    keep_dir, limits = settings.server.keep_dir, settings.limits
    readers, held = bounded_limits(settings, files)
    state = State(
        registry,
        journal,
        keep_dir=None if keep_dir is None else str(keep_dir),
        drift_interval=settings.server.drift_interval,
        authentication=make_authentication(settings, keeper),
        audit=make_audit(settings, keeper),
        limits=Limits(readers, held, limits.requests_per_second, limits.burst),
        objects=_object_options(settings, keeper, copies),
    )
    if files is not None:
        state.service.changes.replaced_programs.max_programs = files.replaced
    writer = state.audit.writer
    if isinstance(writer, LineWriter):
        state.service.counters.dropped_lines.append(lambda: {"audit": writer.dropped})
    return state


def open_copies(settings: Settings) -> Copies | None:
    """The folder for copies of object files that requests bring; None: none may.

    Raises:
        StartError: It can be neither opened nor made.
    """
    if not settings.objects.upload:
        return None
    folder = settings.server.state_dir / "objects"
    try:
        return Copies(folder)
    except OSError as error:
        message = f"the folder {folder} cannot be used: {error.strerror}: make it the service's user's, or remove it"
        raise StartError(message) from error


def _object_options(settings: Settings, keeper: KeeperClient | None, copies: Copies | None) -> ObjectOptions:
    section, limits = settings.objects, settings.objects.limits()
    loader: ObjectLoader | None = None
    if settings.server.kernel == "linux":
        loader = DirectLoader(limits) if keeper is None else KeeperLoader(keeper, limits)
    return ObjectOptions(loader, section.max_bytes, section.upload, copies, limits.object_dirs)


def bounded_limits(settings: Settings, files: OpenFiles | None) -> tuple[int, int]:
    """How many event readers there may be, and how many maps and programs may be held, as open files allow."""
    limits = settings.limits
    if files is None or not files.is_reduced:
        return limits.event_readers, limits.held
    return min(limits.event_readers, max(1, files.connections // 2)), files.held


def connection_bounds(settings: Settings, files: OpenFiles) -> Bounds:
    """What one connection may use, as configured, and how many of them there may be."""
    limits = settings.limits
    return Bounds(files.connections, limits.header_bytes, limits.header_seconds, limits.idle_seconds)


def make_authentication(settings: ServiceSettings, keeper: KeeperClient | None = None) -> Authentication:
    """How the service knows who asks, as configured.

    Args:
        settings: The configuration.
        keeper: Looks up tokens; None: this process does.
    """
    return Authentication(
        peers=Peers([peer.rule(name) for name, peer in settings.peers.items()]),
        tokens=None if settings.tokens is None else _make_tokens(settings, keeper),
        certificates={} if settings.tls is None else certificates(settings.tls),
        read_only=settings.server.read_only,
    )


def make_audit(
    settings: ServiceSettings, keeper: KeeperClient | None = None, rights: Mapping[str, Right] = RIGHTS
) -> Audit:
    """Where attempts are recorded, as configured.

    Args:
        settings: The configuration.
        keeper: Opens the file; None: this process does.
        rights: By operation id, the right that it needs.

    Raises:
        StartError: The audit file cannot be opened.
    """
    section = settings.audit
    opener = open_audit if keeper is None else lambda file: _open_audit_by_keeper(keeper, file)
    try:
        return Audit(
            section.file,
            fsync=section.fsync,
            opened=opener,
            to_log=log_events,
            make_writer=logging.file_writer,
            rights=rights,
        )
    except OSError as error:
        message = (
            f"audit.file {section.file}: {error.strerror}: it has to be a file of root's in a folder of root's, "
            "or a file of the service's user in a folder of that user; and no FIFO or device"
        )
        raise StartError(message) from error


def _open_audit_by_keeper(keeper: KeeperClient, file: Path) -> int:
    """An fd from the keeper, which refuses a file in a folder that others can write; then this process opens it."""
    try:
        return keeper.open(Op.AUDIT)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.ENXIO}:  # ENXIO: a FIFO
            raise
        return open_audit(file)


def _make_tokens(settings: ServiceSettings, keeper: KeeperClient | None) -> Tokens:
    look_up = None if keeper is None else lambda digest: keeper.ask(Op.TOKEN, text=digest)
    tokens = Tokens(TokenFile(settings.token_file()), look_up)
    try:
        tokens.actor("")  # no token, but a problem with the file is logged now and not at the first request
    except TokensUnusable as error:
        log.warning("tokens cannot be checked", reason=str(error))
    return tokens


def certificates(section: TlsSection) -> dict[str, Actor]:
    """Who shows a certificate, by its subject alternative name."""
    return {client.san: Actor(f"certificate:{name}", client.grant()) for name, client in section.clients.items()}
