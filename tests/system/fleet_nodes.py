"""Nodes of a fleet as processes: a service and an agent each, forked within milliseconds.

The nursery is a process that has imported both and forks them. Each of them has a process id of its own, which a test
kills or freezes. All end with the nursery.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.client import Client, JumptableError
from app.client.answers import Change
from tests.fleet_store.cluster import Cluster

TABLE = "jump_table"
_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000


@dataclass
class Node:
    """A node: `service` and `agent` are the ids of its processes."""

    name: str
    folder: Path
    nursery: "Nursery"
    kernel: str = "memory"
    service: int = 0
    agent: int = 0

    def start_service(self) -> None:
        arguments = [str(self.folder / "api.sock"), str(self.folder / "journal"), self.kernel, "{}"]
        self.service = self.nursery.fork("service", self.folder / "service.log", arguments)

    def start_agent(self, fuse: str = "", number: signal.Signals = signal.SIGKILL) -> None:
        """Start the agent. With a fuse, it kills or freezes itself at that step: see `tests.agent.fuse`."""
        arguments = ["fleet", "agent", "--config", str(self.folder / "agent.toml")]
        self.agent = self.nursery.fork("agent", self.folder / "agent.log", arguments, fuse, number)

    def signal_agent(self, number: signal.Signals) -> None:
        os.kill(self.agent, number)

    def is_agent_frozen(self) -> bool:
        return _state(self.agent) == "T"

    def is_agent_gone(self) -> bool:
        return _state(self.agent) == ""

    def client(self) -> Client:
        return Client(f"unix://{self.folder}/api.sock")

    def answers(self) -> bool:
        try:
            with self.client() as client:
                client.get_version()
        except JumptableError:
            return False
        return True

    def entries(self) -> dict[int, str | None]:
        with self.client() as client:
            return {each["index"]: each["program"]["name"] for each in client.list_entries(TABLE)["entries"]}

    def run_packet(self, index: int) -> int:
        """Run a packet through the jump, and return what the program behind this entry returns for it."""
        with self.client() as client:
            return client.run_program("entry", bytes([index, *13 * [0]]))["returned"]

    def changes(self) -> list[Change]:
        with self.client() as client:
            return client.list_changes(limit=1000)["changes"]

    def told(self) -> dict[str, object]:
        """What the agent tells on the node itself."""
        report: dict[str, object] = json.loads((self.folder / "status.json").read_bytes())
        return report


def _state(pid: int) -> str:
    """The state of a process, as proc(5) has it; empty: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Nursery:
    """The process that forks."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from tests.system.fleet_nodes import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fork(
        self, kind: str, log: Path, arguments: list[str], fuse: str = "", number: signal.Signals = signal.SIGKILL
    ) -> int:
        """Start a process, and return its id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, str(log), arguments, fuse, int(number)]) + "\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], _SECONDS)[0], "it forks nothing"
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, and all that it has started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(_SECONDS) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()


@contextmanager
def running_nodes(cluster: Cluster, folder: Path, public_key: Path, count: int, real: int) -> Iterator[list[Node]]:
    """Run nodes `edge-01`, `edge-02`, and so on. Their agents start with `start_agent`.

    Args:
        cluster: etcd.
        folder: For their files.
        public_key: Of the fleet.
        count: How many.
        real: How many of them, the last ones, have the real kernel. Their services are in network namespaces of their
            own.
    """
    nursery = Nursery()
    try:
        nodes = [Node(f"edge-{number:02}", folder / f"edge-{number:02}", nursery) for number in range(1, count + 1)]
        for node in nodes[len(nodes) - real :]:
            node.kernel = "linux"
        for node in nodes:
            node.folder.mkdir()
            files = cluster.files(node.name)
            (node.folder / "agent.toml").write_text(f"""
node = "{node.name}"
public_keys = ["{public_key}"]
service = "unix://{node.folder}/api.sock"
state_dir = "{node.folder}/agent"
status_file = "{node.folder}/status.json"
[etcd]
endpoints = {json.dumps(cluster.endpoints)}
ca = "{files.ca}"
certificate = "{files.certificate}"
key = "{files.key}"
""")
            node.start_service()
        for node in nodes:
            until(node.answers)
        yield nodes
    finally:
        nursery.close()


def until(is_so: Callable[[], object], seconds: float = _SECONDS, what: Callable[[], object] = lambda: "") -> float:
    """Wait until something is so. Returns for how many seconds."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds, what()
        time.sleep(0.02)
    return time.monotonic() - began


def main() -> None:
    """Run the nursery: a process for each line of JSON on stdin. They end with it (PR_SET_PDEATHSIG).

    It kills nobody by id: the id of one that has ended may be that of another process by then.
    """
    import app.agent.agent  # noqa: PLC0415 - what the children would import each
    import app.cli.fleet_agent  # noqa: PLC0415
    import app.server.run  # noqa: F401, PLC0415
    import tests.agent.fuse  # noqa: PLC0415
    import tests.agent.service  # noqa: F401, PLC0415
    from app.api import app as application  # noqa: F401, PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        kind, log, arguments, fuse, number = json.loads(line)
        child = os.fork()
        if child == 0:
            _be(kind, log, arguments, fuse, number)
        print(child, flush=True)


def _be(kind: str, log: str, arguments: list[str], fuse: str, number: int) -> None:
    """Become a service or an agent, and never return."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for place, opened in enumerate((null, fd, fd)):
            os.dup2(opened, place)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = ["jumptable", *arguments]
        if kind == "service":
            from tests.agent import service  # noqa: PLC0415

            if "linux" in arguments:
                assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
            service.main()
        else:
            from app.__main__ import main as jumptable  # noqa: PLC0415

            os.geteuid = lambda: 23456  # the agent does not run as root
            if fuse:
                from tests.agent.fuse import blow  # noqa: PLC0415

                blow(fuse, number)
            jumptable()
    except SystemExit:
        pass
    except BaseException:  # noqa: BLE001 - its end is in the log
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        os._exit(0)
