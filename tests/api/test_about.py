"""Health, version, explanations of problems, documentation pages, request ids and internal errors."""

import json
import re
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from app import __version__
from app.api.pretty import Indenter
from app.api.problems import PROBLEMS
from app.bpf.kernel import Ability
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
        assert (told["keeper"], 0 <= told["uptime_seconds"] < 600) == (None, True)

    async def test_version_tells_what_the_kernel_can(self, client: httpx.AsyncClient, registry: Registry) -> None:
        can = Ability("writer", can=False, detail="whole tables are written with one call for each entry")
        cast("Any", registry.kernel).abilities = (can,)
        told = (await client.get("/version")).json()
        assert told["abilities"] == [{"name": "writer", "can": False, "detail": can.detail}]

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


class TestPretty:
    @pytest.mark.field
    async def test_every_json_answer_is_indented_on_request(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        """Field 12: answers that people read: each route that answers JSON indents it, problems as well."""
        await client.put(ENTRY, json={"program": "drop"}, params={"note": "für später …"})
        paths = [
            ENTRY, "/maps", "/maps/jump_table", "/maps/jump_table/entries", "/maps/nope", "/programs", "/programs/drop",
            "/changes", "/changes/1", "/changes/2", "/healthz", "/readyz", "/version", "/problems/validation",
            "/openapi.json", "/nowhere",
        ]  # fmt: skip
        for path in paths:
            plain, pretty = await client.get(path), await client.get(path, params={"pretty": "true"})
            assert (pretty.status_code, pretty.headers["content-type"]) == (
                plain.status_code,
                plain.headers["content-type"],
            )
            told = pretty.json() | {name: plain.json()[name] for name in ("request_id",) if name in plain.json()}
            assert told.keys() == plain.json().keys()
            assert pretty.text == json.dumps(pretty.json(), indent=2, ensure_ascii=False) + "\n"
            assert int(pretty.headers.get("content-length", len(pretty.content))) == len(pretty.content)
            assert (await client.get(path, params={"pretty": "false"})).text.count("\n") == 1
            assert (await client.head(path, params={"pretty": "true"})).content == b""
        applied = await client.put(f"{ENTRY}?pretty=true", json={"program": "pass"})
        assert applied.text.startswith('{\n  "map": "jump_table",\n')
        for refused in ("pretty=maybe", "pretty=true&pretty=true"):
            assert_problem(await client.get(f"/maps?{refused}"), 422, "validation")
        assert_problem(await client.get("/metrics?pretty=true"), 422, "validation")

    @pytest.mark.field
    def test_parts_may_end_anywhere(self) -> None:
        """Field 12: answers that people read: long ones come in parts."""
        text = '{"a":[],"b":{},"c":[1,-2.5e9,true,null,{"x":"q\\"{[,:]}\\\\","…":["é",{"d":[[],[{}]]}]}],"z":"end"}\n'
        for size in range(1, len(text.encode()) + 1):
            indenter, raw = Indenter(), text.encode()
            parts = [raw[start : start + size] for start in range(0, len(raw), size)]
            told = [indenter.feed(part, is_last=number == len(parts)) for number, part in enumerate(parts, 1)]
            assert (
                b"".join(told).decode()
                == json.dumps(json.loads(text), indent=2, ensure_ascii=False).replace("-2500000000.0", "-2.5e9") + "\n"
            )


class TestCharacters:
    @pytest.mark.field
    async def test_answers_have_characters_and_no_escapes(self, client: httpx.AsyncClient) -> None:
        """Field 12: answers that people read: what somebody has written comes back as it was written."""
        refused = await client.put("/maps/m", json={"pinned": "/sys/fs/bpf/straße…"})
        assert "straße…" in refused.text
        assert "\\u" not in refused.text

    @pytest.mark.field
    async def test_slash_at_the_end_of_a_path_is_told(self, client: httpx.AsyncClient) -> None:
        """Field 12: an error says what to do: a slip in the path names the path that is meant."""
        for path in ("/maps", "/maps/jump_table", "/maps/jump_table/entries/3", "/changes"):
            refused = await client.get(f"{path}/")
            assert_problem(refused, 404, "not-found")
            assert refused.json()["detail"].endswith(f"leave out the slash at the end: {path}")
        refused = await client.get("/nowhere/")
        assert "send a path that begins with one of /changes, /docs" in refused.json()["detail"]


class TestRemedies:
    @pytest.mark.field
    def test_every_sentence_says_what_to_do(self) -> None:
        """Field 12: an error says what to do in its own sentence, and sends nobody to another page first."""
        kinds, found = list(errors.ServiceError.__subclasses__()), []
        while kinds:
            kind = kinds.pop()
            kinds += kind.__subclasses__()
            found.append(kind)
            # What a sentence repeats says what to do itself; see the tests of those.
            repeats = re.search(r"\{(reason|remedy|cause)\}$", kind.sentence)
            if kind.sentence != errors.ServiceError.sentence:
                assert repeats or ";" in kind.sentence, kind
                assert "lists" not in kind.sentence, kind
        assert len(found) > 40

    @pytest.mark.field
    async def test_details_say_what_to_do(self, client: httpx.AsyncClient) -> None:
        """Field 12: an error says what to do: details that routes make say it too."""
        for response, told in (
            (await client.get(ENTRY), "PUT a program there first"),
            (await client.get("/maps/nope"), "hold it first: PUT /maps/nope"),
            (await client.put(ENTRY, content=b""), "send one JSON value"),
            (
                await client.put(ENTRY, content=b"{", headers={"Content-Type": "application/json"}),
                "send one JSON value",
            ),
            (await client.put(ENTRY, content=b"{}"), "send that, as curl --json does"),
            (await client.put(ENTRY, json={"program": "drop"}, headers={"If-Match": '"x"'}), "if you still want"),
            (await client.get(ENTRY, headers={"If-None-Match": "x"}), "send tags as ETag shows them"),
            (await client.get("/problems/nope"), "there are: malformed-json"),
            (await client.get("/docs/assets/nope"), "there are: swagger-ui-bundle.js"),
            (await client.get("/changes?limit=1&limit=2"), "send it once"),
        ):
            assert told in response.json()["detail"]
