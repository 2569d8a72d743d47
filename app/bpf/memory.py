"""A kernel in memory: the errnos and the life of program arrays as Linux has them, with no privilege at all.

What it is held to stands in tests/bpf/test_contract.py, which runs on the real kernel too.
"""

import errno
import hashlib
import itertools
import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from app.bpf.interpreter import Instruction, Pointer, decode, run
from app.bpf.kernel import MapInfo, MapState, ProgInfo, TestRun
from app.bpf.uapi import (
    BPF_ANY,
    BPF_F_RDONLY,
    BPF_F_XDP_HAS_FRAGS,
    BPF_OBJ_NAME_LEN,
    ENOTSUPP,
    MIN_PACKET,
    Cmd,
    MapType,
    ProgType,
)

_RUNNABLE: Final = {ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.XDP}


@dataclass(eq=False)
class _Map:
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str
    entries: dict[int, "_Program"] = field(default_factory=dict)
    value: bytearray = field(default_factory=bytearray)
    owner: tuple[int, int, int] | None = None  # program type, frags, expected attach type
    frozen: bool = False
    users: int = 0  # fds and pins
    callers: int = 0  # programs that use it


@dataclass(eq=False)
class _Program:
    type: int
    id: int
    name: str
    tag: str
    load_time: int
    code: list[Instruction]
    maps: tuple[_Map, ...]
    fits: tuple[int, int, int]
    users: int = 0  # fds, pins and entries


@dataclass(frozen=True)
class _Open:
    object: _Map | _Program
    writable: bool


def _fail(cmd: Cmd, number: int) -> NoReturn:
    raise OSError(number, f"{cmd.name}: {os.strerror(number)}")


class MemoryKernel:
    """bpf(2) in memory. Thread rule: any method from any thread; one lock guards all."""

    name = "memory"

    def __init__(self) -> None:
        self.boot_id = str(uuid.uuid4())
        self._lock = threading.RLock()
        self._fds: dict[int, _Open] = {}
        self._pins: dict[str, _Map | _Program] = {}
        self._maps: dict[int, _Map] = {}
        self._programs: dict[int, _Program] = {}
        self._next_fd = itertools.count(1000)  # far from real ones, so that a mix-up is seen
        self._next_id = itertools.count(1)

    # Fds, and who keeps what alive

    def _open(self, object_: _Map | _Program, *, writable: bool = True) -> int:
        fd = next(self._next_fd)
        self._fds[fd] = _Open(object_, writable)
        object_.users += 1
        return fd

    def _map(self, cmd: Cmd, fd: int) -> _Map:
        if fd not in self._fds:
            _fail(cmd, errno.EBADF)
        object_ = self._fds[fd].object
        if not isinstance(object_, _Map):
            _fail(cmd, errno.EINVAL)
        return object_

    def _program(self, cmd: Cmd, fd: int) -> _Program:
        if fd not in self._fds:
            _fail(cmd, errno.EBADF)
        object_ = self._fds[fd].object
        if not isinstance(object_, _Program):
            _fail(cmd, errno.EINVAL)
        return object_

    def _drop(self, object_: _Map | _Program) -> None:
        object_.users -= 1
        if object_.users:
            return
        if isinstance(object_, _Program):
            del self._programs[object_.id]
            for used in object_.maps:
                used.callers -= 1
                self._free(used)
        else:
            # The last user reference empties an array, even where a program still jumps through it.
            entries, object_.entries = object_.entries, {}
            for program in entries.values():
                self._drop(program)
            self._free(object_)

    def _free(self, map_: _Map) -> None:
        if not map_.users and not map_.callers:
            self._maps.pop(map_.id, None)

    def close(self, fd: int) -> None:
        """close(2)."""
        with self._lock:
            if fd not in self._fds:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._drop(self._fds.pop(fd).object)

    def obj_kind(self, fd: int) -> str:
        """`map` or `prog`."""
        if fd not in self._fds:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return "map" if isinstance(self._fds[fd].object, _Map) else "prog"

    # Maps

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """MAP_CREATE of a program array, a hash or an array."""
        if type_ not in set(MapType) or not key_size or not value_size or not max_entries:
            _fail(Cmd.MAP_CREATE, errno.EINVAL)
        if type_ == MapType.PROG_ARRAY and (key_size != 4 or value_size != 4):
            _fail(Cmd.MAP_CREATE, errno.EINVAL)
        with self._lock:
            map_ = _Map(type_, next(self._next_id), key_size, value_size, max_entries, name[: BPF_OBJ_NAME_LEN - 1])
            map_.value = bytearray(value_size)
            self._maps[map_.id] = map_
            return self._open(map_)

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """MAP_LOOKUP_ELEM of a program array, or of an array's first value."""
        with self._lock:
            map_ = self._map(Cmd.MAP_LOOKUP_ELEM, fd)
            if map_.type == MapType.ARRAY and index == 0:
                return int.from_bytes(map_.value[:value_size], "little")
            if index not in map_.entries:
                _fail(Cmd.MAP_LOOKUP_ELEM, errno.ENOENT)
            return map_.entries[index].id

    def _writable(self, cmd: Cmd, fd: int) -> _Map:
        map_ = self._map(cmd, fd)
        if map_.frozen or not self._fds[fd].writable:
            _fail(cmd, errno.EPERM)
        if map_.type != MapType.PROG_ARRAY:
            _fail(cmd, ENOTSUPP)
        return map_

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """MAP_UPDATE_ELEM of a program array."""
        with self._lock:
            map_ = self._writable(Cmd.MAP_UPDATE_ELEM, fd)
            if flags != BPF_ANY:
                _fail(Cmd.MAP_UPDATE_ELEM, errno.EINVAL)
            if index >= map_.max_entries:
                _fail(Cmd.MAP_UPDATE_ELEM, errno.E2BIG)
            program = self._program(Cmd.MAP_UPDATE_ELEM, value)
            _claim(Cmd.MAP_UPDATE_ELEM, map_, program.fits)
            old = map_.entries.get(index)
            map_.entries[index] = program
            program.users += 1
            if old is not None:
                self._drop(old)

    def map_delete(self, fd: int, index: int) -> None:
        """MAP_DELETE_ELEM of a program array."""
        with self._lock:
            map_ = self._writable(Cmd.MAP_DELETE_ELEM, fd)
            if index >= map_.max_entries:
                _fail(Cmd.MAP_DELETE_ELEM, errno.E2BIG)
            if index not in map_.entries:
                _fail(Cmd.MAP_DELETE_ELEM, errno.ENOENT)
            self._drop(map_.entries.pop(index))

    def map_freeze(self, fd: int) -> None:
        """MAP_FREEZE."""
        with self._lock:
            map_ = self._map(Cmd.MAP_FREEZE, fd)
            if map_.frozen:
                _fail(Cmd.MAP_FREEZE, errno.EBUSY)
            map_.frozen = True

    def map_info(self, fd: int) -> MapInfo:
        """OBJ_GET_INFO_BY_FD of a map."""
        if fd not in self._fds:
            _fail(Cmd.OBJ_GET_INFO_BY_FD, errno.EBADFD)
        map_ = self._map(Cmd.OBJ_GET_INFO_BY_FD, fd)
        return MapInfo(map_.type, map_.id, map_.key_size, map_.value_size, map_.max_entries, 0, map_.name)

    def map_state(self, fd: int) -> MapState:
        """The fdinfo of a map; memlock as Linux 6.18 counts it."""
        if fd not in self._fds:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        map_ = self._map(Cmd.OBJ_GET_INFO_BY_FD, fd)
        owner = map_.owner
        return MapState(
            memlock=312 + 8 * map_.max_entries,
            frozen=map_.frozen,
            owner_type=None if owner is None else owner[0],
            owner_jited=None if owner is None else True,
        )

    def map_get_fd_by_id(self, id_: int) -> int:
        """MAP_GET_FD_BY_ID."""
        with self._lock:
            if id_ not in self._maps:
                _fail(Cmd.MAP_GET_FD_BY_ID, errno.ENOENT)
            return self._open(self._maps[id_])

    # Programs

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """PROG_LOAD of what `asm` can assemble."""
        with self._lock:
            code = decode(instructions, lambda fd: self._map(Cmd.PROG_LOAD, fd))
            maps = tuple({step.map: None for step in code if step.map is not None})
            fits = (type_, flags & BPF_F_XDP_HAS_FRAGS, expected_attach_type)
            for used in maps:
                if used.type == MapType.PROG_ARRAY:
                    _claim(Cmd.PROG_LOAD, used, fits)
            program = _Program(
                type=type_,
                id=next(self._next_id),
                name=name[: BPF_OBJ_NAME_LEN - 1],
                tag=hashlib.sha256(instructions).hexdigest()[:16],
                load_time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                code=code,
                maps=maps,
                fits=fits,
            )
            for used in maps:
                used.callers += 1
            self._programs[program.id] = program
            return self._open(program)

    def prog_info(self, fd: int) -> ProgInfo:
        """OBJ_GET_INFO_BY_FD of a program."""
        if fd not in self._fds:
            _fail(Cmd.OBJ_GET_INFO_BY_FD, errno.EBADFD)
        program = self._program(Cmd.OBJ_GET_INFO_BY_FD, fd)
        return ProgInfo(
            type=program.type,
            id=program.id,
            tag=program.tag,
            name=program.name,
            load_time=program.load_time,
            uid=os.getuid(),
            map_ids=tuple(used.id for used in program.maps),
            gpl=True,
            run_count=0,
            run_time=0,
        )

    def prog_get_fd_by_id(self, id_: int) -> int:
        """PROG_GET_FD_BY_ID."""
        with self._lock:
            if id_ not in self._programs:
                _fail(Cmd.PROG_GET_FD_BY_ID, errno.ENOENT)
            return self._open(self._programs[id_])

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """PROG_TEST_RUN by the interpreter."""
        program = self._program(Cmd.PROG_TEST_RUN, fd)
        if program.type not in _RUNNABLE:
            _fail(Cmd.PROG_TEST_RUN, ENOTSUPP)
        if len(packet) < MIN_PACKET:
            _fail(Cmd.PROG_TEST_RUN, errno.EINVAL)
        data = bytearray(packet)
        start, end = Pointer(data, 0), Pointer(data, len(data))
        xdp = program.type == ProgType.XDP
        context: dict[int, Any] = {0: start, 4: end} if xdp else {0: len(data), 76: start, 80: end}
        returned, began = 0, time.perf_counter_ns()
        for _ in range(repeat or 1):
            returned = run(program.code, context, self._tail_call, lambda map_: map_.value)
        return TestRun(returned, (time.perf_counter_ns() - began) // (repeat or 1), bytes(data))

    @staticmethod
    def _tail_call(map_: _Map, index: int) -> Sequence[Instruction] | None:
        program = map_.entries.get(index)
        return None if program is None else program.code

    # Pins

    def obj_pin(self, fd: int, path: str) -> None:
        """OBJ_PIN; every folder is taken to exist, and to be in bpffs."""
        with self._lock:
            if fd not in self._fds:
                _fail(Cmd.OBJ_PIN, errno.EBADF)
            if path in self._pins:
                _fail(Cmd.OBJ_PIN, errno.EEXIST)
            if "." in path.rsplit("/", 1)[-1]:
                _fail(Cmd.OBJ_PIN, errno.EPERM)
            self._pins[path] = self._fds[fd].object
            self._pins[path].users += 1

    def obj_get(self, path: str, flags: int = 0) -> int:
        """OBJ_GET."""
        with self._lock:
            if path not in self._pins:
                _fail(Cmd.OBJ_GET, errno.ENOENT)
            return self._open(self._pins[path], writable=not flags & BPF_F_RDONLY)


def _claim(cmd: Cmd, map_: _Map, fits: tuple[int, int, int]) -> None:
    """The first program fixes what fits, for as long as the array exists (bpf_prog_map_compatible)."""
    if map_.owner is None:
        map_.owner = fits
    elif map_.owner != fits:
        _fail(cmd, errno.EINVAL)
