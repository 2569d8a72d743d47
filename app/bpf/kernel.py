"""The port to the kernel: bpf(2) commands on plain integers.

Whatever implements it raises OSError with the kernel's own errno, and nothing else, so that the meaning of an errno is
found in one place above, and runs in every test, with privileges or without.
"""

from array import array
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info. What an older kernel does not tell is 0."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class MapState:
    """What only /proc/self/fdinfo/FD tells of a map.

    `owner_type` (enum bpf_prog_type) and `owner_jited` are None until a first program has fixed what fits.
    """

    memlock: int
    frozen: bool
    owner_type: int | None
    owner_jited: bool | None


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """struct bpf_prog_info. `load_time`: ns, CLOCK_BOOTTIME; `tag`: 16 hex digits; `run_time`: ns."""

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
class TestRun:
    """What BPF_PROG_TEST_RUN answers. `duration`: ns, the mean of one run."""

    returned: int
    duration: int
    packet: bytes


class Kernel(Protocol):
    """bpf(2). Thread rule: any method may be called from any thread.

    All but `map_write`, `map_delete`, `prog_load` and `prog_test_run` are short and are to be called inline, also in an
    event loop; those four may take long, let other threads run meanwhile, and belong in a thread.
    """

    @property
    def name(self) -> str:
        """`linux` or `memory`."""

    @property
    def degraded_reason(self) -> str | None:
        """Why a part of this cannot be done just now, and the remedy; None: all can."""

    @property
    def boot_id(self) -> str:
        """A text that differs from boot to boot: map and program ids mean nothing beyond it."""

    def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
        """MAP_CREATE: make a map, and return its fd."""

    def map_lookup(self, fd: int, index: int, value_size: int = 4) -> int:
        """MAP_LOOKUP_ELEM: the value at a u32 key, as a number. In a program array it is the program's id."""

    def map_entries(self, fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        """MAP_LOOKUP_ELEM of each index from `start` up to `stop`: (index, value) of those that are not empty."""

    def map_ids(self, fd: int, start: int, stop: int) -> "array[int]":
        """MAP_LOOKUP_ELEM of each index from `start` up to `stop` of a program array: u32 ids, and 0 for an empty one.

        Each entry is as it was at some moment of the call.
        """

    def map_write(self, fd: int, indexes: "array[int]", values: "array[int]") -> tuple[int, int]:
        """MAP_UPDATE_ELEM of many: `indexes` (u32) to the program fds in `values` (i32); -1: MAP_DELETE_ELEM.

        In that order, up to the first that the kernel refuses: (how many were written, the errno; 0 after all). To
        empty what is empty already counts as written. May wait as `map_delete` does, and lets other threads run.
        ValueError where there are not as many of both, or their typecodes are not `I` and `i`.
        """

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        """MAP_UPDATE_ELEM with a u32 key and value. In a program array the value is a program's fd."""

    def map_delete(self, fd: int, index: int) -> None:
        """MAP_DELETE_ELEM. May wait for an RCU grace period: ms."""

    def map_freeze(self, fd: int) -> None:
        """MAP_FREEZE: refuse UPDATE and DELETE from user space from now on; for good."""

    def map_info(self, fd: int) -> MapInfo:
        """OBJ_GET_INFO_BY_FD of a map."""

    def map_state(self, fd: int) -> MapState:
        """The fdinfo of a map."""

    def map_get_fd_by_id(self, id_: int) -> int:
        """MAP_GET_FD_BY_ID."""

    def prog_load(
        self, type_: int, instructions: bytes, name: str = "", *, expected_attach_type: int = 0, flags: int = 0
    ) -> int:
        """PROG_LOAD of assembled instructions, 8 bytes each, under the GPL; returns the fd."""

    def prog_info(self, fd: int) -> ProgInfo:
        """OBJ_GET_INFO_BY_FD of a program."""

    def prog_get_fd_by_id(self, id_: int) -> int:
        """PROG_GET_FD_BY_ID."""

    def prog_test_run(self, fd: int, packet: bytes, repeat: int = 1) -> TestRun:
        """PROG_TEST_RUN: run a program on a packet, `repeat` times."""

    def obj_pin(self, fd: int, path: str) -> None:
        """OBJ_PIN: give a map or a program a path in bpffs."""

    def unpin(self, path: str) -> None:
        """unlink(2) of a pin."""

    def check_pin(self, path: str) -> None:
        """What OBJ_PIN would answer to a new pin at `path`, without making one."""

    def in_bpffs(self, path: str) -> bool:
        """Whether a bpffs is mounted there."""

    def make_folder(self, path: str) -> None:
        """mkdir(2) of a folder for pins that nobody else may enter, unless it is there."""

    def pins_in(self, folder: str) -> list[str]:
        """The names of what is pinned in a folder; none where there is no such folder."""

    def obj_get(self, path: str, flags: int = 0) -> int:
        """OBJ_GET: open what is pinned at a path."""

    def obj_kind(self, fd: int) -> str:
        """`map`, `prog`, or whatever else the fd is."""

    def dup(self, fd: int) -> int:
        """fcntl(F_DUPFD_CLOEXEC): another fd for the same."""

    def close(self, fd: int) -> None:
        """close(2)."""
