"""The objects of the kernel in memory: maps, programs, and the fds and pins that keep them alive.

`MemoryKernel` checks the arguments of each command and calls these.
"""

import errno
import itertools
import os
from dataclasses import dataclass, field
from typing import TypeVar

from app.bpf.memory.interpreter import Instruction
from app.bpf.uapi import Cmd, fail


@dataclass(eq=False)
class Map:
    """A map.

    `entries` are those of a program array, by index. `value` is the first value of an array, `owner` the compatibility
    (see `Program`) that the first program has fixed.
    """

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str
    entries: dict[int, "Program"] = field(default_factory=dict)
    value: bytearray = field(init=False)
    owner: tuple[int, int, int] | None = None
    frozen: bool = False
    users: int = 0  # fds and pins; without any, a program array is emptied
    callers: int = 0  # loaded programs that refer to it

    def __post_init__(self) -> None:
        self.value = bytearray(self.value_size)

    def code_at(self, index: int) -> list[Instruction] | None:
        """Return the program that a tail call to this entry runs; None for an empty entry."""
        program = self.entries.get(index)
        return None if program is None else program.code


@dataclass(eq=False)
class Program:
    """A program.

    `compatibility` is (type, BPF_F_XDP_HAS_FRAGS or 0, expected attach type). All programs of an array have the same.
    """

    type: int
    id: int
    name: str
    tag: str
    load_time: int
    code: list[Instruction]
    translated: bytes  # the instructions, with the ids of maps instead of fds
    maps: tuple[Map, ...]
    compatibility: tuple[int, int, int]
    users: int = 0  # fds, pins and entries


@dataclass(frozen=True)
class OpenFile:
    """What is behind an fd. `writable`: the fd allows writes."""

    object: Map | Program
    writable: bool


T = TypeVar("T")


class Objects:
    """All maps, programs, fds and pins. Thread rule: the caller holds a lock around each call."""

    def __init__(self) -> None:
        self.fds: dict[int, OpenFile] = {}
        self.pins: dict[str, Map | Program] = {}
        self.maps: dict[int, Map] = {}
        self.programs: dict[int, Program] = {}
        self.next_id = itertools.count(1)
        self._next_fd = itertools.count(1000)  # far from real fds, so that a mix-up is noticed

    def open(self, object_: Map | Program, *, writable: bool = True) -> int:
        """Return a new fd for an object."""
        fd = next(self._next_fd)
        self.fds[fd] = OpenFile(object_, writable)
        object_.users += 1
        return fd

    def open_by_id(self, cmd: Cmd, object_: Map | Program | None) -> int:
        """Return a new fd for the object that an id refers to; OSError with ENOENT for None."""
        if object_ is None:
            fail(cmd, errno.ENOENT)
        return self.open(object_)

    def dup(self, fd: int) -> int:
        """Return another fd for the same object; OSError with EBADF where `fd` is not open."""
        if fd not in self.fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.open(self.fds[fd].object, writable=self.fds[fd].writable)

    def map(self, cmd: Cmd, fd: int) -> Map:
        """Return the map behind an fd; OSError with EBADF where it is not open, EINVAL where it is of a program."""
        return self._behind(cmd, fd, Map)

    def program(self, cmd: Cmd, fd: int) -> Program:
        """Return the program behind an fd; OSError with EBADF where it is not open, EINVAL where it is of a map."""
        return self._behind(cmd, fd, Program)

    def _behind(self, cmd: Cmd, fd: int, kind: type[T]) -> T:
        if fd not in self.fds:
            fail(cmd, errno.EBADF)
        object_ = self.fds[fd].object
        if not isinstance(object_, kind):
            fail(cmd, errno.EINVAL)
        return object_

    def pin(self, fd: int, path: str) -> None:
        """Pin the object behind an open fd at a path."""
        self.pins[path] = self.fds[fd].object
        self.pins[path].users += 1

    def unpin(self, path: str) -> Map | Program:
        """Remove a pin and return its object, for the caller to release; OSError with ENOENT where there is none."""
        if path not in self.pins:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.pins.pop(path)

    def release(self, object_: Map | Program) -> None:
        """Take away one user of an object (an fd, a pin or an entry), and free it with the last one."""
        object_.users -= 1
        if object_.users:
            return
        if isinstance(object_, Program):
            del self.programs[object_.id]
            for used in object_.maps:
                used.callers -= 1
                self._free(used)
        else:
            # With its last fd or pin a program array loses its entries, even while loaded programs jump through it
            # (bpf_map_put_uref()).
            entries, object_.entries = object_.entries, {}
            for program in entries.values():
                self.release(program)
            self._free(object_)

    def _free(self, map_: Map) -> None:
        if not map_.users and not map_.callers:
            self.maps.pop(map_.id, None)


def check_compatible(cmd: Cmd, map_: Map, compatibility: tuple[int, int, int]) -> None:
    """Check whether an array accepts a program: OSError with EINVAL where not.

    The first program fixes what the array accepts, for as long as the array exists.

    Kernel:
        bpf_prog_map_compatible().
    """
    if map_.owner is None:
        map_.owner = compatibility
    elif map_.owner != compatibility:
        fail(cmd, errno.EINVAL)
