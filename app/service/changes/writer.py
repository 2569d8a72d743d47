"""Writing a plan to an array: in order, all of it or nothing."""

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from app.service.changes.plan import WritePlan
from app.service.errors import EntryEmpty, ServiceError, Stopping
from app.service.objects.program import Program
from app.service.objects.program_array import CLEAR, ProgramArray
from app.store.number_arrays import NUMBERS, as_array, is_among, mapped
from app.store.records import EMPTY

_MAX_INLINE_SETS: Final = (
    64  # are written in the event loop: a thread would take longer. Clears may wait in the kernel.
)
_MAX_SINGLE_SETS: Final = 4  # are written one by one: to give them to the kernel together takes longer
# A larger plan is given to the kernel in slices, as many entries as it writes in a certain time: so the end of the
# service is noticed, and a kernel that is not preemptible lets other threads run on that processor in between.
_FIRST_SLICE: Final = 16  # entries
_MAX_SLICE: Final = 4096  # entries
_SLICE_SECONDS: Final = 0.01
_BACKGROUND_FROM: Final = 4096  # entries, from which on other work is done while the kernel writes
_BACKGROUND_PAUSE_SECONDS: Final = 0.001  # between two steps of it, so that the thread that writes has its turn

T = TypeVar("T")


class WriteFailed(Exception):
    """The kernel refused an entry, and the plan was put back.

    Attributes:
        index: The entry.
        cause: Why.
        left: The indexes that could not be put back.
    """

    def __init__(self, index: int, cause: ServiceError, left: list[int]) -> None:
        super().__init__(str(cause))
        self.index, self.cause, self.left = index, cause, left


class PutBack(NamedTuple):
    """What became of undoing a plan.

    Attributes:
        left: The indexes that could not be put back.
        foreign: The indexes that hold neither what the plan put there nor what was there before: another tool has
            written since.
    """

    left: list[int]
    foreign: list[int]


async def write(
    table: ProgramArray,
    plan: WritePlan,
    replaced: Mapping[int, Program],
    is_stopping: Callable[[], bool],
    background_steps: Iterator[None] = iter(()),  # noqa: B008 - empty for ever
) -> None:
    """Write a plan in order. Call it under the map's lock.

    Args:
        table: The array.
        plan: What to write.
        replaced: The programs that the plan replaces, by id. They are put back where the kernel refuses an entry.
        is_stopping: The service ends: what was written is put back.
        background_steps: Is gone through while the kernel writes many entries, as far as there is time.

    Raises:
        WriteFailed: The kernel refused an entry, or the service ends (`cause` is Stopping).
    """
    do = _write_one_by_one if len(plan.indexes) <= _MAX_SINGLE_SETS else _write_in_slices
    writing = _inline_or_in_thread(plan.after, partial(do, table, plan, is_stopping))
    done, error = await (writing if len(plan.indexes) < _BACKGROUND_FROM else _beside(writing, background_steps))
    if error is not None:
        left, _ = await put_back(table, plan.part(0, done), replaced)
        raise WriteFailed(plan.indexes[done], error, left) from error


async def put_back(table: ProgramArray, plan: WritePlan, replaced: Mapping[int, Program]) -> PutBack:
    """Undo a plan in reverse order, where the entries still hold what it has put there.

    Args:
        table: The array.
        plan: What was written.
        replaced: The programs that it has replaced, by id.
    """
    return await _inline_or_in_thread(plan.before, partial(_put_back, table, plan, replaced))


async def _inline_or_in_thread(programs: "array[int]", do: Callable[[], T]) -> T:
    """Run it in a thread, unless it is short. `programs`: the ids of what it writes."""
    if len(programs) <= _MAX_INLINE_SETS and EMPTY not in programs:
        return do()
    return await asyncio.to_thread(do)


async def _beside(writing: Coroutine[None, None, T], background_steps: Iterator[None]) -> T:
    task = asyncio.create_task(writing)
    with suppress(Exception):  # at the end of the steps; and what goes wrong in one comes up again where it is needed
        while not (await asyncio.wait([task], timeout=_BACKGROUND_PAUSE_SECONDS))[0]:
            next(background_steps)
    return await task


def _write_one_by_one(
    table: ProgramArray, plan: WritePlan, is_stopping: Callable[[], bool]
) -> tuple[int, ServiceError | None]:
    """Return how many entries were written, and why the next one was not."""
    for done, (index, id_) in enumerate(zip(plan.indexes, plan.after, strict=True)):
        try:
            if is_stopping():
                raise Stopping
            if id_ != EMPTY:
                table.set(index, plan.programs[id_])
            else:
                with suppress(EntryEmpty):  # somebody else's tool was faster
                    table.clear_index(index)
        except ServiceError as error:
            return done, error
    return len(plan.indexes), None


def _write_in_slices(
    table: ProgramArray, plan: WritePlan, is_stopping: Callable[[], bool]
) -> tuple[int, ServiceError | None]:
    """Return how many entries were written, and why the next one was not."""
    fds, done = _fds(plan.programs), 0
    size = _FIRST_SLICE if is_among(EMPTY, plan.after) else _MAX_INLINE_SETS  # a clear may take 1,000 times as long
    while done < len(plan):
        if is_stopping():
            return done, Stopping()
        began = time.monotonic()
        indexes = as_array(plan.indexes[done : done + size])
        written, number = table.write_many(indexes, _values(plan.after, done, size, fds))
        done += written
        if number:
            return done, table.refusal(plan.programs.get(plan.after[done]), number)
        is_slow = time.monotonic() - began > _SLICE_SECONDS
        size = max(1, size // 4) if is_slow else min(_MAX_SLICE, size * 4)
    return done, None


def _put_back(table: ProgramArray, plan: WritePlan, replaced: Mapping[int, Program]) -> PutBack:
    fds, left, foreign = _fds(replaced), list[int](), list[int]()
    for stop in range(len(plan), 0, -_MAX_SLICE):
        part = plan.part(max(0, stop - _MAX_SLICE), stop)
        try:
            now = table.get_many(part.indexes)
        except ServiceError:
            left += reversed(part.indexes)
            continue
        # Where somebody else's tool has written since, it is theirs to keep.
        foreign += [
            index
            for index, holds, before, after in zip(part.indexes, now, part.before, part.after, strict=True)
            if holds not in {before, after}
        ]
        ours = part.chosen(bytes(map(int.__eq__, now, part.after)))
        known = ours.chosen(bytes(map(fds.__contains__, ours.before)))
        left += ours.chosen(bytes(id_ not in fds for id_ in ours.before)).indexes[::-1]
        indexes = array(NUMBERS, known.indexes[::-1])
        left += _write_all_possible(table, indexes, _values(known.before[::-1], 0, len(known), fds))
    return PutBack(left, foreign)


def _write_all_possible(table: ProgramArray, indexes: "array[int]", values: "array[int]") -> list[int]:
    """Write what the kernel takes, and return the indexes that it refuses."""
    left: list[int] = []
    while indexes:
        done, number = table.write_many(indexes, values)
        left += indexes[done : done + 1] if number else []
        indexes, values = indexes[done + 1 :], values[done + 1 :]
    return left


def _fds(programs: Mapping[int, Program]) -> dict[int, int]:
    return {id_: program.fd for id_, program in programs.items()} | {EMPTY: CLEAR}


def _values(ids: "array[int]", start: int, count: int, fds: Mapping[int, int]) -> "array[int]":
    """Return what ProgramArray.write_many takes for a part of a plan."""
    return mapped(ids[start : start + count], fds, "i")
