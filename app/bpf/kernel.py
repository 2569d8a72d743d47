"""The port to the kernel: the commands of bpf(2) as methods on plain integers.

`LinuxKernel`, `KeeperKernel` and `MemoryKernel` implement it. An implementation reports every refusal as an OSError
with the errno of Linux, so the layer above translates errnos in one place and its tests run without privileges.
"""

from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from app.bpf.inventory import Inventory


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The facts about a map that never change: struct bpf_map_info.

    Fields that an older kernel does not report are 0. `type` is one of enum bpf_map_type, `key_size` and `value_size`
    are in bytes, `name` has up to 15 characters.
    """

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class MapState:
    """The facts about a map that only /proc/self/fdinfo/FD reports.

    `memlock` is in bytes; it and `frozen` are None where this process may not read that file. `owner_type` (enum
    bpf_prog_type) and `owner_jited` describe the first program that was put into a program array or that was loaded to
    jump through it; before that, both are None.
    """

    memlock: int | None
    frozen: bool | None
    owner_type: int | None
    owner_jited: bool | None


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """The facts about a program: struct bpf_prog_info.

    `type` is one of enum bpf_prog_type, `tag` has 16 hex digits, `load_time` is in nanoseconds since the boot
    (CLOCK_BOOTTIME), `run_time` in nanoseconds. `run_count` and `run_time` stay 0 unless kernel.bpf_stats_enabled is
    set.
    """

    type: int
    id: int
    tag: str
    name: str
    load_time: int
    uid: int
    map_ids: tuple[int, ...]
    gpl: bool
    run_count: int
    run_time: int


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that kernels differ in.

    `name` is `writer`, `reader`, `iterators`, `without capability` or `memlock`; of the kernel in memory, `memory`.
    `can` is None where it is not known. `detail` is for an operator: what the kernel can or cannot, and why.
    """

    name: str
    can: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class TestRun:
    """The result of BPF_PROG_TEST_RUN.

    `returned` is the program's return value (u32), `duration` the mean of one run in nanoseconds, `packet` the packet
    as the program left it.
    """

    returned: int
    duration: int
    packet: bytes


class Kernel(Inventory, Protocol):
    """The commands of bpf(2), and the file operations on their pins.

    An fd is a plain int. A method that returns an fd gives it to the caller, who closes it with `close`. Every method
    raises OSError with the kernel's errno; the sections `Raises` name the errnos that callers tell apart. All of them
    can fail with EPERM where the process lacks a capability, and those that take an fd with EBADF where it is not
    open or EINVAL where it is of another kind, unless something else is said.

    Thread rule: any thread may call any method. `map_write`, `map_delete`, `prog_load` and `prog_test_run` may take
    milliseconds or more, release the GIL, and belong in a worker thread. All other methods take microseconds and may
    be called in an event loop; the first `map_ids` of a process also loads programs, which takes 0.1 s.
    """

    @property
    def name(self) -> str:
        """`linux` or `memory`."""

    @property
    def failure(self) -> OSError | None:
        """What some methods raise at present: `strerror` is the reason, with a remedy. None while all work."""

    @property
    def abilities(self) -> Sequence[Ability]:
        """What this kernel can and cannot. Empty until the process that starts the service has asked."""

    @property
    def boot_id(self) -> str:
        """A text that is different after each boot. Ids of maps and programs are valid only within one boot."""

    def opened_ahead(
        self, pins: Sequence[str], maps: Sequence[int], programs: Sequence[int]
    ) -> AbstractContextManager[None]:
        """Prepare for opening many objects in the `with` block, where that is faster than one after the other.

        It raises nothing. Each object is still opened by `obj_get`, `map_get_fd_by_id` or `prog_get_fd_by_id`.

        Args:
            pins: Paths of pins.
            maps: Ids of maps.
            programs: Ids of programs.
        """

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """Create a map.

        Args:
            type_: One of enum bpf_map_type.
            key_size: In bytes; 4 for a program array.
            value_size: In bytes; 4 for a program array.
            max_entries: Number of entries, u32, at least 1.
            name: Letters and digits of Latin-1, `_` and `.`; cut to 15 characters.

        Returns:
            The fd of the new map.

        Raises:
            OSError: EINVAL for sizes, a number of entries or a name that the kernel does not accept; ENOMEM or E2BIG
                for an array that is too large.

        Kernel:
            MAP_CREATE; program arrays: Linux 4.2.
        """

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """Read one value.

        Args:
            fd: The map.
            index: The key, u32.
            value_size: The size of the map's values in bytes.

        Returns:
            The value as an unsigned number. In a program array it is the id of the program.

        Raises:
            OSError: ENOENT for an empty entry, and also for an index beyond the end; EPERM for an fd that was opened
                with BPF_F_WRONLY.

        Kernel:
            MAP_LOOKUP_ELEM (prog_fd_array_sys_lookup_elem for a program array, Linux 4.13).
        """

    def map_entries(self, fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Read the entries with index `start` up to, not including, `stop`, one lookup each.

        Returns:
            (index, value) of each entry that is not empty, by rising index.

        Raises:
            OSError: As `map_lookup`, except that ENOENT means an empty entry.

        Kernel:
            MAP_LOOKUP_ELEM.
        """

    def map_ids(self, fd: int, start: int, stop: int) -> "array[int]":
        """Read a range of a program array.

        The result is no snapshot: each entry is as it was at some moment during the call.

        Args:
            fd: A program array.
            start: The first index, u32.
            stop: The index behind the last one; may lie beyond the end of the array.

        Returns:
            `stop - start` program ids (typecode `I`); 0 for an empty entry and for one beyond the end.

        Raises:
            OSError: As `map_lookup`, except that ENOENT means an empty entry.

        Kernel:
            MAP_LOOKUP_ELEM for each index, or the reader program of `app.bpf.bulk`.
        """

    def map_write(self, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """Write many entries of a program array, in the given order, up to the first one that the kernel refuses.

        May wait as `map_delete` does; releases the GIL.

        Args:
            fd: A program array.
            indexes: u32 (typecode `I`).
            values: For each index the fd of a program, i32 (typecode `i`). A negative value clears the entry; to
                clear an empty entry is no error.

        Returns:
            (number of entries written, errno with which the next one was refused). The errno is 0 if all were
            written. A refusal is returned and not raised, so the caller always knows how many were written.

        Raises:
            ValueError: Both arrays differ in length, or have other typecodes.

        Kernel:
            MAP_UPDATE_ELEM and MAP_DELETE_ELEM for each index, or the writer program of `app.bpf.bulk`.
        """

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """Write one value.

        Args:
            fd: A map with u32 keys and values.
            index: The key, u32.
            value: u32; in a program array the fd of a program.
            flags: u64; a program array accepts only 0 (BPF_ANY).

        Raises:
            OSError: For a program array: EINVAL for other flags, and for a program that the array does not accept;
                E2BIG for an index beyond the end; EBADF for a value that is no open fd; EBUSY for a program that a
                freplace program extends; EPERM for a frozen map and for an fd that was opened with BPF_F_RDONLY.

        Kernel:
            MAP_UPDATE_ELEM (fd_array_map_update_elem for a program array, Linux 4.2).
        """

    def map_delete(self, fd: int, index: int) -> None:
        """Clear one entry. May wait for an RCU grace period (8 ms and more); releases the GIL.

        Args:
            fd: A program array.
            index: u32.

        Raises:
            OSError: ENOENT for an empty entry; E2BIG for an index beyond the end; EPERM for a frozen map and for an
                fd that was opened with BPF_F_RDONLY.

        Kernel:
            MAP_DELETE_ELEM (fd_array_map_delete_elem for a program array, Linux 4.2).
        """

    def map_freeze(self, fd: int) -> None:
        """Make a map refuse every further `map_update` and `map_delete` with EPERM. This cannot be undone.

        Raises:
            OSError: EPERM for an fd that was opened with BPF_F_RDONLY, and for a map that is frozen already.

        Kernel:
            MAP_FREEZE, Linux 5.2.
        """

    def map_info(self, fd: int) -> MapInfo:
        """Return the facts about a map that never change.

        Raises:
            OSError: EBADFD for an fd that is not open.

        Kernel:
            OBJ_GET_INFO_BY_FD, Linux 4.13.
        """

    def map_state(self, fd: int) -> MapState:
        """Return memory, frozen state and owner of a map, as they are now.

        Raises:
            OSError: ENOENT for an fd that is not open.

        Kernel:
            proc(5), /proc/self/fdinfo/FD: the owner since Linux 4.3, frozen since 5.2.
        """

    def map_get_fd_by_id(self, id_: int) -> int:
        """Open a map by its id, u32, and return the fd.

        Raises:
            OSError: ENOENT where no map has this id; EPERM without CAP_SYS_ADMIN.

        Kernel:
            MAP_GET_FD_BY_ID, Linux 4.13.
        """

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """Load a program under the GPL. The verifier may take long; releases the GIL.

        Args:
            type_: One of enum bpf_prog_type.
            instructions: Assembled instructions, 8 bytes each (see `app.bpf.asm`).
            name: As in `map_create`.
            expected_attach_type: One of enum bpf_attach_type.
            flags: BPF_F_* of PROG_LOAD.

        Returns:
            The fd of the new program.

        Raises:
            OSError: E2BIG for no instructions at all; EINVAL or EACCES for instructions that the verifier rejects,
                and EINVAL for a program that does not fit a program array that it jumps through; EBADF for
                instructions that name a map's fd that is not open.

        Kernel:
            PROG_LOAD.
        """

    def prog_info(self, fd: int) -> ProgInfo:
        """Return the facts about a program, as they are now.

        Raises:
            OSError: EBADFD for an fd that is not open.

        Kernel:
            OBJ_GET_INFO_BY_FD, Linux 4.13.
        """

    def prog_get_fd_by_id(self, id_: int) -> int:
        """Open a program by its id, u32, and return the fd.

        Raises:
            OSError: ENOENT where no program has this id; EPERM without CAP_SYS_ADMIN.

        Kernel:
            PROG_GET_FD_BY_ID, Linux 4.13.
        """

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """Run a program on a packet, with its real side effects on maps. Releases the GIL.

        Args:
            fd: The program.
            packet: At least 14 bytes (an Ethernet header); the kernel's upper bound depends on the type.
            repeat: Number of runs, u32, at least 1.

        Raises:
            OSError: ENOTSUPP (524) for a type that the kernel cannot run this way; EINVAL for a packet that is too
                short or too long.

        Kernel:
            PROG_TEST_RUN (net/bpf/test_run.c), Linux 4.12.
        """

    def obj_pin(self, fd: int, path: str) -> None:
        """Pin a map or a program at a path in a bpffs.

        Raises:
            OSError: EEXIST where something is at the path; EPERM for a name with a dot and for a folder outside of any
                bpffs; ENOENT for a missing folder; EACCES where the folder's mode denies it; EINVAL for an fd that is
                not open.

        Kernel:
            OBJ_PIN, Linux 4.4.
        """

    def obj_get(self, path: str, flags: int = 0) -> int:
        """Open what is pinned at a path, and return the fd.

        Args:
            path: The path of a pin.
            flags: 0, BPF_F_RDONLY or BPF_F_WRONLY.

        Raises:
            OSError: ENOENT where nothing is at the path; EACCES for a file that is no pin and where modes deny it;
                EINVAL for other flags.

        Kernel:
            OBJ_GET, Linux 4.4; flags: 4.15.
        """

    def check_pin(self, path: str) -> None:
        """Raise what `obj_pin` would raise for a new pin at `path`, without making one.

        Does not check whether something is at the path already.

        Raises:
            OSError: EPERM, ENOENT, EROFS or EACCES, as `obj_pin`.
        """

    def unpin(self, path: str) -> None:
        """Remove a pin: unlink(2).

        Raises:
            OSError: ENOENT where nothing is at the path.
        """

    def in_bpffs(self, path: str) -> bool:
        """Return whether the path lies in a mounted bpffs."""

    def make_folder(self, path: str) -> None:
        """Create a folder for pins that only its owner may enter: mkdir(2), mode 0700. It may exist already."""

    def pins_in(self, folder: str) -> list[str]:
        """Return the names in a folder; an empty list where there is no such folder."""

    def obj_kind(self, fd: int) -> str:
        """Return `map`, `prog`, or another text for any other open file.

        Raises:
            OSError: ENOENT for an fd that is not open.
        """

    def dup(self, fd: int) -> int:
        """Return another fd for the same object: fcntl(2), F_DUPFD_CLOEXEC.

        Raises:
            OSError: EBADF for an fd that is not open.
        """

    def close(self, fd: int) -> None:
        """Close an fd: close(2).

        Raises:
            OSError: EBADF for an fd that is not open.
        """
