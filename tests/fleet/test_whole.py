"""All parts together: etcd, a server with its controller, two agents as processes, and the services of two nodes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.client.fleet import FleetClient
from tests.agent.conftest import Service
from tests.fleet.serving import Command, command_of, serving, write_config
from tests.fleet_store.cluster import Cluster
from tests.running import running
from tests.system.fleet_nodes import until

pytestmark = pytest.mark.slow

TABLE = """
tables:
  jump_table:
    selector: {role: edge}
    range: 8-15
    programs: [pass, drop, PROGRAM]
    strategy:
      waves: [1, 100%]
      bake_seconds: 0
      confirm_within: 20
      checks: [{program: entry, packet: "0900000000000000000000000000", returned: RETURNED}]
"""


@dataclass
class Whole:
    """The fleet: the services of its nodes by name, a client of its server, and its commands."""

    services: dict[str, Service]
    client: FleetClient
    run: Command


@contextmanager
def agent(folder: Path, service: Service) -> Iterator[None]:
    """`jumptable fleet agent` with what `node add` has written. It believes that it is no root."""
    config = folder / "agent.toml"
    text = config.read_text().replace("/etc/jumptable/agent", str(folder))
    more = f'service = "unix://{service.socket}"\nstate_dir = "{folder}/state"\nstatus_file = "{folder}/status.json"\n'
    config.write_text(more + text)
    first = "import os; os.geteuid = lambda: 23456"
    with running("fleet", "agent", "--config", str(config), first=first):
        yield


@pytest.fixture
def whole(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Whole]:
    config = write_config(cluster, tmp_path)
    cluster.write_authority(tmp_path)
    services = {name: Service(tmp_path / f"service-{name}", grant={"entries": ["8-15"]}) for name in ("n1", "n2")}
    with ExitStack() as at_exit:
        server = at_exit.enter_context(serving(config))
        url = f"unix://{server.socket}"
        run = command_of(url, monkeypatch, capsys)
        client = at_exit.enter_context(FleetClient(url))
        for name, service in services.items():
            service.folder.mkdir()
            at_exit.callback(service.stop)
            service.start()
            run("node", "add", name, "-l", "role=edge", "--pki", str(tmp_path), "--out", str(tmp_path / name), status=0)
            at_exit.enter_context(agent(tmp_path / name, service))
        until(lambda: [node["state"] for node in client.list_nodes()["nodes"]] == ["ready", "ready"])
        yield Whole(services, client, run)


def test_a_table_comes_to_the_nodes_and_goes_back_when_one_refuses(whole: Whole, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(TABLE.replace("PROGRAM", "tx").replace("RETURNED", "1"))
    told = whole.run("diff", "-f", str(file), status=1).out
    assert "2 accept it; 6 entries would change" in told, told
    assert whole.services["n1"].entries() == {}, "it was a dry run"
    whole.run("apply", "-f", str(file), "-y", "--wait", "--note", "first", status=0)
    for service in whole.services.values():
        assert service.entries() == {8: "pass", 9: "drop", 10: "tx"}
        assert service.changes()[-1]["actor"] == "fleet:unix:root"

    # A program that no node has.
    file.write_text(TABLE.replace("PROGRAM", "nobody_has_this").replace("RETURNED", "1"))
    refused = whole.run("diff", "-f", str(file), status=1).out
    assert "0 accept it, 2 refuse it" in refused
    assert "nobody_has_this" in refused
    done = whole.run("apply", "-f", str(file), "-y", "--wait", status=1)
    assert "n1: refused" in done.out
    assert "is rolled back" in done.out

    # A check that fails.
    file.write_text(TABLE.replace("PROGRAM", "pass").replace("RETURNED", "7"))
    done = whole.run("apply", "-f", str(file), "-y", "--wait", status=1)
    assert "n1: unhealthy" in done.out
    for service in whole.services.values():
        assert service.entries() == {8: "pass", 9: "drop", 10: "tx"}
    assert whole.run("nodes", "-o", "name", status=0).out == "n1\nn2\n"


def test_what_a_node_has_not_opened_is_refused_before_anything_is_started(whole: Whole, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("tables: {jump_table: {selector: {role: edge}, range: 0-15, programs: []}}")
    done = whole.run("apply", "-f", str(file), "-y", status=1)
    assert "n1: its configuration does not open all entries of 0-15 to the fleet" in done.err
    assert whole.client.list_tables() == []
