"""A low RLIMIT_NOFILE: the service keeps the open files back that it needs for an undo, the keeper and readiness."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import Service, running, serve
from tests.system.conftest import TABLE, prepare

pytestmark = [pytest.mark.kernel, pytest.mark.field]

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
keep_dir = "{pins}/keep"
[maps.table]
pinned = "{pins}/table"
[programs.drop]
pinned = "{pins}/drop"
[programs.tx]
pinned = "{pins}/tx"
[limits]
header_seconds = 100.0
"""


def limited(number: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({number}, {number}))"


@pytest.fixture
def config(bpffs: Path, tmp_path: Path) -> Path:
    (bpffs / "pins").mkdir()
    prepare(bpffs / "pins")
    file = tmp_path / "jumptable.toml"
    file.write_text(CONFIG.format(folder=tmp_path, pins=bpffs / "pins").replace("pins/keep", "keep"))
    return file


@contextlib.contextmanager
def silent_connections(service: Service, count: int) -> Iterator[None]:
    """Connect so often and send nothing. Some may be closed at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            each = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            each.connect(str(service.socket))
        yield


def _until_ready(client: httpx.Client) -> None:
    """Ask until it is. On a busy machine the keeper may be late: 503. Without descriptors it would be 500."""
    deadline = time.monotonic() + 30
    while not (answer := client.get("/readyz")).is_success:
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text


@pytest.mark.parametrize(
    ("limit", "connections"), [(64, 200), pytest.param(4096, 4300, marks=pytest.mark.slow), (256, 1000)]
)
def test_silent_connections_leave_files_for_what_counts(
    config: Path, bpffs: Path, tmp_path: Path, limit: int, connections: int
) -> None:
    """Field 16: with all descriptors in silent connections, the undo failed with EMFILE, and /readyz was 500."""
    with serve(config, tmp_path / "run/api.sock", first=limited(limit)) as service, service.client() as client:
        service.wait_for("the limits are lower than configured")
        _until_ready(client)
        with silent_connections(service, connections):
            for _ in range(20):
                answer = client.get("/readyz")
                assert answer.is_success, answer.text
            fds = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
            assert fds <= limit - 8
            answer = client.put(f"{TABLE}/0", json={"program": "tx"}, params={"confirm_within": 1})
            assert answer.is_success, answer.text
            change = answer.headers["change-id"]
            service.wait_for("undone, as nobody confirmed it")
            while client.get(f"/changes/{change}").json()["state"] != "expired":
                pass
            assert client.get(f"{TABLE}/0").json()["program"]["name"] == "drop"
            answer = client.put("/programs/pass", json={"pinned": str(bpffs / "pins/pass")})
            assert answer.status_code == 201, answer.text
            answer = client.put(f"{TABLE}/5", json={"program": "pass"}, params={"dry_run": "true"})
            assert answer.is_success, answer.text
        assert "EMFILE" not in "".join(service.lines)
        assert "Traceback" not in "".join(service.lines)
    with serve(config, tmp_path / "run/api.sock", first=limited(limit)) as service, service.client() as client:
        assert client.get("/readyz").is_success


def test_accept_goes_on_after_it_has_met_emfile(config: Path, tmp_path: Path) -> None:
    """Field 16: somebody else's library has taken the reserve. New connections are dropped, and later served again."""
    unbounded = """
from app.api.limits import Bounds
from app.server import assemble
assemble.connection_bounds = lambda *_: Bounds(connections=4096)
"""
    with serve(config, tmp_path / "run/api.sock", first=f"{limited(64)}{unbounded}") as service:
        with silent_connections(service, 200):
            fds = Path(f"/proc/{service.process.pid}/fd")
            while len(list(fds.iterdir())) < 60:
                assert service.process.poll() is None
        with service.client() as client:
            assert client.get("/readyz").is_success
        assert service.stop() == 0


def test_holds_and_replaced_programs_are_bounded_too(config: Path, bpffs: Path, tmp_path: Path) -> None:
    """Field 16: whoever may hold programs could take the last descriptor."""
    with serve(config, tmp_path / "run/api.sock", first=limited(64)) as service, service.client() as client:
        answers = [client.put(f"/programs/p{n}", json={"pinned": str(bpffs / "pins/pass")}) for n in range(64)]
        assert {each.status_code for each in answers} == {201, 429}
        assert client.get("/readyz").is_success


def test_a_limit_that_is_too_low_ends_the_start_with_advice(config: Path) -> None:
    """Field 16: it is told at the start, not by the first undo."""
    with running("serve", "--config", str(config), first=limited(48)) as service:
        assert service.process.wait(30) == 1
        assert "RLIMIT_NOFILE is 48, which is too low to hold 3 maps and programs and serve" in service.output()
