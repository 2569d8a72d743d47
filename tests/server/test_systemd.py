"""Socket activation, notifications and the watchdog, as systemd documents them; deploy/try-systemd runs a real one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.config import Settings
from app.keeper.messages import KeeperConfig
from app.server import startup
from app.server.systemd import Notifier, is_restarted, passed_sockets
from tests.running import running, write_config

# As systemd passes sockets: fds 3 and up, and the environment says for which process.
ACTIVATED = """
import os, socket
passed = [{sockets}]
for fd, each in enumerate(passed, 3):
    os.dup2(each, fd)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed))}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket at NOTIFY_SOCKET, where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        yield manager


class TestNotifier:
    def test_ready_is_sent_at_the_start_and_stopping_at_the_end(self, config: Path, manager: socket.socket) -> None:
        with running("serve", "--config", str(config), env={"NOTIFY_SOCKET": str(manager.getsockname())}) as service:
            assert manager.recv(100) == b"READY=1"
            assert service.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"

    def test_the_watchdog_is_notified_again_and_again(self, config: Path, manager: socket.socket) -> None:
        env = {"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "100000"}
        with running("serve", "--config", str(config), env=env):
            assert [manager.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]

    def test_without_systemd_notify_does_nothing(self, tmp_path: Path) -> None:
        for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nope")}, {"NOTIFY_SOCKET": "@nope"}):
            notifier = Notifier(environment)
            notifier.notify("READY=1")
            notifier.close()

    def test_the_watchdog_of_another_process_is_ignored(self) -> None:
        assert Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}).watchdog_interval_seconds == 0
        assert Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_interval_seconds == 1


class TestSocketActivation:
    def _run(self, config: Path, *bound: str, mode: int = 0o660) -> tuple[int, str]:
        """Exit status and output of serve with these sockets: paths, or "tcp"."""
        opened = ", ".join(self._bound(each, mode) for each in bound)
        with running("serve", "--config", str(config), first=ACTIVATED.format(sockets=opened)) as service:
            return service.process.wait(20), service.output()

    @staticmethod
    def _bound(where: str, mode: int) -> str:
        if where == "tcp":
            return 'socket.create_server(("127.0.0.1", 0)).detach()'
        return (
            f"(lambda s: (s.bind({where!r}), os.chmod({where!r}, {mode}), s.listen(), s.detach())[3])"
            "(socket.socket(socket.AF_UNIX))"
        )

    def test_a_passed_socket_is_served_and_left_behind(self, config: Path, tmp_path: Path) -> None:
        path = str(tmp_path / "passed.sock")
        first = ACTIVATED.format(sockets=self._bound(path, 0o660))
        with running("serve", "--config", str(config), first=first) as service:
            service.wait_for("serving")
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://x", timeout=20) as client:
                assert client.get("/maps").status_code == 200
            assert service.stop() == 0
        assert Path(path).is_socket(), "it is systemd's, which goes on listening"
        assert not (tmp_path / "run").exists()

    def test_sockets_that_too_many_could_use_are_refused(self, config: Path, tmp_path: Path) -> None:
        assert self._run(config, str(tmp_path / "a"), mode=0o666) == (
            1,
            f"jumptable: the socket {tmp_path}/a is open to everybody: set SocketMode=0660 in its unit\n",
        )
        status, output = self._run(config, "tcp")
        assert (status, "needs authentication" in output) == (1, True)
        status, output = self._run(config, str(tmp_path / "b"), str(tmp_path / "c"))
        assert (status, "one is served" in output) == (1, True)

    def test_sockets_for_another_process_are_ignored(self) -> None:
        assert passed_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
        assert passed_sockets({}) == []


@pytest.mark.parametrize("has_passed_socket", [False, True])
def test_the_keeper_leaves_a_passed_socket_alone(monkeypatch: pytest.MonkeyPatch, has_passed_socket: bool) -> None:
    """A connect to it, to see whether it is stale, would make systemd start the service again that has just ended."""
    configs: list[KeeperConfig] = []
    monkeypatch.setattr(startup, "effective_capabilities", lambda: ["CAP_BPF"])
    monkeypatch.setattr(startup, "KeeperClient", configs.append)
    settings = Settings()
    startup.start_keeper(settings, None, has_passed_socket=has_passed_socket)
    assert [config.socket for config in configs] == [None if has_passed_socket else str(settings.server.socket)]


@pytest.mark.field
@pytest.mark.parametrize(
    ("environment", "is_one"),
    [
        ({"NOTIFY_SOCKET": "/run/systemd/notify"}, True),
        ({"INVOCATION_ID": "1"}, True),
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": str(os.getpid())}, True),
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": "1"}, False),
        ({}, False),
    ],
)
def test_service_of_systemd_is_told_from_what_such_a_service_starts(environment: dict[str, str], is_one: bool) -> None:
    """Field 21: only a service of systemd may end in the hope of being started again."""
    assert is_restarted(environment) is is_one
