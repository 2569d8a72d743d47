"""The programs that are held under names, and how a request refers to one."""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Final

from app.bpf.kernel import Kernel
from app.service.errors import NameTaken, ProgramNotFound, ProgramUnknown, ServiceError
from app.service.objects.opening import allowed_source, open_in_thread, open_program
from app.service.objects.program import Program, ProgramSummary
from app.service.objects.source import ById, Made, Pinned, Source
from app.service.registry.held import HeldProgram, Holdings, Veto, no_veto
from app.service.registry.pins import moved_warning
from app.store.records import ProgramRecord

_MAX_SUMMARIES: Final = 4096  # of programs that are not held, kept as they were looked up


@dataclass(frozen=True, slots=True)
class ByName:
    """A reference to a program by the name it is held under."""

    name: str


ProgramRef = ByName | ById | Pinned

# The (map, index) of every entry that points to a program, by the program's id.
Uses = dict[int, list[tuple[str, int]]]


class Programs(Holdings[HeldProgram]):
    """Held programs by name. One program may have several names. Thread rule: one event loop."""

    unknown = ProgramUnknown

    def __init__(self, kernel: Kernel, pin_dirs: Sequence[str]) -> None:
        """Hold nothing yet. `pin_dirs`: the folders below which a request may name pins."""
        super().__init__(kernel, pin_dirs)
        self._order: dict[str, int] = {}  # by name: which was held before which
        self._numbers = count()
        # By a program's id: all that hold it, in that order, and what is known of it by the first of these.
        self._holders: dict[int, list[HeldProgram]] = {}
        self._held_summaries: dict[int, ProgramSummary] = {}
        self._records: dict[int, ProgramRecord] = {}
        self._summaries: dict[int, ProgramSummary] = {}  # of programs that are not held

    def add(self, held: HeldProgram) -> HeldProgram:
        """Hold it from now on. It may still be unavailable."""
        super().add(held)
        self._order[held.name] = next(self._numbers)
        self._enter(held)
        return held

    def adopt(self, name: str, program: Program) -> HeldProgram:
        """Hold a program that the caller has loaded."""
        return self.add(HeldProgram(name, Made(), program))

    def replace(self, name: str, source: Source, program: Program, part_of: str) -> HeldProgram:
        """Hold a program of an object file, in the place of the one that has the name so far. Call it under the lock.

        Args:
            name: The name.
            source: Where it can be opened again.
            program: The program.
            part_of: The name of the object file.
        """
        held = self._held.get(name)
        if held is None:
            return self.add(HeldProgram(name, source, part_of=part_of).take(program))
        held.source = source
        self._take(held, program)
        return held

    def remove(self, name: str) -> None:
        """Hold a program of an object file no longer. Call it under the program's lock."""
        held = self._held.pop(name)
        self._leave(held)
        del self._order[name]
        held.release()

    def open(self, held: HeldProgram) -> None:
        """Open, or open again, what is held. It raises as `hold` does."""
        self._take(held, open_program(self._kernel, held.source))

    async def hold(
        self,
        name: str,
        source: Source,
        uses: Uses,
        *,
        dry_run: bool = False,
        veto: Veto[HeldProgram] = no_veto,
    ) -> tuple[HeldProgram, bool]:
        """Hold a program for a request. A name that is held already is opened again.

        Args:
            name: The name to hold it under.
            source: Where to open it.
            uses: Which entries point to what, as of now.
            dry_run: What is returned is held by nobody. Release it once it was looked at.
            veto: Is called with what was opened, as the last that can forbid it.

        Returns:
            What is held, and whether the name is new.

        Raises:
            NameTaken: The name has another program that entries point to.
            NotAProgram: The source leads to something else.
            ProgramNotFound: No program has this id.
            PinNotAllowed: The path is not below pin_dirs.
            PinUnusable: The pin cannot be opened.
            KernelPermission: A capability is missing.
            KernelError: The kernel refuses.
        """
        async with self._holding:
            held = self._held.get(name)
            if held is None or source != held.source:  # the configuration may name a pin that requests may not
                source = allowed_source(source, self._pin_dirs)
            fresh = HeldProgram(name, source)
            fresh.take(await open_in_thread(partial(open_program, self._kernel, fresh.source)))
            try:
                self._check_replaceable(held, fresh, uses)
                await veto(fresh)
            except BaseException:
                fresh.release()
                raise
            if held is None:
                return (fresh if dry_run else self.add(fresh)), True
            async with held.lock:
                if dry_run or fresh.object is None:
                    return fresh, False
                held.source = fresh.source
                self._take(held, fresh.object)
                return held, False

    async def reopen(self, held: HeldProgram, veto: Veto[HeldProgram]) -> None:
        """Hold the program that the pin leads to now. Entries that hold the old one keep it.

        Args:
            held: The program.
            veto: Is called with what is held, as the last that can forbid it.

        Raises:
            ServiceError: As `hold` does.
        """
        async with self._holding, held.lock:
            held.opened()
            await veto(held)
            self.open(held)

    @staticmethod
    def _check_replaceable(held: HeldProgram | None, fresh: HeldProgram, uses: Uses) -> None:
        if held is None or held.object is None or fresh.object is None or fresh.source == held.source:
            return
        if fresh.object.id != held.object.id and uses.get(held.object.id):
            raise NameTaken(held.name, "the name has another program that entries point to; release it first")

    async def release(self, name: str, *, dry_run: bool = False, veto: Veto[HeldProgram] = no_veto) -> None:
        """Release a program. Entries that point to it keep it alive.

        Args:
            name: The name it is held under.
            dry_run: Only check.
            veto: Is called with what is held, as the last that can forbid it.

        Raises:
            ProgramUnknown: Nothing is held under this name.
        """
        async with self._holding, self.get(name).lock:
            held = self.get(name)
            await veto(held)
            if not dry_run:
                self._leave(held)
                del self._held[name], self._order[name]
                held.release()

    @staticmethod
    def warnings(held: HeldProgram) -> list[str]:
        """Return what may end the hold, or puts another program into entries than expected, as of the last look."""
        if isinstance(held.source, ById):
            return ["held by id: not held any more after the next boot"]
        if isinstance(held.source, Made):
            return ["loaded by the service and pinned nowhere: gone when the service and all entries let go of it"]
        moved = moved_warning(held)
        if moved is not None:
            return [moved]
        if held.object is not None and not held.is_pinned:
            return [f"the pin {held.source.path} is gone: the program cannot be opened again after a restart"]
        return []

    def named(self, name: str) -> tuple[Program, ProgramSummary]:
        """Return the program that a request's body names, and what an entry tells of it.

        Raises:
            ProgramNotFound: Nothing is held under this name.
            ProgramUnavailable: It could not be opened.
        """
        held = self._held.get(name)
        if held is None:
            raise ProgramNotFound(name)
        program = held.object or held.opened()
        return program, self._held_summaries[program.id]

    @contextmanager
    def resolve(self, ref: ProgramRef) -> Iterator[Program]:
        """Open the program that a request refers to, for as long as the context lasts.

        Raises:
            ProgramNotFound: There is none.
            ProgramUnavailable: It is held, but could not be opened.
            NotAProgram: The reference leads to something else.
            PinNotAllowed: The path is not below pin_dirs.
            PinUnusable: The pin cannot be opened.
            KernelPermission: A capability is missing.
        """
        if isinstance(ref, ByName):
            yield self.named(ref.name)[0]
        elif isinstance(ref, ById) and ref.id in self._holders:
            yield self._holders[ref.id][0].opened()
        else:
            with open_program(self._kernel, allowed_source(ref, self._pin_dirs)) as program:
                yield program

    def opened_copy(self, ref: ProgramRef) -> Program:
        """Return the program with an fd of its own, which the caller closes. It raises as `resolve` does."""
        if isinstance(ref, ByName):
            return self.named(ref.name)[0].copy()
        with self.resolve(ref) as program:
            return program.copy()

    def describe(self, program_id: int, program: Program | None = None) -> ProgramSummary:
        """Return what an entry tells of the program that it points to.

        Args:
            program_id: The program's id.
            program: The same, where it is open already.
        """
        if program_id in self._held_summaries:
            return self._held_summaries[program_id]
        if program_id not in self._summaries:
            if program is not None:
                return program.summary()
            try:
                with open_program(self._kernel, ById(program_id)) as opened:
                    self._summaries[program_id] = opened.summary()
            except ServiceError:
                return ProgramSummary(program_id)
            while len(self._summaries) > _MAX_SUMMARIES:
                del self._summaries[next(iter(self._summaries))]
        return self._summaries[program_id]

    def record(self, program_id: int, pinned: str | None = None) -> ProgramRecord:
        """Return what the journal keeps of a program.

        Args:
            program_id: The program's id.
            pinned: A path that the program is known by. That of a held program counts before.
        """
        known = self._records.get(program_id)
        if known is None:
            summary = self.describe(program_id)
            return ProgramRecord(summary.name, program_id, summary.tag, pinned)
        return known if known.pinned is not None or pinned is None else replace(known, pinned=pinned)

    def records(
        self, ids: Iterable[int], pinned: Mapping[int, str], stored: Mapping[int, ProgramRecord]
    ) -> dict[int, ProgramRecord]:
        """Return what the journal keeps of several programs, by id.

        Args:
            ids: The programs.
            pinned: By id, the path by which a request names one.
            stored: By id, what the journal has kept before: also a path by which one was named once.
        """
        found = {}
        for id_ in ids:
            known = self._records.get(id_)
            if known is None or known.pinned is None:
                path = pinned.get(id_)
                if path is None and id_ in stored:
                    path = stored[id_].pinned
                if known is None or path is not None:
                    known = self.record(id_, path)
            found[id_] = known
        return found

    def held_as(self, program_id: int) -> HeldProgram | None:
        """Return the first of those that hold this program. None: the service does not hold it."""
        holders = self._holders.get(program_id)
        return None if holders is None else holders[0]

    def caller_of(self, map_id: int) -> HeldProgram | None:
        """Return a held program that refers to this map. None: there is none."""
        for held in self._held.values():
            if held.object is not None and map_id in held.object.info().map_ids:
                return held
        return None

    def close(self) -> None:
        """Close everything."""
        for held in self._held.values():
            held.release()
        for each in (self._held, self._order, self._holders, self._held_summaries, self._records):
            each.clear()

    # What is known by a program's id. It costs as much as the program has names, however many programs are held.

    def _take(self, held: HeldProgram, program: Program) -> None:
        self._leave(held)
        held.take(program)
        self._enter(held)

    def _enter(self, held: HeldProgram) -> None:
        if held.object is not None:
            holders = self._holders.setdefault(held.object.id, [])
            insort(holders, held, key=lambda each: self._order[each.name])
            self._describe_held(held.object.id, holders[0])

    def _leave(self, held: HeldProgram) -> None:
        if held.object is not None:
            id_ = held.object.id
            holders = self._holders[id_]
            holders.remove(held)
            if holders:
                self._describe_held(id_, holders[0])
            else:
                del self._holders[id_], self._held_summaries[id_], self._records[id_]

    def _describe_held(self, id_: int, first: HeldProgram) -> None:
        self._held_summaries[id_] = summary = first.opened().summary(first.name)
        path = first.source.path if isinstance(first.source, Pinned) else None
        self._records[id_] = ProgramRecord(first.name, id_, summary.tag, path)
