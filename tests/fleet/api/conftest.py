"""The fleet's API over a real etcd, and nodes whose agents the tests play."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.fleet.api.app import create_app
from app.fleet.api.state import FleetState
from app.fleet_store import keys
from app.fleet_store.documents import (
    DesiredTable,
    Document,
    NodeFacts,
    OpenMap,
    Phase,
    Presence,
    Rollout,
    TableState,
    TableStatus,
)
from app.fleet_store.etcd import Etcd
from app.fleet_store.operations import delete, put
from app.fleet_store.signatures import DESIRED_TABLE, Signer
from tests.fleet_store.cluster import Cluster

TABLE = "/fleet/tables/jump_table"
BODY: dict[str, Any] = {
    "selector": {"match": {"role": "edge"}},
    "range": "0-15",
    "programs": ["pass", "pass", None, "drop"],
    "strategy": {"waves": [1, "100%"], "max_unavailable": 2, "bake_seconds": 0},
}


@asynccontextmanager
async def served(etcd: Etcd, **options: Any) -> AsyncIterator[FastAPI]:
    """The application over a client of etcd."""
    state = FleetState(Signer.generate(), **options)
    state.use(etcd)
    app = create_app(state)
    yield app
    state.ended.set()


def client_of(app: FastAPI, token: str | None = None) -> httpx.AsyncClient:
    """A client of the application, which knows its caller by a token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=headers)


@pytest.fixture
async def etcd(cluster: Cluster) -> AsyncIterator[Etcd]:
    """A client of the cluster, with the rights of the fleet's server."""
    async with cluster.client() as etcd:
        yield etcd


@pytest.fixture
async def app(etcd: Etcd) -> AsyncIterator[FastAPI]:
    async with served(etcd) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may do everything."""
    async with client_of(app) as client:
        yield client


class Nodes:
    """Nodes of the fleet, and what their agents write."""

    def __init__(self, etcd: Etcd, client: httpx.AsyncClient) -> None:
        self.etcd, self.client = etcd, client

    async def add(self, *names: str, labels: dict[str, str] | None = None, alive: bool = True) -> None:
        """Add nodes that have opened entries 0 to 15 of jump_table to the fleet."""
        for name in names:
            added = await self.client.put(f"/fleet/nodes/{name}", json={"labels": labels or {"role": "edge"}})
            assert added.status_code == 201, added.text
            if alive:
                await self.come(name)

    async def come(self, name: str, **facts: Any) -> None:
        """Connect the agent of a node."""
        opened = (OpenMap(name="jump_table", max_entries=16),)
        told: dict[str, Any] = {"version": "0.1.0", "kernel": "6.18", "maps": opened, "at": time.time()} | facts
        await self.write(keys.facts(name), NodeFacts(**told))
        await self.write(keys.alive(name), Presence(since=time.time()))

    async def go(self, name: str) -> None:
        """Disconnect the agent of a node."""
        await self.etcd.commit([], [delete(keys.alive(name))])

    async def write(self, key: str, document: Document) -> int:
        return await self.etcd.put(key, document.to_bytes())

    async def desire(self, name: str, rollout: Rollout, specification: bytes, *, undo: bool = False) -> int:
        """What the controller writes for a node."""
        document = DesiredTable(
            node=name,
            table=rollout.table,
            rollout=rollout.id,
            revision=rollout.revision,
            specification=specification,
            undo=undo,
            sequence=1,
            at=time.time(),
        )
        value = Signer.generate().sign(DESIRED_TABLE, document.to_bytes())
        return await self.etcd.put(keys.desired_table(name, rollout.table), value)

    async def answer(self, name: str, seen: int, state: TableState, **more: Any) -> None:
        """What the agent of a node says of jump_table."""
        status = TableStatus(seen=seen, state=state, at=time.time(), **more)
        await self.write(keys.table_status(name, "jump_table"), status)

    async def finish(self, rollout: str, phase: Phase) -> None:
        """End a rollout, as a controller does."""
        item = await self.etcd.get(keys.rollout(rollout))
        assert item is not None
        ended = Rollout.from_bytes(item.value).moved(at=time.time(), by="controller", phase=phase)
        operations = [put(item.key, ended.to_bytes()), delete(keys.active(ended.table))]
        assert await self.etcd.commit([], operations) is not None


@pytest.fixture
def nodes(etcd: Etcd, client: httpx.AsyncClient) -> Nodes:
    return Nodes(etcd, client)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The response is this problem. Returns its members."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    members: dict[str, Any] = response.json()
    assert (response.status_code, members["code"]) == (status, code), response.text
    assert members["type"] == f"/problems/{code}"
    assert response.headers["x-request-id"] == members["request_id"]
    return members
