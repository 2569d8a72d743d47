"""Programs that changes have replaced, kept open so that they can be put back."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from app.service.errors import KernelError, ServiceError
from app.service.objects.program import Program
from app.service.objects.source import ById, Pinned
from app.service.registry.programs import ByName, ProgramRef, Programs
from app.store.records import ProgramRecord

_MAX_CHANGES: Final = 10_000  # that can be undone with certainty; older ones only while their programs live otherwise
MAX_PROGRAMS: Final = 4_096  # that are kept open: one fd each


class ReplacedPrograms:
    """An fd for every program that a change has replaced, as long as the change can be undone.

    Whoever needs a program acquires it, and releases it again; `keep` passes what was acquired on to a journalled
    change. Thread rule: one event loop.

    Attributes:
        max_programs: How many are kept open: one fd each. Beyond that, the oldest changes let go of theirs.
    """

    def __init__(self, programs: Programs) -> None:
        """Keep nothing yet. `programs`: opens what is to be kept."""
        self._programs = programs
        self.max_programs = MAX_PROGRAMS
        self._open: dict[int, Program] = {}
        self._uses: Counter[int] = Counter()
        # By the id of the first of some changes: how many changes, and what they have replaced.
        self._by_change: OrderedDict[int, tuple[int, Sequence[int]]] = OrderedDict()
        self._changes = 0

    def acquire(self, ids: Iterable[int]) -> dict[int, Program]:
        """Keep these programs open until `release`. Those that cannot be opened (gone, or no right to) are left out."""
        found = {}
        for id_ in set(ids):
            if id_ in self._open or self._keep_open(id_):
                self._uses[id_] += 1
                found[id_] = self._open[id_]
        return found

    def acquire_one(self, id_: int) -> None:
        """Keep a program open until `release`, if it can be opened. It is to be released in any case."""
        if id_ not in self._open:
            self._keep_open(id_)
        self._uses[id_] += 1

    def _keep_open(self, id_: int) -> bool:
        """Open a program. Returns False where it is gone, or there is no right to."""
        while len(self._open) >= self.max_programs and self._by_change:
            self._release_oldest_changes()
        try:
            program = self._opened(ById(id_))
        except KernelError:
            program = None
        if program is not None:
            self._open[id_] = program
        return program is not None

    def release(self, ids: Iterable[int]) -> None:
        """Let go of programs that were acquired."""
        for id_ in ids:
            self.release_one(id_)

    def release_one(self, id_: int) -> None:
        """Let go of a program that was acquired."""
        self._uses[id_] -= 1
        if not self._uses[id_]:
            del self._uses[id_]
            if id_ in self._open:
                self._open.pop(id_).close()

    def keep(self, change_id: int, ids: Sequence[int], changes: int = 1) -> None:
        """Keep acquired programs for journalled changes. The oldest changes beyond the limit let go of theirs.

        Args:
            change_id: The id of the first of them.
            ids: The programs, each as often as it was acquired.
            changes: How many changes.
        """
        self._by_change[change_id] = changes, ids
        self._changes += changes
        while self._changes > _MAX_CHANGES and len(self._by_change) > 1:
            self._release_oldest_changes()

    def keep_entries_of(self, array_id: int, ids: Iterable[int]) -> None:
        """Keep the programs of an array that another one replaces, as those of a change are kept."""
        acquired = self.acquire(ids)
        changes, before = self._by_change.pop(-array_id, (0, ()))
        self._changes -= changes
        self.release(before)
        self.keep(-array_id, [*acquired])

    def find_for_new_array(self, record: ProgramRecord) -> Program | None:
        """Open a recorded program for an array that replaces the one of the record.

        That is the one that has the recorded pin now; without a pin, it is what `find` finds. A loader that pins a new
        array usually pins new programs, too, which use the new maps.

        Returns:
            The program, which the caller closes. None: it is gone.

        Raises:
            KernelError: It cannot be opened now.
        """
        pinned = None if record.pinned is None else self._opened(Pinned(record.pinned))
        return self.find(record) if pinned is None else pinned

    def find(self, record: ProgramRecord) -> Program | None:
        """Open a recorded program anew: as it was kept, or by its id, name or pin.

        It is the very same program: another one with the same tag may use other maps. Of an earlier boot (id 0) it is
        the one that has the recorded pin now.

        Returns:
            The program, which the caller closes. None: it is gone.

        Raises:
            KernelError: It cannot be opened now: one way fails, and no other leads to it.
        """
        if not record.id:
            return self._pinned(record)
        kept = self._open.get(record.id)
        if kept is not None:
            return kept.copy()
        refs: list[ProgramRef] = [ById(record.id)]
        refs += [] if record.name is None else [ByName(record.name)]
        refs += [] if record.pinned is None else [Pinned(record.pinned)]
        failure: KernelError | None = None
        for ref in refs:
            try:
                program = self._opened(ref)
            except KernelError as error:
                failure = failure or error
                continue
            if program is not None and program.id == record.id and program.summary().tag == record.tag:
                return program
            if program is not None:
                program.close()
        if failure is not None:
            raise failure
        return None

    def _pinned(self, record: ProgramRecord) -> Program | None:
        if record.pinned is None:
            return None
        source = Pinned(record.pinned)
        for held in self._programs:
            if held.source == source and held.object is not None and held.moved is None:
                return self._opened(ByName(held.name))
        return self._opened(source)

    def discard(self, ids: Collection[int]) -> None:
        """Keep these programs for no change any more: what they need besides is gone, so they must not be put back."""
        doomed = self._uses.keys() & ids
        if not doomed:  # most often: then there is no need to look at 10,000 changes
            return
        for change_id, (changes, kept) in self._by_change.items():
            if not doomed.isdisjoint(kept):
                self._by_change[change_id] = changes, [id_ for id_ in kept if id_ not in doomed]
                self.release([id_ for id_ in kept if id_ in doomed])

    def close(self) -> None:
        """Close everything."""
        for program in self._open.values():
            program.close()
        self._open.clear()
        self._uses.clear()
        self._by_change.clear()

    def _release_oldest_changes(self) -> None:
        _, (changes, ids) = self._by_change.popitem(last=False)
        self._changes -= changes
        self.release(ids)

    def _opened(self, ref: ProgramRef) -> Program | None:
        """Return None where it is gone, or may not be opened. KernelError: it may be opened later."""
        try:
            return self._programs.opened_copy(ref)
        except KernelError:
            raise
        except ServiceError:
            return None
