"""The peers and the service, started."""

import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import trustme

from app.access.tokens import Token, TokenFile
from tests.benchmarks.bench import PROGRAMS, Bench, Server
from tests.running import running

_SECONDS = 300.0  # a start of ten thousand programs
_CONFIG = """
[server]
{where}
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
durability = "{durability}"
[tokens]
file = "{folder}/tokens.json"
[limits]
held = 11000
[objects]
object_dirs = ["{objects}"]
"""


@contextmanager
def go(bench: Bench, tables: Iterable[str]) -> Iterator[Server]:
    """A Go server for these arrays, until it answers for the first of them."""
    address = f"127.0.0.1:{_free_port()}"
    pins = [bench.pin(table) for table in tables]
    process = subprocess.Popen(
        [bench.folder / "peer", "serve", f"-address={address}", f"-tables={','.join(pins)}",
         f"-programs={bench.pin('programs')}"]
    )  # fmt: skip
    server = Server("Go", address, "go", pid=process.pid)
    try:
        _until_it_answers(server, f"/maps/{Path(pins[0]).name}/entries/0")
        yield server
    finally:
        process.kill()
        process.wait()


@contextmanager
def ours(
    bench: Bench,
    name: str,
    tables: Sequence[str],
    *,
    unix: bool = False,
    durability: str = "process",
    tls: bool = False,
) -> Iterator[Server]:
    """The service with these arrays, until it answers. Its folder, `name` in the bench's, is taken as it is found.

    `name`: also the prefix of its arrays.
    """
    folder = bench.folder / name
    folder.mkdir(exist_ok=True)
    port = _free_port()
    where, address = f'host = "127.0.0.1"\nport = {port}', f"127.0.0.1:{port}"
    if unix:
        address = f"{folder}/run/api.sock"
        where = f'socket = "{address}"'
    (folder / "tokens.json").unlink(missing_ok=True)
    token = TokenFile(folder / "tokens.json").add(Token("bench", "", "admin", 0.0))
    text = _CONFIG.format(
        where=where, folder=folder, pins=bench.pins, durability=durability, objects=bench.folder / "objects"
    )
    text += _tls(folder) if tls else ""
    text += "".join(f'[maps.{each}]\npinned = "{bench.pin(each)}"\n' for each in tables)
    text += "".join(f'[programs.{each}]\npinned = "{bench.pin(f"programs/{each}")}"\n' for each in PROGRAMS)
    config = folder / "jumptable.toml"
    config.write_text(text)
    # Its log goes to a file: to read it would cost this process time.
    quiet = f"import os; os.dup2(os.open({str(folder / 'log')!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)"
    with running("serve", "--config", str(config), first=quiet) as service:
        server = Server(name, address, name, token, service.process.pid, tls)
        try:
            _until_it_answers(server, f"/maps/{tables[0]}/entries/0")
        except TimeoutError as error:
            error.add_note((folder / "log").read_text())
            raise
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _until_it_answers(server: Server, path: str) -> None:
    """Ask each millisecond, until it is answered. TimeoutError."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
    unix = server.address.startswith("/")
    host, _, port = server.address.rpartition(":")
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as plain:
            plain.settimeout(_SECONDS)
            try:
                plain.connect(server.address if unix else (host, int(port)))
                with _unverified().wrap_socket(plain) if server.tls else plain as connection:
                    connection.sendall(request)
                    if connection.recv(16).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                pass
        time.sleep(0.001)
    message = f"{server.name} does not answer"
    raise TimeoutError(message)


def _tls(folder: Path) -> str:
    """A certificate, in files, and the section that names them."""
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    return f'[tls]\ncertificate = "{folder}/server.pem"\nkey = "{folder}/server.key"\n'


def _unverified() -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def start_cpu(starting: AbstractContextManager[Server]) -> float:
    """Seconds that a server and its keeper compute until the first answer; it has ended afterwards."""
    with starting as server:
        return server.cpu()


def start_time(starting: AbstractContextManager[Server]) -> float:
    """Seconds from the start of a server to its first answer; it has ended afterwards."""
    began = time.perf_counter()
    with starting:
        return time.perf_counter() - began
