"""The kernel port of a process without privileges, on top of the keeper."""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.bpf.attachments import merged
from app.bpf.bulk.programs import TablePrograms
from app.bpf.inventory import Attachment, Attachments, Jump, ProgramCode
from app.bpf.iterators import Iterators
from app.bpf.kernel import MapInfo, MapState
from app.bpf.linux import LinuxKernel
from app.keeper.client import KeeperClient
from app.keeper.messages import Op

_PROGRAMS_PER_QUESTION: Final = 256  # ids have up to 10 digits


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
    def failure(self) -> OSError | None:  # type: ignore[override]
        """Why the keeper cannot be asked, with a remedy; None while it can."""
        return self._keeper.failure

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
