"""What the kernel in memory has: maps and programs, and who keeps them alive."""

import errno
import itertools
import os
from dataclasses import dataclass, field
from typing import TypeVar

from app.bpf.memory.interpreter import Instruction
from app.bpf.uapi import Cmd, fail


@dataclass(eq=False)
class Map:
    """A map; `entries` of a program array, `value` of an array's first element."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str
    entries: dict[int, "Program"] = field(default_factory=dict)
    value: bytearray = field(init=False)
    owner: tuple[int, int, int] | None = None  # program type, frags, expected attach type
    frozen: bool = False
    users: int = 0  # fds and pins
    callers: int = 0  # programs that use it

    def __post_init__(self) -> None:
        self.value = bytearray(self.value_size)

    def code_at(self, index: int) -> list[Instruction] | None:
        """What a tail call to this entry runs; None where it falls through."""
        program = self.entries.get(index)
        return None if program is None else program.code


@dataclass(eq=False)
class Program:
    """A program."""

    type: int
    id: int
    name: str
    tag: str
    load_time: int
    code: list[Instruction]
    maps: tuple[Map, ...]
    fits: tuple[int, int, int]
    users: int = 0  # fds, pins and entries


@dataclass(frozen=True)
class Open:
    """What an fd leads to."""

    object: Map | Program
    writable: bool


T = TypeVar("T")


class Objects:
    """All maps and programs, and the fds and pins that lead to them. Thread rule: its user guards it."""

    def __init__(self) -> None:
        self.fds: dict[int, Open] = {}
        self.pins: dict[str, Map | Program] = {}
        self.maps: dict[int, Map] = {}
        self.programs: dict[int, Program] = {}
        self.next_id = itertools.count(1)
        self._next_fd = itertools.count(1000)  # far from real ones, so that a mix-up is seen

    def open(self, object_: Map | Program, *, writable: bool = True) -> int:
        """A new fd that leads to it."""
        fd = next(self._next_fd)
        self.fds[fd] = Open(object_, writable)
        object_.users += 1
        return fd

    def open_by_id(self, cmd: Cmd, object_: Map | Program | None) -> int:
        """A new fd for what an id has found: ENOENT where that is nothing."""
        if object_ is None:
            fail(cmd, errno.ENOENT)
        return self.open(object_)

    def dup(self, fd: int) -> int:
        """Another fd for the same: EBADF."""
        if fd not in self.fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.open(self.fds[fd].object, writable=self.fds[fd].writable)

    def map(self, cmd: Cmd, fd: int) -> Map:
        """The map behind an fd: EBADF, EINVAL."""
        return self._behind(cmd, fd, Map)

    def program(self, cmd: Cmd, fd: int) -> Program:
        """The program behind an fd: EBADF, EINVAL."""
        return self._behind(cmd, fd, Program)

    def _behind(self, cmd: Cmd, fd: int, kind: type[T]) -> T:
        if fd not in self.fds:
            fail(cmd, errno.EBADF)
        object_ = self.fds[fd].object
        if not isinstance(object_, kind):
            fail(cmd, errno.EINVAL)
        return object_

    def pin(self, fd: int, path: str) -> None:
        """Give what the fd leads to a path."""
        self.pins[path] = self.fds[fd].object
        self.pins[path].users += 1

    def unpin(self, path: str) -> Map | Program:
        """What had this path: ENOENT."""
        if path not in self.pins:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.pins.pop(path)

    def drop(self, object_: Map | Program) -> None:
        """One user less: an fd, a pin or an entry."""
        object_.users -= 1
        if object_.users:
            return
        if isinstance(object_, Program):
            del self.programs[object_.id]
            for used in object_.maps:
                used.callers -= 1
                self._free(used)
        else:
            # The last user reference empties an array, even where a program still jumps through it.
            entries, object_.entries = object_.entries, {}
            for program in entries.values():
                self.drop(program)
            self._free(object_)

    def _free(self, map_: Map) -> None:
        if not map_.users and not map_.callers:
            self.maps.pop(map_.id, None)


def claim(cmd: Cmd, map_: Map, fits: tuple[int, int, int]) -> None:
    """The first program fixes what fits, for as long as the array exists (bpf_prog_map_compatible)."""
    if map_.owner is None:
        map_.owner = fits
    elif map_.owner != fits:
        fail(cmd, errno.EINVAL)
