"""The server itself: probes, metrics, and what it answers while etcd is away, or must not be used."""

import asyncio
import re
import time

import httpx
import pytest

from app.api.problems import FLEET_PROBLEMS
from app.fleet import serve
from app.fleet.api.routes.service import PROBLEM_TYPES
from app.fleet_store import keys
from app.fleet_store.documents import Leader
from app.fleet_store.errors import OutcomeUnknown, VersionRefused
from app.fleet_store.etcd import Etcd
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem, client_of, served
from tests.fleet_store.cluster import Cluster

pytestmark = pytest.mark.anyio

READS = [TABLE, "/fleet/tables", "/fleet/nodes", "/fleet/rollouts", "/fleet/history", "/fleet/events", "/version"]


class TestProbes:
    async def test_it_is_ready_while_etcd_answers_and_says_who_leads(
        self, client: httpx.AsyncClient, etcd: Etcd
    ) -> None:
        assert (await client.get("/readyz")).json()["leader"] is None
        await etcd.put(keys.CONTROLLER, Leader(name="c1", since=1).to_bytes())
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["leader"]) == (200, "c1")

    async def test_browser_gets_the_page_of_the_fleet_and_everybody_else_links_that_lead_somewhere(
        self, client: httpx.AsyncClient
    ) -> None:
        page = await client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "require-trusted-types-for 'script'" in page.headers["content-security-policy"]
        for path in re.findall(r'(?:href|src)="(/[^"]+)"', page.text):
            assert (await client.head(path)).status_code == 200, path
        for path in (await client.get("/")).json()["links"].values():
            assert (await client.head(path)).status_code == 200, path

    async def test_each_problem_is_explained(self, client: httpx.AsyncClient) -> None:
        for code, kind in PROBLEM_TYPES.items():
            told = (await client.get(f"/problems/{code}")).json()
            assert (told["code"], told["status"], told["remedy"]) == (code, kind.status, kind.remedy)
        assert_problem(await client.get("/problems/map-frozen"), 404, "not-found")
        assert FLEET_PROBLEMS.items() <= PROBLEM_TYPES.items()

    async def test_metrics_tell_nodes_rollouts_and_the_store(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1", "n2")
        await nodes.go("n2")
        await client.put(TABLE, json=BODY)
        text = (await client.get("/metrics")).text
        for line in (
            'jumptable_fleet_nodes{state="ready"} 1.0',
            'jumptable_fleet_nodes{state="away"} 1.0',
            "jumptable_fleet_tables 1.0",
            'jumptable_fleet_rollouts{phase="progressing"} 1.0',
            "jumptable_fleet_controller_elected 0.0",
            "jumptable_fleet_store_up 1.0",
            'jumptable_fleet_request_seconds_count{operation="put_table",status="202"} 1.0',
        ):
            assert line in text.splitlines(), text


class TestStoreAway:
    async def test_without_a_quorum_it_is_503_and_lives(self, cluster: Cluster) -> None:
        async with cluster.client(patience=0.3, timeout=0.3) as etcd, served(etcd) as app, client_of(app) as client:
            await etcd.range(keys.PREFIX)
            for member in cluster.members[:2]:
                member.freeze()
            for path in READS:
                if path != "/version":  # each member tells its version by itself
                    assert_problem(await client.get(path), 503, "store-unavailable")
            assert_problem(await client.put(TABLE, json=BODY), 503, "store-unavailable")
            assert_problem(await client.put("/fleet/nodes/n1", json={"labels": {}}), 503, "store-unavailable")
            ready = assert_problem(await client.get("/readyz"), 503, "store-unavailable")
            assert ready["detail"]
            assert (await client.get("/livez")).status_code == 200
            assert "jumptable_fleet_store_up 0.0" in (await client.get("/metrics")).text
            for member in cluster.members:
                member.thaw()
            deadline = time.monotonic() + 20
            while (await client.get("/readyz")).status_code != 200:
                assert time.monotonic() < deadline
            assert (await client.get("/fleet/nodes")).json()["nodes"] == []

    async def test_a_write_whose_outcome_is_not_known_says_so(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await nodes.add("n1")

        async def commit(*_: object, **__: object) -> None:
            raise OutcomeUnknown("the answer to a write did not arrive")

        monkeypatch.setattr(etcd, "commit", commit)
        problem = assert_problem(await client.put(TABLE, json=BODY), 503, "store-unavailable")
        assert problem["outcome"] == "unknown"

    async def test_a_certificate_without_rights_is_told(self, cluster: Cluster) -> None:
        async with cluster.client("nobody") as etcd, served(etcd) as app, client_of(app) as client:
            problem = assert_problem(await client.get("/fleet/tables"), 503, "store-refused")
            assert "etcd refuses" in problem["detail"]

    async def test_what_is_not_the_fleets_own_is_told(self, client: httpx.AsyncClient, etcd: Etcd) -> None:
        await etcd.put(keys.table("jump_table"), b"garbage")
        problem = assert_problem(await client.get(TABLE), 503, "store-refused")
        assert "TableHead" in problem["detail"]


async def test_a_version_of_etcd_with_holes_is_refused_until_it_is_another_one(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_CHECK_SECONDS", 0.01)
    found: list[str] = ["m1 runs etcd 3.5.16, which lets each node write the keys of all others"]

    async def check_versions() -> list[str]:
        if found:
            raise VersionRefused(found[0])
        return []

    monkeypatch.setattr(etcd, "check_versions", check_versions)
    async with served(etcd) as app, client_of(app) as client:
        watching = asyncio.create_task(serve._watch_versions(app.state, etcd))  # type: ignore[arg-type]
        await app.state.unusable.wait()
        for path in [*READS, "/readyz"]:
            assert "3.5.16" in assert_problem(await client.get(path), 503, "store-version")["detail"]
        assert_problem(await client.put(TABLE, json=BODY), 503, "store-version")
        assert "jumptable_fleet_store_up 0.0" in (await client.get("/metrics")).text
        assert (await client.get("/livez")).status_code == 200
        found.clear()
        await app.state.usable.wait()
        assert (await client.get("/fleet/nodes")).status_code == 200
        watching.cancel()
        await asyncio.wait([watching])
