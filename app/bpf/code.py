"""The translated code of a loaded program, and where it jumps."""

import ctypes
import os
from collections.abc import Callable, Collection
from typing import Final

from app.bpf import attr
from app.bpf.inventory import ProgramCode
from app.bpf.jumps import Uninterpretable, find_jumps
from app.bpf.kernel import MapInfo, MapState
from app.bpf.syscall import bpf
from app.bpf.uapi import BPF_F_RDONLY_PROG, Cmd, MapType

_MAX_CONSTANT_BYTES: Final = 1 << 20  # of one map


def translated(fd: int) -> bytes | None:
    """Return the translated code of a program, 8 bytes for each instruction.

    Args:
        fd: The program.

    Returns:
        None where it cannot be read: net.core.bpf_jit_harden with kernel.kptr_restrict, or no CAP_BPF.

    Raises:
        OSError: The kernel refuses.

    Kernel:
        OBJ_GET_INFO_BY_FD, Linux 4.13.
    """
    length = _info(fd, 0, 0)[0]
    if not length:
        return None
    code = ctypes.create_string_buffer(length)
    length, address = _info(fd, length, ctypes.addressof(code))
    return code.raw[:length] if address else None


def _info(fd: int, length: int, address: int) -> tuple[int, int]:
    """Return (bytes of the code, where it was put). The kernel puts no more than `length` bytes at `address`."""
    buffer = ctypes.create_string_buffer(attr.PROG_INFO_SIZE)
    attr.PROG_INFO_XLATED.pack_into(buffer, attr.PROG_INFO_XLATED_OFFSET, length, address)
    bpf(
        Cmd.OBJ_GET_INFO_BY_FD,
        attr.Info(bpf_fd=fd, info_len=attr.PROG_INFO_SIZE, info=ctypes.addressof(buffer)),
    )
    found: tuple[int, int] = attr.PROG_INFO_XLATED.unpack_from(buffer, attr.PROG_INFO_XLATED_OFFSET)
    return found


class CodeReader:
    """Reads where programs jump. It keeps the constants that it has read. Thread rule: one thread at a time."""

    def __init__(
        self,
        open_map: Callable[[int], int],
        map_info: Callable[[int], MapInfo],
        map_state: Callable[[int], MapState],
    ) -> None:
        """Read with these methods of the port.

        Args:
            open_map: Opens a map by its id.
            map_info: Returns its facts.
            map_state: Returns its state.
        """
        self._open_map, self._map_info, self._map_state = open_map, map_info, map_state
        self._constants: dict[int, bytes] = {}

    def read(self, fd: int, map_ids: Collection[int]) -> ProgramCode:
        """Interpret the code of a program.

        Args:
            fd: The program.
            map_ids: The maps that it uses.

        Raises:
            OSError: The kernel refuses.
        """
        code = translated(fd)
        if code is None:
            return ProgramCode(tuple(map_ids), None)
        try:
            return ProgramCode(tuple(map_ids), find_jumps(code, self._constant))
        except Uninterpretable:
            return ProgramCode(tuple(map_ids), None)

    def _constant(self, map_id: int, offset: int, size: int) -> int | None:
        """Return memory of a map that never changes, such as that of `.rodata`. None: it may change."""
        if map_id not in self._constants:
            self._constants[map_id] = self._first_value(map_id)
        value = self._constants[map_id][offset : offset + size] if offset >= 0 else b""
        return int.from_bytes(value, "little") if len(value) == size else None

    def _first_value(self, map_id: int) -> bytes:
        """Return the first value of a frozen array that programs cannot write; else nothing."""
        try:
            fd = self._open_map(map_id)
        except OSError:
            return b""
        try:
            info = self._map_info(fd)
            is_constant = info.type == MapType.ARRAY and info.max_entries == 1 and info.flags & BPF_F_RDONLY_PROG
            if not is_constant or info.value_size > _MAX_CONSTANT_BYTES or not self._map_state(fd).frozen:
                return b""
            key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(info.value_size)
            fields = attr.MapElem(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
            bpf(Cmd.MAP_LOOKUP_ELEM, fields)
        except OSError:
            return b""
        else:
            return value.raw
        finally:
            os.close(fd)
