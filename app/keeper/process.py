"""The keeper: it alone opens pins, opens by id and makes arrays, and passes on what it has opened.

Whatever it is asked may come from an attacker who has taken over the process that speaks HTTP. So it believes nothing:
it was told at its start, before that process gave up its rights, below which folders and which files it may go, looks
where a path has really led, and passes on program arrays and programs alone. It ends when the other end of its
socketpair is closed by everybody.
"""

import contextlib
import errno
import hmac
import json
import os
import re
import select
import socket
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Final

from app.bpf.bpffs import KEPT_PIN
from app.bpf.bulk import programs as bulk_programs
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from app.keeper.messages import MAX_REPLY, MAX_TEXT, REPLY, REQUEST, KeeperConfig, Op
from app.keeper.paths import Paths, open_file, own_file
from app.sandbox.capabilities import drop_capabilities
from app.sandbox.channel import receive, send

# MAP_CREATE; *_GET_FD_BY_ID; pins and files of any mode. Each of them is worth a keeper.
NEEDED: Final = ["CAP_BPF", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]
# And keep_dir, to be given to the process that listens.
KEPT: Final = [*NEEDED, "CAP_CHOWN"]
MAX_ENTRIES: Final = 1 << 20
_SEND_TIMEOUT: Final = struct.pack("@ll", 10, 0)  # struct timeval
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def main(fd: str, duties: str) -> None:
    """Serve the socketpair's end `fd` until the other one is closed; `duties`: an fd, read to its end before that."""
    channel = socket.socket(fileno=int(fd))
    drop_capabilities(KEPT)
    with os.fdopen(int(duties), "rb") as told:
        keeper = Keeper(KeeperConfig.load(told.read()))
    # Whoever never reads an answer, and leaves its end in a question, would keep this process for ever.
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
    parent = _parent()  # before it hears that this one is there, and may end
    send(channel, REPLY.pack(0))
    keeper.serve(channel, parent)
    keeper.clear_up()


class Keeper:
    """Answers one question after the other."""

    def __init__(self, duties: KeeperConfig) -> None:
        self._duties = duties
        self._paths = Paths(duties.pin_dirs, duties.pins, duties.keep_dir)
        self._kernel = LinuxKernel()
        self._pinned: dict[str, tuple[int, int]] = {}  # path: (device, inode) of what this keeper has pinned

    def serve(self, channel: socket.socket, parent: int | None = None) -> None:
        """Until the other end is closed, or the process of `parent` (a pidfd) has ended, whoever holds that end."""
        poll = select.poll()
        for each in (channel.fileno(), parent):
            if each is not None:
                poll.register(each, select.POLLIN)
        while True:
            try:
                if any(fd == parent for fd, _ in poll.poll()):
                    return
                question, fd = receive(channel, REQUEST.size + MAX_TEXT + 1)
                if not question and _is_closed(channel):
                    return
                self._reply(channel, *self._answer(question, fd))
            except (BrokenPipeError, ConnectionResetError, BlockingIOError):
                return

    def _answer(self, question: bytes, given: int | None) -> tuple[int, bytes, int | None]:
        try:
            if not REQUEST.size <= len(question) <= REQUEST.size + MAX_TEXT:
                raise OSError(errno.EMSGSIZE, "no question has that length")
            number, argument = REQUEST.unpack_from(question)
            if given is not None and number != Op.PIN_ARRAY:
                # /proc/self/fd would lead there, and from there into a mount namespace with names of its own.
                raise OSError(errno.EINVAL, "no fd goes with that")
            if b"\0" in question[REQUEST.size :]:
                raise OSError(errno.EINVAL, "no path has a NUL in it")
            text = question[REQUEST.size :].decode("utf-8", "surrogateescape")
            return 0, *self._do(number, argument, text, given)
        except OSError as error:
            return error.errno or errno.EIO, b"", None
        except Exception:  # noqa: BLE001 - whatever it was asked, it lives on
            return errno.EINVAL, b"", None
        finally:
            if given is not None:
                os.close(given)

    def _reply(self, channel: socket.socket, number: int, told: bytes, fd: int | None) -> None:
        try:
            if len(told) > MAX_REPLY:
                number, told = errno.EMSGSIZE, b""
            send(channel, REPLY.pack(number) + told, fd)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            send(channel, REPLY.pack(errno.ETOOMANYREFS))
        finally:
            if fd is not None:
                os.close(fd)

    def _do(self, number: int, argument: int, text: str, given: int | None) -> tuple[bytes, int | None]:
        kernel, told, fd = self._kernel, b"", None
        match number:
            case Op.OPEN_PIN:
                with self._paths.open(text) as path:
                    told, fd = self._passed_on(kernel.obj_get(path))
            case Op.MAP_BY_ID:
                told, fd = self._passed_on(kernel.map_get_fd_by_id(argument))
            case Op.PROG_BY_ID:
                fd = kernel.prog_get_fd_by_id(argument)
            case Op.MAKE_ARRAY if 0 < argument <= MAX_ENTRIES:
                fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, argument, text)
            case Op.PIN_ARRAY if given is not None:
                self._pin(given, text)
            case Op.UNPIN:
                self._unpin(text)
            case Op.CHECK_PIN:
                with self._paths.folder(text):
                    kernel.check_pin(text)
            case Op.TABLE_PROGRAM if not text:
                program = bulk_programs.loaded(kernel)[argument]
                fd = None if program is None else os.dup(program)  # it is loaded once, however often it is asked for
            case _:
                told, fd = self._file(number, text)
        return told, fd

    def _file(self, number: int, text: str) -> tuple[bytes, int | None]:
        duties, told, fd = self._duties, b"", None
        match number:
            case Op.KEEP_DIR if duties.keep_dir is not None:
                fd = self._keep_dir(duties.keep_dir)
            case Op.READ if text in duties.reads:
                fd = open_file(text, os.O_RDONLY)
            case Op.AUDIT if duties.audit is not None:
                fd = own_file(duties.audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND, kept=True)
            case Op.TOKEN if duties.tokens is not None and _DIGEST.fullmatch(text):
                told, fd = _token(duties.tokens, text)
            case _:
                raise OSError(errno.EINVAL, "nothing that is asked here")
        return told, fd

    def _passed_on(self, fd: int) -> tuple[bytes, int | None]:
        try:
            withheld = self._withheld(fd)
        except BaseException:
            os.close(fd)
            raise
        if withheld is None:
            return b"", fd
        os.close(fd)
        return withheld, None

    def _withheld(self, fd: int) -> bytes | None:
        """What an fd is of, if it is neither a program array nor a program; such an fd is passed on to nobody."""
        kind = self._kernel.obj_kind(fd)
        if kind == "prog":
            return None
        info = self._kernel.map_info(fd) if kind == "map" else None
        if info is not None and (info.type, info.key_size, info.value_size) == (MapType.PROG_ARRAY, 4, 4):
            return None
        return json.dumps({"kind": kind, "info": None if info is None else asdict(info)}).encode()

    def _pin(self, fd: int, path: str) -> None:
        if self._kernel.obj_kind(fd) != "map" or self._withheld(fd) is not None:
            raise OSError(errno.EINVAL, "only arrays are pinned")
        with self._paths.folder(path) as (folder, name):
            self._kernel.obj_pin(fd, f"/proc/self/fd/{folder}/{name}")
            self._pinned[path] = _identity(name, folder)

    def _unpin(self, path: str) -> None:
        with self._paths.folder(path) as (folder, name):
            if self._pinned.get(path) != _identity(name, folder):
                raise OSError(errno.EPERM, "somebody else has pinned it")
            os.unlink(name, dir_fd=folder)
            del self._pinned[path]

    def _keep_dir(self, folder: str) -> int:
        if not self._kernel.in_bpffs(os.path.realpath(folder)):
            raise OSError(errno.EPERM, "no bpffs is mounted there")
        with contextlib.suppress(FileExistsError):
            Path(folder).mkdir(mode=0o700)
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            path = Path(f"/proc/self/fd/{fd}")
            if os.fstat(fd).st_uid != self._duties.owner[0] and self._duties.owner[0] >= 0:
                if not all(KEPT_PIN.fullmatch(each.name) for each in path.iterdir()):
                    raise OSError(errno.ENOTEMPTY, "it is not the service's own")
                os.chown(path, *self._duties.owner)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def clear_up(self) -> None:
        """Remove the socket of the process that listened, which may not do that itself."""
        path = self._duties.socket
        if path is None or not Path(path).is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.settimeout(0)  # it may be somebody's who accepts nothing
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink(missing_ok=True)
            except OSError:
                pass


def _token(file: str, digest: str) -> tuple[bytes, int | None]:
    """What the file of tokens says of this one, and the file itself (O_PATH), by which a change of it can be seen."""
    try:
        fd = own_file(file, os.O_RDONLY)
    except FileNotFoundError:
        return b"", None
    with os.fdopen(fd, "rb") as opened:
        found = [each for each in json.load(opened) if hmac.compare_digest(each["hash"], digest)]
        told = json.dumps(found[0]).encode() if found else b""
        return told, os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)


def _identity(name: str, folder: int) -> tuple[int, int]:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _parent() -> int | None:
    """A pidfd of the process that has started this one; None: this kernel has none (before Linux 5.3)."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(os.getppid())
    return None


def _is_closed(channel: socket.socket) -> bool:
    """Whether an empty datagram was none, but the end."""
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    return bool(poll.poll(0))
