"""The command line: its output and its exit status."""

import contextlib
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from app.bpf.linux import LinuxKernel
from app.cli import check
from app.config import load
from app.service.objects.opening import make_array
from tests import private_mounts
from tests.running import running
from tests.system.conftest import mount_disk

CONFIG = '[server]\nsocket = "{0}/api.sock"\nstate_dir = "{0}/state"\nkernel = "memory"\n'


def jumptable(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "jumptable.toml"
    file.write_text(CONFIG.format(tmp_path))
    return file


class TestUsage:
    def test_version_prints_the_version_of_the_package(self) -> None:
        done = jumptable("--version")
        assert (done.returncode, done.stdout) == (0, f"jumptable, version {__version__}\n")

    @pytest.mark.parametrize("arguments", [["nope"], ["serve"], ["demo", "--port", "x"], ["demo", "--kernel", "bsd"]])
    def test_a_usage_error_exits_with_2_and_no_traceback(self, arguments: list[str]) -> None:
        done = jumptable(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr

    def test_demo_refuses_an_address_that_others_can_reach(self) -> None:
        done = jumptable("demo", "--host", "0.0.0.0")
        assert done.returncode == 1
        assert done.stderr == (
            "jumptable: 0.0.0.0 can be reached by others: without authentication only loopback is served\n"
        )


class TestServe:
    def test_a_configuration_error_is_one_line_and_exits_with_2(self, config: Path) -> None:
        config.write_text(config.read_text() + "prot = 1\n")
        done = jumptable("serve", "--config", str(config))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"jumptable: {config}: server.prot: there is no such key; there are: ")
        assert done.stderr.count("\n") == 1

    def test_tcp_without_authentication_is_refused(self, config: Path) -> None:
        config.write_text(config.read_text() + 'host = "127.0.0.1"\nport = 8080\n')
        done = jumptable("serve", "--config", str(config))
        assert done.returncode == 2
        assert "serving on TCP needs authentication" in done.stderr

    def test_show_config_prints_the_configuration(self, config: Path) -> None:
        done = jumptable("serve", "--config", str(config), "--show-config")
        assert done.returncode == 0
        assert '"kernel": "memory"' in done.stdout

    def test_a_file_in_the_place_of_the_socket_is_refused(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "api.sock").write_text("mine")
        done = jumptable("serve", "--config", str(config))
        assert done.returncode == 1
        assert "is no socket: remove it, or set another socket" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_unknown_socket_group_is_refused_with_the_remedy(self, config: Path) -> None:
        config.write_text(config.read_text() + 'socket_group = "no-such-group"\n')
        done = jumptable("serve", "--config", str(config))
        assert done.returncode == 1
        assert "groupadd no-such-group" in done.stderr


class TestCheck:
    def test_a_map_to_be_made_is_ok_and_nothing_is_changed(self, config: Path, tmp_path: Path) -> None:
        with config.open("a") as file:
            file.write(f'[maps.made]\npinned = "{tmp_path}/made"\ncreate = {{ max_entries = 4 }}\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 0, done.stdout
        assert f"ok    map made: is not there yet; serve makes it and pins it at {tmp_path}/made" in done.stdout
        assert not (tmp_path / "state").exists(), "it changes nothing"

    def test_every_mistake_is_listed(self, config: Path, tmp_path: Path) -> None:
        with config.open("a") as file:
            file.write('socket_group = "no-such-group"\nkeep_dir = "/sys/fs/bpf/keep"\n')
            file.write('[maps.gone]\npinned = "/sys/fs/bpf/gone"\n[programs.gone]\nid = 77\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 1
        for line in (
            "WRONG server.socket_group: there is no group 'no-such-group'",
            "WRONG map gone: cannot open the pin '/sys/fs/bpf/gone': ENOENT",
            "WRONG program gone: there is no program 77",
        ):
            assert line in done.stdout

    def test_a_damaged_journal_is_reported_and_left_as_it_is(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state/journal.db").write_bytes(b"nonsense" * 1000)
        for command in ("check", "serve"):
            done = jumptable(command, "--config", str(config))
            assert done.returncode == 1
            assert "move it and its -wal and -shm away" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        assert (tmp_path / "state/journal.db").read_bytes() == b"nonsense" * 1000

    @pytest.mark.kernel
    def test_two_names_for_one_array_are_wrong(self, config: Path, bpffs: Path) -> None:
        config.write_text(config.read_text().replace("memory", "linux"))
        kernel = LinuxKernel()
        with make_array(kernel, "table", 8) as array:
            kernel.obj_pin(array.fd, f"{bpffs}/table")
        with config.open("a") as file:
            file.write(f'[maps.a]\npinned = "{bpffs}/table"\ncreate = {{ max_entries = 4 }}\n')
            file.write(f'[maps.b]\npinned = "{bpffs}/table"\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 1
        assert "warn  map a: create asks for 4 entries, but it exists with 8" in done.stdout
        assert "WRONG map b: is the same array as map a: remove one of the two" in done.stdout

    @pytest.mark.kernel
    def test_a_pin_outside_bpffs_is_wrong_and_the_mount_is_named(self, config: Path, tmp_path: Path) -> None:
        config.write_text(config.read_text().replace("memory", "linux"))
        with config.open("a") as file:
            file.write(f'[maps.a]\npinned = "{tmp_path}/table"\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 1
        assert "no bpffs is mounted there: mount -t bpf" in done.stdout
        with config.open("a") as file:
            file.write("create = { max_entries = 4 }\n")
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 1
        assert "WRONG map a: is not there, and cannot be made: " in done.stdout

    @pytest.mark.field
    @pytest.mark.parametrize(
        ("limit", "line"),
        [
            (20_000, "ok    limits: RLIMIT_NOFILE 20000 is enough for 4096 connections, 4096 held maps and programs"),
            (4096, "warn  limits: RLIMIT_NOFILE 4096 is enough for 1"),
            (64, "warn  limits: RLIMIT_NOFILE 64 is enough for "),
            (48, "WRONG limits: RLIMIT_NOFILE is 48, which is too low to hold 0 maps and programs and serve: raise it"),
        ],
    )
    def test_the_limits_under_the_present_rlimit_are_told(self, config: Path, limit: int, line: str) -> None:
        """Field 16: descriptors run out, as RLIMIT_NOFILE is lower than what the limits add up to."""
        code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
        command = [sys.executable, "-c", f"{code}; from app.__main__ import main; main()", "check", "--config"]
        done = subprocess.run([*command, str(config)], capture_output=True, text=True, timeout=60, check=False)
        assert line in done.stdout
        assert done.returncode == (1 if line.startswith("WRONG") else 0), done.stdout

    @pytest.mark.field
    def test_a_socket_beside_a_host_is_told_by_check_and_at_the_start(self, config: Path) -> None:
        """Field 22: both are set, and only one is served."""
        text = config.read_text().replace("[server]", '[server]\nhost = "127.0.0.1"\nport = 0')
        config.write_text(f"{text}[tokens]\n")
        done = jumptable("check", "--config", str(config))
        assert "warn  server.host: both an address and the socket" in done.stdout
        assert done.returncode == 0
        with running("serve", "--config", str(config)) as service:
            service.wait_for("the socket is not served")

    @pytest.mark.field
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give the socket to another group")
    def test_a_folder_that_keeps_the_socket_group_out_is_told_by_check_and_at_the_start(
        self, config: Path, tmp_path: Path
    ) -> None:
        """Field 22: the socket's folder was made with a tight umask."""
        (tmp_path / "run").mkdir(0o750)
        text = config.read_text().replace("api.sock", "run/api.sock")
        config.write_text(f'{text}socket_group = "nogroup"\n')
        done = jumptable("check", "--config", str(config))
        assert f"warn  server.socket: the mode of {tmp_path}/run keeps the group nogroup away" in done.stdout
        with running("serve", "--config", str(config)) as service:
            service.wait_for("the socket cannot be reached")

    @pytest.mark.field
    @pytest.mark.kernel
    def test_a_keep_dir_with_pins_of_others_is_told_by_check_and_at_the_start(self, config: Path, bpffs: Path) -> None:
        """Field 22: keep_dir is a folder in which somebody else has pins."""
        (bpffs / "keep").mkdir()
        kernel = LinuxKernel()
        with make_array(kernel, "table", 8) as array:
            kernel.obj_pin(array.fd, f"{bpffs}/keep/theirs")
        text = config.read_text().replace("memory", "linux")
        config.write_text(f'{text}pin_dirs = ["{bpffs}/ours"]\nkeep_dir = "{bpffs}/keep"\n')
        done = jumptable("check", "--config", str(config))
        assert f"WRONG server.keep_dir: {bpffs}/keep holds what is not the service's (theirs)" in done.stdout
        assert done.returncode == 1
        with running("serve", "--config", str(config)) as service:
            line = service.wait_for("keep_dir cannot be used").string
            assert "files that are not the service's: name another one" in line
        os.chown(bpffs / "keep", pwd.getpwnam("nobody").pw_uid, -1)
        config.write_text(f'{config.read_text()}user = "nobody"\n')
        with running("serve", "--config", str(config)) as service:
            service.wait_for("keep_dir holds what is not the service's")
        assert (bpffs / "keep/theirs").exists()

    @pytest.mark.field
    @pytest.mark.kernel
    def test_a_full_disk_is_told_by_check_and_at_the_start(self, config: Path, tmp_path: Path) -> None:
        """Field 22: there is no room for the journal."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount_disk(disk)
        try:
            config.write_text(config.read_text().replace(f"{tmp_path}/state", f"{disk}/state"))
            done = jumptable("check", "--config", str(config))
            assert (
                f"warn  server.state_dir: {disk}/state has 1 MiB left, and the journal may take 256 MiB" in done.stdout
            )
            (disk / "state").mkdir(mode=0o700)
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            done = jumptable("check", "--config", str(config))
            assert f"WRONG server.state_dir: the disk of {disk}/state is full: make room" in done.stdout
            done = jumptable("serve", "--config", str(config))
            assert done.returncode == 1
            assert f"the disk of state_dir {disk}/state is full: make room for the journal" in done.stderr
            assert done.stderr.count("jumptable: ") == 1
        finally:
            private_mounts.unmount(disk)

    @pytest.mark.field
    @pytest.mark.parametrize("has_reader", [False, True])
    @pytest.mark.parametrize("kernel", ["memory", pytest.param("linux", marks=pytest.mark.kernel)])
    def test_an_audit_file_that_is_a_fifo_is_refused(
        self, config: Path, tmp_path: Path, kernel: str, has_reader: bool
    ) -> None:
        """Field 35: opening a FIFO without a reader blocked the start for ever."""
        os.mkfifo(tmp_path / "audit")
        text = config.read_text().replace("memory", kernel)
        config.write_text(f'{text}[audit]\nfile = "{tmp_path}/audit"\n')
        with contextlib.ExitStack() as stack:
            if has_reader:
                stack.callback(os.close, os.open(tmp_path / "audit", os.O_RDONLY | os.O_NONBLOCK))
            done = jumptable("check", "--config", str(config))
            assert f"WRONG audit.file: {tmp_path}/audit is no regular file" in done.stdout
            done = jumptable("serve", "--config", str(config))
            assert done.returncode == 1
            assert f"jumptable: audit.file {tmp_path}/audit: " in done.stderr
            assert "and no FIFO or device" in done.stderr

    def test_a_missing_user_is_a_warning(self, config: Path) -> None:
        config.write_text(config.read_text() + 'user = "no-such-user"\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 0
        assert "there is no user 'no-such-user'" in done.stdout or "the service stays uid" in done.stdout

    @pytest.mark.kernel
    def test_as_root_it_lists_the_rights_of_both_processes(self, config: Path, bpffs: Path) -> None:
        config.write_text(config.read_text().replace("memory", "linux"))
        with config.open("a") as file:
            file.write(f'[maps.made]\npinned = "{bpffs}/made"\ncreate = {{ max_entries = 4 }}\n')
        done = jumptable("check", "--config", str(config))
        assert done.returncode == 0, done.stdout
        assert "rights: keeper: uid 0, CAP_BPF" in done.stdout
        assert re.search(r"rights: listener: uid [1-9]\d*, no capability", done.stdout)
        assert "ok    kernel: iterators: the kernel lists all programs and arrays" in done.stdout
        assert not (bpffs / "made").exists()

    def test_with_a_tcp_address_the_socket_is_not_checked(self, config: Path) -> None:
        text = config.read_text().replace("[server]", '[server]\nhost = "0.0.0.0"\nport = 0')
        config.write_text(f'{text}[tokens]\n[audit]\nfile = "/nonexistent/audit"\n')
        done = jumptable("check", "--config", str(config))
        assert "warn  server.host: 0.0.0.0 port 0: tokens go in plain text: set [tls]" in done.stdout
        assert "WRONG audit.file: /nonexistent/audit: its folder is missing: install -d -m 0700" in done.stdout
        assert "server.socket" not in done.stdout
        assert done.returncode == 1

    def test_the_section_that_it_points_to_exists(self) -> None:
        assert "deploy/README.md, section Who holds what" in Path(check.__file__).read_text()
        assert "\n## Who holds what\n" in (Path(check.__file__).parents[2] / "deploy/README.md").read_text()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
    def test_a_state_dir_with_other_files_is_not_given_away(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir(0o755)
        (tmp_path / "state/passwd").touch()
        for command in ("check", "serve"):
            done = jumptable(command, "--config", str(config))
            assert done.returncode == 1
            assert "has other things in it (passwd), and would be given to" in done.stdout + done.stderr
        assert (tmp_path / "state").stat().st_uid == 0


class TestCheckObjects:
    def test_nothing_is_to_be_loaded_by_default(self, config: Path) -> None:
        assert "ok    objects: no object file can be loaded" in jumptable("check", "--config", str(config)).stdout

    def test_folders_that_others_can_write_are_told(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        folders = f'["{tmp_path}/open", "{tmp_path}/none"]'
        config.write_text(f"{config.read_text()}[objects]\nobject_dirs = {folders}\n")
        told = jumptable("check", "--config", str(config)).stdout
        assert f"warn  objects.object_dirs {tmp_path}/open: others than root can write it" in told
        assert f"warn  objects.object_dirs {tmp_path}/none: is no folder" in told
        assert "warn  objects: set server.keep_dir" in told

    def test_missing_library_is_told_with_its_package(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config.write_text(f"{config.read_text()}[objects]\nupload = true\n")
        monkeypatch.setattr("app.loader.libbpf.LIBRARY", "libnone.so")
        told = [str(each) for each in check.findings(load(config)) if each.subject == "objects"]
        assert len(told) == 1
        assert "libnone.so" in told[0]
        assert "apt-get install libbpf1" in told[0]

    def test_what_the_kernel_lacks_to_confine_the_process_is_told(
        self, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config.write_text(f"{config.read_text()}[objects]\nupload = true\n")
        monkeypatch.setattr("app.sandbox.landlock.version", lambda: 0)
        monkeypatch.setattr("app.sandbox.seccomp.has_filters", lambda: False)
        told = [str(each) for each in check.findings(load(config)) if each.subject == "objects"]
        assert any("no Landlock" in each for each in told)
        assert any("no seccomp filters" in each for each in told)
