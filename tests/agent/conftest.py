"""Fixtures for tests of the agent: three members of etcd, the real service as a process, and a fleet that desires."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import pytest

from app.agent.agent import Agent
from app.agent.settings import Etcd as EtcdSettings
from app.agent.settings import Settings
from app.agent.state import StateFile
from app.client import Client, JumptableError
from app.fleet_store import accounts, keys
from app.fleet_store.documents import DesiredTable, TableState, TableStatus
from app.fleet_store.errors import OutcomeUnknown
from app.fleet_store.etcd import Etcd
from app.fleet_store.signatures import DESIRED_TABLE, Signer
from app.fleet_store.specification import ProgramName, Specification
from tests.fleet_store.cluster import Cluster, running_cluster

T = TypeVar("T")
SECONDS = 30.0
NODE, TABLE = "edge-1", "jump_table"


@pytest.fixture(scope="session", autouse=True)
def grpc_runs() -> Iterator[None]:
    """What gRPC keeps open for all connections of this process is open before anybody counts files."""
    loop = asyncio.new_event_loop()  # it asks for one, which tests that ran before may have taken away
    asyncio.set_event_loop(loop)
    grpc.aio.init_grpc_aio()
    with grpc.insecure_channel("127.0.0.1:1") as channel:  # its engine lives as long as some channel does
        channel.subscribe(lambda _: None, try_to_connect=True)
        yield
    grpc.aio.shutdown_grpc_aio()
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True)
def no_fd_is_left(table_programs: None) -> Iterator[None]:
    """As everywhere, but gRPC closes connections a little after it has said so, also those of the test before."""
    before = set(open_files())
    yield
    deadline = time.monotonic() + SECONDS
    while not set(open_files()) <= before:
        assert time.monotonic() < deadline, "file descriptors were left open"
        time.sleep(0.01)


def open_files() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(link.readlink())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = SECONDS) -> T:
    """Wait until what is looked at is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"it has not become so: {found}"
        await asyncio.sleep(0.02)


@dataclass
class Service:
    """The service of a node, as a process. `client` asks it as the agent may, without naming anybody."""

    folder: Path
    kernel: str = "memory"
    grant: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    def start(self) -> None:
        arguments = [str(self.socket), str(self.folder / "journal"), self.kernel, json.dumps(dict(self.grant))]
        with (self.folder / "service.log").open("a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "tests.agent.service", *arguments], stderr=log)
        deadline = time.monotonic() + SECONDS
        with self.client() as client:
            while True:
                with contextlib.suppress(JumptableError):
                    client.get_version()
                    return
                assert time.monotonic() < deadline, (self.folder / "service.log").read_text()
                time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(SECONDS)
            self.process = None

    def client(self) -> Client:
        return Client(f"unix://{self.socket}")

    def entries(self) -> dict[int, str | None]:
        with self.client() as client:
            return {each["index"]: each["program"]["name"] for each in client.list_entries(TABLE)["entries"]}

    def changes(self) -> list[Any]:
        with self.client() as client:
            return client.list_changes(limit=1000)["changes"]

    def set(self, index: int, program: str | None) -> None:
        """Somebody else changes an entry."""
        with self.client() as client:
            client.update_entries(TABLE, {index: program})


class Fleet:
    """Desires tables on nodes, as the controller does, and reads what they say."""

    def __init__(self, cluster: Cluster, etcd: Etcd, node: str = NODE) -> None:
        self.cluster, self.etcd, self.node = cluster, etcd, node
        self.signer = Signer.generate()
        self.number = 0

    def document(
        self, programs: Mapping[int, str | None], *, first: int = 0, last: int = 15, **more: Any
    ) -> DesiredTable:
        """A desired table: what is not said is as it usually is."""
        entries = {index: None if name is None else ProgramName(name) for index, name in programs.items()}
        packed = Specification.from_entries(first, last, entries).to_bytes()
        revision = more.get("revision", self.number + 1)
        said: dict[str, Any] = {
            "node": self.node,
            "table": TABLE,
            "rollout": keys.rollout_id(more.get("table", TABLE), revision or 1),
            "revision": revision,
            "specification": packed,
            "undo": False,
            "sequence": 1000 + self.number,
            "at": time.time(),
            "by": "alice",
            "confirm_within": 30,
        }
        self.number += 1
        return DesiredTable(**{**said, **more})

    async def desire(
        self, document: DesiredTable | bytes, *, table: str = TABLE, purpose: bytes = DESIRED_TABLE
    ) -> int:
        """Write a desired table, signed unless it is bytes. Returns its revision of the store."""
        value = document if isinstance(document, bytes) else self.signer.sign(purpose, document.to_bytes())
        while True:
            with contextlib.suppress(OutcomeUnknown):
                return await self.etcd.put(keys.desired_table(self.node, table), value)

    async def want(self, programs: Mapping[int, str | None], **more: Any) -> int:
        return await self.desire(self.document(programs, **more))

    async def status(self, table: str = TABLE) -> TableStatus | None:
        item = await self.etcd.get(keys.table_status(self.node, table))
        return None if item is None else TableStatus.from_bytes(item.value)

    async def said(self, seen: int, *states: TableState) -> TableStatus:
        """Wait until the node says one of these states of what is desired; of none: any but `unconfirmed`."""

        async def look() -> TableStatus | None:
            status = await self.status()
            wanted = states or set(TableState) - {TableState.UNCONFIRMED}
            return status if status is not None and status.seen == seen and status.state in wanted else None

        return await until(look)


class Node:
    """A node: its service, and its agent in this process."""

    def __init__(self, fleet: Fleet, folder: Path, **service: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.fleet, self.folder, self.service = fleet, folder, Service(folder, **service)
        self.user = fleet.node  # whose certificate the agent has
        self._agent: asyncio.Task[None] | None = None
        self._state: StateFile | None = None
        self.beats: list[str] = []

    @property
    def settings(self) -> Settings:
        files = self.fleet.cluster.files(self.user)
        public_key = self.folder / "fleet.pub"
        public_key.write_bytes(self.fleet.signer.verifier().to_pem())
        return Settings(
            node=self.fleet.node,
            public_keys=[public_key],
            etcd=EtcdSettings(
                endpoints=self.fleet.cluster.endpoints, ca=files.ca, certificate=files.certificate, key=files.key
            ),
            service=f"unix://{self.service.socket}",
            state_dir=self.folder / "agent",
            status_file=self.folder / "status.json",
        )

    @property
    def report(self) -> dict[str, Any]:
        """What the agent tells on the node."""
        report: dict[str, Any] = {"connected": False, "error": "", "warnings": [], "tables": {}, "troubles": {}}
        with contextlib.suppress(FileNotFoundError):
            report = json.loads(self.settings.status_file.read_bytes())
        return report

    def start_agent(self) -> None:
        self._state = StateFile(self.settings.state_dir)
        files = self.fleet.cluster.files(self.user)
        self.agent = Agent(self.settings, self._state, self.fleet.signer.verifier(), files.read())
        self._agent = asyncio.create_task(self.agent.run(self.beats.append))

    async def stop_agent(self) -> None:
        if self._agent is not None:
            self._agent.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._agent
            self._agent = None
        if self._state is not None:
            self._state.close()
            self._state = None

    async def stop(self) -> None:
        try:
            await self.stop_agent()
        finally:
            self.service.stop()


@pytest.fixture
async def fleet(cluster: Cluster, anyio_backend: str) -> AsyncIterator[Fleet]:
    cluster.repair()
    async with cluster.client("fleet") as etcd:
        await accounts.add_node(etcd, NODE, NODE)
        try:
            yield Fleet(cluster, etcd)
        finally:
            await accounts.remove_node(etcd, NODE, NODE)


@pytest.fixture
async def node(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose agent runs, with the kernel in memory. All of its table is open to the fleet."""
    node = Node(fleet, tmp_path / NODE)
    try:
        node.service.start()
        node.start_agent()
        yield node
    finally:
        await node.stop()


@pytest.fixture
async def bounded(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that opens the entries 8 to 11 and the program `drop` to the fleet."""
    grant = {"maps": [TABLE], "entries": ["8-9", "10-11"], "programs": ["drop"]}
    node = Node(fleet, tmp_path / NODE, grant=grant)
    try:
        node.service.start()
        node.start_agent()
        yield node
    finally:
        await node.stop()
