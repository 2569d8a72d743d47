"""Protection of a running service: peer credentials, tokens, listen addresses and limits of connections."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.store.journal import Journal
from app.store.records import Hold
from tests.conftest import tool
from tests.running import Service, connect, demo, resident_bytes, running, serve, write_config

ENTRY = "http://localhost/maps/jump_table/entries/3"


def jumptable(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="jumptable-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def configured(folder: Path, more: str = "", server: str = "") -> Path:
    config = write_config(folder)
    config.write_text(config.read_text().replace("[server]", f"[server]\n{server}") + more)
    return config


@pytest.mark.kernel  # only root can run processes as several users
@pytest.mark.skipif(not tool("curl"), reason="apt-get install curl")
class TestPeers:
    def ask(
        self, service: Service, uid: int, gid: int, groups: list[int], method: str = "PUT", header: str = "A: b"
    ) -> int:
        """The status that a process of this user gets, or 0 if it cannot connect."""
        data = ["--json", '{"program": "nope"}'] if method == "PUT" else []
        command = [*service.curl(), "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-H", header, *data, ENTRY]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, user=uid, group=gid, extra_groups=groups
        )
        return int(done.stdout)

    def test_root_is_admin_rules_give_roles_and_others_get_nothing(self, folder: Path) -> None:
        rules = """
        [peers.writers]
        user = 23456
        role = "writer"
        [peers.readers]
        group = 34567
        role = "reader"
        """
        config = configured(folder, rules, 'socket_group = "daemon"')
        daemon = 1
        with serve(config, folder / "run/api.sock") as service:
            assert self.ask(service, 0, 0, []) == 422, "admin: only the program is not there"
            assert self.ask(service, 23456, daemon, []) == 422
            assert self.ask(service, 12345, daemon, [34567]) == 403, "by a supplementary group; a reader"
            assert self.ask(service, 12345, daemon, [34567], "GET") == 404
            assert self.ask(service, 12345, daemon, [], "GET") == 403
            assert self.ask(service, 12345, 12345, [], "GET") == 0

    def test_only_the_agent_of_a_fleet_names_who_asks(self, folder: Path) -> None:
        rules = """
        [peers.fleet]
        user = 23456
        role = "writer"
        on_behalf = true
        [peers.writers]
        user = 12345
        role = "writer"
        """
        daemon = 1
        with serve(configured(folder, rules, 'socket_group = "daemon"'), folder / "run/api.sock") as service:
            for uid, status in ((23456, 422), (12345, 403), (0, 403)):
                assert self.ask(service, uid, daemon, [], "PUT", "Jumptable-Actor: alice") == status
            assert "fleet:alice" in service.wait_for(".*program-not-found.*")[0]

    def test_socket_is_of_no_use_to_a_web_page_that_it_was_forwarded_to(self, folder: Path) -> None:
        """`ssh -L 8080:/run/jumptable/api.sock` brings the socket to where a browser is."""
        with serve(configured(folder), folder / "run/api.sock") as service, service.client() as client:
            for headers, status in (
                ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
                ({"Host": "jumptable"}, 200),
                ({"Host": "evil.example:8080"}, 421),
                ({"Host": "localhost:8080", "Origin": "https://evil.example"}, 421),
                ({"Host": "localhost:8080", "Origin": "http://intranet"}, 421),
            ):
                assert client.get("/maps", headers=headers).status_code == status, headers
                on_fast_path = client.get("/maps/jump_table/entries/3", headers=headers)
                assert (on_fast_path.status_code == 421) is (status == 421), headers

    def test_log_names_the_user_of_a_change(self, folder: Path) -> None:
        with serve(configured(folder), folder / "run/api.sock") as service, service.client() as client:
            assert client.get("/maps").status_code == 200
            assert client.put("/maps/jump_table/entries/3", json={"program": "nope"}).status_code == 422
            line = service.wait_for(".*set_entry.*")[0]
            assert "unix:root" in line


class TestToken:
    @pytest.mark.slow
    def test_token_is_created_listed_used_rotated_and_revoked(self, folder: Path) -> None:
        config = configured(folder, "[tokens]\n", 'host = "127.0.0.1"\nport = 0')
        (folder / "state").mkdir()
        made = jumptable("token", "new", "deploy", "--role", "writer", "--map", "jump_table", "--entries", "8-15",
                         "--expires", "90d", "--config", str(config))  # fmt: skip
        assert made.returncode == 0, made.stderr
        secret = made.stdout.strip()
        assert secret not in (folder / "state/tokens.json").read_text()
        assert (folder / "state/tokens.json").stat().st_mode & 0o777 == 0o600
        listed = jumptable("token", "list", "--config", str(config)).stdout
        assert listed.startswith("deploy: writer --map jump_table --entries 8-15 until 20")
        with running("serve", "--config", str(config)) as service:
            port = service.wait_for(r'"port": ?([0-9]+)')[1]

            def status(secret: str) -> int:
                url = f"http://127.0.0.1:{port}/maps/jump_table/entries/9?allow_missing=true"
                while True:
                    try:
                        return httpx.delete(url, headers={"Authorization": f"Bearer {secret}"}).status_code
                    except httpx.ConnectError:
                        assert service.process.poll() is None, "it ended"

            assert status(secret) == 204
            assert status("jt_x") == 401
            other = jumptable("token", "rotate", "deploy", "--config", str(config)).stdout.strip()
            assert (status(secret), status(other)) == (401, 204)
            assert jumptable("token", "revoke", "deploy", "--config", str(config)).returncode == 0
            assert status(other) == 401
            service.stop()
            assert secret not in service.output()

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["new", "a/b", "--role", "reader"], "a name has 1 to 64 characters"),
            (["new", "a", "--role", "king"], "Invalid value for '--role'"),
            (["new", "a", "--role", "writer", "--entries", "9-8"], "is a range that ends before it begins"),
            (["new", "a", "--role", "writer", "--expires", "soon"], "is no time like 90d"),
            (["revoke", "nobody"], "there is no token 'nobody'"),
            (["rotate", "nobody"], "there is no token 'nobody'"),
        ],
    )
    def test_invalid_arguments_get_an_error_without_traceback(
        self, folder: Path, arguments: list[str], told: str
    ) -> None:
        config = configured(folder, "[tokens]\n")
        (folder / "state").mkdir()
        done = jumptable("token", *arguments, "--config", str(config))
        assert done.returncode in {1, 2}
        assert told in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.field
    def test_token_for_a_name_that_is_not_held_comes_with_a_warning(self, folder: Path) -> None:
        """Field 10: a slip in the name of a map or a program is told where it is made."""
        config = configured(folder, "[tokens]\n")
        (folder / "state").mkdir()
        journal = Journal(folder / "state/journal.db", "process")
        asyncio.run(journal.save_hold(Hold("program", "held", "/sys/fs/bpf/held", None, "boot"), {}))
        journal.close()
        bounds = ["--map", "jump_table", "--map", "typo", "--program", "held", "--program", "slip"]
        done = jumptable("token", "new", "a", "--role", "writer", *bounds, "--config", str(config))
        assert done.returncode == 0
        assert done.stdout.startswith("jt_")
        assert "no map is held under the name 'typo'" in done.stderr
        assert "no program is held under the name 'slip'" in done.stderr
        assert (done.stderr.count("name 'jump_table'"), done.stderr.count("name 'held'")) == (0, 0)

    def test_token_name_cannot_be_used_twice(self, folder: Path) -> None:
        config = configured(folder, "[tokens]\n")
        (folder / "state").mkdir()
        codes = [
            jumptable("token", "new", "a", "--role", "reader", "--config", str(config)).returncode for _ in range(2)
        ]
        assert codes == [0, 1]


class TestAddress:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "localhost", "127.0.0.1"])
    def test_tcp_without_authentication_is_refused(self, folder: Path, host: str) -> None:
        done = jumptable("serve", "--config", str(configured(folder, "", f'host = "{host}"\nport = 0')))
        assert done.returncode == 2
        assert "server.host: serving on TCP needs authentication: add a section [tokens]" in done.stderr

    @pytest.mark.parametrize("host", ["0.0.0.0", "0", "::", "10.1.2.3"])
    def test_demo_serves_only_loopback(self, host: str) -> None:
        done = jumptable("demo", "--host", host, "--port", "0", "--kernel", "memory")
        assert done.returncode == 1
        assert "without authentication only loopback is served" in done.stderr or "cannot listen" in done.stderr

    @pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "localhost", "127.0.0.2"])
    def test_demo_accepts_every_spelling_of_loopback(self, host: str) -> None:
        with demo("--host", host, "--kernel", "memory") as service, service.client() as client:
            assert client.get("/maps").status_code == 200


class TestConnection:
    @pytest.fixture
    def service(self) -> Iterator[Service]:
        with demo("--kernel", "memory") as service:
            yield service

    @pytest.mark.parametrize("line", [b"X-Pad: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
    def test_endless_headers_are_cut_off(self, service: Service, line: bytes) -> None:
        before = resident_bytes(service)
        with connect(service) as connection:
            connection.sendall(b"GET /maps HTTP/1.1\r\nHost: localhost\r\n")
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 100 * 1024 * 1024:
                    connection.sendall(line * 64)
                    sent += len(line) * 64
            answer = b""
            with contextlib.suppress(OSError):
                answer = connection.recv(65536)
        assert sent < 60 * 1024 * 1024
        assert not answer or b" 431 " in answer.split(b"\r\n")[0] or b" 400 " in answer.split(b"\r\n")[0]
        assert resident_bytes(service) < before + 20 * 1024 * 1024

    def test_large_head_gets_431(self, service: Service) -> None:
        with connect(service) as connection:
            connection.sendall(b"GET /maps HTTP/1.1\r\nHost: localhost\r\nX-Pad: " + b"a" * 40_000 + b"\r\n\r\n")
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"code":"headers-too-large"' in answer
        assert b"content-type: application/problem+json" in answer

    def test_unread_answers_use_bounded_memory(self, service: Service) -> None:
        before = resident_bytes(service)
        connections = [connect(service) for _ in range(10)]
        for connection in connections:
            connection.settimeout(1)
            with contextlib.suppress(OSError):
                for _ in range(400):
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 600)
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
        assert resident_bytes(service) < before + 60 * 1024 * 1024
        for connection in connections:
            connection.close()

    def test_request_after_a_refused_one_is_not_executed(self, service: Service) -> None:
        with connect(service) as connection:
            connection.sendall(
                b"GET /maps HTTP/1.1\r\nHost: localhost\r\nX-Pad: " + b"a" * 40_000 + b"\r\n\r\n"
                b"DELETE /programs/drop HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
        with service.client() as client:
            assert client.get("/programs/drop").status_code == 200

    def test_pipelined_requests_are_all_answered(self, service: Service) -> None:
        with connect(service) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
            answers = b""
            while answers.count(b"HTTP/1.1 200 ") < 10:
                chunk = connection.recv(65536)
                assert chunk
                answers += chunk

    def test_bytes_that_are_no_http_get_400(self, service: Service) -> None:
        with connect(service) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"malformed-header"' in answer

    def test_many_requests_on_one_connection_are_answered(self, service: Service) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Pad: " + b"a" * 5000 + b"\r\n\r\n"
        with connect(service) as connection:
            for _ in range(50):
                connection.sendall(request)
                answer = b""
                while not answer.endswith(b"}\n"):
                    chunk = connection.recv(65536)
                    assert chunk
                    answer += chunk
                assert answer.startswith(b"HTTP/1.1 200 ")

    def test_incomplete_head_times_out(self, folder: Path) -> None:
        config = configured(folder, "[tokens]\n[limits]\nheader_seconds = 0.2\nconnections = 3\n")
        with serve(config, folder / "run/api.sock"):
            for begun in (b"GET /maps HT", b""):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(20)
                    connection.connect(str(folder / "run/api.sock"))
                    connection.sendall(begun)
                    answer = connection.recv(65536)
                    assert answer.startswith(b"HTTP/1.1 408 ") if begun else answer == b""

    def test_connections_beyond_the_limit_are_closed(self, folder: Path) -> None:
        config = configured(folder, "[limits]\nconnections = 8\nheader_seconds = 30\n")
        path = str(folder / "run/api.sock")
        with serve(config, folder / "run/api.sock") as service:
            connections = []
            for _ in range(40):
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(20)
                connection.connect(path)
                connections.append(connection)
            closed = 0
            for connection in connections[8:]:
                try:
                    closed += connection.recv(1) == b""
                except ConnectionResetError:
                    closed += 1
            assert closed == 32
            for connection in connections:
                connection.close()
            deadline = time.monotonic() + 20
            with service.client() as client:
                while True:
                    try:
                        assert client.get("/healthz").status_code == 200
                        break
                    except httpx.TransportError:
                        assert time.monotonic() < deadline

    def test_ten_thousand_idle_connections_use_bounded_memory(self, service: Service) -> None:
        """Connections beyond the limit are closed, and the service answers afterwards."""
        open_: list[socket.socket] = []
        lock = threading.Lock()

        def connect_many() -> None:
            for _ in range(2500):
                try:
                    connection = connect(service)
                except OSError:
                    continue
                with lock:
                    open_.append(connection)

        before = resident_bytes(service)
        threads = [threading.Thread(target=connect_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(open_) > 500
        assert resident_bytes(service) < before + 200 * 1024 * 1024
        for connection in open_:
            connection.close()
        with service.client() as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
