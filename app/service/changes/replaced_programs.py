"""Programs that changes replaced, kept open so that they can be put back."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

from app.bpf.kernel import Kernel
from app.service.errors import KernelError, ServiceError, kernel_failure
from app.service.objects.program import Program
from app.service.objects.source import ById, Pinned
from app.service.registry.programs import ByName, ProgramRef, Programs
from app.store.records import ProgramRecord

# So many changes can be undone with certainty; older ones only while their programs live by other means.
_CHANGES: Final = 10_000
# And so many fds it takes at the most.
_PROGRAMS: Final = 4_096


class ReplacedPrograms:
    """An fd for every program that a change which can be undone has replaced. Thread rule: one event loop."""

    def __init__(self, kernel: Kernel, programs: Programs) -> None:
        self._kernel = kernel
        self._programs = programs
        self._open: dict[int, Program] = {}
        self._uses: Counter[int] = Counter()
        self._by_change: OrderedDict[int, frozenset[int]] = OrderedDict()

    def hold(self, ids: Iterable[int]) -> dict[int, Program]:
        """Open these programs, once more each; those that cannot be opened (gone, or no right to) are left out."""
        found = {}
        for id_ in set(ids):
            if id_ not in self._open:
                while len(self._open) >= _PROGRAMS and self._by_change:
                    self._let_oldest_go()
                try:
                    program = self._opened(ById(id_))
                except KernelError:
                    program = None
                if program is None:
                    continue
                self._open[id_] = program
            self._uses[id_] += 1
            found[id_] = self._open[id_]
        return found

    def release(self, ids: Iterable[int]) -> None:
        """The opposite of `hold`."""
        for id_ in ids:
            self._uses[id_] -= 1
            if not self._uses[id_]:
                del self._uses[id_]
                self._open.pop(id_).close()

    def keep(self, change_id: int, ids: Iterable[int]) -> None:
        """What was held is for this change from now on; the oldest change beyond the limit lets go."""
        self._by_change[change_id] = frozenset(ids)
        while len(self._by_change) > _CHANGES:
            self._let_oldest_go()

    def copy_of(self, id_: int) -> Program | None:
        """The program, opened once more, where it is kept."""
        kept = self._open.get(id_)
        try:
            return None if kept is None else Program(self._kernel, self._kernel.dup(kept.fd))
        except OSError as error:
            raise kernel_failure("dup", error) from error

    def find(self, record: ProgramRecord) -> Program | None:
        """The recorded program, opened anew: kept since it was replaced, or found by id, name or pin; None: it is gone.

        The very same one: another with the same tag may use other maps. Of an earlier boot (id 0) it is the one that
        has the recorded pin now. KernelError.
        """
        if not record.id:
            return self._pinned(record)
        kept = self.copy_of(record.id)
        if kept is not None:
            return kept
        refs: list[ProgramRef] = [ById(record.id)]
        refs += [] if record.name is None else [ByName(record.name)]
        refs += [] if record.pinned is None else [Pinned(record.pinned)]
        for ref in refs:
            program = self._opened(ref)
            if program is not None and program.id == record.id and program.summary().tag == record.tag:
                return program
            if program is not None:
                program.close()
        return None

    def _pinned(self, record: ProgramRecord) -> Program | None:
        if record.pinned is None:
            return None
        source = Pinned(record.pinned)
        for held in self._programs:
            if held.source == source and held.object is not None:
                return self._opened(ByName(held.name))
        return self._opened(source)

    def close(self) -> None:
        """Let everything go."""
        for program in self._open.values():
            program.close()
        self._open.clear()
        self._uses.clear()
        self._by_change.clear()

    def _let_oldest_go(self) -> None:
        _, ids = self._by_change.popitem(last=False)
        self.release(ids)

    def _opened(self, ref: ProgramRef) -> Program | None:
        """None where it is gone, or may not be opened. KernelError where it may be later, as when no fd is free."""
        try:
            return self._programs.opened_copy(ref)
        except KernelError:
            raise
        except ServiceError:
            return None
