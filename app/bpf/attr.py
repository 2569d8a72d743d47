"""The arguments of bpf(2): one struct for the part of union bpf_attr that a command reads.

`linux` and `bulk` fill them in and pass them to `syscall.bpf`. The kernel requires that every byte behind a command's
last field is zero (CHECK_ATTR in kernel/bpf/syscall.c), so commands share a struct only if they end with the same
field. Pointers are u64. The layout of what OBJ_GET_INFO_BY_FD answers is here as well.
"""

import struct
from ctypes import Structure, c_char, c_uint32, c_uint64
from typing import Final

from app.bpf.uapi import BPF_OBJ_NAME_LEN


class MapCreate(Structure):
    """Arguments of MAP_CREATE."""

    _fields_ = (
        ("map_type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("inner_map_fd", c_uint32),
        ("numa_node", c_uint32),
        ("map_name", c_char * BPF_OBJ_NAME_LEN),
        ("map_ifindex", c_uint32),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
    )


class MapElem(Structure):
    """Arguments of MAP_LOOKUP_ELEM and MAP_UPDATE_ELEM. `key` and `value` are addresses."""

    _fields_ = (("map_fd", c_uint32), ("key", c_uint64), ("value", c_uint64), ("flags", c_uint64))


class MapKey(Structure):
    """Arguments of MAP_DELETE_ELEM, which ends with the key: the kernel requires that value and flags are zero."""

    _fields_ = (("map_fd", c_uint32), ("key", c_uint64))


class MapFd(Structure):
    """Arguments of MAP_FREEZE."""

    _fields_ = (("map_fd", c_uint32),)


class ProgLoad(Structure):
    """Arguments of PROG_LOAD, up to `expected_attach_type`."""

    _fields_ = (
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_uint64),
        ("license", c_uint64),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * BPF_OBJ_NAME_LEN),
        ("prog_ifindex", c_uint32),
        ("expected_attach_type", c_uint32),
    )


class ProgLoadTracing(Structure):
    """Arguments of PROG_LOAD, up to `attach_btf_id`: for a program of type TRACING (Linux 5.5)."""

    _fields_ = (
        *ProgLoad._fields_,
        ("prog_btf_fd", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("func_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("line_info", c_uint64),
        ("line_info_cnt", c_uint32),
        ("attach_btf_id", c_uint32),
    )


class TestRun(Structure):
    """Arguments of PROG_TEST_RUN, up to `duration`: enough for a program that runs on a packet."""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("retval", c_uint32),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("data_in", c_uint64),
        ("data_out", c_uint64),
        ("repeat", c_uint32),
        ("duration", c_uint32),
    )


class TestRunContext(Structure):
    """Arguments of PROG_TEST_RUN, up to `ctx_out`: for a program of type SYSCALL (Linux 5.14)."""

    _fields_ = (
        *TestRun._fields_,
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("ctx_in", c_uint64),
        ("ctx_out", c_uint64),
    )


class Obj(Structure):
    """Arguments of OBJ_PIN and OBJ_GET."""

    _fields_ = (("pathname", c_uint64), ("bpf_fd", c_uint32), ("file_flags", c_uint32))


class GetId(Structure):
    """Arguments of PROG_GET_FD_BY_ID and MAP_GET_FD_BY_ID."""

    _fields_ = (("id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32))


class LinkCreate(Structure):
    """Arguments of LINK_CREATE (Linux 5.7), up to `flags`."""

    _fields_ = (("prog_fd", c_uint32), ("target_fd", c_uint32), ("attach_type", c_uint32), ("flags", c_uint32))


class IterCreate(Structure):
    """Arguments of ITER_CREATE (Linux 5.8)."""

    _fields_ = (("link_fd", c_uint32), ("flags", c_uint32))


class Query(Structure):
    """Arguments of PROG_QUERY, up to `revision` (Linux 6.6).

    All of it is needed also where only `prog_ids` are asked for: the kernel writes `revision` whatever the size is
    that it was given (tcx and netkit since 6.6, cgroups since 6.17).
    """

    _fields_ = (
        ("target", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("prog_cnt", c_uint32),
        ("padding", c_uint32),
        ("prog_attach_flags", c_uint64),
        ("link_ids", c_uint64),
        ("link_attach_flags", c_uint64),
        ("revision", c_uint64),
    )


class TaskFdQuery(Structure):
    """Arguments of TASK_FD_QUERY (Linux 4.18)."""

    _fields_ = (
        ("pid", c_uint32),
        ("fd", c_uint32),
        ("flags", c_uint32),
        ("buf_len", c_uint32),
        ("buf", c_uint64),
        ("prog_id", c_uint32),
        ("fd_type", c_uint32),
        ("probe_offset", c_uint64),
        ("probe_addr", c_uint64),
    )


class Info(Structure):
    """Arguments of OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64))


class BtfLoad(Structure):
    """Arguments of BTF_LOAD."""

    _fields_ = (
        ("btf", c_uint64),
        ("btf_log_buf", c_uint64),
        ("btf_size", c_uint32),
        ("btf_log_size", c_uint32),
        ("btf_log_level", c_uint32),
    )


# The beginning of struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name.
MAP_INFO: Final = struct.Struct("=6I16s")
MAP_INFO_SIZE: Final = 104  # bytes

# The beginning of struct bpf_prog_info: type, id, tag, load_time, created_by_uid, nr_map_ids, map_ids, name,
# gpl_compatible.
PROG_INFO: Final = struct.Struct("=2I8s24xQ2IQ16s4xI")
PROG_INFO_RUN: Final = struct.Struct("=2Q")  # run_time_ns, run_cnt (Linux 5.1)
PROG_INFO_RUN_OFFSET: Final = 192  # bytes
PROG_INFO_MAP_IDS: Final = struct.Struct("=IQ")  # nr_map_ids, map_ids
PROG_INFO_MAP_IDS_OFFSET: Final = 52  # bytes
PROG_INFO_XLATED: Final = struct.Struct("=I8xQ")  # xlated_prog_len, xlated_prog_insns
PROG_INFO_XLATED_OFFSET: Final = 20  # bytes
PROG_INFO_SIZE: Final = 232  # bytes

# The beginning of struct bpf_link_info: type, id, prog_id. What follows depends on the type.
LINK_INFO: Final = struct.Struct("=3I4x")
LINK_INFO_SIZE: Final = 64  # bytes

# BTF (Documentation/bpf/btf.rst) with a single type, `__u32`, which gets the number 1. An array whose key and value
# have this type can be read with cat(1) at its pin.
_BTF_STRINGS = b"\0__u32\0"
_BTF_TYPES = struct.pack("=4I", 1, 1 << 24, 4, 32)  # name offset, BTF_KIND_INT, bytes, bits
BTF_U32: Final = (
    struct.pack("=HBBI4I", 0xEB9F, 1, 0, 24, 0, len(_BTF_TYPES), len(_BTF_TYPES), len(_BTF_STRINGS))
    + _BTF_TYPES
    + _BTF_STRINGS
)
