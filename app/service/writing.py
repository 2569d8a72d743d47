"""Writing several entries of one array: in order, whole or not at all."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeVar

from app.service.errors import EntryEmpty, ServiceError, Stopping
from app.service.program import Program
from app.service.program_array import ProgramArray

# Writes at a stretch: about 2 ms, then others have their turn.
_AT_A_STRETCH: Final = 512

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Written:
    """One entry that was written: the ids of the programs before and after. None: empty."""

    index: int
    before: int | None
    after: int | None


@dataclass(slots=True)  # not frozen, as a table has many, and making a frozen one takes three times as long
class Step:
    """One entry to write. `before`: the id of its program; `program`: what it is to hold. None: nothing.

    `pinned`: a path by which the request named the program; `after`: the id of the program that it is to hold.
    """

    index: int
    before: int | None
    program: Program | None
    pinned: str | None = None
    after: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.after = None if self.program is None else self.program.id


class WriteFailed(Exception):
    """The kernel refused a step: `cause`. `left`: the indexes that could not be put back."""

    def __init__(self, index: int, cause: ServiceError, left: list[int]) -> None:
        super().__init__(str(cause))
        self.index, self.cause, self.left = index, cause, left


async def write(
    array: ProgramArray, steps: Sequence[Step], replaced: dict[int, Program], stopping: Callable[[], bool]
) -> None:
    """Write the steps in order; where the kernel refuses one, put back what was written, and raise WriteFailed.

    The same, with the cause Stopping, once `stopping()` is true. `replaced`: the programs that the steps replace, by
    id. Call it under the map's lock.
    """
    done = 0

    def do(step: Step) -> None:
        nonlocal done
        if stopping():
            raise Stopping
        _write_one(array, step.index, step.program)
        done += 1

    try:
        await _in_turns(steps, lambda step: step.program is None, do)
    except ServiceError as error:
        left = await put_back(array, steps[:done], replaced)
        raise WriteFailed(steps[done].index, error, left) from error


async def put_back(array: ProgramArray, steps: Sequence[Step | Written], replaced: dict[int, Program]) -> list[int]:
    """Undo steps in reverse order, where the entries still hold what they put there; the indexes that it could not."""
    left = []

    def undo(step: Step | Written) -> None:
        try:
            if array.get(step.index) != step.after:
                return  # somebody else's tool has written there since: theirs to keep
            if step.before is None or step.before in replaced:
                _write_one(array, step.index, None if step.before is None else replaced[step.before])
            else:
                left.append(step.index)
        except ServiceError:
            left.append(step.index)

    await _in_turns(list(reversed(steps)), lambda step: step.before is None, undo)
    return left


async def _in_turns(steps: Sequence[W], clears: Callable[[W], bool], do: Callable[[W], None]) -> None:
    """Do all steps in order, with a turn for others now and then: sets inline, clears in a thread, as they may wait."""
    for in_thread, group in groupby(steps, clears):
        alike = list(group)
        for start in range(0, len(alike), _AT_A_STRETCH):
            chunk = alike[start : start + _AT_A_STRETCH]
            if in_thread:
                await asyncio.to_thread(_do_all, do, chunk)
            else:
                _do_all(do, chunk)
                if len(steps) > _AT_A_STRETCH:
                    await asyncio.sleep(0)


def _do_all(do: Callable[[W], None], steps: Iterable[W]) -> None:
    for step in steps:
        do(step)


def _write_one(array: ProgramArray, index: int, program: Program | None) -> None:
    if program is not None:
        array.set(index, program)
        return
    try:
        array.clear_index(index)
    except EntryEmpty:
        return  # somebody else's tool was faster
