"""The API conforms to its OpenAPI document: all checks of schemathesis, with and without a token."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
import structlog
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.python import asgi
from starlette.types import Message

from app.access.tokens import Token, TokenFile, Tokens
from app.api import deferred
from app.api.authorization import Authentication
from app.api.state import State
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.loader.client import DirectLoader
from app.loader.messages import ObjectLimits
from app.service.loading.object_files import ObjectOptions
from app.service.registry.registry import Registry
from tests.conftest import application

# Half of the names are those of existing objects. A valid request may be refused for the state of the service, with one
# of these statuses. `well_formed` checks that it is not refused for its form.
_CONFIG: dict[str, Any] = {
    "dictionaries": {"names": {"values": ["jump_table", "drop", "pass"]}},
    "parameters": {"path.name": {"dictionary": "names", "probability": 0.5}},
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", 401, 403, 404, 409, 410, 412, 422, 429, "5xx"],
        }
    },
}

# JSON Schema cannot express these relations between a query parameter and the body.
BETWEEN_QUERY_AND_BODY = {
    "query.confirm_within: nothing is written, so nothing can be undone; leave it out",
    "query.options: it is for application/octet-stream; put them into the body",
}


class Served:
    """Passes requests to the application of the current test. Schemathesis itself knows only one application.

    A reader of /events disconnects after the first piece of the stream.
    """

    app: FastAPI

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # starts and ends the service
            await deferred.Application(cast("State", self.app.state))(scope, receive, send)
            return
        if scope["path"] != "/events":
            await self.app(scope, receive, send)
            return
        enough = asyncio.Event()

        async def until_enough() -> Message:
            await enough.wait()
            return {"type": "http.disconnect"}

        async def sent(message: Message) -> None:
            if message.get("more_body"):
                enough.set()
            await send(message)

        await self.app(scope, until_enough, sent)


def _described() -> dict[str, Any]:
    """The document of a service that accepts tokens."""
    tokens = Tokens(TokenFile(Path("/nonexistent")))
    with application(Registry(MemoryKernel()), authentication=Authentication(tokens=tokens)) as app:
        return app.openapi()


SERVED = Served()
SCHEMA = schemathesis.openapi.from_dict(_described(), config=schemathesis.Config.from_dict(_CONFIG))
SCHEMA.app = SERVED
tried_20_times = settings(
    max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def well_formed(_: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    """A request that the document allows gets no validation error. It may be refused for other reasons."""
    if case.meta is not None and case.meta.generation.mode.is_positive and response.status_code == 422:
        problem = response.json()
        assert problem["code"] != "validation" or problem["detail"] in BETWEEN_QUERY_AND_BODY, response.text


def as_written(value: Any) -> Any:
    """The same value, with 3.0 written as 3. JSON Schema treats them as one number, but the API accepts only 3.

    1e17 stays, because as a name in a query it is invalid, while 100000000000000000 is valid.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return int(value)
    if isinstance(value, list):
        return [as_written(each) for each in value]
    if isinstance(value, dict):
        return {name: as_written(each) for name, each in value.items()}
    return value


@SCHEMA.hook("map_body")
def _body(_: schemathesis.HookContext, body: Any) -> Any:
    return as_written(body)


@SCHEMA.hook("map_query")
def _query(_: schemathesis.HookContext, query: Any) -> Any:
    return as_written(query)


@SCHEMA.hook("map_headers")
def _headers(_: schemathesis.HookContext, headers: Any) -> Any:
    return as_written(headers)


@SCHEMA.hook("map_path_parameters")
def _path_parameters(_: schemathesis.HookContext, parameters: Any) -> Any:
    return as_written(parameters)


@pytest.fixture(scope="module", autouse=True)
def loop() -> None:
    """Start the event loop in which schemathesis runs applications before the first test."""
    with application(Registry(MemoryKernel())) as SERVED.app, asgi.get_client(SERVED) as client:
        assert client.get("/healthz").status_code == 200
        asgi.shutdown_lifespans()


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path) -> Iterator[TokenFile]:
    """The token file of the application for this test."""
    tokens, registry = TokenFile(tmp_path / "tokens.json"), Registry(MemoryKernel())
    demo.fill(registry)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # No file may be loaded, so the kernel is never asked.
    objects = ObjectOptions(DirectLoader(ObjectLimits()))
    with application(registry, authentication=Authentication(tokens=Tokens(tokens)), objects=objects) as SERVED.app:
        yield tokens
        asgi.shutdown_lifespans()
    structlog.reset_defaults()
    registry.close()


@pytest.fixture(params=["admin", "reader"])
def header(request: pytest.FixtureRequest, tokens: TokenFile) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.add(Token('mine', '', request.param, time.time()))}"}


@pytest.mark.slow
@SCHEMA.parametrize()
@tried_20_times
def test_api_conforms_to_its_document_with_a_token(case: schemathesis.Case[Any], header: dict[str, str]) -> None:
    case.call_and_validate(headers=header, additional_checks=[well_formed])


@SCHEMA.parametrize()
@tried_20_times
def test_api_conforms_to_its_document_without_a_token(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(additional_checks=[well_formed])
