"""Reading the configuration anew while the service runs (SIGHUP, `systemctl reload`)."""

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Final

import structlog
from pydantic import BaseModel

from app.access.peers import Peers
from app.access.rights import Ranges
from app.api.state import State
from app.config import ConfigurationError, Program, Settings, load
from app.config import Map as MapSection
from app.keeper.client import KeeperClient
from app.keeper.messages import Op
from app.server.assemble import bounded_limits, certificates, connection_bounds, held_map
from app.server.connection import Connection
from app.server.fast_path import FastPath
from app.server.open_files import share_open_files
from app.service.changes.origin import SERVICE_ACTOR, RequestContext
from app.service.errors import ServiceError
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap, HeldProgram
from app.store.journal import JournalFailed

_APPLIED_SERVER_KEYS: Final = {"read_only"}  # the keys of [server] that count without a restart

log = structlog.get_logger()


class Reload:
    """Reads the configuration anew and applies what needs no restart. Thread rule: one event loop."""

    def __init__(self, file: Path, settings: Settings, state: State, keeper: KeeperClient | None) -> None:
        """Read nothing yet.

        Args:
            file: The configuration file, absolute.
            settings: What was read from it at the start.
            state: What requests are answered with.
            keeper: Opens the file, which this process may have no right to read; None: this process does.
        """
        self._file, self._started, self._state, self._keeper = file, settings, state, keeper
        self._maps, self._programs = dict(settings.maps), dict(settings.programs)  # those that count now
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Read the configuration anew. If it is wrong, nothing changes, and the log says why."""
        async with self._lock:
            try:
                settings = await asyncio.to_thread(self._load)
            except ConfigurationError as error:
                log.warning("the configuration is wrong, so that of before still counts", reasons=error.messages)
                return
            except (OSError, ValueError) as error:
                reason = f"{self._file}: {getattr(error, 'strerror', None) or error}"
                log.warning("the configuration cannot be read, so that of before still counts", reasons=[reason])
                return
            try:
                await self._apply(settings)
            except Exception:
                log.exception("internal error while the configuration is read anew; the service goes on")

    async def _apply(self, settings: Settings) -> None:
        self._apply_rights_and_limits(settings)
        service = self._state.service
        held, later = self._hold(service, settings)
        released, kept = await self._release(service, settings)
        await service.open_unavailable()
        unavailable = {each.name: each.reason for each in service.registry.unavailable()}
        log.info("the configuration was read anew", held=held, released=released, kept=kept, unavailable=unavailable)
        later = [*_restart_keys(self._started, settings), *later]
        if later:
            log.warning("some keys count after a restart only", keys=later)

    def _load(self) -> Settings:
        if self._keeper is None:
            return load(self._file)
        with os.fdopen(self._keeper.open(Op.READ, text=str(self._file)), encoding="utf-8") as file:
            return load(self._file, file.read())

    def _apply_rights_and_limits(self, settings: Settings) -> None:
        state, limits = self._state, settings.limits
        state.authentication = dataclasses.replace(
            state.authentication,
            peers=Peers([peer.rule(name) for name, peer in settings.peers.items()]),
            certificates={} if settings.tls is None or self._started.tls is None else certificates(settings.tls),
            read_only=settings.server.read_only,
        )
        registry = state.service.registry
        files = share_open_files(settings, len(registry.maps) + len(registry.programs))
        state.limits.change(*bounded_limits(settings, files), limits.requests_per_second, limits.burst)
        state.service.changes.replaced_programs.max_programs = files.replaced
        Connection.bounds, Connection.fast_path = connection_bounds(settings, files), FastPath(state)

    def _hold(self, service: Service, settings: Settings) -> tuple[list[str], list[str]]:
        """Hold what is new, without opening it, and let the keys of the rest count.

        Returns:
            (what is held, like `map 'a'`; the keys that count after a restart only).
        """
        registry, held, later = service.registry, list[str](), list[str]()
        for name, section in settings.maps.items():
            found = registry.maps.find(name)
            if not self._may_hold(section, None if found is None else found.source):
                later.append(f"maps.{name}")
                continue
            if found is None:
                registry.maps.add(held_map(name, section))
                held.append(f"map {name!r}")
            else:
                found.protected, found.restore = Ranges.of(section.protected), section.on_start == "restore"
                found.create_entries = None if section.create is None else section.create.max_entries
                found.follow = section.follow
            self._maps[name] = section
        for name, program in settings.programs.items():
            was = registry.programs.find(name)
            if not self._may_hold(program, None if was is None else was.source):
                later.append(f"programs.{name}")
                continue
            if was is None:
                registry.programs.add(HeldProgram(name, program.source(), follow=program.follow))
                held.append(f"program {name!r}")
            else:
                was.follow = program.follow
            self._programs[name] = program
        return held, later

    def _may_hold(self, section: MapSection | Program, was: object) -> bool:
        """Whether the source of a section can be opened now: the keeper has had its limits since the start."""
        if was is not None:
            return was == section.source()
        if self._keeper is None or section.pinned is None:
            return True
        started = self._started
        pins = {each.pinned for each in (*started.maps.values(), *started.programs.values())}
        return section.pinned in pins or any(each in section.pinned.parents for each in started.server.pin_dirs)

    async def _release(self, service: Service, settings: Settings) -> tuple[list[str], dict[str, str]]:
        """Release what the configuration names no longer, unless that loses something.

        Returns:
            (what is released; what stays held, and why).
        """
        registry, released, kept = service.registry, list[str](), dict[str, str]()
        try:
            by_requests = {(hold.kind, hold.name) for hold in service.journal.holds()}
        except JournalFailed as error:
            return released, {"everything": str(error)}
        await registry.check_pins()
        context = RequestContext(SERVICE_ACTOR, "reload")
        removed: list[HeldMap | HeldProgram | None] = [
            *(registry.maps.find(name) for name in self._maps.keys() - settings.maps.keys()),
            *(registry.programs.find(name) for name in self._programs.keys() - settings.programs.keys()),
        ]
        for held in removed:
            if held is None:
                continue
            what = f"{held.kind} {held.name!r}"
            if (held.kind, held.name) in by_requests:
                kept[what] = "a request holds it as well"
                continue
            if held.object is not None and not held.is_pinned:
                kept[what] = "it is pinned nowhere that the service knows, so it could be lost"
                continue
            try:
                if isinstance(held, HeldMap):
                    await service.holds.release_map(held.name, context, force=False, dry_run=False)
                    del self._maps[held.name]
                else:
                    await service.holds.release_program(held.name, context, dry_run=False)
                    del self._programs[held.name]
                released.append(what)
            except ServiceError as error:
                kept[what] = str(error)
        return released, kept


def _restart_keys(started: Settings, now: Settings) -> list[str]:
    """Return the keys that have changed since the start and count after a restart only."""
    keys = [f"server.{key}" for key in _differing(started.server, now.server) if key not in _APPLIED_SERVER_KEYS]
    keys += [f"audit.{key}" for key in _differing(started.audit, now.audit)]
    keys += [f"objects.{key}" for key in _differing(started.objects, now.objects)]
    keys += ["tokens"] if started.tokens != now.tokens else []
    if started.tls is None or now.tls is None:
        return keys + (["tls"] if started.tls is not now.tls else [])
    return keys + [f"tls.{key}" for key in _differing(started.tls, now.tls) if key != "clients"]


def _differing(before: BaseModel, after: BaseModel) -> list[str]:
    return [key for key in type(before).model_fields if getattr(before, key) != getattr(after, key)]
