"""Holding and releasing maps and programs when a request asks for it, so that it outlives the service."""

from typing import Any

import structlog

from app.service.changes.confirmations import Confirmations
from app.service.changes.origin import RequestContext
from app.service.drift.detector import DriftDetector
from app.service.errors import JournalUnreadable, PartOfObject
from app.service.objects.source import ById, Pinned, Source
from app.service.pin_watch import PinWatch
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import Hold

log = structlog.get_logger()


class Holds:
    """Holds and releases, and journals it. Thread rule: one event loop."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        confirmations: Confirmations,
        drift: DriftDetector,
        pins: PinWatch,
    ) -> None:
        """Work on what the registry holds.

        Args:
            registry: The maps and programs.
            journal: Remembers what requests have held.
            confirmations: Knows what an undo would need.
            drift: Learns what the entries of a new map are expected to hold.
            pins: Tells that a pin leads to what is held again.
        """
        self._registry = registry
        self._journal = journal
        self._confirmations = confirmations
        self._drift = drift
        self._pins = pins

    async def hold_map(
        self,
        name: str,
        source: Source,
        create_entries: int | None,
        context: RequestContext,
        *,
        force: bool,
        dry_run: bool,
    ) -> tuple[HeldMap, bool]:
        """Hold a map, and learn what its entries are expected to hold: see Maps.hold.

        A new array at the same pin is to hold what the journal knows: what differs is drift. An array from another
        source is another map, and is taken as it is.

        Raises:
            InUse: A change that waits for a confirmation would need the array that is held so far.
            JournalUnreadable: It cannot be journalled.
        """
        maps = self._registry.maps
        was = maps.find(name)
        _check_free(was)
        was_id = None if was is None or was.object is None else was.object.id
        was_source = None if was is None else was.source

        async def veto(fresh: HeldMap) -> None:
            if was is not None and fresh.object is not None and fresh.object.id != was_id:
                self._confirmations.check_releasable(was)
                if not dry_run:
                    await self._drift.keep_programs(was)
            if not dry_run:
                await self._save(fresh, context)

        held, is_new = await maps.hold(name, source, create_entries, force=force, dry_run=dry_run, veto=veto)
        if not dry_run:
            self._confirmations.attach(held)
            is_same_array = held.object is None or was_id in {None, held.object.id}
            await self._drift.begin(held, anew=not is_same_array and held.source != was_source)
            await self._pins.announce(held)
        return held, is_new

    async def release_map(self, name: str, context: RequestContext, *, force: bool, dry_run: bool) -> None:
        """Release a map: see Maps.release.

        Raises:
            InUse: A change of it waits for a confirmation.
            PartOfObject: It belongs to an object file.
            JournalUnreadable: It cannot be journalled.
        """
        _check_free(self._registry.maps.find(name))
        await self._registry.maps.release(name, force=force, dry_run=dry_run, veto=self._veto_release(context, dry_run))

    async def hold_program(
        self, name: str, source: Source, context: RequestContext, *, dry_run: bool
    ) -> tuple[HeldProgram, bool]:
        """Hold a program: see Programs.hold.

        Raises:
            InUse: A change that waits for a confirmation would need the program that is held so far.
            JournalUnreadable: It cannot be journalled.
        """
        programs = self._registry.programs
        _check_free(programs.find(name))

        async def veto(fresh: HeldProgram) -> None:
            was = programs.find(name)
            if was is not None and was.object is not None and was.object.id != fresh.opened().id:
                self._confirmations.check_releasable(was)
            if not dry_run:
                await self._save(fresh, context)

        uses = await self._registry.maps.uses()
        held, is_new = await programs.hold(name, source, uses, dry_run=dry_run, veto=veto)
        if not dry_run:
            await self._pins.announce(held)
        return held, is_new

    async def release_program(self, name: str, context: RequestContext, *, dry_run: bool) -> None:
        """Release a program: see Programs.release.

        Raises:
            InUse: A change that waits for a confirmation would need it.
            JournalUnreadable: It cannot be journalled.
        """
        _check_free(self._registry.programs.find(name))
        await self._registry.programs.release(name, dry_run=dry_run, veto=self._veto_release(context, dry_run))

    async def follow(self, held: HeldMap | HeldProgram) -> None:
        """Hold what the pin leads to now. A map's entries are compared with the journal, as after a restart.

        Raises:
            InUse: A change that waits for a confirmation would need what is held so far.
            ServiceError: The pin cannot be opened, or leads to something else.
        """

        async def veto(was: HeldMap | HeldProgram) -> None:
            self._confirmations.check_releasable(was)
            if isinstance(was, HeldMap):
                await self._drift.keep_programs(was)

        was_id = held.opened().id
        if isinstance(held, HeldMap):
            await self._registry.maps.reopen(held, veto)
            _log_followed(held, was_id)
            self._confirmations.attach(held)
            if await self._drift.begin(held):
                await self._drift.check(held)
        else:
            await self._registry.programs.reopen(held, veto)
            _log_followed(held, was_id)
        await self._pins.announce(held)

    def _veto_release(self, context: RequestContext, dry_run: bool) -> Any:
        async def veto(held: HeldMap | HeldProgram) -> None:
            self._confirmations.check_releasable(held)
            if dry_run:
                return
            id_ = None if held.object is None else held.object.id
            try:
                await self._journal.remove_hold(held.kind, held.name, _event(held, "released", id_, context))
            except JournalFailed as error:
                raise JournalUnreadable(str(error)) from error

        return veto

    async def _save(self, fresh: HeldMap | HeldProgram, context: RequestContext) -> None:
        opened, source = fresh.object, fresh.source
        assert opened is not None  # it was just opened
        hold = Hold(
            fresh.kind,
            fresh.name,
            source.path if isinstance(source, Pinned) else None,
            source.id if isinstance(source, ById) else None,
            self._registry.kernel.boot_id,
            fresh.create_entries if isinstance(fresh, HeldMap) else None,
        )
        try:
            await self._journal.save_hold(hold, _event(fresh, "held", opened.id, context))
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error


def _check_free(held: HeldMap | HeldProgram | None) -> None:
    """Check that what is held under a name is no part of an object file.

    Raises:
        PartOfObject: It is.
    """
    if held is not None and held.part_of is not None:
        raise PartOfObject(held.name, held.part_of)


def _log_followed(held: HeldMap | HeldProgram, was_id: int) -> None:
    log.info("followed its pin", kind=held.kind, name=held.name, was=was_id, id=held.opened().id)


def _event(held: HeldMap | HeldProgram, happened: str, id_: int | None, context: RequestContext) -> dict[str, Any]:
    who = {"actor": context.actor, "request_id": context.request_id}
    return {held.kind: held.name, "happened": happened, "id": id_, **who}
