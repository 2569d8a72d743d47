"""bpf(2) of the running Linux."""

import contextlib
import ctypes
import errno
import os
import platform
import threading
from array import array
from pathlib import Path
from typing import Final

from app.bpf import attr
from app.bpf.bpffs import LinuxFolders
from app.bpf.bulk import fallback as one_by_one
from app.bpf.bulk import programs as in_kernel
from app.bpf.bulk.programs import TablePrograms
from app.bpf.kernel import MapInfo, MapState, ProgInfo, TestRun
from app.bpf.syscall import NUMBER, bpf, bpf_retrying, call_holding_gil, call_releasing_gil, failed
from app.bpf.uapi import BPF_OBJ_NAME_LEN, Cmd, MapType

# Where the numbers stand, in u32: in struct MapElem, and behind it the key and the value.
FD: Final = 0
FLAGS: Final = 6  # u64
KEY: Final = 8
VALUE: Final = 9


class Element(threading.local):
    """One element of a map with u32 keys and values; each thread has its own.

    `own`: the words that are to be set and read, and what bpf(2) takes besides the command: an address and a size.
    """

    def __init__(self) -> None:
        self._words = (ctypes.c_uint32 * 10)()
        start = ctypes.addressof(self._words)
        fields = attr.MapElem.from_buffer(self._words)
        fields.key, fields.value = start + 4 * KEY, start + 4 * VALUE
        words = memoryview(self._words).cast("B").cast("I")
        self.own = words, (ctypes.c_void_p(start), ctypes.c_int(ctypes.sizeof(fields)))


# PROG_TEST_RUN copies the packet out whole or says ENOSPC: room for what a program may add to it.
_PACKET_GROWTH: Final = 1 << 16

_LOOKUP, _UPDATE = (ctypes.c_int(cmd) for cmd in (Cmd.MAP_LOOKUP_ELEM, Cmd.MAP_UPDATE_ELEM))
_U32: Final = 4


class LinuxKernel(LinuxFolders):
    """bpf(2) on the machine that this runs on. Thread rule: any method from any thread."""

    name = "linux"
    degraded_reason: str | None = None

    in_kernel = True  # False: whole tables are written and read one by one, also where programs could do it

    def __init__(self) -> None:
        if NUMBER.value < 0:
            raise OSError(errno.ENOSYS, f"bpf(2) has no known system call number on {platform.machine()}")
        self._element = Element()
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """MAP_CREATE; a program array gets BTF for key and value where the kernel takes it (Linux 4.18)."""
        fields = attr.MapCreate(
            map_type=type_, key_size=key_size, value_size=value_size, max_entries=max_entries, map_name=_name(name)
        )
        btf_fd = self._btf_load() if type_ == MapType.PROG_ARRAY else None
        if btf_fd is None:
            return bpf(Cmd.MAP_CREATE, fields)
        try:
            fields.btf_fd, fields.btf_key_type_id, fields.btf_value_type_id = btf_fd, 1, 1
            return bpf(Cmd.MAP_CREATE, fields)
        finally:
            os.close(btf_fd)

    def _btf_load(self) -> int | None:
        blob = ctypes.create_string_buffer(attr.BTF_U32, len(attr.BTF_U32))
        try:
            return bpf(Cmd.BTF_LOAD, attr.BtfLoad(btf=ctypes.addressof(blob), btf_size=len(attr.BTF_U32)))
        except OSError:
            return None  # an array without BTF works as well; only its pin can't be read as a file

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """MAP_LOOKUP_ELEM."""
        if value_size == _U32:
            element, call = self._element.own
            element[FD], element[KEY], element[FLAGS] = fd, index, 0
            if call_holding_gil(NUMBER, _LOOKUP, *call) < 0:
                raise failed(Cmd.MAP_LOOKUP_ELEM)
            return element[VALUE]
        key, value = ctypes.c_uint32(index), ctypes.create_string_buffer(value_size)
        fields = attr.MapElem(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
        bpf(Cmd.MAP_LOOKUP_ELEM, fields)
        return int.from_bytes(value.raw, "little")

    def map_entries(self, fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        """MAP_LOOKUP_ELEM of many, with one key and one value for all."""
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
        """What `map_ids` and `map_write` run, if there is any; the first call in a process takes 0.1 s."""
        return in_kernel.loaded(self) if self.in_kernel else TablePrograms()

    def map_ids(self, fd: int, start: int, stop: int) -> "array[int]":
        """Inside the kernel where it can be, else one by one."""
        with contextlib.suppress(OSError):  # which the lookups tell in their way
            if (reader := self.table_programs().reader) is not None:
                return in_kernel.read(self, reader, fd, start, stop)
        return one_by_one.map_ids(self, fd, start, stop)

    def map_write(self, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """Inside the kernel where it can be (Linux 5.14), else one by one; without the GIL."""
        with contextlib.suppress(OSError):
            if (writer := self.table_programs().writer) is not None:
                return in_kernel.write(writer, fd, indexes, values)
        return one_by_one.map_write(self, fd, indexes, values)

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """MAP_UPDATE_ELEM.

        Short, unless somebody else's tool just clears an entry of this map which loaded programs refer to by a
        constant index: it then waits for that clear, on the map's poke mutex.
        """
        element, call = self._element.own
        element[FD], element[KEY], element[VALUE] = fd, index, value
        element[FLAGS], element[FLAGS + 1] = flags & 0xFFFFFFFF, flags >> 32
        if call_holding_gil(NUMBER, _UPDATE, *call) < 0:
            raise failed(Cmd.MAP_UPDATE_ELEM)

    def map_delete(self, fd: int, index: int) -> None:
        """MAP_DELETE_ELEM, without the GIL: it waits 8 ms and more where a program has this index as a constant."""
        key = ctypes.c_uint32(index)
        bpf(Cmd.MAP_DELETE_ELEM, attr.MapKey(map_fd=fd, key=ctypes.addressof(key)), call_releasing_gil)

    def map_freeze(self, fd: int) -> None:
        """MAP_FREEZE (Linux 5.2)."""
        bpf(Cmd.MAP_FREEZE, attr.MapFd(map_fd=fd))

    def map_info(self, fd: int) -> MapInfo:
        """OBJ_GET_INFO_BY_FD (Linux 4.13)."""
        buffer = self._info(fd, attr.MAP_INFO_SIZE)
        type_, id_, key_size, value_size, max_entries, flags, name = attr.MAP_INFO.unpack_from(buffer)
        return MapInfo(type_, id_, key_size, value_size, max_entries, flags, _text(name))

    def map_state(self, fd: int) -> MapState:
        """/proc/self/fdinfo/FD: memlock, frozen (Linux 5.2), owner_prog_type and owner_jited (4.3)."""
        text = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii")
        told = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        type_, jited = told.get("owner_prog_type"), told.get("owner_jited")
        return MapState(
            memlock=int(told.get("memlock", 0)),
            frozen=told.get("frozen", "0") == "1",
            owner_type=None if type_ is None else int(type_),
            owner_jited=None if jited is None else jited == "1",
        )

    def map_get_fd_by_id(self, id_: int) -> int:
        """MAP_GET_FD_BY_ID (Linux 4.13, CAP_SYS_ADMIN)."""
        return bpf(Cmd.MAP_GET_FD_BY_ID, attr.GetId(id=id_))

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """PROG_LOAD."""
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
        """OBJ_GET_INFO_BY_FD, twice where the program uses maps: for their number, then for their ids."""
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
            map_ids=self._map_ids(fd, map_count),
            gpl=bool(gpl & 1),
            run_count=run_count,
            run_time=run_time,
        )

    def _map_ids(self, fd: int, count: int) -> tuple[int, ...]:
        if not count:
            return ()
        ids = (ctypes.c_uint32 * count)()
        self._info(fd, attr.PROG_INFO_SIZE, attr.PROG_INFO_MAP_IDS.pack(count, ctypes.addressof(ids)))
        return tuple(ids)

    def _info(self, fd: int, size: int, map_ids: bytes = b"") -> bytes:
        """Ask with a fresh zeroed buffer each time; fields that an older kernel does not know stay 0."""
        buffer = ctypes.create_string_buffer(size)
        ctypes.memmove(ctypes.addressof(buffer) + attr.PROG_INFO_MAP_IDS_OFFSET, map_ids, len(map_ids))
        fields = attr.Info(bpf_fd=fd, info_len=size, info=ctypes.addressof(buffer))
        bpf(Cmd.OBJ_GET_INFO_BY_FD, fields)
        return buffer.raw

    def prog_get_fd_by_id(self, id_: int) -> int:
        """PROG_GET_FD_BY_ID (Linux 4.13, CAP_SYS_ADMIN)."""
        return bpf(Cmd.PROG_GET_FD_BY_ID, attr.GetId(id=id_))

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """PROG_TEST_RUN (Linux 4.12)."""
        data = ctypes.create_string_buffer(packet, len(packet))
        out = ctypes.create_string_buffer(len(packet) + _PACKET_GROWTH)
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

    def obj_pin(self, fd: int, path: str) -> None:
        """OBJ_PIN (Linux 4.4)."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        bpf(Cmd.OBJ_PIN, attr.Obj(pathname=ctypes.addressof(name), bpf_fd=fd))

    def obj_get(self, path: str, flags: int = 0) -> int:
        """OBJ_GET (Linux 4.4)."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        return bpf(Cmd.OBJ_GET, attr.Obj(pathname=ctypes.addressof(name), file_flags=flags))

    def obj_kind(self, fd: int) -> str:
        """`map` or `prog`: by /proc, as one's info can be read as if it were the other's."""
        return str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix("anon_inode:").removeprefix("bpf-")

    def dup(self, fd: int) -> int:
        """fcntl(F_DUPFD_CLOEXEC)."""
        return os.dup(fd)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)


def _name(name: str) -> bytes:
    return name.encode("latin-1")[: BPF_OBJ_NAME_LEN - 1]


def _text(name: bytes) -> str:
    # The kernel's isalnum() takes Latin-1 letters from 0xC0, so a name need not be ASCII or UTF-8.
    return name.split(b"\0", 1)[0].decode("latin-1")
