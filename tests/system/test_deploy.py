"""The files in deploy/ agree with the service."""

import json
import os
import re
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest

from app.access.tokens import TokenFile
from app.agent import settings as agent
from app.agent.status_file import STATUS_FILE
from app.bpf.uapi import Cmd
from app.cli.fleet import COMMANDS
from app.cli.fleet_file import read_fleet_tables
from app.config import Peer, Settings, load
from app.fleet import config as fleet
from app.fleet.api.schemas.requests import PutFleetTable
from app.keeper.process import KEPT

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"


def test_seccomp_profile_allows_exactly_the_used_bpf_commands() -> None:
    profile = json.loads((DEPLOY / "seccomp.json").read_text())
    rules = [rule for rule in profile["syscalls"] if "bpf" in rule["names"]]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {rule["action"] for rule in rules} == {"SCMP_ACT_ALLOW"}
    assert {argument["value"] for rule in rules for argument in rule["args"]} == set(Cmd)


def test_sample_configuration_equals_the_defaults() -> None:
    assert load(DEPLOY / "jumptable.toml") == Settings()


def test_unit_and_compose_file_grant_exactly_the_needed_capabilities() -> None:
    wanted = {*KEPT, "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"}
    unit = re.search(r"^CapabilityBoundingSet=(.*)$", (DEPLOY / "jumptable.service").read_text(), re.MULTILINE)
    assert unit is not None
    assert set(unit[1].split()) == wanted
    block = (DEPLOY / "compose.yaml").read_text().split("cap_add:")[1].split("security_opt:")[0]
    assert {f"CAP_{name}" for name in re.findall(r"^ +- ([A-Z_]+)", block, re.MULTILINE)} == wanted


def test_pods_have_the_needed_capabilities_and_a_seccomp_profile() -> None:
    text = (DEPLOY / "kubernetes" / "daemonset.yaml").read_text()
    added = re.search(r"^ +add: \[(.*)\]$", text, re.MULTILINE)
    assert added is not None
    assert {f"CAP_{name}" for name in added[1].split(", ")} == {*KEPT, "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"}
    for line in (
        "drop: [ALL]",
        "privileged: false",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "type: Localhost",
        "mountPropagation: HostToContainer",
    ):
        assert re.search(rf"^ +{re.escape(line)}$", text, re.MULTILINE), line


def test_configuration_of_the_pods_loads_and_its_files_are_in_volumes() -> None:
    settings = load(DEPLOY / "kubernetes" / "jumptable.toml")
    text = (DEPLOY / "kubernetes" / "daemonset.yaml").read_text()
    mounted = set(re.findall(r"^ +mountPath: (.*)$", text, re.MULTILINE))
    assert {str(settings.server.socket.parent), str(settings.server.state_dir)} <= mounted
    assert {str(settings.token_file().parent), *map(str, settings.server.pin_dirs)} <= mounted
    assert TokenFile(DEPLOY / "kubernetes" / "tokens.json").read() == {}


def test_liveness_probe_equals_the_health_check_of_the_image() -> None:
    check = re.search(r"^    CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    text = (DEPLOY / "kubernetes" / "daemonset.yaml").read_text()
    probe = re.search(r"livenessProbe:.*?- \|\n(.*?)\n +initialDelaySeconds", text, re.DOTALL)
    assert check is not None
    assert probe is not None
    wanted = json.loads(check[1])[-1].replace("\r\n", r"\r\n")
    assert textwrap.dedent(probe[1]).replace("settimeout(4)", "settimeout(2)") == wanted


@pytest.mark.parametrize("name", ["try-clients", "try-containers", "try-kubernetes", "try-systemd"])
def test_try_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(DEPLOY / name, os.X_OK)
    assert subprocess.run(["bash", "-n", DEPLOY / name], check=False).returncode == 0


def test_image_does_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)


def _values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (DEPLOY / unit).read_text(), re.MULTILINE)


def test_socket_unit_has_the_default_path_and_is_closed_to_others() -> None:
    assert _values("jumptable.socket", "ListenStream") == [str(Settings().server.socket)]
    [mode] = _values("jumptable.socket", "SocketMode")
    assert int(mode, 8) & 0o007 == 0
    # Otherwise systemd removes the folder of the socket when the service ends.
    assert _values("jumptable.service", "RuntimeDirectoryPreserve") == ["yes"]


def test_unit_leaves_state_and_pins_writable() -> None:
    settings = Settings().server
    assert _values("jumptable.service", "ReadWritePaths") == [f"-{settings.state_dir}"]
    assert _values("jumptable.service", "BindPaths") == [str(folder) for folder in settings.pin_dirs]
    # With it systemd would give the state to root at each start.
    assert _values("jumptable.service", "StateDirectory") == []


def test_unit_has_a_watchdog_and_signals_only_the_listener() -> None:
    assert _values("jumptable.service", "Type") == ["notify"]
    assert _values("jumptable.service", "WatchdogSec") == ["30"]
    assert _values("jumptable.service", "KillMode") == ["mixed"]
    assert _values("jumptable.service", "RestartPreventExitStatus") == ["2"]
    assert _values("jumptable.service", "ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_units_of_a_fleet_fit_the_defaults_of_the_configurations() -> None:
    server, agents = fleet.load(DEPLOY / "fleet.toml").server, agent.load(DEPLOY / "agent.toml")
    assert (server.socket, server.state_dir) == (fleet.Server().socket, fleet.Server().state_dir)
    assert (agents.state_dir, agents.status_file) == (Path("/var/lib/jumptable-agent"), STATUS_FILE)
    for unit, folder in ("jumptable-fleet", server.socket.parent), ("jumptable-agent", agents.status_file.parent):
        assert _values(f"{unit}.service", "RuntimeDirectory") == [folder.name]
        assert _values(f"{unit}.service", "StateDirectory") == [unit]
        assert _values(f"{unit}.service", "User") == [unit]
        assert _values(f"{unit}.service", "CapabilityBoundingSet") == [""]
        assert _values(f"{unit}.service", "RestartPreventExitStatus") == ["2"]


def test_configuration_of_the_fleet_in_pods_loads() -> None:
    settings = fleet.load(DEPLOY / "kubernetes-fleet" / "fleet.toml")
    assert settings.server.address == ("0.0.0.0", 8443)
    assert settings.authenticates()
    assert settings.tls is not None


def test_try_fleet_is_executable() -> None:
    assert os.access(DEPLOY / "try-fleet", os.X_OK)  # the type checker reads it as well


def test_examples_of_the_page_about_fleets_are_accepted() -> None:
    page = (DEPLOY / "FLEET.md").read_text()
    [tables] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [body] = read_fleet_tables(tables, "edge.yaml").values()
    strategy = PutFleetTable.model_validate(body).strategy
    assert strategy is not None
    assert strategy.confirm_within == 60
    [peers] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    rule = tomllib.loads(peers)["peers"]["fleet"]
    assert Peer.model_validate({**rule, "user": 10002}).on_behalf


def test_commands_of_the_page_about_fleets_exist() -> None:
    page = (DEPLOY / "FLEET.md").read_text()
    named = set(re.findall(r"jumptable fleet ([a-z]+)", page))
    assert named
    assert named <= {name for section in COMMANDS.values() for name in section}


def test_tests_named_in_the_threat_model_exist() -> None:
    named = re.findall(r"`(tests/[^`]*)`", (DEPLOY / "THREATS.md").read_text() + (DEPLOY / "FLEET.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
