"""Changes: applied whole or not at all, journalled before they are answered, and undone."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Final

from app.service.errors import (
    ChangeConflict,
    ChangeNotRevertible,
    ChangeUnknown,
    JournalUnavailable,
    JournalUnreadable,
    ServiceError,
    WriteRefused,
)
from app.service.fit import Fit, check_not_frozen, fit_of
from app.service.held import ById, HeldMap, Pinned
from app.service.program import Program
from app.service.programs import ByName, ProgramRef
from app.service.registry import Registry
from app.service.retained import Retained
from app.service.writing import Step, WriteFailed, put_back, write
from app.store.journal import Journal, JournalFailed
from app.store.records import Change, EntryChange, ProgramRecord

_LOOKED_UP_AT_ONCE: Final = 512


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a change, by which request, and why."""

    actor: str
    request_id: str
    note: str | None = None


class Changes:
    """Whatever changes entries goes through here. Thread rule: one event loop."""

    def __init__(self, registry: Registry, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        self.registry = registry
        self.journal = journal
        self._retained = Retained(registry.kernel, registry.programs)
        self._clock = clock
        self._running: set[asyncio.Task[Change]] = set()
        self._stopping = False

    def get(self, id_: int) -> Change:
        """The change with this id. Errors: ChangeUnknown."""
        try:
            change = self.journal.change(id_)
        except JournalFailed as error:
            raise JournalUnreadable(str(error)) from error
        if change is None:
            raise ChangeUnknown(id_)
        return change

    async def apply(
        self, held: HeldMap, kind: str, steps: Sequence[Step], origin: Origin, *, reverts: int | None = None
    ) -> Change:
        """Write the steps and journal them, or leave everything as it was. Call it under the map's lock.

        Errors: WriteRefused, or for a single step what the kernel refused it for; JournalUnavailable.
        """
        if len(steps) == 1:
            return await self._apply(held, kind, steps, origin, reverts)
        # A task of its own: a request that is given up (the service ends) must not leave a change half done.
        task = asyncio.create_task(self._apply(held, kind, steps, origin, reverts))
        self._running.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait([task])
        return task.result()

    def _ended(self, task: "asyncio.Task[Change]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def finish(self) -> None:
        """Wait for the changes that are under way, which put back what they have written and end."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running)

    async def _apply(
        self, held: HeldMap, kind: str, steps: Sequence[Step], origin: Origin, reverts: int | None
    ) -> Change:
        array = held.opened()
        replaced = self._retained.hold(step.before for step in steps if step.before is not None)
        try:
            await write(array, steps, replaced, lambda: self._stopping)
            change = Change(
                map=held.name,
                map_id=array.id,
                boot_id=self.registry.kernel.boot_id,
                kind=kind,
                entries=self._entries(steps),
                at=self._clock(),
                actor=origin.actor,
                request_id=origin.request_id,
                note=origin.note,
                reverts=reverts,
            )
            try:
                change = await self.journal.append(change)
            except JournalFailed as error:
                left = await put_back(array, steps, replaced)
                raise JournalUnavailable(str(error), not left, left) from error
        except BaseException as error:
            self._retained.release(replaced)
            if isinstance(error, WriteFailed):
                if len(steps) == 1:
                    raise error.cause from error
                raise WriteRefused(error.cause, error.index, not error.left, error.left) from error
            raise
        self._retained.keep(change.id, replaced)
        return change

    def _entries(self, steps: Sequence[Step]) -> tuple[EntryChange, ...]:
        ids = {id_ for step in steps for id_ in (step.before, step.after)}
        records = {id_: None if id_ is None else self._record(id_) for id_ in ids}
        return tuple(EntryChange(step.index, records[step.before], records[step.after]) for step in steps)

    async def revert(
        self, id_: int, origin: Origin, *, dry_run: bool = False
    ) -> tuple[Change | None, list[Step], Fit | None]:
        """Undo a change, if its entries still hold what it put there: the change that this is, its steps, and the fit.

        Errors: ChangeUnknown; ChangeConflict with what the entries hold; ChangeNotRevertible; those of `apply`.
        """
        held = self.registry.maps.get(self.get(id_).map)
        async with held.lock:
            change = self.get(id_)  # as it is now: others may have waited for the lock too
            array = held.opened()
            if change.state != "applied":
                raise ChangeNotRevertible(id_, f"it is {change.state} already")
            if (change.map_id, change.boot_id) != (array.id, self.registry.kernel.boot_id):
                raise ChangeNotRevertible(id_, f"map {held.name!r} is another array now")
            now = await self._holds(held, change)
            seeds = await self.registry.seeds_for(held) if dry_run else []
            with ExitStack() as stack:
                programs: dict[int, Program] = {}
                for record in {entry.before for entry in change.entries if entry.before is not None}:
                    programs[record.id] = stack.enter_context(self._find(change, record))
                steps = [
                    Step(entry.index, now.get(entry.index), None if entry.before is None else programs[entry.before.id])
                    for entry in reversed(change.entries)
                ]
                if dry_run:
                    check_not_frozen(array)
                    return None, steps, fit_of(self.registry, array, list(programs.values()), seeds)
                return await self.apply(held, "revert", steps, origin, reverts=id_), steps, None

    async def _holds(self, held: HeldMap, change: Change) -> dict[int, int | None]:
        """What the change's entries hold now: what it put there, or else ChangeConflict."""
        if len(change.entries) > _LOOKED_UP_AT_ONCE:
            now: dict[int, int | None] = dict(await held.read())
        else:
            now = {entry.index: held.opened().get(entry.index) for entry in change.entries}
        other = [
            {"index": entry.index, "holds": None if holds is None else asdict(self._record(holds))}
            for entry in change.entries
            if (holds := now.get(entry.index)) != (None if entry.after is None else entry.after.id)
        ]
        if other:
            raise ChangeConflict(change.id, other)
        return now

    def close(self) -> None:
        """Let go of all programs and of the journal."""
        self._retained.close()
        self.journal.close()

    def _record(self, program_id: int) -> ProgramRecord:
        """What the journal keeps of a program."""
        programs = self.registry.programs
        summary, held = programs.describe(program_id), programs.held_as(program_id)
        pinned = held.source.path if held is not None and isinstance(held.source, Pinned) else None
        return ProgramRecord(summary.name, program_id, summary.tag, pinned)

    def _find(self, change: Change, record: ProgramRecord) -> Program:
        """The recorded program, opened anew: kept since it was replaced, or found by id, name or pin.

        The very same one: another with the same tag may use other maps. Errors: ChangeNotRevertible.
        """
        kept = self._retained.copy_of(record.id)
        if kept is not None:
            return kept
        refs: list[ProgramRef] = [ById(record.id)]
        refs += [] if record.name is None else [ByName(record.name)]
        refs += [] if record.pinned is None else [Pinned(record.pinned)]
        for ref in refs:
            with suppress(ServiceError):
                program = self.registry.programs.opened_copy(ref)
                if program.id == record.id and program.summary().tag == record.tag:
                    return program
                program.close()
        raise ChangeNotRevertible(change.id, f"program {record.name or record.id!r} is gone")
