"""Holding and releasing at a caller's wish, so that it is remembered beyond the service's end."""

from typing import Any, Literal

from app.service.changes.changes import Changes
from app.service.changes.origin import RequestContext
from app.service.drift.detector import Drift
from app.service.errors import JournalUnreadable
from app.service.objects.source import ById, Pinned, Source
from app.service.registry.held import HeldMap, HeldProgram
from app.store.journal import JournalFailed
from app.store.records import Hold


class Holds:
    """Thread rule: one event loop."""

    def __init__(self, changes: Changes, drift: Drift) -> None:
        self._changes = changes
        self._drift = drift

    async def hold_map(
        self,
        name: str,
        source: Source,
        create_entries: int | None,
        origin: RequestContext,
        *,
        force: bool,
        dry_run: bool,
    ) -> tuple[HeldMap, bool]:
        """As Maps.hold; what its entries are to hold is known from then on. InUse, JournalUnreadable."""
        maps = self._changes.registry.maps
        was = maps.find(name)
        was_id = None if was is None or was.object is None else was.object.id

        async def before(fresh: HeldMap) -> None:
            if was is not None and fresh.object is not None and fresh.object.id != was_id:
                self._changes.confirmations.check_releasable(was)
            if not dry_run:
                await self._remember(fresh, origin)

        held, is_new = await maps.hold(name, source, create_entries, force=force, dry_run=dry_run, before=before)
        if not dry_run:
            self._changes.confirmations.attach(held)
            # Where it led to another array, its entries are as they are to be; else the journal may know better.
            await self._drift.begin(held, anew=was_id is not None and held.expected is None)
        return held, is_new

    async def release_map(self, name: str, origin: RequestContext, *, force: bool, dry_run: bool) -> None:
        """As Maps.release. InUse, JournalUnreadable."""

        async def before(held: HeldMap) -> None:
            self._changes.confirmations.check_releasable(held)
            if not dry_run:
                await self._forget(held, origin)

        await self._changes.registry.maps.release(name, force=force, dry_run=dry_run, before=before)

    async def hold_program(
        self, name: str, source: Source, origin: RequestContext, *, dry_run: bool
    ) -> tuple[HeldProgram, bool]:
        """As Programs.hold. JournalUnreadable."""
        registry = self._changes.registry

        async def before(fresh: HeldProgram) -> None:
            was = registry.programs.find(name)
            if was is not None and was.object is not None and was.object.id != fresh.opened().id:
                self._changes.confirmations.check_releasable(was)
            if not dry_run:
                await self._remember(fresh, origin)

        uses = await registry.maps.uses()
        return await registry.programs.hold(name, source, uses, dry_run=dry_run, before=before)

    async def release_program(self, name: str, origin: RequestContext, *, dry_run: bool) -> None:
        """As Programs.release. InUse, JournalUnreadable."""

        async def before(held: HeldProgram) -> None:
            self._changes.confirmations.check_releasable(held)
            if not dry_run:
                await self._forget(held, origin)

        await self._changes.registry.programs.release(name, dry_run=dry_run, before=before)

    async def _remember(self, fresh: HeldMap | HeldProgram, origin: RequestContext) -> None:
        opened = fresh.opened()
        source = fresh.source
        hold = Hold(
            _kind(fresh),
            fresh.name,
            source.path if isinstance(source, Pinned) else None,
            source.id if isinstance(source, ById) else None,
            self._changes.registry.kernel.boot_id,
            fresh.create_entries if isinstance(fresh, HeldMap) else None,
        )
        try:
            await self._changes.journal.save_hold(hold, _told(fresh, "held", opened.id, origin))
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error

    async def _forget(self, held: HeldMap | HeldProgram, origin: RequestContext) -> None:
        id_ = None if held.object is None else held.object.id
        try:
            await self._changes.journal.remove_hold(_kind(held), held.name, _told(held, "released", id_, origin))
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error


def _kind(held: HeldMap | HeldProgram) -> Literal["map", "program"]:
    return "map" if isinstance(held, HeldMap) else "program"


def _told(held: HeldMap | HeldProgram, happened: str, id_: int | None, origin: RequestContext) -> dict[str, Any]:
    who = {"actor": origin.actor, "request_id": origin.request_id}
    return {_kind(held): held.name, "happened": happened, "id": id_, **who}
