"""The programs that are held under names, and how a request refers to one."""

import asyncio
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

from app.bpf.kernel import Kernel
from app.service.errors import NameTaken, ProgramNotFound, ProgramUnknown, ServiceError, kernel_failure
from app.service.objects.opening import allowed_source, open_program
from app.service.objects.program import Program, ProgramSummary
from app.service.objects.source import ById, Made, Pinned, Source
from app.service.registry.held import HeldProgram, Veto, no_veto
from app.store.records import ProgramRecord

_SUMMARIES_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class ByName:
    """A reference to a program by the name it is held under."""

    name: str


ProgramRef = ByName | ById | Pinned

# The (map, index) of every entry that points to a program, by the program's id.
Uses = dict[int, list[tuple[str, int]]]


class Programs:
    """Held programs by name; one program may have several. Thread rule: one event loop."""

    def __init__(self, kernel: Kernel, pin_dirs: Sequence[str]) -> None:
        self._kernel = kernel
        self._pin_dirs = pin_dirs
        self._held: dict[str, HeldProgram] = {}
        self._holding = asyncio.Lock()  # whoever holds or releases
        self._order: dict[str, int] = {}  # of the names: which was held before which
        self._numbers = count()
        self._names: dict[int, list[HeldProgram]] = {}  # by a program's id all under which it is held, in that order
        self._by_id: dict[int, HeldProgram] = {}  # the first of these
        self._named: dict[int, ProgramSummary] = {}  # of held programs
        self._records: dict[int, ProgramRecord] = {}  # of those that are held by a pin
        self._summaries: dict[int, ProgramSummary] = {}  # of others, as they were looked up

    def __iter__(self) -> Iterator[HeldProgram]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def find(self, name: str) -> HeldProgram | None:
        """The program held under `name`; None: there is none."""
        return self._held.get(name)

    def get(self, name: str) -> HeldProgram:
        """The program held under `name`. Errors: ProgramUnknown."""
        if name not in self._held:
            raise ProgramUnknown(name)
        return self._held[name]

    def add(self, held: HeldProgram) -> HeldProgram:
        """Hold it from now on; it may still be unavailable."""
        self._held[held.name] = held
        self._order[held.name] = next(self._numbers)
        self._enter(held)
        return held

    def adopt(self, name: str, program: Program) -> HeldProgram:
        """Hold a program that the caller has loaded."""
        return self.add(HeldProgram(name, Made(), program))

    def open(self, held: HeldProgram) -> None:
        """Open, or open again, what is held. Errors: as `hold`."""
        self._take(held, open_program(self._kernel, held.source))

    async def hold(
        self,
        name: str,
        source: Source,
        uses: Uses,
        *,
        dry_run: bool = False,
        before: Veto[HeldProgram] = no_veto,
    ) -> tuple[HeldProgram, bool]:
        """Hold a program at a caller's wish; True: the name was not held before. A name that is held is opened again.

        `uses`: which entries point to what, as of now; `dry_run`: what comes back is held by nobody, and is to be
        released once it was looked at; `before`: is called with what was opened, the last that can forbid it. Errors:
        NameTaken, NotAProgram, ProgramNotFound, PinNotAllowed, PinUnusable, KernelPermission, KernelError.
        """
        fresh = HeldProgram(name, allowed_source(source, self._pin_dirs))
        async with self._holding:
            held = self._held.get(name)
            fresh.take(open_program(self._kernel, fresh.source))
            try:
                self._check_replaceable(held, fresh, uses)
                await before(fresh)
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

    @staticmethod
    def _check_replaceable(held: HeldProgram | None, fresh: HeldProgram, uses: Uses) -> None:
        if held is None or held.object is None or fresh.object is None or fresh.source == held.source:
            return
        if fresh.object.id != held.object.id and uses.get(held.object.id):
            raise NameTaken(held.name, "the name has another program that entries point to; release it first")

    async def release(self, name: str, *, dry_run: bool = False, before: Veto[HeldProgram] = no_veto) -> None:
        """Let a program go; entries that point to it keep it alive; `before`: the last that can forbid it.

        Errors: ProgramUnknown.
        """
        async with self._holding, self.get(name).lock:
            held = self.get(name)
            await before(held)
            if not dry_run:
                self._leave(held)
                del self._held[name], self._order[name]
                held.release()

    def named(self, name: str) -> HeldProgram:
        """The program that a body names. Errors: ProgramNotFound."""
        if name not in self._held:
            raise ProgramNotFound(name)
        return self._held[name]

    @contextmanager
    def resolve(self, ref: ProgramRef) -> Iterator[Program]:
        """The program that a request refers to, open for as long as the context lasts.

        Errors: ProgramNotFound, ProgramUnavailable, NotAProgram, PinNotAllowed, PinUnusable, KernelPermission.
        """
        if isinstance(ref, ByName):
            yield self.named(ref.name).opened()
        elif isinstance(ref, ById) and ref.id in self._by_id:
            yield self._by_id[ref.id].opened()
        else:
            with open_program(self._kernel, allowed_source(ref, self._pin_dirs)) as program:
                yield program

    def opened_copy(self, ref: ProgramRef) -> Program:
        """The program, with an fd of its own that is the caller's to close. Errors: as `resolve`."""
        with self.resolve(ref) as program:
            try:
                return Program(self._kernel, self._kernel.dup(program.fd))
            except OSError as error:
                raise kernel_failure("dup", error) from error

    def describe(self, program_id: int, program: Program | None = None) -> ProgramSummary:
        """What an entry tells of the program it points to; `program`: the same, where it is open already."""
        if program_id in self._named:
            return self._named[program_id]
        if program_id not in self._summaries:
            if program is not None:
                return program.summary()
            try:
                with open_program(self._kernel, ById(program_id)) as opened:
                    self._summaries[program_id] = opened.summary()
            except ServiceError:
                return ProgramSummary(program_id)
            while len(self._summaries) > _SUMMARIES_KEPT:
                del self._summaries[next(iter(self._summaries))]
        return self._summaries[program_id]

    def record(self, program_id: int, pinned: str | None = None) -> ProgramRecord:
        """What the journal keeps of a program; `pinned`: a path that it was opened by just now."""
        if program_id in self._records:
            return self._records[program_id]
        summary = self.describe(program_id)
        return ProgramRecord(summary.name, program_id, summary.tag, pinned)

    def held_as(self, program_id: int) -> HeldProgram | None:
        """The first of the names under which this program is held."""
        return self._by_id.get(program_id)

    def caller_of(self, map_id: int) -> HeldProgram | None:
        """A held program that refers to this map."""
        for held in self._held.values():
            if held.object is not None and map_id in held.object.info().map_ids:
                return held
        return None

    def close(self) -> None:
        """Let everything go."""
        for held in self._held.values():
            held.release()
        for each in (self._held, self._order, self._names, self._by_id, self._named, self._records):
            each.clear()

    # What is known by a program's id. Each of these costs as much as the program has names, however many are held.

    def _take(self, held: HeldProgram, program: Program) -> None:
        self._leave(held)
        held.take(program)
        self._enter(held)

    def _enter(self, held: HeldProgram) -> None:
        if held.object is not None:
            names = self._names.setdefault(held.object.id, [])
            insort(names, held, key=lambda each: self._order[each.name])
            self._tell_of(held.object.id, names[0])

    def _leave(self, held: HeldProgram) -> None:
        if held.object is not None:
            id_ = held.object.id
            names = self._names[id_]
            names.remove(held)
            if names:
                self._tell_of(id_, names[0])
            else:
                del self._names[id_], self._by_id[id_], self._named[id_]
                self._records.pop(id_, None)

    def _tell_of(self, id_: int, first: HeldProgram) -> None:
        self._by_id[id_] = first
        self._named[id_] = told = first.opened().summary(first.name)
        self._records.pop(id_, None)
        if isinstance(first.source, Pinned):
            self._records[id_] = ProgramRecord(first.name, id_, told.tag, first.source.path)
