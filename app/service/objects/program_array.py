"""A program array, the jump table of bpf_tail_call(), that is kept open by an fd.

`ProgramArray` reads and writes entries and translates the kernel's errnos; it knows nothing of the journal, of rights
or of other callers.
"""

import errno
import os
from array import array
from collections.abc import Collection

from app.bpf.kernel import Kernel, MapInfo, MapState
from app.bpf.uapi import BPF_ANY, MapType, map_type_name
from app.service.errors import (
    EntryEmpty,
    IndexOutOfRange,
    MapFrozen,
    NotAMap,
    NotAProgramArray,
    ProgramBusy,
    ServiceError,
    UnsupportedFlags,
    WrongKeySize,
    WrongMapType,
    WrongValueSize,
    kernel_failure,
)
from app.service.objects.compatibility import Requirements
from app.service.objects.program import OwnedFd, Program

CLEAR = -1  # instead of a program's fd in `write_many`
_U32_BYTES = 4
UNREADABLE = MapState(memlock=None, frozen=None, owner_type=None, owner_jited=None)
# `get_many` reads the whole range of its indexes, unless the range has more than so many entries per index.
_MAX_RANGE_PER_INDEX = 8


class ProgramArray(OwnedFd):
    """A map of type BPF_MAP_TYPE_PROG_ARRAY (Linux 4.2).

    It keeps its fd open until `close`, because the kernel empties an array when its last fd and last pin are gone.
    Thread rule: any thread may call any method; callers that need an order among writes use a lock of their own.
    """

    def __init__(self, kernel: Kernel, fd: int) -> None:
        """Take over an fd; it is closed if this fails.

        Raises:
            NotAMap: The fd is of another kind.
            WrongMapType, WrongKeySize, WrongValueSize: The fd is of another map.
            KernelPermission, KernelError: The kernel reports nothing about it.

        Kernel:
            OBJ_GET_INFO_BY_FD, Linux 4.13.
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
        if info.key_size != _U32_BYTES:
            raise WrongKeySize(info.key_size)
        if info.value_size != _U32_BYTES:
            raise WrongValueSize(info.value_size)
        return info

    def copy(self) -> "ProgramArray":
        """Return the same array with an fd of its own.

        Raises:
            KernelError: No fd is free.
        """
        try:
            return ProgramArray(self._kernel, self._kernel.dup(self.fd))
        except OSError as error:
            raise kernel_failure("dup", error) from error

    def state(self) -> MapState:
        """Return its memory, whether it is frozen, and which program type it accepts, as of now.

        What this process may not read is None: before Linux 5.14 that is so after it has changed its user, while the
        keeper cannot be asked.

        Raises:
            KernelError: The kernel reports nothing about it for any other reason.
        """
        try:
            return self._kernel.map_state(self.fd)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPIPE, errno.ETIMEDOUT}:
                return UNREADABLE
            raise kernel_failure("fdinfo", error) from error

    def check_index(self, index: int) -> None:
        """Check an index.

        Raises:
            IndexOutOfRange: Unless 0 <= index < max_entries.
        """
        if not 0 <= index < self.max_entries:
            raise IndexOutOfRange(index, self.max_entries)

    def get(self, index: int) -> int | None:
        """Read one entry.

        Args:
            index: u32, below max_entries.

        Returns:
            The id of the program, u32; None where the entry is empty.

        Raises:
            IndexOutOfRange: The index is not below max_entries.
            KernelPermission, KernelError: Any other errno.

        Kernel:
            MAP_LOOKUP_ELEM; program arrays: Linux 4.13.
        """
        # The kernel answers ENOENT for an empty entry and for an index beyond the end, so the bound is checked here.
        if not 0 <= index < self.max_entries:
            raise IndexOutOfRange(index, self.max_entries)
        try:
            return self._kernel.map_lookup(self.fd, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise kernel_failure("MAP_LOOKUP_ELEM", error) from error

    def set(self, index: int, program: Program, flags: int = 0) -> None:
        """Point an entry to a program. The next tail call takes it; no tail call sees an empty entry in between.

        Args:
            index: u32, below max_entries.
            program: Must be of the kind that the array accepts.
            flags: Only 0 (BPF_ANY) is accepted.

        Raises:
            IndexOutOfRange: The index is not below max_entries.
            UnsupportedFlags: `flags` is not 0.
            ProgramIncompatible: The array does not accept the program.
            ProgramBusy: A freplace program extends the program.
            MapFrozen: The array is frozen.
            KernelPermission, KernelError: Any other errno.

        Kernel:
            MAP_UPDATE_ELEM (fd_array_map_update_elem), Linux 4.2.
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
            # The kernel has this one errno for every kind of misfit; flags, fd and index are known to be right.
            return Requirements.of(self._kernel, self.fd).refusal(program)
        if error.errno == errno.EBUSY:
            return ProgramBusy(program.id)
        return self._write_failure("MAP_UPDATE_ELEM", error)

    def _write_failure(self, command: str, error: OSError) -> ServiceError:
        if error.errno == errno.EPERM and self.state().frozen:
            return MapFrozen()
        return kernel_failure(command, error)

    def clear_index(self, index: int) -> None:
        """Clear an entry: from then on a tail call to it falls through.

        Waits for an RCU grace period (8 ms and more) where a loaded program refers to the index by a constant: call it
        in a worker thread.

        Args:
            index: u32, below max_entries.

        Raises:
            IndexOutOfRange: The index is not below max_entries.
            EntryEmpty: The entry is empty already.
            MapFrozen: The array is frozen.
            KernelPermission, KernelError: Any other errno.

        Kernel:
            MAP_DELETE_ELEM (fd_array_map_delete_elem), Linux 4.2.
        """
        self.check_index(index)
        try:
            self._kernel.map_delete(self.fd, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise EntryEmpty(index) from error
            raise self._write_failure("MAP_DELETE_ELEM", error) from error

    def write_many(self, indexes: "array[int]", fds: "array[int]") -> tuple[int, int]:
        """Write many entries, in the given order, up to the first one that the kernel refuses.

        May wait as `clear_index` does: call it in a worker thread.

        Args:
            indexes: u32, each below max_entries.
            fds: For each index the fd of a program, i32, or CLEAR. To clear an empty entry is no error.

        Returns:
            (number of entries written, errno with which the next one was refused, or 0). `refusal` translates the
            errno.

        Kernel:
            MAP_UPDATE_ELEM, MAP_DELETE_ELEM.
        """
        return self._kernel.map_write(self.fd, indexes, fds)

    def refusal(self, program: Program | None, number: int) -> ServiceError:
        """Return the error for an errno of `write_many`.

        Args:
            program: The program that was refused; None: a clear was refused.
            number: The errno.
        """
        error = OSError(number, os.strerror(number))
        try:
            return (
                self._write_failure("MAP_DELETE_ELEM", error) if program is None else self._set_failure(program, error)
            )
        except ServiceError as failure:
            return failure

    def ids(self, start: int = 0, stop: int | None = None) -> "array[int]":
        """Read a range of entries. The kernel has no snapshots: each entry is as it was at some moment of the call.

        Args:
            start: The first index.
            stop: The index behind the last one, cut to max_entries; None: max_entries.

        Returns:
            The ids of the programs, u32; 0 for an empty entry.

        Raises:
            KernelPermission, KernelError: The kernel refuses a lookup.

        Kernel:
            MAP_LOOKUP_ELEM.
        """
        stop = self.max_entries if stop is None else min(stop, self.max_entries)
        try:
            return self._kernel.map_ids(self.fd, start, stop)
        except OSError as error:
            raise kernel_failure("MAP_LOOKUP_ELEM", error) from error

    def get_many(self, indexes: Collection[int]) -> "array[int]":
        """Read the entries at these indexes.

        Args:
            indexes: u32, each below max_entries.

        Returns:
            The ids of the programs in the same order, u32; 0 for an empty entry.

        Raises:
            KernelPermission, KernelError: The kernel refuses a lookup.
        """
        first, last = min(indexes, default=0), max(indexes, default=-1)
        if last - first > _MAX_RANGE_PER_INDEX * len(indexes):
            return array("I", [self.get(index) or 0 for index in indexes])
        ids = self.ids(first, last + 1)
        return array("I", [ids[index - first] for index in indexes])

    def indices(self) -> list[int]:
        """Return the indexes of all entries that are not empty, rising."""
        return [index for index, id_ in enumerate(self.ids()) if id_]
