"""What a run stands on: the tools built, the arrays and programs pinned, and the load that is put on a server."""

import http.client
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests import private_mounts

PEERS = Path(__file__).parent / "peers"
ENV = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
PROGRAMS = ("drop", "pass")
_PINS = [f"programs/{name}" for name in PROGRAMS]

Figures = dict[str, float]


@dataclass
class Server:
    """Something that answers at `address`, over TLS where `tls`. `prefix`: of its arrays' names."""

    name: str
    address: str
    prefix: str
    token: str = ""
    pid: int = 0
    tls: bool = False

    def memory(self) -> float:
        """What it takes, with the keeper where there is one: bytes.

        It is the proportional set size: of a page that several processes have, each counts its part (proc(5)).
        """
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._processes()]
        return sum(int(rollup.partition("\nPss:")[2].split()[0]) * 1024 for rollup in rollups)

    def cpu(self) -> float:
        """What it has computed since its start, with the keeper where there is one: s."""
        files = [file for pid in self._processes() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def _processes(self) -> list[str]:
        return [str(self.pid), *Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it over TCP, for `ask`."""
        host, _, port = self.address.rpartition(":")
        return http.client.HTTPConnection(host, int(port), timeout=60)

    def ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Message:
        """The headers of the answer, which has been read. RuntimeError where it is not 2xx."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status // 100 != 2:
            message = f"{method} {path}: {answer.status} {content!r}"
            raise RuntimeError(message)
        return answer.headers


@dataclass
class Bench:
    """What is built and pinned for a run."""

    folder: Path
    servers: dict[str, Server] = field(default_factory=dict)

    @property
    def pins(self) -> Path:
        """The bpffs of this run."""
        return self.folder / "bpf"

    def pin(self, name: str) -> str:
        """The path of a pin."""
        return str(self.pins / name)

    def pin_array(self, name: str, size: int) -> None:
        """Make an array and pin it, with a program in each of its entries."""
        kernel = LinuxKernel()
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, size, name)
        program = kernel.obj_get(self.pin(f"programs/{PROGRAMS[0]}"))
        for index in range(size):
            kernel.map_update(array, index, program)
        kernel.obj_pin(array, self.pin(name))
        kernel.close(program)
        kernel.close(array)

    def bodies(self, *lines: Any) -> str:
        """A file with these as JSON, for `load`; "DELETE" stands for itself."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            for line in lines:
                file.write(("DELETE" if line == "DELETE" else json.dumps(line, separators=(",", ":"))) + "\n")
        return file.name

    def changes(self) -> str:
        """Bodies for one entry; each changes it."""
        return self.bodies(*({"program": name} for name in PROGRAMS))

    def tables(self, size: int) -> str:
        """Bodies for a table; each changes every entry."""
        return self.bodies(
            *({"programs": [PROGRAMS[(index + turn) % 2] for index in range(size)]} for turn in range(2))
        )

    def load(self, server: Server, path: str, bodies: str = "", header: str = "", **options: float) -> Figures:
        """What `peer load` tells: rate (1/s), p50 and p99 (s), count. `header`: one more, as `NAME: VALUE`."""
        with self.loading(server, path, bodies, header, **options) as told:
            return told()

    @contextmanager
    def loading(
        self, server: Server, path: str, bodies: str = "", header: str = "", **options: float
    ) -> Iterator[Callable[[], Figures]]:
        """The same beside something else; what comes is to be called for the figures."""
        arguments = f"-path={path}", f"-bodies={bodies}", f"-header={header}"
        with self._peer(server, "load", *arguments, **options) as process:
            yield lambda: _figures(process)

    def delay(self, server: Server, path: str, bodies: str, **options: float) -> Figures:
        """What `peer delay` tells: p50, p99 of an event and `answer` of its PUT (s)."""
        with self._peer(server, "delay", f"-path={path}", f"-bodies={bodies}", **options) as process:
            return _figures(process)

    @contextmanager
    def watched(self, server: Server, readers: int) -> Iterator[Callable[[], Figures]]:
        """So many readers of /events; what comes is to be called for "events" in all, and "fewest" of one reader."""
        with self._peer(server, "watch", readers=readers) as process:
            if not _pipe(process.stdout).readline():
                message = f"{server.name}: {_pipe(process.stderr).read()}"
                raise RuntimeError(message)

            def figures() -> Figures:
                _pipe(process.stdin).close()
                told: Figures = json.loads(_pipe(process.stdout).read())
                return told

            yield figures

    @contextmanager
    def _peer(self, server: Server, command: str, *arguments: str, **options: float) -> Iterator[subprocess.Popen[str]]:
        arguments += tuple(f"-{name}={value}" for name, value in options.items())
        arguments += ("-tls",) if server.tls else ()
        process = subprocess.Popen(
            [str(self.folder / "peer"), command, f"-address={server.address}", f"-token={server.token}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()

    def loop(self, what: str, table: str, count: int) -> float:
        """The floor: seconds of so many bpf(2) in a C loop."""
        done = subprocess.run(
            [self.folder / "floor", what, self.pin(table), str(count), *map(self.pin, _PINS)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return float(done.stdout)


def _figures(process: subprocess.Popen[str]) -> Figures:
    """What it tells at its end. RuntimeError where it failed, as where an answer was not 2xx."""
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err)
    told: Figures = json.loads(out)
    return told


def _pipe(file: IO[str] | None) -> IO[str]:
    assert file is not None
    return file


@contextmanager
def prepared() -> Iterator[Bench]:
    """The tools built, and the programs pinned in a bpffs of this run; gone afterwards."""
    for tool in ("go", "gcc", "bpftool"):
        if shutil.which(tool, path=ENV["PATH"]) is None:
            message = f"{tool} is missing: apt-get install golang-go golang-github-cilium-ebpf-dev gcc bpftool"
            raise SystemExit(message)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        bench = Bench(folder)
        bench.pins.mkdir()
        private_mounts.mount_bpffs(bench.pins)
        stack.callback(private_mounts.unmount, bench.pins)
        _build(folder)
        (bench.pins / "programs").mkdir()
        pin_programs(bench, PROGRAMS)
        yield bench


def _build(folder: Path) -> None:
    env = {**ENV, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(folder / "cache")}
    subprocess.run(["go", "build", "-o", folder / "peer", "."], cwd=PEERS / "peer", env=env, check=True)
    subprocess.run(["gcc", "-O2", "-o", folder / "floor", PEERS / "floor.c"], check=True)


def pin_programs(bench: Bench, names: Iterable[str]) -> None:
    """Load XDP programs that do nothing, and pin them below programs/."""
    kernel = LinuxKernel()
    for number, name in enumerate(names, 1):
        fd = kernel.prog_load(ProgType.XDP, asm.returns(number), name[:15])
        kernel.obj_pin(fd, bench.pin(f"programs/{name}"))
        kernel.close(fd)
