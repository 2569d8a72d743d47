"""What the kernel has loaded, and who jumps where: the part of the port that no open fd is needed for.

`Inventory` is a part of the protocol `Kernel`. It exists so that the graph of all jumps can be read, and so that a
refusal can name the exact difference between a program and an array.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

# A jump that may lead to more entries than this leads to "any entry".
MAX_INDEXES: Final = 64


@dataclass(frozen=True, slots=True)
class ArrayOwner:
    """What a program array requires of its programs: the first one has fixed it, for as long as the array exists.

    Attributes:
        prog_type: One of enum bpf_prog_type.
        attach_type: The expected attach type, one of enum bpf_attach_type. None: this kernel does not compare it.
        jited: The program is compiled.
        xdp_frags: It is an XDP program that accepts packets in several buffers.
        has_prototype: It is a tracing program; all programs then have to have the same prototype.
    """

    prog_type: int
    attach_type: int | None
    jited: bool
    xdp_frags: bool
    has_prototype: bool


@dataclass(frozen=True, slots=True)
class LoadedArray:
    """A program array of the kernel.

    Attributes:
        id: The kernel's id.
        name: The kernel's name, up to 15 characters.
        max_entries: The number of entries.
        users: How many fds and pins it has. 0: it is being emptied, or is empty for good, and must not be opened.
        owner: What it requires of programs. None: anything fits, or this kernel does not tell.
    """

    id: int
    name: str
    max_entries: int
    users: int
    owner: ArrayOwner | None


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program of the kernel.

    Attributes:
        id: The kernel's id.
        name: The kernel's name, up to 15 characters.
        type: One of enum bpf_prog_type.
        attach_type: The expected attach type, one of enum bpf_attach_type. None: it could not be told.
        jited: It is compiled.
        xdp_frags: It is an XDP program that accepts packets in several buffers.
        has_prototype: It is a tracing program, with the prototype of what it is attached to.
        load_time: In nanoseconds since the boot (CLOCK_BOOTTIME). With it, an id that is used again is told apart.
        constant_jumps: (id of the array, index) of each jump by a constant index that the kernel patches in place. To
            clear such an entry takes 8 ms and more.
        has_more_jumps: There are more of these than are listed.
    """

    id: int
    name: str
    type: int
    attach_type: int | None
    jited: bool
    xdp_frags: bool
    has_prototype: bool
    load_time: int
    constant_jumps: tuple[tuple[int, int], ...] = ()
    has_more_jumps: bool = False


@dataclass(frozen=True, slots=True)
class Jump:
    """Where a program may jump, by its code.

    Attributes:
        array: The id of the array. None: any of the arrays that the program uses.
        indexes: The indexes, rising. None: any.
        certain: Each of the indexes has a place in the code that jumps there and nowhere else. Else the code chooses.
    """

    array: int | None
    indexes: tuple[int, ...] | None
    certain: bool


@dataclass(frozen=True, slots=True)
class ProgramCode:
    """What the code of a program tells.

    Attributes:
        map_ids: The maps that it uses.
        jumps: Each place that it may jump to. Empty: it makes no tail call. None: its code cannot be read.
    """

    map_ids: tuple[int, ...]
    jumps: tuple[Jump, ...] | None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A place where the kernel runs a program.

    Attributes:
        program: The id of the program.
        kind: `xdp`, `tc`, `tcx`, `netkit`, `cgroup`, `perf_event` (also without a link), or the type of the link.
        where: The interface and direction, the control group, or what is probed. Empty: the kernel does not tell.
        attach_type: The name of the attach type, where the kind has several. Empty: it has not.
        namespace: The network namespace: the name under which it was found. Empty: that of the service's own.
        link: The id of the link that attaches it. None: there is none.
        target: The number of the interface, or the id of the control group. 0: neither.
    """

    program: int
    kind: str
    where: str = ""
    attach_type: str = ""
    namespace: str = ""
    link: int | None = None
    target: int = 0


@dataclass(frozen=True, slots=True)
class Attachments:
    """Everything that was found attached. `unseen`: what could not be looked at, a sentence each."""

    found: tuple[Attachment, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """All programs and program arrays, by id, as of one moment."""

    programs: dict[int, LoadedProgram] = field(default_factory=dict)
    arrays: dict[int, LoadedArray] = field(default_factory=dict)


class Inventory(Protocol):
    """Reading what is loaded. Thread rule: any thread may call any method."""

    def loaded(self) -> Loaded:
        """Read all programs and program arrays. No reference to any of them is taken.

        Takes 7 µs for each, in the event loop or in a thread. The first call of a process loads programs (0.1 s).

        Raises:
            OSError: ENOTSUP where this kernel or the rights of the service do not allow it; any other errno.

        Kernel:
            BPF iterators: bpf_map since Linux 5.8, bpf_prog since 5.9. CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN.
        """

    def owner_of(self, map_id: int) -> ArrayOwner | None:
        """Return what a program array requires of its programs.

        Args:
            map_id: The kernel's id of the array.

        Returns:
            None where it has no owner yet, does not exist, or the kernel does not tell.
        """

    def codes(self, ids: Sequence[int]) -> dict[int, ProgramCode]:
        """Read where programs jump, by interpreting their code. May take 1 ms for each: call it in a worker thread.

        Args:
            ids: The programs.

        Returns:
            What the code of each tells, by id. Programs that are gone, or that may not be opened, are left out.

        Raises:
            OSError: The keeper cannot be asked.

        Kernel:
            OBJ_GET_INFO_BY_FD: xlated_prog_insns (Linux 4.13). CAP_SYS_ADMIN.
        """

    def attachments(self) -> Attachments:
        """Read what is attached. May take many milliseconds: call it in a worker thread.

        Raises:
            OSError: The keeper cannot be asked.

        Kernel:
            LINK_GET_NEXT_ID (Linux 5.8), PROG_QUERY, and rtnetlink(7).
        """
