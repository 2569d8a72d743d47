"""Batches: changes that share a row are read as if each had a row of its own."""

import asyncio
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.store import history
from app.store import journal as journal_module
from app.store.journal import Journal
from app.store.number_arrays import NUMBERS
from app.store.records import (
    EMPTY,
    MAX_BATCH_SIZE,
    Array,
    Batch,
    Change,
    ChangeFilter,
    EntryChanges,
    EntryWrite,
    Event,
    ProgramRecord,
)
from app.store.schema import VERSIONS
from tests.store.tables import entries_of, table_of

PROGRAMS = {id_: ProgramRecord(f"p{id_}", id_, f"{id_:016x}", None) for id_ in (7, 8, 9)}
FILTERS = [
    ChangeFilter(),
    ChangeFilter(maps=["a"]),
    ChangeFilter(maps=["a", "b"], index=2),
    ChangeFilter(index=1),
    ChangeFilter(actor="token:x"),
    ChangeFilter(request_id="r3"),
    ChangeFilter(kind="set"),
    ChangeFilter(kind="revert"),
    ChangeFilter(state="applied"),
    ChangeFilter(state="reverted"),
    ChangeFilter(since=1002.0, until=1004.0),
]
WRITES = st.builds(
    EntryWrite,
    st.sampled_from(["a", "b"]),
    st.just(41),
    st.integers(0, 3),
    st.sampled_from([EMPTY, *PROGRAMS]),
    st.sampled_from([*PROGRAMS]),
    st.sampled_from(["token:x", "unix:root"]),
    st.sampled_from(["r1", "r2", "r3"]),
    st.sampled_from([None, "why"]),
)
# A step is a batch of writes, or the id of a change to revert (modulo the number of changes), or an event.
STEPS = st.lists(st.one_of(st.lists(WRITES, min_size=1, max_size=5), st.integers(0, 50), st.just("drift")), max_size=12)


def rows_of(at: float, writes: Sequence[EntryWrite]) -> list[Change]:
    """The same changes, to be journalled one by one."""
    changes = []
    for write in writes:
        programs = {id_: PROGRAMS[id_] for id_ in (write.before, write.after) if id_}
        entry, before, after = (array(NUMBERS, (number,)) for number in (write.entry, write.before, write.after))
        entries = EntryChanges(entry, before, after, programs)
        changes.append(
            Change(write.map, write.map_id, "boot", "set", entries, at, write.actor, write.request_id, write.note)
        )
    return changes


async def fill(journal: Journal, steps: Sequence[Any], *, batched: bool) -> list[Event]:
    """Journal the steps. Returns the events that were published."""
    published: list[Event] = []

    def publish(events: Sequence[Event | Batch]) -> None:
        for each in events:
            published.extend(each.events() if isinstance(each, Batch) else [each])

    journal.on_events = publish
    await journal.save_expected_table("a", Array(41, "boot"), table_of({}))
    count = 0
    for at, step in enumerate(steps, 1000):
        if step == "drift":
            await journal.append_drift_event("a", {"n": at})
        elif isinstance(step, int):
            undone = journal.change(1 + step % count) if count else None
            if undone is not None:
                await journal.append(
                    Change(undone.map, 41, "boot", "revert", undone.entries.undone(), float(at), "x", "r9",
                           reverts=undone.id)
                )  # fmt: skip
                count += 1
        elif batched:
            assert await journal.append_batch(float(at), "boot", PROGRAMS, step) == count + 1
            count += len(step)
        else:
            for change in rows_of(float(at), step):
                count = (await journal.append(change)).id
    return published


def pages(journal: Journal, wanted: ChangeFilter, limit: int, *, newest_first: bool) -> list[Change]:
    found, after, before = list[Change](), 0, None
    while True:
        some, edge = journal.changes(wanted, after=after, before=before, newest_first=newest_first, limit=limit)
        found += some
        if edge is None:
            return found
        after, before = (0, edge) if newest_first else (edge, None)


def everything(journal: Journal) -> dict[str, Any]:
    """What all methods that read tell."""
    last = journal.last_event
    changes = [journal.change(id_) for id_ in range(1, last + 2)]
    told: dict[str, Any] = {"changes": changes}
    for wanted, limit, newest in itertools.product(FILTERS, (1, 3, 100), (False, True)):
        told[f"{wanted} {limit} {newest}"] = pages(journal, wanted, limit, newest_first=newest)
    for after, limit in itertools.product(range(last + 1), (1, 4, 100)):
        events = journal.events(after, limit)
        told[f"events {after} {limit}"] = [(each.id, each.type, each.map, each.change, each.data) for each in events]
    for change in filter(None, changes):
        later, before = set(), 1 << 62
        while page := journal.written_after(change, before):
            later |= {(id_, reverts, tuple(indexes)) for id_, reverts, indexes in page if len(indexes)}
            before = page[-1][0]
        told[f"after {change.id}"] = later
    for map_ in ("a", "b"):
        stored = asyncio.run(journal.expected_table(map_, "boot"))
        told[f"table {map_}"] = stored and entries_of(stored[1])
    return told


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_batches_are_read_like_rows(steps: list[Any]) -> None:
    both = []
    for batched in (False, True):
        journal = Journal(Path(":memory:"), "process")
        published = asyncio.run(fill(journal, steps, batched=batched))
        told = everything(journal)
        assert [each.id for each in published] == list(range(1, journal.last_event + 1))
        both.append(told | {"published": [(each.id, each.type, each.change) for each in published if not each.data]})
        journal.close()
    assert both[0] == both[1]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Journal]]:
    """Opens the journal, again and again."""
    journals: list[Journal] = []

    def open_() -> Journal:
        journals.append(Journal(tmp_path / "journal.db", "process"))
        return journals[-1]

    yield open_
    for journal in journals:
        journal.close()


def writes(count: int) -> list[EntryWrite]:
    return [EntryWrite("a", 41, number % 4, 7, 8, "token:x", f"r{number}") for number in range(count)]


def test_large_batch_is_split_and_read_whole(opened: Callable[[], Journal]) -> None:
    journal = opened()
    assert asyncio.run(journal.append_batch(1.0, "boot", PROGRAMS, writes(2 * MAX_BATCH_SIZE + 1))) == 1
    assert journal._database.read("SELECT count(*) FROM batches").fetchone()[0] == 3
    found = pages(journal, ChangeFilter(), 1000, newest_first=True)
    assert [each.id for each in found] == list(range(2 * MAX_BATCH_SIZE + 1, 0, -1))
    change = journal.change(MAX_BATCH_SIZE + 1)
    assert change is not None
    assert change.request_id == f"r{MAX_BATCH_SIZE}"


def test_batch_survives_the_end_of_the_process(opened: Callable[[], Journal]) -> None:
    for number in range(3):
        journal = opened()
        assert asyncio.run(journal.append_batch(1.0, "boot", PROGRAMS, writes(5))) == 5 * number + 1
    assert [each.id for each in opened().changes()[0]] == list(range(1, 16))


def test_journal_of_version_2_opens_and_takes_batches(opened: Callable[[], Journal]) -> None:
    journal = opened()
    asyncio.run(journal.append(rows_of(1.0, writes(1))[0]))
    for statement in ("DROP TABLE batches", "DROP TABLE objects", "PRAGMA user_version = 2"):
        journal._database.writer.execute(statement)
    journal = opened()
    assert asyncio.run(journal.append_batch(2.0, "boot", PROGRAMS, writes(2))) == 2
    assert [each.id for each in journal.changes()[0]] == [1, 2, 3]
    assert len(VERSIONS) == 4


def test_batches_are_pruned_once_they_are_in_the_expected_tables(
    opened: Callable[[], Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 8)
    monkeypatch.setattr(journal_module, "_MAX_PRUNED_ROWS", 8)
    monkeypatch.setattr(history, "_MAX_EVENTS", 20)
    journal = opened()
    for number in range(20):
        asyncio.run(journal.append_batch(float(number), "boot", PROGRAMS, writes(4)))
    kept = journal.changes()[0]
    assert kept[-1].id == 80
    assert 12 <= len(kept) <= 32
    pruned = journal.pruned_event()
    assert pruned >= kept[0].id - 1
    assert [each.id for each in journal.events(pruned, 100)] == list(range(pruned + 1, 81))
    stored = asyncio.run(journal.expected_table("a", "boot"))
    assert stored is None, "the map was never held"
    assert journal.change(kept[0].id - 1) is None


def test_saved_table_takes_only_batches_that_came_after_it(opened: Callable[[], Journal]) -> None:
    """Those before it are applied first where they name the map, and only there: they may be very many."""
    journal = opened()
    folded = "SELECT folded FROM bookmarks"

    async def save(map_: str) -> None:
        await journal.save_expected_table(map_, Array(41, "boot"), table_of({}).resized(4))

    asyncio.run(journal.append_batch(1.0, "boot", PROGRAMS, writes(3)))
    asyncio.run(save("other"))
    assert journal._database.read(folded).fetchone()[0] == 0, "no batch names this map"
    asyncio.run(save("a"))
    assert journal._database.read(folded).fetchone()[0] == 3
    asyncio.run(journal.append_batch(2.0, "boot", PROGRAMS, [EntryWrite("a", 41, 1, 7, 8, "token:x", "r", None)]))
    stored = asyncio.run(journal.expected_table("a", "boot"))
    assert stored is not None
    assert entries_of(stored[1]) == {1: PROGRAMS[8]}
