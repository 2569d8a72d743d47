"""The listener's side of the keeper: `KeeperClient` starts and asks it, `KeeperKernel` is the kernel port on top of it.

Nothing here is a security check, because an attacker in the listener can send the keeper any datagram. The keeper
checks every question by itself.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from app.bpf.attachments import merged
from app.bpf.bulk.programs import TablePrograms
from app.bpf.inventory import Attachment, Attachments, Jump, ProgramCode
from app.bpf.iterators import Iterators
from app.bpf.kernel import Ability, MapInfo, MapState
from app.bpf.linux import LinuxKernel
from app.keeper.messages import MAX_REPLY, MAX_SEQUENCE, REPLY, REQUEST, KeeperConfig, Op
from app.loader.files import sealed
from app.loader.messages import MAX_ANSWER_BYTES, LoadAnswer, LoadRequest, ObjectLimits
from app.sandbox.channel import receive, receive_with_fds, send, send_with_fds

_TIMEOUT_SECONDS: Final = 10.0  # for the start, and for an answer to a thread that may wait
_LOOP_TIMEOUT_SECONDS: Final = 0.2  # for an answer to a thread that runs an event loop, which stands still meanwhile
_SLOW_SECONDS: Final = 1.0  # a keeper that needs longer for an answer is told to be hanging
_CODE: Final = "import sys; sys.path.append(sys.argv[3]); from app.keeper.process import main; main(*sys.argv[1:3])"
# The keeper stops working where so many of its answers wait that they do not fit into the channel; it has 200 KB.
MAX_UNANSWERED: Final = 32
_PROGRAMS_PER_QUESTION: Final = 256  # ids have up to 10 digits
# The errnos of a keeper that cannot be asked: it has ended, or does not answer.
UNAVAILABLE: Final = frozenset({errno.EPIPE, errno.ETIMEDOUT})
_KEEPER_ENDED: Final = "the keeper has ended, so it opens and creates nothing: restart the service"
_KEEPER_HANGS: Final = (
    "the keeper does not answer, so it opens and creates nothing: it is asked again when it has answered; "
    "if it is not stopped or busy (ps), restart the service"
)


class KeeperClient:
    """A running keeper and the channel to it. Thread rule: any thread may call any method."""

    def __init__(self, config: KeeperConfig) -> None:
        """Start a keeper with the rights that this process has now, and wait for its first answer.

        Args:
            config: The limits of the keeper.

        Raises:
            OSError: It does not start, or does not answer within 10 s.
        """
        self._lock = threading.Lock()
        self._sequence = 0
        # The question that has no answer yet: its sequence number, operation and text, and when it was sent. There is
        # never more than one.
        self._open_question: tuple[int, Op, str] | None = None
        self._asked_at: float | None = None
        self._is_late = False  # whether somebody has given up waiting for its answer
        self._fds_lock = threading.Lock()
        self._programs: TablePrograms | None = None
        self._iterators: Iterators | None = None
        self._no_iterators: str | None = None  # why the keeper cannot load them
        self._keep_dir: int | None = None
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The configuration goes over a socket, as an argument is limited to 128 KiB (MAX_ARG_STRLEN).
        config_writer, config_reader = socket.socketpair()
        for each in (self._channel, config_writer):
            each.settimeout(_TIMEOUT_SECONDS)
        root = str(Path(__file__).parents[2])
        with config_writer:
            with other, config_reader:
                self._process = subprocess.Popen(  # noqa: S603 - only code of this project
                    # -I: neither the environment nor the current folder decide what is imported. -S: nothing of other
                    # projects is, which .pth files would; the keeper needs the standard library alone.
                    [sys.executable, "-I", "-S", "-c", _CODE, str(other.fileno()), str(config_reader.fileno()), root],
                    pass_fds=[other.fileno(), config_reader.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={},
                    preexec_fn=_ignore_signals,  # noqa: PLW1509 - this process has no other thread yet
                )
            try:
                config_writer.sendall(config.dump())
                config_writer.close()  # the keeper reads up to the end
                self._receive()
            except OSError:
                self.close()
                raise

    def ask(self, op: Op, number: int = 0, text: str = "", fd: int | None = None) -> tuple[bytes, int | None]:
        """Ask one question, and wait for the answer.

        A thread that runs an event loop waits at most 0.2 s, and any other at most 10 s. Whatever asks while an older
        question has had no answer for that long fails at once, so a keeper that hangs costs that time only once.

        Args:
            op: The operation.
            number: See `Op`.
            text: See `Op`.
            fd: Sent with the question; stays the caller's.

        Returns:
            (the bytes of the answer, the fd that came with it or None). The caller owns the fd.

        Raises:
            OSError: The errno with which the keeper refuses; EPIPE if it has ended; ETIMEDOUT if it does not answer in
                time. It may then still do what it was asked, but a pin that it makes too late is removed again.
        """
        patience, now = _LOOP_TIMEOUT_SECONDS if _is_in_event_loop() else _TIMEOUT_SECONDS, time.monotonic()
        asked_at = self._asked_at  # of this or any other thread
        turn = now + patience if asked_at is None else max(now, asked_at + patience)
        if not self._lock.acquire(timeout=turn - now):
            raise OSError(errno.ETIMEDOUT, _KEEPER_HANGS)
        try:
            self._drop_late_answer(turn)
            error, content, passed = self._exchange(op, number, text, fd, now + patience)
        except (BrokenPipeError, ConnectionResetError) as failure:
            self._channel.close()
            self._open_question = self._asked_at = None
            raise OSError(errno.EPIPE, _KEEPER_ENDED) from failure
        except (TimeoutError, BlockingIOError) as failure:
            self._is_late = True
            raise OSError(errno.ETIMEDOUT, _KEEPER_HANGS) from failure
        finally:
            self._lock.release()
        if error:
            raise OSError(error, f"{text if op == Op.READ else op.name}: {os.strerror(error)}")
        return content, passed

    def _exchange(
        self, op: Op, number: int, text: str, fd: int | None, deadline: float
    ) -> tuple[int, bytes, int | None]:
        """Send a question and return its answer: (errno or 0, the bytes, an fd or None). Call it under the lock."""
        if self._channel.fileno() < 0:
            raise BrokenPipeError
        self._sequence = self._sequence % MAX_SEQUENCE + 1
        send(self._channel, REQUEST.pack(op, number, self._sequence) + os.fsencode(text), fd)
        self._open_question, self._asked_at = (self._sequence, op, text), time.monotonic()
        return self._receive_answer(self._sequence, deadline)

    def _receive_answer(self, sequence: int, deadline: float) -> tuple[int, bytes, int | None]:
        """Receive the answer to the open question, which has this sequence number. Any other answer is dropped."""
        while True:
            self._channel.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                content, passed = self._receive()
                error, answered = REPLY.unpack_from(content)
            except OSError as failure:
                if failure.errno != errno.EMFILE:
                    raise
                # The answer came, and its fd found no room. Answers come in order, so it is that to this question.
                content, passed, error, answered = bytes(REPLY.size), None, errno.EMFILE, sequence
            if answered == sequence:
                self._open_question, self._asked_at, self._is_late = None, None, False
                return error, content[REPLY.size :], passed
            if passed is not None:
                os.close(passed)

    def _drop_late_answer(self, deadline: float) -> None:
        """Receive and drop the answer to a question that nobody waits for any more. Call it under the lock.

        Raises:
            TimeoutError, BlockingIOError: It has not come by the deadline.
        """
        if self._open_question is None:
            return
        sequence, op, text = self._open_question
        error, _, passed = self._receive_answer(sequence, deadline)
        if passed is not None:
            os.close(passed)
        if op == Op.PIN_ARRAY and not error:  # whoever asked for the pin was told that there is none
            self._exchange(Op.UNPIN, 0, text, None, max(deadline, time.monotonic() + _LOOP_TIMEOUT_SECONDS))

    def ask_all(self, questions: Sequence[tuple[Op, int, str]]) -> "list[tuple[bytes, int | None] | OSError]":
        """Ask several questions at once: the keeper works on them while this process sends and receives.

        Args:
            questions: The operation, the number and the text of each, as for `ask`.

        Returns:
            What `ask` would have returned or raised for each. The caller owns the fds.
        """
        answers: list[tuple[bytes, int | None] | OSError] = []
        sequences: list[int] = []
        failure = OSError(errno.EPIPE, _KEEPER_ENDED)
        with self._lock:
            try:
                if self._channel.fileno() < 0:
                    raise BrokenPipeError
                self._drop_late_answer(time.monotonic() + _TIMEOUT_SECONDS)
                while len(answers) < len(questions):
                    for op, number, text in questions[len(sequences) : len(answers) + MAX_UNANSWERED]:
                        self._sequence = self._sequence % MAX_SEQUENCE + 1
                        send(self._channel, REQUEST.pack(op, number, self._sequence) + os.fsencode(text))
                        sequences.append(self._sequence)
                        self._open_question, self._asked_at = (self._sequence, op, text), time.monotonic()
                    last, asked_at = self._open_question, self._asked_at
                    answers.append(self._answer_of(sequences[len(answers)]))
                    if len(answers) < len(sequences):
                        self._open_question, self._asked_at = last, asked_at
            except (BrokenPipeError, ConnectionResetError):
                self._channel.close()
                self._open_question = self._asked_at = None
            except (TimeoutError, BlockingIOError):
                self._is_late, failure = True, OSError(errno.ETIMEDOUT, _KEEPER_HANGS)
        return answers + [failure] * (len(questions) - len(answers))

    def _answer_of(self, sequence: int) -> tuple[bytes, int | None] | OSError:
        """Receive one answer to `ask_all`. Call it under the lock."""
        error, content, fd = self._receive_answer(sequence, time.monotonic() + _TIMEOUT_SECONDS)
        return OSError(error, os.strerror(error)) if error else (content, fd)

    def _receive(self) -> tuple[bytes, int | None]:
        content, fd = receive(self._channel, REPLY.size + MAX_REPLY)
        if not content:
            raise BrokenPipeError(errno.EPIPE, _KEEPER_ENDED)
        return content, fd

    def open(self, op: Op, number: int = 0, text: str = "") -> int:
        """Ask for an fd, which the caller then owns.

        Raises:
            OSError: As `ask`; EPROTO if no fd came with the answer.
        """
        fd = self.ask(op, number, text)[1]
        if fd is None:
            raise OSError(errno.EPROTO, f"{op.name}: the keeper has sent no fd")
        return fd

    def open_keep_dir(self) -> int:
        """Ask for an fd (O_PATH) of keep_dir, which the caller then owns.

        Where the keeper cannot be asked, it is a copy of the last one: what is in there is the listener's own.

        Raises:
            OSError: As `open`.
        """
        try:
            fd = self.open(Op.KEEP_DIR)
        except OSError as error:
            with self._fds_lock:
                if error.errno not in UNAVAILABLE or self._keep_dir is None:
                    raise
                return os.dup(self._keep_dir)
        with self._fds_lock:
            if self._keep_dir is not None:
                os.close(self._keep_dir)
            self._keep_dir = os.dup(fd)
        return fd

    def table_programs(self) -> TablePrograms:
        """Return the programs of `app.bpf.bulk`, which the keeper loads. Asked for once; this client owns the fds."""
        with self._fds_lock:
            if self._programs is None:
                self._programs = TablePrograms(self._table_program(0), self._table_program(1))
            return self._programs

    def abilities(self) -> tuple[Ability, ...]:
        """Return what the kernel can with the keeper's rights; nothing if the keeper does not tell."""
        try:
            return tuple(Ability(*each) for each in json.loads(self.ask(Op.ABILITIES)[0]))
        except OSError:
            return ()

    def _table_program(self, number: int) -> int | None:
        try:
            return self.ask(Op.TABLE_PROGRAM, number)[1]
        except OSError:
            return None

    def iterators(self) -> Iterators:
        """Return the iterators, which the keeper loads. Asked for once; this client owns the fds.

        Raises:
            OSError: As `ask`; ENOTSUP where the keeper cannot load them.
        """
        with self._fds_lock:
            if self._no_iterators is not None:
                raise OSError(errno.ENOTSUP, self._no_iterators)
            if self._iterators is None:
                self._iterators = self._ask_for_iterators()
            return self._iterators

    def _ask_for_iterators(self) -> Iterators:
        try:
            arrays = self.open(Op.ITERATOR, 0)
        except OSError as error:
            if error.errno == errno.ENOTSUP:  # for good
                self._no_iterators = error.strerror
            raise
        try:
            return Iterators(arrays, self.open(Op.ITERATOR, 1))
        except OSError:
            os.close(arrays)
            raise

    @property
    def pid(self) -> int:
        """The process id of the keeper."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process of the keeper has ended."""
        return self._process.poll() is not None

    @property
    def degraded_reason(self) -> str | None:
        """The reason why the keeper cannot be asked, with a remedy; None while it can."""
        if self.has_ended or self._channel.fileno() < 0:
            return _KEEPER_ENDED
        asked_at = self._asked_at
        if asked_at is None:
            return None
        if not self._lock.acquire(blocking=False):  # a thread waits for the answer
            return _KEEPER_HANGS if self._is_late or time.monotonic() - asked_at > _SLOW_SECONDS else None
        try:
            self._drop_late_answer(0.0)
        except (BrokenPipeError, ConnectionResetError):
            return _KEEPER_ENDED
        except (TimeoutError, BlockingIOError):
            return _KEEPER_HANGS
        finally:
            self._lock.release()
        return None

    def close(self) -> None:
        """Close the channel, upon which the keeper ends, and wait for its end: up to 10 s, or 0.2 s if it hangs."""
        seconds = _TIMEOUT_SECONDS if self.degraded_reason is None else _LOOP_TIMEOUT_SECONDS
        self._channel.close()
        with self._fds_lock:
            fds = *(self._programs or ()), *(self._iterators or ()), self._keep_dir
            self._programs, self._iterators, self._keep_dir = TablePrograms(), None, None
        for fd in fds:
            if fd is not None:
                os.close(fd)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it also ends when this process does
            self._process.wait(seconds)


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _ignore_signals() -> None:
    """Runs in the new process: signals to the process group or control group are meant for the listener alone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _jump(fields: Sequence[Any]) -> Jump:
    array, indexes, certain = fields
    return Jump(array, None if indexes is None else tuple(indexes), certain)


class KeeperKernel(LinuxKernel):
    """`Kernel` for a process without privileges: the keeper opens, creates, pins and unpins for it.

    Everything on an open fd works without the keeper, as in `LinuxKernel`. The keeper does not pass on fds of maps
    other than program arrays. For those, the methods that open return a stand-in: an fd of /dev/null, for which
    `obj_kind` and `map_info` answer what the keeper has described, so that callers can report what was found. Thread
    rule: any thread may call any method.
    """

    def __init__(self, keeper: KeeperClient, keep_dir: str | None) -> None:
        """Use a keeper.

        Args:
            keeper: The client to ask.
            keep_dir: The folder of the service's own pins; pins in it are made by this process itself.
        """
        super().__init__()
        self._keeper = keeper
        self._keep_dir = keep_dir
        # What was asked for ahead, until it is opened: see `opened_ahead`.
        self._ahead: dict[tuple[Op, int, str], tuple[bytes, int | None] | OSError] = {}
        self._attachments_lock = threading.Lock()
        self._described: dict[int, tuple[str, MapInfo | None]] = {}  # kind and info, by the fd of /dev/null

    @property
    def degraded_reason(self) -> str | None:  # type: ignore[override]
        """The reason why the keeper cannot be asked, with a remedy; None while it can."""
        return self._keeper.degraded_reason

    def table_programs(self) -> TablePrograms:
        """Return the programs that `map_ids` and `map_write` run, which the keeper has loaded."""
        return self._keeper.table_programs() if self.use_bulk_programs else TablePrograms()

    def iterators(self) -> Iterators:
        """Return the iterators that `loaded` reads, which the keeper has loaded."""
        return self._keeper.iterators()

    def codes(self, ids: Sequence[int]) -> dict[int, ProgramCode]:
        """Read where programs jump, with the keeper, a few at a time."""
        found: dict[int, ProgramCode] = {}
        left = list(ids)
        while left:
            asked = left[:_PROGRAMS_PER_QUESTION]
            answers = json.loads(self._keeper.ask(Op.CODES, text=",".join(map(str, asked)))[0])
            for id_, answer in zip(asked, answers, strict=False):
                if answer is not None:
                    map_ids, jumps = answer
                    found[id_] = ProgramCode(tuple(map_ids), None if jumps is None else tuple(map(_jump, jumps)))
            left = left[max(1, len(answers)) :]
        return found

    def attachments(self) -> Attachments:
        """Read what is attached, with the keeper, a part at a time."""
        seen, unseen, is_first, has_ended = list[Attachment](), list[str](), True, False
        with self._attachments_lock:  # the keeper goes on with one list at a time
            while not has_ended:
                for each in json.loads(self._keeper.ask(Op.ATTACHMENTS, number=0 if is_first else 1)[0]):
                    if each is None:
                        has_ended = True
                    elif isinstance(each, str):
                        unseen.append(each)
                    else:
                        seen.append(Attachment(*each))
                is_first = False
        return Attachments(tuple(merged(seen)), tuple(unseen))

    @contextlib.contextmanager
    def opened_ahead(self, pins: Sequence[str], maps: Sequence[int], programs: Sequence[int]) -> Iterator[None]:
        """Ask the keeper for all of these at once. What opens them in the `with` block does not wait for the keeper."""
        questions = {
            *((Op.OPEN_PIN, 0, path) for path in pins if path.rpartition("/")[0] != self._keep_dir),
            *((Op.MAP_BY_ID, id_, "") for id_ in maps),
            *((Op.PROG_BY_ID, id_, "") for id_ in programs),
        }
        if len(questions) > 1:
            in_order = sorted(questions)
            self._ahead.update(zip(in_order, self._keeper.ask_all(in_order), strict=True))
        try:
            yield
        finally:
            for question in questions:
                answer = self._ahead.pop(question, None)
                if isinstance(answer, tuple) and answer[1] is not None:
                    os.close(answer[1])

    def _asked(self, op: Op, number: int, text: str) -> tuple[bytes, int | None]:
        """As `KeeperClient.ask`, or what was asked for ahead."""
        answer = self._ahead.pop((op, number, text), None) if self._ahead else None
        if answer is None or (isinstance(answer, OSError) and answer.errno in {errno.EMFILE, errno.ETOOMANYREFS}):
            return self._keeper.ask(op, number, text)  # alone it may find room
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _open_or_describe(self, op: Op, number: int = 0, text: str = "") -> int:
        """Return the fd that the keeper passes on, or an fd of /dev/null with the keeper's description."""
        content, fd = self._asked(op, number, text)
        if fd is not None:
            return fd
        description = json.loads(content)
        info = None if description["info"] is None else MapInfo(**description["info"])
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._described[fd] = description["kind"], info
        return fd

    @contextlib.contextmanager
    def _in_keep_dir(self, path: str) -> Iterator[str | None]:
        """Yield a name by which this process reaches a path in keep_dir; None for a path elsewhere.

        The name goes through an fd of keep_dir from the keeper, as this process may not enter the folders above it.
        """
        folder, _, name = path.rpartition("/")
        if folder != self._keep_dir:
            yield None
            return
        fd = self._keeper.open_keep_dir()
        try:
            yield f"/proc/self/fd/{fd}/{name}"
        finally:
            os.close(fd)

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:  # noqa: ARG002
        """Create a program array, with the keeper; the type and sizes given are ignored."""
        return self._keeper.open(Op.MAKE_ARRAY, max_entries, name)

    def map_get_fd_by_id(self, id_: int) -> int:
        """Open a map by its id, with the keeper. The fd of a map that is no program array is a stand-in (see class)."""
        return self._open_or_describe(Op.MAP_BY_ID, id_)

    def prog_get_fd_by_id(self, id_: int) -> int:
        """Open a program by its id, with the keeper."""
        fd = self._asked(Op.PROG_BY_ID, id_, "")[1]
        if fd is None:
            raise OSError(errno.EPROTO, "PROG_BY_ID: the keeper has sent no fd")
        return fd

    def obj_get(self, path: str, flags: int = 0) -> int:
        """Open a pin: with the keeper, or in keep_dir without. For other objects the fd is a stand-in (see class)."""
        with self._in_keep_dir(path) as kept:
            return self._open_or_describe(Op.OPEN_PIN, text=path) if kept is None else super().obj_get(kept, flags)

    def obj_pin(self, fd: int, path: str) -> None:
        """Pin a program array with the keeper, or anything in keep_dir without."""
        with self._in_keep_dir(path) as kept:
            if kept is None:
                self._keeper.ask(Op.PIN_ARRAY, text=path, fd=fd)
            else:
                super().obj_pin(fd, kept)

    def unpin(self, path: str) -> None:
        """Remove a pin that this keeper has made, or without the keeper one in keep_dir."""
        with self._in_keep_dir(path) as kept:
            if kept is None:
                self._keeper.ask(Op.UNPIN, text=path)
            else:
                super().unpin(kept)

    def check_pin(self, path: str) -> None:
        """Raise what `obj_pin` would raise, by asking the keeper; in keep_dir only that folder itself is checked."""
        with self._in_keep_dir(path) as kept:
            if kept is None:
                self._keeper.ask(Op.CHECK_PIN, text=path)

    def make_folder(self, path: str) -> None:
        """Create keep_dir, which the keeper does whenever it is asked for that folder; do nothing for others."""
        with self._in_keep_dir(f"{path}/"):
            pass

    def pins_in(self, folder: str) -> list[str]:
        """Return the names in keep_dir; an empty list for other folders."""
        with self._in_keep_dir(f"{folder}/") as kept:
            return [] if kept is None else super().pins_in(kept)

    def obj_kind(self, fd: int) -> str:
        """Return `map`, `prog`, or another text, also for a stand-in."""
        return self._described[fd][0] if fd in self._described else super().obj_kind(fd)

    def map_info(self, fd: int) -> MapInfo:
        """Return the facts about a map, also for a stand-in."""
        info = self._described[fd][1] if fd in self._described else None
        return super().map_info(fd) if info is None else info

    def map_state(self, fd: int) -> MapState:
        """Return the state of a map. Where this process may not read its own fdinfo, the keeper does.

        Before Linux 5.14, fdinfo belongs to root in a process that has changed its user (commit 7bc3fa0172a4).
        """
        try:
            return super().map_state(fd)
        except PermissionError:
            return MapState(**json.loads(self._keeper.ask(Op.MAP_STATE, fd=fd)[0]))

    def close(self, fd: int) -> None:
        """Close an fd."""
        self._described.pop(fd, None)
        super().close(fd)


class KeeperLoader:
    """Reads and loads object files by way of the keeper. Thread rule: any thread but that of an event loop."""

    def __init__(self, keeper: KeeperClient, limits: ObjectLimits) -> None:
        """Ask this keeper, which knows these limits."""
        self._keeper = keeper
        self._limits = limits
        self._channels: set[socket.socket] = set()
        self._is_closed = False

    def seal(self, content: bytes) -> int:
        """Return the fd of sealed memory with this content."""
        return sealed(content)

    def read_file(self, path: str) -> int:
        """Return the fd of sealed memory with the content of a file.

        Raises:
            OSError: As `app.loader.files.read_file`, or as `KeeperClient.ask`.
        """
        return self._keeper.open(Op.READ_OBJECT, text=path)

    def load(self, request: LoadRequest, elf: int, maps: Sequence[int]) -> tuple[LoadAnswer, list[int]]:
        """Load an object file, as `app.loader.client.DirectLoader.load` does.

        Raises:
            OSError: As `KeeperClient.ask`; EBUSY: the keeper loads as many as it can already; EPERM: the file was not
                read by the keeper, and may not be uploaded; EPIPE: the keeper has ended.
        """
        channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with channel:
            with other:
                send_with_fds(channel, request.dump(), [elf, *maps])
                self._keeper.ask(Op.LOAD_OBJECT, fd=other.fileno())
            channel.settimeout(self._limits.timeout + _TIMEOUT_SECONDS)
            self._channels.add(channel)
            try:
                content, fds = (b"", []) if self._is_closed else receive_with_fds(channel, MAX_ANSWER_BYTES)
            except TimeoutError as failure:
                raise OSError(errno.ETIMEDOUT, _KEEPER_HANGS) from failure
            finally:
                self._channels.discard(channel)
        if content:
            return LoadAnswer.load(content), fds
        if self._is_closed:
            raise OSError(errno.ESHUTDOWN, "the loader is closed")
        raise OSError(errno.EPIPE, _KEEPER_ENDED)

    def close(self) -> None:
        """Wait no longer for what is being loaded."""
        self._is_closed = True
        for channel in list(self._channels):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
