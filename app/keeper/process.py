"""The keeper's process: it answers the questions of the listener, one after the other.

A question may come from an attacker who has taken over the listener, so the keeper trusts none. It reads its limits
(`KeeperConfig`) once, before the listener gives up its rights and serves anybody. It checks where a path has really
led, and passes on fds of program arrays and programs only. It ends when every copy of the other end of the channel is
closed, or when the process that started it ends.
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
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Final

from app.bpf import iterators
from app.bpf.attachments import find_attachments
from app.bpf.bpffs import KEPT_PIN
from app.bpf.bulk import programs as bulk_programs
from app.bpf.inventory import Attachment
from app.bpf.kernel import Ability
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from app.keeper.loads import Loads
from app.keeper.messages import MAX_REPLY, MAX_TEXT, REPLY, REQUEST, SLICE_SECONDS, KeeperConfig, Op
from app.keeper.paths import AllowedPaths, open_file, own_file
from app.sandbox.abilities import abilities
from app.sandbox.capabilities import drop_capabilities
from app.sandbox.channel import receive, send
from app.sandbox.process_name import set_process_name

# For MAP_CREATE; for *_GET_FD_BY_ID; for pins and files of any mode. A keeper is of use with any one of them.
NEEDED: Final = ["CAP_BPF", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]
# The capabilities that the keeper does not drop. CAP_CHOWN: to give keep_dir to the listener's user.
KEPT: Final = [*NEEDED, "CAP_CHOWN"]
# Those that it keeps besides where object files can be loaded: the process that loads one switches its user with the
# last two, and keeps the rest.
KEPT_FOR_OBJECTS: Final = ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SETUID", "CAP_SETGID"]
_MAX_ARRAY_ENTRIES: Final = 1 << 20
_MAX_ATTACHMENTS: Final = 128  # in one answer, which has room for them
_SEND_TIMEOUT: Final = struct.pack("@ll", 10, 0)  # struct timeval: 10 seconds
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")


def main(channel_fd: str, config_fd: str) -> None:
    """Run the keeper: the entry point of its process.

    Args:
        channel_fd: The keeper's end of the channel.
        config_fd: An fd from which the KeeperConfig is read, up to its end.
    """
    channel = socket.socket(fileno=int(channel_fd))
    set_process_name("jumptable: keeper")
    with os.fdopen(int(config_fd), "rb") as file:
        config = KeeperConfig.load(file.read())
    drop_capabilities([*KEPT, *(KEPT_FOR_OBJECTS if config.objects.is_enabled else ())])
    keeper = Keeper(config)
    # Otherwise a listener that sends its own end as an fd and never reads the answer would block this process for ever.
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
    parent = _parent_pidfd()  # before the first reply, after which the listener may end and another process get its pid
    send(channel, REPLY.pack(0, 0))
    keeper.serve(channel, parent)
    keeper.close()
    keeper.remove_stale_socket()


class Keeper:
    """Answers questions within the limits of its KeeperConfig. Thread rule: one thread."""

    def __init__(self, config: KeeperConfig) -> None:
        self._config = config
        self._paths = AllowedPaths(config.pin_dirs, config.pins, config.keep_dir)
        self._kernel = LinuxKernel()
        self._attachments: Iterator[Attachment | str | None] = iter(())  # what is left to be listed
        self._loads = Loads(config.objects, self._kernel)
        self._abilities = b""  # the answer to Op.ABILITIES, once it is known
        self._pinned: dict[str, tuple[int, int]] = {}  # (device, inode) of each pin that this keeper has made, by path

    def serve(self, channel: socket.socket, parent: int | None = None) -> None:
        """Answer questions until the other end of the channel is closed or the parent ends.

        Args:
            channel: The keeper's end of the channel.
            parent: A pidfd of the process that started the keeper. Its end counts even if another process still holds
                the other end of the channel. None: only the channel counts.
        """
        watched = [channel.fileno()] if parent is None else [channel.fileno(), parent]
        while True:
            try:
                ready = self._wait(watched)
                if parent in ready:
                    return
                self._loads.finish(ready)
                if channel.fileno() not in ready:
                    continue
                try:
                    question, fd = receive(channel, REQUEST.size + MAX_TEXT + 1)
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
                    self._reply(channel, 0, errno.EMFILE, b"", None)
                    continue
                if not question and _is_peer_closed(channel):
                    return
                sequence = REQUEST.unpack_from(question)[2] if len(question) >= REQUEST.size else 0
                self._reply(channel, sequence, *self._answer(question, fd))
            except (BrokenPipeError, ConnectionResetError, BlockingIOError):
                return

    def _wait(self, watched: Sequence[int]) -> list[int]:
        """Wait until one of these fds can be read, or an object file is loaded or is to be given up."""
        poll, seconds = select.poll(), self._loads.seconds_left
        for fd in (*watched, *self._loads.fds):
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(None if seconds is None else 1000 * seconds)]

    def close(self) -> None:
        """End the processes that load object files."""
        self._loads.close()

    def _answer(self, question: bytes, given: int | None) -> tuple[int, bytes, int | None]:
        """Answer one question, which may carry an fd: (errno or 0, the bytes of the answer, an fd or None)."""
        try:
            if not REQUEST.size <= len(question) <= REQUEST.size + MAX_TEXT:
                raise OSError(errno.EMSGSIZE, "the question is too short or too long")
            number, argument, _ = REQUEST.unpack_from(question)
            if given is not None and number not in {Op.PIN_ARRAY, Op.MAP_STATE, Op.LOAD_OBJECT}:
                # While it is open, a path through /proc/self/fd could lead to it, into a mount namespace of the sender.
                raise OSError(errno.EINVAL, "this operation takes no fd")
            if b"\0" in question[REQUEST.size :]:
                raise OSError(errno.EINVAL, "the text contains a NUL")
            text = question[REQUEST.size :].decode("utf-8", "surrogateescape")
            return 0, *self._run(number, argument, text, given)
        except OSError as error:
            return error.errno or errno.EIO, b"", None
        except Exception:  # noqa: BLE001 - no question may end the keeper
            return errno.EINVAL, b"", None
        finally:
            if given is not None:
                os.close(given)

    def _reply(self, channel: socket.socket, sequence: int, number: int, content: bytes, fd: int | None) -> None:
        """Send an answer, and close the fd that goes with it."""
        try:
            if len(content) > MAX_REPLY:
                number, content = errno.EMSGSIZE, b""
            send(channel, REPLY.pack(number, sequence) + content, fd)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # too many fds that nobody has received yet: unix(7)
                raise
            send(channel, REPLY.pack(errno.ETOOMANYREFS, sequence))
        finally:
            if fd is not None:
                os.close(fd)

    def _run(self, number: int, argument: int, text: str, given: int | None) -> tuple[bytes, int | None]:
        """Run an operation: (the bytes of the answer, an fd or None). OSError where it is refused."""
        kernel, content, fd = self._kernel, b"", None
        match number:
            case Op.OPEN_PIN:
                with self._paths.open(text) as path:
                    content, fd = self._pass_on(kernel.obj_get(path))
            case Op.MAP_BY_ID:
                content, fd = self._pass_on(kernel.map_get_fd_by_id(argument))
            case Op.PROG_BY_ID:
                fd = kernel.prog_get_fd_by_id(argument)
            case Op.MAKE_ARRAY if 0 < argument <= _MAX_ARRAY_ENTRIES:
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
                fd = None if program is None else os.dup(program)  # the keeper keeps its own fd
            case _:
                content, fd = self._tell(number, argument, text, given)
        return content, fd

    def _tell(self, number: int, argument: int, text: str, given: int | None) -> tuple[bytes, int | None]:
        """Run an operation that tells what the kernel has and can: as `_run`."""
        kernel, content, fd = self._kernel, b"", None
        match number:
            case Op.ABILITIES if not text:
                content = self._abilities = self._abilities or _dump(abilities(kernel))
            case Op.MAP_STATE if given is not None and not text:
                content = self._map_state(given)
            case Op.ITERATOR if not text:
                fd = os.dup(iterators.loaded()[argument])  # the keeper keeps its own fd
            case Op.CODES:
                content = self._read_codes([int(each) for each in text.split(",")])
            case Op.ATTACHMENTS if not text:
                content = self._list_attachments(is_first=not argument)
            case Op.LOAD_OBJECT if given is not None:
                self._loads.start(given)
            case _:
                content, fd = self._open_file(number, text)
        return content, fd

    def _read_codes(self, ids: Sequence[int]) -> bytes:
        """Read the first of these programs: at least one, and as many as there is time and room for."""
        found: list[object] = []
        size, deadline = 0, time.monotonic() + SLICE_SECONDS
        for id_ in ids:
            code = self._kernel.codes([id_]).get(id_)
            found.append(
                None if code is None else [code.map_ids, code.jumps and [astuple(each) for each in code.jumps]]
            )
            size += len(json.dumps(found[-1]))
            if time.monotonic() > deadline or size > MAX_REPLY // 4:
                break
        return json.dumps(found).encode()

    def _list_attachments(self, *, is_first: bool) -> bytes:
        """List attachments, from the first one or from where the last answer has ended."""
        if is_first:
            self._attachments = find_attachments()
        found: list[object] = []
        deadline = time.monotonic() + SLICE_SECONDS
        while len(found) < _MAX_ATTACHMENTS and time.monotonic() < deadline:
            try:
                each = next(self._attachments)
            except StopIteration:
                found.append(None)
                break
            if each is not None:
                found.append(each if isinstance(each, str) else astuple(each))
        return json.dumps(found).encode()

    def _open_file(self, number: int, text: str) -> tuple[bytes, int | None]:
        """Run an operation on a file or folder of the configuration: as `_run`."""
        config, content, fd = self._config, b"", None
        match number:
            case Op.KEEP_DIR if config.keep_dir is not None:
                fd = self._open_keep_dir(config.keep_dir)
            case Op.READ_OBJECT:
                fd = self._loads.read_file(text)
            case Op.READ if text in config.reads:
                fd = open_file(text, os.O_RDONLY)
            case Op.AUDIT if config.audit is not None:
                fd = own_file(config.audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND, protected_folder=True)
            case Op.TOKEN if config.tokens is not None and _SHA256_HEX.fullmatch(text):
                content, fd = _find_token(config.tokens, text)
            case _:
                raise OSError(errno.EINVAL, "no such operation, or not with these arguments or this configuration")
        return content, fd

    def _map_state(self, fd: int) -> bytes:
        if self._kernel.obj_kind(fd) != "map" or self._describe_other(fd) is not None:
            raise OSError(errno.EINVAL, "the keeper tells the state of program arrays only")
        return json.dumps(asdict(self._kernel.map_state(fd))).encode()

    def _pass_on(self, fd: int) -> tuple[bytes, int | None]:
        """Return the fd of a program array or a program; close any other fd and return the description instead."""
        try:
            description = self._describe_other(fd)
        except BaseException:
            os.close(fd)
            raise
        if description is None:
            return b"", fd
        os.close(fd)
        return description, None

    def _describe_other(self, fd: int) -> bytes | None:
        """Return the description (see `Op`) of what is behind an fd; None for a program array and for a program."""
        kind = self._kernel.obj_kind(fd)
        if kind == "prog":
            return None
        info = self._kernel.map_info(fd) if kind == "map" else None
        if info is not None and (info.type, info.key_size, info.value_size) == (MapType.PROG_ARRAY, 4, 4):
            return None
        return json.dumps({"kind": kind, "info": None if info is None else asdict(info)}).encode()

    def _pin(self, fd: int, path: str) -> None:
        if self._kernel.obj_kind(fd) != "map" or self._describe_other(fd) is not None:
            raise OSError(errno.EINVAL, "the keeper pins only program arrays")
        with self._paths.folder(path) as (folder, name):
            self._kernel.obj_pin(fd, f"/proc/self/fd/{folder}/{name}")
            self._pinned[path] = _identity(name, folder)

    def _unpin(self, path: str) -> None:
        with self._paths.folder(path) as (folder, name):
            if self._pinned.get(path) != _identity(name, folder):
                raise OSError(errno.EPERM, "this keeper has not made that pin")
            os.unlink(name, dir_fd=folder)
            del self._pinned[path]

    def _open_keep_dir(self, folder: str) -> int:
        """Open keep_dir, after creating it and giving it to its owner where necessary.

        A folder of another owner is given away only if it holds nothing but pins of the service: a configuration that
        names a wrong folder must not hand over the pins of others.
        """
        if not self._kernel.in_bpffs(os.path.realpath(folder)):
            raise OSError(errno.EPERM, "no bpffs is mounted at keep_dir")
        with contextlib.suppress(FileExistsError):
            Path(folder).mkdir(mode=0o700)
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            path = Path(f"/proc/self/fd/{fd}")
            if os.fstat(fd).st_uid != self._config.owner[0] and self._config.owner[0] >= 0:
                if not all(KEPT_PIN.fullmatch(each.name) for each in path.iterdir()):
                    raise OSError(errno.ENOTEMPTY, "keep_dir holds files that are not the service's")
                os.chown(path, *self._config.owner)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def remove_stale_socket(self) -> None:
        """Remove the listener's unix socket, unless another process listens on it by now.

        The listener has no right to remove it: the folder belongs to root.
        """
        path = self._config.socket
        if path is None or not Path(path).is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.settimeout(0)  # do not wait for a process that accepts no connections
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink(missing_ok=True)
            except OSError:
                pass


def _find_token(file: str, digest: str) -> tuple[bytes, int | None]:
    """Find a token in the token file by its hash.

    Returns:
        (the record as JSON, or empty; an fd (O_PATH) by which the listener notices changes of the file, or None where
        there is no file).
    """
    try:
        fd = own_file(file, os.O_RDONLY)
    except FileNotFoundError:
        return b"", None
    with os.fdopen(fd, "rb") as opened:
        found = [each for each in json.load(opened) if hmac.compare_digest(each["hash"], digest)]
        record = json.dumps(found[0]).encode() if found else b""
        return record, os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)


def _dump(found: Iterable[Ability]) -> bytes:
    return json.dumps([astuple(each) for each in found]).encode()


def _identity(name: str, folder: int) -> tuple[int, int]:
    """Return (device, inode) of a name in a folder."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _parent_pidfd() -> int | None:
    """Return a pidfd of the process that started this one; None before Linux 5.3, which has none."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(os.getppid())
    return None


def _is_peer_closed(channel: socket.socket) -> bool:
    """Return whether the other end is closed: an empty datagram looks like the end of the channel."""
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    return bool(poll.poll(0))
