"""Attacks on the keeper by a process that somebody else controls."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.access.tokens import TokenFile, TokensUnusable
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from app.keeper.client import KeeperClient
from app.keeper.messages import KeeperConfig, Op
from app.keeper.paths import open_file, own_file
from app.server.startup import StartError, lock_state
from tests.running import serve

pytestmark = pytest.mark.kernel
NOBODY = 65534
ATTACK = """
import array, os, signal, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
channel.settimeout(0.5)
own = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [channel.fileno()]))]
try:
    while True:
        channel.sendmsg([bytes(8)], own)
except TimeoutError:
    pass
"""


@pytest.fixture
def keeper(bpffs: Path) -> Iterator[KeeperClient]:
    """A keeper for a bpffs that contains keep_dir."""
    made = KeeperClient(KeeperConfig(pin_dirs=(str(bpffs),), keep_dir=f"{bpffs}/keep", owner=(NOBODY, NOBODY)))
    with contextlib.closing(made):
        yield made


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of the user of the controlled process."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    return folder


class TestFiles:
    @pytest.mark.parametrize("opened", [open_file, own_file])
    def test_link_in_a_folder_of_others_is_not_followed(
        self, theirs: Path, tmp_path: Path, opened: Callable[[str, int], int]
    ) -> None:
        (tmp_path / "secret").write_text("x")
        (theirs / "file").symlink_to(tmp_path / "secret")
        (theirs / "folder").symlink_to(tmp_path)
        for path in (theirs / "file", theirs / "folder/secret"):
            with pytest.raises(OSError, match=r"others|symbolic"):
                opened(str(path), os.O_RDONLY)
        (tmp_path / "link").symlink_to("secret")
        os.close(open_file(str(tmp_path / "link"), os.O_RDONLY))

    def test_fifo_does_not_block(self, theirs: Path) -> None:
        os.mkfifo(theirs / "file")
        with pytest.raises(PermissionError):
            open_file(str(theirs / "file"), os.O_RDONLY)

    @pytest.mark.parametrize("kind", ["symlink", "link", "content"])
    def test_lock_file_made_by_others_is_refused(self, theirs: Path, tmp_path: Path, kind: str) -> None:
        (tmp_path / "secret").write_text("x")
        if kind == "symlink":
            (theirs / "lock").symlink_to(tmp_path / "secret")
        elif kind == "link":
            (theirs / "lock").hardlink_to(tmp_path / "secret")
        else:
            (theirs / "lock").write_text("x")
        with pytest.raises(StartError):
            lock_state(theirs)

    def test_fifo_is_refused_as_token_file(self, theirs: Path) -> None:
        os.mkfifo(theirs / "tokens.json", 0o600)
        with pytest.raises(TokensUnusable):
            TokenFile(theirs / "tokens.json").revoke("x")


class TestRequests:
    def test_descriptor_is_accepted_only_to_pin_an_array(self, keeper: KeeperClient, bpffs: Path) -> None:
        kernel = LinuxKernel()
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "x")
        with pytest.raises(OSError, match="OPEN_PIN") as caught:
            keeper.ask(Op.OPEN_PIN, 0, f"{bpffs}/none", fd)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="PIN_ARRAY"):
            keeper.ask(Op.PIN_ARRAY, 0, f"{bpffs}/x\0y", fd)
        assert not (bpffs / "x").exists()
        keeper.ask(Op.PIN_ARRAY, 0, f"{bpffs}/x", fd)
        keeper.ask(Op.UNPIN, 0, f"{bpffs}/x")
        kernel.close(fd)


class TestLifetime:
    def test_keeper_ends_with_its_parent_although_the_channel_is_open(self) -> None:
        code = (
            "import os, sys; from app.keeper.client import KeeperClient; from app.keeper.messages import KeeperConfig\n"
            "keeper = KeeperClient(KeeperConfig())\n"
            "print(keeper.pid, flush=True)\n"
            "os.fork() or sys.stdin.read()\n"
            "os._exit(0)"
        )
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as starter:
            assert starter.stdout is not None
            pid = int(starter.stdout.readline())
            starter.wait(20)
            _wait_for_the_end_of(pid)

    @pytest.mark.slow
    def test_keeper_ends_despite_unread_answers_and_a_descriptor_of_its_own_channel(self) -> None:
        """Without a timeout the keeper would wait forever for a reader that only the keeper itself keeps open."""
        code = (
            "import sys; from app.keeper.client import KeeperClient; from app.keeper.messages import KeeperConfig\n"
            "keeper = KeeperClient(KeeperConfig())\n"
            "print(keeper.pid, flush=True)\n"
            f"sys.argv[1:] = [str(keeper._channel.detach())]\nexec({ATTACK!r})\n"
            "__import__('os')._exit(0)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as attacker:
            assert attacker.stdout is not None
            pid = int(attacker.stdout.readline())
            attacker.wait(20)
            _wait_for_the_end_of(pid)

    def test_readyz_fails_once_the_keeper_is_dead(self, bpffs: Path, tmp_path: Path) -> None:
        config = tmp_path / "jumptable.toml"
        config.write_text(
            f'[server]\nsocket = "{tmp_path}/run/api.sock"\nstate_dir = "{tmp_path}/state"\npin_dirs = ["{bpffs}"]\n'
        )
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
            os.kill(int(children.split()[0]), signal.SIGKILL)
            deadline = time.monotonic() + 20
            while (answer := client.get("/readyz")).status_code != 503:
                assert time.monotonic() < deadline
            assert "keeper" in answer.json()["reasons"][0]
            service.stop()

    def test_service_starts_with_a_keep_dir_outside_a_bpffs(self, tmp_path: Path) -> None:
        config = tmp_path / "jumptable.toml"
        config.write_text(
            f'[server]\nsocket = "{tmp_path}/run/api.sock"\nstate_dir = "{tmp_path}/state"\n'
            f'pin_dirs = ["{tmp_path}"]\nkeep_dir = "{tmp_path}/no/keep"\n'
        )
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            service.stop()


def _wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "(zombie)" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline, "it stays"
            time.sleep(0.05)
