"""The listener's side of the keeper: starts it, and asks it.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from app.bpf.bulk.programs import TablePrograms
from app.bpf.iterators import Iterators
from app.bpf.kernel import Ability
from app.keeper.messages import MAX_REPLY, MAX_SEQUENCE, REPLY, REQUEST, KeeperConfig, Op
from app.sandbox.channel import receive, send

TIMEOUT_SECONDS: Final = 10.0  # for the start, and for an answer to a thread that may wait
# A keeper that needs longer for an answer is told to be hanging. So long an event loop stands still for it, once: on a
# busy machine a keeper that works well may need a few tenths of it.
_SLOW_SECONDS: Final = 1.0
_CODE: Final = "import sys; sys.path.append(sys.argv[3]); from app.keeper.process import main; main(*sys.argv[1:3])"
# The keeper stops working where so many of its answers wait that they do not fit into the channel; it has 200 KB.
MAX_UNANSWERED: Final = 32
# The errnos of a keeper that cannot be asked: it has ended, or does not answer.
UNAVAILABLE: Final = frozenset({errno.EPIPE, errno.ETIMEDOUT})
KEEPER_ENDED: Final = "the keeper has ended, so it opens and creates nothing: restart the service"
KEEPER_HANGS: Final = (
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
            each.settimeout(TIMEOUT_SECONDS)
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

        A thread that runs an event loop waits at most 1 s, and any other at most 10 s. Whatever asks while an older
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
        patience, now = _SLOW_SECONDS if _is_in_event_loop() else TIMEOUT_SECONDS, time.monotonic()
        asked_at = self._asked_at  # of this or any other thread
        turn = now + patience if asked_at is None else max(now, asked_at + patience)
        if not self._lock.acquire(timeout=turn - now):
            raise OSError(errno.ETIMEDOUT, KEEPER_HANGS)
        try:
            self._drop_late_answer(turn)
            error, content, passed = self._exchange(op, number, text, fd, now + patience)
        except (BrokenPipeError, ConnectionResetError) as failure:
            self._channel.close()
            self._open_question = self._asked_at = None
            raise OSError(errno.EPIPE, KEEPER_ENDED) from failure
        except (TimeoutError, BlockingIOError) as failure:
            self._is_late = True
            raise OSError(errno.ETIMEDOUT, KEEPER_HANGS) from failure
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
            self._exchange(Op.UNPIN, 0, text, None, max(deadline, time.monotonic() + _SLOW_SECONDS))

    def ask_all(self, questions: Sequence[tuple[Op, int, str]]) -> "list[tuple[bytes, int | None] | OSError]":
        """Ask several questions at once: the keeper works on them while this process sends and receives.

        Args:
            questions: The operation, the number and the text of each, as for `ask`.

        Returns:
            What `ask` would have returned or raised for each. The caller owns the fds.
        """
        answers: list[tuple[bytes, int | None] | OSError] = []
        sequences: list[int] = []
        failure = OSError(errno.EPIPE, KEEPER_ENDED)
        with self._lock:
            try:
                if self._channel.fileno() < 0:
                    raise BrokenPipeError
                self._drop_late_answer(time.monotonic() + TIMEOUT_SECONDS)
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
                self._is_late, failure = True, OSError(errno.ETIMEDOUT, KEEPER_HANGS)
        return answers + [failure] * (len(questions) - len(answers))

    def _answer_of(self, sequence: int) -> tuple[bytes, int | None] | OSError:
        """Receive one answer to `ask_all`. Call it under the lock."""
        error, content, fd = self._receive_answer(sequence, time.monotonic() + TIMEOUT_SECONDS)
        return OSError(error, os.strerror(error)) if error else (content, fd)

    def _receive(self) -> tuple[bytes, int | None]:
        content, fd = receive(self._channel, REPLY.size + MAX_REPLY)
        if not content:
            raise BrokenPipeError(errno.EPIPE, KEEPER_ENDED)
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
    def ended_by(self) -> str | None:
        """How the process of the keeper has ended: "exit status 1" or "SIGKILL"; None while it runs."""
        status = self._process.poll()
        if status is None or status >= 0:
            return None if status is None else f"exit status {status}"
        return signal.Signals(-status).name

    @property
    def failure(self) -> OSError | None:
        """What `ask` raises as the keeper cannot be asked: `strerror` has a remedy. None while it can."""
        ended, hangs = OSError(errno.EPIPE, KEEPER_ENDED), OSError(errno.ETIMEDOUT, KEEPER_HANGS)
        if self.has_ended or self._channel.fileno() < 0:
            return ended
        asked_at = self._asked_at
        if asked_at is None:
            return None
        if not self._lock.acquire(blocking=False):  # a thread waits for the answer
            return hangs if self._is_late or time.monotonic() - asked_at > _SLOW_SECONDS else None
        try:
            self._drop_late_answer(0.0)
        except (BrokenPipeError, ConnectionResetError):
            return ended
        except (TimeoutError, BlockingIOError):
            return hangs
        finally:
            self._lock.release()
        return None

    def close(self) -> None:
        """Close the channel, upon which the keeper ends, and wait for its end: up to 10 s, or 1 s if it hangs."""
        seconds = TIMEOUT_SECONDS if self.failure is None else _SLOW_SECONDS
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
