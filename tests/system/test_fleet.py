"""A whole fleet as processes: three members of etcd, two servers, 22 nodes. Whatever dies, nothing is lost.

`deploy/try-fleet` tries the same on the real kernel, with nodes in network namespaces that packets cut off.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.client import Refused
from app.client.fleet import FleetClient
from app.client.fleet_answers import FleetRollout
from tests.conftest import kernel_refuses
from tests.fleet.serving import serving, write_config
from tests.fleet_store.cluster import Cluster
from tests.running import Service
from tests.system.fleet_nodes import TABLE, Node, running_nodes, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
REAL = 0 if kernel_refuses() else 2  # nodes on the real kernel, beside 20 with the kernel in memory
COUNT = 20 + REAL
XDP_DROP, XDP_TX = 1, 3
LEASE_SECONDS = 2  # of the controller: see `tests.fleet.serving`
STRATEGY: dict[str, Any] = {
    "waves": [1, 5, "100%"],
    "max_unavailable": COUNT,
    "bake_seconds": 0,
    "confirm_within": 3,
    "deadline": 30,
}


@dataclass
class Fleet:
    """All of it: etcd, the two servers, a client of each, and which of them is asked; the nodes."""

    cluster: Cluster
    servers: list[Service]
    clients: list[FleetClient]
    nodes: list[Node]
    asked: int = 0

    @property
    def client(self) -> FleetClient:
        return self.clients[self.asked]

    @contextmanager
    def clients_of_servers(self) -> Iterator[None]:
        """Connect to both servers, for one test."""
        with ExitStack() as stack:
            self.clients = [stack.enter_context(FleetClient(f"unix://{server.socket}")) for server in self.servers]
            yield

    def start(self, programs: list[str | None], **strategy: Any) -> str:
        """Start a rollout, and return its id."""
        body = {
            "selector": {"match": {"role": "edge"}},
            "range": "0-15",
            "programs": programs,
            "strategy": STRATEGY | strategy,
        }
        started: Any = self.client.put_table(TABLE, body)
        return str(started["rollout"])

    def rollout(self, id_: str) -> FleetRollout:
        return self.client.get_rollout(id_)

    def ends(self, id_: str, phase: str, seconds: float = 30.0) -> FleetRollout:
        """Wait for a phase that a rollout ends in, and return the rollout."""

        def is_so() -> bool:
            try:
                return self.rollout(id_)["phase"] in {"complete", "rolled_back", "rollback_failed", "halted"}
            except Refused as error:
                if error.status != 503:  # etcd has no leader
                    raise
                return False

        until(is_so, seconds, lambda: self.rollout(id_))
        found = self.rollout(id_)
        assert found["phase"] == phase, json.dumps(found, indent=1)
        return found

    def tables(self) -> dict[str, dict[int, str | None]]:
        return {node.name: node.entries() for node in self.nodes}

    def holds(self, programs: list[str | None]) -> bool:
        """Whether all nodes hold these programs in the kernel."""
        wanted = {index: name for index, name in enumerate(programs) if name is not None}
        return all(table == wanted for table in self.tables().values())

    def leads(self) -> str:
        """The name of the controller that leads; empty: none does."""
        return self.client.get_readiness()["leader"] or ""

    def leader(self) -> Service:
        """The server that leads. From now on, the other one is asked."""
        until(self.leads)
        place = int(self.leads()[1]) - 1  # c1-…, c2-…
        self.asked = 1 - place
        return self.servers[place]

    def is_well(self) -> bool:
        nodes = self.client.list_nodes()["nodes"]
        return len(nodes) == COUNT and all(node["state"] == "ready" for node in nodes)


@contextmanager
def _second(config: Path, folder: Path) -> Iterator[Service]:
    text = config.read_text().replace(f"{config.parent}/fleet.sock", f"{folder}/fleet.sock").replace('"c1"', '"c2"')
    (folder / "fleet.toml").write_text(text)
    with serving(folder / "fleet.toml") as server:
        yield server


@pytest.fixture(scope="module")
def whole(etcd_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("fleet")
        for name in ("one", "two"):
            (folder / name).mkdir()
        etcd_cluster.empty()
        config = write_config(etcd_cluster, folder / "one")
        servers = [stack.enter_context(serving(config)), stack.enter_context(_second(config, folder / "two"))]
        nodes = stack.enter_context(running_nodes(etcd_cluster, folder, folder / "one" / "signing.pub", COUNT, REAL))
        fleet = Fleet(etcd_cluster, servers, [], nodes)
        with fleet.clients_of_servers():
            until(fleet.leads)
            for node in nodes:
                fleet.client.put_node(node.name, {"role": "edge"})
                node.start_agent()
            until(fleet.is_well, what=fleet.client.list_nodes)
        yield fleet
        for server in servers:
            server.process.send_signal(signal.SIGCONT)


@pytest.fixture
def fleet(whole: Fleet) -> Iterator[Fleet]:
    """The fleet, as well as it was: what a test has killed or frozen runs again."""
    with whole.clients_of_servers():
        until(whole.leads)
        until(whole.is_well, what=whole.client.list_nodes)
        yield whole
    whole.cluster.repair()
    for server in whole.servers:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGCONT)
    for node in whole.nodes:
        if node.is_agent_gone():
            node.start_agent()
        node.signal_agent(signal.SIGCONT)


def test_a_table_comes_to_all_nodes_in_waves(fleet: Fleet, record_property: Any) -> None:
    began = time.monotonic()
    id_ = fleet.start(["pass", "drop"])
    found = fleet.ends(id_, "complete")
    record_property("seconds", round(time.monotonic() - began, 2))
    assert [wave["size"] for wave in found["waves"]] == [1, 4, COUNT - 5]
    assert [each["wave"] for each in found["history"]] == [0, 1, 2, 2]
    assert fleet.holds(["pass", "drop"])
    assert {each["actor"] for node in fleet.nodes for each in node.changes()} == {"fleet:unix:root"}


@pytest.mark.kernel
def test_packets_of_real_nodes_jump_where_the_fleet_says(fleet: Fleet) -> None:
    real = fleet.nodes[-2:]
    for program, returned in ("tx", XDP_TX), ("drop", XDP_DROP):
        fleet.ends(fleet.start(["pass", program]), "complete")
        assert [node.run_packet(1) for node in real] == [returned, returned]
    fleet.ends(fleet.start(["pass", "not-there"]), "rolled_back")
    assert [node.run_packet(1) for node in real] == [XDP_DROP, XDP_DROP]


def test_a_canary_that_refuses_keeps_the_others_as_they_are(fleet: Fleet, record_property: Any) -> None:
    before, changes = fleet.tables(), [len(node.changes()) for node in fleet.nodes]
    began = time.monotonic()
    found = fleet.ends(fleet.start(["pass", "not-there"]), "rolled_back")
    record_property("seconds", round(time.monotonic() - began, 2))
    assert found["failures"][0]["node"] == "edge-01"
    assert found["failures"][0]["code"] == "program-not-found"
    assert fleet.tables() == before
    assert [len(node.changes()) for node in fleet.nodes] == changes


def test_a_node_that_cuts_itself_off_in_wave_2_brings_all_back_and_the_history_says_why(fleet: Fleet) -> None:
    """The agent is frozen right after the change, as if that had cut it off. The service takes the change back."""
    before = fleet.tables()
    cut_off = fleet.nodes[2]
    cut_off.signal_agent(signal.SIGKILL)
    until(cut_off.is_agent_gone)
    cut_off.start_agent("after change", signal.SIGSTOP)
    until(fleet.is_well)
    id_ = fleet.start(["tx", "tx"])
    until(cut_off.is_agent_frozen)
    until(lambda: cut_off.changes()[-1]["kind"] == "expire", what=cut_off.changes)
    assert cut_off.entries() == before[cut_off.name]  # without the agent
    cut_off.signal_agent(signal.SIGCONT)
    found = fleet.ends(id_, "rolled_back")
    assert [failure["node"] for failure in found["failures"]] == [cut_off.name]
    assert found["failures"][0]["state"] == "reverted"
    assert fleet.tables() == before
    reasons = [each["note"] for each in fleet.client.list_history(table=TABLE, limit=3)]
    assert any(cut_off.name in each and "not confirmed within 3 s" in each for each in reasons), reasons
    assert "waiting" in {each["state"] for each in fleet.client.list_rollout_nodes(id_)["nodes"]}  # wave 3 was not told


@pytest.mark.parametrize("fuse", ["after change", "after confirm"])
def test_agent_that_is_killed_and_comes_back_goes_on_with_its_change(fleet: Fleet, fuse: str) -> None:
    node = fleet.nodes[3]
    node.signal_agent(signal.SIGKILL)
    until(node.is_agent_gone)
    node.start_agent(fuse)
    until(fleet.is_well)
    programs: list[str | None] = ["count", "drop"] if fuse == "after change" else ["drop", "count"]
    made = len(node.changes())
    id_ = fleet.start(programs, confirm_within=30)
    until(node.is_agent_gone)
    node.start_agent()
    fleet.ends(id_, "complete")
    assert fleet.holds(programs)
    assert len(node.changes()) == made + 1


def test_leader_that_is_frozen_is_replaced_and_changes_nothing_when_it_wakes(fleet: Fleet) -> None:
    old = fleet.leader().process
    id_ = fleet.start(["pass", "pass"], bake_seconds=1)
    until(lambda: fleet.rollout(id_)["wave"] == 1)
    old.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    fleet.ends(id_, "complete")
    assert time.monotonic() - began < LEASE_SECONDS + 2 + 10
    assert fleet.holds(["pass", "pass"])
    tag = fleet.rollout(id_)["etag"]
    old.send_signal(signal.SIGCONT)
    second = fleet.ends(fleet.start(["pass", "tx"]), "complete")
    assert second["phase"] == "complete"
    assert fleet.rollout(id_)["etag"] == tag
    assert fleet.holds(["pass", "tx"])


def test_leader_that_is_killed_in_mid_rollout_loses_nothing(fleet: Fleet, record_property: Any) -> None:
    leader = fleet.leader().process
    id_ = fleet.start(["count", "count"], bake_seconds=0.5)
    until(lambda: fleet.rollout(id_)["wave"] == 1)
    leader.kill()
    began = time.monotonic()
    found = fleet.ends(id_, "complete")
    record_property("seconds after the kill", round(time.monotonic() - began, 2))
    assert fleet.holds(["count", "count"])
    assert [each["wave"] for each in found["history"]] == [0, 1, 2, 2]  # each wave was opened once


def test_quorum_lost_changes_no_entry_and_the_rollout_goes_on_when_it_is_back(fleet: Fleet) -> None:
    id_ = fleet.start(["drop", "drop"], bake_seconds=1)
    until(lambda: fleet.rollout(id_)["wave"] == 1)
    until(lambda: fleet.rollout(id_)["waves"][1]["states"].get("applied", 0) == 4)
    for member in fleet.cluster.members[:2]:
        member.kill()
    tables = fleet.tables()
    until(lambda: not fleet.client.get_readiness()["ready"])
    until(lambda: not any(node.told()["connected"] for node in fleet.nodes), what=fleet.nodes[0].told)
    assert fleet.tables() == tables
    for member in fleet.cluster.members[:2]:
        member.start()
    fleet.ends(id_, "complete")
    assert fleet.holds(["drop", "drop"])
    until(lambda: all(node.told()["connected"] for node in fleet.nodes))


def test_nodes_say_themselves_that_etcd_is_away_and_keep_what_they_have(fleet: Fleet) -> None:
    tables = fleet.tables()
    for member in fleet.cluster.members:
        member.freeze()
    until(lambda: not any(node.told()["connected"] for node in fleet.nodes))
    assert fleet.tables() == tables
    for member in fleet.cluster.members:
        member.thaw()
    until(lambda: all(node.told()["connected"] for node in fleet.nodes))
    assert fleet.tables() == tables
