"""The agent of a fleet: it names who has asked the fleet, nobody else may, and it may do what its rule says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.access.peers import Peer, PeerRule, Peers
from app.access.rights import Grant, Ranges
from app.access.tokens import Token, TokenFile, Tokens
from app.api.audit import Audit
from app.api.authorization import PEER, RIGHTS, Authentication
from app.api.limits import Limits
from app.bpf.memory.kernel import MemoryKernel
from app.server.connection import Connection
from app.service.registry.registry import Registry
from tests.api.conftest import assert_problem, started
from tests.api.test_access import REQUESTS
from tests.conftest import application
from tests.over_wire import OverWire, Pipe

pytestmark = pytest.mark.anyio
AGENT, OTHER, ROOT = 23456, 34567, 0
TABLE = "/maps/jump_table/entries"
ALICE = {"Jumptable-Actor": "alice"}
OPEN = Grant("writer", frozenset({"jump_table"}), Ranges.of(["8-11"]), frozenset({"drop", "pass"}))
PEERS = Peers([PeerRule("fleet", OPEN, uid=AGENT, on_behalf=True), PeerRule("ops", OPEN, uid=OTHER)])


class OverSocket(OverWire):
    """Sends requests as a user at the other end of a unix socket. `direct`: simple ones may go the fast way."""

    def __init__(self, app: FastAPI, uid: int, *, direct: bool = True) -> None:
        super().__init__(app, direct=direct)
        self._peer = Peer(uid, frozenset())

    def connect(self, pipe: Pipe) -> Connection:
        connection = super().connect(pipe)
        connection.scope[PEER] = self._peer
        connection.identity = self._peer, connection.identity
        return connection


@pytest.fixture(params=[False, True], ids=["regular", "fast"])
def direct(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def app(registry: Registry, tmp_path: Path, anyio_backend: str) -> AsyncIterator[FastAPI]:
    with closing(Audit(tmp_path / "audit")) as audit:
        async with started(registry, authentication=Authentication(peers=PEERS), audit=audit) as app:
            yield app


def of(app: FastAPI, uid: int, *, direct: bool = True) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=OverSocket(app, uid, direct=direct), base_url="http://jumptable")


async def set_entry(client: httpx.AsyncClient, index: int, program: str, headers: dict[str, str]) -> httpx.Response:
    return await client.put(f"{TABLE}/{index}", json={"program": program}, headers=headers)


async def entries_of(app: FastAPI) -> dict[int, str]:
    async with of(app, ROOT) as root:
        return {each["index"]: each["program"]["name"] for each in (await root.get(TABLE)).json()["entries"]}


async def test_journal_events_and_audit_name_who_asked_the_fleet(app: FastAPI, direct: bool, tmp_path: Path) -> None:
    async with of(app, AGENT, direct=direct) as agent:
        assert (await set_entry(agent, 8, "drop", ALICE)).status_code == 201
        entries = {"entries": [{"index": 9, "program": "pass"}]}
        changed = await agent.patch(TABLE, json=entries, headers=ALICE, params={"confirm_within": 60})
        assert changed.json()["change"]["actor"] == "fleet:alice"
        bob = {"Jumptable-Actor": "bob (on call)"}
        confirmed = await agent.post(f"/changes/{changed.headers['change-id']}/confirm", headers=bob)
        assert confirmed.json()["confirmed_by"] == "fleet:bob (on call)"
        assert (await set_entry(agent, 10, "pass", {})).status_code == 201
        journal = (await agent.get("/changes")).json()["changes"]
        reading = asyncio.create_task(agent.get("/events", headers={"Last-Event-ID": "0"}))
        while not app.state.service.feed._sleeping:
            await asyncio.sleep(0)
        app.state.service.feed.stop()
        events = [json.loads(line[6:]) for line in (await reading).text.splitlines() if line.startswith("data: ")]
    itself = journal[-1]["actor"]
    assert [each["actor"] for each in journal] == ["fleet:alice", "fleet:alice", itself]
    assert itself.endswith(" (fleet)")
    assert {each["actor"] for each in events if "actor" in each} == {"fleet:alice", itself}
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [(each["actor"], each.get("via")) for each in lines] == [
        ("fleet:alice", itself), ("fleet:alice", itself), ("fleet:bob (on call)", itself), (itself, None)
    ]  # fmt: skip


async def test_fast_path_leaves_requests_with_an_actor_to_the_regular_way(app: FastAPI, registry: Registry) -> None:
    """Whatever the same connection has sent before, also with the same bytes but for the header."""
    transport = OverSocket(app, AGENT)
    assert transport.direct is not None
    async with httpx.AsyncClient(transport=transport, base_url="http://jumptable") as agent:
        for number, headers in enumerate([{}, ALICE, {}, {"jumptable-ACTOR": "bob"}, ALICE]):
            fast = transport.direct.answered
            answer = await set_entry(agent, 8, "drop" if number % 2 else "pass", headers)
            assert answer.is_success
            assert transport.direct.answered == fast + (not headers), headers
            program = "pass" if number % 2 else "drop"
            table = await agent.put(TABLE, json={"entries": [{"index": 9, "program": program}]}, headers=headers)
            assert table.is_success
            assert transport.direct.answered == fast + 2 * (not headers), headers
        actors = [each["actor"] for each in (await agent.get("/changes")).json()["changes"]]
    itself = actors[0]
    assert actors == [itself] * 2 + ["fleet:alice"] * 2 + [itself] * 2 + ["fleet:bob"] * 2 + ["fleet:alice"] * 2


@pytest.mark.parametrize("uid", [ROOT, OTHER])
async def test_only_a_peer_whose_rule_says_so_may_name_an_actor(app: FastAPI, direct: bool, uid: int) -> None:
    async with of(app, uid, direct=direct) as client:
        for dry_run in ("true", "false"):
            answer = await client.put(
                f"{TABLE}/8", params={"dry_run": dry_run}, json={"program": "drop"}, headers=ALICE
            )
            assert_problem(answer, 403, "actor-not-allowed")
        assert_problem(await set_entry(client, 8, "drop", ALICE), 403, "actor-not-allowed")
        assert_problem(await client.get(TABLE, headers=ALICE), 403, "actor-not-allowed")
        assert await entries_of(app) == {}
        assert (await set_entry(client, 8, "drop", {})).status_code == 201


async def test_who_is_not_known_or_has_a_token_may_name_no_actor(
    registry: Registry, direct: bool, tmp_path: Path
) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    secret = {"Authorization": f"Bearer {tokens.add(Token('mine', '', 'admin', 0.0))}"}
    authentication = Authentication(peers=PEERS, tokens=Tokens(tokens))
    async with started(registry, authentication=authentication) as app:
        async with of(app, AGENT, direct=direct) as agent:
            answer = await set_entry(agent, 8, "drop", secret | ALICE)
            assert_problem(answer, 403, "actor-not-allowed")
        wire = OverWire(app, direct=direct)
        async with httpx.AsyncClient(transport=wire, base_url="http://jumptable") as client:
            assert_problem(await set_entry(client, 8, "drop", ALICE), 401, "unauthenticated")


async def test_where_nobody_has_to_prove_who_they_are_nobody_may_name_an_actor(
    registry: Registry, direct: bool
) -> None:
    async with started(registry) as app, of(app, AGENT, direct=direct) as client:
        assert_problem(await set_entry(client, 8, "drop", ALICE), 403, "actor-not-allowed")


@pytest.mark.parametrize("name", [b"", b"a\tb", "ä".encode(), b"a" * 129])
async def test_actor_that_is_no_name_is_malformed(app: FastAPI, direct: bool, name: bytes) -> None:
    async with of(app, AGENT, direct=direct) as agent:
        headers: Any = [(b"Jumptable-Actor", name)]
        answer = await agent.put(f"{TABLE}/8", json={"program": "drop"}, headers=headers)
        assert_problem(answer, 400, "malformed-header")
    assert await entries_of(app) == {}


async def test_two_actors_are_malformed(app: FastAPI, direct: bool) -> None:
    async with of(app, AGENT, direct=direct) as agent:
        headers = [("Jumptable-Actor", "alice"), ("Jumptable-Actor", "alice")]
        answer = await agent.put(f"{TABLE}/8", json={"program": "drop"}, headers=headers)
        assert_problem(answer, 400, "malformed-header")


@pytest.mark.parametrize("dry_run", ["true", "false"])
async def test_what_the_rule_does_not_allow_is_refused_whole(app: FastAPI, direct: bool, dry_run: str) -> None:
    """Whoever is named: the rights are those of the agent."""
    allowed = {"index": 8, "program": "drop"}
    async with of(app, AGENT, direct=direct) as agent:
        for beyond in ({"index": 7, "program": "drop"}, {"index": 9, "program": "tx"}):
            answer = await agent.patch(
                TABLE, params={"dry_run": dry_run}, json={"entries": [allowed, beyond]}, headers=ALICE
            )
            assert_problem(answer, 403, "forbidden")
            assert answer.json()["index"] == beyond["index"]
        tried = await agent.patch(TABLE, params={"dry_run": dry_run}, json={"entries": [allowed]}, headers=ALICE)
        assert tried.status_code == 200
    assert await entries_of(app) == ({} if dry_run == "true" else {8: "drop"})


async def test_naming_an_actor_opens_no_operation(app: FastAPI) -> None:
    async with of(app, AGENT) as agent:
        for operation, (method, path, body) in REQUESTS.items():
            if operation == "watch_events":
                continue
            bare = await agent.request(method, path, json=body)
            named = await agent.request(method, path, json=body, headers=ALICE)
            assert (named.status_code == 403) is (bare.status_code == 403), operation
            if RIGHTS[operation].name in {"ADMIN", "INSPECT"}:
                assert named.status_code == 403, operation


async def test_change_of_others_beyond_the_rule_can_be_neither_confirmed_nor_reverted(app: FastAPI) -> None:
    async with of(app, ROOT) as root, of(app, AGENT) as agent:
        entries = {"entries": [{"index": 8, "program": "drop"}, {"index": 7, "program": "drop"}]}
        made = await root.patch(TABLE, params={"confirm_within": 60}, json=entries)
        for what in ("confirm", "revert", "revert?dry_run=true"):
            answer = await agent.post(f"/changes/{made.headers['change-id']}/{what}", headers=ALICE)
            assert_problem(answer, 403, "forbidden")
    assert await entries_of(app) == {7: "drop", 8: "drop"}


async def test_requests_count_against_the_agent_whoever_it_names(registry: Registry) -> None:
    limits = Limits(requests_per_second=0.001, burst=3)
    authentication = Authentication(peers=PEERS)
    async with started(registry, authentication=authentication, limits=limits) as app, of(app, AGENT) as agent:
        users = [{"Jumptable-Actor": f"user{number}"} for number in range(4)]
        statuses = [(await agent.get(TABLE, headers=each)).status_code for each in users]
    assert statuses == [200, 200, 200, 429]


def test_document_has_the_header_where_there_are_peers() -> None:
    with application(Registry(MemoryKernel()), authentication=Authentication(peers=PEERS)) as app:
        paths = app.openapi()["paths"]
    for operation in (each for path in paths.values() for each in path.values()):
        names = [each["name"] for each in operation.get("parameters", [])]
        changes = RIGHTS[operation["operationId"]].name in {"WRITE", "ADMIN"}
        assert names.count("Jumptable-Actor") == changes, operation["operationId"]
        assert "actor-not-allowed" in operation["responses"]["403"]["description"]
