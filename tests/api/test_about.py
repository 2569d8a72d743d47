"""Health, version, explanations of problems, documentation pages, request ids and internal errors."""

import httpx
import pytest
from fastapi import FastAPI

from app import __version__
from app.api.problems import PROBLEMS
from app.bpf.memory.kernel import MemoryKernel
from app.service import errors
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem, client_on_registry
from tests.conftest import application

pytestmark = pytest.mark.anyio


class TestHealth:
    async def test_healthz_answers_ok(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).json() == {"status": "ok"}

    async def test_readyz_answers_ready(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/readyz")).json() == {"status": "ready", "reasons": []}

    async def test_readyz_fails_while_the_journal_cannot_be_written(
        self, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        writer = app.state.service.journal._database.writer
        writer.execute("PRAGMA query_only = 1")
        assert_problem(await client.put(ENTRY, json={"program": "drop"}), 503, "journal-unavailable")
        assert_problem(await client.get("/readyz"), 503, "journal-unavailable")
        writer.execute("PRAGMA query_only = 0")
        assert (await client.put(ENTRY, json={"program": "drop"})).status_code == 201
        assert (await client.get("/readyz")).status_code == 200

    async def test_version_tells_name_version_and_kernel(self, registry: Registry, client: httpx.AsyncClient) -> None:
        told = (await client.get("/version")).json()
        assert (told["name"], told["version"], told["kernel"]) == ("jumptable", __version__, registry.kernel.name)

    async def test_draining_service_answers_only_healthz(self) -> None:
        with application(Registry(MemoryKernel())) as app:
            app.state.service.is_stopping = True
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
            assert_problem(await client.get("/maps"), 503, "draining")
            ready = await client.get("/readyz")
            assert_problem(ready, 503, "draining")
            assert ready.json()["reasons"]
            assert (await client.get("/healthz")).status_code == 200


class TestProblems:
    @pytest.mark.parametrize("code", sorted(PROBLEMS))
    async def test_every_problem_type_has_an_explanation(self, client: httpx.AsyncClient, code: str) -> None:
        told = (await client.get(f"/problems/{code}")).json()
        assert told == {
            "code": code,
            "status": PROBLEMS[code].status,
            "title": PROBLEMS[code].title,
            "remedy": PROBLEMS[code].remedy,
        }

    async def test_unknown_problem_type_is_not_found(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.get("/problems/nope"), 404, "not-found")

    def test_every_service_error_has_a_problem_type(self) -> None:
        def below(kind: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
            return {kind}.union(*(below(each) for each in kind.__subclasses__()))

        assert {kind.code for kind in below(errors.ServiceError)} <= set(PROBLEMS)


class TestRequestId:
    async def test_valid_request_id_is_returned(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/maps", headers={"X-Request-ID": "deploy-2026.11:7"})
        assert response.headers["x-request-id"] == "deploy-2026.11:7"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "a;b", "<script>"])
    async def test_invalid_request_id_is_replaced(self, client: httpx.AsyncClient, given: str) -> None:
        response = await client.get("/nope", headers={"X-Request-ID": given})
        assert len(response.headers["x-request-id"]) == 32
        assert_problem(response, 404, "not-found")

    async def test_request_id_is_on_204_and_304(self, client: httpx.AsyncClient) -> None:
        etag = (await client.put(ENTRY, json={"program": "drop"})).headers["etag"]
        unchanged = await client.get(ENTRY, headers={"If-None-Match": etag, "X-Request-ID": "one"})
        assert unchanged.headers["x-request-id"] == "one"
        assert (await client.delete(ENTRY, headers={"X-Request-ID": "two"})).headers["x-request-id"] == "two"


class TestInternalError:
    async def test_answer_reveals_no_internal_detail(self, registry: Registry) -> None:
        with application(registry) as app:
            _break(app)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
            response = await client.get("/broken", headers={"X-Request-ID": "seven"})
        assert_problem(response, 500, "internal")
        assert response.json()["request_id"] == "seven"
        assert "secret" not in response.text


def _break(app: FastAPI) -> None:
    @app.get("/broken")
    async def broken() -> None:
        message = "secret"
        raise RuntimeError(message)


class TestKernelErrors:
    async def test_missing_capability_is_named(self) -> None:
        class Unprivileged(MemoryKernel):
            def prog_get_fd_by_id(self, id_: int) -> int:
                raise PermissionError(1, "refused")

        registry = Registry(Unprivileged())
        async with client_on_registry(registry) as client:
            response = await client.put("/programs/other", json={"id": 1})
        assert_problem(response, 500, "kernel-permission")
        assert (response.json()["capability"], response.json()["errno"]) == ("CAP_SYS_ADMIN", "EPERM")

    async def test_unexpected_errno_is_named(self) -> None:
        class Broken(MemoryKernel):
            def prog_get_fd_by_id(self, id_: int) -> int:
                raise OSError(524, "refused")

        registry = Registry(Broken())
        async with client_on_registry(registry) as client:
            response = await client.put("/programs/other", json={"id": 1})
        assert_problem(response, 500, "kernel-error")
        assert response.json()["errno"] == "ENOTSUPP"


class TestDocs:
    async def test_docs_page_needs_no_internet(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        assert "http://" not in page
        assert "https://" not in page
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
            assert f"/docs/assets/{asset}" in page
            assert (await client.get(f"/docs/assets/{asset}")).status_code == 200
            ranged = await client.get(f"/docs/assets/{asset}", headers={"Range": "bytes=9999999999-"})
            assert ranged.status_code == 200
        assert_problem(await client.get("/docs/assets/nope"), 404, "not-found")
        assert_problem(await client.get("/docs/assets/..%2f__init__.py"), 404, "not-found")
