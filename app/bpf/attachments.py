"""Where programs are attached: links, XDP, tc, tcx, netkit, control groups and perf events.

Links are listed for the whole machine. Interfaces belong to network namespaces: this enters those that it finds and may
enter. Perf events belong to the processes that have opened them. What is attached by other means is not listed by the
kernel: a socket's filter (SO_ATTACH_BPF), or a program of the type perf_event without a link.
"""

import contextlib
import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from app.bpf import attr, iterators, netlink
from app.bpf.inventory import Attachment
from app.bpf.syscall import bpf
from app.bpf.uapi import (
    ATTACH_TYPE_NAMES,
    TASK_FD_TYPE_NAMES,
    AttachType,
    Cmd,
    LinkType,
    ProgType,
    link_type_name,
)

_MAX_PROGRAMS: Final = 64  # at one place, as the kernel has it
_MAX_NAMESPACES: Final = 256
_MAX_CGROUPS: Final = 4096
_MAX_PROBE_NAME: Final = 512  # bytes, with the closing NUL
_CLONE_NEWNET: Final = 0x40000000
_OWN_NAMESPACE: Final = Path("/proc/thread-self/ns/net")
# Folders in which `ip netns` and container engines keep namespaces by name.
_NAMESPACE_FOLDERS: Final = ("/run/netns", "/run/docker/netns")
# The attach types of control groups, of tcx and of netkit: enum bpf_attach_type.
_OF_CGROUPS: Final = tuple(
    number for number, name in enumerate(ATTACH_TYPE_NAMES) if name.startswith("cgroup_") or name == "lsm_cgroup"
)
_OF_INTERFACES: Final = {
    AttachType.TCX_INGRESS: ("tcx", "ingress"),
    AttachType.TCX_EGRESS: ("tcx", "egress"),
    AttachType.NETKIT_PRIMARY: ("netkit", "primary"),
    AttachType.NETKIT_PEER: ("netkit", "peer"),
}

# The types of programs of perf events of which TASK_FD_QUERY tells.
_OF_EVENTS: Final = {ProgType.KPROBE, ProgType.TRACEPOINT}
_PERF_EVENT: Final = "anon_inode:[perf_event]"

_libc: Final[Any] = ctypes.CDLL(None, use_errno=True)


def find_attachments() -> Iterator[Attachment | str | None]:
    """Yield what is attached, a sentence for what cannot be looked at, and None where there is nothing to tell yet.

    To get the next one takes microseconds, or some milliseconds for all of another namespace. A link may come up twice:
    as a link, and where it is attached. `merged` makes one of these.
    """
    for part, what in (
        (_links, "links"),
        (_interfaces, "XDP, tc and tcx programs in the network namespace of the service"),
        (_other_namespaces, "XDP, tc and tcx programs in other network namespaces"),
        (_cgroups, "programs of control groups"),
        (_perf_events, "perf events"),
    ):
        try:
            yield from part()
        except OSError as error:
            yield f"{what} could not be listed: {os.strerror(error.errno or errno.EIO)}"


def merged(found: Sequence[Attachment]) -> list[Attachment]:
    """Return attachments, each link only once: with its id and with its place."""
    links = {_identity(each): each.link for each in found if not each.where}
    placed = {_identity(each) for each in found if each.where}
    return [
        each if each.link is not None else replace(each, link=links.get(_identity(each)))
        for each in found
        if each.where or _identity(each) not in placed
    ]


def _identity(each: Attachment) -> tuple[str, int, int, str]:
    return each.kind, each.program, each.target, each.attach_type


def _links() -> Iterator[Attachment]:
    """Yield all links (CAP_SYS_ADMIN, Linux 5.8)."""
    fields = attr.GetId(id=0)
    while True:
        try:
            bpf(Cmd.LINK_GET_NEXT_ID, fields)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        fields = attr.GetId(id=fields.next_id)
        try:
            fd = bpf(Cmd.LINK_GET_FD_BY_ID, attr.GetId(id=fields.id))
        except OSError as error:
            if error.errno == errno.ENOENT:  # gone since
                continue
            raise
        try:
            found = _link(fd)
        finally:
            os.close(fd)
        yield found  # nothing is open while the caller does something else


def _link(fd: int) -> Attachment:
    """Return what a link attaches, as far as it tells."""
    buffer = ctypes.create_string_buffer(attr.LINK_INFO_SIZE)
    fields = attr.Info(bpf_fd=fd, info_len=attr.LINK_INFO_SIZE, info=ctypes.addressof(buffer))
    bpf(Cmd.OBJ_GET_INFO_BY_FD, fields)
    type_, id_, program = attr.LINK_INFO.unpack_from(buffer)
    kind, target, attach_type = link_type_name(type_), 0, ""
    at = attr.LINK_INFO.size
    if type_ == LinkType.CGROUP:
        target, number = struct.unpack_from("=QI", buffer, at)
        attach_type = _attach_type(number)
    elif type_ == LinkType.XDP:
        (target,) = struct.unpack_from("=I", buffer, at)
    elif type_ in (LinkType.TCX, LinkType.NETKIT):
        target, number = struct.unpack_from("=II", buffer, at)
        attach_type = _attach_type(number)
    return Attachment(program, kind, attach_type=attach_type, link=id_, target=target)


def _attach_type(number: int) -> str:
    return ATTACH_TYPE_NAMES[number] if number < len(ATTACH_TYPE_NAMES) else str(number)


def _interfaces(namespace: str = "") -> Iterator[Attachment]:
    """Yield what is attached to the interfaces of this thread's network namespace."""
    for interface in netlink.interfaces():
        index, name = interface.number, interface.name
        for mode, program in interface.xdp:
            where = f"{name} {mode}".rstrip()
            yield Attachment(program, "xdp", where, namespace=namespace, target=index)
        for direction, program in netlink.tc_programs(index):
            yield Attachment(program, "tc", f"{name} {direction}", namespace=namespace, target=index)
        for attach_type, (kind, direction) in _OF_INTERFACES.items():
            for program, link in _query(index, attach_type, links=True):
                yield Attachment(
                    program, kind, f"{name} {direction}", attach_type.name.lower(), namespace, link or None, index
                )


def _query(target: int, attach_type: int, *, links: bool = False) -> list[tuple[int, int]]:
    """Return (id of the program, id of its link or 0) of what is attached at one place.

    Args:
        target: The number of an interface, or the fd of a control group.
        attach_type: One of enum bpf_attach_type.
        links: This kind of place tells of links.
    """
    programs, ids = (ctypes.c_uint32 * _MAX_PROGRAMS)(), (ctypes.c_uint32 * _MAX_PROGRAMS)()
    fields = attr.Query(
        target=target, attach_type=attach_type, prog_ids=ctypes.addressof(programs), prog_cnt=_MAX_PROGRAMS
    )
    if links:
        fields.link_ids = ctypes.addressof(ids)
    try:
        bpf(Cmd.PROG_QUERY, fields)
    except OSError:
        return []  # nothing there, or a kind of place that this kernel or this interface does not have
    return list(zip(programs[: fields.prog_cnt], ids, strict=False))


def _other_namespaces() -> Iterator[Attachment | str]:
    """Yield what is attached in the network namespaces of other processes, as far as they may be entered."""
    own = _OWN_NAMESPACE.stat().st_ino
    known, is_hidden, refused = {own}, False, list[OSError]()
    for path, name in _namespaces():
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            continue
        except OSError:
            is_hidden = True
            continue
        if inode in known:
            continue
        if len(known) > _MAX_NAMESPACES:
            yield f"there are more than {_MAX_NAMESPACES} network namespaces: not all were looked at"
            return
        known.add(inode)
        try:
            yield from _in_namespace(path, partial(_interfaces, name))
        except OSError as error:
            refused.append(error)
    if refused:
        yield f"{len(refused)} network namespaces could not be entered: {os.strerror(refused[0].errno or errno.EIO)}"
    if is_hidden:
        yield "network namespaces of some processes were not looked at: that takes CAP_SYS_PTRACE"


def _namespaces() -> Iterator[tuple[Path, str]]:
    """Yield (path, name) of what may be a network namespace."""
    for folder in _NAMESPACE_FOLDERS:
        with contextlib.suppress(OSError):
            for entry in sorted(Path(folder).iterdir()):
                yield entry, entry.name
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield entry / "ns" / "net", f"of process {entry.name}"


def _in_namespace(path: Path, find: Callable[[], Iterator[Attachment]]) -> list[Attachment]:
    """Call a function in a thread that enters another network namespace, and ends there.

    Raises:
        OSError: The namespace may not be entered, or the function fails.
    """
    found: list[Attachment] = []
    failures: list[OSError] = []

    def run() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, _CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(fd)
            found.extend(find())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found


def _perf_events() -> Iterator[Attachment | str | None]:
    """Yield the programs of kprobes, uprobes and tracepoints, by the perf events that processes have open.

    Each has its own fd, and TASK_FD_QUERY (CAP_SYS_ADMIN, Linux 4.18) tells what is behind it. It takes a reference to
    the open file, so it is asked of perf events alone.
    """
    programs = iterators.read(iterators.loaded()).programs.values()
    if not any(each.type in _OF_EVENTS for each in programs):
        return
    seen, is_hidden = set[Attachment](), False
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        yield None
        try:
            fds = list((process / "fd").iterdir())
            for fd in fds:
                found = _perf_event(int(process.name), int(fd.name)) if _leads_to(fd, _PERF_EVENT) else None
                if found is not None and found not in seen:
                    seen.add(found)
                    yield found
        except PermissionError:
            is_hidden = True
        except FileNotFoundError:
            pass  # the process is gone
    if is_hidden:
        yield "perf events of some processes were not looked at: that takes CAP_SYS_PTRACE"


def _leads_to(link: Path, target: str) -> bool:
    """Whether a link leads to this. PermissionError: it may not be read."""
    try:
        return str(link.readlink()) == target
    except FileNotFoundError:  # gone since
        return False


def _perf_event(process: int, fd: int) -> Attachment | None:
    """Return the program of a perf event. None: it has none, or the kernel does not tell of this kind."""
    name = ctypes.create_string_buffer(_MAX_PROBE_NAME)
    fields = attr.TaskFdQuery(pid=process, fd=fd, buf=ctypes.addressof(name), buf_len=len(name))
    try:
        bpf(Cmd.TASK_FD_QUERY, fields)
    except OSError:
        return None
    type_ = TASK_FD_TYPE_NAMES[fields.fd_type] if fields.fd_type < len(TASK_FD_TYPE_NAMES) else str(fields.fd_type)
    where = f"{type_} {name.value.decode('utf-8', 'replace') or hex(fields.probe_addr)}"
    if fields.probe_offset:
        where += f"+{fields.probe_offset:#x}"
    return Attachment(fields.prog_id, link_type_name(LinkType.PERF_EVENT), where)


def _cgroups() -> Iterator[Attachment | str | None]:
    """Yield what is attached to control groups (version 2) below the mount that this process sees."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines())
    root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if root is None:
        yield "programs of control groups were not looked at: no cgroup2 is mounted"
        return
    for number, (folder, _, _) in enumerate(os.walk(root)):
        yield None
        if number >= _MAX_CGROUPS:
            yield f"there are more than {_MAX_CGROUPS} control groups: not all were looked at"
            return
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # gone since
        try:
            inode = os.fstat(fd).st_ino
            found = [(program, type_) for type_ in _OF_CGROUPS for program, _ in _query(fd, type_)]
        finally:
            os.close(fd)
        for program, attach_type in found:
            where = folder.removeprefix(root) or "/"
            yield Attachment(program, "cgroup", where, _attach_type(attach_type), target=inode)
