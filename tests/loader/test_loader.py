"""The process that loads an object file: what it makes, and what it cannot do."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from errno import EACCES, EAGAIN, EFBIG, EISDIR, EMLINK, ENODEV, ENOENT, EXDEV
from pathlib import Path

import pytest

from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from app.keeper.client import KeeperClient
from app.keeper.loader import KeeperLoader
from app.keeper.messages import KeeperConfig
from app.loader import libbpf
from app.loader.client import DirectLoader, RunningLoader
from app.loader.files import check_sealed, content_of, read_file
from app.loader.messages import LoadAnswer, LoadRequest, MapFacts, ObjectLimits, Refusal
from app.loader.source_lines import find_line
from app.service.loading.errors import ObjectRefused, ObjectUnreadable
from app.service.loading.refusals import refusal_of
from tests import probes
from tests.compiled import object_file
from tests.running import WAIT_SECONDS


def errno_of(path: str, folder: Path, max_bytes: int = 1 << 20) -> int:
    """The errno with which a file is refused."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared
        read_file(path, [str(folder)], max_bytes)
    return caught.value.errno or 0


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "objects"
        folder.mkdir()
        (folder / "a.o").write_bytes(b"content")
        return folder

    def test_content_is_passed_on_in_memory_that_nobody_can_change(self, folder: Path) -> None:
        fd = read_file(f"{folder}/a.o", [str(folder)], 7)
        check_sealed(fd, 7)
        assert content_of(fd) == b"content"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match="too large"):
            check_sealed(fd, 6)
        os.close(fd)
        with (folder / "a.o").open() as file, pytest.raises(OSError, match=r"Invalid argument"):
            check_sealed(file.fileno(), 7)

    def test_paths_out_of_the_folder_are_refused_also_through_links(self, folder: Path) -> None:
        (folder / "link.o").symlink_to("/etc/passwd")
        (folder / "way").symlink_to("/etc")
        (folder / "own.o").symlink_to(folder / "a.o")
        for path in ("/etc/passwd", f"{folder}/../objects/a.o", f"{folder}//a.o", "a.o", "", f"{folder}x/a.o"):
            assert errno_of(path, folder) == EXDEV
        for name in ("link.o", "way/passwd"):
            assert errno_of(f"{folder}/{name}", folder) == EXDEV
        os.close(read_file(f"{folder}/own.o", [str(folder)], 7))

    def test_each_kind_of_file_that_is_none_has_its_errno(self, folder: Path) -> None:
        os.mkfifo(folder / "fifo")
        (folder / "folder").mkdir()
        (folder / "second.o").hardlink_to(folder / "a.o")
        kinds = {"fifo": ENODEV, "folder": EISDIR, "second.o": EMLINK, "none.o": ENOENT}
        assert {name: errno_of(f"{folder}/{name}", folder) for name in kinds} == kinds
        (folder / "second.o").unlink()
        assert errno_of(f"{folder}/a.o", folder, 6) == EFBIG

    def test_file_that_changes_while_it_is_read_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = os.read

        def changing(fd: int, size: int) -> bytes:
            with (folder / "a.o").open("ab") as file:
                file.write(b"more")
            monkeypatch.undo()
            return read(fd, size)

        monkeypatch.setattr(os, "read", changing)
        assert errno_of(f"{folder}/a.o", folder) == EAGAIN


LIMITS = ObjectLimits(upload=True, timeout=WAIT_SECONDS)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated machine needs longer to start a keeper."""
    monkeypatch.setattr("app.keeper.client.TIMEOUT_SECONDS", WAIT_SECONDS)


@pytest.fixture
def linux() -> LinuxKernel:
    return LinuxKernel()


@pytest.fixture(params=["direct", "keeper"])
def loader(request: pytest.FixtureRequest) -> Iterator[DirectLoader | KeeperLoader]:
    """A loader in this process, and one behind a keeper."""
    if request.param == "direct":
        yield DirectLoader(LIMITS)
        return
    keeper = KeeperClient(KeeperConfig(objects=LIMITS))
    yield KeeperLoader(keeper, LIMITS)
    keeper.close()


def load(
    loader: DirectLoader | KeeperLoader, content: bytes, request: LoadRequest, *maps: int
) -> tuple[LoadAnswer, list[int]]:
    elf = loader.seal(content)
    try:
        return loader.load(request, elf, maps)
    finally:
        os.close(elf)


UNCONFINED = [] if probes.landlock() is None else ["landlock"]  # what this kernel cannot give up


@pytest.mark.kernel
class TestLoads:
    def test_programs_and_maps_come_as_file_descriptors(
        self, loader: DirectLoader | KeeperLoader, linux: LinuxKernel
    ) -> None:
        answer, fds = load(loader, object_file("parser"), LoadRequest("parser"))
        assert (answer.refusal, answer.unconfined, answer.warnings) == (None, UNCONFINED, "")
        programs, maps = [each.name for each in answer.programs], [each.name for each in answer.maps]
        assert len(fds) == len(programs) + len(maps)
        assert [linux.prog_info(fd).name for fd in fds[: len(programs)]] == programs
        assert [linux.map_info(fd).type for fd in fds[len(programs) :]] == [each.type for each in answer.maps]
        assert linux.prog_test_run(fds[programs.index("entry")], b"\x02" + bytes(63)).returned == 2
        for fd in fds:
            os.close(fd)

    def test_array_that_takes_a_place_cannot_be_written_by_the_process(
        self, loader: DirectLoader | KeeperLoader, linux: LinuxKernel
    ) -> None:
        """libbpf itself would write the initialisers into it."""
        array = linux.map_create(3, 4, 4, 16, "live")
        request = LoadRequest("parser", replaced=["stages"], values="report")
        answer, fds = load(loader, object_file("parser"), request, array)
        assert answer.refusal is None
        assert answer.values == [("stages", 1, "ipv4"), ("stages", 2, "tcp"), ("stages", 3, "drop")]
        assert linux.map_entries(array, 0, 16) == []
        assert [each.name for each in answer.maps if each.is_replaced] == ["stages"]
        for fd in (*fds, array):
            os.close(fd)


@pytest.mark.kernel
def test_line_of_a_text_is_found_in_the_file_where_the_kernel_tells_none() -> None:
    """Linux before 6.12 tells the text alone."""
    content = object_file("refused")
    file = libbpf.ObjectFile(libbpf.library(), content, "refused")
    try:
        line = find_line(file.lib, file.btf, content, "return data[4] == 7 ? XDP_TX : XDP_PASS;")
        assert line is not None
        assert (Path(line.file).name, line.line) == ("refused.bpf.c", 15)
        assert find_line(file.lib, file.btf, content, "nowhere") is None
        assert find_line(file.lib, None, content, "nowhere") is None
        answer = LoadAnswer(Refusal("object-refused", {"line": line}, EACCES, "; a = b;\n3: (b7) r1 = 2\nit is bad"))
        error = refusal_of(answer)
        assert isinstance(error, ObjectRefused)
        assert error.source == {"file": line.file, "line": 15, "text": "a = b;"}
    finally:
        file.close()


def test_answer_of_a_process_that_was_taken_over_is_a_refusal() -> None:
    for refusal in (
        Refusal("object-too-large", {"nope": 1}), Refusal("object-refused", {"line": 3}, EACCES, "; a\nit is bad"),
        Refusal("variable-unknown"), Refusal("program-type-not-allowed", {"type": "x"}),
    ):  # fmt: skip
        assert isinstance(refusal_of(LoadAnswer(refusal)), ObjectUnreadable), refusal


# What a process could try that has been taken over by the file that it loads. Each line is tried after `confine`.
ESCAPES = """
import ctypes, os, platform, socket, mmap, signal
from app.loader.confinement import confine
from app.bpf.linux import LinuxKernel
from app.bpf import asm
from app.bpf.syscall import bpf
from app.bpf.uapi import Cmd, MapType, ProgType
from app.bpf import attr
libc = ctypes.CDLL(None, use_errno=True)
kernel = LinuxKernel()
live = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8)
program = kernel.prog_load(ProgType.XDP, asm.returns(2))
kernel.map_update(live, 0, program)
read_only = bpf(Cmd.MAP_GET_FD_BY_ID, attr.GetId(id=kernel.map_info(live).id, open_flags=8))
os.close(live)
folder = os.open("/tmp", os.O_PATH)
def checked(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
channel, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
flags = ctypes.create_string_buffer(b"lo", 40)
ioctl, fcntl, prlimit64, getdents64 = {"x86_64": (16, 72, 302, 217), "aarch64": (29, 25, 261, 61)}[platform.machine()]
unconfined = confine(5.0)
attempts = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read its own status": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "make a file": lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=folder),
    "connect": lambda: socket.socket(),
    "ask netlink": lambda: socket.socket(16, 3, 0),
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "signal": lambda: os.kill(os.getppid(), 0),
    "ignore the alarm": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "stop the alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 0),
    "make memory executable": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "write an entry": lambda: kernel.map_update(read_only, 1, program),
    "clear an entry": lambda: kernel.map_delete(read_only, 0),
    "pin": lambda: kernel.obj_pin(program, "/sys/fs/bpf/x"),
    "open by id": lambda: kernel.map_get_fd_by_id(1),
    "run a program": lambda: kernel.prog_test_run(program, bytes(14)),
    "attach": lambda: checked(321, 28, bytes(64), 64),
    "change a network interface": lambda: checked(ioctl, channel.fileno(), 0x8914, flags),
    "have signals sent": lambda: checked(fcntl, channel.fileno(), 8, os.getpid()),
    "limit another process": lambda: checked(prlimit64, os.getppid(), 7, bytes(16), 0),
    "list a folder": lambda: checked(getdents64, os.open("/", os.O_RDONLY), flags, 40),
    "become root": lambda: os.setresuid(0, 0, 0),
    "use much memory": lambda: bytearray(1 << 30),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    print("could", name)
print(unconfined, kernel.prog_load(ProgType.XDP, asm.returns(2)) > 0, flush=True)
os._exit(0)
"""


@pytest.mark.kernel
class TestConfinement:
    def test_nothing_but_loading_is_possible(self) -> None:
        probes.needs(probes.landlock())
        done = subprocess.run(
            [sys.executable, "-c", ESCAPES], capture_output=True, text=True, check=False, env={"PYTHONPATH": "."},
            cwd=Path(__file__).parents[2], timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == ("[] True\n", 0), done.stderr

    @pytest.mark.parametrize(
        ("code", "facts"),
        [
            ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
            ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
            ("raise SystemExit(3)", "status 3"),
            ("bytearray(1 << 60)", "status 1"),
        ],
    )
    def test_end_without_an_answer_is_told(
        self, linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, code: str, facts: str
    ) -> None:
        monkeypatch.setattr(RunningLoader, "code", code)
        answer, fds = load(DirectLoader(LIMITS), b"", LoadRequest("x"))
        assert answer.refusal is not None
        assert (answer.refusal.code, fds) == ("object-unreadable", [])
        assert facts in answer.refusal.facts["reason"]

    def test_process_that_hangs_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunningLoader, "code", "import time; time.sleep(60)")
        answer, _ = load(DirectLoader(ObjectLimits(upload=True, timeout=0.2)), b"", LoadRequest("x"))
        assert answer.refusal is not None
        assert answer.refusal.code == "object-timeout"

    def test_process_ends_itself_where_its_parent_may_not_end_it(self) -> None:
        code = "from app.loader.confinement import confine\nconfine(0.3)\nwhile True: pass"
        done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2], timeout=30)
        assert done.returncode == -signal.SIGALRM

    @pytest.mark.parametrize(
        "answer",
        [
            b"nonsense",
            b"[" * 100_000,
            LoadAnswer(programs=[]).dump().replace(b"[]", b"[1]", 1),
        ],
    )
    def test_answer_that_is_none_counts_as_none(self, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
        code = f"import sys, socket; socket.socket(fileno=int(sys.argv[1])).send({answer!r})"
        monkeypatch.setattr(RunningLoader, "code", code)
        told, fds = load(DirectLoader(LIMITS), b"", LoadRequest("x"))
        assert told.refusal is not None
        assert (told.refusal.code, fds) == ("object-unreadable", [])

    def test_file_descriptors_that_are_not_what_the_answer_says_are_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An array where a program is told, and an fd that is not told at all."""
        facts = '{"name": "p", "section": "xdp", "type": 6, "attach_type": 0, "instructions": 1, "is_loaded": true}'
        for programs in (f"[{facts}]", "[]"):
            answer = LoadAnswer().dump().replace(b'"programs": []', f'"programs": {programs}'.encode())
            code = (
                "import sys, socket, array, os; "
                f"socket.socket(fileno=int(sys.argv[1])).sendmsg([{answer!r}], "
                '[(1, 1, array.array("i", [os.open("/dev/null", 0)]))])'
            )
            monkeypatch.setattr(RunningLoader, "code", code)
            told, fds = load(DirectLoader(LIMITS), b"", LoadRequest("x"))
            assert told.refusal is not None
            assert (told.refusal.code, fds) == ("object-unreadable", [])

    @pytest.mark.parametrize(("made", "is_taken"), [("ARRAY", True), ("HASH", False)])
    def test_map_is_of_the_type_that_the_answer_says(
        self, monkeypatch: pytest.MonkeyPatch, made: str, *, is_taken: bool
    ) -> None:
        facts = MapFacts("m", MapType.ARRAY, 4, 4, 1, 0, is_internal=False, is_pinned_by_name=False, is_replaced=False)
        answer = LoadAnswer(maps=[facts]).dump()
        code = (
            "import sys, socket; sys.path.append(sys.argv[3]); from app.bpf.linux import LinuxKernel; "
            "from app.bpf.uapi import MapType; from app.sandbox.channel import receive_with_fds, send_with_fds; "
            "channel = socket.socket(fileno=int(sys.argv[1])); receive_with_fds(channel, 1 << 18); "
            f"fd = LinuxKernel().map_create(MapType.{made}, 4, 4, 1); "
            f"send_with_fds(channel, {answer!r}, [fd])"
        )
        monkeypatch.setattr(RunningLoader, "code", code)
        told, fds = load(DirectLoader(LIMITS), b"", LoadRequest("x"))
        assert ((told.refusal is None), len(fds)) == (is_taken, is_taken)
        for fd in fds:
            os.close(fd)


@pytest.mark.kernel
class TestKeeper:
    def test_only_files_that_the_keeper_has_read_are_loaded_without_upload(self, tmp_path: Path) -> None:
        (tmp_path / "root.o").write_bytes(object_file("root"))
        limits = ObjectLimits(object_dirs=[str(tmp_path)])
        keeper = KeeperClient(KeeperConfig(objects=limits))
        loader = KeeperLoader(keeper, limits)
        with pytest.raises(PermissionError):
            load(loader, object_file("root"), LoadRequest("root"))
        elf = loader.read_file(f"{tmp_path}/root.o")
        answer, fds = loader.load(LoadRequest("root"), elf, [])
        assert answer.refusal is None
        for fd in (elf, *fds):
            os.close(fd)
        keeper.close()

    def test_limits_are_those_of_the_keeper(self) -> None:
        limits = ObjectLimits(upload=True, program_types=[3])
        keeper = KeeperClient(KeeperConfig(objects=limits))
        request = LoadRequest("root", limits=ObjectLimits(upload=True, program_types=[6]))
        answer, _ = load(KeeperLoader(keeper, limits), object_file("root"), request)
        assert answer.refusal is not None
        assert answer.refusal.code == "program-type-not-allowed"
        keeper.close()

    def test_keeper_without_object_files_loads_none(self) -> None:
        keeper = KeeperClient(KeeperConfig())
        with pytest.raises(PermissionError):
            load(KeeperLoader(keeper, LIMITS), object_file("root"), LoadRequest("root"))
        keeper.close()
