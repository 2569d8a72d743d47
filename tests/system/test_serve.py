"""`serve` and `demo` on the real kernel, beside another tool."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import cast

import httpx
import pytest

from app.bpf import asm, attr
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf
from app.bpf.uapi import Cmd, MapType, ProgType
from app.cli.demo import entry
from tests.conftest import tool
from tests.outside import Bpftool, Script
from tests.running import Service, demo, running, serve

pytestmark = pytest.mark.kernel

WITHOUT_CAPABILITIES = "from app.sandbox.capabilities import drop_capabilities; drop_capabilities([])"
CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
[maps.jump_table]
pinned = "{pins}/jump_table"
[maps.made]
pinned = "{pins}/made"
create = {{ max_entries = 4 }}
[programs.drop]
pinned = "{pins}/drop"
[programs.pass]
pinned = "{pins}/pass"
[programs.entry]
pinned = "{pins}/entry"
"""


@pytest.fixture(params=[Script, *([Bpftool] if tool("bpftool") else [])])
def other(request: pytest.FixtureRequest) -> Script | Bpftool:
    """Another tool that changes the same pinned objects."""
    made: Script | Bpftool = request.param()
    return made


@pytest.fixture
def prepared(bpffs: Path, tmp_path: Path, other: Script | Bpftool) -> tuple[Path, Path]:
    """The folder of the pins and the configuration: an array that the other tool created, and programs, all pinned."""
    other.make_array(bpffs / "jump_table", 16)
    kernel = LinuxKernel()
    array = kernel.obj_get(str(bpffs / "jump_table"))
    for name, code in (("drop", asm.returns(1)), ("pass", asm.returns(2)), ("entry", entry(array))):
        fd = kernel.prog_load(ProgType.XDP, code, name)
        kernel.obj_pin(fd, str(bpffs / name))
        kernel.close(fd)
    kernel.close(array)
    config = tmp_path / "jumptable.toml"
    config.write_text(CONFIG.format(folder=tmp_path, pins=bpffs))
    return bpffs, config


class _NextId(IntEnum):
    """Of enum bpf_cmd, as `Cmd` is."""

    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12


class TestBesideAnotherTool:
    @pytest.mark.slow
    def test_service_and_other_tool_see_each_others_changes(
        self, prepared: tuple[Path, Path], tmp_path: Path, other: Script | Bpftool
    ) -> None:
        pins, config = prepared
        table = pins / "jump_table"
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            empty = client.get("/maps/jump_table/entries")
            other.set(table, 3, pins / "drop")
            seen = client.get("/maps/jump_table/entries", headers={"If-None-Match": empty.headers["etag"]})
            assert seen.status_code == 200
            assert [(each["index"], each["program"]["name"]) for each in seen.json()["entries"]] == [(3, "drop")]
            assert _run(client) == "XDP_DROP"
            changed = client.put("/maps/jump_table/entries/3", json={"program": "pass"})
            assert changed.status_code == 200
            assert other.dump(table) == {3: changed.json()["program"]["id"]}
            other.clear(table, 3)
            assert client.get("/maps/jump_table/entries/3").status_code == 404
            assert _run(client) == "XDP_ABORTED"
            made = client.get("/maps/made").json()
            assert (made["created_here"], (pins / "made").exists()) == (True, True)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_entries_and_answers_survive_the_end_of_the_service(
        self, prepared: tuple[Path, Path], tmp_path: Path, other: Script | Bpftool, number: signal.Signals
    ) -> None:
        pins, config = prepared
        urls = ("/maps/jump_table/entries", "/maps/jump_table/entries/3", "/maps/jump_table", "/programs/drop")
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            put = client.put("/maps/jump_table/entries/3", json={"program": "drop"})
            before = [client.get(url).text for url in urls]
            assert service.stop(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert other.dump(pins / "jump_table") == {3: put.json()["program"]["id"]}
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert [client.get(url).text for url in urls] == before
            assert _run(client) == "XDP_DROP"

    @pytest.mark.field
    @pytest.mark.slow
    def test_running_service_notices_pins_that_moved_and_follows_those_that_it_is_to_follow(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """Field 8: a program pinned anew is stale in silence; field 9: so is an array."""
        pins, config = prepared
        lines = config.read_text().replace('/drop"\n', '/drop"\nfollow = true\n')
        config.write_text(lines.replace("[maps.made]", "follow = true\n[maps.made]"))
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.put("/maps/jump_table/entries/3", json={"program": "drop"}).status_code == 201
            new_drop, new_pass = (_pin_over(pins / name, load_program) for name in ("drop", "pass"))
            new_array = _pin_over(pins / "jump_table", make_array)
            service.wait_for(f'"id":{new_array},"event":"followed its pin"')
            service.wait_for(f'"id":{new_drop},"event":"followed its pin"')
            service.wait_for(f'"leads_to":{new_pass},"event":"the pin leads to another object now"')
            told = client.get("/maps/jump_table").json()
            assert (told["id"], [each["index"] for each in told["drift"]]) == (new_array, [3])
            assert client.get("/programs/drop").json()["id"] == new_drop
            assert [f"(id {new_pass})" in reason for reason in client.get("/readyz").json()["reasons"]] == [True]
            refused = client.put("/maps/jump_table/entries/4", json={"program": "pass"})
            assert (refused.status_code, refused.json()["code"]) == (409, "pin-moved")
            assert client.post("/maps/jump_table/reconcile", json={"to": "journal"}).status_code == 200
            assert client.get("/maps/jump_table/entries/3").json()["program"]["name"] == "drop"
            assert service.stop() == 0


class TestKill:
    @pytest.mark.slow
    @pytest.mark.parametrize("durability", ["power", "process"])
    def test_every_answered_change_is_in_the_journal(
        self, prepared: tuple[Path, Path], tmp_path: Path, durability: str
    ) -> None:
        """The service is killed during a loop of PUTs. The entry is that of the last change or of the next."""
        _, config = prepared
        config.write_text(config.read_text().replace("[server]", f'[server]\ndurability = "{durability}"'))
        answered: list[int] = []
        for round_ in range(4):
            with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
                killer = threading.Timer(0.1 + 0.05 * round_, service.process.kill)
                killer.start()
                with pytest.raises(httpx.TransportError):
                    _put_until_it_dies(client, answered)
                killer.join()
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            found: list[int] = []
            while page := client.get("/changes", params={"after": found[-1] if found else 0, "limit": 1000}).json():
                found += [change["id"] for change in page["changes"]]
                if page["next"] is None:
                    break
            assert set(answered) <= set(found)
            assert found == list(range(1, len(found) + 1))
            last = client.get(f"/changes/{found[-1]}").json()["entries"][0]
            holds = client.get("/maps/jump_table/entries/3").json()["program"]["name"]
            assert holds in {"drop", "pass"}
            # The kernel is ahead by at most the one change that was under way.
            if holds != last["after"]["name"]:
                assert found[-1] == answered[-1]


class TestDemo:
    @pytest.mark.slow
    def test_tail_call_follows_each_change_at_once(self) -> None:
        """Another process runs `entry` by its id with BPF_PROG_TEST_RUN right after each change."""
        with demo("--kernel", "linux") as service, service.client() as client:
            entry_id = client.get("/programs/entry").json()["id"]
            packet = bytes([3]) + bytes(13)
            for program, returned in (("drop", 1), ("pass", 2), ("tx", 3), ("count", 2)):
                client.put("/maps/jump_table/entries/3", json={"program": program})
                assert Script().run(entry_id, packet) == returned
            client.delete("/maps/jump_table/entries/3")
            assert Script().run(entry_id, packet) == 0

    def test_demo_leaves_no_map_and_no_program_behind(self) -> None:
        with demo("--kernel", "auto") as service:
            ids = _ids(service)
            assert service.stop() == 0
        for next_id, id_ in zip((_NextId.MAP_GET_NEXT_ID, _NextId.PROG_GET_NEXT_ID), ids, strict=True):
            deadline = time.monotonic() + 30
            while _is_there(next_id, id_):  # the kernel frees a little later
                assert time.monotonic() < deadline, "it is still there"

    def test_demo_without_privileges_uses_the_kernel_in_memory(self) -> None:
        with demo("--kernel", "auto", first=WITHOUT_CAPABILITIES) as service, service.client() as client:
            assert client.get("/version").json()["kernel"] == "memory"
            line = service.wait_for(".*demo on a kernel in memory.*")[0]
            assert "MAP_CREATE (EPERM): the service lacks CAP_BPF" in line
            client.put("/maps/jump_table/entries/3", json={"program": "drop"})
            assert _run(client) == "XDP_DROP"

    def test_demo_without_privileges_refuses_the_linux_kernel(self) -> None:
        with running("demo", "--port", "0", "--kernel", "linux", first=WITHOUT_CAPABILITIES) as service:
            assert (
                "CAP_BPF; give it that, and restart it; run as root with all capabilities, or with --kernel memory"
                in service.output()
            )
            assert service.process.wait(20) == 1


def _put_until_it_dies(client: httpx.Client, answered: list[int]) -> None:
    for number in itertools.count():
        put = client.put("/maps/jump_table/entries/3", json={"program": ("drop", "pass")[number % 2]})
        assert put.is_success
        if "change-id" in put.headers:
            answered.append(int(put.headers["change-id"]))


def _ids(service: Service) -> tuple[int, int]:
    with service.client() as client:
        return client.get("/maps/jump_table").json()["id"], client.get("/programs/drop").json()["id"]


def _is_there(next_id: _NextId, id_: int) -> bool:
    """Whether the kernel has it. Nothing is opened: an array that is opened while it is emptied may stay for good."""
    fields = attr.GetId(id=id_ - 1)
    with contextlib.suppress(FileNotFoundError):
        bpf(cast("Cmd", next_id), fields)
    return bool(fields.next_id == id_)


def _run(client: httpx.Client) -> str:
    return run_at(client, 3)


def run_at(client: httpx.Client, index: int) -> str:
    answer = client.post("/programs/entry/run", json={"packet": f"{index:02x}" + "00" * 13})
    return str(answer.json()["meaning"])


def test_tests_run_in_a_mount_namespace_of_their_own(bpffs: Path) -> None:
    """Other processes do not see the mounts of a test, so none can be left behind."""
    assert Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/{os.getppid()}/ns/mnt").readlink()


def make_array(kernel: LinuxKernel) -> int:
    return kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "jump_table")


def load_program(kernel: LinuxKernel) -> int:
    return kernel.prog_load(ProgType.XDP, asm.returns(3), "anew")


def _pin_over(pin: Path, make: Callable[[LinuxKernel], int]) -> int:
    """Make a map or a program, pin it over the pin in one step, and return its id."""
    kernel = LinuxKernel()
    fd = make(kernel)
    kernel.obj_pin(fd, f"{pin}_new")
    Path(f"{pin}_new").rename(pin)
    id_ = kernel.map_info(fd).id if kernel.obj_kind(fd) == "map" else kernel.prog_info(fd).id
    kernel.close(fd)
    return id_
