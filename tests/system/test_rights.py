"""The rights of the processes of `serve`, and what works with these rights."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from app.access.tokens import Token, TokenFile
from tests import private_mounts
from tests.api.test_access import REQUESTS
from tests.running import Service, running, serve
from tests.system.conftest import prepare
from tests.system.test_serve import CONFIG, other, prepared, run_at

__all__ = ["other", "prepared"]

pytestmark = pytest.mark.kernel

NOBODY = 65534
# The switch of the user comes after all imports, because the interpreter may be in a folder that only root may read.
AS_NOBODY = f"""
import os
from app.server import run as server
from app.server import startup as start
server.preload({NOBODY})
from app.cli import serve as command
command.preload = lambda uid: None
def service_user(settings):
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
start.service_user = service_user
"""
NO_LATE_IMPORT = """
import sys
from app.server import startup as start
from app.api.deferred import Application
class Late:
    loads = False
    def find_spec(self, name, *_):
        if not self.loads:
            print("imported late:", name, flush=True)
late = Late()
give_up_rights = start.give_up_rights
start.give_up_rights = lambda kernel: (give_up_rights(kernel), sys.meta_path.insert(0, late))
load = Application._load
async def loading(application):
    late.loads = True
    try:
        return await load(application)
    finally:
        late.loads = False
Application._load = loading
"""


class TestLeastPrivilege:
    def test_listener_has_no_capability(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """It still holds new pins, creates arrays, and finds programs by their ids."""
        pins, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            told = _status(service)
            assert set(told["Uid"].split()) == {str((tmp_path / "state").stat().st_uid)} != {"0"}
            assert _capabilities(service) == {0}
            assert told["NoNewPrivs"] == "1"
            assert client.get("/version").json()["keeper"] == "running"
            body = {"pinned": f"{pins}/fresh", "create": {"max_entries": 4}}
            assert client.put("/maps/fresh", json=body).status_code == 201
            drop = client.get("/programs/drop").json()["id"]
            client.delete("/programs/drop")
            assert client.put("/maps/fresh/entries/0", json={"program": {"id": drop}}).status_code == 201
            assert client.get("/maps/fresh").json()["owner"] == {"program_type": "xdp", "jited": True}

    @pytest.mark.field
    def test_processes_are_shown_by_their_names(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """Field 25: `ps` and `top` tell the processes from any other Python, and from each other."""
        _, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service:
            keeper = int(service.wait_for(r'"keeper":(\d+)')[1])
            for pid, name in ((service.process.pid, "jumptable: listener"), (keeper, "jumptable: keeper")):
                assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() == name
                assert Path(f"/proc/{pid}/comm").read_text() == f"{name[:15]}\n"

    def test_nothing_is_imported_after_the_rights_are_given_up(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """The interpreter or the checkout may be in a home folder that only root may enter."""
        _, config = prepared
        with serve(config, tmp_path / "run/api.sock", first=NO_LATE_IMPORT) as service, service.client() as client:
            for method, path, body in REQUESTS.values():
                answer = client.request(method, path, json=body)
                assert answer.status_code not in {500, 501}, answer.text
            assert client.get("/nowhere").status_code == 404
            assert client.put("/maps/jump_table/entries/1", content=b"{").status_code == 415
            assert service.stop() == 0
        assert "imported late" not in service.output()

    def test_listener_keeps_cap_bpf_only_where_bpf_needs_it(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """Kernel: on Linux 5.10 kernel.unprivileged_bpf_disabled refuses all of bpf(2) without CAP_BPF."""
        _, config = prepared
        first = (
            "from app.server import startup\n"
            "startup.refuses_all = lambda _: 'CAP_BPF' not in startup.effective_capabilities()"
        )
        with serve(config, tmp_path / "run/api.sock", first=first) as service, service.client() as client:
            service.wait_for("keeps a capability.*CAP_BPF|CAP_BPF.*keeps a capability")
            assert _capabilities(service) == {1 << 39}
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201

    def test_tokens_follow_the_file(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """The file is in a folder that the listening process may not enter."""
        _, config = prepared
        (tmp_path / "root").mkdir(0o700)
        file = TokenFile(tmp_path / "root/tokens.json")
        config.write_text(f'{config.read_text()}[tokens]\nfile = "{file.path}"\n')
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:

            def status(secret: str) -> int:
                return client.get("/maps", headers={"Authorization": f"Bearer {secret}"}).status_code

            first = file.add(Token("first", "", "reader", 0.0))
            assert [status(first) for _ in range(3)] == [200] * 3
            second = file.add(Token("second", "", "reader", 0.0))
            assert [status(first), status(second)] == [200, 200]
            rotated = file.rotate("first")
            assert [status(first), status(second), status(rotated)] == [401, 200, 200]
            file.revoke("first")
            assert [status(second), status(rotated)] == [200, 401]
            file.path.rename(tmp_path / "root/away")
            assert status(second) == 401
            (tmp_path / "root/away").rename(file.path)
            assert status(second) == 200
            file.path.unlink()
            assert status(second) == 401

    def test_held_objects_keep_working_once_the_keeper_is_dead(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        pins, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            os.kill(int(service.wait_for(r'"keeper":(\d+)')[1]), signal.SIGKILL)
            failed = client.put("/programs/more", json={"pinned": f"{pins}/pass"})
            assert (failed.status_code, failed.json()["errno"]) == (503, "EPIPE")
            assert "the keeper" in failed.json()["detail"]
            red = client.get("/readyz")
            assert red.status_code == 503
            assert any("the keeper has ended" in reason for reason in red.json()["reasons"])
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201
            assert run_at(client, 1) == "XDP_DROP"

    def test_service_without_capabilities_works_by_file_permissions(self) -> None:
        """For example in a container without capabilities. Nothing needs root there."""
        with tempfile.TemporaryDirectory() as name:
            folder, pins = Path(name), Path(name, "bpf")
            pins.mkdir()
            private_mounts.mount_bpffs(pins)
            try:
                prepare(pins)
                for each in (folder, pins, *pins.iterdir()):
                    os.chown(each, NOBODY, NOBODY)
                config = folder / "jumptable.toml"
                config.write_text(
                    CONFIG.format(folder=folder, pins=pins)
                    .replace("programs.entry", "programs.tx")
                    .replace("/entry", "/tx")
                    .replace("/jump_table", "/table")
                )
                with serve(config, folder / "run/api.sock", first=AS_NOBODY) as service, service.client() as client:
                    assert _capabilities(service) == {0}
                    assert '"keeper"' not in service.wait_for("serving")[0]
                    assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 200
                    assert client.put("/programs/more", json={"id": 1}).json()["code"] == "kernel-permission"
            finally:
                private_mounts.unmount(pins)


def _status(service: Service) -> dict[str, str]:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in status.splitlines())


def _capabilities(service: Service) -> set[int]:
    told = _status(service)
    return {int(told[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")} - {
        0 if int(told["CapEff"], 16) else -1
    }


class TestStart:
    @pytest.mark.slow
    def test_journal_restored_by_root_is_usable(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        _, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201
            assert service.stop() == 0
        for each in (tmp_path / "state").glob("journal.db-*"):
            each.unlink()
        os.chown(tmp_path / "state/journal.db", 0, 0)
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.delete("/maps/jump_table/entries/1").status_code == 204

    @pytest.mark.slow
    def test_file_that_is_no_journal_keeps_its_owner(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """The user of the service could have put another file of root, such as the tokens, in its place."""
        _, config = prepared
        for kind in ("file", "link"):
            (tmp_path / kind).write_text("[]" if kind == "file" else "SQLite format 3\0")
        (tmp_path / "state").mkdir(0o700)
        (tmp_path / "state/journal.db").hardlink_to(tmp_path / "link")
        with running("serve", "--config", str(config)) as service:
            assert service.process.wait(20) == 1
        (tmp_path / "state/journal.db").unlink()
        (tmp_path / "file").rename(tmp_path / "state/journal.db")
        with running("serve", "--config", str(config)) as service:
            assert service.process.wait(20) == 1
            assert "the journal" in service.output()
        assert [(tmp_path / each).stat().st_uid for each in ("link", "state/journal.db")] == [0, 0]

    @pytest.mark.slow
    def test_unusable_audit_file_is_refused_with_advice(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        _, config = prepared
        config.write_text(f'{config.read_text()}[audit]\nfile = "{tmp_path}/logs/audit"\n')
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs/audit").touch()
        os.chown(tmp_path / "logs", NOBODY, NOBODY)
        with running("serve", "--config", str(config)) as service:
            assert service.process.wait(20) == 1
            assert f"audit.file {tmp_path}/logs/audit: " in service.output()
            assert "it has to be a file of root's in a folder of root's" in service.output()
            assert "Traceback" not in service.output()
