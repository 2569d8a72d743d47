"""What systemd gives and is told, by its own conventions; a booted one runs in deploy/try-systemd."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.config import Settings
from app.keeper.messages import KeeperConfig
from app.server import startup as start
from app.server.systemd import Notifier, given_listeners
from tests.running import running, write_config

# systemd's way: the sockets are 3 and up, and the environment says for which process.
ACTIVATED = """
import os, socket
given = [{sockets}]
for fd, each in enumerate(given, 3):
    os.dup2(each, fd)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens at NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        yield manager


class TestManager:
    def test_is_told_of_the_start_and_the_end(self, config: Path, manager: socket.socket) -> None:
        with running("serve", "--config", str(config), env={"NOTIFY_SOCKET": str(manager.getsockname())}) as service:
            assert manager.recv(100) == b"READY=1"
            assert service.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"

    def test_the_watchdog_is_told_twice_within_its_time(self, config: Path, manager: socket.socket) -> None:
        env = {"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "100000"}
        with running("serve", "--config", str(config), env=env):
            assert [manager.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]

    def test_none_is_no_error(self, tmp_path: Path) -> None:
        for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nope")}, {"NOTIFY_SOCKET": "@nope"}):
            manager = Notifier(environment)
            manager.tell("READY=1")
            manager.close()

    def test_another_process_s_watchdog_is_not_ours(self) -> None:
        assert Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}).interval == 0
        assert Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}).interval == 1


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

    def test_the_given_socket_is_served_and_left_behind(self, config: Path, tmp_path: Path) -> None:
        path = str(tmp_path / "given.sock")
        first = ACTIVATED.format(sockets=self._bound(path, 0o660))
        with running("serve", "--config", str(config), first=first) as service:
            service.wait_for("serving")
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://x", timeout=20) as client:
                assert client.get("/maps").status_code == 200
            assert service.stop() == 0
        assert Path(path).is_socket(), "it is systemd's, which goes on listening"
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_refused(self, config: Path, tmp_path: Path) -> None:
        """What would be open to more than may ask."""
        assert self._run(config, str(tmp_path / "a"), mode=0o666) == (
            1,
            f"jumptable: the socket {tmp_path}/a is open to everybody: set SocketMode=0660 in its unit\n",
        )
        status, told = self._run(config, "tcp")
        assert (status, "needs authentication" in told) == (1, True)
        status, told = self._run(config, str(tmp_path / "b"), str(tmp_path / "c"))
        assert (status, "one is served" in told) == (1, True)

    def test_those_for_another_process_are_not_ours(self) -> None:
        assert given_listeners({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
        assert given_listeners({}) == []


@pytest.mark.parametrize("is_given", [False, True])
def test_the_keeper_leaves_a_given_socket_alone(monkeypatch: pytest.MonkeyPatch, is_given: bool) -> None:
    """A connect to it, to see whether it is stale, would make systemd start the service that has just ended."""
    seen: list[KeeperConfig] = []
    monkeypatch.setattr(start, "effective_capabilities", lambda: ["CAP_BPF"])
    monkeypatch.setattr(start, "KeeperClient", seen.append)
    settings = Settings()
    start.start_keeper(settings, None, is_given=is_given)
    assert [duties.socket for duties in seen] == [None if is_given else str(settings.server.socket)]
