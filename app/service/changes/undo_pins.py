"""The folder in bpffs where programs are pinned that an undo will need, should the service end before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from app.bpf.bpffs import KEPT_PIN
from app.bpf.kernel import Kernel
from app.service.errors import NotRestorable, PinUnusable, ServiceError
from app.service.objects.opening import check_pinnable, open_program, pin_failure
from app.service.objects.program import Program
from app.service.objects.source import Made, Pinned
from app.service.registry.held import HeldMap
from app.store.records import EMPTY, Change, PendingConfirmation, ProgramRecord

log = structlog.get_logger()


def programs_before(change: Change) -> dict[int, ProgramRecord]:
    """What the undo of a change would put back, by id."""
    records = (change.entries.programs[number] for number in set(change.entries.before) - {EMPTY})
    return {record.id: record for record in records}


def programs_after(change: Change) -> set[int]:
    """What it would replace."""
    return set(change.entries.after) - {EMPTY}


class UndoPins:
    """Pins of the service's own. `folder` None: there are none. Thread rule: one event loop."""

    def __init__(self, kernel: Kernel, folder: str | None) -> None:
        self._kernel = kernel
        self._folder = folder

    def check(self, held: HeldMap, change: Change, replaced: Mapping[int, Program]) -> None:
        """NotRestorable where a program that the undo would need could not be kept beyond the service's end."""
        needed = programs_before(change)
        wrong = [
            {"program": record.name or record.id, "reason": reason}
            for record in needed.values()
            if (reason := self._why_not(held, record, replaced)) is not None
        ]
        if wrong:
            raise NotRestorable(held.name, f"program {wrong[0]['program']!r}: {wrong[0]['reason']}", wrong)
        if needed and self._folder is not None and not isinstance(held.source, Made):
            try:
                check_keep_dir(self._kernel, self._folder)
            except ServiceError as error:
                raise NotRestorable(held.name, f"keep_dir cannot be used: {error}", []) from error

    def _why_not(self, held: HeldMap, record: ProgramRecord, replaced: Mapping[int, Program]) -> str | None:
        if record.id not in replaced:
            return "the service can open it neither by id nor by name, so it could not be put back"
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
        """(program id, path) of the pins that the undo of a change wants; `token`: what tells them from others'."""
        if self._folder is None or isinstance(held.source, Made):
            return ()
        return tuple((id_, f"{self._folder}/{token}_{id_}") for id_ in sorted(programs_before(change)))

    def pin(self, waiting: PendingConfirmation, programs: Mapping[int, Program]) -> None:
        """Make these pins. Errors: PinUnusable, KernelPermission, KernelError."""
        for id_, path in waiting.undo_pins:
            try:
                self._kernel.make_folder(str(Path(path).parent))
                self._kernel.obj_pin(programs[id_].fd, path)
            except OSError as error:
                raise pin_failure(self._kernel, path, "OBJ_PIN", error) from error

    def open(self, waiting: PendingConfirmation, program_id: int) -> Program | None:
        """The program behind one of them; None where there is none. KernelError."""
        path = dict(waiting.undo_pins).get(program_id)
        try:
            return None if path is None else open_program(self._kernel, Pinned(path))
        except PinUnusable:
            return None

    def sweep(self, waiting: Sequence[PendingConfirmation]) -> None:
        """After a start: remove the pins that are left of what waits no more. The folder is this service's own."""
        needed = {path for each in waiting for _, path in each.undo_pins}
        try:
            names = [] if self._folder is None else self._kernel.pins_in(self._folder)
        except OSError as error:
            log.warning("keep_dir cannot be used", folder=self._folder, reason=str(error))
            return
        for name in names:
            path = f"{self._folder}/{name}"
            if KEPT_PIN.fullmatch(name) and path not in needed:
                self._unpin(path)

    def unpin(self, waiting: PendingConfirmation) -> None:
        """Remove them: they can be needed no more."""
        for _, path in waiting.undo_pins:
            self._unpin(path)

    def _unpin(self, path: str) -> None:
        try:
            self._kernel.unpin(path)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("a pin that is needed no more stays", pin=path, reason=str(error))


def check_keep_dir(kernel: Kernel, folder: str) -> None:
    """What keeps the service from pinning there, or from making that folder. Errors: PinUnusable."""
    try:
        check_pinnable(kernel, f"{folder}/program")
    except PinUnusable as error:
        if error.errno != "ENOENT":
            raise
        check_pinnable(kernel, folder)
