"""The keeper, as the process that speaks HTTP has it: started, asked, and a kernel that asks it."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.bpf.bulk.programs import TablePrograms
from app.bpf.kernel import MapInfo
from app.bpf.linux import LinuxKernel
from app.keeper.messages import MAX_REPLY, REPLY, REQUEST, KeeperConfig, Op
from app.sandbox.channel import receive, send

_SECONDS: Final = 10.0  # that it may take to start, and to answer
_RUN: Final = "import sys; sys.path.append(sys.argv[3]); from app.keeper.process import main; main(*sys.argv[1:3])"
_GONE: Final = "the keeper has ended, so nothing can be opened or made: restart the service"


class KeeperClient:
    """A keeper, started by this process and with its rights. Thread rule: any method from any thread."""

    def __init__(self, duties: KeeperConfig) -> None:
        """Start it, and wait until it answers. OSError."""
        self._lock = threading.Lock()
        self._programs_lock = threading.Lock()
        self._programs: TablePrograms | None = None
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        telling, told = socket.socketpair()  # no argument: those have 128 KiB at the most (MAX_ARG_STRLEN)
        for each in (self._channel, telling):
            each.settimeout(_SECONDS)
        root = str(Path(__file__).parents[2])
        with telling:
            with other, told:
                self._process = subprocess.Popen(  # noqa: S603 - of this project alone
                    # -I: neither the environment nor the current folder say what is imported.
                    [sys.executable, "-I", "-c", _RUN, str(other.fileno()), str(told.fileno()), root],
                    pass_fds=[other.fileno(), told.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={},
                    preexec_fn=_outlive_signals,  # noqa: PLW1509 - there is no other thread yet
                )
            try:
                telling.sendall(duties.dump())
                telling.close()  # that is all: it reads to the end, once
                self._receive()
            except OSError:
                self.close()
                raise

    def ask(self, op: Op, number: int = 0, text: str = "", fd: int | None = None) -> tuple[bytes, int | None]:
        """What it tells, and the fd that it passes on, which is the caller's. OSError; EPIPE: it has ended."""
        question = REQUEST.pack(op, number) + os.fsencode(text)
        with self._lock:
            try:
                if self._channel.fileno() < 0:
                    raise BrokenPipeError
                send(self._channel, question, fd)
                told, passed = self._receive()
            except (BrokenPipeError, ConnectionResetError, TimeoutError) as error:
                self._channel.close()  # an answer that comes too late is none to the next question
                raise OSError(errno.EPIPE, _GONE) from error
        number = REPLY.unpack_from(told)[0]
        if number:
            raise OSError(number, f"{text if op == Op.READ else op.name}: {os.strerror(number)}")
        return told[REPLY.size :], passed

    def _receive(self) -> tuple[bytes, int | None]:
        told, fd = receive(self._channel, REPLY.size + MAX_REPLY)
        if not told:
            raise BrokenPipeError(errno.EPIPE, _GONE)
        return told, fd

    def open(self, op: Op, number: int = 0, text: str = "") -> int:
        """The same, of what passes on an fd."""
        fd = self.ask(op, number, text)[1]
        if fd is None:
            raise OSError(errno.EPROTO, f"{op.name}: no fd came")
        return fd

    def table_programs(self) -> TablePrograms:
        """Those that it loads and passes on; they are this client's, which asks for them once."""
        with self._programs_lock:
            if self._programs is None:
                self._programs = TablePrograms(self._program(0), self._program(1))
            return self._programs

    def _program(self, number: int) -> int | None:
        try:
            return self.ask(Op.TABLE_PROGRAM, number)[1]
        except OSError:
            return None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def degraded_reason(self) -> str | None:
        """Why it cannot be asked; None: it can."""
        return None if self._process.poll() is None and self._channel.fileno() >= 0 else _GONE

    def close(self) -> None:
        """End it, and wait for its end."""
        self._channel.close()
        with self._programs_lock:
            programs, self._programs = self._programs, TablePrograms()
        for fd in programs or ():
            if fd is not None:
                os.close(fd)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it ends by itself once it sees that this process has
            self._process.wait(_SECONDS)


def _outlive_signals() -> None:
    """In the keeper, before it is one: signals to the group or the control group are for the process that listens."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


class KeeperKernel(LinuxKernel):
    """The running Linux for a process without any right: a keeper opens and makes for it. Thread rule: any."""

    def __init__(self, keeper: KeeperClient, keep_dir: str | None) -> None:
        super().__init__()
        self._keeper = keeper
        self._keep_dir = keep_dir
        self._withheld: dict[int, tuple[str, MapInfo | None]] = {}  # by an fd that stands in for what is not passed on

    @property
    def degraded_reason(self) -> str | None:  # type: ignore[override]
        """The keeper's."""
        return self._keeper.degraded_reason

    def table_programs(self) -> TablePrograms:
        """The keeper's."""
        return self._keeper.table_programs() if self.use_bulk_programs else TablePrograms()

    def _passed_on(self, op: Op, number: int = 0, text: str = "") -> int:
        told, fd = self._keeper.ask(op, number, text)
        if fd is not None:
            return fd
        what = json.loads(told)
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._withheld[fd] = what["kind"], None if what["info"] is None else MapInfo(**what["info"])
        return fd

    @contextlib.contextmanager
    def _kept(self, path: str) -> Iterator[str | None]:
        """A way to what is in keep_dir, past folders that this process may not enter; None for any other path."""
        folder, _, name = path.rpartition("/")
        if folder != self._keep_dir:
            yield None
            return
        fd = self._keeper.open(Op.KEEP_DIR)
        try:
            yield f"/proc/self/fd/{fd}/{name}"
        finally:
            os.close(fd)

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:  # noqa: ARG002
        """Of a program array, whatever the type."""
        return self._keeper.open(Op.MAKE_ARRAY, max_entries, name)

    def map_get_fd_by_id(self, id_: int) -> int:
        """Of a program array; else an fd that only tells what it is instead."""
        return self._passed_on(Op.MAP_BY_ID, id_)

    def prog_get_fd_by_id(self, id_: int) -> int:
        """PROG_GET_FD_BY_ID, by the keeper."""
        return self._keeper.open(Op.PROG_BY_ID, id_)

    def obj_get(self, path: str, flags: int = 0) -> int:
        """Of a program array or a program; else an fd that only tells what it is instead."""
        with self._kept(path) as kept:
            return self._passed_on(Op.OPEN_PIN, text=path) if kept is None else super().obj_get(kept, flags)

    def obj_pin(self, fd: int, path: str) -> None:
        """OBJ_PIN: in keep_dir by this process itself."""
        with self._kept(path) as kept:
            if kept is None:
                self._keeper.ask(Op.PIN_ARRAY, text=path, fd=fd)
            else:
                super().obj_pin(fd, kept)

    def unpin(self, path: str) -> None:
        """unlink(2): in keep_dir by this process itself, elsewhere of what this keeper has pinned."""
        with self._kept(path) as kept:
            if kept is None:
                self._keeper.ask(Op.UNPIN, text=path)
            else:
                super().unpin(kept)

    def check_pin(self, path: str) -> None:
        """By the keeper."""
        with self._kept(path) as kept:
            if kept is None:
                self._keeper.ask(Op.CHECK_PIN, text=path)

    def make_folder(self, path: str) -> None:
        """Of keep_dir alone, which is made by each question for it."""
        with self._kept(f"{path}/"):
            pass

    def pins_in(self, folder: str) -> list[str]:
        """Of keep_dir alone."""
        with self._kept(f"{folder}/") as kept:
            return [] if kept is None else super().pins_in(kept)

    def obj_kind(self, fd: int) -> str:
        """Also of what is not passed on."""
        return self._withheld[fd][0] if fd in self._withheld else super().obj_kind(fd)

    def map_info(self, fd: int) -> MapInfo:
        """Also of what is not passed on."""
        info = self._withheld[fd][1] if fd in self._withheld else None
        return super().map_info(fd) if info is None else info

    def close(self, fd: int) -> None:
        """close(2)."""
        self._withheld.pop(fd, None)
        super().close(fd)
