"""The configuration of the agent, and what it remembers: mistakes are one line that names file, key and remedy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.agent.settings import SettingsError, load
from app.agent.state import Known, StateError, StateFile
from tests.running import running

TEXT = """
node = "edge-1"
public_keys = ["/etc/jumptable/fleet.pub"]
[etcd]
endpoints = ["etcd-1.example.org:2379", "[2001:db8::1]:2379", "127.0.0.1:2379"]
ca = "/etc/jumptable/ca.pem"
certificate = "/etc/jumptable/node.pem"
key = "/etc/jumptable/node.key"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "agent.toml"
    file.write_text(text)
    return file


def test_defaults_are_those_of_a_node_under_systemd(tmp_path: Path) -> None:
    settings = load(written(tmp_path, TEXT))
    assert settings.service == "unix:///run/jumptable/api.sock"
    assert str(settings.state_dir) == "/var/lib/jumptable-agent"
    assert str(settings.status_file) == "/run/jumptable-agent/status.json"
    assert settings.metrics is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"edge-1"', '"edge 1"', "node: expected `str` matching regex"),
        ('"edge-1"', '"edge-1\\n"', "node: expected `str` matching regex"),
        ('node = "edge-1"', "", "the key node is missing"),
        ("node =", "nod =", "there is no key nod; there are node/public_keys/etcd/service/"),
        ("ca =", "cafile =", "etcd: there is no key cafile; there are endpoints/ca/certificate/key"),
        ("public_keys = [", "public_keys = []\nx = [", "public_keys: expected `array` of length >= 1"),
        ("etcd-1.example.org:2379", "https://etcd-1.example.org:2379", "etcd.endpoints[0]: expected `str` matching"),
        ('"/etc/jumptable/node.key"', '"node.key"', "'node.key' must be an absolute path"),
        ('"/etc/jumptable/node.key"', "3", "etcd.key: expected a path, not 3"),
        ("[etcd]", 'service = "http://127.0.0.1:8080"\n[etcd]', "service: expected `str` matching regex '^unix:///"),
        ("[etcd]", "[etcd", "is not TOML"),
    ],
)
def test_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = written(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(SettingsError) as raised:
        load(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("first", "text", "status", "message"),
    [
        ("", None, 2, "cannot be read: No such file or directory"),
        ("", TEXT, 2, "/etc/jumptable/fleet.pub: No such file or directory"),
        ("", TEXT.replace("/etc/jumptable/fleet.pub", "FOLDER/agent.toml"), 2, "holds no public key"),
        ("import sys; sys.modules['grpc'] = None", TEXT, 2, "pip install 'jumptable[fleet]'"),
        ("import sys; sys.modules['msgspec'] = None", TEXT, 2, "pip install 'jumptable[fleet]'"),
    ],
)
def test_command_ends_with_one_line(tmp_path: Path, first: str, text: str | None, status: int, message: str) -> None:
    if text is not None:
        written(tmp_path, text.replace("FOLDER", str(tmp_path)))
    with running("fleet", "agent", "--config", str(tmp_path / "agent.toml"), first=first) as process:
        assert process.process.wait(30) == status
        [line] = process.output().splitlines()
    assert line.startswith("jumptable: ")
    assert message in line


def test_what_is_remembered_is_there_for_the_next_agent(tmp_path: Path) -> None:
    first = StateFile(tmp_path / "state")
    first.set("a", Known(digest="1", sequence=7, holds=2))
    first.set("b", Known(digest="2"))
    first.set("b", None)
    first.close()
    second = StateFile(tmp_path / "state")
    assert second.tables() == ["a"]
    assert second.get("a") == Known(digest="1", sequence=7, holds=2)
    second.close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_folder_is_for_one_agent(tmp_path: Path) -> None:
    first = StateFile(tmp_path)
    with pytest.raises(StateError, match="another agent runs"):
        StateFile(tmp_path)
    first.close()
    StateFile(tmp_path).close()


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="give the agent's user a folder of its own"):
        StateFile(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', '{"a": {"digest": 3}}', json.dumps({"a": {}})])
def test_damaged_file_is_not_used_and_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    state = StateFile(tmp_path)
    assert state.tables() == []
    assert "damaged" in state.trouble
    state.set("a", Known(digest="1"))
    state.close()


def test_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFile(tmp_path)
    state.set("a", Known(digest="1"))

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("app.agent.state.os.fsync", fails)
        with pytest.raises(OSError, match="No space"):
            state.set("a", Known(digest="2"))
    assert state.get("a") == Known(digest="1")
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["lock", "state.json"]
    state.close()


def test_node_without_a_fleet_needs_none_of_its_packages() -> None:
    missing = "import sys; sys.modules.update(dict.fromkeys(['grpc', 'msgspec', 'google.protobuf', 'cryptography']))"
    uses = "import app.cli.serve, app.cli.status, app.cli.demo, app.cli.check, app.api.app, app.cli.fleet"
    done = subprocess.run([sys.executable, "-c", f"{missing}; {uses}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
