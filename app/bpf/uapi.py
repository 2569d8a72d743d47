"""The numbers of bpf(2), from the kernel's include/uapi/linux/bpf.h, and the names that bpftool prints for them."""

import errno
import os
from enum import IntEnum
from typing import Final, NoReturn


class Cmd(IntEnum):
    """Commands of bpf(2): the part of enum bpf_cmd that this project uses."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    TASK_FD_QUERY = 20
    MAP_FREEZE = 22
    LINK_CREATE = 28
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ITER_CREATE = 33
    PROG_BIND_MAP = 35


class MapType(IntEnum):
    """Map types: the part of enum bpf_map_type that this project creates."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3


class ProgType(IntEnum):
    """Program types: the part of enum bpf_prog_type that this project refers to by name."""

    SOCKET_FILTER = 1
    KPROBE = 2
    SCHED_CLS = 3
    TRACEPOINT = 5
    XDP = 6
    CGROUP_SKB = 8
    TRACING = 26
    SYSCALL = 31


class AttachType(IntEnum):
    """Attach types: the part of enum bpf_attach_type that this project refers to by name."""

    TRACE_ITER = 28
    XDP = 37
    PERF_EVENT = 41
    TCX_INGRESS = 46
    TCX_EGRESS = 47
    NETKIT_PRIMARY = 54
    NETKIT_PEER = 55


class LinkType(IntEnum):
    """Link types: the part of enum bpf_link_type that this project refers to by name."""

    CGROUP = 3
    NETNS = 5
    XDP = 6
    PERF_EVENT = 7
    TCX = 11
    NETKIT = 13


# All of enum bpf_map_type, in order, in lower case.
MAP_TYPE_NAMES: Final = (
    "unspec", "hash", "array", "prog_array", "perf_event_array", "percpu_hash", "percpu_array", "stack_trace",
    "cgroup_array", "lru_hash", "lru_percpu_hash", "lpm_trie", "array_of_maps", "hash_of_maps", "devmap", "sockmap",
    "cpumap", "xskmap", "sockhash", "cgroup_storage", "reuseport_sockarray", "percpu_cgroup_storage", "queue",
    "stack", "sk_storage", "devmap_hash", "struct_ops", "ringbuf", "inode_storage", "task_storage", "bloom_filter",
    "user_ringbuf", "cgrp_storage", "arena", "insn_array",
)  # fmt: skip

# All of enum bpf_prog_type, in order, in lower case.
PROG_TYPE_NAMES: Final = (
    "unspec", "socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp", "perf_event", "cgroup_skb",
    "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops", "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint",
    "cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl",
    "raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall",
    "netfilter",
)  # fmt: skip

# All of enum bpf_attach_type, in order, in lower case.
ATTACH_TYPE_NAMES: Final = (
    "cgroup_inet_ingress", "cgroup_inet_egress", "cgroup_inet_sock_create", "cgroup_sock_ops", "sk_skb_stream_parser",
    "sk_skb_stream_verdict", "cgroup_device", "sk_msg_verdict", "cgroup_inet4_bind", "cgroup_inet6_bind",
    "cgroup_inet4_connect", "cgroup_inet6_connect", "cgroup_inet4_post_bind", "cgroup_inet6_post_bind",
    "cgroup_udp4_sendmsg", "cgroup_udp6_sendmsg", "lirc_mode2", "flow_dissector", "cgroup_sysctl",
    "cgroup_udp4_recvmsg", "cgroup_udp6_recvmsg", "cgroup_getsockopt", "cgroup_setsockopt", "trace_raw_tp",
    "trace_fentry", "trace_fexit", "modify_return", "lsm_mac", "trace_iter", "cgroup_inet4_getpeername",
    "cgroup_inet6_getpeername", "cgroup_inet4_getsockname", "cgroup_inet6_getsockname", "xdp_devmap",
    "cgroup_inet_sock_release", "xdp_cpumap", "sk_lookup", "xdp", "sk_skb_verdict", "sk_reuseport_select",
    "sk_reuseport_select_or_migrate", "perf_event", "trace_kprobe_multi", "lsm_cgroup", "struct_ops", "netfilter",
    "tcx_ingress", "tcx_egress", "trace_uprobe_multi", "cgroup_unix_connect", "cgroup_unix_sendmsg",
    "cgroup_unix_recvmsg", "cgroup_unix_getpeername", "cgroup_unix_getsockname", "netkit_primary", "netkit_peer",
    "trace_kprobe_session", "trace_uprobe_session",
)  # fmt: skip

# All of enum bpf_link_type, in order, in lower case.
LINK_TYPE_NAMES: Final = (
    "unspec", "raw_tracepoint", "tracing", "cgroup", "iter", "netns", "xdp", "perf_event", "kprobe_multi",
    "struct_ops", "netfilter", "tcx", "uprobe_multi", "netkit", "sockmap",
)  # fmt: skip

# All of enum bpf_task_fd_type, in order, in lower case.
TASK_FD_TYPE_NAMES: Final = ("raw_tracepoint", "tracepoint", "kprobe", "kretprobe", "uprobe", "uretprobe")

# The meaning of a return value by program type: enum xdp_action, and TC_ACT_* of linux/pkt_cls.h.
RETURN_NAMES: Final[dict[int, dict[int, str]]] = {
    ProgType.XDP: {0: "XDP_ABORTED", 1: "XDP_DROP", 2: "XDP_PASS", 3: "XDP_TX", 4: "XDP_REDIRECT"},
    ProgType.SCHED_CLS: {
        0: "TC_ACT_OK", 1: "TC_ACT_RECLASSIFY", 2: "TC_ACT_SHOT", 3: "TC_ACT_PIPE", 4: "TC_ACT_STOLEN",
        5: "TC_ACT_QUEUED", 6: "TC_ACT_REPEAT", 7: "TC_ACT_REDIRECT", 8: "TC_ACT_TRAP", 0xFFFFFFFF: "TC_ACT_UNSPEC",
    },
}  # fmt: skip

BPF_ANY: Final = 0
BPF_F_RDONLY_PROG: Final = 1 << 7  # MAP_CREATE: programs cannot write the map
BPF_F_RDONLY: Final = 1 << 3  # OBJ_GET, MAP_CREATE: the fd refuses UPDATE and DELETE with EPERM
BPF_F_WRONLY: Final = 1 << 4  # OBJ_GET, MAP_CREATE: the fd refuses LOOKUP with EPERM
BPF_F_SLEEPABLE: Final = 1 << 4  # PROG_LOAD: the program may wait
BPF_F_XDP_HAS_FRAGS: Final = 1 << 5  # PROG_LOAD: the XDP program accepts packets in several buffers
BPF_OBJ_NAME_LEN: Final = 16  # bytes, with the closing NUL

BPF_PSEUDO_MAP_FD: Final = 1  # src_reg of a 64-bit load: imm is a map's fd, the result the map
BPF_PSEUDO_MAP_VALUE: Final = 2  # src_reg of a 64-bit load: imm is a map's fd, the result its first value's address
BPF_PSEUDO_FUNC: Final = 4  # src_reg of a 64-bit load: imm leads to a function of the program itself
BPF_PSEUDO_CALL: Final = 1  # src_reg of a call: a function of the program itself
BPF_PSEUDO_KFUNC_CALL: Final = 2  # src_reg of a call: imm is the BTF id of a kernel function

# Helper functions: enum bpf_func_id.
BPF_FUNC_KTIME_GET_NS: Final = 5
BPF_FUNC_TAIL_CALL: Final = 12
BPF_FUNC_GET_CURRENT_TASK: Final = 35
BPF_FUNC_PROBE_READ_KERNEL: Final = 113
BPF_FUNC_SEQ_WRITE: Final = 127
BPF_FUNC_COPY_FROM_USER: Final = 148
BPF_FUNC_SYS_BPF: Final = 166

MAX_TAIL_CALL_CNT: Final = 33  # include/linux/bpf.h; a further tail call falls through
MIN_PACKET: Final = 14  # bytes, ETH_HLEN: BPF_PROG_TEST_RUN refuses shorter packets
MAX_INDEX: Final = 0xFFFFFFFF  # keys are u32

# An errno that is internal to the kernel (include/linux/errno.h), but that bpf(2) returns; Python's errno lacks it.
ENOTSUPP: Final = 524


def map_type_name(number: int) -> str:
    """Return the name of a map type (`prog_array` for 3), or the number as text where it is not known."""
    return MAP_TYPE_NAMES[number] if number < len(MAP_TYPE_NAMES) else str(number)


def prog_type_name(number: int) -> str:
    """Return the name of a program type (`xdp` for 6), or the number as text where it is not known."""
    return PROG_TYPE_NAMES[number] if number < len(PROG_TYPE_NAMES) else str(number)


def attach_type_name(number: int, prog_type: int) -> str:
    """Return the name of a program's expected attach type (`xdp` for 37), or the number as text where it is not known.

    0 is a type of its own only for programs of cgroups. For all others it means that none is set: `unset`.
    """
    if not number and prog_type != ProgType.CGROUP_SKB:
        return "unset"
    return ATTACH_TYPE_NAMES[number] if number < len(ATTACH_TYPE_NAMES) else str(number)


def link_type_name(number: int) -> str:
    """Return the name of a link type (`xdp` for 6), or the number as text where it is not known."""
    return LINK_TYPE_NAMES[number] if number < len(LINK_TYPE_NAMES) else str(number)


def errno_name(number: int) -> str:
    """Return the name of an errno (`EINVAL` for 22), or the number as text where it has none. Knows ENOTSUPP."""
    if number == ENOTSUPP:
        return "ENOTSUPP"
    return errno.errorcode.get(number, str(number))


def fail(cmd: Cmd, number: int) -> NoReturn:
    """Raise the OSError with which the kernel would refuse a command: errno `number`, message as from `syscall.bpf`."""
    raise OSError(number, f"{cmd.name}: {os.strerror(number)}")
