"""Rollouts over HTTP: how far they are, and what a person may do to them."""

import asyncio

import httpx
import pytest

from app.fleet_store import keys
from app.fleet_store.documents import Phase, Rollout, TableState
from app.fleet_store.etcd import Etcd
from app.fleet_store.operations import put, unchanged
from app.fleet_store.specification import ProgramName, Run, Specification
from tests.fleet.api.conftest import BODY, TABLE, Nodes, assert_problem

pytestmark = pytest.mark.anyio

ROLLOUT = "/fleet/rollouts/jump_table-1"
PACKED = Specification(0, 15, (Run(0, 15, ProgramName("pass")),)).to_bytes()


@pytest.fixture
async def rollout(client: httpx.AsyncClient, nodes: Nodes, etcd: Etcd) -> Rollout:
    """A rollout over n1, then n2, n3 and n4, that has just started."""
    await nodes.add("n1", "n2", "n3", "n4")
    assert (await client.put(TABLE, json=BODY)).status_code == 202
    item = await etcd.get(keys.rollout("jump_table-1"))
    assert item is not None
    return Rollout.from_bytes(item.value)


class TestReading:
    async def test_the_state_of_each_node_follows_from_what_is_desired_and_what_it_says(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout
    ) -> None:
        await nodes.answer("n1", await nodes.desire("n1", rollout, PACKED), TableState.APPLIED, change=7)
        await nodes.answer(
            "n2", await nodes.desire("n2", rollout, PACKED), TableState.REFUSED, code="program-not-found", detail="none"
        )
        await nodes.answer("n3", 1, TableState.APPLIED)  # of what was desired before
        await nodes.desire("n3", rollout, PACKED)
        await nodes.go("n4")
        told = (await client.get(f"{ROLLOUT}/nodes")).json()["nodes"]
        assert [(each["node"], each["wave"], each["state"], each["alive"]) for each in told] == [
            ("n1", 0, "applied", True),
            ("n2", 1, "refused", True),
            ("n3", 1, "told", True),
            ("n4", 1, "waiting", False),
        ]
        assert (told[0]["change"], told[1]["code"], told[1]["detail"]) == (7, "program-not-found", "none")
        whole = (await client.get(ROLLOUT)).json()
        assert whole["states"] == {"applied": 1, "refused": 1, "told": 1, "waiting": 1}
        assert whole["waves"] == [
            {"size": 1, "states": {"applied": 1}},
            {"size": 3, "states": {"refused": 1, "told": 1, "waiting": 1}},
        ]
        assert whole["away"] == 1

    async def test_nodes_that_are_set_back_say_so(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout
    ) -> None:
        await nodes.answer("n1", await nodes.desire("n1", rollout, PACKED, undo=True), TableState.APPLIED)
        await nodes.desire("n2", rollout, PACKED, undo=True)
        await nodes.answer("n3", await nodes.desire("n3", rollout, PACKED, undo=True), TableState.REFUSED)
        told = (await client.get(f"{ROLLOUT}/nodes")).json()["nodes"]
        assert [each["state"] for each in told] == ["back", "going_back", "refused", "waiting"]

    async def test_nodes_are_listed_by_state_and_in_pages(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout
    ) -> None:
        await nodes.desire("n2", rollout, PACKED)
        page = (await client.get(f"{ROLLOUT}/nodes?state=waiting&limit=2")).json()
        assert ([each["node"] for each in page["nodes"]], page["next"]) == (["n1", "n3"], "n3")
        page = (await client.get(f"{ROLLOUT}/nodes?state=waiting&limit=2&after=n3")).json()
        assert ([each["node"] for each in page["nodes"]], page["next"]) == (["n4"], None)
        assert_problem(await client.get(f"{ROLLOUT}/nodes?state=happy"), 422, "validation")

    async def test_garbage_of_a_node_makes_no_other_node_look_bad(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout, etcd: Etcd
    ) -> None:
        await nodes.answer("n1", await nodes.desire("n1", rollout, PACKED), TableState.APPLIED)
        for key in (
            keys.table_status("n2", "jump_table"),
            keys.facts("n2"),
            keys.alive("n2"),
            keys.status("n2") + "x/",
        ):
            await etcd.put(key, b'{"state": "applied", "seen": -1}')
        told = (await client.get(f"{ROLLOUT}/nodes")).json()["nodes"]
        assert [each["state"] for each in told] == ["applied", "waiting", "waiting", "waiting"]
        assert (await client.get("/fleet/nodes/n2")).json()["state"] == "unready"
        assert (await client.get("/fleet/nodes")).status_code == 200

    async def test_rollouts_are_listed_newest_first_by_table_and_phase(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout
    ) -> None:
        await nodes.finish("jump_table-1", Phase.COMPLETE)
        await client.put(TABLE, json={**BODY, "programs": []})
        told = (await client.get("/fleet/rollouts")).json()["rollouts"]
        assert [(each["id"], each["phase"]) for each in told] == [
            ("jump_table-2", "progressing"),
            ("jump_table-1", "complete"),
        ]
        told = (await client.get("/fleet/rollouts?phase=complete")).json()["rollouts"]
        assert [each["id"] for each in told] == ["jump_table-1"]
        assert (await client.get("/fleet/rollouts?table=other")).json()["rollouts"] == []

    async def test_what_is_no_rollout_is_told(self, client: httpx.AsyncClient, rollout: Rollout) -> None:
        assert_problem(await client.get("/fleet/rollouts/jump_table-9"), 404, "rollout-unknown")
        assert_problem(await client.get("/fleet/rollouts/jump_table-9/nodes"), 404, "rollout-unknown")
        assert_problem(await client.post("/fleet/rollouts/jump_table-9/abort"), 404, "rollout-unknown")
        assert_problem(await client.get("/fleet/rollouts/nonsense"), 422, "validation")


class TestMoving:
    async def test_a_rollout_is_paused_resumed_and_aborted_and_its_history_says_by_whom(
        self, client: httpx.AsyncClient, rollout: Rollout
    ) -> None:
        for step, phase in (("pause", "paused"), ("resume", "progressing"), ("abort", "rolling_back")):
            answer = await client.post(f"{ROLLOUT}/{step}?note=because")
            assert (answer.status_code, answer.json()["phase"]) == (200, phase), answer.text
            again = await client.post(f"{ROLLOUT}/{step}")
            assert (again.status_code, again.json()["etag"]) == (200, answer.json()["etag"]), "it is so already"
        history = (await client.get("/fleet/history")).json()["actions"]
        assert [(each["phase"], each["note"]) for each in history[:3]] == [
            ("rolling_back", "because"),
            ("progressing", "because"),
            ("paused", "because"),
        ]
        assert {each["by"] for each in history} == {"tcp:127.0.0.1"}

    async def test_an_aborted_rollout_does_not_go_on(self, client: httpx.AsyncClient, rollout: Rollout) -> None:
        await client.post(f"{ROLLOUT}/abort")
        for step in ("pause", "resume"):
            problem = assert_problem(await client.post(f"{ROLLOUT}/{step}"), 409, "rollout-phase-conflict")
            assert problem["phase"] == "rolling_back"

    @pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED])
    async def test_a_rollout_that_has_ended_stays_so(
        self, client: httpx.AsyncClient, nodes: Nodes, rollout: Rollout, phase: Phase
    ) -> None:
        await nodes.finish("jump_table-1", phase)
        for step in ("pause", "resume", "abort"):
            problem = assert_problem(await client.post(f"{ROLLOUT}/{step}"), 409, "rollout-finished")
            assert problem["phase"] == phase

    async def test_a_dry_run_says_the_same_and_changes_nothing(
        self, client: httpx.AsyncClient, rollout: Rollout
    ) -> None:
        answer = await client.post(f"{ROLLOUT}/pause?dry_run=true")
        assert (answer.status_code, answer.headers["dry-run"]) == (200, "true")
        assert answer.json()["phase"] == "progressing"
        assert_problem(await client.post(f"{ROLLOUT}/pause?dry_run=maybe"), 422, "validation")

    async def test_a_person_wins_against_a_controller_that_writes_all_the_time(
        self, client: httpx.AsyncClient, etcd: Etcd, rollout: Rollout
    ) -> None:
        key, stop = keys.rollout("jump_table-1"), asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                item = await etcd.get(key)
                assert item is not None
                if Rollout.from_bytes(item.value).phase is Phase.PROGRESSING:
                    await etcd.commit([unchanged(key, item.mod_revision)], [put(key, item.value)])
                await asyncio.sleep(0.01)

        writing = asyncio.create_task(write())
        answer = await client.post(f"{ROLLOUT}/abort")
        stop.set()
        await writing
        assert answer.json()["phase"] == "rolling_back"
        assert (await client.get(ROLLOUT)).json()["phase"] == "rolling_back"
