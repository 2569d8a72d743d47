"""Who may do what: roles, bounds, and everything without a right."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI

from app.access.rights import Right, Role
from app.access.tokens import Token, TokenFile, Tokens
from app.api.authorization import Authentication
from app.fleet.api.authorization import RIGHTS
from app.fleet_store import keys
from app.fleet_store.documents import Phase
from app.fleet_store.etcd import Etcd
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem, client_of, served

pytestmark = pytest.mark.anyio

NODE = {"labels": {"role": "edge"}}
# One request for each operation.
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "get_liveness": ("GET", "/livez", None),
    "get_readiness": ("GET", "/readyz", None),
    "explain_problem": ("GET", "/problems/table-unknown", None),
    "get_index": ("GET", "/", None),
    "get_docs": ("GET", "/docs", None),
    "get_docs_asset": ("GET", "/docs/assets/favicon.png", None),
    "get_openapi": ("GET", "/openapi.json", None),
    "get_version": ("GET", "/version", None),
    "get_metrics": ("GET", "/metrics", None),
    "list_tables": ("GET", "/fleet/tables", None),
    "get_table": ("GET", TABLE, None),
    "list_revisions": ("GET", f"{TABLE}/revisions", None),
    "list_rollouts": ("GET", "/fleet/rollouts", None),
    "get_rollout": ("GET", "/fleet/rollouts/jump_table-1", None),
    "list_rollout_nodes": ("GET", "/fleet/rollouts/jump_table-1/nodes", None),
    "list_nodes": ("GET", "/fleet/nodes", None),
    "get_node": ("GET", "/fleet/nodes/n9", None),
    "list_history": ("GET", "/fleet/history", None),
    "watch_events": ("HEAD", "/fleet/events", None),
    "put_table": ("PUT", TABLE, BODY),
    "delete_table": ("DELETE", TABLE, None),
    "start_rollout": ("POST", "/fleet/rollouts", {"table": "jump_table", "revision": 1}),
    "pause_rollout": ("POST", "/fleet/rollouts/jump_table-1/pause", None),
    "resume_rollout": ("POST", "/fleet/rollouts/jump_table-1/resume", None),
    "abort_rollout": ("POST", "/fleet/rollouts/jump_table-1/abort", None),
    "put_node": ("PUT", "/fleet/nodes/n9", NODE),
    "delete_node": ("DELETE", "/fleet/nodes/n9", None),
}
ALLOWED: dict[Role, set[Right]] = {
    "metrics": {Right.NONE, Right.METRICS, Right.DOCS},
    "reader": {Right.NONE, Right.METRICS, Right.DOCS, Right.READ},
    "writer": {Right.NONE, Right.METRICS, Right.DOCS, Right.READ, Right.WRITE},
    "admin": {Right.NONE, Right.METRICS, Right.DOCS, Right.READ, Right.WRITE, Right.ADMIN},
}


class Callers:
    """Clients with tokens of their own, for one server."""

    def __init__(self, app: FastAPI, file: TokenFile) -> None:
        self.app, self._file = app, file
        self._clients: list[httpx.AsyncClient] = []

    def add(self, name: str, role: Role, **bounds: Any) -> httpx.AsyncClient:
        client = client_of(self.app, self._file.add(Token(name, "", role, 0, **bounds)))
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@pytest.fixture
async def callers(etcd: Etcd, tmp_path: Path) -> AsyncIterator[Callers]:
    file = TokenFile(tmp_path / "tokens.json")
    async with served(etcd, authentication=Authentication(tokens=Tokens(file))) as app:
        callers = Callers(app, file)
        yield callers
        await callers.close()


@pytest.fixture
def admin(callers: Callers) -> httpx.AsyncClient:
    return callers.add("root", "admin")


@pytest.fixture
def nodes(etcd: Etcd, admin: httpx.AsyncClient) -> Nodes:
    return Nodes(etcd, admin)


async def test_every_operation_has_a_right_and_a_request(callers: Callers) -> None:
    operations = {each["operationId"] for path in callers.app.openapi()["paths"].values() for each in path.values()} | {
        "get_docs",
        "get_docs_asset",
        "get_openapi",
    }
    assert operations == set(RIGHTS) == set(REQUESTS)


@pytest.mark.parametrize("operation", REQUESTS)
async def test_each_role_may_do_what_is_its_own_and_nothing_else(callers: Callers, operation: str) -> None:
    method, path, body = REQUESTS[operation]
    for role, allowed in ALLOWED.items():
        answer = await callers.add(role, role).request(method, path, json=body)
        if RIGHTS[operation] in allowed:
            assert answer.status_code not in {401, 403}, (role, answer.text)
        elif method == "HEAD":
            assert answer.status_code == 403
        else:
            assert f"token:{role}" in assert_problem(answer, 403, "forbidden")["detail"]
    async with client_of(callers.app) as nobody:
        answer = await nobody.request(method, path, json=body)
        is_open = RIGHTS[operation] in {Right.NONE, Right.DOCS}
        assert (answer.status_code == 401) != is_open


class TestBounds:
    """A writer of jump_table, entries 0 to 7, programs pass and drop, on nodes of the site fra."""

    BODY: ClassVar[dict[str, Any]] = {
        **BODY,
        "selector": {"match": {"role": "edge", "site": "fra"}},
        "range": "0-7",
        "programs": ["pass", "drop"],
    }

    @pytest.fixture
    async def writer(self, callers: Callers, nodes: Nodes) -> httpx.AsyncClient:
        await nodes.add("n1", labels={"role": "edge", "site": "fra"})
        await nodes.add("n2", labels={"role": "edge", "site": "ber"})
        return callers.add(
            "alice", "writer", maps=["jump_table"], entries=["0-3", "4-7"], programs=["pass", "drop"],
            labels={"site": "fra"},
        )  # fmt: skip

    async def test_within_its_bounds_it_may_write(self, writer: httpx.AsyncClient) -> None:
        answer = await writer.put(TABLE, json=self.BODY)
        assert answer.status_code == 202, answer.text
        assert answer.json()["table"]["by"] == "token:alice"
        assert (await writer.post("/fleet/rollouts/jump_table-1/pause")).status_code == 200

    @pytest.mark.parametrize(
        ("path", "change", "why"),
        [
            ("/fleet/tables/other", {}, "tables of this caller"),
            (TABLE, {"range": "0-8"}, "entries of this caller (0-3, 4-7)"),
            (TABLE, {"programs": ["tx"]}, "program 'tx'"),
            (TABLE, {"programs": [{"name": "tx", "tags": []}]}, "program 'tx'"),
            (TABLE, {"selector": {"match": {"role": "edge"}}}, "labels of this caller (site=fra)"),
            (TABLE, {"selector": {"match": {"role": "edge", "site": "ber"}}}, "labels of this caller (site=fra)"),
            (TABLE, {"selector": {"match": {}}}, "labels of this caller (site=fra)"),
        ],
    )
    @pytest.mark.parametrize("query", ["", "?dry_run=true"])
    async def test_beyond_its_tables_entries_programs_and_labels_it_may_not(
        self, writer: httpx.AsyncClient, etcd: Etcd, path: str, change: dict[str, Any], why: str, query: str
    ) -> None:
        problem = assert_problem(await writer.put(f"{path}{query}", json={**self.BODY, **change}), 403, "forbidden")
        assert why in problem["detail"]
        assert not (await etcd.range(keys.TABLES)).items

    async def test_a_table_that_goes_to_other_nodes_cannot_be_taken_over(
        self, writer: httpx.AsyncClient, admin: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        wide = {**self.BODY, "selector": {"match": {"role": "edge"}}}
        assert (await admin.put(TABLE, json=wide)).status_code == 202
        for step in ("pause", "resume", "abort"):
            assert_problem(await writer.post(f"/fleet/rollouts/jump_table-1/{step}"), 403, "forbidden")
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        for answer in (
            await writer.put(TABLE, json=self.BODY),
            await writer.delete(TABLE),
            await writer.post("/fleet/rollouts", json={"table": "jump_table", "revision": 1}),
        ):
            assert_problem(answer, 403, "forbidden")
        assert (await admin.get(TABLE)).json()["revision"] == 1

    async def test_an_earlier_revision_beyond_its_bounds_cannot_be_gone_back_to(
        self, writer: httpx.AsyncClient, admin: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await admin.put(TABLE, json={**self.BODY, "programs": ["tx"]})
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        await writer.put(TABLE, json=self.BODY)
        await nodes.finish("jump_table-2", Phase.COMPLETE)
        answer = await writer.post("/fleet/rollouts", json={"table": "jump_table", "revision": 1})
        assert "program 'tx'" in assert_problem(answer, 403, "forbidden")["detail"]

    async def test_lists_show_what_is_within_its_bounds(
        self, writer: httpx.AsyncClient, admin: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.come("n1", maps=())
        await admin.put("/fleet/nodes/n1", json={"labels": {"role": "edge", "site": "fra"}})
        assert [each["node"] for each in (await writer.get("/fleet/nodes")).json()["nodes"]] == ["n1"]
        assert_problem(await writer.get("/fleet/nodes/n2"), 403, "forbidden")
        for path in ("/fleet/tables/other", "/fleet/tables/other/revisions", "/fleet/rollouts/other-1"):
            assert (await writer.get(path)).status_code in {403, 404}
        for path in ("/fleet/rollouts?table=other", "/fleet/history?table=other", "/fleet/events?table=other"):
            assert_problem(await writer.get(path), 403, "forbidden")
        assert [each["node"] for each in (await writer.get("/fleet/history")).json()["actions"]] == []

    async def test_a_bounded_admin_adds_and_removes_only_nodes_of_its_labels(
        self, callers: Callers, writer: httpx.AsyncClient
    ) -> None:
        bounded = callers.add("fra", "admin", labels={"site": "fra"})
        assert (await bounded.put("/fleet/nodes/n3", json={"labels": {"site": "fra"}})).status_code == 201
        for answer in (
            await bounded.put("/fleet/nodes/n4", json={"labels": {"site": "ber"}}),
            await bounded.put("/fleet/nodes/n2", json={"labels": {"site": "fra"}}),  # n2 is one of ber
            await bounded.put("/fleet/nodes/n3", json={"labels": {}}),
            await bounded.delete("/fleet/nodes/n2"),
        ):
            assert_problem(answer, 403, "forbidden")
        assert (await bounded.delete("/fleet/nodes/n3")).status_code == 204

    async def test_the_index_tells_the_bounds(self, writer: httpx.AsyncClient) -> None:
        assert (await writer.get("/")).json()["caller"] == {
            "actor": "token:alice",
            "role": "writer",
            "tables": ["jump_table"],
            "entries": ["0-3", "4-7"],
            "programs": ["drop", "pass"],
            "labels": {"site": "fra"},
        }


async def test_a_read_only_server_changes_nothing(etcd: Etcd) -> None:
    async with served(etcd, authentication=Authentication(read_only=True)) as app, client_of(app) as client:
        for operation, (method, path, body) in REQUESTS.items():
            answer = await client.request(method, path, json=body)
            if RIGHTS[operation] in {Right.WRITE, Right.ADMIN}:
                assert_problem(answer, 403, "read-only")
            else:
                assert answer.status_code not in {401, 403}


async def test_a_page_of_another_site_cannot_reach_it(client: httpx.AsyncClient) -> None:
    answer = await client.put(TABLE, json=BODY, headers={"Host": "evil.example"})
    assert_problem(answer, 421, "host-not-allowed")
