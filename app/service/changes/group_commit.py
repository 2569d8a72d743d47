"""Group commit: changes of one entry that come in one turn of the event loop share a transaction of the journal."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from app.service.changes.plan import PreparedChange
from app.service.registry.held import HeldMap

R = TypeVar("R")
# Checks and writes, and returns the result and what is to be journalled. None: nothing had to be written.
Write = Callable[[], tuple[R, PreparedChange | None]]
# Takes the result, or the error.
Done = Callable[[R | None, BaseException | None], None]

log = structlog.get_logger()


class _Queued(NamedTuple, Generic[R]):
    held: HeldMap
    write: Write[R]
    done: Done[R]


class GroupCommit:
    """Runs queued changes of one entry under their maps' locks, and journals them together.

    While one group waits for the disk, the next one gathers. Thread rule: one event loop.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[PreparedChange]], Awaitable[None]],
        delivery: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Make an empty queue.

        Args:
            commit: Journals and publishes what was written, or puts it back and raises.
            delivery: Surrounds all answers of a group, so that their log lines can be written at once.
        """
        self._commit = commit
        self._delivery = delivery
        self._queue: list[_Queued[Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None

    async def run(self, held: HeldMap, write: Write[R]) -> R:
        """Run one change in the next group, and return its result once it is journalled.

        Args:
            held: The map that it writes.
            write: Checks and writes, with nothing awaited.

        Raises:
            JournalUnavailable: It could not be journalled, and was put back.
            Exception: Whatever `write` raises.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        def done(result: R | None, error: BaseException | None) -> None:
            if future.done():
                return  # cancelled: nobody waits for it any more
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        self.submit(held, write, done)
        return await future

    def submit(self, held: HeldMap, write: Write[R], done: Done[R]) -> None:
        """Run one change in the next group, and pass its outcome to `done`."""
        self._queue.append(_Queued(held, write, done))
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
        try:
            while self._queue:
                group, self._queue = self._queue, []
                await self._run_free(group)
                if self._queue:
                    await asyncio.sleep(0)  # whoever waits for a lock that was just released takes it first
        finally:
            self._runner = None

    async def _run_free(self, group: list[_Queued[Any]]) -> None:
        """Run those whose map is free. The others wait in line behind whoever writes there."""
        free: list[_Queued[Any]] = []
        locked: list[HeldMap] = []
        try:
            for each in group:
                if each.held not in locked:
                    if each.held.lock.locked():
                        self._start(self._run_in_line(each))
                        continue
                    await each.held.lock.acquire()  # at once, as it is free
                    locked.append(each.held)
                free.append(each)
            await self._run_group(free)
        finally:
            for held in locked:
                held.lock.release()

    async def _run_in_line(self, each: _Queued[Any]) -> None:
        async with each.held.lock:
            await self._run_group([each])

    async def _run_group(self, group: list[_Queued[Any]]) -> None:
        """Write, journal and answer. Call it under the locks of all maps."""
        written: list[tuple[_Queued[Any], Any]] = []
        prepared: list[PreparedChange] = []
        for each in group:
            try:
                result, one = each.write()
            except Exception as error:  # noqa: BLE001 - the caller gets it
                _finish(each, None, error)
                continue
            written.append((each, result))
            if one is not None:
                prepared.append(one)
        failure: BaseException | None = None
        if prepared:
            try:
                await self._commit(prepared)
            except Exception as error:  # noqa: BLE001 - all callers get it
                failure = error
        with self._delivery():
            for each, result in written:
                _finish(each, None if failure is not None else result, failure)


def _finish(each: _Queued[Any], result: Any, error: BaseException | None) -> None:
    """Pass the outcome on. A caller that fails keeps no other from its answer."""
    try:
        each.done(result, error)
    except Exception:
        log.exception("internal error in an answer to a change", map=each.held.name)
