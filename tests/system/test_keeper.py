"""The keeper, used as an attacker who controls the listening process would use it."""

import array
import asyncio
import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from errno import EACCES, EBADF, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENOENT, ENOTEMPTY, EPERM, EPIPE, ETIMEDOUT, EXDEV
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.access.tokens import Token, TokenFile
from app.bpf import asm
from app.bpf.kernel import MapState
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import MAX_TEXT, REPLY, REQUEST, KeeperConfig, Op
from app.sandbox.abilities import abilities
from app.sandbox.channel import receive, send

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

NOBODY = 65534


@pytest.fixture
def linux() -> LinuxKernel:
    return LinuxKernel()


@pytest.fixture
def pins(bpffs: Path, linux: LinuxKernel) -> Path:
    """A folder with the pins `table`, `drop` and `hash`. `hash` is no program array."""
    for name, type_, value_size in (("table", MapType.PROG_ARRAY, 4), ("hash", MapType.HASH, 8)):
        fd = linux.map_create(type_, 4, value_size, 8, name)
        linux.obj_pin(fd, str(bpffs / name))
        linux.close(fd)
    fd = linux.prog_load(ProgType.XDP, asm.returns(1), "drop")
    linux.obj_pin(fd, str(bpffs / "drop"))
    linux.close(fd)
    (bpffs / "ours").mkdir()
    for name in ("table", "hash", "drop"):
        (bpffs / name).rename(bpffs / "ours" / name)
    return bpffs / "ours"


@pytest.fixture
def config(pins: Path, tmp_path: Path) -> KeeperConfig:
    (tmp_path / "key").write_text("secret")
    return KeeperConfig(
        pin_dirs=[str(pins)],
        pins=[str(pins.parent / "elsewhere")],
        keep_dir=str(pins / "keep"),
        owner=[NOBODY, NOBODY],
        reads=[str(tmp_path / "key")],
        audit=str(tmp_path / "audit"),
        tokens=str(tmp_path / "tokens.json"),
    )


@pytest.fixture
def keeper(config: KeeperConfig) -> Iterator[KeeperClient]:
    client = KeeperClient(config)
    yield client
    client.close()


@pytest.fixture
def kernel(keeper: KeeperClient, config: KeeperConfig) -> KeeperKernel:
    return KeeperKernel(keeper, config.keep_dir)


def errno_of(do: Callable[..., object], *arguments: object) -> int:
    try:
        do(*arguments)
    except OSError as error:
        return error.errno or 0
    pytest.fail("it was done")


class TestPins:
    def test_arrays_and_programs_below_pin_dirs_are_opened(self, kernel: KeeperKernel, pins: Path) -> None:
        with_array, with_program = kernel.obj_get(f"{pins}/table"), kernel.obj_get(f"{pins}/drop")
        assert (kernel.map_info(with_array).name, kernel.prog_info(with_program).name) == ("table", "drop")
        kernel.map_update(with_array, 3, with_program)
        assert kernel.map_lookup(with_array, 3) == kernel.prog_info(with_program).id
        kernel.close(with_array)
        kernel.close(with_program)

    def test_ten_thousand_configured_pins_are_accepted(self, pins: Path) -> None:
        many = [str(pins.parent / f"a-program-with-a-name-of-some-length-{number}") for number in range(10_000)]
        keeper = KeeperClient(KeeperConfig(pins=many))
        kernel = KeeperKernel(keeper, None)
        (pins / "drop").rename(many[-1])
        kernel.close(kernel.obj_get(many[-1]))
        assert errno_of(kernel.obj_get, f"{pins}/table") == EXDEV
        keeper.close()

    def test_keeper_has_one_channel_open(self, keeper: KeeperClient) -> None:
        links = {int(each.name): str(each.readlink()) for each in Path(f"/proc/{keeper.pid}/fd").iterdir()}
        heard = [link for fd, link in links.items() if fd > 2 and link.startswith(("socket:", "pipe:"))]
        assert len(heard) == 1, "what it is asked; nothing is left of what it was told"

    def test_other_map_types_are_described_but_not_passed_on(self, kernel: KeeperKernel, pins: Path) -> None:
        fd = kernel.obj_get(f"{pins}/hash")
        info = kernel.map_info(fd)
        assert (kernel.obj_kind(fd), info.type, info.value_size) == ("map", MapType.HASH, 8)
        assert errno_of(lambda: kernel.map_lookup(fd, 0, 8)) == EINVAL, "it is no map's fd"
        by_id = kernel.map_get_fd_by_id(info.id)
        assert (kernel.map_info(by_id), by_id == fd) == (info, False)
        kernel.close(fd)
        kernel.close(by_id)

    def test_paths_outside_pin_dirs_are_neither_opened_nor_described(self, kernel: KeeperKernel, pins: Path) -> None:
        outside = pins.parent
        (pins / "table").rename(outside / "table")
        (pins / "link").symlink_to(outside / "table")
        (pins / "way").symlink_to(outside)
        for path in ("link", "way/table", "way/none"):
            assert errno_of(kernel.obj_get, f"{pins}/{path}") in {EXDEV, ENOENT}
        for path in ("", f"{outside}/table", f"{outside}/none", "/etc/passwd", f"{pins}x/table", str(pins)):
            assert errno_of(kernel.obj_get, path) == EXDEV
        for path in ("table", f"{pins}/../table", f"{pins}//table", f"{pins}/./table", f"{pins}/\0"):
            assert errno_of(kernel.obj_get, path) == EINVAL

    def test_configured_pin_outside_pin_dirs_is_opened(self, kernel: KeeperKernel, pins: Path) -> None:
        (pins / "table").rename(pins.parent / "elsewhere")
        kernel.close(kernel.obj_get(str(pins.parent / "elsewhere")))

    def test_arrays_are_created_pinned_and_unpinned(self, kernel: KeeperKernel, pins: Path) -> None:
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "made")
        kernel.check_pin(f"{pins}/made")
        kernel.obj_pin(fd, f"{pins}/made")
        assert errno_of(lambda: kernel.obj_pin(fd, f"{pins}/made")) == EEXIST
        kernel.unpin(f"{pins}/made")
        assert not (pins / "made").exists()
        kernel.close(fd)

    def test_pins_of_others_are_not_removed(self, kernel: KeeperKernel, pins: Path) -> None:
        assert errno_of(lambda: kernel.unpin(f"{pins}/table")) == EPERM
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "made")
        kernel.obj_pin(fd, f"{pins}/made")
        kernel.close(fd)
        (pins / "made").unlink()
        (pins / "table").rename(pins / "made")
        assert errno_of(lambda: kernel.unpin(f"{pins}/made")) == EPERM, "it is another by now"
        assert (pins / "made").exists()

    def test_only_arrays_are_pinned_and_only_below_pin_dirs(
        self, kernel: KeeperKernel, pins: Path, linux: LinuxKernel
    ) -> None:
        array_, hash_ = kernel.obj_get(f"{pins}/table"), linux.obj_get(f"{pins}/hash")
        (pins / "way").symlink_to(pins.parent)
        for path in (f"{pins.parent}/new", f"{pins}/way/new"):
            assert errno_of(kernel.obj_pin, array_, path) == EXDEV
            assert errno_of(kernel.check_pin, path) == EXDEV
        for fd in (hash_, 0):
            assert errno_of(kernel.obj_pin, fd, f"{pins}/new") == EINVAL
        assert not (pins / "new").exists()
        kernel.close(array_)
        linux.close(hash_)

    @pytest.mark.parametrize("entries", [0, (1 << 20) + 1, (1 << 32) - 1])
    def test_array_size_is_limited(self, kernel: KeeperKernel, entries: int) -> None:
        assert errno_of(lambda: kernel.map_create(MapType.PROG_ARRAY, 4, 4, entries)) == EINVAL


class TestTablePrograms:
    def test_table_programs_work_without_capabilities(self, config: KeeperConfig, pins: Path) -> None:
        """They write and read tables for a process without capabilities that has installed its seccomp filter."""
        code = f"""
import errno
from array import array
import asyncio
from app.bpf import asm
from app.bpf.bulk import programs as in_kernel
from app.sandbox.seccomp import install_filter
from app.sandbox.capabilities import switch_user, effective_capabilities, drop_capabilities
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import KeeperConfig
keeper = KeeperClient(KeeperConfig.load({config.dump()!r}))
kernel = KeeperKernel(keeper, None)
table, drop = kernel.obj_get("{pins}/table"), kernel.obj_get("{pins}/drop")
programs = kernel.table_programs()
switch_user({NOBODY}, {NOBODY})
drop_capabilities([])
install_filter()
assert effective_capabilities() == [] and None not in programs
assert kernel.table_programs() == programs
ids = [0, kernel.prog_info(drop).id, kernel.prog_info(drop).id, 0]
assert in_kernel.write(programs.writer, table, array("I", [1, 2, 3]), array("i", [drop, drop, -1])) == (3, 0)
assert list(in_kernel.read(kernel, programs.reader, table, 0, 4)) == ids
assert list(kernel.map_ids(table, 0, 4)) == ids
assert kernel.map_write(table, array("I", [1, 2]), array("i", [-1, 999])) == (1, errno.EBADF)
for load in (in_kernel.load_writer, in_kernel.load_reader):
    try:
        load(kernel)
    except OSError as error:
        assert error.errno in {{errno.EPERM, errno.EINVAL}}
    else:
        raise AssertionError("it was loaded")
keeper.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_table_programs_are_loaded_once(self, keeper: KeeperClient, kernel: KeeperKernel) -> None:
        programs = kernel.table_programs()
        assert None not in programs
        assert errno_of(lambda: keeper.ask(Op.TOKEN, text="")) == EINVAL, "what it passed on is closed by then"
        before, ids = _fds(keeper.pid), [kernel.prog_info(fd or -1).id for fd in programs]
        for number in (0, 1, 1, 0):
            fd = keeper.open(Op.TABLE_PROGRAM, number)
            assert kernel.prog_info(fd).id == ids[number]
            os.close(fd)
        for number, text in ((2, ""), (1 << 31, ""), (0, "x")):
            assert errno_of(keeper.ask, Op.TABLE_PROGRAM, number, text) == EINVAL
        assert _fds(keeper.pid) == before

    def test_without_table_programs_entries_are_accessed_one_by_one(self, config: KeeperConfig, pins: Path) -> None:
        """A keeper that has only CAP_BPF, which suffices where everything is pinned."""
        code = f"""
from array import array
import asyncio
from app.sandbox.capabilities import drop_capabilities
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import KeeperConfig
drop_capabilities(["CAP_BPF", "CAP_DAC_OVERRIDE"])
keeper = KeeperClient(KeeperConfig.load({config.dump()!r}))
kernel = KeeperKernel(keeper, None)
table, drop = kernel.obj_get("{pins}/table"), kernel.obj_get("{pins}/drop")
assert kernel.table_programs() == (None, None)
assert kernel.map_write(table, array("I", [1]), array("i", [drop])) == (1, 0)
assert list(kernel.map_ids(table, 0, 3)) == [0, kernel.prog_info(drop).id, 0]
assert keeper.failure is None
keeper.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True)


class TestWhatIsLoaded:
    def test_it_is_read_without_capabilities(self, config: KeeperConfig, pins: Path) -> None:
        """By a process that has installed its seccomp filter, also after the keeper has ended."""
        code = f"""
import errno
from app.bpf import iterators
from app.sandbox.seccomp import install_filter
from app.sandbox.capabilities import switch_user, drop_capabilities
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import KeeperConfig
keeper = KeeperClient(KeeperConfig.load({config.dump()!r}))
kernel = KeeperKernel(keeper, None)
table = kernel.map_info(kernel.obj_get("{pins}/table")).id
switch_user({NOBODY}, {NOBODY})
drop_capabilities([])
install_filter()
assert table in kernel.loaded().arrays
try:
    iterators.load()
except OSError as error:
    assert error.errno == errno.EPERM
else:
    raise AssertionError("it was loaded")
keeper._channel.close()
keeper._process.wait()
assert table in kernel.loaded().arrays
keeper.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_codes_and_attachments_are_those_that_the_kernel_tells(self, kernel: KeeperKernel) -> None:
        linux = LinuxKernel()
        array = linux.map_create(MapType.PROG_ARRAY, 4, 4, 8)
        jump = asm.mov(3, 6) + asm.map_fd(2, array) + asm.tail_call() + asm.returns(0)
        programs = [linux.prog_load(ProgType.XDP, jump) for _ in range(300)]  # more than one question takes
        ids = [linux.prog_info(fd).id for fd in programs]
        assert kernel.codes([*ids, 0xFFFFFFF0]) == linux.codes(ids)
        mine = set(linux.iterators())
        kernel.loaded()  # makes those of the keeper
        listed = {each.link for each in kernel.attachments().found if each.kind == "iter"}
        assert len(listed) >= len(mine) + 2  # and those of the keeper
        for fd in (array, *programs):
            os.close(fd)

    def test_nonsense_is_refused(self, keeper: KeeperClient) -> None:
        for op, number, text in (
            (Op.ITERATOR, 2, ""), (Op.ITERATOR, 0, "x"), (Op.CODES, 0, ""), (Op.CODES, 0, "1,x"), (Op.CODES, 0, "-"),
            (Op.ATTACHMENTS, 0, "x"),
        ):  # fmt: skip
            assert errno_of(keeper.ask, op, number, text) == EINVAL

    def test_without_cap_perfmon_nothing_is_listed_and_the_keeper_goes_on(self, config: KeeperConfig) -> None:
        code = f"""
import errno
from app.sandbox.capabilities import drop_capabilities
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import KeeperConfig
drop_capabilities(["CAP_BPF", "CAP_DAC_OVERRIDE"])
keeper = KeeperClient(KeeperConfig.load({config.dump()!r}))
kernel = KeeperKernel(keeper, None)
try:
    kernel.loaded()
except OSError as error:
    assert error.errno == errno.ENOTSUP, error
else:
    raise AssertionError("it was listed")
assert kernel.owner_of(1) is None and kernel.codes([1, 2]) == {{}}
assert any("links could not be listed" in each for each in kernel.attachments().unseen)
assert keeper.failure is None
keeper.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True)


class TestAbilities:
    def test_keeper_tells_what_the_kernel_can_with_its_rights(self, keeper: KeeperClient, linux: LinuxKernel) -> None:
        assert keeper.abilities() == abilities(linux)
        assert keeper.abilities() == keeper.abilities()
        assert errno_of(keeper.ask, Op.ABILITIES, 0, "x") == EINVAL

    def test_state_is_told_of_arrays_and_of_nothing_else(
        self, keeper: KeeperClient, pins: Path, linux: LinuxKernel
    ) -> None:
        fds = [linux.obj_get(f"{pins}/{name}") for name in ("table", "hash", "drop")]
        told = json.loads(keeper.ask(Op.MAP_STATE, fd=fds[0])[0])
        assert MapState(**told) == linux.map_state(fds[0])
        before = _fds(keeper.pid)
        for fd in (*fds[1:], 0, None):
            assert errno_of(lambda fd=fd: keeper.ask(Op.MAP_STATE, fd=fd)) == EINVAL
        assert errno_of(lambda: keeper.ask(Op.MAP_STATE, text=f"{pins}/table", fd=fds[0])) == EINVAL
        assert _fds(keeper.pid) == before
        for fd in fds:
            linux.close(fd)

    def test_keeper_reads_what_the_listener_may_not(
        self, kernel: KeeperKernel, pins: Path, linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As before Linux 5.14 in a process that has changed its user."""
        fd = kernel.obj_get(f"{pins}/table")
        state = linux.map_state(fd)

        def refuse(*_: object) -> MapState:
            raise PermissionError(EACCES, "fdinfo")

        monkeypatch.setattr(LinuxKernel, "map_state", refuse)
        assert kernel.map_state(fd) == state
        kernel.close(fd)


class TestKeepDir:
    def test_keep_dir_is_created_for_the_owner_only(self, kernel: KeeperKernel, pins: Path) -> None:
        kernel.make_folder(str(pins / "keep"))
        status = (pins / "keep").stat()
        assert (status.st_uid, status.st_mode & 0o777) == (NOBODY, 0o700)
        fd = kernel.obj_get(f"{pins}/drop")
        kernel.obj_pin(fd, f"{pins}/keep/{'0' * 32}_1")
        assert kernel.pins_in(str(pins / "keep")) == [f"{'0' * 32}_1"]
        kernel.close(kernel.obj_get(f"{pins}/keep/{'0' * 32}_1"))
        kernel.unpin(f"{pins}/keep/{'0' * 32}_1")
        kernel.close(fd)

    def test_folder_with_pins_of_others_keeps_its_owner(self, kernel: KeeperKernel, pins: Path) -> None:
        (pins / "keep").mkdir()
        (pins / "table").rename(pins / "keep/table")
        assert errno_of(lambda: kernel.check_pin(f"{pins}/keep/program")) == ENOTEMPTY
        assert (pins / "keep").stat().st_uid == 0


class TestFiles:
    def test_only_configured_files_are_opened_for_reading(self, keeper: KeeperClient, config: KeeperConfig) -> None:
        fd = keeper.open(Op.READ, text=config.reads[0])
        assert os.read(fd, 100) == b"secret"
        assert errno_of(lambda: os.write(fd, b"x")) > 0
        os.close(fd)
        assert errno_of(lambda: keeper.open(Op.READ, text="/etc/shadow")) == EINVAL

    def test_audit_file_is_opened_for_appending(self, keeper: KeeperClient, config: KeeperConfig) -> None:
        for line in (b"one\n", b"two\n"):
            fd = keeper.open(Op.AUDIT)
            os.write(fd, line)
            os.close(fd)
        assert Path(str(config.audit)).read_text() == "one\ntwo\n"

    def test_audit_file_that_others_replaced_is_refused(
        self, keeper: KeeperClient, config: KeeperConfig, tmp_path: Path
    ) -> None:
        """Whoever may write in the folder of the audit file could replace it."""
        audit = Path(str(config.audit))
        audit.symlink_to(tmp_path / "key")
        os.chown(audit, NOBODY, NOBODY, follow_symlinks=False)
        assert errno_of(lambda: keeper.open(Op.AUDIT)) == EACCES
        audit.unlink()
        audit.hardlink_to(tmp_path / "key")
        assert errno_of(lambda: keeper.open(Op.AUDIT)) == EACCES
        audit.unlink()
        os.mkfifo(audit)
        assert errno_of(lambda: keeper.open(Op.AUDIT)) > 0
        audit.unlink()
        os.chown(tmp_path, NOBODY, NOBODY)
        assert errno_of(lambda: keeper.open(Op.AUDIT)) == EACCES, "its folder is somebody else's"

    def test_token_is_found_only_by_its_full_hash(self, keeper: KeeperClient, config: KeeperConfig) -> None:
        file = TokenFile(Path(str(config.tokens)))
        assert keeper.ask(Op.TOKEN, text="0" * 64)[0] == b"", "there is no file yet"
        secret = file.add(Token("deploy", "", "writer", 0.0))
        digest = hashlib.sha256(secret.encode()).hexdigest()
        for text, name in ((digest, "deploy"), ("0" * 64, None)):
            told, fd = keeper.ask(Op.TOKEN, text=text)
            assert (json.loads(told)["name"] if told else None) == name
            assert fd is not None
            assert os.fstat(fd).st_ino == file.path.stat().st_ino
            assert errno_of(os.read, fd, 1) == EBADF, "it is none to read"
            os.close(fd)
        for text in ("", digest[:-1], digest.upper(), f"{digest}0"):
            assert errno_of(keeper.ask, Op.TOKEN, 0, text) == EINVAL

    def test_token_file_of_another_owner_is_refused(self, keeper: KeeperClient, config: KeeperConfig) -> None:
        path = Path(str(config.tokens))
        TokenFile(path).add(Token("deploy", "", "writer", 0.0))
        os.chown(path, NOBODY, NOBODY)
        assert errno_of(lambda: keeper.ask(Op.TOKEN, text="0" * 64)) == EACCES


def _fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class TestLifetime:
    def test_keeper_ignores_signals_and_ends_with_its_channel(self, keeper: KeeperClient) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(keeper.pid, number)
        assert errno_of(lambda: keeper.ask(Op.TOKEN, text="")) == EINVAL
        keeper.close()
        assert not Path(f"/proc/{keeper.pid}/fd/0").exists()

    def test_caller_gets_an_error_once_the_keeper_is_dead(self, keeper: KeeperClient, kernel: KeeperKernel) -> None:
        assert kernel.failure is None
        os.kill(keeper.pid, signal.SIGKILL)
        assert [errno_of(kernel.obj_get, "/x") for _ in range(2)] == [EPIPE, EPIPE]
        assert "restart the service" in str(kernel.failure)

    def test_keeper_has_only_the_needed_capabilities(self, keeper: KeeperClient) -> None:
        status = Path(f"/proc/{keeper.pid}/status").read_text()
        told = dict(line.split(":\t", 1) for line in status.splitlines())
        assert int(told["CapPrm"], 16) == 1 << 0 | 1 << 1 | 1 << 21 | 1 << 39
        assert told["NoNewPrivs"] == "1"

    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.binary(max_size=200)
        | st.builds(REQUEST.pack, st.integers(0, 20), *[st.integers(0, 2**32 - 1)] * 2)
        | st.builds(lambda op, text: REQUEST.pack(op, 0, 1) + text, st.integers(0, 20), st.binary(max_size=100)),
        st.sampled_from([None, "file", "socket", "many"]),
    )
    def test_every_message_is_answered(self, keeper: KeeperClient, said: bytes, beside: str | None) -> None:
        keeper.table_programs(), keeper.iterators()  # the keeper keeps them open
        assert errno_of(lambda: keeper.ask(Op.TOKEN, text="")) == EINVAL
        before = _fds(keeper.pid)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fds = {None: [], "file": [0], "socket": [ours.fileno()], "many": [0] * 60}[beside]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            keeper._channel.sendmsg([said], rights)
            answer, fd = receive(keeper._channel, 1 << 17)
            assert len(answer) >= REPLY.size
            if fd is not None:
                os.close(fd)
        assert errno_of(lambda: keeper.ask(Op.TOKEN, text="")) == EINVAL
        assert _fds(keeper.pid) == before

    def test_empty_datagram_does_not_end_the_keeper(self, keeper: KeeperClient) -> None:
        keeper._channel.send(b"")
        assert REPLY.unpack(receive(keeper._channel, 100)[0])[0] == EMSGSIZE
        assert keeper.failure is None

    def test_too_long_message_is_refused(self, keeper: KeeperClient) -> None:
        for size in (MAX_TEXT + 1, 1 << 16):
            send(keeper._channel, REQUEST.pack(Op.OPEN_PIN, 0, 1) + b"/" * size)
            assert REPLY.unpack(receive(keeper._channel, 100)[0])[0] == EMSGSIZE
        assert errno_of(lambda: keeper.ask(Op.OPEN_PIN, text="/" * MAX_TEXT)) == EINVAL


@pytest.fixture
def stopped(keeper: KeeperClient) -> Iterator[KeeperClient]:
    """A keeper that is stopped, until the test or its end sends SIGCONT."""
    os.kill(keeper.pid, signal.SIGSTOP)
    yield keeper
    os.kill(keeper.pid, signal.SIGCONT)


def _answers(keeper: KeeperClient) -> bool:
    deadline = time.monotonic() + 20
    while keeper.failure is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    return keeper.failure is None


@pytest.mark.field
class TestHanging:
    async def test_event_loop_waits_once_and_shortly(self, stopped: KeeperClient, anyio_backend: str) -> None:
        """Field 30: a keeper that hangs costs the event loop 1 s in all, however often it is asked."""
        began = time.monotonic()
        for _ in range(20):
            assert errno_of(stopped.ask, Op.TOKEN, 0, "0" * 64) == ETIMEDOUT
        assert 0.9 < time.monotonic() - began < 3
        assert "does not answer" in str(stopped.failure)

    async def test_event_loop_does_not_wait_for_a_thread_that_waits(
        self, stopped: KeeperClient, anyio_backend: str
    ) -> None:
        """Field 30: whoever may wait for the keeper in a thread keeps nobody else waiting."""
        task = asyncio.ensure_future(asyncio.to_thread(errno_of, stopped.ask, Op.TOKEN, 0, ""))
        async with asyncio.timeout(10):
            while stopped._asked_at is None:
                await asyncio.sleep(0.001)
        began = time.monotonic()
        for _ in range(20):
            assert errno_of(stopped.ask, Op.TOKEN, 0, "0" * 64) == ETIMEDOUT
        assert time.monotonic() - began < 2
        os.kill(stopped.pid, signal.SIGCONT)
        assert await task == EINVAL, "the thread has its answer"

    async def test_keeper_is_asked_again_once_it_answers(
        self, stopped: KeeperClient, kernel: KeeperKernel, pins: Path, anyio_backend: str
    ) -> None:
        """Field 30: a late answer is not taken for that to another question, and its fd is closed."""
        assert errno_of(kernel.obj_get, f"{pins}/table") == ETIMEDOUT
        os.kill(stopped.pid, signal.SIGCONT)
        assert _answers(stopped)
        fds = _fds(os.getpid())
        fd = kernel.obj_get(f"{pins}/drop")
        assert kernel.obj_kind(fd) == "prog"
        kernel.close(fd)
        assert _fds(os.getpid()) == fds

    async def test_pin_that_is_made_too_late_is_removed(
        self, keeper: KeeperClient, kernel: KeeperKernel, pins: Path, anyio_backend: str
    ) -> None:
        """Field 30: whoever was told that a pin was not made finds none."""
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "made")
        os.kill(keeper.pid, signal.SIGSTOP)
        assert errno_of(kernel.obj_pin, fd, f"{pins}/made") == ETIMEDOUT
        os.kill(keeper.pid, signal.SIGCONT)
        assert _answers(keeper)
        assert not (pins / "made").exists()
        kernel.obj_pin(fd, f"{pins}/made")
        kernel.close(fd)


@pytest.mark.field
class TestManyAtOnce:
    """Field 35: a start with 1,000 programs asked the keeper for one after the other."""

    def test_answers_come_in_order_with_their_fds_and_errnos(
        self, keeper: KeeperClient, pins: Path, linux: LinuxKernel
    ) -> None:
        """Field 35: some of many questions are refused, some have no fd."""
        questions = []
        for number in range(60):
            questions += [
                (Op.OPEN_PIN, 0, str(pins / "drop")),
                (Op.OPEN_PIN, 0, str(pins / f"none{number}")),
                (Op.OPEN_PIN, 0, str(pins / "hash")),
                (Op.OPEN_PIN, 0, "/etc/passwd"),
                (Op.OPEN_PIN, 0, str(pins / "table")),
            ]
        answers = keeper.ask_all(questions)
        assert len(answers) == len(questions)
        kinds: list[str | int | None] = []
        for answer in answers:
            if isinstance(answer, OSError):
                kinds.append(answer.errno)
            elif answer[1] is None:
                kinds.append(json.loads(answer[0])["kind"])
            else:
                kinds.append(linux.obj_kind(answer[1]) + "!")
                os.close(answer[1])
        assert kinds == ["prog!", ENOENT, "map", EXDEV, "map!"] * 60
        os.close(keeper.open(Op.OPEN_PIN, text=str(pins / "drop")))

    def test_what_was_asked_for_ahead_is_opened_without_the_keeper(
        self, kernel: KeeperKernel, keeper: KeeperClient, pins: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Field 35: and what nobody opens is closed."""
        table = kernel.obj_get(str(pins / "table"))
        drop = kernel.obj_get(str(pins / "drop"))
        ids = kernel.map_info(table).id, kernel.prog_info(drop).id
        names = [str(pins / name) for name in ("drop", "hash", "none", "table")]
        with kernel.opened_ahead(names, [ids[0]], [ids[1], 1 << 30]):
            with monkeypatch.context() as patch:
                patch.setattr(keeper, "ask", None)
                opened = [kernel.obj_get(name) for name in names[:2]]
                assert [kernel.obj_kind(fd) for fd in opened] == ["prog", "map"]
                opened += [kernel.map_get_fd_by_id(ids[0]), kernel.prog_get_fd_by_id(ids[1])]
                assert errno_of(kernel.obj_get, names[2]) == ENOENT
                assert errno_of(kernel.prog_get_fd_by_id, 1 << 30) == ENOENT
            opened.append(kernel.obj_get(names[0]))
        for fd in (table, drop, *opened):
            kernel.close(fd)

    def test_a_keeper_that_has_ended_answers_nothing(self, keeper: KeeperClient, pins: Path) -> None:
        """Field 35: it is killed before the first of many questions."""
        os.kill(keeper.pid, signal.SIGKILL)
        keeper._process.wait(20)
        answers = keeper.ask_all([(Op.OPEN_PIN, 0, str(pins / "drop"))] * 100)
        assert [isinstance(answer, OSError) and answer.errno for answer in answers] == [EPIPE] * 100

    def test_no_room_for_an_fd_is_told_and_the_channel_goes_on(self, keeper: KeeperClient, pins: Path) -> None:
        """Field 16: the kernel drops an fd that this process may not open."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(each.name) for each in Path("/proc/self/fd").iterdir()), hard)
        )
        fillers = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.open("/dev/null", os.O_RDONLY))
            answers = keeper.ask_all([(Op.OPEN_PIN, 0, str(pins / "drop"))] * 3)
            assert [isinstance(answer, OSError) and answer.errno for answer in answers] == [EMFILE] * 3
            assert errno_of(keeper.open, Op.OPEN_PIN, 0, str(pins / "drop")) == EMFILE
        finally:
            for fd in fillers:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(keeper.open(Op.OPEN_PIN, text=str(pins / "drop")))
