"""Events of the fleet: what is told, to whom, and how a reader goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from app.access.rights import Actor, Grant
from app.api.authorization import ACTOR, AUTHORIZATION
from app.fleet.api.routes import events
from app.fleet.api.routes.events import _stream, _View
from app.fleet_store import keys
from app.fleet_store.documents import Leader, Phase, Rollout, TableState
from app.fleet_store.etcd import Etcd
from app.fleet_store.operations import delete
from app.fleet_store.specification import Run, Specification
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem

pytestmark = pytest.mark.anyio

Told = tuple[int | None, str, dict[str, Any]]


class Reader:
    """Reads a stream of events, one by one."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream, self._text = stream, ""

    async def until(self, count: int) -> list[Told]:
        """So many events, without the comment at the beginning."""
        found: list[Told] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                while "\n\n" not in self._text:
                    self._text += (await anext(self._stream)).decode()
                block, _, self._text = self._text.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
                if fields:
                    id_ = int(fields["id"]) if "id" in fields else None
                    found.append((id_, fields["event"], json.loads(fields["data"])))
        assert len(found) == count
        return found


@asynccontextmanager
async def reading(
    app: FastAPI, after: int, *, grant: Grant | None = None, table: str | None = None, labels: Any = None
) -> AsyncIterator[Reader]:
    """A reader with these rights that goes on after a revision."""
    scope = {"type": "http", "app": app, ACTOR: Actor("someone", grant or Grant("reader")), AUTHORIZATION: None}
    view = _View(grant or Grant("reader"), table, labels or {})
    async with aclosing(_stream(app.state, after, view, Request(scope))) as stream:  # type: ignore[arg-type]
        yield Reader(stream)


async def now(etcd: Etcd) -> int:
    return (await etcd.range(keys.CONTROLLER)).revision


class TestEvents:
    async def test_what_happens_is_told_in_the_order_of_etcd(
        self, app: FastAPI, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        start = await now(etcd)
        await nodes.add("n1")
        await client.put(f"{TABLE}?note=why", json=BODY)
        item = await etcd.get(keys.rollout("jump_table-1"))
        assert item is not None
        packed = Specification(0, 0, (Run(0, 0, None),)).to_bytes()
        seen = await nodes.desire("n1", Rollout.from_bytes(item.value), packed)
        await nodes.answer("n1", seen, TableState.REFUSED, code="program-not-found", detail="there is no 'drop'")
        await nodes.go("n1")
        await nodes.finish("jump_table-1", Phase.ROLLED_BACK)
        await client.delete("/fleet/nodes/n1")
        async with reading(app, start) as reader:
            told = await reader.until(10)
        assert [(kind, data.get("node") or data.get("table") or data.get("id")) for _, kind, data in told] == [
            ("node", "n1"),
            ("facts", "n1"),
            ("presence", "n1"),
            ("table", "jump_table"),
            ("rollout", "jump_table"),
            ("desired", "n1"),
            ("status", "n1"),
            ("presence", "n1"),
            ("rollout", "jump_table"),
            ("node", "n1"),
        ]
        assert told[0][2] == {"node": "n1", "labels": {"role": "edge"}}
        assert told[4][2]["phase"] == "progressing"
        assert (told[4][2]["reason"], told[4][2]["by"]) == ("why", "tcp:127.0.0.1")
        assert told[5][2] == {
            "node": "n1",
            "table": "jump_table",
            "rollout": "jump_table-1",
            "revision": 1,
            "undo": False,
        }
        assert told[6][2]["detail"] == "there is no 'drop'"
        assert told[7][2] == {"node": "n1", "alive": False}
        assert told[9][2] == {"node": "n1", "labels": None}

    async def test_only_the_last_event_of_a_revision_has_its_id_so_that_none_is_lost(
        self, app: FastAPI, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1")
        start = await now(etcd)
        await client.put(TABLE, json=BODY)
        async with reading(app, start) as reader:
            first, second = await reader.until(2)
        assert (first[0], second[0]) == (None, start + 1)
        async with reading(app, start) as reader:  # it was cut off after the first one
            assert await reader.until(2) == [first, second]

    async def test_a_reader_that_goes_on_gets_what_it_has_missed_and_then_what_is_new(
        self, app: FastAPI, nodes: Nodes, etcd: Etcd
    ) -> None:
        start = await now(etcd)
        await etcd.put(keys.CONTROLLER, Leader(name="c1", since=1).to_bytes())
        async with reading(app, start) as reader:
            ((id_, kind, data),) = await reader.until(1)
            assert (id_, kind, data) == (start + 1, "controller", {"name": "c1"})
            await etcd.commit([], [delete(keys.CONTROLLER)])
            assert await reader.until(1) == [(start + 2, "controller", {"name": None})]

    async def test_silence_is_a_comment(self, app: FastAPI, etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "_SILENCE_SECONDS", 0.01)
        start = await now(etcd)
        view = _View(Grant("reader"), None, {})
        scope = {"type": "http", "app": app, ACTOR: Actor("x", Grant("reader")), AUTHORIZATION: None}
        async with aclosing(_stream(app.state, start, view, Request(scope))) as stream:  # type: ignore[arg-type]
            assert await anext(stream) == b": after event %d\n\n" % start
            assert await anext(stream) == b":\n\n"

    async def test_garbage_of_a_node_is_passed_over(self, app: FastAPI, nodes: Nodes, etcd: Etcd) -> None:
        await nodes.add("n1")
        start = await now(etcd)
        await etcd.put(keys.table_status("n1", "jump_table"), b"garbage")
        await etcd.put(keys.facts("n1"), b"[]")
        await nodes.go("n1")
        async with reading(app, start, labels={"n1": {}}) as reader:
            assert [kind for _, kind, _ in await reader.until(1)] == ["presence"]


class TestBounds:
    async def test_a_reader_sees_tables_and_nodes_within_its_bounds(
        self, app: FastAPI, nodes: Nodes, etcd: Etcd
    ) -> None:
        grant = Grant("reader", frozenset({"jump_table"}), None, None, frozenset({("site", "fra")}))
        start = await now(etcd)
        await nodes.add("a", labels={"site": "ber"})
        await nodes.add("b", labels={"site": "fra"})
        await nodes.answer("a", 1, TableState.APPLIED)
        await nodes.answer("b", 1, TableState.APPLIED)
        async with reading(app, start, grant=grant) as reader:
            told = await reader.until(4)
        assert [(kind, data["node"]) for _, kind, data in told] == [
            ("node", "b"), ("facts", "b"), ("presence", "b"), ("status", "b"),
        ]  # fmt: skip

    async def test_a_reader_of_one_table_gets_nothing_else(
        self, app: FastAPI, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        start = await now(etcd)
        await nodes.add("n1")
        await nodes.come("n1", maps=())
        await etcd.put(keys.table("other"), b'{"revision":1}')
        await nodes.come("n1")
        await client.put(TABLE, json=BODY)
        async with reading(app, start, table="jump_table") as reader:
            assert [kind for _, kind, _ in await reader.until(2)] == ["table", "rollout"]


class TestRequest:
    async def test_what_was_compacted_is_410_and_says_where_to_go_on(
        self, client: httpx.AsyncClient, etcd: Etcd
    ) -> None:
        start = await now(etcd)
        for _ in range(3):
            await etcd.put(keys.CONTROLLER, Leader(name="c1", since=1).to_bytes())
        await etcd.compact(start + 3)
        for last in (0, 1, start + 2, start + 1000):
            answer = await client.get("/fleet/events", headers={"Last-Event-ID": str(last)})
            assert assert_problem(answer, 410, "events-expired")["newest"] == start + 3
        answer = await client.head("/fleet/events", headers={"Last-Event-ID": str(start + 3)})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")

    async def test_an_id_that_is_none_is_refused(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/fleet/events", headers={"Last-Event-ID": "-1"})
        assert_problem(answer, 400, "malformed-header")

    async def test_history_tells_the_newest_first_and_is_filtered(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        await nodes.finish("jump_table-1", Phase.ROLLED_BACK)
        told = (await client.get("/fleet/history")).json()["actions"]
        assert [(each["what"], each["phase"], each["by"]) for each in told] == [
            ("rollout", "rolled_back", "controller"),
            ("rollout", "progressing", "tcp:127.0.0.1"),
            ("node", None, "tcp:127.0.0.1"),
        ]
        assert len((await client.get("/fleet/history?by=controller")).json()["actions"]) == 1
        assert len((await client.get("/fleet/history?table=jump_table")).json()["actions"]) == 2
        assert len((await client.get("/fleet/history?limit=1")).json()["actions"]) == 1
        assert_problem(await client.get("/fleet/history?limit=0"), 422, "validation")
        items = (await etcd.range(keys.ACTIONS)).items.values()
        assert [item.lease > 0 for item in items] == [True], "it goes by itself after a while"
