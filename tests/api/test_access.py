"""Authentication and authorization: tokens, their bounds, read-only mode, limits, and the headers Host and Origin."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.access.rights import Ranges, Right, Role
from app.access.tokens import Token, TokenFile, Tokens
from app.api.authorization import RIGHTS, Authentication
from app.api.limits import Limits
from app.api.routes import changes
from app.bpf.kernel import Kernel
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem, client_of, started
from tests.conftest import load

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"
# One request for each operation. With the right to make it, any status except 401 and 403 will do.
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "get_health": ("GET", "/healthz", None),
    "get_readiness": ("GET", "/readyz", None),
    "explain_problem": ("GET", "/problems/internal", None),
    "get_version": ("GET", "/version", None),
    "get_metrics": ("GET", "/metrics", None),
    "get_index": ("GET", "/", None),
    "get_web_file": ("GET", "/web/style.css", None),
    "get_docs": ("GET", "/docs", None),
    "get_docs_asset": ("GET", "/docs/assets/favicon.png", None),
    "get_openapi": ("GET", "/openapi.json", None),
    "list_maps": ("GET", "/maps", None),
    "get_map": ("GET", "/maps/jump_table", None),
    "list_entries": ("GET", TABLE, None),
    "get_graph": ("GET", "/graph", None),
    "get_entry": ("GET", f"{TABLE}/9", None),
    "list_programs": ("GET", "/programs", None),
    "get_program": ("GET", "/programs/drop", None),
    "list_changes": ("GET", "/changes", None),
    "get_change": ("GET", "/changes/1", None),
    "watch_events": ("HEAD", "/events", None),
    "set_entry": ("PUT", f"{TABLE}/9", {"program": "drop"}),
    "clear_entry": ("DELETE", f"{TABLE}/9", None),
    "replace_entries": ("PUT", TABLE, {"entries": [{"index": 9, "program": "drop"}]}),
    "update_entries": ("PATCH", TABLE, {"entries": [{"index": 9, "program": "pass"}]}),
    "confirm_change": ("POST", "/changes/1/confirm", None),
    "revert_change": ("POST", "/changes/1/revert", None),
    "run_program": ("POST", "/programs/drop/run", {"packet": "00" * 14}),
    "reconcile_map": ("POST", "/maps/jump_table/reconcile", {"to": "journal"}),
    "hold_map": ("PUT", "/maps/other", {"id": 4_000_000_000}),
    "release_map": ("DELETE", "/maps/other", None),
    "hold_program": ("PUT", "/programs/other", {"id": 4_000_000_000}),
    "release_program": ("DELETE", "/programs/other", None),
    "list_objects": ("GET", "/objects", None),
    "get_object": ("GET", "/objects/parser", None),
    "load_object": ("PUT", "/objects/parser", {"file": "/parser.o"}),
    "unload_object": ("DELETE", "/objects/parser", None),
}
ALLOWED: dict[str, set[Right]] = {  # the documentation is open where callers have tokens, as here
    "nobody": {Right.NONE, Right.DOCS},
    "metrics": {Right.NONE, Right.DOCS, Right.METRICS},
    "reader": {Right.NONE, Right.METRICS, Right.DOCS, Right.READ},
    "writer": {Right.NONE, Right.METRICS, Right.DOCS, Right.READ, Right.WRITE},
    "admin": set(Right),
}


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def new(tokens: TokenFile, name: str, role: Role, **bounds: Any) -> dict[str, str]:
    """Create a token and return the header that carries it."""
    return {"Authorization": f"Bearer {tokens.add(Token(name, '', role, time.time(), **bounds))}"}


async def streams_of(app: FastAPI, asker: httpx.AsyncClient, *readers: dict[str, str]) -> list[str]:
    """Return the streams of all events so far, one for each reader. No stream can be read afterwards."""
    streams = [asyncio.create_task(asker.get("/events", headers=each | {"Last-Event-ID": "0"})) for each in readers]
    while len(app.state.service.feed._sleeping) < len(readers) and not any(each.done() for each in streams):
        await asyncio.sleep(0)
    app.state.service.feed.stop()
    return [(await each).text for each in streams]


@pytest.fixture
async def guarded(registry: Registry, tokens: TokenFile, anyio_backend: str) -> AsyncIterator[FastAPI]:
    registry.maps.get("jump_table").protected = Ranges.of(["0-3"])
    async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app:
        yield app


@pytest.fixture
async def asker(guarded: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(guarded) as client:
        yield client


@pytest.mark.usefixtures("both_ways")
class TestEveryRoute:
    def test_every_operation_has_a_right_and_a_request_in_this_file(self, guarded: FastAPI) -> None:
        operations = {route.operation_id for route in guarded.routes if hasattr(route, "operation_id")}
        assert operations == set(RIGHTS) == set(REQUESTS)

    @pytest.mark.parametrize("role", list(ALLOWED))
    async def test_operation_is_open_only_to_roles_that_have_its_right(
        self, asker: httpx.AsyncClient, tokens: TokenFile, role: Any
    ) -> None:
        admin = new(tokens, "first", "admin")
        await asker.put(f"{TABLE}/9", json={"program": "tx"}, headers=admin)
        headers = {} if role == "nobody" else new(tokens, "mine", role)
        for operation, (method, path, body) in REQUESTS.items():
            response = await asker.request(method, path, json=body, headers=headers)
            if RIGHTS[operation] in ALLOWED[role]:
                assert response.status_code not in {401, 403}, (operation, response.text)
            elif role == "nobody":
                assert response.status_code == 401, operation
                assert response.headers["www-authenticate"].startswith("Bearer")
            else:
                assert response.status_code == 403, operation


@pytest.mark.usefixtures("both_ways")
class TestTokens:
    @pytest.mark.parametrize("value", ["Bearer x", "Bearer", "Basic cm9vdDo=", "x", "Bearer jt_" + "A" * 43])
    async def test_invalid_token_is_unauthenticated(
        self, asker: httpx.AsyncClient, tokens: TokenFile, value: str
    ) -> None:
        new(tokens, "mine", "admin")
        assert_problem(await asker.get("/maps", headers={"Authorization": value}), 401, "unauthenticated")
        assert (await asker.get("/healthz", headers={"Authorization": value})).status_code == 200

    async def test_rotation_and_revocation_take_effect_at_once(
        self, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        first = new(tokens, "mine", "reader")
        assert (await asker.get("/maps", headers=first)).status_code == 200
        second = {"Authorization": f"Bearer {tokens.rotate('mine')}"}
        assert (await asker.get("/maps", headers=first)).status_code == 401
        assert (await asker.get("/maps", headers=second)).status_code == 200
        tokens.revoke("mine")
        assert (await asker.get("/maps", headers=second)).status_code == 401

    async def test_expired_token_is_refused(self, asker: httpx.AsyncClient, tokens: TokenFile) -> None:
        assert (
            await asker.get("/maps", headers=new(tokens, "old", "reader", expires=time.time() - 1))
        ).status_code == 401
        assert (
            await asker.get("/maps", headers=new(tokens, "new", "reader", expires=time.time() + 9))
        ).status_code == 200

    async def test_unreadable_token_file_lets_nobody_in(self, asker: httpx.AsyncClient, tokens: TokenFile) -> None:
        header = new(tokens, "mine", "admin")
        assert (await asker.get("/maps", headers=header)).status_code == 200
        tokens.path.write_text("nonsense")
        for _ in range(2):
            assert_problem(await asker.get("/maps", headers=header), 401, "unauthenticated")

    async def test_change_names_the_token_and_the_secret_is_nowhere(
        self, asker: httpx.AsyncClient, tokens: TokenFile, capsys: pytest.CaptureFixture[str]
    ) -> None:
        header = new(tokens, "deploy", "writer")
        changed = await asker.put(f"{TABLE}/9", json={"program": "drop"}, headers=header)
        refused = await asker.put("/maps/other", json={"id": 3}, headers=header)
        told = await asker.get("/changes/1", headers=header)
        assert told.json()["actor"] == "token:deploy"
        secret = header["Authorization"].removeprefix("Bearer ")
        assert secret not in changed.text + refused.text + told.text + tokens.path.read_text()
        assert secret not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("both_ways")
class TestTokenBounds:
    @pytest.fixture
    def writer(self, tokens: TokenFile) -> dict[str, str]:
        return new(tokens, "bounded", "writer", maps=["jump_table"], entries=["8-15"], programs=["drop", "pass"])

    async def test_writes_are_limited_to_the_entries_of_the_token(
        self, asker: httpx.AsyncClient, writer: dict[str, str]
    ) -> None:
        for index, status in ((7, 403), (8, 201), (15, 201), (16, 403), (99, 403)):
            for query in ("?dry_run=true", ""):
                put = await asker.put(f"{TABLE}/{index}{query}", json={"program": "drop"}, headers=writer)
                assert put.status_code == status, (index, put.text)
        assert_problem(await asker.delete(f"{TABLE}/7", headers=writer), 403, "forbidden")
        body = {"entries": [{"index": 9, "program": "drop"}, {"index": 7, "program": "drop"}]}
        assert_problem(await asker.patch(TABLE, json=body, headers=writer), 403, "forbidden")
        assert (await asker.get(f"{TABLE}/9", headers=writer)).status_code == 404, "nothing of it was written"

    async def test_unchanged_entries_of_a_table_need_no_right(
        self, asker: httpx.AsyncClient, tokens: TokenFile, writer: dict[str, str]
    ) -> None:
        await asker.put(f"{TABLE}/5", json={"program": "tx"}, headers=new(tokens, "admin", "admin"))
        table = (await asker.get(TABLE, headers=writer)).json()
        table["entries"].append({"index": 9, "program": "drop"})
        assert (await asker.put(TABLE, json=table, headers=writer)).json()["set"] == 1
        assert_problem(await asker.put(TABLE, json={"programs": []}, headers=writer), 403, "forbidden")

    async def test_programs_outside_the_bounds_cannot_be_used_or_seen(
        self, registry: Registry, kernel: Kernel, asker: httpx.AsyncClient, writer: dict[str, str]
    ) -> None:
        tx = registry.programs.get("tx").opened().id
        for program in ("tx", {"id": tx}):
            put = await asker.put(f"{TABLE}/9", json={"program": program}, headers=writer)
            assert_problem(put, 403, "forbidden")
        listed = (await asker.get("/programs", headers=writer)).json()["programs"]
        assert [each["name"] for each in listed] == ["drop", "pass"]
        assert_problem(await asker.get("/programs/tx", headers=writer), 403, "forbidden")
        run = await asker.post("/programs/tx/run", json={"packet": "00" * 14}, headers=writer)
        assert_problem(run, 403, "forbidden")

    async def test_only_an_admin_sets_a_program_that_is_not_held(
        self, kernel: Kernel, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        writer, admin = new(tokens, "w", "writer"), new(tokens, "a", "admin")
        with load(kernel, 1, name="foreign") as foreign:
            body = {"program": {"id": foreign.id}}
            assert_problem(await asker.put(f"{TABLE}/9", json=body, headers=writer), 403, "forbidden")
            listed = {"entries": [{"index": 9, **body}]}
            assert_problem(await asker.patch(TABLE, json=listed, headers=writer), 403, "forbidden")
            pinned = {"program": {"pinned": "/sys/fs/bpf/x"}}
            assert_problem(await asker.put(f"{TABLE}/9", json=pinned, headers=writer), 403, "forbidden")
            assert (await asker.put(f"{TABLE}/9", json=body, headers=admin)).status_code == 201
            assert (await asker.put(f"{TABLE}/10", json=body, headers=writer)).status_code == 201, "it is in that table"

    async def test_maps_outside_the_bounds_are_hidden(
        self, guarded: FastAPI, registry: Registry, kernel: Kernel, asker: httpx.AsyncClient, tokens: TokenFile,
        writer: dict[str, str],
    ) -> None:  # fmt: skip
        registry.maps.adopt("secret", make_array(kernel, "secret", 16))
        admin = new(tokens, "admin", "admin")
        await asker.put("/maps/secret/entries/9", json={"program": "drop"}, headers=admin)
        await asker.put(f"{TABLE}/9", json={"program": "drop"}, headers=admin)
        for path in ("/maps", "/programs", "/changes", "/changes?map=secret", "/changes/2"):
            told = await asker.get(path, headers=writer)
            assert told.status_code == 200
            assert "secret" not in told.text.replace("/secret", "")
        for path in ("/maps/secret", "/maps/secret/entries", "/maps/secret/entries/9"):
            assert_problem(await asker.get(path, headers=writer), 403, "forbidden")
        assert_problem(await asker.get("/changes/1", headers=writer), 404, "change-unknown")
        for path in ("/changes/1/revert", "/changes/1/confirm"):
            assert_problem(await asker.post(path, headers=writer), 404, "change-unknown")
        (events,) = await streams_of(guarded, asker, writer)
        assert "event: change" in events
        assert "secret" not in events

    async def test_only_an_admin_changes_protected_entries(self, asker: httpx.AsyncClient, tokens: TokenFile) -> None:
        writer, admin = new(tokens, "w", "writer"), new(tokens, "a", "admin")
        for query in ("?dry_run=true", ""):
            refused = await asker.put(f"{ENTRY}{query}", json={"program": "drop"}, headers=writer)
            assert_problem(refused, 403, "entry-protected")
        assert (await asker.put(ENTRY, json={"program": "drop"}, headers=admin)).status_code == 201
        for method, path, body in (
            ("DELETE", ENTRY, None), ("POST", "/changes/1/revert", None), ("PUT", TABLE, {"programs": []}),
        ):  # fmt: skip
            assert_problem(await asker.request(method, path, json=body, headers=writer), 403, "entry-protected")


@pytest.mark.field
@pytest.mark.usefixtures("both_ways")
class TestBoundsOfReading:
    """Field 31: a caller with bounds to entries and programs reads what is beyond them."""

    @pytest.fixture(params=["reader", "writer", "admin"])
    async def bounded(
        self, request: pytest.FixtureRequest, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> dict[str, str]:
        """A caller that may see entries 8 to 11 and 14, and drop. Before: the changes 1 to 4, of entries in and out."""
        admin = new(tokens, "first", "admin")
        for index, program in ((5, "tx"), (9, "tx")):
            await asker.put(f"{TABLE}/{index}", json={"program": program}, headers=admin)
        body = {"entries": [{"index": index, "program": "pass"} for index in (4, 8, 12, 14)]}
        await asker.patch(TABLE, json=body, headers=admin)
        await asker.patch(TABLE, json={"entries": [{"index": 12, "program": "tx"}]}, headers=admin)
        return new(tokens, "mine", request.param, entries=["10-11", "8-10", "14"], programs=["drop"])

    async def test_entry_outside_is_forbidden_and_one_inside_tells_its_program(
        self, asker: httpx.AsyncClient, bounded: dict[str, str]
    ) -> None:
        for index in (5, 6, 12, 16, 4_000_000_000):
            refused = await asker.get(f"{TABLE}/{index}", headers=bounded)
            assert_problem(refused, 403, "forbidden")
            assert f"entry {index} is not among the entries of this caller" in refused.json()["detail"]
        inside = await asker.get(f"{TABLE}/9", headers=bounded)
        assert inside.json()["program"]["name"] == "tx"
        assert_problem(await asker.get(f"{TABLE}/10", headers=bounded), 404, "entry-empty")

    async def test_list_shows_the_entries_inside_with_the_tag_of_the_whole_table(
        self, asker: httpx.AsyncClient, bounded: dict[str, str], tokens: TokenFile
    ) -> None:
        table = await asker.get(TABLE, headers=bounded)
        assert [each["index"] for each in table.json()["entries"]] == [8, 9, 14]
        whole = await asker.get(TABLE, headers=new(tokens, "a", "admin"))
        assert len(whole.json()["entries"]) == 6
        assert table.headers["etag"] == whole.headers["etag"]
        page = (await asker.get(TABLE, params={"start": 0, "limit": 2}, headers=bounded)).json()
        assert ([each["index"] for each in page["entries"]], page["next"]) == ([8, 9], 14)
        page = (await asker.get(TABLE, params={"start": 14, "limit": 1}, headers=bounded)).json()
        assert ([each["index"] for each in page["entries"]], page["next"]) == ([14], None)

    async def test_map_counts_and_lists_what_is_inside(
        self, registry: Registry, asker: httpx.AsyncClient, bounded: dict[str, str]
    ) -> None:
        held, tx = registry.maps.get("jump_table"), registry.programs.get("tx").opened()
        for index in (7, 10):
            registry.kernel.map_update(held.opened().fd, index, tx.fd)
        assert held.expected is not None
        held.expected.lost = {6: "no six", 11: "no eleven"}
        one = (await asker.get("/maps/jump_table", headers=bounded)).json()
        (listed,) = (await asker.get("/maps", headers=bounded)).json()["maps"]
        for map_ in (one, listed):
            assert [each["index"] for each in map_["drift"]] == [10]
            assert map_["used"] == 4, "8, 9, 10 and 14"
            assert "eleven" in str(map_["warnings"])
            assert "six" not in str(map_["warnings"])

    async def test_changes_show_the_entries_inside_and_others_are_unknown(
        self, asker: httpx.AsyncClient, bounded: dict[str, str]
    ) -> None:
        listed = (await asker.get("/changes", headers=bounded)).json()
        shown = [(each["id"], [entry["index"] for entry in each["entries"]]) for each in listed["changes"]]
        assert (shown, listed["next"]) == ([(2, [9]), (3, [8, 14])], None)
        one = await asker.get("/changes/3", headers=bounded)
        assert one.json() == listed["changes"][1]
        for id_ in (1, 4, 5):
            assert_problem(await asker.get(f"/changes/{id_}", headers=bounded), 404, "change-unknown")

    async def test_pages_of_changes_reach_all_that_is_inside(
        self, asker: httpx.AsyncClient, bounded: dict[str, str], tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(changes, "_MAX_PAGES", 2)
        admin = new(tokens, "a", "admin")
        for number in range(8):
            program = ("drop", "pass")[number % 2]
            await asker.put(f"{TABLE}/5", json={"program": program}, headers=admin)
        await asker.put(f"{TABLE}/14", json={"program": "drop"}, headers=admin)
        found, after = list[int](), 0
        for _ in range(20):
            page = (await asker.get("/changes", params={"limit": 1, "after": after}, headers=bounded)).json()
            found += [each["id"] for each in page["changes"]]
            after = page["next"]
            if after is None:
                break
        assert found == [2, 3, 13]

    async def test_change_that_reaches_beyond_is_neither_confirmed_nor_reverted(
        self, asker: httpx.AsyncClient, bounded: dict[str, str], tokens: TokenFile
    ) -> None:
        admin = new(tokens, "a", "admin")
        await asker.put(f"{TABLE}/4", json={"program": "tx"}, headers=admin)  # so that change 3 is not in place
        for path in ("/changes/3/confirm", "/changes/3/revert", "/changes/3/revert?dry_run=true"):
            refused = await asker.post(path, headers=bounded)
            assert_problem(refused, 403, "forbidden")
            assert "holds" not in refused.text
        if "reader" in (await asker.post("/changes/1/revert", headers=bounded)).text:
            return  # a reader may not even ask
        for path in ("/changes/1/confirm", "/changes/1/revert"):
            assert_problem(await asker.post(path, headers=bounded), 404, "change-unknown")

    async def test_events_show_the_entries_inside_and_others_do_not_happen(
        self, guarded: FastAPI, registry: Registry, asker: httpx.AsyncClient, bounded: dict[str, str], tokens: TokenFile
    ) -> None:
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        service, held = guarded.state.service, registry.maps.get("jump_table")
        for indexes in ([7], [7, 10], [7], []):
            for index in (7, 10):
                if array.get(index) is not None:
                    array.clear_index(index)
            for index in indexes:
                registry.kernel.map_update(array.fd, index, tx.fd)
            await service.drift.check(held)
        admin = new(tokens, "a", "admin")
        await asker.patch(
            f"{TABLE}?confirm_within=60", json={"entries": [{"index": 6, "program": "tx"}]}, headers=admin
        )
        await asker.post("/changes/5/confirm", headers=admin)
        (stream,) = await streams_of(guarded, asker, bounded)
        events = [(type_, json.loads(data)) for type_, data in re.findall(r"event: (\S+)\ndata: (.*)", stream)]
        changed = [[entry["index"] for entry in data["entries"]] for type_, data in events if type_ == "change"]
        assert changed == [[9], [8, 14]]
        drift = [
            (data["count"], [each["index"] for each in data["drift"]]) for type_, data in events if type_ == "drift"
        ]
        assert drift == [(0, []), (1, [10]), (0, [])]
        assert {type_ for type_, _ in events} == {"change", "drift"}

    async def test_programs_tell_only_uses_inside(
        self, asker: httpx.AsyncClient, bounded: dict[str, str], tokens: TokenFile
    ) -> None:
        admin = new(tokens, "a", "admin")
        for index in (6, 10):
            await asker.put(f"{TABLE}/{index}", json={"program": "drop"}, headers=admin)
        one = (await asker.get("/programs/drop", headers=bounded)).json()
        (listed,) = (await asker.get("/programs", headers=bounded)).json()["programs"]
        assert one["used_by"] == listed["used_by"] == [{"map": "jump_table", "index": 10}]
        assert one["use_count"] == listed["use_count"] == 1

    async def test_program_outside_and_an_unknown_one_are_refused_alike(
        self, registry: Registry, asker: httpx.AsyncClient, bounded: dict[str, str]
    ) -> None:
        there, no_id = registry.programs.get("pass").opened().id, 4_000_000_000
        for method, path, body in (
            ("GET", "/programs/NAME", None),
            ("PUT", "/programs/NAME", {"id": no_id}),
            ("DELETE", "/programs/NAME", None),
            ("POST", "/programs/NAME/run", {"packet": "00" * 14}),
            ("PUT", f"{TABLE}/10", {"program": "NAME"}),
            ("PUT", f"{TABLE}/10?dry_run=true", {"program": "NAME"}),
            ("PUT", f"{TABLE}/10", {"program": {"name": "NAME"}}),
            ("PUT", f"{TABLE}/10", {"program": {"id": "ID"}}),
            ("PATCH", TABLE, {"entries": [{"index": 10, "program": "NAME"}]}),
            ("PATCH", TABLE, {"entries": [{"index": 10, "program": {"id": "ID"}}]}),
        ):
            answers = []
            for name, id_ in (("pass", there), ("nope", no_id)):
                text = None if body is None else json.dumps(body).replace("NAME", name).replace('"ID"', str(id_))
                headers = bounded | {"Content-Type": "application/json", "X-Request-ID": "same"}
                answer = await asker.request(method, path.replace("NAME", name), content=text, headers=headers)
                assert_problem(answer, 403, "forbidden")
                answers.append(answer.text.replace(name, "NAME").replace(f'{{"id":{id_}}}', "ID"))
            assert answers[0] == answers[1], (method, path)

    @pytest.mark.parametrize("form", ["entries", "entry"])
    async def test_what_is_shown_can_be_put_back(
        self, asker: httpx.AsyncClient, tokens: TokenFile, bounded: dict[str, str], form: str
    ) -> None:
        writer = new(tokens, "w", "writer", entries=["8-11", "14"], programs=["drop"])
        if form == "entry":
            entry = (await asker.get(f"{TABLE}/9", headers=writer)).json()
            put = await asker.put(f"{TABLE}/9", json=entry, headers=writer)
            assert (put.status_code, "change-id" in put.headers) == (200, False), put.text
            return
        table = (await asker.get(TABLE, headers=writer)).json()
        table["entries"] = [*table["entries"][1:], {"index": 10, "program": "drop"}]
        put = await asker.put(TABLE, json=table, headers=writer)
        counts = {name: put.json()[name] for name in ("set", "cleared", "unchanged")}
        assert counts == {"set": 1, "cleared": 1, "unchanged": 2}
        whole = (await asker.get(TABLE, headers=new(tokens, "a", "admin"))).json()["entries"]
        assert [each["index"] for each in whole] == [4, 5, 9, 10, 12, 14]


@pytest.mark.field
async def test_drift_of_many_entries_is_counted_inside_the_bounds(
    kernel: Kernel, registry: Registry, tokens: TokenFile, anyio_backend: str
) -> None:
    """Field 31: a caller with bounds to entries and programs reads what is beyond them."""
    registry.maps.adopt("large", make_array(kernel, "large", 1024))
    async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app, client_of(app) as asker:
        array, tx = registry.maps.get("large").opened(), registry.programs.get("tx").opened()
        for index in (*range(0, 300, 2), 900, 901):
            registry.kernel.map_update(array.fd, index, tx.fd)
        await app.state.service.drift.check(registry.maps.get("large"))
        expected: tuple[tuple[list[str] | None, int, list[int]], ...] = (
            (["290-900", "1-3"], 7, [2]),
            (["902-999"], 0, []),
            (None, 152, [0, 2]),
        )
        readers = [new(tokens, f"reader{count}", "reader", entries=bounds) for bounds, count, _ in expected]
        for stream, (_, count, first) in zip(await streams_of(app, asker, *readers), expected, strict=True):
            (data,) = re.findall(r"event: drift\ndata: (.*)", stream)
            drift = json.loads(data)
            assert drift.keys() == {"map", "count", "drift"}
            assert drift["count"] == count
            assert [each["index"] for each in drift["drift"]][:2] == first


@pytest.mark.usefixtures("both_ways")
class TestBypasses:
    async def test_moved_pin_gives_a_writer_no_new_program(
        self, kernel: Kernel, pins: Path, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        writer, admin = new(tokens, "w", "writer"), new(tokens, "a", "admin")
        with load(kernel, 1, name="held") as held, load(kernel, 3, name="other") as other:
            kernel.obj_pin(held.fd, f"{pins}/p")
            assert (await asker.put("/programs/p", json={"pinned": f"{pins}/p"}, headers=admin)).status_code == 201
            body = {"program": {"pinned": f"{pins}/p"}}
            assert (await asker.put(f"{TABLE}/9", json=body, headers=writer)).status_code == 201
            kernel.unpin(f"{pins}/p")
            kernel.obj_pin(other.fd, f"{pins}/p")
            assert_problem(await asker.put(f"{TABLE}/10", json=body, headers=writer), 403, "forbidden")
            listed = {"entries": [{"index": 10, **body}]}
            assert_problem(await asker.patch(TABLE, json=listed, headers=writer), 403, "forbidden")

    async def test_bounded_admin_cannot_hold_new_objects_or_use_force(
        self, registry: Registry, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        bounded = new(tokens, "a", "admin", programs=["pass"], entries=["8-15"])
        drop = registry.programs.get("drop").opened().id
        for path, body in (("/programs/pass", {"id": drop}), ("/maps/jump_table?force=true", {"id": 1})):
            for query in ("", "&dry_run=true" if "?" in path else "?dry_run=true"):
                assert_problem(await asker.put(f"{path}{query}", json=body, headers=bounded), 403, "forbidden")
        assert_problem(await asker.delete("/maps/jump_table?force=true", headers=bounded), 403, "forbidden")

    async def test_confirming_a_change_needs_the_right_to_make_it(
        self, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        bounded, admin = new(tokens, "w", "writer", programs=["pass"]), new(tokens, "a", "admin")
        await asker.put(f"{TABLE}/9?confirm_within=60", json={"program": "drop"}, headers=admin)
        assert_problem(await asker.post("/changes/1/confirm", headers=bounded), 403, "forbidden")

    async def test_dry_run_of_a_reconcile_needs_the_same_rights(
        self, registry: Registry, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        bounded = new(tokens, "a", "admin", entries=["12"])
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 9, tx.fd)
        for to in ("journal", "kernel"):
            for query in ("?dry_run=true", ""):
                url = f"/maps/jump_table/reconcile{query}"
                assert_problem(await asker.post(url, json={"to": to}, headers=bounded), 403, "forbidden")

    async def test_two_authorization_headers_are_refused(self, asker: httpx.AsyncClient, tokens: TokenFile) -> None:
        one, other = new(tokens, "a", "admin"), new(tokens, "r", "reader")
        headers = [*one.items(), *other.items()]
        assert_problem(await asker.get("/maps", headers=headers), 400, "malformed-header")

    async def test_event_stream_ends_when_its_token_is_revoked(
        self, guarded: FastAPI, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        reader, admin = new(tokens, "r", "reader"), new(tokens, "a", "admin")
        reading = asyncio.create_task(asker.get("/events", headers=reader))
        while not guarded.state.service.feed._sleeping:
            await asyncio.sleep(0)
        tokens.revoke("r")
        await asker.put(f"{TABLE}/9", json={"program": "drop"}, headers=admin)
        assert "set" not in (await reading).text

    @pytest.mark.field
    async def test_callers_learn_nothing_of_names_beyond_their_bounds(
        self, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        """Field 10: a slip in a map's name is told, but not whether a map beyond the bounds is held."""
        bounded = new(tokens, "b", "reader", maps=["other"])
        for name in ("jump_table", "typo"):
            assert (await asker.get(f"/changes?map={name}", headers=bounded)).json()["changes"] == []
            assert (await asker.head(f"/events?map={name}", headers=bounded)).status_code == 200
        for path in ("/changes?map=other", "/events?map=other"):
            assert_problem(await asker.get(path, headers=bounded), 404, "map-unknown")

    async def test_readyz_gives_reasons_only_to_callers_who_may_read_everything(
        self, registry: Registry, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        registry.maps.add(HeldMap("secret", Pinned("/sys/fs/bpf/secret")))
        for headers in ({}, new(tokens, "r", "reader", maps=["jump_table"])):
            refused = await asker.get("/readyz", headers=headers)
            assert_problem(refused, 503, "map-unavailable")
            assert "secret" not in refused.text
        assert "secret" in (await asker.get("/readyz", headers=new(tokens, "a", "reader"))).text

    @pytest.mark.parametrize(
        "content", ['[{"name": "a", "hash": "", "role": "admin", "created": 0, "entries": ["x"]}]', "{}"]
    )
    async def test_malformed_token_file_lets_nobody_in(
        self, asker: httpx.AsyncClient, tokens: TokenFile, content: str
    ) -> None:
        header = new(tokens, "a", "admin")
        tokens.path.write_text(content)
        assert_problem(await asker.get("/maps", headers=header), 401, "unauthenticated")

    async def test_token_file_writable_by_others_lets_nobody_in(
        self, asker: httpx.AsyncClient, tokens: TokenFile
    ) -> None:
        header = new(tokens, "a", "admin")
        tokens.path.chmod(0o666)
        assert_problem(await asker.get("/maps", headers=header), 401, "unauthenticated")


@pytest.mark.usefixtures("both_ways")
class TestReadOnly:
    async def test_writes_are_refused_and_reads_are_answered(self, registry: Registry) -> None:
        async with started(registry, authentication=Authentication(read_only=True)) as app, client_of(app) as client:
            for operation, (method, path, body) in REQUESTS.items():
                response = await client.request(method, path, json=body)
                changing = RIGHTS[operation] in {Right.WRITE, Right.ADMIN}
                assert response.json()["code"] == "read-only" if changing else response.status_code != 403, operation


@pytest.mark.usefixtures("both_ways")
class TestLimits:
    async def test_requests_beyond_the_rate_get_429(self, registry: Registry) -> None:
        limits = Limits(requests_per_second=0.5, burst=3)
        async with started(registry, limits=limits) as app, client_of(app) as client:
            statuses = [(await client.get("/maps")).status_code for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
            refused = await client.get("/maps")
            assert_problem(refused, 429, "too-many-requests")
            assert refused.headers["retry-after"] in {"1", "2"}

    async def test_event_readers_and_held_objects_are_limited(self, registry: Registry) -> None:
        limits = Limits(event_readers=0, held=6)
        async with started(registry, limits=limits) as app, client_of(app) as client:
            assert_problem(await client.get("/events"), 429, "too-many-requests")
            drop = (await client.get("/programs/drop")).json()["id"]
            assert_problem(await client.put("/programs/more", json={"id": drop}), 429, "too-many-requests")
            assert (await client.put("/programs/drop", json={"id": drop})).status_code == 200, "held already"


class TestHostAndOrigin:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200), ("localhost:8080", 200), ("127.0.0.1:8080", 200), ("127.1.2.3", 200), ("[::1]:80", 200),
            ("LOCALHOST", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421),
            ("10.0.0.1", 421), ("", 421), ("localhost:x", 421), ("user@localhost", 421), ("[::2]", 421),
        ],
    )  # fmt: skip
    async def test_loopback_accepts_only_loopback_host_names(self, app: FastAPI, host: str, status: int) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for path in ("/healthz", "/maps", "/docs/assets/favicon.png", "/openapi.json"):
                assert (await client.get(path, headers={"Host": host})).status_code == status

    async def test_foreign_origin_is_refused(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for origin, status in (("http://localhost:8080", 200), ("https://evil.example", 421), ("null", 421)):
                assert (await client.get("/maps", headers={"Origin": origin})).status_code == status

    async def test_origin_of_a_change_has_to_be_that_of_host_on_other_addresses(self, app: FastAPI) -> None:
        """A browser shows the client certificate of its user also for what a page of another site sends."""
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://node.example:8443") as client:
            for origin, status in (
                ("https://node.example:8443", 404), ("https://evil.example", 421), ("null", 421),
                ("https://node.example", 421),
            ):  # fmt: skip
                answer = await client.post("/changes/1/confirm", headers={"Origin": origin})
                assert answer.status_code == status
                assert (await client.get("/maps", headers={"Origin": origin})).status_code == 200


@pytest.mark.usefixtures("both_ways")
async def test_reason_of_a_broken_token_file_is_told_to_the_operator_only(
    registry: Registry, tokens: TokenFile, anyio_backend: str
) -> None:
    header = new(tokens, "t", "reader")
    tokens.path.write_text("nonsense")
    async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app, client_of(app) as asker:
        denied = await asker.get("/maps", headers=header)
        assert_problem(denied, 401, "unauthenticated")
        assert str(tokens.path) not in denied.text
        assert "is no file of tokens" in app.state.authentication.tokens.degraded_reason
        red = await asker.get("/readyz")
        assert red.status_code == 503
        tokens.path.unlink()
        await asker.get("/maps", headers=header)
        assert app.state.authentication.tokens.degraded_reason is None


@pytest.mark.usefixtures("both_ways")
async def test_credentials_without_the_bearer_scheme_get_a_hint(
    registry: Registry, tokens: TokenFile, anyio_backend: str
) -> None:
    header = new(tokens, "t", "reader")["Authorization"].removeprefix("Bearer ")
    async with started(registry, authentication=Authentication(tokens=Tokens(tokens))) as app, client_of(app) as asker:
        for value in (header, f"Basic {header}"):
            denied = await asker.get("/maps", headers={"Authorization": value})
            assert_problem(denied, 401, "unauthenticated")
            assert "Authorization: Bearer TOKEN" in denied.json()["detail"]
