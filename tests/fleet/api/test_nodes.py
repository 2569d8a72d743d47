"""Nodes over HTTP: labels, the rights in etcd, and what nodes say."""

import time
from typing import Any

import httpx
import pytest

from app.fleet_store import keys
from app.fleet_store.documents import OpenMap, Rollout, TableState
from app.fleet_store.errors import PermissionDenied
from app.fleet_store.etcd import Etcd
from app.fleet_store.specification import Run, Specification
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem
from tests.fleet_store.cluster import Cluster

pytestmark = pytest.mark.anyio

NODE = "/fleet/nodes/n1"
EDGE = {"labels": {"role": "edge"}}


class TestPut:
    async def test_a_node_is_added_once_and_its_labels_are_changed(self, client: httpx.AsyncClient) -> None:
        added = await client.put(f"{NODE}?note=new", json=EDGE)
        assert (added.status_code, added.headers["location"]) == (201, NODE), added.text
        assert (added.json()["user"], added.json()["state"], added.json()["by"]) == ("n1", "away", "tcp:127.0.0.1")
        again = await client.put(NODE, json=added.json())
        assert (again.status_code, again.headers["etag"]) == (200, added.headers["etag"]), "what GET answers, sent back"
        changed = await client.put(NODE, json={"labels": {"role": "core"}}, headers={"If-Match": added.headers["etag"]})
        assert (changed.status_code, changed.json()["labels"]) == (200, {"role": "core"})
        stale = await client.put(NODE, json=EDGE, headers={"If-Match": added.headers["etag"]})
        assert assert_problem(stale, 412, "precondition-failed")["current"] == {"etag": changed.headers["etag"]}
        assert_problem(await client.put(NODE, json=EDGE, headers={"If-None-Match": "*"}), 412, "precondition-failed")

    async def test_its_user_may_read_and_write_its_own_keys_and_no_others(
        self, client: httpx.AsyncClient, cluster: Cluster
    ) -> None:
        await client.put(NODE, json=EDGE)
        await client.put("/fleet/nodes/n2", json=EDGE)
        async with cluster.client("n1") as node:
            await node.put(keys.facts("n1"), b"{}")
            assert not (await node.range(keys.desired("n1"))).items
            for wrong in (node.put(keys.facts("n2"), b"{}"), node.put(keys.desired_table("n1", "t"), b"{}")):
                with pytest.raises(PermissionDenied):
                    await wrong
            for prefix in (keys.desired("n2"), keys.status("n2"), keys.NODES, keys.PREFIX):
                with pytest.raises(PermissionDenied):
                    await node.range(prefix)

    async def test_another_user_takes_the_rights_of_the_one_before(
        self, client: httpx.AsyncClient, cluster: Cluster, etcd: Etcd
    ) -> None:
        await client.put(NODE, json=EDGE)
        await client.put(NODE, json={**EDGE, "user": "n1-b"})
        assert await etcd.user_roles("n1") is None
        async with cluster.client("n1-b") as node:
            await node.put(keys.facts("n1"), b"{}")
        await client.delete(NODE)

    async def test_a_dry_run_adds_nothing(self, client: httpx.AsyncClient, etcd: Etcd) -> None:
        answer = await client.put(f"{NODE}?dry_run=true", json=EDGE)
        assert (answer.status_code, answer.headers["dry-run"]) == (201, "true")
        assert_problem(await client.get(NODE), 404, "node-unknown")
        assert await etcd.user_roles("n1") is None

    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ({}, "body.labels"),
            ({"labels": {"": "x"}}, "body.labels"),
            ({"labels": {"x": "y" * 64}}, "body.labels"),
            ({"labels": {str(i): "" for i in range(65)}}, "body.labels"),
            ({"labels": {}, "user": "../n2"}, "body.user"),
            ({"labels": {}, "colour": 1}, "body.colour"),
        ],
    )
    async def test_what_is_no_node_is_refused(
        self, client: httpx.AsyncClient, body: dict[str, Any], place: str
    ) -> None:
        problem = assert_problem(await client.put(NODE, json=body), 422, "validation")
        assert problem["errors"][0]["loc"].startswith(place)


class TestDelete:
    async def test_a_removed_node_can_read_and_write_nothing_any_more(
        self, client: httpx.AsyncClient, cluster: Cluster, etcd: Etcd
    ) -> None:
        await client.put(NODE, json=EDGE)
        async with cluster.client("n1", patience=0.5) as node:
            await node.put(keys.facts("n1"), b"{}")
            assert (await client.delete(f"{NODE}?dry_run=true")).status_code == 204
            assert (await client.get(NODE)).status_code == 200
            assert (await client.delete(f"{NODE}?note=broken")).status_code == 204
            assert not (await etcd.range(keys.status("n1"))).items
            with pytest.raises(PermissionDenied):
                await node.put(keys.facts("n1"), b"{}")
        assert_problem(await client.get(NODE), 404, "node-unknown")
        assert_problem(await client.delete(NODE), 404, "node-unknown")
        history = (await client.get("/fleet/history?node=n1")).json()["actions"]
        assert [(each["what"], each["note"]) for each in history] == [("node_deleted", "broken"), ("node", "")]

    async def test_a_node_that_a_rollout_goes_to_stays(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        assert assert_problem(await client.delete(NODE), 409, "node-in-use")["rollout"] == "jump_table-1"


class TestReading:
    async def test_the_state_of_a_node_follows_from_what_it_says(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        async def state() -> str:
            return str((await client.get(NODE)).json()["state"])

        await nodes.add("n1", alive=False)
        assert await state() == "away"
        await nodes.come("n1", ready=False, detail="the keeper has ended")
        assert await state() == "unready"
        await nodes.come("n1")
        assert await state() == "ready"
        await client.put(TABLE, json=BODY)
        item = await etcd.get(keys.rollout("jump_table-1"))
        assert item is not None
        seen = await nodes.desire(
            "n1", Rollout.from_bytes(item.value), Specification(0, 0, (Run(0, 0, None),)).to_bytes()
        )
        assert await state() == "changing"
        for said, state_then in (
            (TableState.UNCONFIRMED, "changing"),
            (TableState.APPLIED, "ready"),
            (TableState.DRIFTED, "failed"),
        ):
            await nodes.answer("n1", seen, said, revision=1, indexes=(3,))
            assert await state() == state_then
        table = (await client.get(NODE)).json()["tables"][0]
        assert (table["table"], table["revision"], table["wanted"], table["state"], table["indexes"]) == (
            "jump_table", 1, 1, "drifted", [3],
        )  # fmt: skip

    async def test_facts_tell_what_is_open_to_the_fleet(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await nodes.come("n1", maps=(OpenMap(name="jump_table", max_entries=64, ranges=((8, 63), (3, 3))),))
        facts = (await client.get(NODE)).json()["facts"]
        assert facts["maps"] == [{"name": "jump_table", "max_entries": 64, "ranges": ["8-63", "3"]}]
        assert (facts["version"], facts["kernel"], facts["ready"]) == ("0.1.0", "6.18", True)

    async def test_nodes_are_listed_by_labels_and_state_and_in_pages(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("a", "b", labels={"role": "edge", "site": "fra"})
        await nodes.add("c", labels={"role": "edge", "site": "a=b"}, alive=False)
        await nodes.add("d", labels={"role": "core"})

        async def names(query: str) -> list[str]:
            return [each["node"] for each in (await client.get(f"/fleet/nodes?{query}")).json()["nodes"]]

        assert await names("") == ["a", "b", "c", "d"]
        assert await names("label=role=edge") == ["a", "b", "c"]
        assert await names("label=role=edge,site=fra") == ["a", "b"]
        assert await names("label=site=a=b") == ["c"]
        assert await names("state=away") == ["c"]
        page = (await client.get("/fleet/nodes?limit=2")).json()
        assert page["next"] == "b"
        assert await names("after=b&limit=2") == ["c", "d"]
        for query in ("label=role", "state=happy", "limit=0"):
            assert_problem(await client.get(f"/fleet/nodes?{query}"), 422, "validation")


async def test_a_clock_of_a_node_that_is_wrong_changes_nothing_but_what_is_shown(
    client: httpx.AsyncClient, nodes: Nodes
) -> None:
    await nodes.add("n1")
    await nodes.come("n1", at=time.time() + 10 * 365 * 86_400)
    assert (await client.get(NODE)).json()["state"] == "ready"
    assert (await client.put(TABLE, json=BODY)).status_code == 202
