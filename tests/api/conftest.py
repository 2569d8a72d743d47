"""An httpx client on the application, in process, over what the demo serves; on both kernels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.service.registry import Registry
from tests.conftest import application

ENTRY = "/maps/jump_table/entries/3"


@pytest.fixture
async def client(registry: Registry, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(registry) as client:
        yield client


@asynccontextmanager
async def asking(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the application over this registry."""
    with application(registry) as app:
        await app.state.upkeep.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jumptable") as client:
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
