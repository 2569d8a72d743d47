"""The fast path: which requests it answers, and that its answers equal those of the regular way."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import native
from app.access.tokens import Token, TokenFile, Tokens
from app.api.audit import Audit
from app.api.authorization import Authentication
from app.api.limits import Limits
from app.api.schemas.responses import Applied
from app.bpf.uapi import MapType, ProgType
from app.server import fast_path
from app.service.objects.program_array import ProgramArray
from app.service.registry.held import HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from tests.conftest import application, load
from tests.over_wire import OverWire, Pipe

pytestmark = pytest.mark.anyio
END = b"\r\n\r\n"
MINIMAL = b"Prefer: return=minimal"
ENTRY = "/maps/jump_table/entries/3"
HEAD = b" HTTP/1.1\r\nHost: jumptable\r\nX-Request-ID: mine\r\n"


def put(program: str = "drop", index: int = 3, *more: bytes) -> bytes:
    body = json.dumps({"program": program}).encode()
    fields = [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *more]
    return b"PUT /maps/jump_table/entries/%d%b%b\r\n\r\n%b" % (index, HEAD, b"\r\n".join(fields), body)


def get(index: int = 3, *more: bytes) -> bytes:
    return b"GET /maps/jump_table/entries/%d%b%b\r\n" % (index, HEAD, b"".join(field + b"\r\n" for field in more))


def table(what: Any, *more: bytes, method: bytes = b"PUT") -> bytes:
    body = what if isinstance(what, bytes) else json.dumps(what).encode()
    fields = [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *more]
    return b"%b /maps/jump_table/entries%b%b\r\n\r\n%b" % (method, HEAD, b"\r\n".join(fields), body)


def patch(entries: dict[int, Any], *more: bytes) -> bytes:
    listed = [{"index": index, "program": program} for index, program in entries.items()]
    return table({"entries": listed}, *more, method=b"PATCH")


def other(request: bytes) -> bytes:
    """The same request, about another map."""
    return request.replace(b"/jump_table/", b"/other/", 1)


def adopt_another(registry: Registry) -> None:
    """Hold an array named other."""
    made = registry.kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "other")
    registry.maps.adopt("other", ProgramArray(registry.kernel, made))


DELETE = b"DELETE /maps/jump_table/entries/3" + HEAD + b"\r\n"

# Requests that the fast path answers, and requests that fall back to the regular way.
PLAIN = [
    put(),
    put(),
    put("pass"),
    get(),
    put("tx", 15),
    get(15),
    put("count", 0),
    get(3, b"Origin: http://elsewhere"),
    put("drop", 3, b"Cookie: a=b", b"traceparent: 00-1-2-01"),
    get(3, b"Cookie: a=b; c=d", b"Accept: */*"),
    put("pass", 3, b"traceparent: 00-3-4-01"),
    put().replace(b"mine", b"a-b_c.d:e"),
    get().replace(b"X-Req", b"x-req"),
    get().replace(b"X-Request-ID: mine", b"X-Request-ID:other"),
    table({"programs": ["drop", None, "pass"]}),
    table({"programs": ["drop", None, "pass"]}),
    table({"programs": ["pass", "drop"] * 8}, MINIMAL),
    table({"programs": ["pass", "drop"] * 8}, MINIMAL),
    table({"programs": ["drop"] * 16}, b"Prefer: wait=1"),
    table({"entries": [{"index": 3, "program": "tx"}, {"index": 1, "program": {"name": "drop"}}]}, b"Cookie: a=b"),
    table({"programs": []}).replace(b"mine", b"another"),
    patch({3: "drop", 0: "pass", 15: None}),
    patch({3: None}, MINIMAL),
    patch({}),
]
UNUSUAL = [
    get(4), get(16), put("drop", 16), put("none"), put("drop", 3, b"If-Match: *"), get(3, b"If-None-Match: *"),
    put().replace(b"/3 HTTP", b"/3?note=why HTTP"), put().replace(b"/3 HTTP", b"/03 HTTP"),
    get().replace(b"/3 ", b"/%33 "), get().replace(b"jump_table", b"other"), DELETE,
    put().replace(b"json", b"xml"), put().replace(b'"drop"', b'"drop" '),
    put().replace(b'{"program"', b'{"programs"')[:-1] + b" ",
    get().replace(b"/entries/3", b""), get().replace(b"/maps/jump_table/entries/3", b"/maps/jump_table/entries/"),
    put().replace(b'{"program": "drop"}', b'{"program": {"name":1}}').replace(b"Length: 19", b"Length: 23"),
    get(3, b"Content-Length: 0"), get(3, b"Connection: close"),
    table({"programs": ["none"]}), table({"programs": ["drop"] * 17}), table({"entries": []}, b"If-Match: *"),
    table({"programs": ["drop"]}).replace(b"/entries HTTP", b"/entries?dry_run=true HTTP"),
    table({"programs": ["drop"]}).replace(b"/entries HTTP", b"/entries/ HTTP"),
    table({"programs": ["drop"]}).replace(b"jump_table", b"other"), table({"programs": "drop"}), table(b"{"),
    table(b""), table(b'{"programs":["drop"],"programs":[]}'), table({"programs": ["drop"], "entries": []}),
    table(b"[]"),
    table({"entries": [{"index": 1, "program": None}, {"index": 1, "program": None}]}), table({"none": 1}),
    table({"programs": [{"id": 4_000_000_000}]}), table({"programs": ["drop"]}, method=b"PATCH"), patch({16: "drop"}),
    patch({1: "none"}, MINIMAL), table({"programs": ["drop"]}).replace(b"json", b"xml"),
    put("drop", 3, b"Jumptable-Actor: alice"), get(3, b"jumptable-actor: alice"),
    patch({3: "drop"}, b"Jumptable-Actor: alice"),
    table({"programs": ["drop"]}, b"Prefer: a", b"Prefer: b"), table({"programs": ["drop"]}, b"Connection: close"),
]  # fmt: skip


@pytest.fixture(params=["in C", "in Python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot step runs in both."""
    monkeypatch.setattr(native, "is_used", request.param == "in C")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def started(registry: Registry, **options: Any) -> AsyncIterator[FastAPI]:
    with application(registry, **options) as app:
        await app.state.service.start()
        yield app
        await app.state.service.finish()


@asynccontextmanager
async def audited(registry: Registry, file: Path, **options: Any) -> AsyncIterator[FastAPI]:
    """With an audit in a file, and changes that all have the same time."""
    with closing(Audit(file)) as audit:
        async with started(registry, audit=audit, **options) as app:
            app.state.service.changes._clock = lambda: 1.8e9
            yield app


class Line:
    """One client connection."""

    def __init__(self, wire: OverWire) -> None:
        self._pipe, self._read = Pipe(), b""
        self.protocol = wire.connect(self._pipe)

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Send these requests at once, and return their answers."""
        self.protocol.data_received(b"".join(requests))
        return [await self.answer() for _ in requests]

    async def answer(self) -> bytes:
        """The next complete answer."""
        async with asyncio.timeout(10):
            while not (found := _whole(self._read)):
                more = await self._pipe.read()
                assert more, self._read
                self._read += more
        self._read = self._read[len(found) :]
        return found


def _whole(read: bytes) -> bytes:
    head, end, body = read.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head)
    size = 0 if length is None or head.startswith(b"HTTP/1.1 304") else int(length[1])
    return read[: len(head) + 4 + size] if end and len(body) >= size else b""


def status(answer: bytes) -> int:
    return int(answer[9:12])


async def records_of(app: FastAPI, wire: OverWire, audit: Path) -> list[Any]:
    """The changes, counters, audit lines and events of the service, without times."""
    async with httpx.AsyncClient(transport=wire, base_url="http://jumptable") as client:
        changes = (await client.get("/changes")).json()["changes"]
        metrics = (await client.get("/metrics")).text
    counts = re.findall(r"(jumptable_(?:changes_total|request_seconds_count)\{.*)", metrics)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    for each in (*changes, *lines):
        del each["at"]
    events = [(each.id, each.type) for each in app.state.service.journal.events(0, 1000)]
    return [changes, sorted(counts), lines, events]


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_answers_and_records_equal_those_of_the_regular_way(
    registry: Registry, tmp_path: Path, durability: Any
) -> None:
    both = []
    for direct in (False, True):
        file = tmp_path / f"audit{direct}"
        journal = Journal(tmp_path / f"journal{direct}.db", durability)
        async with audited(registry, file, journal=journal) as app:
            for index in (0, 3, 15):
                array = registry.maps.get("jump_table").opened()
                if array.get(index) is not None:
                    array.clear_index(index)
            wire, answers = OverWire(app, direct=direct), []
            for request in (*PLAIN, *UNUSUAL):
                line = Line(wire)
                answers += await line.ask(request)
                line.protocol.connection_lost(None)
            both.append((answers, await records_of(app, wire, file)))
            assert wire.direct is None or wire.direct.answered == len(PLAIN)
    for regular, direct_one in zip(both[0][0], both[1][0], strict=True):
        assert regular == direct_one
    assert both[0][1] == both[1][1]


@pytest.mark.parametrize("request_", UNUSUAL)
async def test_unusual_request_falls_back_to_the_regular_way(registry: Registry, request_: bytes) -> None:
    async with started(registry) as app:
        wire = OverWire(app)
        assert wire.direct is not None
        line = Line(wire)
        await line.ask(put())
        assert wire.direct.answered == 1
        await Line(wire).ask(request_)
        assert wire.direct.answered == 1


async def answered_fast(wire: OverWire, *asked: bytes) -> list[bool]:
    """Whether each of these requests was answered the fast way."""
    assert wire.direct is not None
    found = []
    for each in asked:
        before = wire.direct.answered
        await Line(wire).ask(each)
        found.append(wire.direct.answered > before)
    return found


class TestMeanings:
    async def test_map_that_was_released_and_held_anew_is_fast_again(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire, maps = OverWire(app), registry.maps
            assert await answered_fast(wire, put(), get()) == [True, True]
            array, held = maps.get("jump_table").opened(), maps.get("jump_table")
            copy = ProgramArray(registry.kernel, registry.kernel.dup(array.fd))
            held.release()
            del maps._held["jump_table"]
            assert status((await Line(wire).ask(get()))[0]) == 404
            maps.adopt("jump_table", copy)
            await app.state.service.drift.begin(maps.get("jump_table"))
            assert await answered_fast(wire, put("pass"), get()) == [True, True]

    async def test_large_heads_are_not_kept(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            assert await answered_fast(wire, get(3, b"X-More: " + b"x" * 5000), put(), get()) == [False, True, True]

    async def test_meanings_are_bounded(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fast_path, "_MAX_MEANINGS", 10)
        async with started(registry) as app:
            wire = OverWire(app)
            await Line(wire).ask(put())
            assert await answered_fast(wire, *[get(3, b"X-More: %d" % each) for each in range(50)]) == [True] * 50
            assert wire.direct is not None
            assert sum(len(each.by_head) for each in wire.direct._meanings.values()) <= 10

    @pytest.mark.parametrize("unsafe", [b"a\xff", b"a b", b"", b"a\tb"])
    async def test_unsafe_request_id_is_replaced(self, registry: Registry, unsafe: bytes) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            for _ in range(2):
                asked = put().replace(b"mine", unsafe).replace(b"Content-T", b"traceparent: 0-1\r\nContent-T")
                [answer] = await Line(wire).ask(asked)
                [sent] = re.findall(rb"x-request-id: (.*)\r\n", answer)
                assert re.fullmatch(rb"[0-9a-f]{32}", sent)

    async def test_request_with_two_ids_is_unusual(self, registry: Registry) -> None:
        async with started(registry) as app:
            twice = put().replace(b"mine", b"a b\r\nX-Request-ID: mine")
            assert await answered_fast(OverWire(app), twice) == [False]

    async def test_expired_token_is_refused_on_an_open_connection(
        self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokens = TokenFile(tmp_path / "tokens.json")
        secret = tokens.add(Token("mine", "", "admin", 0.0, expires=time.time() + 1000))
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            line = Line(OverWire(app))
            asked = put("drop", 3, f"Authorization: Bearer {secret}".encode())
            assert status((await line.ask(asked))[0]) == 201
            later = time.time() + 2000
            monkeypatch.setattr(time, "time", lambda: later)
            assert status((await line.ask(asked))[0]) == 401


class TestBatch:
    async def test_requests_of_one_loop_turn_share_a_transaction(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            lines, commits = [Line(wire) for _ in range(8)], sum(app.state.service.counters.journal.counts)
            answers = await asyncio.gather(*(line.ask(put("drop", index)) for index, line in enumerate(lines)))
            assert [re.findall(rb"change-id: ([0-9]+)", answer)[0] for [answer] in answers] == [
                b"%d" % number for number in range(1, 9)
            ]
            assert sum(app.state.service.counters.journal.counts) == commits + 1

    async def test_two_sets_of_one_entry_are_applied_in_order(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            [[first], [second]] = await asyncio.gather(Line(wire).ask(put("drop")), Line(wire).ask(put("pass")))
            assert (status(first), status(second)) == (201, 200)
            [entry] = app.state.service.changes.get(2).entries
            assert (entry.before.name, entry.after.name) == ("drop", "pass")

    async def test_failed_journal_write_puts_the_batch_back(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with started(registry) as app:
            wire, array = OverWire(app), registry.maps.get("jump_table").opened()
            await Line(wire).ask(put("drop", 1))
            before = array.ids()

            async def full(*_: object, **__: object) -> None:
                raise JournalFailed("full")

            monkeypatch.setattr(app.state.service.journal, "append_batch", full)
            # The second finds its program there, as the first has written it, and that is put back.
            asked = [put("pass", 1), put("pass", 1), put("tx", 1), put("drop", 2), get(1)]
            answers = await asyncio.gather(*(Line(wire).ask(request) for request in asked))
            assert [status(answer) for [answer] in answers] == [503, 503, 503, 503, 200]
            assert all(b'"code":"journal-unavailable"' in answer for [answer] in answers[:4])
            assert array.ids() == before
            monkeypatch.undo()
            assert status((await Line(wire).ask(put("pass", 1)))[0]) == 200

    async def test_failed_set_of_a_client_that_has_gone_is_recorded(
        self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "audit"
        async with audited(registry, file) as app:

            async def full(*_: object, **__: object) -> None:
                raise JournalFailed("full")

            monkeypatch.setattr(app.state.service.journal, "append_batch", full)
            wire = OverWire(app)
            line = Line(wire)
            line.protocol.data_received(put())
            line.protocol.connection_lost(None)
            await app.state.service.changes.group.finish()
            [told] = [json.loads(each) for each in file.read_text().splitlines()]
            assert (told["what"], told["outcome"], told["code"], told["path"]) == (
                "set_entry", "aborted", "journal-unavailable", ENTRY
            )  # fmt: skip

    async def test_internal_error_in_one_map_keeps_no_other_from_its_answer(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adopt_another(registry)
        async with started(registry) as app:
            wire, program = OverWire(app), fast_path.Turn._program

            def failing(turn: fast_path.Turn, body: bytes) -> HeldProgram | None:
                if turn.held.name == "jump_table":
                    message = "nobody has foreseen it"
                    raise RuntimeError(message)
                return program(turn, body)

            monkeypatch.setattr(fast_path.Turn, "_program", failing)
            asked = [put(), other(put()), other(put("pass", 2))]
            answers = await asyncio.gather(*(Line(wire).ask(request) for request in asked))
            assert [status(answer) for [answer] in answers] == [201, 201, 201]  # the first by the regular way
            monkeypatch.undo()
            assert await answered_fast(wire, put("pass"), other(put("tx"))) == [True, True]

    async def test_answers_that_cannot_be_made_fail_alone(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with started(registry) as app:
            wire = OverWire(app)

            def failing(*_: object) -> None:
                message = "nobody has foreseen it"
                raise RuntimeError(message)

            monkeypatch.setattr(fast_path.Turn, "_text", failing)
            answers = await asyncio.gather(*(Line(wire).ask(request) for request in (put(), put("pass", 1))))
            assert [status(answer) for [answer] in answers] == [500, 500]
            monkeypatch.undo()
            assert await answered_fast(wire, put("pass"), get()) == [True, True]

    async def test_refused_set_leaves_the_others_marked_as_being_written(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry.programs.adopt("misfit", load(registry.kernel, 1, ProgType.SOCKET_FILTER))
        async with started(registry) as app:
            wire, held, journal = OverWire(app), registry.maps.get("jump_table"), app.state.service.journal
            append, seen = journal.append_batch, []

            async def noted(*args: Any, **more: Any) -> int:
                seen.append(set(held.writing))
                first: int = await append(*args, **more)
                return first

            monkeypatch.setattr(journal, "append_batch", noted)
            asked = [put("drop", 1), put("misfit", 2)]
            answers = await asyncio.gather(*(Line(wire).ask(request) for request in asked))
            assert [status(answer) for [answer] in answers] == [201, 422]
            assert seen == [{1}]

    async def test_set_waits_for_a_change_of_the_table(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire, held = OverWire(app), registry.maps.get("jump_table")
            async with held.lock:
                line = Line(wire)
                waits = asyncio.create_task(line.ask(put()))
                assert status((await Line(wire).ask(get(4)))[0]) == 404
                assert not waits.done()
            assert status((await waits)[0]) == 201

    async def test_concurrent_sets_with_power_durability_share_commits(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        async with started(registry, journal=Journal(tmp_path / "journal.db", "power")) as app:
            wire = OverWire(app)
            lines, commits = [Line(wire) for _ in range(16)], sum(app.state.service.counters.journal.counts)

            async def change(index: int, line: Line) -> None:
                for program in ("drop", "pass") * 10:
                    assert status((await line.ask(put(program, index)))[0]) in {200, 201}

            await asyncio.gather(*(change(index, line) for index, line in enumerate(lines)))
            assert app.state.service.changes.get(320).id == 320
            assert sum(app.state.service.counters.journal.counts) <= commits + 80


class TestTable:
    """PUT and PATCH of a small table."""

    async def test_failed_journal_write_is_answered_and_recorded_as_on_the_regular_way(
        self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, both = [table({"programs": ["pass"] * 3}), patch({1: "pass"}), patch({2: "drop", 3: None})], []

        async def full(*_: object, **__: object) -> None:
            raise JournalFailed("full")

        for direct in (False, True):
            file = tmp_path / f"audit{direct}"
            async with audited(registry, file) as app:
                wire, array = OverWire(app, direct=direct), registry.maps.get("jump_table").opened()
                await Line(wire).ask(table({"programs": ["drop", "tx"]}))
                before = array.ids()
                with monkeypatch.context() as patched:
                    patched.setattr(app.state.service.journal, "append", full)
                    answers = [(await Line(wire).ask(request))[0] for request in asked]
                assert array.ids() == before
                assert [status(each) for each in answers] == [503] * 3
                line = Line(wire)
                assert [status(each) for each in await line.ask(patch({1: "pass"}), get(1))] == [200, 200]
                await Line(wire).ask(table({"programs": []}))
                both.append((answers, await records_of(app, wire, file)))
        assert both[0] == both[1]

    async def test_entry_that_the_kernel_refuses_is_answered_and_recorded_as_on_the_regular_way(
        self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry.programs.adopt("misfit", load(registry.kernel, 1, ProgType.SOCKET_FILTER))
        asked, both = (
            [table({"programs": ["drop", "misfit"]}), patch({1: "misfit"}), table({"programs": ["tx"] * 9})],
            [],
        )
        for direct in (False, True):
            file = tmp_path / f"audit{direct}"
            async with audited(registry, file) as app:
                wire, array = OverWire(app, direct=direct), registry.maps.get("jump_table").opened()
                await Line(wire).ask(table({"programs": ["drop", "tx"]}))
                before, answers = array.ids(), [(await Line(wire).ask(request))[0] for request in asked[:2]]
                with monkeypatch.context() as patched:
                    patched.setattr(type(array), "write_many", lambda *_: (3, 1))  # the fourth entry: EPERM
                    answers += await Line(wire).ask(asked[2])
                assert [status(each) for each in answers] == [422, 422, 500]
                assert array.ids() == before
                await Line(wire).ask(table({"programs": []}))
                both.append((answers, await records_of(app, wire, file)))
        assert both[0] == both[1]

    async def test_what_follows_a_table_is_answered_after_it(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            asked = [table({"programs": ["drop"] * 4}), get(), patch({3: None}), get(), table({"programs": ["none"]}),
                     put("pass"), table({"programs": []}, MINIMAL), get()]  # fmt: skip
            answers = await Line(wire).ask(*asked)
            assert [status(answer) for answer in answers] == [200, 200, 200, 404, 422, 201, 200, 404]
            assert b'"name":"drop"' in answers[1]

    @pytest.mark.parametrize("cut", [1, 60, -20, -1])
    async def test_table_split_over_two_packets_is_answered(self, registry: Registry, cut: int) -> None:
        async with started(registry) as app:
            line, request = Line(OverWire(app)), table({"programs": ["drop"] * 4})
            line.protocol.data_received(request[:cut])
            await asyncio.sleep(0)
            line.protocol.data_received(request[cut:])
            assert status(await line.answer()) == 200
            assert [status(answer) for answer in await line.ask(get())] == [200]

    @pytest.mark.parametrize("program", ["drop", "none"])
    async def test_table_of_a_client_that_has_gone_is_changed_and_recorded(
        self, registry: Registry, tmp_path: Path, program: str
    ) -> None:
        async with audited(registry, tmp_path / "audit") as app:
            wire = OverWire(app)
            gone = Line(wire)
            gone.protocol.data_received(table({"programs": [program] * 4}))
            gone.protocol.connection_lost(None)
            assert status((await Line(wire).ask(get()))[0]) == {"drop": 200, "none": 404}[program]
            [line] = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
            assert (line["what"], line["actor"]) == ("replace_entries", "tcp:127.0.0.1")
            assert line["outcome"] == {"drop": "done", "none": "aborted"}[program]

    async def test_malformed_request_line_is_not_taken_for_that_of_a_table(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire, request = OverWire(app), table({"programs": ["drop"]})
            assert status((await Line(wire).ask(request))[0]) == 200
            twice = request.replace(b"/entries", b"/entries HTTP/1.1/entries/3")
            assert status((await Line(wire).ask(twice))[0]) == 400

    async def test_body_that_came_before_names_the_programs_that_are_held_now(self, registry: Registry) -> None:
        async with started(registry) as app:
            line, request, array = Line(OverWire(app)), table({"programs": ["mine"]}), registry.maps.get("jump_table")
            assert status((await line.ask(request))[0]) == 422
            for _ in range(2):
                program = registry.programs.adopt("mine", load(registry.kernel)).opened()
                assert status((await line.ask(request))[0]) == 200
                assert array.opened().get(0) == program.id
                await registry.programs.release("mine")
            assert status((await line.ask(request))[0]) == 422

    async def test_answer_is_what_its_model_describes(self, registry: Registry) -> None:
        async with started(registry) as app:
            line = Line(OverWire(app))
            for _ in range(2):  # the second changes nothing
                for header in (b"Prefer: wait=1", MINIMAL):
                    _, _, body = (await line.ask(table({"programs": ["drop", None, "tx"]}, header)))[0].partition(END)
                    assert Applied.model_validate_json(body).model_dump_json().encode() + b"\n" == body
                    assert (b'"entries"' in body) is (header != MINIMAL and b'"change":null' not in body)
                await line.ask(patch({0: "pass"}))

    async def test_end_of_the_service_waits_for_a_table(self, registry: Registry) -> None:
        with application(registry) as app:
            await app.state.service.start()
            held, line = registry.maps.get("jump_table"), Line(OverWire(app))
            async with held.lock:
                line.protocol.data_received(table({"programs": ["drop"]}))
                await asyncio.sleep(0)
                ends = asyncio.create_task(app.state.service.finish())
                await asyncio.sleep(0)
                assert not ends.done()
            await ends
            assert status(await line.answer()) == 503
            assert held.opened().get(0) is None

    async def test_map_that_was_held_anew_is_the_one_that_is_changed(self, registry: Registry) -> None:
        async with started(registry) as app:
            line = Line(OverWire(app))
            assert status((await line.ask(table({"programs": ["drop"]})))[0]) == 200
            held = registry.maps.get("jump_table")
            array = held.opened()
            held.object = None
            assert status((await line.ask(table({"programs": ["pass"]})))[0]) == 503
            held.object = array
            assert status((await line.ask(table({"programs": ["pass"]})))[0]) == 200


class TestConnection:
    async def test_pipelined_requests_are_answered_in_order(self, registry: Registry) -> None:
        async with started(registry) as app:
            answers = await Line(OverWire(app)).ask(put(), get(), DELETE, get(), put("pass"), get())
            assert [status(answer) for answer in answers] == [201, 200, 204, 404, 201, 200]
            assert b'"name":"pass"' in answers[5]

    @pytest.mark.parametrize("cut", [1, 40, len(put()) - 19, len(put()) - 5])
    async def test_request_split_over_two_packets_is_answered(self, registry: Registry, cut: int) -> None:
        async with started(registry) as app:
            line = Line(OverWire(app))
            line.protocol.data_received(put()[:cut])
            await asyncio.sleep(0)
            line.protocol.data_received(put()[cut:])
            assert status(await line.answer()) == 201
            assert [status(answer) for answer in await line.ask(get())] == [200]

    async def test_set_is_applied_although_the_client_has_gone(self, registry: Registry) -> None:
        async with started(registry) as app:
            wire = OverWire(app)
            gone = Line(wire)
            gone.protocol.data_received(put())
            gone.protocol.connection_lost(None)
            assert b'"name":"drop"' in (await Line(wire).ask(get()))[0]
            assert app.state.service.changes.get(1).actor == "tcp:127.0.0.1"

    async def test_garbage_after_a_request_gets_400(self, registry: Registry) -> None:
        async with started(registry) as app:
            line = Line(OverWire(app))
            line.protocol.data_received(put() + b"\0\r\n\r\n")
            assert [status(await line.answer()) for _ in range(2)] == [201, 400]


class TestRights:
    @pytest.fixture
    def tokens(self, tmp_path: Path) -> TokenFile:
        return TokenFile(tmp_path / "tokens.json")

    @pytest.fixture
    def bearer(self, tokens: TokenFile) -> Callable[..., bytes]:
        def made(name: str, role: Any, **bounds: Any) -> bytes:
            return f"Authorization: Bearer {tokens.add(Token(name, '', role, 0.0, **bounds))}".encode()

        return made

    async def test_rights_equal_those_of_the_regular_way(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes]
    ) -> None:
        reader, writer = bearer("r", "reader"), bearer("w", "writer", entries=["3"], programs=["drop"])
        elsewhere, metrics = bearer("e", "writer", maps=["other"]), bearer("m", "metrics")
        asked = [get(3, reader), put("drop", 3, reader), put("drop", 3, writer), put("drop", 4, writer),
                 put("pass", 3, writer), get(3, elsewhere), put("drop", 3, elsewhere), get(3, metrics), get(3),
                 get(3, reader, reader), get(3, b"Authorization: Bearer x")]  # fmt: skip
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            wire = OverWire(app)
            answers = [(await Line(wire).ask(request))[0] for request in asked]
            assert [status(each) for each in answers] == [404, 403, 201, 403, 403, 403, 403, 403, 401, 400, 401]

    async def test_rights_to_a_table_equal_those_of_the_regular_way(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes], tmp_path: Path
    ) -> None:
        reader, admin = bearer("r", "reader"), bearer("a", "admin")
        bounded = bearer("b", "writer", entries=["3-5"], programs=["drop", "tx"])
        elsewhere = bearer("e", "writer", maps=["other"])
        all_of_it, part = {"programs": ["drop"] * 6}, {4: "tx", 5: "drop"}
        id_ = registry.programs.get("pass").opened().id
        asked = [table(all_of_it, reader), table(all_of_it, admin), table(all_of_it, bounded), patch(part, bounded),
                 patch({3: None, 4: "tx"}, bounded), patch({2: "tx"}, bounded), patch({3: "pass"}, bounded),
                 patch({3: {"id": id_}}, bounded), table({"entries": []}, bounded), patch(part, elsewhere),
                 patch(part), patch(part, b"Authorization: Bearer x"), table({"programs": []}, admin)]  # fmt: skip
        both = []
        for direct in (False, True):
            file, authentication = tmp_path / f"audit{direct}", Authentication(tokens=Tokens(tokens))
            async with audited(registry, file, authentication=authentication) as app:
                wire = OverWire(app, direct=direct)
                answers = [(await Line(wire).ask(request))[0] for request in asked]
                assert wire.direct is None or wire.direct.answered == 6
                lines = [json.loads(line) for line in file.read_text().splitlines()]
                both.append((answers, [{**line, "at": 0} for line in lines]))
        assert both[0] == both[1]
        assert [status(each) for each in both[0][0]] == [
            403, 200, 200, 200, 200, 403, 403, 403, 200, 403, 401, 401, 200
        ]  # fmt: skip

    async def test_revoked_token_is_refused_on_an_open_connection(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes]
    ) -> None:
        secret = bearer("mine", "admin")
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            line = Line(OverWire(app))
            assert status((await line.ask(put("drop", 3, secret)))[0]) == 201
            tokens.revoke("mine")
            assert status((await line.ask(put("pass", 3, secret)))[0]) == 401

    @pytest.mark.parametrize("unseen", [get(5, b"X-More: a"), b""], ids=["with an unseen head", "alone"])
    async def test_revoked_token_is_refused_in_every_request_of_one_pass_of_the_loop(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes], unseen: bytes
    ) -> None:
        adopt_another(registry)
        mine, admin = bearer("mine", "admin"), bearer("admin", "admin")
        changes = [put("pass", 3, mine), other(put("pass", 3, mine)), other(patch({3: "pass"}, mine)),
                   get(3, mine), other(get(3, mine))]  # fmt: skip
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            wire = OverWire(app)
            lines = [Line(wire) for _ in changes]
            for line, asked in zip(lines, changes, strict=True):
                assert status((await line.ask(asked))[0]) in {200, 201}
            assert status((await Line(wire).ask(get(3, admin)))[0]) == 200
            before = app.state.service.journal.last_event
            tokens.revoke("mine")
            answers = [asyncio.ensure_future(line.ask(asked)) for line, asked in zip(lines, changes, strict=True)]
            if unseen:
                answers.append(asyncio.ensure_future(Line(wire).ask(unseen)))
            assert [status((await each)[0]) for each in answers] == [401] * len(answers)
            assert app.state.service.journal.last_event == before

    async def test_refusal_of_a_bounded_actor_is_counted_once(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes]
    ) -> None:
        registry.programs.adopt("misfit", load(registry.kernel, 1, ProgType.SOCKET_FILTER))
        bounded = bearer("b", "writer", entries=["3"])
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            wire = OverWire(app)
            assert status((await Line(wire).ask(put("drop", 3, bounded)))[0]) == 201
            [answer] = await Line(wire).ask(put("misfit", 3, bounded))
            assert status(answer) == 422
            assert b'"code":"program-incompatible"' in answer
            assert app.state.service.counters.changes["set", "refused"] == 1

    async def test_revoked_token_changes_no_table(
        self, registry: Registry, tokens: TokenFile, bearer: Callable[..., bytes]
    ) -> None:
        secret = bearer("mine", "admin")
        async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
            line = Line(OverWire(app))
            assert status((await line.ask(patch({3: "drop"}, secret)))[0]) == 200
            tokens.revoke("mine")
            assert status((await line.ask(patch({3: "pass"}, secret)))[0]) == 401

    async def test_request_counts_once_towards_the_rate_limit(self, registry: Registry) -> None:
        async with started(registry, limits=Limits(requests_per_second=0.001, burst=3)) as app:
            line = Line(OverWire(app))
            asked = [put(), get(4), put("none"), get()]
            assert [status((await line.ask(each))[0]) for each in asked] == [201, 404, 422, 429]

    async def test_table_counts_once_towards_the_rate_limit(self, registry: Registry) -> None:
        async with started(registry, limits=Limits(requests_per_second=0.001, burst=4)) as app:
            line = Line(OverWire(app))
            asked = [table({"programs": ["drop"]}), table({"programs": ["none"]}), table(b"{"), patch({}), patch({})]
            assert [status((await line.ask(each))[0]) for each in asked] == [200, 422, 400, 200, 429]

    async def test_draining_service_refuses_requests(self, registry: Registry) -> None:
        async with started(registry) as app:
            app.state.service.is_stopping = True
            [answer] = await Line(OverWire(app)).ask(put())
            assert status(answer) == 503
            assert b'"code":"draining"' in answer
