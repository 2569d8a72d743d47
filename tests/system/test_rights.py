"""`serve` as root, as who it becomes: what each of its processes may, and what goes on working."""

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
# Once all is imported: the interpreter itself may be where nobody else may read.
AS_NOBODY = f"""
import os
from app.server import run as server
from app.server import startup as start
server.preload()
def user_of(settings):
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
start.user_of = user_of
"""
NO_LATE_IMPORT = """
import sys
from app.server import startup as start
class Late:
    def find_spec(self, name, *_):
        print("imported late:", name, flush=True)
give_up_rights = start.give_up_rights
start.give_up_rights = lambda kernel: (give_up_rights(kernel), sys.meta_path.insert(0, Late()))
"""


class TestLeastPrivilege:
    def test_what_listens_has_no_capability(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """And still holds new pins, makes arrays, and names programs by id."""
        pins, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            told = _status(service)
            assert set(told["Uid"].split()) == {str((tmp_path / "state").stat().st_uid)} != {"0"}
            assert _capabilities(service) == {0}
            assert told["NoNewPrivs"] == "1"
            body = {"pinned": f"{pins}/fresh", "create": {"max_entries": 4}}
            assert client.put("/maps/fresh", json=body).status_code == 201
            drop = client.get("/programs/drop").json()["id"]
            client.delete("/programs/drop")
            assert client.put("/maps/fresh/entries/0", json={"program": {"id": drop}}).status_code == 201
            assert client.get("/maps/fresh").json()["owner"] == {"program_type": "xdp", "jited": True}

    def test_nothing_is_imported_once_it_may_not_read_where_that_is(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """An interpreter, or a checkout, in a home folder that only root may enter."""
        _, config = prepared
        with serve(config, tmp_path / "run/api.sock", first=NO_LATE_IMPORT) as service, service.client() as client:
            for method, path, body in REQUESTS.values():
                answer = client.request(method, path, json=body)
                assert answer.status_code not in {500, 501}, answer.text
            assert client.get("/nowhere").status_code == 404
            assert client.put("/maps/jump_table/entries/1", content=b"{").status_code == 415
            assert service.stop() == 0
        assert "imported late" not in service.output()

    def test_where_bpf_wants_a_capability_it_keeps_that_one_and_says_so(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """As on Linux 5.10, where kernel.unprivileged_bpf_disabled shuts all of bpf(2)."""
        _, config = prepared
        first = (
            "from app.server import startup\n"
            "startup._refuses_all = lambda _: 'CAP_BPF' not in startup.effective_capabilities()"
        )
        with serve(config, tmp_path / "run/api.sock", first=first) as service, service.client() as client:
            service.wait_for("keeps a capability.*CAP_BPF|CAP_BPF.*keeps a capability")
            assert _capabilities(service) == {1 << 39}
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201

    def test_tokens_are_as_the_file_is_now(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """In a folder that what listens may not even enter."""
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

    def test_the_end_of_the_keeper_is_told_and_what_is_held_goes_on(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
        pins, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            os.kill(int(service.wait_for(r'"keeper":(\d+)')[1]), signal.SIGKILL)
            failed = client.put("/programs/more", json={"pinned": f"{pins}/pass"})
            assert (failed.status_code, failed.json()["errno"]) == (500, "EPIPE")
            assert "the keeper" in failed.json()["detail"]
            red = client.get("/readyz")
            assert red.status_code == 503
            assert any("the keeper has ended" in reason for reason in red.json()["reasons"])
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201
            assert run_at(client, 1) == "XDP_DROP"

    def test_without_any_capability_one_process_works_by_file_permissions(self) -> None:
        """As in a container that gets nothing: no root is needed anywhere."""
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
    def test_a_copy_of_the_journal_that_root_puts_back(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        _, config = prepared
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.put("/maps/jump_table/entries/1", json={"program": "drop"}).status_code == 201
            assert service.stop() == 0
        for each in (tmp_path / "state").glob("journal.db-*"):
            each.unlink()
        os.chown(tmp_path / "state/journal.db", 0, 0)
        with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
            assert client.delete("/maps/jump_table/entries/1").status_code == 204

    def test_what_is_no_journal_is_not_given_away(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        """As tokens of root's, which the service's user could have put in its place."""
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

    def test_an_audit_file_that_cannot_be_is_refused_with_the_remedy(
        self, prepared: tuple[Path, Path], tmp_path: Path
    ) -> None:
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
