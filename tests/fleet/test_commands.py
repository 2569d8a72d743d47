"""The commands of the fleet, against a server with its controller, as a process, and a real etcd."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from app.api.problems import FLEET_PROBLEMS, PROBLEMS
from app.cli import fleet_options
from app.cli.fleet import COMMANDS
from app.cli.main import cli
from app.client.fleet import FleetClient
from tests.fleet.played_nodes import PlayedNodes, played_nodes
from tests.fleet.serving import Command, Done, command_of, serving, write_config
from tests.fleet_store.cluster import Cluster
from tests.running import Service
from tests.system.fleet_nodes import until

TABLE = """
tables:
  jump_table:
    selector: {role: edge}
    range: 0-15
    entries: {0: pass, 3: drop}
    strategy: {waves: [1, 100%], bake_seconds: 0, deadline: 20}
"""


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[Service]:
    with serving(write_config(cluster, tmp_path)) as service:
        service.wait_for("leads")
        yield service


@pytest.fixture
def jumptable(server: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `jumptable fleet ARGUMENTS`."""
    return command_of(f"unix://{server.socket}", monkeypatch, capsys)


@pytest.fixture
def client(server: Service) -> Iterator[FleetClient]:
    with FleetClient(f"unix://{server.socket}") as client:
        yield client


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[PlayedNodes]:
    """The nodes n1, n2 and n3, which apply everything."""
    with played_nodes(cluster) as nodes:
        nodes.add(("n1", "n2", "n3"))
        yield nodes


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "edge.yaml"
    path.write_text(TABLE)
    return str(path)


def every() -> list[tuple[list[str], click.Command]]:
    group = cli.get_command(click.Context(cli), "fleet")
    assert isinstance(group, click.Group)
    ctx = click.Context(group, info_name="fleet")
    found: list[tuple[list[str], click.Command]] = []
    for section in COMMANDS.values():
        for name in section:
            command = group.get_command(ctx, name)
            assert command is not None
            if isinstance(command, click.Group):
                found += [([name, below], each) for below, each in command.commands.items()]
            else:
                found.append(([name], command))
    return found


class TestHelp:
    @pytest.mark.parametrize(
        ("names", "command"), every(), ids=lambda value: " ".join(value) if isinstance(value, list) else ""
    )
    def test_it_fits_a_screen_and_has_an_example(self, names: list[str], command: click.Command) -> None:
        ctx = click.Context(command, info_name=" ".join(["jumptable fleet", *names]), max_content_width=100)
        text = command.get_help(ctx)
        assert len(text.splitlines()) <= 35
        assert f"jumptable fleet {' '.join(names)}" in text.partition("Example:")[2]

    def test_every_remedy_is_for_a_problem_that_there_is(self) -> None:
        assert fleet_options._REMEDIES.keys() <= PROBLEMS.keys() | FLEET_PROBLEMS.keys()

    def test_seeing_needs_neither_the_service_nor_grpc(self, server: Service) -> None:
        code = (
            "import sys\ntry:\n from app.__main__ import main; main()\nfinally:\n print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "fleet", "status"], capture_output=True, text=True, check=True,
            env={**os.environ, "JUMPTABLE_FLEET_URL": f"unix://{server.socket}"},
        )  # fmt: skip
        modules = {name for line in done.stderr.splitlines() for name in line.split()}
        assert {name.split(".")[1] for name in modules if name.startswith("app.")} <= {"__main__", "cli", "client"}
        assert not {"fastapi", "pydantic", "grpc", "msgspec", "cryptography", "structlog"} & modules


@pytest.mark.usefixtures("nodes")
class TestApply:
    def test_a_table_comes_to_all_nodes_and_apply_waits_for_it(
        self, jumptable: Command, client: FleetClient, file: str
    ) -> None:
        done = jumptable("apply", "-f", file, "-y", "--wait", "--note", "parse v2", status=0)
        assert "jump_table: revision 1 on 3 nodes, in waves of 1 + 2" in done.out
        assert "3 accept it; 6 entries would change" in done.out
        assert "jump_table-1 is complete" in done.out
        assert client.get_rollout("jump_table-1")["states"] == {"applied": 3}
        assert jumptable("status").status == 0
        history = jumptable("history", "--table", "jump_table", status=0).out
        assert "parse v2" in history
        assert "unix:root" in history

    def test_a_rollback_is_exit_1_and_says_which_node_and_why(
        self, jumptable: Command, client: FleetClient, file: str, nodes: PlayedNodes
    ) -> None:
        jumptable("apply", "-f", file, "-y", "--wait", status=0)
        Path(file).write_text(TABLE.replace("pass", "tx"))
        nodes.refuse("n3", "there is no program 'drop'")
        done = jumptable("apply", "-f", file, "-y", "--wait", status=1)
        assert "n3: refuses: there is no program 'drop'" in done.out, "the dry run said so"
        assert "n3: refused: there is no program 'drop'" in done.out
        assert "jump_table-2 is rolled back" in done.out
        told = {each["node"]: each["state"] for each in client.list_rollout_nodes("jump_table-2")["nodes"]}
        assert set(told.values()) == {"back"}
        shown = jumptable("status", "jump_table-2", status=1).out
        assert "rolled back" in shown
        assert "n3" in shown

    def test_for_scripts_there_is_json_and_nothing_else(self, jumptable: Command, file: str) -> None:
        done = jumptable("apply", "-f", file, "-y", "--wait", "-o", "json", status=0)
        answer = json.loads(done.out)
        assert answer["started"][0]["rollout"] == "jump_table-1"
        assert answer["rollouts"][0]["phase"] == "complete"
        assert jumptable("apply", "-f", file, "-y", "-o", "name", status=0).out == "", "all nodes have it already"

    def test_nobody_who_can_be_asked_is_an_error_of_usage(self, jumptable: Command, file: str) -> None:
        done = jumptable("apply", "-f", file, "-o", "json", status=2)
        assert "add --yes" in done.err

    def test_diff_asks_the_nodes_and_exits_with_1_if_something_would_change(
        self, jumptable: Command, file: str, nodes: PlayedNodes
    ) -> None:
        nodes.refuse("n2", "there is no program 'drop'")
        done = jumptable("diff", "-f", file, status=1)
        assert "2 accept it, 1 refuse it; 4 entries would change" in done.out
        assert "on n1, n3:" in done.out
        assert "3  tx → drop" in done.out
        assert jumptable("status", "-o", "name", status=0).out == "", "nothing was written"

    def test_what_status_prints_of_a_table_can_be_applied(
        self, jumptable: Command, client: FleetClient, file: str, tmp_path: Path
    ) -> None:
        jumptable("apply", "-f", file, "-y", "--wait", status=0)
        for form in ("yaml", "json"):
            printed = tmp_path / f"printed.{form}"
            printed.write_text(jumptable("status", "jump_table", "-o", form, status=0).out)
            assert "all nodes have it already" in jumptable("apply", "-f", str(printed), "-y", status=0).out
        changed = yaml.safe_load((tmp_path / "printed.yaml").read_text())
        changed["runs"] = []
        done = jumptable("apply", "-f", "-", "-y", "--wait", stdin=yaml.dump(changed), status=0)
        assert "jump_table-2 is complete" in done.out
        assert client.get_table("jump_table")["runs"] == []

    def test_an_earlier_revision_comes_back(self, jumptable: Command, client: FleetClient, file: str) -> None:
        jumptable("apply", "-f", file, "-y", "--wait", status=0)
        Path(file).write_text(TABLE.replace("pass", "tx"))
        jumptable("apply", "-f", file, "-y", "--wait", status=0)
        done = jumptable("rollout", "jump_table", "1", "-y", "--wait", status=0)
        assert "jump_table-3 is complete" in done.out
        assert client.get_table("jump_table")["same_as"] == 1

    @pytest.mark.slow
    def test_waiting_goes_on_when_the_server_is_another_one(
        self, server: Service, jumptable: Command, file: str, tmp_path: Path
    ) -> None:
        Path(file).write_text(TABLE.replace("bake_seconds: 0", "bake_seconds: 1"))
        command = [sys.executable, "-m", "app", "fleet", "apply", "-f", file, "-y", "--wait"]
        env = {**os.environ, "JUMPTABLE_FLEET_URL": f"unix://{server.socket}", "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as waiting:
            assert waiting.stdout is not None
            while "has started" not in (waiting.stdout.readline() or pytest.fail("it has not started")):
                pass
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(20)
            with serving(tmp_path / "fleet.toml"):
                out, err = waiting.communicate(timeout=60)
        assert waiting.returncode == 0, (out, err)
        assert "jump_table-1 is complete" in out
        assert "cut off" in err


@pytest.mark.usefixtures("nodes")
class TestMoving:
    def test_a_rollout_is_paused_resumed_and_aborted(self, jumptable: Command, client: FleetClient, file: str) -> None:
        Path(file).write_text(TABLE.replace("bake_seconds: 0", "bake_seconds: 600"))
        jumptable("apply", "-f", file, "-y", status=0)
        jumptable("pause", "jump_table-1", "--note", "look", status=0)
        assert client.get_rollout("jump_table-1")["phase"] == "paused"
        assert "look" in jumptable("status", "jump_table-1", status=0).out
        jumptable("resume", "jump_table-1", status=0)
        assert jumptable("abort", "jump_table-1", "-o", "name", status=0).out == "jump_table-1\n"
        until(lambda: client.get_rollout("jump_table-1")["phase"] == "rolled_back")
        done = jumptable("resume", "jump_table-1", status=1)
        assert "`jumptable fleet rollout TABLE REVISION` starts another one" in done.err


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("tables: {}", "it has no table"),
            ("maps: {}", "no mapping of tables"),
            ("tables: {t: {range: 0-1, programs: []}}", "selector is missing"),
            ("tables: {t: {selector: {}, range: 0-1}}", "one of entries, programs and runs"),
            ("tables: {t: {selector: {}, range: 0-1, entries: {x: a}}}", "'x' is no index"),
            ("tables: {t: {selector: {}, range: 0-1, entries: [], x: 1}}", "there is no key 'x'"),
            ("tables: {t: {selector: {}, range: 0-1, programs: []}, t: {}}", "listed twice"),
            ("tables: [", "no YAML"),
        ],
    )
    def test_a_file_that_is_wrong_is_one_line_and_exits_with_2(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, wrong: str
    ) -> None:
        path = tmp_path / "t.yaml"
        path.write_text(text)
        done = command_of("http://127.0.0.1:1", monkeypatch, capsys)("apply", "-f", str(path), "-y", status=2)
        assert wrong in done.err
        assert len(done.err.splitlines()) == 1

    def test_a_server_that_is_not_there_is_exit_3(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        done = command_of(f"unix://{tmp_path}/none.sock", monkeypatch, capsys)("status", status=3)
        assert "JUMPTABLE_FLEET_URL" in done.err

    def test_a_refusal_says_what_to_do_on_the_command_line(self, jumptable: Command, file: str) -> None:
        assert "`jumptable fleet nodes` shows the labels of all" in jumptable("apply", "-f", file, "-y", status=1).err
        assert "`jumptable fleet status` lists them" in jumptable("status", "nope", status=1).err

    def test_names_are_completed_by_asking_the_server(
        self, server: Service, nodes: PlayedNodes, jumptable: Command, file: str
    ) -> None:
        jumptable("apply", "-f", file, "-y", status=0)

        def completed(words: str, word: int) -> list[str]:
            done = subprocess.run(
                [sys.executable, "-m", "app"], capture_output=True, text=True, check=False,
                env={
                    **os.environ, "_JUMPTABLE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word),
                    "JUMPTABLE_FLEET_URL": f"unix://{server.socket}",
                },
            )  # fmt: skip
            return [line.split(",")[1] for line in done.stdout.splitlines()]

        assert completed("jumptable fleet nodes n", 3) == ["n1", "n2", "n3"]
        assert completed("jumptable fleet history --table j", 4) == ["jump_table"]


class TestServer:
    def test_it_stops_at_once_also_with_readers_and_leaves_no_socket(
        self, server: Service, client: FleetClient
    ) -> None:
        with server.client() as http, http.stream("GET", "/fleet/events") as stream:
            assert next(stream.iter_bytes()).startswith(b": after event")
            assert server.stop() == 0
            assert server.socket is not None
            assert not server.socket.exists()

    @pytest.mark.slow
    def test_another_server_takes_over_when_the_one_that_leads_is_killed(
        self, cluster: Cluster, server: Service, tmp_path: Path
    ) -> None:
        (tmp_path / "b").mkdir()
        config = write_config(cluster, tmp_path / "b")
        config.write_text(config.read_text().replace('name = "c1"', 'name = "c2"'))
        with serving(config) as other:
            server.process.send_signal(signal.SIGKILL)
            other.wait_for("the controller leads")
            with other.client() as http:
                assert http.get("/readyz").json()["leader"].startswith("c2")

    @pytest.mark.parametrize(
        ("old", "new", "wrong"),
        [
            ("[etcd]", "[etc]", "etc: there is no such key"),
            ('endpoints = ["', 'endpoints = ["https://', "endpoints.0: is no address of a member of etcd"),
            ("[signing]\n", "[signing]\ncolour = 1\n", "signing.colour: there is no such key; there are: key"),
            ("lease_seconds = 2", "lease_seconds = 0", "controller.lease_seconds"),
            ("socket =", "port = 8090\nsocket =", "serving on TCP needs authentication"),
        ],
    )
    def test_a_mistake_in_the_configuration_is_one_line_and_exits_with_2(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: str, new: str,
        wrong: str,
    ) -> None:  # fmt: skip
        file = tmp_path / "fleet.toml"
        file.write_text(_PLAIN.replace(old, new))
        done = command_of("", monkeypatch, capsys)("serve", "--config", str(file), status=2)
        assert wrong in done.err
        assert str(file) in done.err

    def test_the_configuration_is_shown_with_its_defaults(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "fleet.toml"
        file.write_text(_PLAIN)
        done = command_of("", monkeypatch, capsys)("serve", "--config", str(file), "--show-config", status=0)
        assert json.loads(done.out)["etcd"]["endpoints"] == ["127.0.0.1:2379"]

    def test_a_key_that_is_missing_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "fleet.toml"
        file.write_text(_PLAIN.replace("/x", str(tmp_path)))
        done = command_of("", monkeypatch, capsys)("serve", "--config", str(file), status=1)
        assert "jumptable fleet init makes it" in done.err

    def test_tokens_are_made_for_tables_and_labels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "fleet.toml"
        file.write_text(_PLAIN.replace("/x", str(tmp_path)) + "[tokens]\n")
        run: Callable[..., Done] = command_of("", monkeypatch, capsys)
        options: tuple[Any, ...] = ("--config", str(file))
        made = run("token", "new", *options, "alice", "--role", "writer", "--table", "t", "-l", "role=edge", status=0)
        assert made.out.startswith("jt_")
        listed = run("token", "list", *options, status=0).out
        assert listed == "alice: writer --table t --label role=edge\n"
        assert run("token", "rotate", *options, "alice", status=0).out != made.out
        run("token", "revoke", *options, "alice", status=0)
        assert run("token", "list", *options, status=0).out == ""


_PLAIN = """
[server]
socket = "/x/fleet.sock"
state_dir = "/x/state"
[etcd]
endpoints = ["127.0.0.1:2379"]
ca = "/x/ca.pem"
certificate = "/x/server.pem"
key = "/x/server.key"
[signing]
key = "/x/signing.key"
[controller]
lease_seconds = 2
"""
