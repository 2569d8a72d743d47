"""The program array: the jump table of bpf_tail_call()."""

import errno
import os
from array import array
from collections.abc import Collection

from app.bpf.kernel import Kernel, MapInfo, MapState
from app.bpf.uapi import BPF_ANY, MapType, map_type_name, prog_type_name
from app.service.errors import (
    EntryEmpty,
    IndexOutOfRange,
    MapFrozen,
    NotAMap,
    NotAProgramArray,
    ProgramBusy,
    ProgramIncompatible,
    ServiceError,
    UnsupportedFlags,
    WrongKeySize,
    WrongMapType,
    WrongValueSize,
    kernel_failure,
)
from app.service.objects.program import OwnedFd, Program

CLEAR = -1  # instead of a program's fd
_U32 = 4
_SPREAD = 8  # where so many entries lie between two that are asked for, each is asked for by itself


class ProgramArray(OwnedFd):
    """A map of type BPF_MAP_TYPE_PROG_ARRAY (Linux 4.2).

    It holds its fd for as long as it lives, since the kernel empties an array whose last fd and last pin are gone.
    Thread rule: any method from any thread; whoever needs an order among writes makes it.
    """

    def __init__(self, kernel: Kernel, fd: int) -> None:
        """Take over `fd`, and close it where it is no program array.

        Errors: NotAMap, WrongMapType, WrongKeySize, WrongValueSize; KernelError.
        Kernel: OBJ_GET_INFO_BY_FD, Linux 4.13.
        """
        super().__init__(kernel, fd)
        try:
            self.info = self._checked(fd)  # what never changes of it
            self.id = self.info.id  # u32
            self.max_entries = self.info.max_entries  # by the kernel's own word
        except OSError as error:
            self.close()
            raise kernel_failure("OBJ_GET_INFO_BY_FD", error) from error
        except NotAProgramArray:
            self.close()
            raise

    def _checked(self, fd: int) -> MapInfo:
        kind = self._kernel.obj_kind(fd)
        if kind != "map":
            raise NotAMap(kind)
        info = self._kernel.map_info(fd)
        if info.type != MapType.PROG_ARRAY:
            raise WrongMapType(map_type_name(info.type))
        if info.key_size != _U32:
            raise WrongKeySize(info.key_size)
        if info.value_size != _U32:
            raise WrongValueSize(info.value_size)
        return info

    def state(self) -> MapState:
        """Its memory, whether it is frozen, and what fits: as of now."""
        try:
            return self._kernel.map_state(self.fd)
        except OSError as error:
            raise kernel_failure("fdinfo", error) from error

    def check_index(self, index: int) -> None:
        """IndexOutOfRange unless 0 <= index < max_entries."""
        if not 0 <= index < self.max_entries:
            raise IndexOutOfRange(index, self.max_entries)

    def get(self, index: int) -> int | None:
        """The id of the program at `index` (u32, below max_entries); None where the entry is empty.

        Errors: IndexOutOfRange, KernelError. Kernel: MAP_LOOKUP_ELEM; a program array answers since Linux 4.13.
        """
        # The kernel says ENOENT for an empty entry and for one beyond the end: so the bound is checked here.
        if not 0 <= index < self.max_entries:
            raise IndexOutOfRange(index, self.max_entries)
        try:
            return self._kernel.map_lookup(self.fd, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise kernel_failure("MAP_LOOKUP_ELEM", error) from error

    def set(self, index: int, program: Program, flags: int = 0) -> None:
        """Point `index` (u32, below max_entries) to `program`, in one overwrite: the next tail call takes it.

        Errors: IndexOutOfRange, UnsupportedFlags, ProgramIncompatible, ProgramBusy, MapFrozen, KernelPermission,
        KernelError. Kernel: MAP_UPDATE_ELEM (fd_array_map_update_elem), Linux 4.2.
        """
        self.check_index(index)
        if flags != BPF_ANY:
            raise UnsupportedFlags(flags)
        try:
            self._kernel.map_update(self.fd, index, program.fd, flags)
        except OSError as error:
            raise self._set_failure(program, error) from error

    def _set_failure(self, program: Program, error: OSError) -> ServiceError:
        if error.errno == errno.EINVAL:
            # The kernel's one number for all that may not fit; flags, fd and bound are known to be right.
            return incompatibility(self.state(), program)
        if error.errno == errno.EBUSY:
            return ProgramBusy(program.id)
        return self._write_failure("MAP_UPDATE_ELEM", error)

    def _write_failure(self, command: str, error: OSError) -> ServiceError:
        if error.errno == errno.EPERM and self.state().frozen:
            return MapFrozen()
        return kernel_failure(command, error)

    def clear_index(self, index: int) -> None:
        """Empty `index` (u32, below max_entries): a tail call to it falls through.

        Waits for an RCU grace period (8 ms and more) where a loaded program refers to this index by a constant: call
        it in a thread. Errors: IndexOutOfRange, EntryEmpty, MapFrozen, KernelPermission, KernelError.
        Kernel: MAP_DELETE_ELEM (fd_array_map_delete_elem), Linux 4.2.
        """
        self.check_index(index)
        try:
            self._kernel.map_delete(self.fd, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise EntryEmpty(index) from error
            raise self._write_failure("MAP_DELETE_ELEM", error) from error

    def write_many(self, indexes: "array[int]", fds: "array[int]") -> tuple[int, int]:
        """Point each of `indexes` (u32, below max_entries) to the program with this fd (i32), or CLEAR it, in order.

        How many were written, and the errno with which the next was refused (see `refusal`), or 0. Empty entries may
        be cleared. It may wait as `clear_index` does: call it in a thread. Kernel: MAP_UPDATE_ELEM, MAP_DELETE_ELEM.
        """
        return self._kernel.map_write(self.fd, indexes, fds)

    def refusal(self, program: Program | None, number: int) -> ServiceError:
        """Why the kernel has answered with this errno to `program` (None: to a clear), as far as it lets one see."""
        error = OSError(number, os.strerror(number))
        try:
            return (
                self._write_failure("MAP_DELETE_ELEM", error) if program is None else self._set_failure(program, error)
            )
        except ServiceError as failure:
            return failure

    def ids(self, start: int = 0, stop: int | None = None) -> "array[int]":
        """The ids of the programs from `start` up to `stop`, u32; 0: the entry is empty. KernelError.

        Not one moment's picture, as the kernel has no way to it. Kernel: MAP_LOOKUP_ELEM.
        """
        stop = self.max_entries if stop is None else min(stop, self.max_entries)
        try:
            return self._kernel.map_ids(self.fd, start, stop)
        except OSError as error:
            raise kernel_failure("MAP_LOOKUP_ELEM", error) from error

    def get_many(self, indexes: Collection[int]) -> "array[int]":
        """The same of these indexes (u32, below max_entries), in this order."""
        first, last = min(indexes, default=0), max(indexes, default=-1)
        if last - first > _SPREAD * len(indexes):
            return array("I", [self.get(index) or 0 for index in indexes])
        ids = self.ids(first, last + 1)
        return array("I", [ids[index - first] for index in indexes])

    def indices(self) -> list[int]:
        """The indexes that point to a program, rising."""
        return [index for index, id_ in enumerate(self.ids()) if id_]


def incompatibility(state: MapState, program: Program) -> ProgramIncompatible:
    """Why the array with this state does not take the program, as far as the kernel lets one see."""
    owner = None if state.owner_type is None else prog_type_name(state.owner_type)
    if owner is not None and owner != program.type:
        return ProgramIncompatible(
            reason=f"the array takes only programs of type {owner}, and this one is {program.type}",
            remedy=f"use a program of type {owner}, or a new array: the first program fixes the type for good",
            owner_program_type=owner,
            program_type=program.type,
        )
    return ProgramIncompatible(
        reason="the type is the same, so expected_attach_type, XDP frags, attach prototype, cgroup storage or JIT "
        "must differ from those of the first program",
        remedy="load it as the programs in the array were loaded (same section name and flags), or use a new array: "
        "clearing every entry does not reset what fits",
        owner_program_type=owner,
        program_type=program.type,
    )
