"""An attacker controls the listening process: what it can reach, and what keeps working."""

import json
import signal
from pathlib import Path

import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests.running import serve
from tests.system.test_keeper_gone import until

pytestmark = pytest.mark.kernel

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}/ours"]
keep_dir = "{pins}/keep"
[maps.table]
pinned = "{pins}/ours/table"
create = {{ max_entries = 4 }}
[programs.drop]
pinned = "{pins}/ours/drop"
[tokens]
file = "{folder}/tokens.json"
[audit]
file = "{folder}/audit.jsonl"
"""


@pytest.fixture
def folder(bpffs: Path, tmp_path: Path) -> Path:
    """A folder with a configuration and a token file. A program is pinned below `ours`, an array outside."""
    kernel = LinuxKernel()
    (bpffs / "ours").mkdir()
    for fd, path in (
        (kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "theirs"), "theirs"),
        (kernel.prog_load(ProgType.XDP, asm.returns(1), "drop"), "ours/drop"),
    ):
        kernel.obj_pin(fd, str(bpffs / path))
        kernel.close(fd)
    (tmp_path / "tokens.json").write_text("[]")
    (tmp_path / "tokens.json").chmod(0o600)
    (tmp_path / "jumptable.toml").write_text(CONFIG.format(folder=tmp_path, pins=bpffs))
    return tmp_path


def test_compromised_listener_gains_nothing_and_the_keeper_lives(folder: Path, bpffs: Path) -> None:
    secrets = [str(folder / "tokens.json"), "/etc/shadow"]
    first = f"from tests.system import hostile; hostile.attack_on_reopen({str(bpffs / 'theirs')!r}, {secrets!r})"
    with serve(folder / "jumptable.toml", folder / "run/api.sock", first=first) as service, service.client() as client:
        keeper = int(service.wait_for(r'"keeper":(\d+)')[1])
        files = len(list(Path(f"/proc/{keeper}/fd").iterdir()))
        service.process.send_signal(signal.SIGHUP)
        outcome = json.loads(service.wait_for("ATTACK (.*)")[1])
        assert outcome.pop("garbage") == "answered"
        assert {name: number for name, number in outcome.items() if number not in {"EPERM", "EACCES", "EXDEV"}} == {
            "read from the keeper's files": "EINVAL"
        }
        # The keeper lives, and has no more open files than before, as soon as it has opened the configuration anew.
        service.wait_for("the configuration was read anew")
        until(lambda: len(list(Path(f"/proc/{keeper}/fd").iterdir())) == files)
        assert client.put("/maps/table/entries/1", json={"program": "drop"}).status_code == 201
        body = {"pinned": f"{bpffs}/ours/fresh", "create": {"max_entries": 2}}
        assert client.put("/maps/fresh", json=body).status_code == 201
        id_ = client.get("/programs/drop").json()["id"]
        assert client.put("/programs/again", json={"id": id_}).status_code == 201
        assert sorted(each.name for each in (bpffs / "ours").iterdir()) == ["drop", "fresh", "table"]
        assert service.stop() == 0
    assert not Path(f"/proc/{keeper}").exists()
    assert not (folder / "run/api.sock").exists()
