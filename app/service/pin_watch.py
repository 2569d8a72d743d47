"""Notices when the pin of a held map or program leads to another object by now, as when its loader ran again."""

import asyncio
from typing import Any

import structlog

from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.pins import follow_pin
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed

log = structlog.get_logger()


class PinWatch:
    """Marks held objects whose pin leads elsewhere, and tells of it once, and once when it ends.

    Thread rule: one event loop.
    """

    def __init__(self, registry: Registry, journal: Journal) -> None:
        """Watch the pins of what is held.

        Args:
            registry: The maps and programs.
            journal: Takes the events.
        """
        self._registry = registry
        self._journal = journal

    async def check(self, held: HeldMap | HeldProgram) -> None:
        """Follow the pin of what is held, mark it, and tell what is news."""
        follow_pin(self._registry.kernel, held)
        await self.announce(held)

    async def check_all(self) -> None:
        """Check everything that is held."""
        for held in (*self._registry.maps, *self._registry.programs):
            await self.check(held)
            await asyncio.sleep(0)  # others have their turn: behind the keeper, each pin takes a round trip

    async def announce(self, held: HeldMap | HeldProgram) -> None:
        """Log the mark and make an event, if that is news."""
        moved, before = held.moved, held.announced
        if moved == before or held.object is None:
            return
        held.announced = moved
        id_ = held.object.id
        event: dict[str, Any] = {held.kind: held.name, "happened": "settled" if moved is None else "moved", "id": id_}
        if moved is None:
            log.info("the pin leads elsewhere no more", kind=held.kind, name=held.name, id=id_)
        else:
            event |= {"pinned": moved.path, "leads_to": moved.id}
            log.warning("the pin leads to another object now", kind=held.kind, name=held.name, id=id_,
                        pinned=moved.path, leads_to=moved.id)  # fmt: skip
        try:
            await self._journal.append_object_event(held.kind, held.name, event)
        except JournalFailed as error:
            log.warning("a moved pin cannot be journalled yet", kind=held.kind, name=held.name, reason=str(error))
            held.announced = before  # so that the next check tells of it
