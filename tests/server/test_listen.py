"""The service as a process, over loopback and over a unix socket: how it listens, serves, ends and logs."""

import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.server.listen import ListenError, listen_tcp, listen_unix
from tests.api.conftest import assert_problem
from tests.running import Service, demo, running, serve, write_config

ENTRY = "/maps/jump_table/entries/3"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture(scope="module", params=["memory", pytest.param("linux", marks=pytest.mark.kernel)])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with demo("--kernel", request.param) as service:
        yield service


def raw(service: Service, request: bytes) -> bytes:
    """Send these bytes, and return all that the server answers until it closes."""
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


class TestOverLoopback:
    def test_an_entry_is_set_read_replaced_and_cleared(self, service: Service) -> None:
        with service.client() as client:
            assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
            assert client.get(ENTRY).json()["program"]["name"] == "drop"
            assert client.put(ENTRY, json={"program": "pass"}).status_code == 200
            assert client.head(ENTRY).headers["content-length"] == str(len(client.get(ENTRY).content))
            assert client.delete(ENTRY).status_code == 204
            assert_problem(client.delete(ENTRY), 404, "entry-empty")

    def test_dot_segments_in_a_path_are_not_resolved(self, service: Service) -> None:
        for path in (b"/maps/../maps", b"/maps/./entries", b"/maps/.", b"/maps/..", b"/maps/%2e%2e/../maps/jump_table"):
            answer = raw(service, b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
            assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 422")), answer

    def test_oversized_body_gets_its_answer(self, service: Service) -> None:
        """A reset while the client still sends must not lose the answer."""
        with service.client() as client:
            headers = {"Content-Type": "application/json"}
            for _ in range(5):
                assert_problem(client.put(ENTRY, content=b"[" * (1 << 20), headers=headers), 413, "body-too-large")

    def test_endless_chunked_body_is_answered_and_the_connection_closed(self, service: Service) -> None:
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
            connection.sendall(
                b"PUT /maps/jump_table/entries/3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            answered = threading.Event()
            sender = threading.Thread(target=_send_chunks, args=(connection, answered))
            sender.start()
            answer = connection.recv(65536)
            answered.set()
            sender.join(20)
        assert answer.startswith(b"HTTP/1.1 413 "), answer
        # The body of the answer may be lost: the connection is reset if the client does not stop.
        assert b"connection: close" in answer

    @pytest.mark.slow
    @pytest.mark.parametrize("service", ["memory"], indirect=True)  # takes 10 s
    def test_body_that_stops_is_answered_with_408(self, service: Service) -> None:
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
            connection.sendall(
                b"PUT /maps/jump_table/entries/3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b"request-timeout" in answer


def _send_chunks(connection: socket.socket, answered: threading.Event) -> None:
    chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    try:
        for _ in range(1000):
            if answered.is_set():
                return
            connection.sendall(chunk)
    except OSError:
        return


class TestUnixSocket:
    def test_the_socket_has_its_mode_and_is_removed_at_the_end(self, config: Path, tmp_path: Path) -> None:
        path = tmp_path / "run/api.sock"
        with serve(config, path) as service:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
            with service.client() as client:
                assert client.get("/maps/jump_table").json()["created_here"] is True
            assert service.stop() == 0
        assert not path.exists()

    def test_the_socket_has_mode_0660_before_its_owner_is_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        path = tmp_path / "api.sock"
        monkeypatch.setattr(os, "chown", lambda *_, **__: seen.append(stat.S_IMODE(path.stat().st_mode)))
        listen_unix(path, -1, -1).close()
        assert seen == [0o660]

    def test_a_stale_socket_is_replaced_and_a_live_one_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "api.sock"
        listen_unix(path, -1, -1).close()
        with listen_unix(path, -1, -1), pytest.raises(ListenError, match="another process is listening"):
            listen_unix(path, -1, -1)

    def test_a_file_in_the_place_of_the_socket_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "api.sock").write_text("mine")
        with pytest.raises(ListenError, match="is no socket"):
            listen_unix(tmp_path / "api.sock", -1, -1)
        assert (tmp_path / "api.sock").read_text() == "mine"

    def test_a_state_dir_that_others_can_write_is_refused(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state").chmod(0o777)
        with running("serve", "--config", str(config)) as service:
            assert service.process.wait(20) == 1
            assert "can be written by others, who could forge the journal: chmod 700 it" in service.output()

    def test_a_second_service_with_the_same_state_dir_is_refused(self, config: Path, tmp_path: Path) -> None:
        with serve(config, tmp_path / "run/api.sock"):
            other = tmp_path / "other.toml"
            other.write_text(config.read_text().replace("api.sock", "other.sock"))
            with running("serve", "--config", str(other)) as second:
                second.wait_for("is held by another jumptable")
                assert second.process.wait(20) == 1


@pytest.mark.field
class TestUmask:
    """Field 22: the service is started under a tight umask."""

    @pytest.mark.parametrize("umask", [0o027, 0o077])
    def test_the_folder_of_the_socket_lets_others_through(self, tmp_path: Path, umask: int) -> None:
        """Field 22: otherwise members of socket_group could not connect. Files of the service stay private."""
        before = os.umask(umask)
        try:
            listen_unix(tmp_path / "run/api.sock", -1, -1).close()
            assert os.umask(umask) == umask
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "run/api.sock").stat().st_mode) == 0o660


class TestLoopback:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "127.9.9.9"])
    def test_loopback_address_is_served(self, host: str) -> None:
        listen_tcp(host, 0, only_loopback=True).close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "8.8.8.8", "::ffff:8.8.8.8", "no.such.host.invalid"])
    def test_any_other_address_is_refused(self, host: str) -> None:
        with pytest.raises(ListenError):
            listen_tcp(host, 0, only_loopback=True)

    def test_a_port_in_use_is_refused(self) -> None:
        with (
            listen_tcp("127.0.0.1", 0, only_loopback=True) as first,
            pytest.raises(ListenError, match="choose another port"),
        ):
            listen_tcp("127.0.0.1", first.getsockname()[1], only_loopback=True)


class TestEnd:
    def test_the_demo_leaves_no_file_behind(self, tmp_path: Path) -> None:
        with demo("--kernel", "memory", env={"TMPDIR": str(tmp_path)}) as service, service.client() as client:
            client.put(ENTRY, json={"program": "drop"})
            assert [file.name for file in tmp_path.glob("*/journal.db")] == ["journal.db"]
            assert service.stop() == 0
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_0_and_no_traceback(self, number: signal.Signals) -> None:
        with demo("--kernel", "memory") as service:
            with service.client() as client:
                client.get("/maps")  # leaves a connection open
                assert service.stop(number) == 0
            assert "Traceback" not in service.output()
            assert '"stopping"' in service.output()

    def test_a_request_that_has_begun_is_answered(self) -> None:
        with demo("--kernel", "memory") as service:
            url = httpx.URL(service.url)
            with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
                connection.sendall(
                    b"PUT /maps/jump_table/entries/3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 19\r\nExpect: 100-continue\r\n\r\n"
                )
                assert b"100 Continue" in connection.recv(4096)
                service.process.send_signal(signal.SIGTERM)
                service.wait_for('"stopping"')
                connection.sendall(b'{"program": "drop"}')
                assert connection.recv(65536).startswith(b"HTTP/1.1 201")
            assert service.process.wait(20) == 0

    def test_a_long_test_run_does_not_delay_the_end(self) -> None:
        with demo("--kernel", "memory") as service:
            url = httpx.URL(service.url)
            body = json.dumps({"packet": "00" * 14, "repeat": 1_000_000}).encode()
            with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
                connection.sendall(
                    b"POST /programs/entry/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                with service.client() as client:
                    assert client.delete("/programs/entry?dry_run=true").status_code == 204, "it waits for a slice only"
                service.process.send_signal(signal.SIGTERM)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert service.process.wait(5) == 0
            assert answer.startswith(b"HTTP/1.1 503"), answer
            assert b'"draining"' in answer

    @pytest.mark.parametrize("command", ["demo", "serve"])
    def test_a_signal_during_the_start_ends_it_with_0(self, config: Path, command: str) -> None:
        arguments = ["--kernel", "memory", "--port", "0"] if command == "demo" else ["--config", str(config)]
        # The signal comes when the imports begin: click is the first package outside the standard library.
        early = """
import os, signal, sys
class Early:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Early())
"""
        with running(command, *arguments, first=early) as service:
            assert service.process.wait(20) == 0
            assert service.output() == ""


class TestLog:
    def test_a_log_without_a_reader_changes_neither_answers_nor_the_end(self) -> None:
        """The program that the log is piped to may have ended."""
        blind = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 2); os.close(w)"
        with demo("--kernel", "memory", first=blind) as service, service.client() as client:
            assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
            assert client.delete(ENTRY).status_code == 204
            assert service.stop() == 0

    def test_the_log_is_json_unless_on_a_terminal(self) -> None:
        with demo("--kernel", "memory") as service:
            with service.client() as client:
                client.put(ENTRY, json={"program": "drop"}, headers={"X-Request-ID": "seven"})
            line = json.loads(service.wait_for(r'.*"set_entry".*')[0])
        assert (line["event"], line["map"], line["index"], line["request_id"]) == (
            "set_entry",
            "jump_table",
            3,
            "seven",
        )
