"""What the service does while its keeper is gone, or does not answer."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.access.tokens import Token, TokenFile
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests.running import Service, serve

pytestmark = pytest.mark.kernel

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}/ours"]
{more}
[maps.table]
pinned = "{pins}/ours/table"
[programs.drop]
pinned = "{pins}/ours/drop"
[programs.pass]
pinned = "{pins}/ours/pass"
[tokens]
"""
ENTRY = "/maps/table/entries/1"


@pytest.fixture
def ours(bpffs: Path) -> Path:
    """A folder with the pins `table`, `drop` and `pass`."""
    kernel, folder = LinuxKernel(), bpffs / "ours"
    folder.mkdir()
    for fd, name in (
        (kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "table"), "table"),
        (kernel.prog_load(ProgType.XDP, asm.returns(1), "drop"), "drop"),
        (kernel.prog_load(ProgType.XDP, asm.returns(2), "pass"), "pass"),
    ):
        kernel.obj_pin(fd, str(folder / name))
        kernel.close(fd)
    return folder


@contextlib.contextmanager
def serving(ours: Path, folder: Path, more: str = "", first: str = "") -> Iterator[tuple[Service, httpx.Client, int]]:
    """Run the service. The last of what it yields is the process id of the keeper."""
    config = folder / "jumptable.toml"
    config.write_text(CONFIG.format(folder=folder, pins=ours.parent, more=more))
    with serve(config, folder / "run/api.sock", first=first) as service, service.client() as client:
        yield service, client, int(service.wait_for(r'"keeper":(\d+)')[1])


def until(is_so: Callable[[], bool]) -> None:
    """Wait at most 20 seconds for a condition."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.field
class TestUndo:
    @pytest.mark.parametrize("with_keep_dir", [True, False])
    def test_unconfirmed_change_is_undone_after_the_end_of_the_keeper(
        self, ours: Path, tmp_path: Path, with_keep_dir: bool
    ) -> None:
        """Field 26: what the listener has open is not asked of a keeper that is gone."""
        keep = ours.parent / "keep"
        with serving(ours, tmp_path, f'keep_dir = "{keep}"' if with_keep_dir else "") as (service, client, keeper):
            assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
            changed = client.put(f"{ENTRY}?confirm_within=1", json={"program": "pass"})
            os.kill(keeper, signal.SIGKILL)
            change = f"/changes/{changed.headers['change-id']}"
            until(lambda: client.get(change).json()["state"] == "expired")
            assert client.get(ENTRY).json()["program"]["name"] == "drop"
            assert not with_keep_dir or list(keep.iterdir()) == []
            assert service.stop() == 0

    def test_change_can_be_made_subject_to_confirmation_after_the_end_of_the_keeper(
        self, ours: Path, tmp_path: Path
    ) -> None:
        """Field 26: keep_dir is the listener's own, so it pins there without a keeper."""
        keep = ours.parent / "keep"
        with serving(ours, tmp_path, f'keep_dir = "{keep}"') as (service, client, keeper):
            assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
            os.kill(keeper, signal.SIGKILL)
            changed = client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
            assert changed.status_code == 200
            assert len(list(keep.iterdir())) == 1
            assert client.post(f"/changes/{changed.headers['change-id']}/revert").status_code == 200
            assert client.get(ENTRY).json()["program"]["name"] == "drop"
            assert list(keep.iterdir()) == []
            assert service.stop() == 0


UNDER_SYSTEMD = "import os; os.environ['INVOCATION_ID'] = '1'; os.environ.pop('SYSTEMD_EXEC_PID', None)"
BY_HAND = "import os; [os.environ.pop(each, None) for each in ('INVOCATION_ID', 'NOTIFY_SOCKET')]"


@pytest.mark.field
class TestEnd:
    def test_service_ends_with_its_keeper_so_that_systemd_restarts_both(self, ours: Path, tmp_path: Path) -> None:
        """Field 21: a killed keeper needs nobody to restart the service by hand."""
        for round_ in range(2):
            with serving(ours, tmp_path, first=UNDER_SYSTEMD) as (service, client, keeper):
                put = client.put(ENTRY, json={"program": ("drop", "pass")[round_]})
                assert put.status_code == (201, 200)[round_], "what was written is there after the restart"
                os.kill(keeper, signal.SIGKILL)
                assert service.process.wait(20) == 1
                [line] = [line for line in service.lines if "the keeper has ended" in line]
                assert json.loads(line)["ended_by"] == "SIGKILL"
        unit = Path(__file__).parents[2] / "deploy" / "jumptable.service"
        assert "\nRestart=on-failure\n" in unit.read_text()

    def test_service_goes_on_without_its_keeper_where_its_end_would_empty_an_array(
        self, ours: Path, tmp_path: Path
    ) -> None:
        """Field 21: what is pinned nowhere is named, and the service ends when it is released."""
        kernel = LinuxKernel()
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "loose")
        with serving(ours, tmp_path, first=UNDER_SYSTEMD) as (service, client, keeper):
            assert client.put("/maps/loose", json={"id": kernel.map_info(fd).id}).status_code == 201
            kernel.close(fd)
            assert client.put("/maps/loose/entries/0", json={"program": "drop"}).status_code == 201
            os.kill(keeper, signal.SIGKILL)
            line = service.wait_for(".*the keeper has ended, and the service goes on.*")[0]
            assert json.loads(line)["unpinned"] == ["map 'loose'"]
            assert client.get("/maps/loose/entries/0").json()["program"]["name"] == "drop"
            assert client.get("/readyz").status_code == 503
            assert client.delete("/maps/loose?force=true").status_code == 204
            assert service.process.wait(20) == 1

    def test_what_needs_the_keeper_is_503_without_it(self, ours: Path, tmp_path: Path) -> None:
        """Field 21: a token that cannot be checked is not wrong, and a pin that cannot be looked at is not gone."""
        tokens = TokenFile(tmp_path / "state/tokens.json")
        with serving(ours, tmp_path, first=BY_HAND) as (service, client, keeper):
            known, fresh = (
                {"Authorization": f"Bearer {tokens.add(Token(name, '', 'admin', time.time()))}"} for name in "ab"
            )
            assert client.get("/maps", headers=known).status_code == 200
            assert "\njumptable_keeper_failing 0.0\n" in client.get("/metrics").text
            os.kill(keeper, signal.SIGKILL)
            until(lambda: client.get("/readyz").status_code == 503)
            assert "\njumptable_keeper_failing 1.0\n" in client.get("/metrics").text
            assert client.get(ENTRY, headers=known).status_code == 404, "it was looked up before"
            for answer in (
                client.get("/maps", headers=fresh),
                client.get(ENTRY, headers={"Authorization": "Bearer jt_nonsense"}),
                client.put("/maps/other", json={"pinned": f"{ours}/table"}),
                client.put("/programs/other", json={"pinned": f"{ours}/drop"}),
                client.delete("/maps/table"),
            ):
                assert (answer.status_code, answer.json()["code"]) == (503, "keeper-unavailable")
            assert client.get("/maps/table").json()["warnings"] == []
            assert client.get("/healthz", headers=fresh).status_code == 200
            assert client.delete("/maps/table?force=true").status_code == 204
            assert service.stop() == 0


@pytest.mark.field
class TestHanging:
    def test_change_whose_undo_needs_the_keeper_says_that_it_does_not_answer(self, ours: Path, tmp_path: Path) -> None:
        """Its entry holds a program that the service could open by its id only."""
        kernel = LinuxKernel()
        table = kernel.obj_get(str(ours / "table"))
        lonely = kernel.prog_load(ProgType.XDP, asm.returns(3), "lonely")
        kernel.map_update(table, 1, lonely)
        for fd in (table, lonely):
            kernel.close(fd)
        with serving(ours, tmp_path, f'keep_dir = "{ours.parent}/keep"') as (service, client, keeper):
            os.kill(keeper, signal.SIGSTOP)
            try:
                refused = client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"})
                told = refused.json()
                assert (refused.status_code, told["code"], told["errno"]) == (503, "keeper-unavailable", "ETIMEDOUT")
                assert "does not answer" in told["detail"]
            finally:
                os.kill(keeper, signal.SIGCONT)
            until(lambda: client.get("/readyz").status_code == 200)
            assert client.put(f"{ENTRY}?confirm_within=60", json={"program": "pass"}).status_code == 200
            assert service.stop() == 0

    def test_service_answers_while_its_keeper_is_stopped_and_uses_it_when_it_goes_on(
        self, ours: Path, tmp_path: Path
    ) -> None:
        """Field 30: a keeper that hangs stops nobody who does not need it, and is not lost."""
        with serving(ours, tmp_path) as (service, client, keeper):
            os.kill(keeper, signal.SIGSTOP)
            try:
                refused = client.get("/maps", headers={"Authorization": "Bearer jt_nonsense"})
                assert (refused.status_code, refused.json()["code"]) == (503, "keeper-unavailable")
                with ThreadPoolExecutor() as pool, service.client() as other:
                    held = pool.submit(other.put, "/maps/other", json={"pinned": f"{ours}/other"})
                    began = time.monotonic()
                    for name in ("drop", "pass") * 10:
                        assert client.put(ENTRY, json={"program": name}).is_success
                        assert client.get("/maps").is_success
                    assert time.monotonic() - began < 5
                    assert "does not answer" in client.get("/readyz").json()["detail"]
                    assert not held.done(), "it waits for the keeper, and nobody waits for it"
                    os.kill(keeper, signal.SIGCONT)
                    assert held.result().json()["code"] == "pin-unusable", "there is no such pin"
            finally:
                os.kill(keeper, signal.SIGCONT)
            until(lambda: client.get("/readyz").status_code == 200)
            denied = client.get("/maps", headers={"Authorization": "Bearer jt_nonsense"})
            assert denied.status_code == 401
            assert client.put("/maps/made", json={"pinned": f"{ours}/made", "create": {"max_entries": 2}}).is_success
            assert service.stop() == 0
