"""Object files through the whole service: the listener without rights, the keeper, and a process for each file."""

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.compiled import object_file
from tests.running import Service, serve

pytestmark = [
    pytest.mark.kernel,
]

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
keep_dir = "{pins}/keep"
user = "nobody"
[maps.table]
pinned = "{pins}/table"
create = {{ max_entries = 16 }}
[objects]
object_dirs = ["{folder}/objects"]
upload = true
timeout = 10.0
"""
BINARY = {"Content-Type": "application/octet-stream"}
PARSER = "/objects/parser"
FUZZED = int(os.environ.get("FUZZED_OBJECTS", "250"))  # more take longer than a test may; see SEED
SEED = int(os.environ.get("FUZZED_SEED", "14"))


@pytest.fixture
def config(bpffs: Path, tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    for name in ("parser", "root"):
        (tmp_path / "objects" / f"{name}.o").write_bytes(object_file(name))
    tmp_path.chmod(0o755)
    file = tmp_path / "jumptable.toml"
    file.write_text(CONFIG.format(folder=tmp_path, pins=bpffs))
    return file


def keeper_of(service: Service) -> int:
    """The keeper: the child of the service."""
    pid = service.process.pid
    [keeper] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(keeper)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def loader_of(keeper: int) -> int:
    """The process that loads a file, once it is that: until it is executed, the keeper itself waits for it."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [
            int(pid) for pid in children_of(keeper) if b"app.loader" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return bool(found)

    until(is_there)
    return found[0]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it is not so yet"
        time.sleep(0.01)


def verdict(client: httpx.Client, first: int) -> str:
    body = {"packet": f"{first:02x}" + "00" * 63}
    meaning: str = client.post("/programs/parser.entry/run", json=body).json()["meaning"]
    return meaning


def test_listener_without_rights_has_files_loaded_and_finds_them_again(config: Path, bpffs: Path) -> None:
    socket, folder = config.parent / "run/api.sock", config.parent
    body = {"file": f"{folder}/objects/parser.o", "switch": {"map": "table", "index": 0, "program": "entry"}}
    with serve(config, socket) as service, service.client() as client:
        answer = client.put(PARSER, json=body)
        assert answer.status_code == 201, answer.text
        told = answer.json()["object"]
        assert told["warnings"] == [], "the process was confined, and all is pinned"
        assert [verdict(client, first) for first in (1, 2, 3, 4)] == ["XDP_PASS", "XDP_PASS", "XDP_DROP", "XDP_ABORTED"]
        until(lambda: not children_of(keeper_of(service)))
        assert client.get("/programs/parser.entry").json()["uid"] == 65534
    with serve(config, socket) as service, service.client() as client:
        assert client.get(PARSER).json() == told
        assert client.get("/readyz").status_code == 200
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(10)
    with serve(config, socket) as service, service.client() as client:
        assert client.get(PARSER).json() == told
        assert client.get("/maps/table/entries/0").json()["program"]["name"] == "parser.entry"
        again = client.put(PARSER, json=body | {"variables": {"label": "x"}, "maps": {"stats": {"use": "previous"}}})
        assert (again.status_code, len(again.json()["changes"])) == (200, 1), again.text
        assert verdict(client, 3) == "XDP_TX"
        assert client.post(f"/changes/{again.headers['change-id']}/revert").status_code == 200


def test_keeper_answers_others_while_a_file_hangs_and_ends_what_hangs(config: Path) -> None:
    """The process that loads it is stopped, as one that waits for ever in the kernel."""
    with serve(config, config.parent / "run/api.sock") as service, service.client() as client:
        keeper = keeper_of(service)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.put, PARSER, content=object_file("parser"), headers=BINARY)
            os.kill(loader_of(keeper), signal.SIGSTOP)
            with service.client() as other:
                began = time.monotonic()
                assert other.put("/maps/more", json={"pinned": "/none"}).status_code in {403, 422}
                assert other.get("/readyz").status_code == 200
                assert time.monotonic() - began < 2.0
            answer = slow.result(30)
        assert (answer.status_code, answer.json()["code"]) == (422, "object-timeout")
        for pid in children_of(keeper):
            os.kill(int(pid), signal.SIGCONT)
        until(lambda: not children_of(keeper))
        again = client.put(PARSER, content=object_file("parser"), headers=BINARY)
        assert again.status_code == 201, again.text


def test_service_that_ends_does_not_wait_for_a_file_that_hangs(config: Path) -> None:
    with serve(config, config.parent / "run/api.sock") as service, service.client() as client:
        keeper = keeper_of(service)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.put, PARSER, content=object_file("parser"), headers=BINARY)
            pid = loader_of(keeper)
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 8.0
            assert slow.exception(10) is not None or slow.result().status_code == 503
        until(lambda: not Path(f"/proc/{pid}").exists())  # it ends with the keeper


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mutated_files_end_in_an_answer_and_leave_the_keeper_as_it_was(config: Path) -> None:
    """No 500, the keeper lives, its memory is flat, and no process, pin or fd is left."""
    seeds = [object_file(name) for name in ("parser", "generation", "root", "refused")]
    chance = random.Random(SEED)
    with serve(config, config.parent / "run/api.sock") as service, service.client() as client:
        keeper = keeper_of(service)
        for _ in range(4):
            client.put(f"{PARSER}?dry_run=true", content=seeds[0], headers=BINARY)
        until(lambda: not children_of(keeper))  # what is open for a load is closed with its process
        before = resident_bytes(keeper), len(list(Path(f"/proc/{keeper}/fd").iterdir()))
        listener_fds = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
        codes: dict[str, int] = {}
        lock = threading.Lock()

        def send(content: bytes) -> None:
            answer = client.put(f"{PARSER}?dry_run=true", content=content, headers=BINARY)
            code = "loaded" if answer.is_success else answer.json()["code"]
            with lock:
                codes[code] = codes.get(code, 0) + 1
            assert answer.status_code < 500, answer.text

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(send, mutated(chance.choice(seeds), chance)) for _ in range(FUZZED)]:
                done.result()
        print(f"{FUZZED} mutated files: {codes}; keeper {before[0] >> 10} -> {resident_bytes(keeper) >> 10} KiB")
        until(lambda: not children_of(keeper))
        assert keeper_of(service) == keeper
        assert resident_bytes(keeper) - before[0] < 5 << 20
        assert len(list(Path(f"/proc/{keeper}/fd").iterdir())) == before[1]
        assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) <= listener_fds + 2, "a connection or two"
        assert client.get("/objects").json()["objects"] == []
        assert client.put(PARSER, content=seeds[0], headers=BINARY).status_code == 201
    assert sum(codes.values()) == FUZZED
    assert {"loaded", "object-refused", "object-unreadable"} <= set(codes)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, or cut off, or doubled."""
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 9)):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place] = chance.randrange(256)
            case 2:
                size = chance.choice((2, 4, 8))
                changed[place : place + size] = chance.choice((b"\xff" * size, bytes(size), chance.randbytes(size)))
            case _:
                changed[64 + place % 640] = chance.randrange(256)
    return bytes(changed[: chance.randrange(len(changed))]) if chance.random() < 0.05 else bytes(changed)


@pytest.mark.slow
def test_an_object_takes_less_than_300_ms_of_the_processor_and_no_memory_of_the_keeper(config: Path) -> None:
    """In all: the listener, the keeper, and the process that loads it. It has 16 programs."""
    content = object_file("jumps")
    with serve(config, config.parent / "run/api.sock") as service, service.client() as client:
        keeper, spent, memory = keeper_of(service), [], 0
        for number in range(40):
            before = cpu_seconds(service.process.pid) + cpu_seconds(keeper)
            answer = client.put(PARSER, content=content, headers=BINARY)
            assert answer.status_code == 201, answer.text
            spent.append(cpu_seconds(service.process.pid) + cpu_seconds(keeper) - before)
            assert len(answer.json()["object"]["programs"]) == 16
            assert client.delete(PARSER).status_code == 204
            if number == 3:
                memory = resident_bytes(keeper)
        grown = resident_bytes(keeper) - memory
        print(f"CPU of a load: median {1e3 * statistics.median(spent):.0f} ms; the keeper grew by {grown >> 10} KiB")
        assert statistics.median(spent) < 0.3
        assert grown < 5 << 20


def cpu_seconds(pid: int) -> float:
    """What a process and the children that it has waited for have spent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
