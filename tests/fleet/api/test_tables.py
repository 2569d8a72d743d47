"""Tables of a fleet over HTTP, against a real etcd."""

import asyncio

import httpx
import pytest

from app.fleet_store import keys
from app.fleet_store.documents import Phase, Plan, Rollout
from app.fleet_store.etcd import Etcd
from app.fleet_store.specification import ProgramName, Run, Specification
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem

pytestmark = pytest.mark.anyio


class TestPut:
    async def test_a_put_starts_a_rollout_over_all_nodes_that_match(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1", "n2", "n3")
        await nodes.add("core", labels={"role": "core"})
        answer = await client.put(f"{TABLE}?note=first", json=BODY)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == "/fleet/rollouts/jump_table-1"
        assert answer.json()["waves"] == [["n1"], ["n2", "n3"]]
        rollout = (await client.get(answer.headers["location"])).json()
        assert (rollout["phase"], rollout["states"], rollout["reason"]) == ("progressing", {"waiting": 3}, "first")
        assert (await client.get(TABLE)).json()["rollout"] == "jump_table-1"

    async def test_the_table_in_etcd_is_what_was_asked_for(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        item = await etcd.get(keys.plan("jump_table-1"))
        assert item is not None
        assert Plan.from_bytes(item.value).max_unavailable == 2
        table = (await client.get(TABLE)).json()
        assert table["runs"] == [
            {"first": 0, "last": 1, "program": {"name": "pass", "tags": []}},
            {"first": 3, "last": 3, "program": {"name": "drop", "tags": []}},
        ]
        assert (table["range"], table["selector"]["match"]) == ("0-15", {"role": "edge"})

    async def test_what_get_answers_can_be_put_back_and_changes_nothing(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        table = await client.get(TABLE)
        again = await client.put(TABLE, json=table.json(), headers={"If-Match": table.headers["etag"]})
        assert (again.status_code, again.json()["rollout"]) == (200, None), again.text
        assert again.headers["etag"] == table.headers["etag"]

    async def test_the_same_table_again_after_a_rollback_is_a_new_rollout(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        await nodes.finish("jump_table-1", Phase.ROLLED_BACK)
        assert (await client.put(TABLE, json=BODY)).json()["rollout"] == "jump_table-2"

    async def test_runs_may_come_in_any_order_and_leave_gaps(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        runs = [{"first": 9, "last": 9, "program": "b"}, {"first": 2, "last": 3, "program": {"name": "a", "tags": []}}]
        body = {**BODY, "runs": runs}
        del body["programs"]
        assert (await client.put(TABLE, json=body)).status_code == 202
        told = [(run["first"], run["last"], run["program"]["name"]) for run in (await client.get(TABLE)).json()["runs"]]
        assert told == [(2, 3, "a"), (9, 9, "b")]

    async def test_base_is_what_each_node_is_to_hold_so_far(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1", "n2")
        await client.put(TABLE, json=BODY)
        stored = await etcd.get(keys.rollout("jump_table-1"))
        assert stored is not None
        packed = Specification(0, 15, (Run(0, 15, ProgramName("pass")),)).to_bytes()
        rollout = rollout_of(stored.value)
        await nodes.desire("n1", rollout, packed)
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        await client.put(TABLE, json={**BODY, "programs": ["drop"]})
        plan = await etcd.get(keys.plan("jump_table-2"))
        assert plan is not None
        assert Plan.from_bytes(plan.value).base == {"n1": 1}

    async def test_two_writers_at_the_same_time_start_one_rollout(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1")
        answers = await asyncio.gather(*(client.put(TABLE, json={**BODY, "programs": [name]}) for name in "abcd"))
        assert sorted(each.status_code for each in answers) == [202, 409, 409, 409]
        lost = next(each for each in answers if each.status_code == 409)
        assert assert_problem(lost, 409, "rollout-in-progress")["rollout"] == "jump_table-1"


def rollout_of(value: bytes) -> Rollout:
    return Rollout.from_bytes(value)
