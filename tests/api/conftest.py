"""An httpx client on the application, in process, over what the demo serves; on both kernels."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.main import create_app
from app.service.registry import Registry

ENTRY = "/maps/jump_table/entries/3"


@pytest.fixture
async def client(registry: Registry, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://jumptable") as client:
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
