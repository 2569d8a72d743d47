"""Agents that are killed or frozen at each step, a store that is away, a service that restarts: nothing is lost."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.fleet_store import accounts, keys
from app.fleet_store.documents import NodeFacts, PacketCheck, TableState
from tests import running
from tests.agent.conftest import NODE, TABLE, Fleet, Node, until
from tests.agent.fuse import STEPS
from tests.agent.process import agent_process

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
APPLIED, REVERTED, UNHEALTHY = TableState.APPLIED, TableState.REVERTED, TableState.UNHEALTHY
BAD_CHECK = PacketCheck(program="entry", packet="03" + 13 * "00", returned=77)
USUAL = [name for name in STEPS if name not in {"revert", "unhealthy"}]
POINTS = [f"{when} {name}" for name in USUAL for when in ("before", "after")]
# From here to there the change waits for its confirmation.
WAITING = POINTS[POINTS.index("after change") : POINTS.index("after confirm")]
UNHEALTHY_POINTS = [f"{when} {name}" for name in ("checks", "revert", "unhealthy") for when in ("before", "after")]


@pytest.fixture
async def bare(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose agent does not run yet."""
    node = Node(fleet, tmp_path / NODE)
    try:
        node.service.start()
        yield node
    finally:
        await node.stop()


def fuse(point: str, number: signal.Signals) -> str:
    return f"from tests.agent.fuse import blow; blow({point!r}, {int(number)})"


async def until_frozen(process: running.Service) -> None:
    async def is_frozen() -> bool:
        fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] == "T"

    await until(is_frozen)


@pytest.mark.parametrize("point", POINTS)
async def test_agent_that_was_killed_is_followed_by_one_that_finishes(fleet: Fleet, bare: Node, point: str) -> None:
    bare.service.set(3, "tx")
    seen = await fleet.want({3: "drop"})
    with agent_process(bare, fuse(point, signal.SIGKILL)) as process:
        assert await asyncio.to_thread(process.process.wait, 30) == -signal.SIGKILL
    bare.start_agent()
    assert (await fleet.said(seen)).state is APPLIED
    assert bare.service.entries() == {3: "drop"}
    made = [each for each in bare.service.changes() if (each["note"] or "").startswith("fleet ")]
    assert [each["state"] for each in made] == ["confirmed"], "it is made once"


@pytest.mark.parametrize("point", UNHEALTHY_POINTS)
async def test_agent_that_was_killed_at_a_failed_check_leaves_nothing_behind(
    fleet: Fleet, bare: Node, point: str
) -> None:
    bare.service.set(3, "tx")
    seen = await fleet.want({3: "drop"}, checks=(BAD_CHECK,))
    with agent_process(bare, fuse(point, signal.SIGKILL)) as process:
        assert await asyncio.to_thread(process.process.wait, 30) == -signal.SIGKILL
    bare.start_agent()
    assert (await fleet.said(seen)).state is UNHEALTHY

    async def is_back() -> bool:
        return bare.service.entries() == {3: "tx"}

    await until(is_back)


@pytest.mark.parametrize("point", POINTS)
async def test_agent_that_was_frozen_finishes_or_says_that_the_change_was_undone(
    fleet: Fleet, bare: Node, point: str
) -> None:
    bare.service.set(3, "tx")
    with agent_process(bare, fuse(point, signal.SIGSTOP)) as process:
        seen = await fleet.want({3: "drop"}, confirm_within=1)
        await until_frozen(process)

        async def is_undone() -> bool:
            return any(each["state"] == "expired" for each in bare.service.changes())

        if point in WAITING:
            await until(is_undone)
            assert bare.service.entries() == {3: "tx"}, "the service needs no agent for it"
        process.process.send_signal(signal.SIGCONT)
        status = await fleet.said(seen)
    assert status.state is (REVERTED if point in WAITING else APPLIED)
    assert bare.service.entries() == {3: "tx" if point in WAITING else "drop"}


async def test_frozen_agent_is_away_until_it_goes_on(fleet: Fleet, bare: Node) -> None:
    async def is_alive() -> bool:
        return await fleet.etcd.get(keys.alive(NODE)) is not None

    async def is_away() -> bool:
        return not await is_alive()

    with agent_process(
        bare, "from app.agent import agent; agent.LEASE_SECONDS = 2; agent._RENEW_SECONDS = 0.5"
    ) as process:
        await until(is_alive)
        process.process.send_signal(signal.SIGSTOP)
        await until(is_away)
        process.process.send_signal(signal.SIGCONT)
        await until(is_alive)
        assert (await fleet.said(await fleet.want({3: "drop"}))).state is APPLIED
        assert await asyncio.to_thread(process.stop) == 0
    await until(is_away)


async def test_node_that_cuts_itself_off_gets_its_table_back(fleet: Fleet, node: Node) -> None:
    """The change arrives, the store is gone right after it, and comes back later."""
    node.service.set(3, "tx")
    seen = await fleet.want({3: "pass"})
    await fleet.said(seen)
    members = fleet.cluster.members
    change = node.service.changes()[-1]["id"]

    async def is_waiting() -> bool:
        return any(each["id"] > change and each["state"] == "unconfirmed" for each in node.service.changes())

    async def is_undone() -> bool:
        return any(each["id"] > change and each["state"] == "expired" for each in node.service.changes())

    teller = node.agent._teller
    tell = teller.tell

    async def cut_off(table: str, status: object) -> None:
        for member in members:
            member.freeze()
        await tell(table, status)  # type: ignore[arg-type]

    try:
        teller.tell = cut_off  # type: ignore[method-assign]
        seen = await fleet.want({3: "drop"}, confirm_within=2)
        await until(is_waiting)
        await until(is_undone)
        assert node.service.entries() == {3: "pass"}
    finally:
        teller.tell = tell  # type: ignore[method-assign]
        for member in members:
            member.thaw()
    status = await fleet.said(seen)
    assert (status.state, status.code, status.revision) == (REVERTED, "not-confirmed", 1)


class TestStore:
    async def test_nothing_changes_while_the_store_is_away_and_the_node_says_so(self, fleet: Fleet, node: Node) -> None:
        seen = await fleet.want({3: "drop"})
        await fleet.said(seen)

        async def is_connected() -> bool:
            return bool(node.report["connected"])

        async def is_disconnected() -> bool:
            return not node.report["connected"]

        await until(is_connected)
        for member in fleet.cluster.members:
            member.kill()
        try:
            await until(is_disconnected)
            report = node.report
            assert report["error"]
            assert report["tables"][TABLE]["state"] == "applied"
            node.service.set(4, "pass")  # the node goes on by itself
            assert node.service.entries() == {3: "drop", 4: "pass"}
        finally:
            fleet.cluster.repair()
        await until(is_connected)
        assert (await fleet.said(seen, TableState.DRIFTED)).indexes == (4,), "what has happened meanwhile is told"
        assert (await fleet.said(await fleet.want({3: "tx"}))).state is APPLIED

    @pytest.mark.parametrize("how", ["kill", "freeze"])
    async def test_agent_goes_on_with_another_member(self, fleet: Fleet, node: Node, how: str) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        for number, member in enumerate(fleet.cluster.members):
            getattr(member, how)()
            try:
                program = ("pass", "tx", "drop")[number]
                assert (await fleet.said(await fleet.want({3: program}))).state is APPLIED
            finally:
                fleet.cluster.repair()

    async def test_agent_that_slept_through_a_compaction_sees_the_newest(self, fleet: Fleet, bare: Node) -> None:
        with agent_process(bare) as process:
            await fleet.said(await fleet.want({3: "drop"}))
            process.process.send_signal(signal.SIGSTOP)
            for member in fleet.cluster.members:  # its watches do not outlive them, so nothing waits in its sockets
                member.kill()
                fleet.cluster.repair()
            for program in ("pass", "tx"):
                await fleet.want({3: program})
            seen = await fleet.want({3: "pass"})
            await fleet.etcd.compact(seen)
            process.process.send_signal(signal.SIGCONT)
            assert (await fleet.said(seen)).state is APPLIED
        assert bare.service.entries() == {3: "pass"}
        changes = [each for each in bare.service.changes() if each["kind"] == "update"]
        assert len(changes) == 2, "what was never seen is never made"

    async def test_certificate_of_another_node_is_of_no_use(self, fleet: Fleet, bare: Node) -> None:
        await accounts.add_node(fleet.etcd, "edge-2", "edge-2")
        try:
            bare.user = "edge-2"
            bare.start_agent()
            seen = await fleet.want({3: "drop"})

            async def is_refused() -> bool:
                return "permission denied" in bare.report["error"]

            await until(is_refused)
            assert not bare.report["connected"]
            await bare.stop_agent()
            assert await fleet.status() is None
            assert bare.service.changes() == []
            bare.user = NODE
            bare.start_agent()
            assert (await fleet.said(seen)).state is APPLIED
        finally:
            await accounts.remove_node(fleet.etcd, "edge-2", "edge-2")

    async def test_store_that_lets_nodes_write_the_keys_of_others_is_not_used(
        self, fleet: Fleet, bare: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.agent.members._version", lambda *_: "3.5.16")
        bare.start_agent()
        await fleet.want({3: "drop"})

        async def is_refused() -> bool:
            return "upgrade it" in bare.report["error"]

        await until(is_refused)
        assert bare.service.changes() == []


class TestNode:
    async def test_wrong_clock_does_not_matter(self, fleet: Fleet, bare: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time
        for shift in (-60 * 365 * 86_400, 60 * 365 * 86_400):
            clock = SimpleNamespace(time=lambda shift=shift: now() + shift, monotonic=time.monotonic)
            for module in ("agent", "table"):
                monkeypatch.setattr(f"app.agent.{module}.time", clock)
            bare.start_agent()
            status = await fleet.said(await fleet.want({3: "drop" if shift < 0 else "pass"}))
            assert status.state is APPLIED
            assert status.at >= 0
            await bare.stop_agent()

    async def test_node_restored_from_an_image_of_last_week_gets_what_is_desired(
        self, fleet: Fleet, node: Node
    ) -> None:
        """Its table, its journal and what its agent remembers are old; the store is not."""
        await fleet.said(await fleet.want({3: "drop"}))
        await node.stop_agent()
        image = (node.settings.state_dir / "state.json").read_bytes()
        node.start_agent()
        seen = await fleet.want({3: "pass"})
        await fleet.said(seen)
        await node.stop()
        (node.settings.state_dir / "state.json").write_bytes(image)
        for file in node.folder.glob("journal/*"):
            file.unlink()
        node.service.start()
        node.start_agent()

        async def has_it() -> bool:
            return node.service.entries() == {3: "pass"}

        await until(has_it)
        assert (await fleet.said(seen)).state is APPLIED

    async def test_node_restored_from_an_image_does_not_forget_a_no(self, fleet: Fleet, node: Node) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        await node.stop_agent()
        image = (node.settings.state_dir / "state.json").read_bytes()
        node.start_agent()
        seen = await fleet.want({3: "pass"}, checks=(BAD_CHECK,))
        said = await fleet.said(seen)
        await node.stop()
        (node.settings.state_dir / "state.json").write_bytes(image)
        for file in node.folder.glob("journal/*"):
            file.unlink()
        node.service.start()
        node.service.set(3, "drop")
        node.start_agent()

        async def has_looked() -> bool:
            return TABLE in node.report["tables"] and node.report["tables"][TABLE]["seen"] == seen

        await until(has_looked)
        assert await fleet.status() == said
        assert node.service.entries() == {3: "drop"}

    async def test_damaged_file_of_what_the_agent_remembers_is_told_and_stops_nothing(
        self, fleet: Fleet, node: Node
    ) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        await node.stop_agent()
        (node.settings.state_dir / "state.json").write_bytes(b"{")
        node.start_agent()
        assert (await fleet.said(await fleet.want({3: "pass"}))).state is APPLIED

        async def is_told() -> bool:
            return any("damaged" in each for each in node.report["warnings"])

        await until(is_told)

    async def test_service_that_is_away_is_waited_for(self, fleet: Fleet, node: Node) -> None:
        node.service.stop()
        seen = await fleet.want({3: "drop"})

        async def is_told() -> bool:
            item = await fleet.etcd.get(keys.facts(NODE))
            return item is not None and not NodeFacts.from_bytes(item.value).ready

        async def is_stuck() -> bool:
            return TABLE in node.report["troubles"]

        await until(is_stuck)
        assert await fleet.status() is None, "that the service is away is no answer of the node"
        node.service.start()
        assert (await fleet.said(seen)).state is APPLIED
        node.agent._facts_due.set()

        async def is_ready() -> bool:
            item = await fleet.etcd.get(keys.facts(NODE))
            return item is not None and NodeFacts.from_bytes(item.value).ready

        await until(is_ready)

    async def test_frozen_service_is_waited_for(self, fleet: Fleet, node: Node) -> None:
        await fleet.said(await fleet.want({3: "drop"}))
        assert node.service.process is not None
        os.kill(node.service.process.pid, signal.SIGSTOP)
        try:
            seen = await fleet.want({3: "pass"})
            await asyncio.sleep(1)
            assert (await fleet.status()).seen < seen  # type: ignore[union-attr]
        finally:
            os.kill(node.service.process.pid, signal.SIGCONT)
        assert (await fleet.said(seen)).state is APPLIED

    async def test_newer_table_takes_the_place_of_one_that_waits(self, fleet: Fleet, bare: Node) -> None:
        with agent_process(bare, fuse("after change", signal.SIGSTOP)) as process:
            await fleet.want({3: "drop"}, confirm_within=600)
            await until_frozen(process)
            seen = await fleet.want({3: "pass"})
            process.process.kill()
        bare.start_agent()
        assert (await fleet.said(seen)).state is APPLIED
        assert bare.service.entries() == {3: "pass"}
        states = [each["state"] for each in bare.service.changes() if each["kind"] == "update"]
        assert states == ["reverted", "confirmed"]

    async def test_second_agent_of_a_node_does_not_start(self, fleet: Fleet, node: Node) -> None:
        with agent_process(node) as process:
            assert await asyncio.to_thread(process.process.wait, 30) == 1
            assert "another agent runs" in process.output()
