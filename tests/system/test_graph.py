"""The graph of what clang compiles, and as `jumptable serve` tells it: by a listener without capabilities."""

import statistics
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import AttachType, MapType, ProgType
from tests.compiled import load_object
from tests.networks import network
from tests.running import serve

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
[maps.parser]
pinned = "{pins}/parser/maps/table"
"""

# The jumps of each program in tests/objects/jumps.bpf.c: array, indexes, certain.
EXPECTED = {
    "constant": [("first", (3,), True)],
    "two_arrays": [("first", (1,), True), ("second", (2,), True)],
    "switched": [("first", (0, 2, 5, 6), False)],
    "merged": [("first", (5, 6), False), ("second", (5, 6), False)],
    "masked": [("first", (0, 1, 2, 3), False)],
    "compared": [("first", (0, 1, 2), False)],
    "from_packet": [("first", None, False)],
    "from_map": [("first", None, False)],
    "from_constant": [("first", (4,), True)],
    "from_variable": [("first", None, False)],
    "in_function": [("second", (4,), True)],
    "after_calls": [("second", (1, 7), False)],
    "looped": [("first", (0, 1, 2, 3), True)],
    "beyond_end": [("first", (200,), True)],
    "never": [],
    "none": [],
}


def test_indexes_are_found_in_what_clang_compiles(bpffs: Path, tmp_path: Path) -> None:
    ids = load_object("jumps", tmp_path, bpffs / "jumps")
    codes = LinuxKernel().codes(list(ids.values()))
    names = {ids["first"]: "first", ids["second"]: "second"}
    found_by_name = {
        name: [(names[jump.array or 0], jump.indexes, jump.certain) for jump in codes[id_].jumps or ()]
        for name, id_ in ids.items()
        if id_ in codes and name not in names.values()
    }
    assert {name: found_by_name[name] for name in EXPECTED} == EXPECTED


@pytest.fixture
def parser(bpffs: Path, tmp_path: Path) -> dict[str, int]:
    """A parser that is pinned, and a configuration that names its array. The id of each program and map by its name."""
    ids = load_object("xdp_chain", tmp_path, bpffs / "parser")
    (tmp_path / "jumptable.toml").write_text(CONFIG.format(folder=tmp_path, pins=bpffs))
    return ids


def test_service_without_capabilities_tells_who_jumps_where(
    parser: dict[str, int], bpffs: Path, tmp_path: Path
) -> None:
    kernel = LinuxKernel()
    with network() as net, ExitStack() as kept:
        entry = kernel.obj_get(f"{bpffs}/parser/programs/entry")
        kept.callback(kernel.close, entry)
        kept.callback(kernel.close, net.link(entry, "one", AttachType.XDP, flags=2))
        with serve(tmp_path / "jumptable.toml", tmp_path / "run/api.sock") as service, service.client() as client:
            found = client.get("/graph?map=parser").raise_for_status().json()
            edges = {each["program"]: (each["indexes"], each["certain"]) for each in found["edges"]}
            assert edges == {parser["entry"]: (None, False), parser["parse_ip"]: ([2, 9], True)}
            assert {each["code"] for each in found["programs"]} == {"read"}
            assert {each["reached"] for each in found["programs"]} == {"attached"}
            assert [(each["program"], each["kind"]) for each in found["attachments"]] == [(parser["entry"], "xdp")]
            told = client.get("/maps/parser").json()
            assert told["owner"] == {"program_type": "xdp", "attach_type": "xdp", "jited": True}
            assert [(each["id"], each["indexes"]) for each in told["callers"]] == [(parser["parse_ip"], [2, 9])]
            fd = kernel.prog_load(ProgType.XDP, asm.returns(2), "unset")
            kept.callback(kernel.close, fd)
            body = {"program": {"id": kernel.prog_info(fd).id}}
            problem = client.put("/maps/parser/entries/4", json=body).json()
            assert (problem["code"], problem["owner_attach_type"], problem["attach_type"]) == (
                "program-incompatible", "xdp", "unset",
            )  # fmt: skip
            dry = client.patch(
                "/maps/parser/entries?dry_run=true", json={"entries": [{"index": 2, "program": None}]}
            ).json()
            assert any("jumps to entry 2 of 'parser', which would be empty" in each for each in dry["warnings"])


@pytest.mark.timeout(300)
def test_graph_of_a_thousand_programs_takes_less_than_a_second_and_holds_up_nobody(
    parser: dict[str, int], tmp_path: Path
) -> None:
    """Its time is that of the processor, in the listener and the keeper, as other tests run at the same time."""
    kernel = LinuxKernel()
    with ExitStack() as kept:
        for _ in range(100):
            array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "table")
            kept.callback(kernel.close, array)
            for index in range(10):
                jump = asm.map_fd(2, array) + asm.mov(3, index + 1) + asm.tail_call() + asm.returns(0)
                program = kernel.prog_load(ProgType.XDP, jump, "hop")
                kernel.map_update(array, index, program)
                kernel.close(program)
        with serve(tmp_path / "jumptable.toml", tmp_path / "run/api.sock") as service, service.client() as client:
            processes = service.process.pid, int(service.wait_for(r'"keeper":(\d+)')[1])
            began = _processor_seconds(*processes)
            found = client.get("/graph").json()
            assert _processor_seconds(*processes) - began < 1.0
            assert len(found["programs"]) >= 1000
            alone = _times(client, 200)
            has_ended = threading.Event()
            thread = threading.Thread(target=_ask_for_graphs, args=(service.client(), has_ended))
            thread.start()
            try:
                beside = _times(client, 200)
            finally:
                has_ended.set()
                thread.join()
            # Graphs are made all the time, and nearly all requests beside wait for less than two of its slices.
            assert statistics.median(beside) < statistics.median(alone) + 0.02


def _times(client: httpx.Client, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        assert client.get("/maps/parser/entries/1").status_code == 200
        times.append(time.perf_counter() - began)
    return times


def _ask_for_graphs(client: httpx.Client, has_ended: threading.Event) -> None:
    with client:
        while not has_ended.is_set():
            assert client.get("/graph").status_code == 200


def _processor_seconds(*processes: int) -> float:
    """The time that these processes have spent, in seconds: utime and stime of proc(5)."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100
