"""The service as processes on the kernel that runs the tests: what an operator does first.

It also holds what the service does where a kernel lacks something: it says so, and goes on with what it has.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.cli.check import findings
from app.config import load
from tests import private_mounts, probes
from tests.running import Service, demo, running, serve

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(600)]

ENTRIES = 16_384
CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
keep_dir = "{pins}/keep"
[maps.table]
pinned = "{pins}/table"
create = {{ max_entries = {entries} }}
[programs.drop]
pinned = "{pins}/drop"
[programs.pass]
pinned = "{pins}/pass"
"""
NOBODY = 65534
# An emulated machine takes longer than the keeper gets on a real one.
PATIENT = """
from app.keeper import client
client.TIMEOUT_SECONDS = client._SLOW_SECONDS = 60.0
"""
LOW_MEMLOCK_BYTES = 1 << 16  # as on many machines; an array of ENTRIES takes more
LOW_MEMLOCK = f"""
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({LOW_MEMLOCK_BYTES}, {LOW_MEMLOCK_BYTES}))
"""
NO_RAISE = """
from app.sandbox.capabilities import CAPABILITIES, drop_capabilities
drop_capabilities(list(CAPABILITIES))  # CAP_SYS_RESOURCE is none of them
"""
NO_CAPABILITY = "from app.sandbox.capabilities import drop_capabilities; drop_capabilities([])"


def prepare(folder: Path, pins: Path) -> Path:
    """Pin two programs, and return the path of a configuration of them and of a table that is to be made."""
    kernel = LinuxKernel()
    for value, name in ((1, "drop"), (2, "pass")):
        fd = kernel.prog_load(ProgType.XDP, asm.returns(value), name)
        kernel.obj_pin(fd, f"{pins}/{name}")
        kernel.close(fd)
    (folder / "run").mkdir()
    file = folder / "jumptable.toml"
    file.write_text(CONFIG.format(folder=folder, pins=pins, entries=ENTRIES))
    return file


@pytest.fixture
def config(bpffs: Path, tmp_path: Path) -> Path:
    return prepare(tmp_path, bpffs)


@pytest.fixture(scope="class")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service for the tests of a class, as a start takes seconds under emulation; and the folder of its pins."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "bpf").mkdir()
    private_mounts.mount_bpffs(folder / "bpf")
    with serve(prepare(folder, folder / "bpf"), folder / "run/api.sock", first=PATIENT + LOW_MEMLOCK) as service:
        yield service, folder / "bpf"
    private_mounts.unmount(folder / "bpf")


@pytest.fixture
def service(shared: tuple[Service, Path]) -> Service:
    return shared[0]


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        client.timeout = httpx.Timeout(300)
        yield client


def listener(service: Service) -> dict[str, str]:
    """What /proc says of the process that speaks HTTP."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def answer(response: httpx.Response, status: int) -> Any:
    """The body of an answer that has this status."""
    assert response.status_code == status, response.text
    return response.json() if response.content else None


def owner() -> dict[str, object]:
    """What an array requires after an XDP program that names no attach type, as this kernel tells it."""
    attach_type = None if probes.compares_attach_types() else "unset"
    return {"program_type": "xdp", "attach_type": attach_type, "jited": True}


class TestDemo:
    def test_packets_take_the_jumps_that_are_set_confirmed_reverted_and_cleared(self) -> None:
        with demo("--kernel", "linux") as service, service.client() as client:

            def run(first: int = 3) -> int:
                packet = bytes([first, *bytes(13)]).hex()
                returned: int = answer(client.post("/programs/entry/run", json={"packet": packet}), 200)["returned"]
                return returned

            entry = "/maps/jump_table/entries/3"
            assert run() == 0
            answer(client.put(entry, json={"program": "drop"}), 201)
            assert run() == 1
            answer(client.put(entry, json={"program": "pass"}), 200)
            assert run() == 2
            assert answer(client.put(f"{entry}?dry_run=true", json={"program": "tx"}), 200)["fit"] == "tried"
            assert run() == 2
            answer(client.put("/maps/jump_table/entries", json={"programs": ["pass", None, "drop", "tx"]}), 200)
            assert [run(0), run(1), run(2), run(3)] == [2, 0, 1, 3]
            body = {"entries": [{"index": 0, "program": "drop"}]}
            changed = client.patch("/maps/jump_table/entries?confirm_within=60", json=body)
            answer(changed, 200)
            assert run(0) == 1
            change = f"/changes/{changed.headers['Change-Id']}"
            assert answer(client.post(f"{change}/confirm"), 200)["state"] == "confirmed"
            answer(client.post(f"{change}/revert"), 200)
            assert run(0) == 2
            answer(client.delete("/maps/jump_table/entries/0"), 204)
            assert run(0) == 0
            told = answer(client.get("/maps/jump_table"), 200)
            assert (told["used"], told["owner"]) == (2, owner())
            assert told["memlock"] >= 8 * 16
            assert answer(client.get("/readyz"), 200)["status"] == "ready"


class TestServe:
    def test_a_whole_table_is_set_confirmed_and_reverted(
        self, client: httpx.Client, shared: tuple[Service, Path]
    ) -> None:
        kernel = LinuxKernel()
        table = kernel.obj_get(f"{shared[1]}/table")
        ids = {name: answer(client.get(f"/programs/{name}"), 200)["id"] for name in ("drop", "pass")}
        names = ["drop", "pass"] * (ENTRIES // 2)
        done = answer(client.put("/maps/table/entries", json={"programs": names}), 200)
        assert done["set"] + done["unchanged"] == ENTRIES
        assert list(kernel.map_ids(table, 0, ENTRIES)) == [ids[name] for name in names]
        body = {"entries": [{"index": index, "program": "pass"} for index in range(8)]}
        changed = client.patch("/maps/table/entries?confirm_within=600", json=body)
        answer(changed, 200)
        change = f"/changes/{changed.headers['Change-Id']}"
        assert kernel.map_lookup(table, 0) == ids["pass"]
        assert answer(client.post(f"{change}/confirm"), 200)["state"] == "confirmed"
        answer(client.post(f"{change}/revert"), 200)
        assert list(kernel.map_ids(table, 0, 8)) == [ids[name] for name in names[:8]]
        listed = answer(client.get("/maps/table/entries"), 200)["entries"]
        assert [each["program"]["name"] for each in listed] == names
        kernel.close(table)

    def test_others_are_answered_while_a_table_is_written(self, service: Service, client: httpx.Client) -> None:
        statuses: list[int] = []

        def write() -> None:
            statuses.append(client.put("/maps/table/entries", json={"programs": ["drop"] * ENTRIES}).status_code)

        thread, waits = threading.Thread(target=write), [time.perf_counter()]
        with service.client() as other:
            thread.start()
            while thread.is_alive():
                answer(other.get("/programs/drop"), 200)
                waits.append(time.perf_counter())
            thread.join()
        took, longest = waits[-1] - waits[0], max(after - before for before, after in pairwise(waits))
        print(f"a table in {took:.2f} s, and the longest answer to another request in {longest:.3f} s")
        assert statuses == [200]
        assert longest < 0.8 * took

    def test_the_listener_has_no_rights_but_those_that_this_kernel_demands(
        self, service: Service, client: httpx.Client
    ) -> None:
        told = listener(service)
        demanded = 1 << 39 if probes.bpf_without_capability() else 0  # CAP_BPF
        assert {int(told[name], 16) for name in ("CapEff", "CapPrm")} == {demanded}
        assert set(told["Uid"].split()) == {str(NOBODY)}
        assert told["NoNewPrivs"] == "1"
        assert answer(client.get("/readyz"), 200)["status"] == "ready"

    def test_all_that_is_known_of_a_map_is_told(self, service: Service, client: httpx.Client) -> None:
        """Before Linux 5.14 the listener may not read fdinfo: the keeper reads it."""
        client.put("/maps/table/entries/1", json={"program": "drop"})
        told = answer(client.get("/maps/table"), 200)
        assert told["memlock"] >= 8 * ENTRIES
        assert (told["frozen"], told["owner"]) == (False, owner())
        assert told["warnings"] == []

    def test_version_tells_what_the_kernel_can(self, client: httpx.Client) -> None:
        told = {each["name"]: each["can"] for each in answer(client.get("/version"), 200)["abilities"]}
        assert told == {
            "writer": probes.writer() is None,
            "reader": probes.btf() is None,
            "iterators": probes.iterators() is None,
            "without capability": probes.bpf_without_capability() is None,
            "memlock": True,  # as the limit is raised
        }

    def test_memlock_is_raised_where_the_kernel_counts_maps_against_it_and_only_there(self, service: Service) -> None:
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()
        [found] = [line.split()[3] for line in limits.splitlines() if line.startswith("Max locked memory")]
        assert found == ("unlimited" if probes.unlimited_maps() else str(LOW_MEMLOCK_BYTES))

    def test_check_tells_what_the_kernel_can(self, shared: tuple[Service, Path]) -> None:
        found = {each.subject: each for each in findings(load(shared[1].parent / "jumptable.toml"))}
        for name in ("writer", "reader", "iterators", "without capability", "memlock"):
            assert found[f"kernel: {name}"].mark == "ok"
        assert "WRONG" not in {each.mark for each in found.values()}

    def test_what_a_dead_keeper_cannot_tell_is_null_with_a_warning(
        self, service: Service, client: httpx.Client
    ) -> None:
        """The last test of this class, as it kills the keeper of the shared service."""
        keeper = int(service.wait_for(r'"keeper":(\d+)')[1])
        os.kill(keeper, 9)
        service.wait_for("keeper has ended|keeper.*ended")
        told = answer(client.get("/maps/table"), 200)
        unreadable = told["memlock"] is None
        assert unreadable == (probes.own_fdinfo() is not None)
        assert any("memlock" in each for each in told["warnings"]) == unreadable


class TestMemlock:
    """RLIMIT_MEMLOCK, against which some kernels count maps."""

    def test_a_limit_that_cannot_be_raised_is_told_as_the_reason(self, config: Path, tmp_path: Path) -> None:
        counts = probes.unlimited_maps() is not None
        first = PATIENT + LOW_MEMLOCK + NO_RAISE
        with serve(config, tmp_path / "run/api.sock", first=first) as service, service.client() as client:
            told = answer(client.get("/maps/table"), 200)
            [memlock] = [each for each in client.get("/version").json()["abilities"] if each["name"] == "memlock"]
        assert told["state"] == ("unavailable" if counts else "held")
        assert ("RLIMIT_MEMLOCK" in (told["reason"] or "")) == counts
        assert memlock["can"] is not counts

    def test_a_missing_capability_is_not_taken_for_the_limit(self) -> None:
        code = f"""{LOW_MEMLOCK}{NO_CAPABILITY}
from app.bpf.linux import LinuxKernel
try:
    LinuxKernel().map_create({MapType.PROG_ARRAY:d}, 4, 4, 8)
except PermissionError:
    print("EPERM")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "EPERM\n"


class TestWithoutCapability:
    def test_serve_works_or_says_why_it_cannot(self, config: Path, bpffs: Path, tmp_path: Path) -> None:
        kernel = LinuxKernel()
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8, "table")
        kernel.obj_pin(fd, f"{bpffs}/table")
        kernel.close(fd)
        config.write_text(config.read_text().replace(f'keep_dir = "{bpffs}/keep"\n', ""))
        if probes.bpf_without_capability() is not None:
            with running("serve", "--config", str(config), first=NO_CAPABILITY) as service:
                told = service.output()
            assert service.process.returncode == 1
            assert re.fullmatch(r"jumptable: this kernel answers no bpf\(2\) call .* without CAP_BPF.*\n", told)
            return
        with serve(config, tmp_path / "run/api.sock", first=NO_CAPABILITY) as service, service.client() as client:
            answer(client.put("/maps/table/entries/1", json={"program": "drop"}), 201)
            assert answer(client.get("/readyz"), 200)["status"] == "ready"
