"""Undoing a change that nobody has confirmed."""

import time
from contextlib import ExitStack
from typing import Final

import structlog

from app.service.changes.plan import WritePlan
from app.service.changes.replaced_programs import ReplacedPrograms
from app.service.changes.undo_pins import UndoPins, programs_after, programs_before
from app.service.changes.writer import put_back
from app.service.counters import Counters
from app.service.objects.program import Program
from app.service.registry.held import HeldMap
from app.service.registry.index_sets import IndexSet
from app.service.registry.registry import Registry
from app.store.journal import Journal
from app.store.records import PendingConfirmation, expire

SERVICE: Final = "jumptable"  # the actor of what the service does by itself

log = structlog.get_logger()


class Undoing:
    """Thread rule: one event loop. `unjournalled`: tokens of what is undone, but not in the journal yet."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        replaced_programs: ReplacedPrograms,
        keep_dir: UndoPins,
        counters: Counters,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._retained = replaced_programs
        self._keep_dir = keep_dir
        self._figures = counters
        self.unjournalled: dict[str, list[int]] = {}  # and the programs that were replaced

    async def undo(self, held: HeldMap, waiting: PendingConfirmation) -> None:
        """Write back, and journal that. Call it under the map's lock; again, where it failed.

        Errors: MapUnavailable, KernelError, JournalFailed.
        """
        change = waiting.change
        if change.boot_id != self._registry.kernel.boot_id:
            held.expected = None  # its array is gone, and so is what its ids mean
            await self._journalled(held, waiting)
            return
        array = held.opened()
        held.writing = IndexSet(change.entries.indexes)
        try:
            if waiting.token not in self.unjournalled:
                replaced = list(self._retained.hold(programs_after(change)))  # as any change, it keeps them
                try:
                    left = await self._write_back(held, waiting) if array.id == change.map_id else []
                except BaseException:
                    self._retained.release(replaced)
                    raise
                self.unjournalled[waiting.token] = replaced
                held.undone[waiting.token] = held.writing
                log.info("undone, as nobody confirmed it", change=change.id, map=change.map, left=left)
            await self._journalled(held, waiting)
            held.undone.pop(waiting.token, None)
        finally:
            held.writing = ()

    async def _write_back(self, held: HeldMap, waiting: PendingConfirmation) -> list[int]:
        change = waiting.change
        # Of one that was cut off before it had an id, others may have changed the entries since, and be in the journal.
        since = set() if change.id else self._journal.changed_since(waiting)
        with ExitStack() as stack:
            programs: dict[int, Program] = {}
            for id_, record in programs_before(change).items():
                program = self._keep_dir.open(waiting, id_) or self._retained.find(record)
                if program is not None:
                    programs[id_] = stack.enter_context(program)
            entries = change.entries
            steps = WritePlan(entries.indexes, entries.before, entries.after, {}, {})
            if since:
                steps = steps.chosen(bytes(index not in since for index in entries.indexes))
            return await put_back(held.opened(), steps, programs)

    async def _journalled(self, held: HeldMap, waiting: PendingConfirmation) -> None:
        change = waiting.change
        if not change.id:
            await self._journal.remove_pending(waiting.token)
            self._retained.release(self.unjournalled.pop(waiting.token, []))
            return
        undone = await self._journal.append(expire(change, time.time(), SERVICE))
        self._figures.changes["expire", "applied"] += 1
        self._retained.keep(undone.id, self.unjournalled.pop(waiting.token, []))
        if held.expected is not None:
            held.expected.apply(undone)
