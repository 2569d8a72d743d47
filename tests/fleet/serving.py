"""A server of the fleet as a process, and the commands on it in this process."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.cli.main import run
from app.fleet_store.signatures import Signer
from tests.fleet_store.cluster import Cluster
from tests.running import Service, running


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


def write_config(cluster: Cluster, folder: Path, more: str = "") -> Path:
    """Write the configuration of a server below a folder, and return its path."""
    files = cluster.files("fleet")
    key = folder / "signing.key"
    signer = Signer.generate()
    key.write_bytes(signer.to_pem())
    (folder / "signing.pub").write_bytes(signer.verifier().to_pem())
    endpoints = ", ".join(f'"{each}"' for each in cluster.endpoints)
    file = folder / "fleet.toml"
    file.write_text(f"""
[server]
socket = "{folder}/fleet.sock"
state_dir = "{folder}/state"
[etcd]
endpoints = [{endpoints}]
ca = "{files.ca}"
certificate = "{files.certificate}"
key = "{files.key}"
[signing]
key = "{key}"
[controller]
name = "c1"
lease_seconds = 2
{more}
""")
    return file


@contextmanager
def serving(config: Path) -> Iterator[Service]:
    """Run `jumptable fleet serve`, and wait until it answers."""
    with running("fleet", "serve", "--config", str(config)) as service:
        service.socket = config.parent / "fleet.sock"
        service.wait_for("serving")
        yield service


def command_of(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs `jumptable fleet ARGUMENTS` against a server."""

    def jumptable(*arguments: str, stdin: str = "", status: int | None = None) -> Done:
        monkeypatch.setattr(sys, "argv", ["jumptable", "fleet", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("JUMPTABLE_FLEET_URL", url)
        with pytest.raises(SystemExit) as ended:
            run()
        shown = capsys.readouterr()
        done = Done(int(ended.value.code or 0), shown.out, shown.err)
        assert status in {None, done.status}, done
        return done

    return jumptable
