"""Writing several entries of one array: in order, whole or not at all."""

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from app.service.changes.plan import WritePlan
from app.service.errors import EntryEmpty, ServiceError, Stopping
from app.service.objects.program import Program
from app.service.objects.program_array import CLEAR, ProgramArray
from app.store.records import EMPTY, NUMBERS

# So many sets are written inline, one by one: a thread would take longer. Clears may wait in the kernel.
_INLINE: Final = 64
# Of more, the kernel is given as many at a time as it writes in so many seconds, so that the service's end is seen, and
# since a kernel that is not preemptible lets no other thread run on that processor meanwhile.
_FIRST: Final = 16
_MOST: Final = 4096
_SECONDS: Final = 0.01
# From so many on, something else is done meanwhile, with pauses, so that the thread that writes comes to its turn.
_LONG: Final = 4096
_PAUSE: Final = 0.001  # s

T = TypeVar("T")


class WriteFailed(Exception):
    """The kernel refused a step: `cause`. `left`: the indexes that could not be put back."""

    def __init__(self, index: int, cause: ServiceError, left: list[int]) -> None:
        super().__init__(str(cause))
        self.index, self.cause, self.left = index, cause, left


async def write(
    table: ProgramArray,
    steps: WritePlan,
    replaced: Mapping[int, Program],
    stopping: Callable[[], bool],
    background_steps: Iterator[None] = iter(()),  # noqa: B008 - empty for ever
) -> None:
    """Write the steps in order; where the kernel refuses one, put back what was written, and raise WriteFailed.

    The same, with the cause Stopping, once `stopping()` is true. `replaced`: the programs that the steps replace, by
    id; `meanwhile`: is gone through, with a turn for others after each step, while the kernel is at many, as far as
    that lasts. Call it under the map's lock.
    """
    do = _write_few if len(steps) <= _INLINE else _write_many
    writing = _inline_or_not(steps.after, partial(do, table, steps, stopping))
    done, error = await (writing if len(steps) < _LONG else _beside(writing, background_steps))
    if error is not None:
        left = await put_back(table, steps.part(0, done), replaced)
        raise WriteFailed(steps.indexes[done], error, left) from error


async def put_back(table: ProgramArray, steps: WritePlan, replaced: Mapping[int, Program]) -> list[int]:
    """Undo steps in reverse order, where the entries still hold what they put there; the indexes that it could not."""
    return await _inline_or_not(steps.before, partial(_put_back, table, steps, replaced))


async def _inline_or_not(programs: "array[int]", do: Callable[[], T]) -> T:
    """Do it in a thread, unless it is short. `programs`: the ids of what is to be written."""
    if len(programs) <= _INLINE and EMPTY not in programs:
        return do()
    return await asyncio.to_thread(do)


async def _beside(writing: Coroutine[None, None, T], background_steps: Iterator[None]) -> T:
    task = asyncio.create_task(writing)
    with suppress(Exception):  # at its end; and what goes wrong there comes up again where it is needed
        while not (await asyncio.wait([task], timeout=_PAUSE))[0]:
            next(background_steps)
    return await task


def _write_few(table: ProgramArray, steps: WritePlan, stopping: Callable[[], bool]) -> tuple[int, ServiceError | None]:
    """Write one by one: how many were written, and why not the next."""
    for done, (index, id_) in enumerate(zip(steps.indexes, steps.after, strict=True)):
        try:
            if stopping():
                raise Stopping
            if id_ != EMPTY:
                table.set(index, steps.programs[id_])
            else:
                with suppress(EntryEmpty):  # somebody else's tool was faster
                    table.clear_index(index)
        except ServiceError as error:
            return done, error
    return len(steps), None


def _write_many(table: ProgramArray, steps: WritePlan, stopping: Callable[[], bool]) -> tuple[int, ServiceError | None]:
    """The same, some at a time."""
    fds, done, size = _fds(steps.programs), 0, _FIRST
    while done < len(steps):
        if stopping():
            return done, Stopping()
        began = time.monotonic()
        indexes = array(NUMBERS, steps.indexes[done : done + size])
        written, number = table.write_many(indexes, _values(steps.after, done, size, fds))
        done += written
        if number:
            return done, table.refusal(steps.programs.get(steps.after[done]), number)
        is_slow = time.monotonic() - began > _SECONDS
        size = max(1, size // 4) if is_slow else min(_MOST, size * 4)
    return done, None


def _put_back(table: ProgramArray, steps: WritePlan, replaced: Mapping[int, Program]) -> list[int]:
    fds, left = _fds(replaced), list[int]()
    for stop in range(len(steps), 0, -_MOST):
        part = steps.part(max(0, stop - _MOST), stop)
        try:
            now = table.get_many(part.indexes)
        except ServiceError:
            left += reversed(part.indexes)
            continue
        # Where somebody else's tool has written since, it is theirs to keep.
        ours = part.chosen(bytes(map(int.__eq__, now, part.after)))
        known = ours.chosen(bytes(map(fds.__contains__, ours.before)))
        left += ours.chosen(bytes(id_ not in fds for id_ in ours.before)).indexes[::-1]
        indexes = array(NUMBERS, known.indexes[::-1])
        left += _write_all(table, indexes, _values(known.before[::-1], 0, len(known), fds))
    return left


def _write_all(table: ProgramArray, indexes: "array[int]", values: "array[int]") -> list[int]:
    """Write what can be written: the indexes where it cannot."""
    left: list[int] = []
    while indexes:
        done, number = table.write_many(indexes, values)
        left += indexes[done : done + 1] if number else []
        indexes, values = indexes[done + 1 :], values[done + 1 :]
    return left


def _fds(programs: Mapping[int, Program]) -> dict[int, int]:
    return {id_: program.fd for id_, program in programs.items()} | {EMPTY: CLEAR}


def _values(ids: "array[int]", start: int, count: int, fds: Mapping[int, int]) -> "array[int]":
    """What ProgramArray.write_many is to write, of a part."""
    return array("i", map(fds.__getitem__, ids[start : start + count]))
