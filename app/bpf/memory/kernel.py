"""The kernel port in memory: commands with the errnos of Linux, and program arrays that live and die as there.

`jumptable demo --kernel memory` and most tests use it. tests/bpf/test_contract.py runs on it and on Linux.
"""

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Final

from app.bpf.asm import INSN
from app.bpf.bulk.fallback import OneCallPerEntry
from app.bpf.inventory import ArrayOwner, Attachments, Loaded, LoadedArray, LoadedProgram, ProgramCode
from app.bpf.jumps import find_jumps
from app.bpf.kernel import Ability, MapInfo, MapState, ProgInfo, TestRun
from app.bpf.memory.interpreter import Instruction, decode, run, sk_buff, xdp_md
from app.bpf.memory.objects import Map, Objects, Program, check_compatible
from app.bpf.uapi import (
    BPF_ANY,
    BPF_F_RDONLY,
    BPF_F_WRONLY,
    BPF_F_XDP_HAS_FRAGS,
    BPF_OBJ_NAME_LEN,
    ENOTSUPP,
    MIN_PACKET,
    Cmd,
    MapType,
    ProgType,
    fail,
)

# The characters that bpf_obj_name_cpy() accepts: letters of Latin-1, digits, _ and .
_NAME: Final = re.compile("[A-Za-z0-9_.\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]*")
_MAX_SKB_PACKET: Final = 3712  # bytes that fit into the page of an skb: bpf_test_init()
_RUNNABLE_TYPES: Final = {ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.XDP}


class MemoryBpffs:
    """The file operations of `Kernel`, in memory: every folder exists and lies in a bpffs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._objects = Objects()

    def unpin(self, path: str) -> None:
        """Remove a pin."""
        with self._lock:
            self._objects.release(self._objects.unpin(path))

    def check_pin(self, path: str) -> None:
        """Raise what `obj_pin` would raise for a new pin at `path`."""
        if "." in path.rsplit("/", 1)[-1]:
            fail(Cmd.OBJ_PIN, errno.EPERM)

    def in_bpffs(self, path: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def make_folder(self, path: str) -> None:
        """Do nothing, as every folder exists."""

    def pins_in(self, folder: str) -> list[str]:
        """Return the names of the pins in a folder."""
        with self._lock:
            return [path.rpartition("/")[2] for path in self._objects.pins if path.rpartition("/")[0] == folder]


class MemoryKernel(OneCallPerEntry, MemoryBpffs):
    """`Kernel` in memory. Thread rule: any thread may call any method; one lock guards all objects."""

    name = "memory"
    failure: OSError | None = None
    abilities: Sequence[Ability] = (Ability("memory", can=True, detail="this kernel is a simulation in memory"),)

    def __init__(self) -> None:
        self.boot_id = str(uuid.uuid4())
        super().__init__()

    def close(self, fd: int) -> None:
        """Close an fd."""
        with self._lock:
            if fd not in self._objects.fds:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._objects.release(self._objects.fds.pop(fd).object)

    def dup(self, fd: int) -> int:
        """Return another fd for the same object."""
        with self._lock:
            return self._objects.dup(fd)

    def obj_kind(self, fd: int) -> str:
        """Return `map` or `prog`."""
        if fd not in self._objects.fds:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return "map" if isinstance(self._objects.fds[fd].object, Map) else "prog"

    # Maps

    def opened_ahead(
        self,
        pins: Sequence[str],  # noqa: ARG002
        maps: Sequence[int],  # noqa: ARG002
        programs: Sequence[int],  # noqa: ARG002
    ) -> contextlib.AbstractContextManager[None]:
        """Do nothing: opening one object takes microseconds."""
        return contextlib.nullcontext()

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """Create a map (MAP_CREATE); its type is one of `MapType`."""
        name = name[: BPF_OBJ_NAME_LEN - 1]
        sizes_are_right = key_size and value_size and (type_ != MapType.PROG_ARRAY or key_size == value_size == 4)
        if type_ not in set(MapType) or not sizes_are_right or not max_entries or not _NAME.fullmatch(name):
            fail(Cmd.MAP_CREATE, errno.EINVAL)
        with self._lock:
            map_ = Map(type_, next(self._objects.next_id), key_size, value_size, max_entries, name)
            self._objects.maps[map_.id] = map_
            return self._objects.open(map_)

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """Read one value (MAP_LOOKUP_ELEM) of a program array, or the first value of an array."""
        with self._lock:
            map_ = self._objects.map(Cmd.MAP_LOOKUP_ELEM, fd)
            if map_.type == MapType.ARRAY and index == 0:
                return int.from_bytes(map_.value[:value_size], "little")
            if index not in map_.entries:
                fail(Cmd.MAP_LOOKUP_ELEM, errno.ENOENT)
            return map_.entries[index].id

    def map_entries(self, fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Read a range of a program array (MAP_LOOKUP_ELEM)."""
        with self._lock:
            entries = self._objects.map(Cmd.MAP_LOOKUP_ELEM, fd).entries
            return [(index, entries[index].id) for index in range(start, stop) if index in entries]

    def _writable_array(self, cmd: Cmd, fd: int) -> Map:
        """Return the program array behind an fd; OSError where the fd or the map refuses writes."""
        map_ = self._objects.map(cmd, fd)
        if map_.frozen or not self._objects.fds[fd].writable:
            fail(cmd, errno.EPERM)
        if map_.type != MapType.PROG_ARRAY:
            fail(cmd, ENOTSUPP)
        return map_

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """Write one entry of a program array (MAP_UPDATE_ELEM)."""
        with self._lock:
            map_ = self._writable_array(Cmd.MAP_UPDATE_ELEM, fd)
            if flags != BPF_ANY:
                fail(Cmd.MAP_UPDATE_ELEM, errno.EINVAL)
            if index >= map_.max_entries:
                fail(Cmd.MAP_UPDATE_ELEM, errno.E2BIG)
            program = self._objects.program(Cmd.MAP_UPDATE_ELEM, value)
            check_compatible(Cmd.MAP_UPDATE_ELEM, map_, program.compatibility)
            old = map_.entries.get(index)
            map_.entries[index] = program
            program.users += 1
            if old is not None:
                self._objects.release(old)

    def map_delete(self, fd: int, index: int) -> None:
        """Clear one entry of a program array (MAP_DELETE_ELEM)."""
        with self._lock:
            map_ = self._writable_array(Cmd.MAP_DELETE_ELEM, fd)
            if index >= map_.max_entries:
                fail(Cmd.MAP_DELETE_ELEM, errno.E2BIG)
            if index not in map_.entries:
                fail(Cmd.MAP_DELETE_ELEM, errno.ENOENT)
            self._objects.release(map_.entries.pop(index))

    def map_freeze(self, fd: int) -> None:
        """Make a map refuse further writes (MAP_FREEZE)."""
        with self._lock:
            map_ = self._objects.map(Cmd.MAP_FREEZE, fd)
            if map_.frozen or not self._objects.fds[fd].writable:
                fail(Cmd.MAP_FREEZE, errno.EPERM)
            map_.frozen = True

    def map_info(self, fd: int) -> MapInfo:
        """Return the facts about a map (OBJ_GET_INFO_BY_FD)."""
        if fd not in self._objects.fds:
            fail(Cmd.OBJ_GET_INFO_BY_FD, errno.EBADFD)
        map_ = self._objects.map(Cmd.OBJ_GET_INFO_BY_FD, fd)
        return MapInfo(map_.type, map_.id, map_.key_size, map_.value_size, map_.max_entries, 0, map_.name)

    def map_state(self, fd: int) -> MapState:
        """Return the state of a map; `memlock` is counted as Linux 6.18 does."""
        if fd not in self._objects.fds:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        map_ = self._objects.map(Cmd.OBJ_GET_INFO_BY_FD, fd)
        owner = map_.owner
        return MapState(
            memlock=312 + 8 * map_.max_entries,
            frozen=map_.frozen,
            owner_type=None if owner is None else owner[0],
            owner_jited=None if owner is None else True,
        )

    def map_get_fd_by_id(self, id_: int) -> int:
        """Open a map by its id (MAP_GET_FD_BY_ID)."""
        with self._lock:
            return self._objects.open_by_id(Cmd.MAP_GET_FD_BY_ID, self._objects.maps.get(id_))

    # Programs

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """Load a program (PROG_LOAD) of instructions that the interpreter knows."""
        with self._lock:
            code = decode(instructions, lambda fd: self._objects.map(Cmd.PROG_LOAD, fd))
            maps = tuple({step.map: None for step in code if step.map is not None})
            compatibility = (type_, flags & BPF_F_XDP_HAS_FRAGS, expected_attach_type)
            for used in maps:
                if used.type == MapType.PROG_ARRAY:
                    check_compatible(Cmd.PROG_LOAD, used, compatibility)
            program = Program(
                type=type_,
                id=next(self._objects.next_id),
                name=name[: BPF_OBJ_NAME_LEN - 1],
                tag=hashlib.sha256(instructions).hexdigest()[:16],
                load_time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                code=code,
                translated=_translated(instructions, code),
                maps=maps,
                compatibility=compatibility,
            )
            for used in maps:
                used.callers += 1
            self._objects.programs[program.id] = program
            return self._objects.open(program)

    def prog_info(self, fd: int) -> ProgInfo:
        """Return the facts about a program (OBJ_GET_INFO_BY_FD); it counts no runs."""
        if fd not in self._objects.fds:
            fail(Cmd.OBJ_GET_INFO_BY_FD, errno.EBADFD)
        program = self._objects.program(Cmd.OBJ_GET_INFO_BY_FD, fd)
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
        """Open a program by its id (PROG_GET_FD_BY_ID)."""
        with self._lock:
            return self._objects.open_by_id(Cmd.PROG_GET_FD_BY_ID, self._objects.programs.get(id_))

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """Run a program on a packet (PROG_TEST_RUN) with the interpreter."""
        program = self._objects.program(Cmd.PROG_TEST_RUN, fd)
        if program.type not in _RUNNABLE_TYPES:
            fail(Cmd.PROG_TEST_RUN, ENOTSUPP)
        if len(packet) < MIN_PACKET or (program.type != ProgType.XDP and len(packet) > _MAX_SKB_PACKET):
            fail(Cmd.PROG_TEST_RUN, errno.EINVAL)
        data, returned, began = bytearray(packet), 0, time.perf_counter_ns()
        for _ in range(repeat):
            context = xdp_md(data) if program.type == ProgType.XDP else sk_buff(data)
            returned = run(program.code, context, Map.code_at, lambda map_: map_.value)
        return TestRun(returned, (time.perf_counter_ns() - began) // repeat, bytes(data))

    # What is loaded

    def loaded(self) -> Loaded:
        """Return all programs and program arrays."""
        with self._lock:
            programs = {id_: _loaded_program(each) for id_, each in self._objects.programs.items()}
            arrays = {
                id_: LoadedArray(id_, each.name, each.max_entries, each.users, _owner(each))
                for id_, each in self._objects.maps.items()
                if each.type == MapType.PROG_ARRAY
            }
            return Loaded(programs, arrays)

    def owner_of(self, map_id: int) -> ArrayOwner | None:
        """Return what a program array requires of its programs."""
        with self._lock:
            map_ = self._objects.maps.get(map_id)
            return None if map_ is None else _owner(map_)

    def codes(self, ids: Sequence[int]) -> dict[int, ProgramCode]:
        """Return where programs jump. No memory is known to be constant."""
        with self._lock:
            programs = {id_: self._objects.programs[id_] for id_ in ids if id_ in self._objects.programs}
        return {
            id_: ProgramCode(tuple(each.id for each in program.maps), find_jumps(program.translated, lambda *_: None))
            for id_, program in programs.items()
        }

    def attachments(self) -> Attachments:
        """Return nothing: nothing can be attached in memory."""
        return Attachments()

    # Pins

    def obj_pin(self, fd: int, path: str) -> None:
        """Pin a map or a program (OBJ_PIN)."""
        with self._lock:
            if fd not in self._objects.fds:
                fail(Cmd.OBJ_PIN, errno.EINVAL)
            if path in self._objects.pins:
                fail(Cmd.OBJ_PIN, errno.EEXIST)
            if "." in path.rsplit("/", 1)[-1]:
                fail(Cmd.OBJ_PIN, errno.EPERM)
            self._objects.pin(fd, path)

    def obj_get(self, path: str, flags: int = 0) -> int:
        """Open a pin (OBJ_GET)."""
        with self._lock:
            if flags & ~(BPF_F_RDONLY | BPF_F_WRONLY):
                fail(Cmd.OBJ_GET, errno.EINVAL)
            if path not in self._objects.pins:
                fail(Cmd.OBJ_GET, errno.ENOENT)
            return self._objects.open(self._objects.pins[path], writable=not flags & BPF_F_RDONLY)


def _translated(instructions: bytes, code: Sequence[Instruction]) -> bytes:
    """Return the instructions with the id of a map where they had its fd."""
    return b"".join(
        raw if each.map is None else INSN.pack(raw[0], raw[1], 0, each.map.id)
        for raw, each in zip(_instructions(instructions), code, strict=True)
    )


def _instructions(code: bytes) -> list[bytes]:
    return [code[start : start + INSN.size] for start in range(0, len(code) // INSN.size * INSN.size, INSN.size)]


def _owner(map_: Map) -> ArrayOwner | None:
    if map_.owner is None:
        return None
    type_, frags, attach_type = map_.owner
    return ArrayOwner(type_, attach_type, jited=True, xdp_frags=bool(frags), has_prototype=False)


def _loaded_program(program: Program) -> LoadedProgram:
    type_, frags, attach_type = program.compatibility
    return LoadedProgram(
        program.id,
        program.name,
        type_,
        attach_type,
        jited=True,
        xdp_frags=bool(frags),
        has_prototype=False,
        load_time=program.load_time,
        constant_jumps=tuple(
            (jump.array, index)
            for jump in find_jumps(program.translated, lambda *_: None)
            if jump.array is not None and jump.certain
            for index in jump.indexes or ()
        ),
    )
