"""Three members of etcd with mutual TLS and users, on loopback, in a folder of their own. They end with the tests."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import trustme

from app.fleet_store import accounts, keys
from app.fleet_store.etcd import Credentials, Etcd
from app.fleet_store.operations import delete_prefix
from tests.fleet_store.etcd_binary import etcd_binary

_START_SECONDS = 40.0
_clusters = itertools.count()  # of this process
_STARTER = ThreadPoolExecutor(max_workers=1)  # lives as long as the process
_SERVER = "fleet"  # the user of `jumptable fleet serve`


@dataclass(frozen=True)
class CredentialFiles:
    """The files that a process of the fleet is configured with."""

    ca: Path
    certificate: Path
    key: Path

    def read(self) -> Credentials:
        return Credentials.read(self.ca, self.certificate, self.key)


class Member:
    """One etcd process, which a test may kill, freeze and start again."""

    def __init__(self, name: str, folder: Path, arguments: list[str], endpoint: str, metrics: str) -> None:
        self.endpoint = endpoint
        self._name, self._folder, self._arguments, self._metrics = name, folder, arguments, metrics
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # The kernel ends it when the thread that has started it ends, so that nothing is left however the tests end.
        command = ["setpriv", "--pdeathsig", "KILL", *self._arguments]
        with (self._folder / f"{self._name}.log").open("ab") as log:
            starting = _STARTER.submit(subprocess.Popen, command, stdout=log, stderr=log, cwd=self._folder)
            self.process = starting.result()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, frozen or not."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(30)
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def is_healthy(self) -> bool:
        """Whether it answers and sees a leader."""
        if self.process is None:
            return False
        try:
            return bool(json.loads(self._get("/health"))["health"] == "true")
        except (OSError, ValueError):
            return False

    def metrics(self) -> dict[str, float]:
        lines = (line for line in self._get("/metrics").splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def cpu_seconds(self) -> float:
        """What the process has computed so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self._metrics}{path}", timeout=2) as answer:
            return bytes(answer.read()).decode()


class Cluster:
    """The members, and certificates for whoever connects to them."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        addresses = _addresses(size)
        server = self._ca.issue_cert(*addresses, "127.0.0.1")  # members also look where their peers come from
        server.private_key_pem.write_to_path(str(folder / "server.key"))
        (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        clients, peers, metrics = ([f"{address}:{port}" for address in addresses] for port in (2379, 2380, 2381))
        every_peer = ",".join(f"member{number}=https://{peer}" for number, peer in enumerate(peers))
        tls = {"cert-file": "server.pem", "key-file": "server.key", "trusted-ca-file": "ca.pem"}
        options = {
            "initial-cluster": every_peer,
            "logger": "zap",
            "log-level": "warn",
            "bcrypt-cost": "4",
            **tls,
            **{f"peer-{name}": file for name, file in tls.items()},
        }
        self.members = [
            Member(
                f"member{number}",
                folder,
                [
                    str(etcd_binary()),
                    f"--name=member{number}",
                    f"--data-dir=data{number}",
                    f"--listen-client-urls=https://{client}",
                    f"--advertise-client-urls=https://{client}",
                    f"--listen-peer-urls=https://{peer}",
                    f"--initial-advertise-peer-urls=https://{peer}",
                    f"--listen-metrics-urls=http://{metric}",
                    "--client-cert-auth",
                    "--peer-client-cert-auth",
                    "--unsafe-no-fsync",  # what a killed process has written is not lost
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                client,
                f"http://{metric}",
            )
            for number, (client, peer, metric) in enumerate(zip(clients, peers, metrics, strict=True))
        ]

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def files(self, user: str) -> CredentialFiles:
        """A certificate for this user, and the files around it."""
        certificate, key = self._folder / f"user-{user}.pem", self._folder / f"user-{user}.key"
        if not certificate.exists():
            issued = self._ca.issue_cert(f"{user}.invalid", common_name=user)
            issued.private_key_pem.write_to_path(str(key))
            certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return CredentialFiles(self._folder / "ca.pem", certificate, key)

    def write_authority(self, folder: Path) -> None:
        """Write the certificate and the key of the authority of all of these certificates."""
        (folder / "ca.pem").write_bytes(self._ca.cert_pem.bytes())
        (folder / "ca.key").write_bytes(self._ca.private_key_pem.bytes())

    def client(self, user: str = _SERVER, **options: Any) -> Etcd:
        """A new client with the rights of this user. The test closes it."""
        return Etcd(self.endpoints, self.files(user).read(), **options)

    def leader(self) -> Member:
        """The member that leads now."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for member in self.members:
                if member.is_healthy() and member.metrics()["etcd_server_is_leader"] == 1:
                    return member
            time.sleep(0.05)
        raise AssertionError("no member leads")

    def repair(self) -> None:
        """Start what was killed, thaw what was frozen, and wait until all members are healthy."""
        for member in self.members:
            member.thaw()
            if member.process is None:
                member.start()
        deadline = time.monotonic() + _START_SECONDS
        while not all(member.is_healthy() for member in self.members):
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.05)

    def empty(self) -> None:
        """Remove all keys, and all users and roles of nodes."""
        asyncio.run(self._empty())

    async def _empty(self) -> None:
        async with self.client() as etcd:
            nodes = {keys.node_of(key) for key in (await etcd.range(keys.DESIRED, keys_only=True)).items}
            nodes |= {keys.node_of(key) for key in (await etcd.range(keys.STATUS, keys_only=True)).items}
            await etcd.commit([], [delete_prefix(keys.PREFIX)])
            for node in nodes:
                await accounts.remove_node(etcd, node, node)

    def _logs(self) -> str:
        return "\n".join(file.read_text()[-600:] for file in sorted(self._folder.glob("*.log")))


def _addresses(count: int) -> list[str]:
    """Addresses of this cluster's own on loopback, whose ports nobody else takes while a member is down."""
    number, first = os.getpid() % (1 << 14), 1 + 8 * (next(_clusters) % 31)
    return [f"127.{64 + number // 256}.{number % 256}.{member}" for member in range(first, first + count)]


@contextmanager
def running_cluster(folder: Path, size: int = 3) -> Iterator[Cluster]:
    """Run a cluster with the users `root` and `fleet`. Its processes have ended when the context ends.

    Raises:
        Missing: There is no etcd on this machine, and none can be fetched.
    """
    cluster = Cluster(folder, size)
    # gRPC opens files of its own with the first channel, and closes them some time after the last.
    kept = grpc.insecure_channel("kept.invalid")
    try:
        cluster.repair()
        asyncio.run(_add_users(cluster))
        yield cluster
    finally:
        kept.close()
        for member in cluster.members:
            member.kill()


async def _add_users(cluster: Cluster) -> None:
    async with cluster.client("root") as root:
        await accounts.enable(root)
        await accounts.add_server(root, _SERVER)
