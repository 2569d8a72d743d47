"""Fixtures for tests of the HTTP API: an httpx client on the application in this process, on both kernels.

A request of one entry may take the fast path instead of the regular way through the framework. Tests whose answer could
differ between the two ask for both with `pytest.mark.usefixtures("both_ways")`. All others use the regular way.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.service.registry.registry import Registry
from tests.conftest import application
from tests.over_wire import OverWire

ENTRY = "/maps/jump_table/entries/3"
_way = ["regular"]


@pytest.fixture(params=["regular", "fast"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test twice: with clients on the regular way and with clients on the fast path."""
    _way[0] = request.param
    yield
    _way[0] = "regular"


@pytest.fixture
async def app(registry: Registry, anyio_backend: str) -> AsyncIterator[FastAPI]:
    """The started application with the registry of the demo."""
    async with started(registry) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the application with the registry of the demo."""
    async with client_of(app) as client:
        yield client


@asynccontextmanager
async def started(registry: Registry, **options: Any) -> AsyncIterator[FastAPI]:
    """The application with this registry, started as it is when the first request comes."""
    with application(registry, **options) as app:
        await app.state.service.start()
        try:
            yield app
        finally:
            await app.state.service.finish()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client on this application. With `both_ways` its requests go the way under test."""
    transport = httpx.ASGITransport(app) if _way[0] == "regular" else OverWire(app)
    return httpx.AsyncClient(transport=transport, base_url="http://jumptable")


@asynccontextmanager
async def client_on_registry(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    """A client on an application with this registry."""
    async with started(registry) as app, client_of(app) as client:
        yield client


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """Check that the response is this problem, and that it has the members which every problem has."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.text.endswith("}\n")
