"""What the process that loads an object file gives up before it reads the first byte of it."""

import resource
import signal
from typing import Final

from app.bpf.uapi import Cmd
from app.sandbox.capabilities import drop_capabilities, effective_capabilities, end_with_parent, switch_user
from app.sandbox.landlock import restrict_files
from app.sandbox.seccomp import install_allow_list

# To load programs and make maps: CAP_BPF, and what the types of programs take besides.
CAPABILITIES: Final = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
_NOBODY: Final = 65534
_LIMITS: Final = {
    resource.RLIMIT_AS: 512 << 20,  # bytes
    resource.RLIMIT_CPU: 20,  # seconds
    resource.RLIMIT_NOFILE: 512,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
}
# What libbpf reads: the kernel's types, its version and configuration, and how many processors there may be.
_READABLE: Final = (
    "/sys/kernel/btf",
    "/proc/version_signature",
    "/proc/config.gz",
    "/boot",
    "/sys/devices/system/cpu",
)
# bpf_map__reuse_fd() of libbpf 1.1 opens "/", to get a number for its fd. The seccomp filter lets no folder be listed.
_LISTED: Final = ("/",)
_COMMANDS: Final = (
    Cmd.MAP_CREATE,
    Cmd.MAP_UPDATE_ELEM,
    Cmd.PROG_LOAD,
    Cmd.OBJ_GET_INFO_BY_FD,
    Cmd.BTF_LOAD,
    Cmd.BTF_GET_FD_BY_ID,
    Cmd.MAP_FREEZE,
    Cmd.PROG_BIND_MAP,
)
# BPF_BTF_GET_NEXT_ID takes CAP_SYS_ADMIN. With ENOENT for an answer, libbpf does without the types of modules.
_MISSING_COMMANDS: Final = (23,)


def confine(seconds: float) -> list[str]:
    """Give up everything that loading one object file does not take.

    Args:
        seconds: The time after which SIGALRM ends this process. Who has started it may lack the right to end it.

    Returns:
        What the kernel, or a missing capability, keeps from being given up: `user`, `landlock`, `seccomp`.

    Raises:
        OSError: The kernel refuses something that it has.
    """
    unconfined = []
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for limit, wanted in _LIMITS.items():
        _, hard = resource.getrlimit(limit)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (most, most))
    if {"CAP_SETUID", "CAP_SETGID"} <= set(effective_capabilities()):
        switch_user(_NOBODY, _NOBODY)
    else:
        unconfined.append("user")
    drop_capabilities(CAPABILITIES)
    end_with_parent()
    if not restrict_files(_READABLE, _LISTED):
        unconfined.append("landlock")
    try:
        install_allow_list(_COMMANDS, _MISSING_COMMANDS)
    except OSError:
        unconfined.append("seccomp")
    return unconfined
