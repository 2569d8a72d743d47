"""What is measured against what: the floor, the peers and the service, started on arrays of their own."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.access.tokens import Token, TokenFile
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests import private_mounts
from tests.running import running

PEERS = Path(__file__).parent / "peers"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
SIZES = (64, 1024, 65_536)
PROGRAMS = ("drop", "pass")
_CONFIG = """
[server]
{where}
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
durability = "{durability}"
[tokens]
file = "{folder}/tokens.json"
"""


@dataclass
class Server:
    """Something that answers at `address`. `prefix`: of its arrays' names."""

    name: str
    address: str
    prefix: str
    token: str = ""
    pid: int = 0


@dataclass
class Bench:
    """What is built and pinned for a run."""

    folder: Path
    pins: Path
    peer: Path
    floor: Path
    servers: dict[str, Server] = field(default_factory=dict)

    def pin(self, name: str) -> str:
        """The path of a pin."""
        return str(self.pins / name)

    def bodies(self, *lines: Any) -> str:
        """A file with these as JSON, for `load`."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        return file.name

    def load(self, server: Server, path: str, bodies: str = "", **options: float | bool) -> dict[str, float]:
        """What `peer load` tells: rate (1/s), p50 and p99 (s), count."""
        with self.loading(server, path, bodies, **options) as told:
            return told()

    @contextmanager
    def loading(
        self, server: Server, path: str, bodies: str = "", **options: float | bool
    ) -> Iterator[Callable[[], dict[str, float]]]:
        """The same beside something else; what comes is to be called for the figures."""
        arguments = [f"-{name}={str(value).lower()}" for name, value in options.items()]
        process = subprocess.Popen(
            [self.peer, "load", f"-address={server.address}", f"-path={path}", f"-bodies={bodies}",
             f"-token={server.token}", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def figures() -> dict[str, float]:
            out, err = process.communicate()
            if process.returncode:
                message = f"{server.name} {path}: {err}"
                raise RuntimeError(message)
            told: dict[str, float] = json.loads(out)
            return told

        try:
            yield figures
        finally:
            process.kill()
            process.communicate()

    def loop(self, what: str, table: str, count: int) -> float:
        """The floor: seconds of so many bpf(2) in a C loop."""
        done = subprocess.run(
            [self.floor, what, self.pin(table), str(count), *(self.pin(f"programs/{name}") for name in PROGRAMS)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return float(done.stdout)


@contextmanager
def prepared() -> Iterator[Bench]:
    """Everything built, pinned and started; gone afterwards."""
    for tool in ("go", "gcc", "bpftool"):
        if shutil.which(tool, path=PATH) is None:
            message = f"{tool} is missing: apt-get install golang-go golang-github-cilium-ebpf-dev gcc bpftool"
            raise SystemExit(message)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        pins = folder / "bpf"
        pins.mkdir()
        private_mounts.mount_bpffs(pins)
        stack.callback(private_mounts.unmount, pins)
        bench = Bench(folder, pins, folder / "peer", folder / "floor")
        _build(bench)
        _pin(bench)
        for size in SIZES:
            stack.enter_context(_go(bench, size))
        for name, where, durability in (
            ("ours", 'host = "127.0.0.1"\nport = 0', "process"),
            ("ours, unix", f'socket = "{folder}/unix/api.sock"', "process"),
            ("ours, power", 'host = "127.0.0.1"\nport = 0', "power"),
        ):
            stack.enter_context(_ours(bench, name, where, durability))
        yield bench


def _build(bench: Bench) -> None:
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(bench.folder / "cache")}
    subprocess.run(["go", "build", "-o", bench.peer, "."], cwd=PEERS / "peer", env=env, check=True)
    subprocess.run(["gcc", "-O2", "-o", bench.floor, PEERS / "floor.c"], check=True)


def _pin(bench: Bench) -> None:
    kernel = LinuxKernel()
    (bench.pins / "programs").mkdir()
    loaded = [kernel.prog_load(ProgType.XDP, asm.returns(number), name) for number, name in enumerate(PROGRAMS, 1)]
    for fd, name in zip(loaded, PROGRAMS, strict=True):
        kernel.obj_pin(fd, bench.pin(f"programs/{name}"))
    for prefix in ("floor", "go", "ours", "unix", "power"):
        for size in SIZES:
            array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, size, f"{prefix}{size}")
            kernel.obj_pin(array, bench.pin(f"{prefix}{size}"))
            for index in range(size):
                kernel.map_update(array, index, loaded[0])
            kernel.close(array)
    for fd in loaded:
        kernel.close(fd)


@contextmanager
def _go(bench: Bench, size: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [bench.peer, "serve", f"-address={address}", f"-table={bench.pin(f'go{size}')}",
         f"-programs={bench.pin('programs')}"]
    )  # fmt: skip
    server = Server("Go", address, "go", pid=process.pid)
    bench.servers[f"go{size}"] = server
    try:
        _until_it_answers(bench, server, f"/maps/go{size}/entries/0")
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _ours(bench: Bench, name: str, where: str, durability: str) -> Iterator[None]:
    prefix = name.rpartition(" ")[2]
    folder = bench.folder / prefix
    folder.mkdir()
    token = TokenFile(folder / "tokens.json").add(Token("bench", "", "admin", 0.0))
    config = folder / "jumptable.toml"
    text = _CONFIG.format(where=where, folder=folder, pins=bench.pins, durability=durability)
    text += "".join(f'[maps.{prefix}{size}]\npinned = "{bench.pin(f"{prefix}{size}")}"\n' for size in SIZES)
    text += "".join(f'[programs.{each}]\npinned = "{bench.pin(f"programs/{each}")}"\n' for each in PROGRAMS)
    config.write_text(text)
    # Its log goes to a file: to read it would cost this process time.
    log = folder / "log"
    quiet = f"import os; os.dup2(os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT), 2)"
    with running("serve", "--config", str(config), first=quiet) as service:
        deadline = time.monotonic() + 20
        while not (told := re.search(r'"port":(\d+)|"socket":"([^"]+)"', log.read_text() if log.exists() else "")):
            assert time.monotonic() < deadline, "it does not start"
        address = f"127.0.0.1:{told[1]}" if told[1] else told[2]
        server = Server(name, address, prefix, token, service.process.pid)
        bench.servers[name] = server
        _until_it_answers(bench, server, "/healthz")
        yield


def _until_it_answers(bench: Bench, server: Server, path: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            bench.load(server, path, seconds=0.01)
        except RuntimeError:
            assert time.monotonic() < deadline, f"{server.name} does not answer"
        else:
            return
