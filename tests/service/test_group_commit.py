"""Changes of one entry that come in one turn of the event loop share a transaction of the journal."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from app.bpf.uapi import MapType
from app.service.changes.entries import SetResult, set_entry, write_entry
from app.service.changes.group_commit import OneSet
from app.service.changes.origin import RequestContext
from app.service.errors import JournalUnavailable, ProgramNotFound
from app.service.lifecycle import Service
from app.service.objects.program_array import ProgramArray
from app.service.registry.programs import ByName
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import EntryWrite

pytestmark = pytest.mark.anyio

CONTEXT = RequestContext("unix:root", "one")


@pytest.fixture
async def service(registry: Registry, anyio_backend: str) -> AsyncIterator[Service]:
    kernel = registry.kernel
    registry.maps.adopt("other", ProgramArray(kernel, kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "other")))
    service = Service(registry, Journal(Path(":memory:"), "process"))
    await service.start()
    yield service
    await service.finish()
    service.close()


def commits(service: Service) -> int:
    return sum(service.counters.journal.counts)


async def put(service: Service, map_: str, index: int, program: str) -> int | None:
    held = service.registry.maps.get(map_)
    result = await set_entry(service.changes, held, index, ByName(program), CONTEXT)
    return result.change_id


async def test_changes_of_several_maps_in_one_turn_share_a_commit(service: Service) -> None:
    before = commits(service)
    ids = await asyncio.gather(
        put(service, "jump_table", 1, "drop"), put(service, "other", 1, "pass"), put(service, "jump_table", 2, "tx")
    )
    assert list(ids) == [1, 2, 3]
    assert commits(service) == before + 1


async def test_group_after_one_of_several_waits_for_a_pass_of_the_event_loop(service: Service) -> None:
    """Clients that were answered together send again at about the same time. One that is alone waits for nobody."""

    async def commits_of_two_in_turn(program: str) -> int:
        before = commits(service)
        first = asyncio.create_task(put(service, "jump_table", 1, program))
        await asyncio.sleep(0)  # it is in the queue now
        second = asyncio.create_task(put(service, "jump_table", 2, program))
        await asyncio.gather(first, second)
        return commits(service) - before

    assert await commits_of_two_in_turn("drop") == 2
    await asyncio.gather(put(service, "jump_table", 3, "drop"), put(service, "other", 3, "drop"))
    assert await commits_of_two_in_turn("pass") == 1


async def test_one_that_is_refused_leaves_the_others_alone(service: Service) -> None:
    first, second, third = await asyncio.gather(
        put(service, "jump_table", 1, "drop"),
        put(service, "jump_table", 2, "no_such_program"),
        put(service, "jump_table", 3, "tx"),
        return_exceptions=True,
    )
    assert (first, third) == (1, 2)
    assert isinstance(second, ProgramNotFound)


async def test_one_whose_map_is_being_written_keeps_no_other_map_waiting(service: Service) -> None:
    async with service.registry.maps.get("jump_table").lock:
        waiting = asyncio.create_task(put(service, "jump_table", 1, "drop"))
        assert await put(service, "other", 1, "pass") == 1
        assert not waiting.done()
    assert await waiting == 2


async def test_whoever_waits_for_a_map_and_another_one_is_never_waited_for_in_a_circle(service: Service) -> None:
    maps = service.registry.maps
    first, second = maps.get("jump_table").lock, maps.get("other").lock
    writing = asyncio.Event()

    async def write_both() -> None:
        async with first:
            writing.set()
            async with second:
                pass

    await first.acquire()
    both = asyncio.create_task(write_both())
    while not first._in_line:
        await asyncio.sleep(0)
    # The lock is unlocked now, and `both` gets it next. Its line is not jumped, and nobody who holds `other` joins it.
    changes = [asyncio.create_task(put(service, name, 1, "drop")) for name in ("other", "jump_table")]
    await asyncio.sleep(0)
    first.release()
    assert not writing.is_set()
    async with asyncio.timeout(10):
        await asyncio.gather(both, *changes)


async def test_no_set_succeeds_by_what_is_put_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(service, "jump_table", 1, "drop")

    async def full(*_: object) -> None:
        raise JournalFailed("full")

    monkeypatch.setattr(service.journal, "append_batch", full)
    results = await asyncio.gather(
        put(service, "jump_table", 1, "pass"), put(service, "jump_table", 1, "pass"), return_exceptions=True
    )
    assert [type(each) for each in results] == [JournalUnavailable, JournalUnavailable]


async def test_one_that_raises_keeps_no_other_from_being_journalled(service: Service) -> None:
    held, changes = service.registry.maps.get("jump_table"), service.changes
    failures: list[BaseException | None] = []

    class Failing:
        def __init__(self) -> None:
            self.held = service.registry.maps.get("other")

        def write(self) -> Sequence[EntryWrite]:
            message = "nobody has foreseen it"
            raise RuntimeError(message)

        def finish(self, first_id: int, error: BaseException | None) -> None:
            failures.append(error)

    changes.group.submit(Failing())
    assert await put(service, held.name, 2, "pass") == 1
    assert [type(each) for each in failures] == [RuntimeError]


async def test_a_caller_that_fails_keeps_no_other_from_its_answer(service: Service) -> None:
    held, changes = service.registry.maps.get("jump_table"), service.changes

    class Failing(OneSet[SetResult]):
        def finish(self, first_id: int, error: BaseException | None) -> None:
            message = "the connection is gone"
            raise RuntimeError(message)

    changes.group.submit(Failing(held, partial(write_entry, changes, held, 1, "drop", CONTEXT)))
    other = OneSet(held, partial(write_entry, changes, held, 2, "pass", CONTEXT))
    changes.group.submit(other)
    async with asyncio.timeout(10):
        assert (await other.done)[1] == 2
    assert await put(service, "jump_table", 3, "tx") == 3
