"""The agent on the real kernel: what packets get, through the jump, is what the fleet desires."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import ProgType
from app.cli import demo
from app.fleet_store.documents import PacketCheck, TableState
from app.service.objects.opening import make_array
from tests.agent.conftest import NODE, TABLE, Fleet, Node
from tests.running import serve

pytestmark = [pytest.mark.anyio, pytest.mark.kernel]
PACKET = bytes([3, *13 * [0]])  # `entry` jumps to entry 3
DROP, PASS, TX = 1, 2, 3  # what the programs return
AGENT, DAEMON = 23456, 1


@pytest.fixture
async def real(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(fleet, tmp_path / NODE, kernel="linux")
    try:
        node.service.start()
        node.start_agent()
        yield node
    finally:
        await node.stop()


def returned(node: Node) -> int:
    with node.service.client() as client:
        return client.run_program("entry", PACKET)["returned"]


async def test_packets_get_what_the_fleet_desires(fleet: Fleet, real: Node) -> None:
    real.service.set(3, "tx")
    assert returned(real) == TX
    check = PacketCheck(program="entry", packet=PACKET.hex(), returned=DROP)
    assert (await fleet.said(await fleet.want({3: "drop"}, checks=(check,)))).state is TableState.APPLIED
    assert returned(real) == DROP
    back = fleet.document({}, revision=None, specification=None, rollout="jump_table-1", undo=True)
    assert (await fleet.said(await fleet.desire(back))).state is TableState.APPLIED
    assert returned(real) == TX


async def test_packets_go_the_old_way_after_a_check_has_failed(fleet: Fleet, real: Node) -> None:
    real.service.set(3, "tx")
    check = PacketCheck(program="entry", packet=PACKET.hex(), returned=DROP)
    status = await fleet.said(await fleet.want({3: "pass"}, checks=(check,)))
    assert (status.state, status.code) == (TableState.UNHEALTHY, "check-failed")
    assert f"entry returned {PASS}" in status.detail
    assert returned(real) == TX


@contextmanager
def pinned(folder: Path) -> Iterator[None]:
    """The demo's table and programs, pinned by a loader that has gone."""
    kernel = LinuxKernel()
    array = make_array(kernel, TABLE, 16)
    programs = {"entry": demo.entry(array.fd), "drop": asm.returns(DROP), "pass": asm.returns(PASS)}
    fds = {name: kernel.prog_load(ProgType.XDP, code, name) for name, code in programs.items()}
    try:
        for name, fd in {TABLE: array.fd, **fds}.items():
            kernel.obj_pin(fd, str(folder / name))
    finally:
        for fd in fds.values():
            kernel.close(fd)
        array.close()
    yield


@contextmanager
def as_process(command: list[str]) -> Iterator[None]:
    """A process that runs until the block ends, and then ends in order."""
    process = subprocess.Popen(command)
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        status = process.wait(30)
    assert status == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="apt-get install util-linux")
async def test_service_and_agent_as_they_run_on_a_node(fleet: Fleet, tmp_path: Path, bpffs: Path) -> None:
    """The service has its keeper and its pins, and the agent is a user of its own whom the service knows by its uid."""
    node = Node(fleet, tmp_path / NODE)
    programs = "".join(f'[programs.{name}]\npinned = "{bpffs / name}"\n' for name in ("entry", "drop", "pass"))
    config = tmp_path / "jumptable.toml"
    config.write_text(
        f"""
        [server]
        socket = "{node.folder}/run/api.sock"
        socket_group = "daemon"
        state_dir = "{tmp_path}/state"
        pin_dirs = ["{bpffs}"]
        user = "root"
        [maps.{TABLE}]
        pinned = "{bpffs / TABLE}"
        {programs}
        [peers.fleet]
        user = {AGENT}
        role = "writer"
        maps = ["{TABLE}"]
        entries = ["2-5"]
        on_behalf = true
        """
    )
    settings = node.settings
    for folder in (node.folder / "agent", node.folder / "status"):
        folder.mkdir()
        shutil.chown(folder, AGENT)
    agent = node.folder / "agent.toml"
    agent.write_text(
        f"""
        node = "{NODE}"
        public_keys = {json.dumps([str(each) for each in settings.public_keys])}
        service = "unix://{node.folder}/run/api.sock"
        state_dir = "{node.folder}/agent"
        status_file = "{node.folder}/status/status.json"
        [etcd]
        endpoints = {json.dumps(settings.etcd.endpoints)}
        ca = "{settings.etcd.ca}"
        certificate = "{settings.etcd.certificate}"
        key = "{settings.etcd.key}"
        """
    )
    # Python itself may be where only root can read.
    user = [f"--reuid={AGENT}", f"--regid={DAEMON}", "--clear-groups"]
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = [sys.executable, "-m", "app", "fleet", "agent", "--config", str(agent)]
    with (
        pinned(bpffs),
        serve(config, node.folder / "run/api.sock") as service,
        service.client() as client,
        as_process(["setpriv", *user, *capability, *command]),
    ):
        check = PacketCheck(program="entry", packet=PACKET.hex(), returned=DROP)
        status = await fleet.said(await fleet.want({3: "drop"}, first=2, last=5, checks=(check,)))
        assert status.state is TableState.APPLIED
        run = client.post("/programs/entry/run", json={"packet": PACKET.hex()}).json()
        assert run["returned"] == DROP
        [change] = client.get("/changes").json()["changes"]
        assert (change["actor"], change["state"]) == ("fleet:alice", "confirmed")
        assert (await fleet.said(await fleet.want({3: "drop"}, first=2, last=6))).code == "not-open"
