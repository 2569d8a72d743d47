"""Tables of a fleet over HTTP, against a real etcd."""

import asyncio
import secrets
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.fleet.api import dry_runs
from app.fleet_store import keys
from app.fleet_store.documents import DesiredTable, DryRunAnswer, OpenMap, Phase, Plan, Rollout
from app.fleet_store.etcd import Etcd
from app.fleet_store.signatures import DRY_RUN, Verifier
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


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "place"),
        [
            ({"range": "63-8"}, "body.range"),
            ({"range": "0-4294967296"}, "body.range"),
            ({"range": f"0-{1 << 20}"}, "body.range"),
            ({"programs": ["pass"] * 17}, "body"),
            ({"programs": None}, "body"),
            ({"runs": []}, "body"),
            ({"programs": None, "runs": [{"first": 3, "last": 2, "program": "pass"}]}, "body"),
            (
                {"programs": None, "runs": [{"first": i, "last": 5, "program": "pass"} for i in (2, 4)]},
                "body",
            ),
            ({"programs": None, "runs": [{"first": 3, "last": 16, "program": "pass"}]}, "body"),
            ({"programs": ["a/b"]}, "body.programs.0"),
            ({"programs": [{"name": "a", "tags": ["x"]}]}, "body.programs.0.tags.0"),
            ({"selector": {"role": "edge"}}, "body.selector.match"),
            ({"selector": {"match": {"role": 1}}}, "body.selector.match.role"),
            ({"strategy": {"waves": [1]}}, "body.strategy"),
            ({"strategy": {"waves": ["110%", "100%"]}}, "body.strategy.waves.0"),
            ({"strategy": {"waves": [0, "100%"]}}, "body.strategy"),
            ({"strategy": {"max_unavailable": 0}}, "body.strategy.max_unavailable"),
            ({"strategy": {"on_failure": "ignore"}}, "body.strategy.on_failure"),
            ({"strategy": {"checks": [{"program": "entry"}]}}, "body.strategy.checks.0"),
            ({"strategy": {"checks": [{"metric": "up"}]}}, "body.strategy.checks.0"),
            (
                {"strategy": {"checks": [{"program": "e", "packet": "0b", "returned": 1}]}},
                "body.strategy.checks.0.packet",
            ),
            ({"colour": "red"}, "body.colour"),
        ],
    )
    async def test_a_malformed_table_is_refused_and_nothing_is_written(
        self, client: httpx.AsyncClient, etcd: Etcd, change: dict[str, Any], place: str
    ) -> None:
        answer = await client.put(TABLE, json={**BODY, **change})
        errors = assert_problem(answer, 422, "validation")["errors"]
        assert place in {each["loc"] for each in errors}
        assert not (await etcd.range(keys.PREFIX)).items

    async def test_a_member_that_is_given_twice_is_refused(self, client: httpx.AsyncClient) -> None:
        body = b'{"selector": {"match": {}}, "range": "0-1", "programs": [], "range": "0-2"}'
        answer = await client.put(TABLE, content=body, headers={"Content-Type": "application/json"})
        assert assert_problem(answer, 422, "validation")["errors"][0]["loc"] == "body.range"

    async def test_a_table_beyond_512_kib_in_compact_form_is_refused(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1")
        names = [secrets.token_hex(16) for _ in range(40_000)]
        answer = await client.put(TABLE, json={**BODY, "range": "0-39999", "programs": names})
        assert_problem(answer, 422, "spec-too-large")
        assert not (await etcd.range(keys.TABLES)).items

    async def test_a_large_table_with_few_programs_is_taken(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await nodes.come("n1", maps=(OpenMap(name="jump_table", max_entries=65_536),))
        programs = [secrets.choice(["parse", "drop", "pass"]) for _ in range(65_536)]
        answer = await client.put(TABLE, json={**BODY, "range": "0-65535", "programs": programs})
        assert answer.status_code == 202, answer.text
        runs = (await client.get(TABLE)).json()["runs"]
        assert [run["program"]["name"] for run in runs for _ in range(run["first"], run["last"] + 1)] == programs

    async def test_a_body_beyond_8_mib_is_refused(self, client: httpx.AsyncClient) -> None:
        answer = await client.put(TABLE, json={**BODY, "programs": ["x" * 64] * 130_000})
        assert_problem(answer, 413, "body-too-large")

    async def test_a_selector_that_no_node_has_is_refused(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1", labels={"role": "core"})
        problem = assert_problem(await client.put(TABLE, json=BODY), 422, "no-node-matches")
        assert problem["selector"] == {"role": "edge"}
        assert "role=edge" in problem["detail"]

    async def test_more_nodes_away_than_may_be_unavailable_are_refused(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1", "n2")
        await nodes.add("n3", "n4", "n5", alive=False)
        problem = assert_problem(await client.put(TABLE, json=BODY), 422, "nodes-not-ready")
        assert [each["node"] for each in problem["nodes"]] == ["n3", "n4", "n5"]
        assert problem["count"] == 3

    async def test_a_fleet_of_which_all_nodes_are_away_is_refused(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1", alive=False)
        assert_problem(await client.put(TABLE, json=BODY), 422, "nodes-not-ready")

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            ({"maps": ()}, "does not open the map"),
            ({"maps": (OpenMap(name="jump_table", max_entries=8),)}, "8 entries only"),
            ({"maps": (OpenMap(name="jump_table", max_entries=16, ranges=((0, 7), (9, 15))),)}, "does not open all"),
            ({"ready": False, "detail": "the keeper has ended"}, "the keeper has ended"),
        ],
    )
    async def test_a_node_that_would_refuse_by_its_own_facts_is_named(
        self, client: httpx.AsyncClient, nodes: Nodes, facts: dict[str, Any], reason: str
    ) -> None:
        await nodes.add("n1", "n2")
        await nodes.come("n2", **facts)
        problem = assert_problem(await client.put(TABLE, json=BODY), 422, "nodes-not-ready")
        assert [each["node"] for each in problem["nodes"]] == ["n2"]
        assert reason in problem["nodes"][0]["reason"]

    async def test_ranges_that_touch_open_all_of_them(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await nodes.come("n1", maps=(OpenMap(name="jump_table", max_entries=16, ranges=((8, 15), (0, 7))),))
        assert (await client.put(TABLE, json=BODY)).status_code == 202

    async def test_a_table_with_a_rollout_is_not_changed(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        for method, path, body in (
            ("PUT", TABLE, {**BODY, "programs": []}),
            ("DELETE", TABLE, None),
            ("POST", "/fleet/rollouts", {"table": "jump_table", "revision": 1}),
        ):
            problem = assert_problem(await client.request(method, path, json=body), 409, "rollout-in-progress")
            assert problem["rollout"] == "jump_table-1"

    async def test_conditions_that_do_not_hold_change_nothing(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        assert_problem(await client.put(TABLE, json=BODY, headers={"If-Match": "*"}), 412, "precondition-failed")
        assert (await client.put(TABLE, json=BODY, headers={"If-None-Match": "*"})).status_code == 202
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        etag = (await client.get(TABLE)).headers["etag"]
        for headers in ({"If-Match": '"1"'}, {"If-None-Match": etag}, {"If-None-Match": "*"}):
            for method in ("PUT", "DELETE"):
                answer = await client.request(method, TABLE, json=BODY if method == "PUT" else None, headers=headers)
                assert assert_problem(answer, 412, "precondition-failed")["current"] == {"etag": etag}
        assert_problem(await client.put(TABLE, json=BODY, headers={"If-Match": "1"}), 400, "malformed-header")

    async def test_names_and_parameters_are_checked(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.put("/fleet/tables/a%2Fb", json=BODY), 422, "validation")
        assert_problem(await client.put(f"{TABLE}?dryrun=true", json=BODY), 422, "validation")
        assert_problem(await client.get("/fleet/tables/nope"), 404, "table-unknown")
        assert_problem(await client.get("/fleet/tables/nope/revisions"), 404, "table-unknown")
        assert_problem(await client.get("/fleet/table"), 404, "not-found")
        assert_problem(await client.post(TABLE), 405, "method-not-allowed")


class TestReading:
    async def test_a_get_is_304_while_the_table_is_the_same(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        etag = (await client.get(TABLE)).headers["etag"]
        assert (await client.get(TABLE, headers={"If-None-Match": etag})).status_code == 304
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        await client.put(TABLE, json={**BODY, "programs": []})
        assert (await client.get(TABLE, headers={"If-None-Match": etag})).status_code == 200

    async def test_revisions_are_listed_in_pages_with_who_and_why(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1")
        for number in range(1, 4):
            await client.put(f"{TABLE}?note=n{number}", json={**BODY, "programs": [f"p{number}"]})
            await nodes.finish(f"jump_table-{number}", Phase.COMPLETE)
        page = (await client.get(f"{TABLE}/revisions?limit=2")).json()
        assert [(each["revision"], each["note"]) for each in page["revisions"]] == [(3, "n3"), (2, "n2")]
        assert page["revisions"][0]["by"] == "tcp:127.0.0.1"
        rest = (await client.get(f"{TABLE}/revisions?before={page['next']}")).json()
        assert ([each["revision"] for each in rest["revisions"]], rest["next"]) == ([1], None)

    async def test_a_deleted_table_leaves_the_nodes_alone_and_keeps_its_history(
        self, client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        stored = await etcd.get(keys.rollout("jump_table-1"))
        assert stored is not None
        await nodes.desire("n1", rollout_of(stored.value), Specification(0, 0, (Run(0, 0, None),)).to_bytes())
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        assert (await client.delete(f"{TABLE}?dry_run=true")).headers["dry-run"] == "true"
        assert (await client.get(TABLE)).status_code == 200
        assert (await client.delete(f"{TABLE}?note=gone")).status_code == 204
        assert_problem(await client.get(TABLE), 404, "table-unknown")
        assert await etcd.get(keys.desired_table("n1", "jump_table")) is None
        assert len((await client.get(f"{TABLE}/revisions")).json()["revisions"]) == 1
        history = (await client.get("/fleet/history?table=jump_table")).json()["actions"]
        assert (history[0]["what"], history[0]["note"]) == ("table_deleted", "gone")
        assert (await client.put(TABLE, json=BODY)).json()["rollout"] == "jump_table-2"


class TestGoingBack:
    async def test_an_earlier_revision_comes_again_as_a_new_one(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        for number, program in enumerate(("old", "new"), 1):
            await client.put(TABLE, json={**BODY, "programs": [program]})
            await nodes.finish(f"jump_table-{number}", Phase.COMPLETE)
        body = {"table": "jump_table", "revision": 1}
        answer = await client.post("/fleet/rollouts?note=back", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == "/fleet/rollouts/jump_table-3"
        table = answer.json()["table"]
        assert (table["revision"], table["same_as"], table["note"]) == (3, 1, "back")
        assert table["runs"][0]["program"]["name"] == "old"

    async def test_the_newest_revision_comes_to_a_node_that_was_added(
        self, client: httpx.AsyncClient, nodes: Nodes
    ) -> None:
        await nodes.add("n1")
        await client.put(TABLE, json=BODY)
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        body = {"table": "jump_table", "revision": 1}
        assert (await client.post("/fleet/rollouts", json=body)).json()["rollout"] is None
        await nodes.add("n2")
        assert (await client.post("/fleet/rollouts", json=body)).json()["waves"] == [["n1"], ["n2"]]

    async def test_what_is_not_there_cannot_be_gone_back_to(self, client: httpx.AsyncClient, nodes: Nodes) -> None:
        await nodes.add("n1")
        body = {"table": "jump_table", "revision": 1}
        assert_problem(await client.post("/fleet/rollouts", json=body), 404, "table-unknown")
        await client.put(TABLE, json=BODY)
        answer = await client.post("/fleet/rollouts", json={**body, "revision": 7})
        assert assert_problem(answer, 404, "revision-unknown")["revision"] == 7


class Agents:
    """Agents that answer dry runs."""

    def __init__(self, nodes: Nodes, verifier: Verifier, answers: dict[str, dict[str, Any]]) -> None:
        self._nodes, self._verifier, self._answers = nodes, verifier, answers
        self.asked: dict[str, DesiredTable] = {}

    async def run(self, after: int) -> None:
        async for events in self._nodes.etcd.watch(keys.DESIRED, after):
            for event in events.events:
                node = keys.node_of(event.key)
                if event.item is None or event.key.split("/")[-2] != "dry_runs":
                    continue
                self.asked[node] = DesiredTable.from_bytes(self._verifier.document(DRY_RUN, event.item.value))
                if node in self._answers:
                    answer = DryRunAnswer(seen=event.item.mod_revision, at=time.time(), **self._answers[node])
                    await self._nodes.write(keys.dry_run_answer(node, keys.last_part(event.key)), answer)


class TestDryRun:
    async def test_each_node_is_asked_and_nothing_is_written(
        self, client: httpx.AsyncClient, nodes: Nodes, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dry_runs, "ANSWER_SECONDS", 1.0)
        monkeypatch.setattr(dry_runs.dry_run, "__defaults__", (1.0,))
        await nodes.add("n1", "n2", "n3", "n4")
        await nodes.go("n4")
        answers: dict[str, dict[str, Any]] = {
            "n1": {"accepted": True, "changed": 2, "diff": ((0, None, "pass"), (3, "tx", "drop"))},
            "n2": {"accepted": False, "code": "program-not-found", "detail": "there is no program 'drop'"},
        }
        agents = Agents(nodes, app.state.signer.verifier(), answers)
        before = await nodes.etcd.range(keys.PREFIX)
        running = asyncio.create_task(agents.run(before.revision))
        answer = await client.put(f"{TABLE}?dry_run=true&note=why", json=BODY)
        running.cancel()
        await asyncio.wait([running])
        assert (answer.status_code, answer.headers["dry-run"]) == (200, "true"), answer.text
        told = answer.json()
        assert (told["revision"], told["waves"]) == (1, [["n1"], ["n2", "n3", "n4"]])
        assert {each["node"]: each["answer"] for each in told["nodes"]} == {
            "n1": "accepts",
            "n2": "refuses",
            "n3": "silent",
            "n4": "away",
        }
        assert (told["accepts"], told["refuses"], told["silent"], told["away"], told["changed"]) == (1, 1, 1, 1, 2)
        assert told["nodes"][0]["diff"] == [
            {"index": 0, "before": None, "after": "pass"},
            {"index": 3, "before": "tx", "after": "drop"},
        ]
        assert told["nodes"][1]["code"] == "program-not-found"
        assert set(agents.asked) == {"n1", "n2", "n3"}
        assert agents.asked["n1"].by == "tcp:127.0.0.1"
        assert Specification.from_bytes(agents.asked["n1"].specification or b"").programs() == [
            ProgramName("drop"),
            ProgramName("pass"),
        ]
        after = await nodes.etcd.range(keys.PREFIX)
        left = {key for key in after.items.keys() - before.items.keys() if "/status/" not in key}
        assert left == set(), "questions hang on a lease, which has ended"
        assert not (await nodes.etcd.range(keys.TABLES)).items

    async def test_an_answer_that_nobody_asked_for_does_not_count(
        self, client: httpx.AsyncClient, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dry_runs.dry_run, "__defaults__", (0.5,))
        monkeypatch.setattr(secrets, "token_hex", lambda _: "feed")
        await nodes.add("n1")
        asking = asyncio.create_task(client.put(f"{TABLE}?dry_run=true", json=BODY))
        key = keys.desired_dry_run("n1", "feed")
        while (question := await nodes.etcd.get(key)) is None:
            await asyncio.sleep(0)
        old = DryRunAnswer(seen=question.mod_revision - 1, accepted=True, at=time.time())
        await nodes.write(keys.dry_run_answer("n1", "feed"), old)
        await nodes.etcd.put(keys.dry_run_answer("n2", "feed"), b"garbage")
        assert (await asking).json()["silent"] == 1
