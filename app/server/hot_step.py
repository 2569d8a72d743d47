"""The hot step: what is done for each request of the fast path, and so is written for speed.

It compares bytes and fills in numbers; what they mean was found out before. `_hot_step.c` is the same in C, for those
who have a compiler when they install the service. The tests hold one against the other, byte for byte.
"""

import errno
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from app.bpf.kernel import Kernel
from app.store.records import EMPTY

_VERSION = b" HTTP/1.1"
_MAX_INDEX_DIGITS = 10
_MAX_INDEX = (1 << 32) - 1


class AnswerText(NamedTuple):
    """The text of the answers that tell of one program in the entries of one map, but for the numbers.

    An answer is: `ok` or `created`, the index in hex, `tag_end`, `change-id: N` and `content-length: N` with their line
    ends, `middle`, the request id, `before_index`, the index, `before_tag`, the index in hex, `end`.

    Attributes:
        size: The length of its body without the index, which is there twice: in decimal and in hex.
    """

    ok: bytes
    created: bytes
    tag_end: bytes
    middle: bytes
    before_index: bytes
    before_tag: bytes
    end: bytes
    size: int


class FastRequest:
    """A request that the fast path has taken.

    Attributes:
        connection: Where it comes from: a FastConnection.
        meaning: What its head means: a Meaning. Only its attribute `audit` is used here.
        index: The entry, u32. It may be beyond the end.
        body: Its body.
        data: All its bytes.
        began: When it came, in seconds of time.perf_counter().
        request_id: Its request id. None: it gets one.
        keep_alive: The connection stays open after the answer.
        is_counted: It counts against requests_per_second already.
        before: Of a set: the id of the program that was there, or EMPTY.
        after: The id of the program that is there. EMPTY: the request falls back.
        is_written: The entry was overwritten.
    """

    __slots__ = (
        "after", "before", "began", "body", "connection", "data", "index", "is_counted", "is_written", "keep_alive",
        "meaning", "request_id",
    )  # fmt: skip

    request_id: str | None

    def __init__(self, connection: Any, meaning: Any, index: int, body: bytes, data: bytes) -> None:
        self.connection, self.meaning, self.index, self.body, self.data = connection, meaning, index, body, data
        self.began, self.request_id = time.perf_counter(), None
        self.keep_alive, self.is_counted, self.is_written = True, False, False
        self.before = self.after = EMPTY


class CallTimes:
    """How often a call of the kernel was made, and the seconds that it took: in all, and the longest time."""

    __slots__ = ("count", "longest", "total")

    def __init__(self) -> None:
        self.count, self.total, self.longest = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        """Add a call."""
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def told(self) -> tuple[int, float, float]:
        """Return what was added."""
        return self.count, self.total, self.longest


def split_head(data: bytes) -> tuple[bytes, int, bytes, bytes] | None:
    """Split what was received into what tells the meaning of a request, and the rest.

    Args:
        data: What was received. It begins with a request.

    Returns:
        The request line up to `/entries/`, the index, the header fields, and what comes behind the head. None: the head
        is incomplete, or it is not about an entry.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    line, line_end, fields = head.partition(b"\r\n")
    front, slash, last = line.rpartition(b"/entries/")
    digits = last[: -len(_VERSION)]
    if not (end and line_end and slash and last.endswith(_VERSION) and digits.isdigit()):
        return None
    if len(digits) > _MAX_INDEX_DIGITS or (digits[0] == ord("0") and len(digits) > 1) or int(digits) > _MAX_INDEX:
        return None
    return front, int(digits), fields, rest


def go_through(
    requests: list[FastRequest],
    kernel: Kernel,
    fd: int,
    max_entries: int,
    targets: dict[bytes, tuple[int, int]] | None,
    keep_open: Callable[[int], None],
) -> tuple[tuple[int, float, float], tuple[int, float, float]]:
    """Read the entries of some requests of one map, or point them to the programs that the requests name.

    Args:
        requests: The requests. Their `before`, `after` and `is_written` are set. `after` is left EMPTY where the entry
            is empty or something is unusual; with `before` set, the kernel has refused to overwrite it.
        kernel: The kernel. In C, it is the running Linux.
        fd: The fd of the array.
        max_entries: Of the array.
        targets: By the body of a request, the id of the program that it names, and the fd. None: all are reads.
        keep_open: Called with the id of a program before it is replaced.

    Returns:
        What CallTimes tells of the lookups, and of the updates.
    """
    lookups, updates, clock = CallTimes(), CallTimes(), time.perf_counter
    for request in requests:
        target = None if targets is None else targets.get(request.body)
        if (target is None and targets is not None) or request.index >= max_entries:
            continue
        began = clock()
        try:
            before = kernel.map_lookup(fd, request.index)
        except OSError as error:
            if error.errno != errno.ENOENT:
                continue
            before = EMPTY
        finally:
            lookups.add(clock() - began)
        after, program_fd = (before, -1) if target is None else target
        if before not in {EMPTY, after}:
            keep_open(before)
        request.before = before
        if after != before:
            began = clock()
            try:
                kernel.map_update(fd, request.index, program_fd, 0)
            except OSError:
                continue
            finally:
                updates.add(clock() - began)
            request.is_written = True
        request.after = after
    return lookups.told(), updates.told()


def answers(
    requests: list[FastRequest], first_id: int, texts: dict[int, AnswerText], facts: dict[int, bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Make the answers to some requests of one map.

    Args:
        requests: The requests. None is left EMPTY.
        first_id: The id of the change of the first that has written.
        texts: By the id of the program that is there: the text of the answer.
        facts: By the id of a program, EMPTY included: what the audit tells of it, as JSON.

    Returns:
        The answers, and the lines of the audit: one for each set.
    """
    made, lines, change_id = list[bytes](), list[bytes](), first_id
    for request in requests:
        index, request_id, audit = request.index, (request.request_id or "").encode(), request.meaning.audit
        text, decimal, hex_ = texts[request.after], b"%d" % index, b"%x" % index
        start, status, change = text.ok, b"200", b""
        if request.is_written:
            change = b"change-id: %d\r\n" % change_id
            if request.before == EMPTY:
                start, status = text.created, b"201"
        length = text.size + len(decimal) + len(hex_)
        made.append(
            b"%b%b%b%bcontent-length: %d\r\n%b%b%b%b%b%b%b"
            % (start, hex_, text.tag_end, change, length, text.middle, request_id, text.before_index, decimal,
               text.before_tag, hex_, text.end)
        )  # fmt: skip
        if audit is not None:
            line = b'"request_id":"%b%b%b%b%b"' % (request_id, audit[0], status, audit[1], decimal)
            if request.is_written:
                both = facts[request.before], facts[request.after]
                line += b',"change":%d%b%b,"before":%b,"after":%b' % (change_id, audit[2], decimal, *both)
            lines.append(line)
        change_id += request.is_written
    return made, lines
