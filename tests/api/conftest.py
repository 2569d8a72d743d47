"""An httpx client on the application, in process, over what the demo serves; on both kernels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.service.registry.registry import Registry
from tests.conftest import application
from tests.over_wire import OverWire

_way = ["regular"]
ENTRY = "/maps/jump_table/entries/3"


@pytest.fixture
async def app(registry: Registry, anyio_backend: str) -> AsyncIterator[FastAPI]:
    async with started(registry) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@asynccontextmanager
async def started(registry: Registry, **options: Any) -> AsyncIterator[FastAPI]:
    """The application over this registry, as it is when the first request comes."""
    with application(registry, **options) as app:
        await app.state.service.start()
        try:
            yield app
        finally:
            await app.state.service.finish()


@pytest.fixture(params=["regular", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    """Whatever is asked of the application is asked both ways."""
    _way[0] = request.param
    return _way[0]


@pytest.fixture
def registry(way: str, registry: Registry) -> Registry:
    return registry


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client on it, on the way that is tested."""
    transport = httpx.ASGITransport(app) if _way[0] == "regular" else OverWire(app)
    return httpx.AsyncClient(transport=transport, base_url="http://jumptable")


@asynccontextmanager
async def asking(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the application over this registry."""
    async with started(registry) as app, client_of(app) as client:
        yield client


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """The answer is this problem, in the form that every problem has."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.text.endswith("}\n")
