"""From nothing to a fleet with a node: `jumptable fleet init` and `node add`, with the etcd that they describe."""

import asyncio
import os
import re
import shlex
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from app.agent import settings as agent_settings
from app.fleet.pki import Authority, PkiError
from app.fleet_store import keys
from app.fleet_store.documents import NodeFacts
from app.fleet_store.errors import PermissionDenied
from app.fleet_store.etcd import Credentials, Etcd
from app.fleet_store.signatures import Signer, Verifier
from tests.fleet.serving import Command, command_of
from tests.fleet_store.etcd_binary import etcd_binary
from tests.running import running

SECRETS = {"ca.key", "signing.key", "server.key", "root.key"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    return command_of(f"unix://{tmp_path}/fleet.sock", monkeypatch, capsys)


@pytest.fixture
def endpoint() -> str:
    """An address of this process's own on loopback."""
    number = os.getpid() % (1 << 14)
    return f"127.{128 + number // 256}.{number % 256}.1:2379"


@contextmanager
def etcd_as_told(text: str, folder: Path) -> Iterator[None]:
    """Run etcd with the command that `init` prints."""
    told = re.search(r"^  etcd (.*?)\n(?!    )", text, re.DOTALL | re.MULTILINE)
    assert told is not None, text
    words = shlex.split(told[1].replace("\\\n", " ").replace("/var/lib/etcd", str(folder / "data")))
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen([etcd_binary(), *words, "--log-level=warn"], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait(20)


class TestFiles:
    @pytest.mark.parametrize("umask", [0o022, 0o077, 0])
    def test_it_makes_all_files_once_and_keeps_what_is_there(
        self, run: Command, tmp_path: Path, endpoint: str, umask: int
    ) -> None:
        os.umask(umask)
        folder = tmp_path / "fleet"
        first = run("init", str(folder), "-e", endpoint, status=0)
        assert "etcd does not answer yet" in first.out
        names = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert names.keys() >= SECRETS | {"ca.pem", "signing.pub", "server.pem", "root.pem", "fleet.toml"}
        for name in names:
            is_secret = name.endswith(".key")
            assert stat.S_IMODE((folder / name).stat().st_mode) == (0o600 if is_secret else 0o644), name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        again = run("init", str(folder), "-e", endpoint, status=0)
        assert "everything is there already" in again.out
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == names

    def test_certificates_name_users_of_clients_and_hosts_of_members(
        self, run: Command, tmp_path: Path, endpoint: str
    ) -> None:
        run("init", str(tmp_path / "f"), "-e", endpoint, "-e", "etcd2.example.org:2379", status=0)
        for name, user in (("server", "jumptable-fleet"), ("root", "root")):
            certificate = x509.load_pem_x509_certificate((tmp_path / "f" / f"{name}.pem").read_bytes())
            assert [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
        member = x509.load_pem_x509_certificate((tmp_path / "f" / "etcd-etcd2.example.org.pem").read_bytes())
        assert not list(member.subject), "etcd's gateway would be taken for a user"
        names = member.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        assert isinstance(names, x509.SubjectAlternativeName)
        assert names.get_values_for_type(x509.DNSName) == ["etcd2.example.org"]

    def test_what_is_no_address_is_an_error_of_usage(self, run: Command, tmp_path: Path) -> None:
        done = run("init", str(tmp_path / "f"), "-e", "https://10.0.0.1:2379", status=2)
        assert "write HOST:PORT" in done.err
        assert not (tmp_path / "f").exists()

    def test_a_key_of_another_authority_is_refused(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            issued = Authority.create().to_pem()
            (tmp_path / f"{name}.pem").write_bytes(issued.certificate)
            (tmp_path / f"{name}.key").write_bytes(issued.key)
        Authority.read(tmp_path / "a.pem", tmp_path / "a.key")
        with pytest.raises(PkiError, match="is not the key of"):
            Authority.read(tmp_path / "a.pem", tmp_path / "b.key")
        with pytest.raises(PkiError, match="jumptable fleet init makes one"):
            Authority.read(tmp_path / "a.key", tmp_path / "a.key")


@pytest.mark.slow
@pytest.mark.usefixtures("etcd_cluster")  # skipped where there is no etcd
def test_from_nothing_to_a_node_that_may_write_its_own_keys_alone(run: Command, tmp_path: Path, endpoint: str) -> None:
    folder, socket = tmp_path / "fleet", tmp_path / "fleet.sock"
    told = run("init", str(folder), "-e", endpoint, status=0).out
    with etcd_as_told(told, tmp_path):
        deadline = time.monotonic() + 30
        while "etcd has the users of the fleet" not in (done := run("init", str(folder), "-e", endpoint)).out:
            assert time.monotonic() < deadline, (done, (tmp_path / "etcd.log").read_text())
        env = {"JUMPTABLE_SERVER__SOCKET": str(socket), "JUMPTABLE_SERVER__STATE_DIR": str(tmp_path / "state")}
        with running("fleet", "serve", "--config", str(folder / "fleet.toml"), env=env) as service:
            service.wait_for("leads")
            out = tmp_path / "n1"
            options = ("--pki", str(folder), "--out", str(out))
            done = run("node", "add", "n1", "-l", "role=edge", *options, status=0)
            assert "jumptable fleet agent --config" in done.out
            assert "on_behalf = true" in done.out
            assert {file.name for file in out.iterdir()} == {
                "node.pem",
                "node.key",
                "ca.pem",
                "fleet.pub",
                "agent.toml",
            }
            assert stat.S_IMODE((out / "node.key").stat().st_mode) == 0o600
            assert "has something in it" in run("node", "add", "n1", *options, status=2).err

            # What the agent reads.
            text = (out / "agent.toml").read_text().replace("/etc/jumptable/agent", str(out))
            (out / "agent.toml").write_text(text)
            settings = agent_settings.load(out / "agent.toml")
            assert (settings.node, settings.etcd.endpoints) == ("n1", [endpoint])
            signed = Signer.read(folder / "signing.key").sign(b"x", b"y")
            assert Verifier.read(settings.public_keys).document(b"x", signed) == b"y"
            credentials = Credentials.read(settings.etcd.ca, settings.etcd.certificate, settings.etcd.key)

            async def write(node: str) -> None:
                async with Etcd(settings.etcd.endpoints, credentials) as etcd:
                    facts = NodeFacts(version="0.1.0", kernel="6.18", at=time.time())
                    await etcd.put(keys.facts(node), facts.to_bytes())

            asyncio.run(write("n1"))
            with pytest.raises(PermissionDenied):
                asyncio.run(write("n2"))
            assert "role=edge" in run("nodes", status=0).out
            run("node", "label", "n1", "-l", "role=core", "--note", "moved", status=0)
            run("node", "remove", "n1", status=0)
            with pytest.raises(PermissionDenied):
                asyncio.run(write("n1"))
            history = run("history", "--node", "n1", status=0).out
            assert "moved" in history
            assert "node n1 removed" in history
