"""/events: the stream of events, its readers, and its end."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.routes import events as api_events
from app.api.routes.events import _encoded, _slices
from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.cli.demo import fill as demo_fill
from app.service import event_feed as feed
from app.service.objects.opening import make_array
from app.service.registry.registry import Registry
from app.store import history
from app.store import journal as journal_module
from app.store.journal import Journal
from app.store.records import Event
from tests.api.conftest import ENTRY, assert_problem, client_of, started
from tests.running import demo

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"


@dataclass
class Told:
    id: int
    type: str
    data: dict[str, Any]


def encoded(event: Event) -> bytes:
    return b"".join(_encoded(event))


def parsed(text: str) -> list[Told]:
    """Parse a stream, by those rules of WHATWG HTML, section 9.2.6, that the service uses."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append(Told(int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def stream(app: FastAPI, query: str = "", last: int | None = 0) -> list[Told]:
    """The events that a reader gets who connects now and stays until it has read everything."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    async with client_of(app) as client:
        reading = asyncio.create_task(client.get(f"/events{query}", headers=headers))
        while not app.state.service.feed._sleeping and not reading.done():
            await asyncio.sleep(0)
        app.state.service.feed.stop()
        response = await reading
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parsed(response.text)


@pytest.mark.usefixtures("both_ways")
class TestEvents:
    async def test_change_is_one_event_with_the_whole_change(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        bad = [{"index": 1, "program": "drop"}, {"index": 2, "program": "nope"}]
        assert (await client.patch(TABLE, json={"entries": bad})).status_code == 422
        good = [{"index": index, "program": "drop"} for index in (1, 2, 3)]
        changed = await client.patch(f"{TABLE}?note=why", json={"entries": good})
        await client.put(f"{TABLE}/3", json={"program": "drop"})  # no change
        await client.put(f"{TABLE}/3?dry_run=true", json={"program": "pass"})
        (event,) = await stream(app)
        assert (event.id, event.type, event.data) == (1, "change", changed.json()["change"])

    async def test_confirmation_and_expiry_are_events(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        await client.post("/changes/1/confirm")
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        await app.state.service.changes.confirmations.undo(waiting)
        await client.post("/changes/1/revert")
        told = [(each.type, each.data["id"], each.data["state"]) for each in await stream(app)]
        assert told == [
            ("change", 1, "unconfirmed"),
            ("confirmed", 1, "confirmed"),
            ("change", 2, "unconfirmed"),
            ("change", 3, "applied"),
            ("expired", 2, "expired"),
            ("change", 4, "applied"),
        ]

    @pytest.mark.field
    @pytest.mark.parametrize("recent", [16_384, 1])
    async def test_mirror_that_applies_events_is_right_after_an_expiry(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, recent: int
    ) -> None:
        """Field 4: a change of the kernel without an event. Also for readers who get the events from the journal."""
        monkeypatch.setattr(feed, "_RECENT_WEIGHT", recent)
        await client.put(TABLE, json={"programs": ["drop", "drop"]})
        await client.put(f"{TABLE}?confirm_within=60", json={"programs": ["pass", None, "tx"]})
        (waiting,) = app.state.service.changes.confirmations._pending.values()
        await app.state.service.changes.confirmations.undo(waiting)
        await client.put(f"{TABLE}/9", json={"program": "drop"})
        told = await stream(app)
        assert [each.id for each in told] == [1, 2, 3, 4, 5]
        mirror: dict[int, int] = {}
        for event in told:
            for entry in event.data["entries"] if event.type == "change" else ():
                mirror.pop(entry["index"], None)
                if entry["after"] is not None:
                    mirror[entry["index"]] = entry["after"]["id"]
        found = (await client.get(TABLE)).json()["entries"]
        assert mirror == {each["index"]: each["program"]["id"] for each in found}
        assert [(each.type, each.data["id"]) for each in told[2:4]] == [("change", 3), ("expired", 2)]

    async def test_holds_and_releases_are_events(
        self, app: FastAPI, client: httpx.AsyncClient, registry: Registry, kernel: Kernel, pins: Path
    ) -> None:
        drop = registry.programs.get("drop").opened().id
        await client.put("/programs/again", json={"id": drop}, headers={"X-Request-ID": "seven"})
        await client.delete("/programs/again")
        with make_array(kernel, "other", 4) as array:
            kernel.obj_pin(array.fd, f"{pins}/other")
        await client.put("/maps/other", json={"pinned": f"{pins}/other"})
        await client.delete("/maps/other?dry_run=true")
        await client.delete("/maps/other")
        told = await stream(app)
        assert [(each.type, each.data["happened"]) for each in told] == [
            ("program", "held"), ("program", "released"), ("map", "held"), ("map", "released"),
        ]  # fmt: skip
        assert told[0].data == {
            "program": "again", "happened": "held", "id": drop, "actor": "tcp:127.0.0.1", "request_id": "seven",
        }  # fmt: skip
        assert told[2].data["map"] == "other"

    async def test_stream_can_be_limited_to_one_map(
        self, app: FastAPI, client: httpx.AsyncClient, registry: Registry, kernel: Kernel
    ) -> None:
        registry.maps.adopt("other", make_array(kernel, "other", 4))
        await client.put(ENTRY, json={"program": "drop"})
        await client.put("/maps/other/entries/0", json={"program": "drop"})
        await client.put("/programs/again", json={"id": registry.programs.get("drop").opened().id})
        assert [each.id for each in await stream(app, "?map=other")] == [2]

    async def test_stream_without_last_event_id_starts_now(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        assert await stream(app, last=None) == []

    async def test_stream_resumes_anywhere_without_gap_or_repeat(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await make_many(client)
        journal = app.state.service.journal
        everything = [encoded(event) for event in journal.events(0, 1000)]
        ids = [event.id for event in journal.events(0, 1000)]
        assert ids == list(range(1, len(ids) + 1))
        for after in range(len(ids) + 1):
            assert [encoded(event) for event in journal.events(after, 1000)] == everything[after:]
            async with aclosing(app.state.service.feed.read(after, any_event, _encoded)) as batches:
                got: list[bytes] = []
                while len(got) < len(ids) - after:
                    got += [b"".join(each) for each in await anext(batches)]
            assert got == everything[after:], "of those at hand, the same as of those in the journal"

    async def test_journal_pages_have_no_gap_or_repeat(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        await make_many(client)
        journal = app.state.service.journal
        found: list[int] = []
        while page := journal.events(found[-1] if found else 0, 3):
            found += [event.id for event in page]
        assert found == list(range(1, journal.last_event + 1))

    async def test_event_ids_continue_after_a_restart(self, registry: Registry, tmp_path: Path) -> None:
        for round_ in range(2):
            journal = Journal(tmp_path / "journal.db", "process")
            async with started(registry, journal=journal) as app, client_of(app) as client:
                await client.put(ENTRY, json={"program": ("drop", "pass")[round_]})
                await client.put("/programs/again", json={"id": registry.programs.get("drop").opened().id})
                if round_:
                    assert [each.id for each in await stream(app, last=1)] == [2, 3, 4]

    @pytest.mark.parametrize("last", ["x", "-1", "1.5", "", "1" * 19])
    async def test_invalid_last_event_id_is_refused(self, client: httpx.AsyncClient, last: str) -> None:
        refused = await client.get("/events", headers={"Last-Event-ID": last})
        assert_problem(refused, 400, "malformed-header")

    async def test_pruned_or_future_event_id_gets_410(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "_MAX_EVENTS", 100)
        monkeypatch.setattr(journal_module, "_EVENTS_PER_MAINTENANCE", 1)
        for number in range(150):
            await client.put(ENTRY, json={"program": ("drop", "pass")[number % 2]})
        pruned = app.state.service.journal.pruned_event()
        assert pruned >= 40
        for last in (0, pruned - 1, 151):
            refused = await client.get("/events", headers={"Last-Event-ID": str(last)})
            assert_problem(refused, 410, "events-expired")
            assert refused.json()["first"] == pruned + 1
        assert [each.id for each in await stream(app, last=pruned)] == list(range(pruned + 1, 151))

    async def test_head_does_not_stream(self, client: httpx.AsyncClient) -> None:
        response = await client.head("/events")
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"].startswith("text/event-stream")


def any_event(_: Event) -> bool:
    return True


async def make_many(client: httpx.AsyncClient) -> None:
    """Cause events of several types."""
    for number in range(12):
        query = "?confirm_within=60" if number % 3 == 0 else ""
        answer = await client.put(f"{TABLE}/{number}{query}", json={"program": "drop"})
        if number % 3 == 0:
            await client.post(f"/changes/{answer.headers['change-id']}/confirm")
        if number % 4 == 0:
            await client.put(f"/programs/p{number}", json={"id": (await client.get("/programs/drop")).json()["id"]})


@pytest.fixture
async def quiet(anyio_backend: str) -> AsyncIterator[FastAPI]:
    registry = Registry(MemoryKernel())
    async with started(registry) as app:
        yield app
    registry.close()


class TestReaders:
    async def test_idle_stream_sends_keepalives(self, quiet: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feed, "_KEEPALIVE_SECONDS", 0.01)
        async with aclosing(quiet.state.service.feed.read(0, any_event, _encoded)) as batches:
            assert await anext(batches) == []

    async def test_readers_are_counted_until_they_leave(self, quiet: FastAPI) -> None:
        reading = quiet.state.service.feed.read(0, any_event, _encoded)
        first = asyncio.ensure_future(anext(reading))
        while not quiet.state.service.feed._sleeping:
            await asyncio.sleep(0)
        assert quiet.state.service.feed.readers == 1
        first.cancel()
        await asyncio.wait([first])
        await reading.aclose()
        assert (quiet.state.service.feed.readers, quiet.state.service.feed._sleeping) == (0, set())

    async def test_thousand_readers_get_every_event_without_blocking_the_writer(self, quiet: FastAPI) -> None:
        service = quiet.state.service
        ids: list[list[int]] = [[] for _ in range(1000)]

        async def follow(number: int) -> None:
            async with aclosing(service.feed.read(0, any_event, _encoded)) as batches:
                async for batch in batches:
                    ids[number] += [each.id for each in parsed(b"".join(chain.from_iterable(batch)).decode())]

        readers = [asyncio.create_task(follow(number)) for number in range(1000)]
        while len(service.feed._sleeping) < 1000:
            await asyncio.sleep(0)
        for number in range(50):
            await service.journal.append_object_event("program", "x", {"program": "x", "number": number})
            assert number or len(service.feed._sleeping) == 1000, "whoever makes the first goes on before any is woken"
        while any(len(each) < 50 for each in ids):
            await asyncio.sleep(0.01)
        service.feed.stop()
        await asyncio.wait(readers)
        assert all(each == list(range(1, 51)) for each in ids)

    async def test_reader_that_catches_up_yields_to_other_tasks(self, quiet: FastAPI) -> None:
        for number in range(600):
            await quiet.state.service.changes.journal.append_object_event("program", "x", {"number": number})
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(other())
        async with aclosing(quiet.state.service.feed.read(0, lambda event: event.id == 600, _encoded)) as batches:
            assert len(await anext(batches)) == 1
        task.cancel()
        assert turns >= 8

    async def test_readers_that_catch_up_take_turns_and_share_pages(
        self, quiet: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feed, "_RECENT_WEIGHT", 5)
        journal = quiet.state.service.journal
        for number in range(600):
            await journal.append_object_event("program", "x", {"number": number})
        events, pages = journal.events, list[int]()

        def counted(after: int, limit: int) -> list[Event]:
            pages.append(after)
            return list(events(after, limit))

        monkeypatch.setattr(journal, "events", counted)
        got = [0] * 100

        async def follow(reader: int) -> None:
            async with aclosing(quiet.state.service.feed.read(0, any_event, _encoded)) as batches:
                while got[reader] < 600:
                    got[reader] += len(await anext(batches))

        following = asyncio.gather(*(follow(reader) for reader in range(100)))
        most = 0
        while not following.done():
            before = list(got)
            await asyncio.sleep(0)
            most = max(most, sum(now != then for now, then in zip(got, before, strict=True)))
        await following
        assert most <= 8
        assert len(pages) == len(set(pages)) == 10

    async def test_large_event_is_sent_in_shared_slices(
        self, registry: Registry, kernel: Kernel, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("large", make_array(kernel, "large", 4000))
        await client.put("/maps/large/entries", json={"programs": ["drop"] * 4000})
        (event,) = app.state.service.journal.events(0, 10)
        shared = feed.Encoded(_encoded(event))
        first, second = list(_slices([shared])), list(_slices([shared]))
        assert len(first) > 5
        assert all(len(each) <= 1 << 16 for each in first)
        # A part that fills a slice is not copied. Only the short parts beside it are joined.
        assert sum(one is other for one, other in zip(first, second, strict=True)) >= len(first) - 2
        assert b"".join(first) == encoded(event)

    async def test_right_to_read_is_not_checked_for_each_batch(
        self, quiet: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(600):
            await quiet.state.service.changes.journal.append_object_event("program", "x", {"number": number})
        asked: list[str] = []

        def may_still(_: object, operation: str) -> bool:
            asked.append(operation)
            return True

        monkeypatch.setattr(api_events, "may_still", may_still)
        monkeypatch.setattr(api_events, "_ASK_SECONDS", 3600.0)
        assert len(await stream(quiet)) == 600
        assert asked == ["watch_events"]

    async def test_slow_reader_gets_missed_events_from_the_journal(
        self, quiet: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feed, "_RECENT_WEIGHT", 5)
        service = quiet.state.service
        async with aclosing(service.feed.read(0, any_event, _encoded)) as batches:
            for number in range(200):
                await service.journal.append_object_event("program", "x", {"number": number})
            got: list[int] = []
            while len(got) < 200:
                got += [each.id for each in parsed(b"".join(chain.from_iterable(await anext(batches))).decode())]
        assert got == list(range(1, 201))

    async def test_large_change_is_encoded_once_for_all_readers(
        self, registry: Registry, kernel: Kernel, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("large", make_array(kernel, "large", 20_000))
        seen: list[int] = []

        def encode(event: Event) -> Iterator[bytes]:
            seen.append(event.id)
            yield from _encoded(event)

        async def follow() -> bytes:
            async with aclosing(app.state.service.feed.read(0, any_event, encode)) as batches:
                return b"".join(chain.from_iterable(await anext(batches)))

        readers = [asyncio.create_task(follow()) for _ in range(20)]
        await client.put("/maps/large/entries", json={"programs": ["drop"] * 20_000})
        got = await asyncio.gather(*readers)
        assert seen == [1]
        assert len(set(got)) == 1

    async def test_confirmation_of_a_pruned_change_is_still_an_event(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(tmp_path / "journal.db", "process")
        registry = Registry(MemoryKernel())
        demo_fill(registry)
        async with started(registry, journal=journal) as app, client_of(app) as client:
            await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
            await client.put(f"{TABLE}/4", json={"program": "drop"})
            await client.post("/changes/1/confirm")
            await client.put(f"{TABLE}/5", json={"program": "drop"})
            monkeypatch.setattr(history, "_MAX_EVENTS", 2)
            journal._expected.checkpoint()
            journal._history.prune(2, 1 << 20)
            assert [(event.id, event.type) for event in journal.events(2, 10)] == [(3, "confirmed"), (4, "change")]
            assert journal.events(2, 1)[0].data == {"id": 1, "map": "jump_table", "state": "confirmed"}
        registry.close()


class TestProcess:
    @pytest.mark.slow
    def test_stalled_reader_does_not_delay_the_shutdown(self) -> None:
        with demo("--kernel", "memory") as service, service.client() as client:
            url = httpx.URL(service.url)
            for number in range(1500):  # of 4 KB each, more than the socket buffers take
                body = {"programs": [("drop", "pass")[number % 2]] * 16}
                client.put(f"{TABLE}?note={'x' * 1000}", json=body)
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.connect((url.host, url.port or 80))
                connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
                began = time.monotonic()
                assert service.stop() == 0
                assert time.monotonic() - began < 6, "without the grace of 10 s that requests have"
            assert "without completing" not in service.output()

    def test_stream_ends_when_the_service_stops(self) -> None:
        with demo("--kernel", "memory") as service, service.client() as client:
            with client.stream("GET", "/events") as response:
                lines = response.iter_lines()
                assert next(lines) == ": after event 0"
                with service.client() as other:
                    other.put(ENTRY, json={"program": "drop"})
                assert [next(lines) for _ in range(3)] == ["", "id: 1", "event: change"]
                assert json.loads(next(lines).removeprefix("data: "))["id"] == 1
                service.process.terminate()
                assert [line for line in lines if line] == []
            assert service.process.wait(20) == 0
