"""Group commit: sets of one entry that come in one turn of the event loop share a transaction of the journal."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import structlog

from app.service.registry.held import HeldMap
from app.store.records import EntryWrite

R = TypeVar("R")

log = structlog.get_logger()


class Sets(Protocol):
    """Sets of entries of one map, by one request or by many.

    Attributes:
        held: The map.
    """

    held: HeldMap

    def write(self) -> Sequence[EntryWrite]:
        """Check and write. Nothing is awaited.

        Returns:
            What is to be journalled.

        Raises:
            Exception: An error that nobody has foreseen. `finish` gets it, and what was written is not journalled.
        """

    def finish(self, first_id: int, error: BaseException | None) -> None:
        """Answer.

        Args:
            first_id: The id of the change of the first write. The others have the ids after it.
            error: Why the writes could not be journalled. They are put back, with those of other sets: what a set has
                found there may be gone.
        """


class OneSet(Generic[R]):
    """A set by one request, whose result somebody awaits."""

    def __init__(self, held: HeldMap, write: Callable[[], tuple[R, EntryWrite | None]]) -> None:
        """Take over a set.

        Args:
            held: The map.
            write: Checks and writes, with nothing awaited. Returns the result, and what is to be journalled. None:
                nothing had to be written.
        """
        self.held, self._write = held, write
        self.done: asyncio.Future[tuple[R, int | None]] = asyncio.get_running_loop().create_future()
        self._result: R
        self._is_written = False

    def write(self) -> Sequence[EntryWrite]:
        """Check and write."""
        try:
            self._result, written = self._write()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self._fail(error)
            return ()
        self._is_written = written is not None
        return () if written is None else (written,)

    def finish(self, first_id: int, error: BaseException | None) -> None:
        """Pass the result on, and the id of the change."""
        if error is not None:
            self._fail(error)
        elif not self.done.done():  # else it failed, or it is cancelled and nobody waits for it any more
            self.done.set_result((self._result, first_id if self._is_written else None))

    def _fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class GroupCommit:
    """Runs queued sets under their maps' locks, and journals them together.

    While one group waits for the disk, the next one gathers. Thread rule: one event loop.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[tuple[HeldMap, Sequence[EntryWrite]]]], Awaitable[int]],
        delivery: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Make an empty queue.

        Args:
            commit: Journals and publishes what was written, and returns the id of the first change; or puts it back
                and raises.
            delivery: Surrounds all answers of a group, so that their log lines can be written at once.
        """
        self._commit = commit
        self._delivery = delivery
        self._queue: list[Sets] = []
        self._came_together = False  # the last group had several writes
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None

    async def run(self, held: HeldMap, write: Callable[[], tuple[R, EntryWrite | None]]) -> tuple[R, int | None]:
        """Run one set in the next group.

        Args:
            held: The map that it writes.
            write: See OneSet.

        Returns:
            The result, and the id of the change once it is journalled. None: nothing had to be written.

        Raises:
            JournalUnavailable: It could not be journalled, and was put back.
            Exception: Whatever `write` raises.
        """
        one = OneSet(held, write)
        self.submit(one)
        return await one.done

    def submit(self, sets: Sets) -> None:
        """Run these sets in the next group."""
        self._queue.append(sets)
        if self._runner is None:
            self._runner = self._start(self._run_groups())

    async def finish(self) -> None:
        """Wait for all groups."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, what: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_groups(self) -> None:
        is_first = True
        try:
            while self._queue:
                # One pass of the event loop gives two others their turn: clients that were answered together, whose
                # next changes can share a row again; and a task that waits for a lock which was just released.
                if self._came_together or not is_first:
                    await asyncio.sleep(0)
                group, self._queue, is_first = self._queue, [], False
                await self._run_free(group)
        finally:
            self._runner = None

    async def _run_free(self, group: list[Sets]) -> None:
        """Run those whose map is free. The others wait in line behind whoever writes there."""
        free: list[Sets] = []
        locked: list[HeldMap] = []
        try:
            for each in group:
                if each.held not in locked:
                    if not each.held.lock.is_free:
                        self._start(self._run_in_line(each))
                        continue
                    await each.held.lock.acquire()  # at once, as it is free
                    locked.append(each.held)
                free.append(each)
            await self._run_group(free)
        finally:
            for held in locked:
                held.lock.release()

    async def _run_in_line(self, each: Sets) -> None:
        async with each.held.lock:
            await self._run_group([each])

    async def _run_group(self, group: list[Sets]) -> None:
        """Write, journal and answer. Call it under the locks of all maps."""
        written: list[tuple[HeldMap, Sequence[EntryWrite]]] = []
        failures: list[Exception | None] = []
        for each in group:
            writes, failure = _written(each)
            written.append((each.held, writes))
            failures.append(failure)
        first_id = 0
        self._came_together = sum(len(writes) for _, writes in written) > 1
        if any(writes for _, writes in written):
            try:
                first_id = await self._commit(written)
            except Exception as error:  # noqa: BLE001 - all callers get it
                failures = [failure or error for failure in failures]
        with self._delivery():
            for each, (_, writes), failure in zip(group, written, failures, strict=True):
                try:
                    each.finish(first_id, failure)
                except Exception:  # a caller that fails keeps no other from its answer
                    log.exception("internal error in an answer to a change", map=each.held.name)
                first_id += len(writes)


def _written(sets: Sets) -> tuple[Sequence[EntryWrite], Exception | None]:
    """Let sets write. What goes wrong in some keeps no others from being journalled and answered."""
    try:
        return sets.write(), None
    except Exception as error:
        log.exception("internal error in a change", map=sets.held.name)
        return (), error
