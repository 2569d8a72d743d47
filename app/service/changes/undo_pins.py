"""Pins of programs that an undo will need, should the service end before: in `keep_dir`, a folder in bpffs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from app.bpf.bpffs import KEPT_PIN
from app.bpf.kernel import Kernel
from app.service.errors import KeeperGone, NotRestorable, PinUnusable, ServiceError, kernel_failure
from app.service.objects.opening import check_pinnable, open_program, pin_failure
from app.service.objects.program import Program
from app.service.objects.source import Made, Pinned
from app.service.registry.held import HeldMap
from app.store.number_arrays import distinct
from app.store.records import EMPTY, Change, PendingConfirmation, ProgramRecord

log = structlog.get_logger()


def programs_before(change: Change) -> dict[int, ProgramRecord]:
    """Return the programs that the undo of a change puts back, by id."""
    records = (change.entries.programs[number] for number in distinct(change.entries.before) - {EMPTY})
    return {record.id: record for record in records}


class UndoPins:
    """Makes, opens and removes the pins. Thread rule: one event loop."""

    def __init__(self, kernel: Kernel, folder: str | None) -> None:
        """Pin below `folder`, which is the service's own. None: pin nothing."""
        self._kernel = kernel
        self._folder = folder
        self.others: Callable[[], Collection[str]] = tuple  # further pins of the service's own in that folder

    def check(self, held: HeldMap, change: Change, replaced: Mapping[int, Program]) -> None:
        """Check that every program that the undo of a change needs will be there, also after the end of the service.

        Args:
            held: The map.
            change: The change, which is not written yet.
            replaced: The programs that it replaces and that could be opened, by id.

        Raises:
            NotRestorable: One would not be there.
            KeeperGone: That cannot be found out, or made sure, without the keeper.
        """
        needed = programs_before(change)
        wrong = [
            {"program": record.name or record.id, "reason": reason}
            for record in needed.values()
            if (reason := self._why_not(held, record, replaced)) is not None
        ]
        failure = self._kernel.failure if wrong else None
        if failure is not None:
            raise kernel_failure("PROG_GET_FD_BY_ID", failure)
        if wrong:
            raise NotRestorable(held.name, f"program {wrong[0]['program']!r}: {wrong[0]['reason']}", wrong)
        if needed and self._folder is not None and not isinstance(held.source, Made):
            try:
                check_keep_dir(self._kernel, self._folder)
            except KeeperGone:
                raise
            except ServiceError as error:
                raise NotRestorable(held.name, f"keep_dir cannot be used: {error}", []) from error

    def _why_not(self, held: HeldMap, record: ProgramRecord, replaced: Mapping[int, Program]) -> str | None:
        if record.id not in replaced:
            return "the service can open it neither by id nor by name, so it could not be put back; hold it first"
        # An array that the service has made, and pinned nowhere, ends with it: then there is nothing to undo.
        if self._folder is not None or isinstance(held.source, Made) or self._is_pinned(record):
            return None
        return "it is pinned nowhere that the service knows, and keep_dir is not set: pin it, or set keep_dir"

    def _is_pinned(self, record: ProgramRecord) -> bool:
        if record.pinned is not None:
            with suppress(ServiceError), open_program(self._kernel, Pinned(record.pinned)) as program:
                return program.id == record.id
        return False

    def paths(self, held: HeldMap, change: Change, token: str) -> tuple[tuple[int, str], ...]:
        """Return the (program id, path) of each pin that the undo of a change wants.

        Args:
            held: The map.
            change: The change.
            token: Tells these pins from those of other changes.
        """
        if self._folder is None or isinstance(held.source, Made):
            return ()
        return tuple((id_, f"{self._folder}/{token}_{id_}") for id_ in sorted(programs_before(change)))

    def pin(self, pending: PendingConfirmation, programs: Mapping[int, Program]) -> None:
        """Make the pins of a change that waits.

        Raises:
            PinUnusable: One cannot be made there.
            KernelPermission: A capability is missing.
            KernelError: The kernel refuses.
        """
        for id_, path in pending.undo_pins:
            try:
                self._kernel.make_folder(str(Path(path).parent))
                self._kernel.obj_pin(programs[id_].fd, path)
            except OSError as error:
                raise pin_failure(self._kernel, path, "OBJ_PIN", error) from error

    def open(self, pending: PendingConfirmation, program_id: int) -> Program | None:
        """Open the program behind one of the pins. None: there is none.

        Raises:
            KernelError: It cannot be opened now.
        """
        path = dict(pending.undo_pins).get(program_id)
        try:
            return None if path is None else open_program(self._kernel, Pinned(path))
        except PinUnusable:
            return None

    def sweep(self, pending: Sequence[PendingConfirmation]) -> None:
        """After a start: remove the pins of changes that wait no longer. The folder is this service's own."""
        needed = {*self.others(), *(path for each in pending for _, path in each.undo_pins)}
        try:
            names = [] if self._folder is None else self._kernel.pins_in(self._folder)
        except OSError as error:
            reason = str(pin_failure(self._kernel, str(self._folder), "OBJ_PIN", error))
            log.warning("keep_dir cannot be used, so programs that an undo needs cannot be pinned", reason=reason)
            return
        foreign = foreign_names(names)
        if foreign:
            remedy = "name a folder for the service alone"
            log.warning("keep_dir holds what is not the service's", folder=self._folder, names=foreign, remedy=remedy)
        for name in names:
            path = f"{self._folder}/{name}"
            if KEPT_PIN.fullmatch(name) and path not in needed:
                self._unpin(path)

    def unpin(self, pending: PendingConfirmation) -> None:
        """Remove the pins of a change that waits no longer."""
        for _, path in pending.undo_pins:
            self._unpin(path)

    def _unpin(self, path: str) -> None:
        try:
            self._kernel.unpin(path)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("a pin that is not needed any more stays", pin=path, reason=str(error))


def foreign_names(names: Sequence[str]) -> list[str]:
    """Return up to three of the names in keep_dir that are none of the service's pins."""
    return sorted(name for name in names if not KEPT_PIN.fullmatch(name))[:3]


def check_keep_dir(kernel: Kernel, folder: str) -> None:
    """Check that the service may pin below `folder`, and make it where it is missing. Nothing is changed.

    Raises:
        PinUnusable: It may not.
    """
    try:
        check_pinnable(kernel, f"{folder}/program")
    except PinUnusable as error:
        if error.errno != "ENOENT":
            raise
        check_pinnable(kernel, folder)
