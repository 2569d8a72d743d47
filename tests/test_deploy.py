"""What deploy/ ships agrees with the service that it is for."""

import json
import re
from pathlib import Path

from app.bpf.uapi import Cmd
from app.keeper.keeper import KEPT
from app.settings import Settings, load

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def test_the_seccomp_profile_allows_the_bpf_commands_that_are_used_and_no_other() -> None:
    profile = json.loads((DEPLOY / "seccomp.json").read_text())
    rules = [rule for rule in profile["syscalls"] if "bpf" in rule["names"]]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {rule["action"] for rule in rules} == {"SCMP_ACT_ALLOW"}
    assert {argument["value"] for rule in rules for argument in rule["args"]} == set(Cmd)


def test_the_sample_configuration_is_the_defaults() -> None:
    assert load(DEPLOY / "jumptable.toml") == Settings()


def test_the_unit_and_the_compose_file_give_what_the_service_keeps_and_what_the_start_needs() -> None:
    wanted = {*KEPT, "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"}
    unit = re.search(r"^CapabilityBoundingSet=(.*)$", (DEPLOY / "jumptable.service").read_text(), re.MULTILINE)
    assert unit is not None
    assert set(unit[1].split()) == wanted
    block = (DEPLOY / "compose.yaml").read_text().split("cap_add:")[1].split("security_opt:")[0]
    assert {f"CAP_{name}" for name in re.findall(r"^ +- ([A-Z_]+)", block, re.MULTILINE)} == wanted


def test_the_image_does_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)


def _values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (DEPLOY / unit).read_text(), re.MULTILINE)


def test_the_socket_is_where_the_service_would_listen_itself_and_is_not_open_to_others() -> None:
    assert _values("jumptable.socket", "ListenStream") == [str(Settings().server.socket)]
    [mode] = _values("jumptable.socket", "SocketMode")
    assert int(mode, 8) & 0o007 == 0
    # Else the end of the service takes the socket's folder away.
    assert _values("jumptable.service", "RuntimeDirectoryPreserve") == ["yes"]


def test_the_unit_leaves_writable_what_the_service_writes() -> None:
    settings = Settings().server
    assert _values("jumptable.service", "ReadWritePaths") == [f"-{settings.state_dir}"]
    assert _values("jumptable.service", "BindPaths") == [str(folder) for folder in settings.pin_dirs]
    # It would give the state back to root at each start.
    assert _values("jumptable.service", "StateDirectory") == []


def test_the_unit_has_the_watchdog_and_signals_the_listener_alone() -> None:
    assert _values("jumptable.service", "Type") == ["notify"]
    assert _values("jumptable.service", "WatchdogSec") == ["30"]
    assert _values("jumptable.service", "KillMode") == ["mixed"]
    assert _values("jumptable.service", "RestartPreventExitStatus") == ["2"]


def test_the_script_that_tries_the_units_can_be_run() -> None:
    script = DEPLOY / "try-systemd"
    assert script.stat().st_mode & 0o111 == 0o111
    assert script.read_text().startswith("#!/bin/bash\n")
