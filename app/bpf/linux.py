"""The kernel port on the running Linux: each method fills in union bpf_attr and calls bpf(2).

Reading, writing and clearing one entry is the hot path of the service: a C extension does it where it was built, and
otherwise `_Element`.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from app import native
from app.bpf import attr, iterators
from app.bpf.attachments import find_attachments, merged
from app.bpf.bpffs import LinuxBpffs
from app.bpf.bulk import fallback
from app.bpf.bulk import programs as bulk_programs
from app.bpf.bulk.programs import TablePrograms
from app.bpf.code import CodeReader
from app.bpf.inventory import ArrayOwner, Attachment, Attachments, Loaded, ProgramCode
from app.bpf.kernel import Ability, MapInfo, MapState, ProgInfo, TestRun
from app.bpf.syscall import NUMBER, bpf, bpf_retrying, call_holding_gil, call_releasing_gil, failure
from app.bpf.uapi import BPF_OBJ_NAME_LEN, Cmd, MapType

if native.is_used:
    from app.bpf import _element

# Indexes into the buffer of `_Element`, in u32 words: the fields of struct MapElem, then the key and the value.
_FD: Final = 0
_FLAGS: Final = 6  # two words
_KEY: Final = 8
_VALUE: Final = 9


class _Element(threading.local):
    """The commands on one element of a map with u32 keys and values, as `_element.c` has them.

    Each thread has a buffer of its own, with the arguments of MAP_LOOKUP_ELEM and MAP_UPDATE_ELEM, key and value
    included.
    """

    def __init__(self) -> None:
        self._words = (ctypes.c_uint32 * 10)()
        start = ctypes.addressof(self._words)
        fields = attr.MapElem.from_buffer(self._words)
        fields.key, fields.value = start + 4 * _KEY, start + 4 * _VALUE
        words = memoryview(self._words).cast("B").cast("I")
        # Its words, and the arguments of bpf(2) behind the command: address and size of the struct.
        self._buffer = words, (ctypes.c_void_p(start), ctypes.c_int(ctypes.sizeof(fields)))

    def lookup(self, fd: int, index: int) -> int:
        element, call = self._buffer
        element[_FD], element[_KEY], element[_FLAGS] = fd, index, 0
        if call_holding_gil(NUMBER, _LOOKUP, *call) < 0:
            raise failure(Cmd.MAP_LOOKUP_ELEM)
        return element[_VALUE]

    def update(self, fd: int, index: int, value: int, flags: int) -> None:
        element, call = self._buffer
        element[_FD], element[_KEY], element[_VALUE] = fd, index, value
        element[_FLAGS], element[_FLAGS + 1] = flags & 0xFFFFFFFF, flags >> 32
        if call_holding_gil(NUMBER, _UPDATE, *call) < 0:
            raise failure(Cmd.MAP_UPDATE_ELEM)

    def delete(self, fd: int, index: int) -> None:
        key = ctypes.c_uint32(index)
        bpf(Cmd.MAP_DELETE_ELEM, attr.MapKey(map_fd=fd, key=ctypes.addressof(key)), call_releasing_gil)


# The bytes by which a program may lengthen its packet in a test run: PROG_TEST_RUN copies the packet out as a whole, or
# fails with ENOSPC.
_MAX_PACKET_GROWTH: Final = 1 << 16

_LOOKUP, _UPDATE = (ctypes.c_int(cmd) for cmd in (Cmd.MAP_LOOKUP_ELEM, Cmd.MAP_UPDATE_ELEM))
_U32_BYTES: Final = 4


class LinuxKernel(LinuxBpffs):
    """`Kernel` on the running Linux. Thread rule: any thread may call any method."""

    name = "linux"
    failure: OSError | None = None
    abilities: Sequence[Ability] = ()  # set by who starts the service: app.sandbox.abilities asks for them

    # False makes `map_ids` and `map_write` use one command per entry even where the programs of `bulk` could be had.
    # Tests set it, to observe or interrupt each single write.
    use_bulk_programs = True

    def __init__(self) -> None:
        """Read the boot id.

        Raises:
            OSError: ENOSYS on a machine whose number of bpf(2) is not known here.
        """
        if NUMBER.value < 0:
            raise OSError(errno.ENOSYS, f"bpf(2) has no known system call number on {platform.machine()}")
        self._element = _element if native.is_used else _Element()
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    def opened_ahead(
        self,
        pins: Sequence[str],  # noqa: ARG002
        maps: Sequence[int],  # noqa: ARG002
        programs: Sequence[int],  # noqa: ARG002
    ) -> contextlib.AbstractContextManager[None]:
        """Do nothing: opening one object takes microseconds."""
        return contextlib.nullcontext()

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """Create a map (MAP_CREATE). A program array gets BTF for key and value where the kernel accepts it (4.18)."""
        fields = attr.MapCreate(
            map_type=type_, key_size=key_size, value_size=value_size, max_entries=max_entries, map_name=_name(name)
        )
        btf_fd = self._btf_load() if type_ == MapType.PROG_ARRAY else None
        try:
            if btf_fd is not None:
                fields.btf_fd, fields.btf_key_type_id, fields.btf_value_type_id = btf_fd, 1, 1
            return bpf(Cmd.MAP_CREATE, fields)
        except OSError as error:
            if error.errno == errno.EPERM and self._is_out_of_memlock():
                raise OSError(errno.EDQUOT, "MAP_CREATE: RLIMIT_MEMLOCK leaves no room for the map") from error
            raise
        finally:
            if btf_fd is not None:
                os.close(btf_fd)

    def _is_out_of_memlock(self) -> bool:
        """Tell whether MAP_CREATE was refused for RLIMIT_MEMLOCK, which is EPERM as well (before Linux 5.11).

        BTF_LOAD needs the same capability and counts against no limit. Where it works, the limit is what is left.
        """
        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
            return False
        btf_fd = self._btf_load()
        if btf_fd is not None:
            os.close(btf_fd)
        return btf_fd is not None

    def _btf_load(self) -> int | None:
        blob = ctypes.create_string_buffer(attr.BTF_U32, len(attr.BTF_U32))
        try:
            return bpf(Cmd.BTF_LOAD, attr.BtfLoad(btf=ctypes.addressof(blob), btf_size=len(attr.BTF_U32)))
        except OSError:
            return None  # an array without BTF works as well; only reading its pin as a file does not

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """Read one value (MAP_LOOKUP_ELEM)."""
        if value_size == _U32_BYTES:
            return self._element.lookup(fd, index)
        key, value = ctypes.c_uint32(index), ctypes.create_string_buffer(value_size)
        fields = attr.MapElem(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
        bpf(Cmd.MAP_LOOKUP_ELEM, fields)
        return int.from_bytes(value.raw, "little")

    def map_entries(self, fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Read a range (MAP_LOOKUP_ELEM for each index), reusing one buffer for all keys and values."""
        key, value = ctypes.c_uint32(), ctypes.c_uint32()
        fields = attr.MapElem(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
        call, number, reference, size = call_holding_gil, NUMBER, ctypes.byref(fields), ctypes.sizeof(fields)
        command, found = int(Cmd.MAP_LOOKUP_ELEM), []
        for index in range(start, stop):
            key.value = index
            if call(number, command, reference, size) == 0:
                found.append((index, value.value))
            elif (error := ctypes.get_errno()) != errno.ENOENT:
                raise OSError(error, f"MAP_LOOKUP_ELEM: {os.strerror(error)}")
        return found

    def table_programs(self) -> TablePrograms:
        """Return the programs that `map_ids` and `map_write` run. The first call in a process loads them (0.1 s)."""
        return bulk_programs.loaded(self) if self.use_bulk_programs else TablePrograms()

    def map_ids(self, fd: int, start: int, stop: int) -> "array[int]":
        """Read a range of a program array with the reader program, or with one lookup per entry where it fails."""
        with contextlib.suppress(OSError):  # the lookups then fail with the errno that the port promises
            if (reader := self.table_programs().reader) is not None:
                return bulk_programs.read(self, reader, fd, start, stop)
        return fallback.map_ids(self, fd, start, stop)

    def map_write(self, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """Write many entries with the writer program (Linux 5.14), or with one command each where it cannot run."""
        with contextlib.suppress(OSError):  # raised only if the kernel does not run the program at all
            if (writer := self.table_programs().writer) is not None:
                return bulk_programs.write(writer, fd, indexes, values)
        return fallback.map_write(self, fd, indexes, values)

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """Write one value (MAP_UPDATE_ELEM). Takes microseconds and holds the GIL.

        One exception: while another process clears an entry that loaded programs refer to by a constant index, the
        call waits for that clear to end, on the map's poke mutex.
        """
        self._element.update(fd, index, value, flags)

    def map_delete(self, fd: int, index: int) -> None:
        """Clear one entry (MAP_DELETE_ELEM), without the GIL.

        Waits 8 ms and more where a loaded program refers to the index by a constant: prog_array_map_poke_run() then
        waits for an RCU grace period.
        """
        self._element.delete(fd, index)

    def map_freeze(self, fd: int) -> None:
        """Make a map refuse further writes (MAP_FREEZE, Linux 5.2)."""
        bpf(Cmd.MAP_FREEZE, attr.MapFd(map_fd=fd))

    def map_info(self, fd: int) -> MapInfo:
        """Return the facts about a map (OBJ_GET_INFO_BY_FD, Linux 4.13)."""
        buffer = self._info(fd, attr.MAP_INFO_SIZE)
        type_, id_, key_size, value_size, max_entries, flags, name = attr.MAP_INFO.unpack_from(buffer)
        return MapInfo(type_, id_, key_size, value_size, max_entries, flags, _text(name))

    def map_state(self, fd: int) -> MapState:
        """Return the state of a map, from the lines memlock, frozen, owner_prog_type and owner_jited of its fdinfo."""
        text = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii")
        facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        type_, jited = facts.get("owner_prog_type"), facts.get("owner_jited")
        return MapState(
            memlock=int(facts.get("memlock", 0)),
            frozen=facts.get("frozen", "0") == "1",
            owner_type=None if type_ is None else int(type_),
            owner_jited=None if jited is None else jited == "1",
        )

    def map_get_fd_by_id(self, id_: int) -> int:
        """Open a map by its id (MAP_GET_FD_BY_ID, Linux 4.13, CAP_SYS_ADMIN)."""
        return bpf(Cmd.MAP_GET_FD_BY_ID, attr.GetId(id=id_))

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """Load a program (PROG_LOAD)."""
        code = ctypes.create_string_buffer(instructions, len(instructions))
        gpl = ctypes.create_string_buffer(b"GPL")
        fields = attr.ProgLoad(
            prog_type=type_,
            insn_cnt=len(instructions) // 8,
            insns=ctypes.addressof(code),
            license=ctypes.addressof(gpl),
            prog_flags=flags,
            prog_name=_name(name),
            expected_attach_type=expected_attach_type,
        )
        return bpf_retrying(Cmd.PROG_LOAD, fields)

    def prog_info(self, fd: int) -> ProgInfo:
        """Return the facts about a program (OBJ_GET_INFO_BY_FD, Linux 4.13).

        A program that uses maps takes two calls: one for the number of maps, one for their ids.
        """
        buffer = self._info(fd, attr.PROG_INFO_SIZE)
        type_, id_, tag, load_time, uid, map_count, _, name, gpl = attr.PROG_INFO.unpack_from(buffer)
        run_time, run_count = attr.PROG_INFO_RUN.unpack_from(buffer, attr.PROG_INFO_RUN_OFFSET)
        return ProgInfo(
            type=type_,
            id=id_,
            tag=tag.hex(),
            name=_text(name),
            load_time=load_time,
            uid=uid,
            map_ids=self._used_map_ids(fd, map_count),
            gpl=bool(gpl & 1),
            run_count=run_count,
            run_time=run_time,
        )

    def _used_map_ids(self, fd: int, count: int) -> tuple[int, ...]:
        if not count:
            return ()
        ids = (ctypes.c_uint32 * count)()
        self._info(fd, attr.PROG_INFO_SIZE, attr.PROG_INFO_MAP_IDS.pack(count, ctypes.addressof(ids)))
        return tuple(ids)

    def _info(self, fd: int, size: int, map_ids: bytes = b"") -> bytes:
        """Return `size` bytes of info about what is behind `fd`; fields that an older kernel does not know stay 0.

        `map_ids` is a PROG_INFO_MAP_IDS that says where the kernel puts the ids of a program's maps.
        """
        buffer = ctypes.create_string_buffer(size)
        ctypes.memmove(ctypes.addressof(buffer) + attr.PROG_INFO_MAP_IDS_OFFSET, map_ids, len(map_ids))
        fields = attr.Info(bpf_fd=fd, info_len=size, info=ctypes.addressof(buffer))
        bpf(Cmd.OBJ_GET_INFO_BY_FD, fields)
        return buffer.raw

    def prog_get_fd_by_id(self, id_: int) -> int:
        """Open a program by its id (PROG_GET_FD_BY_ID, Linux 4.13, CAP_SYS_ADMIN)."""
        return bpf(Cmd.PROG_GET_FD_BY_ID, attr.GetId(id=id_))

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """Run a program on a packet (PROG_TEST_RUN, Linux 4.12)."""
        data = ctypes.create_string_buffer(packet, len(packet))
        out = ctypes.create_string_buffer(len(packet) + _MAX_PACKET_GROWTH)
        fields = attr.TestRun(
            prog_fd=fd,
            data_size_in=len(packet),
            data_size_out=len(out),
            data_in=ctypes.addressof(data),
            data_out=ctypes.addressof(out),
            repeat=repeat,
        )
        bpf_retrying(Cmd.PROG_TEST_RUN, fields)
        return TestRun(fields.retval, fields.duration, out.raw[: fields.data_size_out])

    def iterators(self) -> iterators.Iterators:
        """Return the iterators that `loaded` reads. The first call in a process loads them (0.1 s).

        Raises:
            OSError: ENOTSUP where they cannot be had.
        """
        return iterators.loaded()

    def loaded(self) -> Loaded:
        """Read all programs and program arrays (ITER_CREATE, Linux 5.9)."""
        return iterators.read(self.iterators())

    def owner_of(self, map_id: int) -> ArrayOwner | None:
        """Return what a program array requires of its programs."""
        try:
            array = self.loaded().arrays.get(map_id)
        except OSError:
            return None
        return None if array is None else array.owner

    def codes(self, ids: Sequence[int]) -> dict[int, ProgramCode]:
        """Read where programs jump (OBJ_GET_INFO_BY_FD, CAP_SYS_ADMIN)."""
        reader = CodeReader(self.map_get_fd_by_id, self.map_info, self.map_state)
        return {id_: code for id_ in ids if (code := self._code(reader, id_)) is not None}

    def _code(self, reader: CodeReader, id_: int) -> ProgramCode | None:
        try:
            fd = self.prog_get_fd_by_id(id_)
        except OSError:
            return None
        try:
            return reader.read(fd, self.prog_info(fd).map_ids)
        except OSError:
            return None
        finally:
            self.close(fd)

    def attachments(self) -> Attachments:
        """Read what is attached (LINK_GET_NEXT_ID, PROG_QUERY, rtnetlink)."""
        found = list(find_attachments())
        seen = [each for each in found if isinstance(each, Attachment)]
        return Attachments(tuple(merged(seen)), tuple(each for each in found if isinstance(each, str)))

    def obj_pin(self, fd: int, path: str) -> None:
        """Pin a map or a program (OBJ_PIN, Linux 4.4)."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        bpf(Cmd.OBJ_PIN, attr.Obj(pathname=ctypes.addressof(name), bpf_fd=fd))

    def obj_get(self, path: str, flags: int = 0) -> int:
        """Open a pin (OBJ_GET, Linux 4.4)."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        return bpf(Cmd.OBJ_GET, attr.Obj(pathname=ctypes.addressof(name), file_flags=flags))

    def obj_kind(self, fd: int) -> str:
        """Return `map`, `prog`, or the target of the fd's link in /proc.

        OBJ_GET_INFO_BY_FD does not tell them apart: it fills in struct bpf_map_info for a map and struct bpf_prog_info
        for a program, whichever the caller expects.
        """
        target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - a Path takes five times as long
        return target.removeprefix("anon_inode:").removeprefix("bpf-")

    def dup(self, fd: int) -> int:
        """Return another fd for the same object (F_DUPFD_CLOEXEC)."""
        return os.dup(fd)

    def close(self, fd: int) -> None:
        """Close an fd (close(2))."""
        os.close(fd)


def _name(name: str) -> bytes:
    return name.encode("latin-1")[: BPF_OBJ_NAME_LEN - 1]


def _text(name: bytes) -> str:
    # The kernel's isalnum() accepts Latin-1 letters from 0xC0 on, so a name need not be ASCII or UTF-8.
    return name.split(b"\0", 1)[0].decode("latin-1")
