"""Changes: applied whole or not at all, journalled before they are answered, and undone."""

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
    ServiceError,
    WriteRefused,
)
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

    def get(self, id_: int) -> Change:
        """The change with this id. Errors: ChangeUnknown."""
        change = self.journal.change(id_)
        if change is None:
            raise ChangeUnknown(id_)
        return change

    async def apply(
        self, held: HeldMap, kind: str, steps: Sequence[Step], origin: Origin, *, reverts: int | None = None
    ) -> Change:
        """Write the steps and journal them, or leave everything as it was. Call it under the map's lock.

        Errors: WriteRefused, or for a single step what the kernel refused it for; JournalUnavailable.
        """
        array = held.opened()
        records = {id_: self._record(id_) for step in steps for id_ in (step.before, step.after) if id_ is not None}
        replaced = self._retained.hold(step.before for step in steps if step.before is not None)
        try:
            await write(array, steps, replaced)
            change = Change(
                map=held.name,
                kind=kind,
                entries=tuple(
                    EntryChange(
                        step.index,
                        None if step.before is None else records[step.before],
                        None if step.after is None else records[step.after],
                    )
                    for step in steps
                ),
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

    async def revert(self, id_: int, origin: Origin, *, dry_run: bool = False) -> tuple[Change | None, list[Step]]:
        """Undo a change, if its entries still hold what it put there; the change that this is, and its steps.

        Errors: ChangeUnknown; ChangeConflict with what the entries hold; ChangeNotRevertible; those of `apply`.
        """
        change = self.get(id_)
        if change.state != "applied":
            raise ChangeNotRevertible(id_, f"it is {change.state} already")
        held = self.registry.maps.get(change.map)
        async with held.lock:
            array = held.opened()
            if len(change.entries) > _LOOKED_UP_AT_ONCE:
                now: dict[int, int | None] = dict(await held.read())
            else:
                now = {entry.index: array.get(entry.index) for entry in change.entries}
            other = [
                {"index": entry.index, "holds": None if holds is None else asdict(self._record(holds))}
                for entry in change.entries
                if (holds := now.get(entry.index)) != (None if entry.after is None else entry.after.id)
            ]
            if other:
                raise ChangeConflict(id_, other)
            with ExitStack() as stack:
                programs = {
                    entry.before.id: stack.enter_context(self._find(change, entry.before))
                    for entry in change.entries
                    if entry.before is not None
                }
                steps = [
                    Step(entry.index, now.get(entry.index), None if entry.before is None else programs[entry.before.id])
                    for entry in reversed(change.entries)
                ]
                done = None if dry_run else await self.apply(held, "revert", steps, origin, reverts=id_)
                return done, steps

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
        """The recorded program, opened anew: kept since it was replaced, or found by id, name or pin with its tag.

        An id alone proves nothing after a reboot. Errors: ChangeNotRevertible.
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
                if program.summary().tag == record.tag:
                    return program
                program.close()
        raise ChangeNotRevertible(change.id, f"program {record.name or record.id!r} is gone")
