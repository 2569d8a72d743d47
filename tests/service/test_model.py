"""Random sequences of all operations on entries, compared with a simple model, on both kernels."""

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from structlog.testing import capture_logs

from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.service import errors
from app.service.changes.entries import SetResult, clear_entry, set_entry
from app.service.changes.origin import RequestContext
from app.service.changes.revert import revert_change
from app.service.changes.tables import RequestedEntries, TableResult, change_table
from app.service.drift.reconcile import reconcile_to_journal, reconcile_to_kernel
from app.service.errors import ServiceError
from app.service.lifecycle import Service
from app.service.objects.opening import make_array
from app.service.objects.source import ById, Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.programs import ByName, ProgramRef
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import Batch, Change, EntryChange, EntryChanges, Event
from tests.conftest import load
from tests.service.model import ENTRIES, Made, Model, Told, WritePlan
from tests.store.tables import entries_of

NAMES = ("a", "b", "c")
FRESH, LAST = 3, 4  # unpinned programs: a new one, and the newest that lives

INDEX = st.integers(0, ENTRIES - 1)
PROGRAM = st.sampled_from((0, 1, 2, FRESH, LAST, LAST))
WITHIN = st.sampled_from((None, None, 60, 600))
ID = st.integers(-4, 3)  # of a change; below 1 counted from the last one
TIME = st.sampled_from((0, 30, 100, 1000))


def by(within: int | None) -> RequestContext:
    return RequestContext("unix", "r", None, within)


def anything(*_: object) -> None:
    """A precondition that accepts everything."""


class Machine(RuleBasedStateMachine):
    """A service and its model. Each rule applies one operation to both and compares the results."""

    kernel: Kernel
    folder: Path  # of the pins
    files: Path  # of the journals
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.root = self.folder / f"n{next(self.numbers)}"
        self.told: list[Event] = []
        self.step = contextlib.ExitStack()
        self.is_open = False

    @initialize(entries=st.dictionaries(INDEX, st.integers(0, 2)), keep=st.booleans())
    def begin(self, entries: dict[int, int], keep: bool) -> None:
        if self.kernel.name == "linux":
            self.root.mkdir()
        with make_array(self.kernel, "table", ENTRIES) as array:
            self.kernel.obj_pin(array.fd, f"{self.root}/table")
        self.ids = []
        for number, name in enumerate(NAMES):
            with load(self.kernel, number) as program:
                self.kernel.obj_pin(program.fd, f"{self.root}/{name}")
                self.ids.append(program.id)
        self.model = Model(frozenset(self.ids), keep)
        self.fd = self.kernel.obj_get(f"{self.root}/table")
        for index, program_number in entries.items():
            self.write(index, self.ids[program_number])
        self.model.expected = dict(self.model.kernel)
        self.open(restore=False)

    def open(self, *, restore: bool) -> None:
        registry = Registry(self.kernel, [str(self.root)])
        registry.maps.add(HeldMap("table", Pinned(f"{self.root}/table"), restore=restore))
        for name in NAMES:
            registry.programs.add(HeldProgram(name, Pinned(f"{self.root}/{name}")))
        journal = Journal(self.files / f"{self.root.name}.db", "process")
        self.service = Service(registry, journal, keep_dir=f"{self.root}/keep" if self.model.keep else None)
        self.changes = self.service.changes
        self.changes.confirmations.uptime = lambda: self.model.now
        publish = journal.on_events

        def on_events(events: Sequence[Event | Batch]) -> None:
            for each in events:
                self.told += each.events() if isinstance(each, Batch) else [each]
            publish(events)

        journal.on_events = on_events
        self.runner.run(self.service.start())
        self.table, self.is_open = registry.maps.get("table"), True

    def close(self) -> None:
        self.runner.run(self.service.finish())
        self.changes.close()
        self.changes.registry.close()

    def teardown(self) -> None:
        if self.is_open:
            self.close()
            self.kernel.close(self.fd)
        self.runner.close()

    # Helpers: from the numbers of the rules to ids and calls

    def program(self, number: int) -> int:
        """The id of a program. An unpinned program lives at least until the end of this step."""
        if number < FRESH:
            return self.ids[number]
        if self.kernel.name == "linux":
            return self.ids[number % FRESH]  # the kernel frees an unpinned program later
        if number == LAST and self.model.strays:
            return max(self.model.strays)
        program = self.step.enter_context(load(self.kernel, 9))
        self.model.strays.add(program.id)
        return program.id

    def ref(self, program: int, way: int) -> ProgramRef:
        if way == 0 or program not in self.ids:
            return ById(program)
        name = NAMES[self.ids.index(program)]
        return ByName(name) if way == 1 else Pinned(f"{self.root}/{name}")

    def id_of(self, number: int) -> int:
        return number if number > 0 else len(self.model.changes) + number

    def write(self, index: int, program: int | None) -> None:
        """Write an entry as another tool would."""
        if program is not None:
            fd = self.kernel.prog_get_fd_by_id(program)
            self.kernel.map_update(self.fd, index, fd)
            self.kernel.close(fd)
        elif index in self.model.kernel:
            self.kernel.map_delete(self.fd, index)
        self.model.put(self.model.kernel, index, program)

    def outcome(self, coroutine: Coroutine[object, object, object]) -> object:
        """The result of a call as ids and counts, or the class of its error."""
        try:
            result = self.runner.run(coroutine)
        except ServiceError as error:
            return type(error)
        finally:
            self.step.close()
            self.model.bury()
        if isinstance(result, SetResult):
            return result.before, result.after.id, result.change_id
        if isinstance(result, TableResult):
            return result.change and result.change.id, result.set, result.cleared, result.unchanged
        return result.id if isinstance(result, Change) else result

    @staticmethod
    def table_result(told: Told, steps: WritePlan, unchanged: int = 0) -> object:
        cleared = sum(after is None for _, after in steps.values())
        return told if isinstance(told, type) else (told, len(steps) - cleared, cleared, unchanged)

    # The operations

    @rule(index=INDEX, number=PROGRAM, way=st.integers(0, 2), within=WITHIN, dry=st.booleans())
    def set(self, index: int, number: int, way: int, within: int | None, dry: bool) -> None:
        program, before = self.program(number), self.model.kernel.get(index)
        steps: WritePlan = {} if before == program else {index: (before, program)}
        told = self.model.change("set", steps, within, dry, touched=[index])
        again = None if steps or within is None else self.model.repeated("set", within, [index], None)
        if again:
            before = self.model.changes[again - 1].steps[index][0]
        call = set_entry(
            self.changes, self.table, index, self.ref(program, way), by(within), precondition=anything, dry_run=dry
        )
        assert self.outcome(call) == (told if isinstance(told, type) else (before, program, told))

    @rule(index=INDEX, allow_missing=st.booleans(), within=WITHIN, dry=st.booleans())
    def clear(self, index: int, allow_missing: bool, within: int | None, dry: bool) -> None:
        before = self.model.kernel.get(index)
        steps: WritePlan = {} if before is None else {index: (before, None)}
        told = self.model.change("clear", steps, within, dry, touched=[index])
        again = within is not None and self.model.repeated("clear", within, [index], None)
        if told is None and before is None and not allow_missing and not again:
            told = errors.EntryEmpty
        call = clear_entry(
            self.changes, self.table, index, by(within), precondition=anything, allow_missing=allow_missing, dry_run=dry
        )
        assert self.outcome(call) == told

    @rule(
        wanted=st.dictionaries(INDEX, st.none() | PROGRAM),
        replace=st.booleans(),
        way=st.integers(0, 2),
        within=WITHIN,
        dry=st.booleans(),
    )
    def change(self, wanted: dict[int, int | None], replace: bool, way: int, within: int | None, dry: bool) -> None:
        programs = {index: None if number is None else self.program(number) for index, number in wanted.items()}
        holds = self.model.kernel
        steps: WritePlan = {index: (holds.get(index), program) for index, program in programs.items()}
        if replace:
            steps |= {index: (holds[index], None) for index in sorted(holds.keys() - wanted.keys(), reverse=True)}
        unchanged = [index for index, (before, after) in steps.items() if before == after]
        for index in unchanged:
            del steps[index]
        kind, touched = ("replace", range(ENTRIES)) if replace else ("update", [*wanted])
        told = self.model.change(kind, steps, within, dry, touched=touched)
        if not steps and isinstance(told, int):
            steps = self.model.changes[told - 1].steps
            unchanged = [index for index in unchanged if index not in steps]
        refs = [None if program is None else self.ref(program, way) for program in programs.values()]
        listed = RequestedEntries.of(list(programs), refs, lambda ref: ref)
        call = change_table(
            self.changes, self.table, listed, by(within), replace=replace, precondition=anything, dry_run=dry
        )
        assert self.outcome(call) == self.table_result(told, steps, len(unchanged))

    @rule(number=ID, within=WITHIN, dry=st.booleans(), force=st.booleans())
    def revert(self, number: int, within: int | None, dry: bool, force: bool) -> None:
        id_ = self.id_of(number)
        steps, told = self.model.revert(id_, within, dry, force)
        call = revert_change(self.changes, id_, by(within), force=force, dry_run=dry)
        assert self.outcome(call) == self.table_result(told, steps)

    @rule(number=ID)
    def confirm(self, number: int) -> None:
        id_ = self.id_of(number)

        async def confirm() -> Change:
            return await self.changes.confirmations.confirm(self.changes.get(id_), "unix")

        assert self.outcome(confirm()) == (self.model.confirm(id_) or id_)

    @rule(entries=st.dictionaries(INDEX, st.none() | PROGRAM, min_size=1))
    def outside(self, entries: dict[int, int | None]) -> None:
        programs = {index: None if number is None else self.program(number) for index, number in entries.items()}
        for program in self.model.strays.intersection(programs.values()):
            self.step.callback(self.kernel.close, self.kernel.prog_get_fd_by_id(program))
        for index, id_ in programs.items():
            self.write(index, id_)
        self.step.close()
        self.model.bury()

    @rule()
    def look(self) -> None:
        drifted = self.runner.run(self.service.drift.check(self.table))
        found = [(each.index, each.journal and each.journal.id, each.kernel and each.kernel.id) for each in drifted]
        assert found == [(index, *pair) for index, pair in self.model.look().items()]

    @rule(within=WITHIN, dry=st.booleans())
    def to_journal(self, within: int | None, dry: bool) -> None:
        steps = self.model.to_journal(self.model.differing() if dry else self.model.look())
        is_lost = any(self.model.lost(after) for _, after in steps.values())
        told = errors.NotRestorable if is_lost else self.model.change("reconcile", steps, within, dry)
        if not steps and isinstance(told, int):
            steps = self.model.changes[told - 1].steps
        call = reconcile_to_journal(self.changes, self.service.drift, self.table, by(within), dry_run=dry)
        assert self.outcome(call) == self.table_result(told, steps)

    @rule(dry=st.booleans())
    def to_kernel(self, dry: bool) -> None:
        steps = self.model.differing() if dry else self.model.look()
        refused = self.model.refusal(steps, None, None)
        if steps and not refused and not dry:
            self.model.journalled(Made("adopt", steps))
            self.model.events.append(("change", len(self.model.changes)))
        id_ = None if dry or not steps else len(self.model.changes)
        call = reconcile_to_kernel(self.changes, self.service.drift, self.table, by(None), dry_run=dry)
        assert self.outcome(call) == (refused or (id_, 0, 0, len(steps)))

    @rule(seconds=TIME, journal_works=st.booleans())
    def time_passes(self, seconds: int, journal_works: bool) -> None:
        self.model.now += seconds
        for waiting in self.changes.journal.pending():
            if waiting.change.id in self.model.due():
                self.model.expire(waiting.change.id, journal_works)
                with contextlib.nullcontext() if journal_works else self.no_journal():
                    assert self.outcome(self.changes.confirmations.undo(waiting)) is journal_works

    def no_journal(self) -> contextlib.AbstractContextManager[Any]:
        full = JournalFailed("full")
        return patch.multiple(self.changes.journal, append=Mock(side_effect=full), append_batch=Mock(side_effect=full))

    @rule(index=INDEX, number=PROGRAM, within=WITHIN)
    def set_without_journal(self, index: int, number: int, within: int | None) -> None:
        program, before = self.program(number), self.model.kernel.get(index)
        steps: WritePlan = {} if before == program else {index: (before, program)}
        refused = self.model.refusal(steps, within, None, [index])
        again = 0 if steps or within is None else self.model.repeated("set", within, [index], None)
        call = set_entry(self.changes, self.table, index, ById(program), by(within), precondition=anything)
        with self.no_journal():
            told = self.outcome(call)
        if again:
            assert told == (self.model.changes[again - 1].steps[index][0], program, again)
        else:
            assert told == (refused or (errors.JournalUnavailable if steps else (before, program, None)))

    @rule(seconds=TIME, restore=st.booleans(), keep=st.booleans())
    def restart(self, seconds: int, restore: bool, keep: bool) -> None:
        self.end_and_start(seconds, restore, keep, {})

    def end_and_start(self, seconds: int, restore: bool, keep: bool, cut_off: WritePlan) -> None:
        self.close()
        self.model.keep = keep
        self.model.now += seconds
        self.model.start(restore, cut_off)
        self.open(restore=restore)
        self.model.bury()

    @rule(
        wanted=st.dictionaries(INDEX, st.none() | st.integers(0, 2), min_size=1),
        written=INDEX,
        seconds=TIME,
        restore=st.booleans(),
    )
    def killed(self, wanted: dict[int, int | None], written: int, seconds: int, restore: bool) -> None:
        """Restart after a kill during a change with a deadline, when it has written this number of entries."""
        steps: WritePlan = {
            index: (self.model.kernel.get(index), None if number is None else self.ids[number])
            for index, number in wanted.items()
            if index not in self.model.unconfirmed and self.model.kernel.get(index) not in self.model.strays
        }
        record = self.changes.registry.programs.record
        entries = EntryChanges.of(
            EntryChange(i, *(None if p is None else record(p) for p in pair)) for i, pair in steps.items()
        )
        change = Change("table", self.table.opened().id, self.kernel.boot_id, "update", entries, 0.0, "unix", "r")
        replaced = self.changes.replaced_programs.acquire(self.model.befores(steps))
        self.runner.run(self.changes.confirmations.add(self.table, change, replaced, 60))
        for index, (_, after) in list(steps.items())[:written]:
            self.write(index, after)
        self.end_and_start(seconds, restore, self.model.keep, steps)

    # Checks after each step

    @rule(after=st.integers(0, 80), limit=st.integers(1, 20))
    def read_on(self, after: int, limit: int) -> None:
        found = [astuple(event) for event in self.changes.journal.events(after, limit)]
        assert found == [astuple(event) for event in self.told[after : after + limit]]

    @invariant()
    def all_is_as_predicted(self) -> None:
        if not self.is_open:
            return
        model, journal = self.model, self.changes.journal
        assert dict(self.kernel.map_entries(self.fd, 0, ENTRIES)) == model.kernel
        assert self.table.expected is not None
        assert {index: each.id for index, each in entries_of(self.table.expected.table).items()} == model.expected
        assert dict(self.table.unconfirmed or {}) == model.unconfirmed
        assert {each.change.id: each.deadline for each in journal.pending()} == model.deadlines
        assert self.pins() == sorted(id_ for ids in model.pins.values() for id_ in ids)
        changes, more = journal.changes(limit=1000)
        assert not more
        assert [_made(change) for change in changes] == [
            (made.kind, list(made.steps.items()), made.state, made.reverts) for made in model.changes
        ]
        assert [each.id for each in self.told] == list(range(1, len(model.events) + 1))
        assert [_said(event) for event in self.told] == model.events

    def pins(self) -> list[int]:
        """The ids of the programs that are pinned below keep_dir."""
        if isinstance(self.kernel, MemoryKernel):
            pins = self.kernel._objects.pins.items()
            return sorted(object_.id for path, object_ in pins if path.startswith(f"{self.root}/keep/"))
        found = []
        for path in (self.root / "keep").glob("*"):
            fd = self.kernel.obj_get(str(path))
            found.append(self.kernel.prog_info(fd).id)
            self.kernel.close(fd)
        return sorted(found)


def _made(change: Change) -> tuple[object, ...]:
    steps = [(each.index, (each.before and each.before.id, each.after and each.after.id)) for each in change.entries]
    return change.kind, steps, change.state, change.reverts


def _said(event: Event) -> tuple[str, object]:
    if event.change is not None:
        return event.type, event.change.id
    told = (event.data or {})["drift"]
    return event.type, [
        (each["index"], *(each[word] and each[word]["id"] for word in ("journal", "kernel"))) for each in told
    ]


def check(kernel: Kernel, folder: Path, files: Path, examples: int) -> None:
    class OnThis(Machine):
        pass

    OnThis.kernel, OnThis.folder, OnThis.files = kernel, folder, files
    profile = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with capture_logs():
        run_state_machine_as_test(OnThis, settings=profile)


@pytest.mark.slow
def test_service_behaves_like_the_model_in_memory(tmp_path: Path) -> None:
    check(MemoryKernel(), Path("/sys/fs/bpf"), tmp_path, 150)


@pytest.mark.kernel
def test_service_behaves_like_the_model_on_linux(bpffs: Path, tmp_path: Path) -> None:
    check(LinuxKernel(), bpffs, tmp_path, 15)
