"""The attacks of somebody who controls the listening process. This code runs inside that process, on SIGHUP."""

import array
import contextlib
import ctypes
import errno
import gc
import json
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.api.audit import Audit
from app.bpf import asm, iterators
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import NUMBER
from app.bpf.uapi import MapType, ProgType
from app.keeper.client import KeeperClient
from app.keeper.kernel import KeeperKernel
from app.keeper.messages import REQUEST, Op

_PTRACE_ATTACH, _CLONE_NEWNS, _CLONE_NEWUSER = 16, 0x20000, 0x10000000
_PROG_GET_NEXT_ID, _LINK_GET_NEXT_ID, _LINK_CREATE, _XDP, _LOOPBACK = 11, 31, 28, 37, 1
_libc = ctypes.CDLL(None, use_errno=True)


def attack_on_reopen(outside: str, secrets: list[str]) -> None:
    """Attack when the audit file is opened for the second time, which SIGHUP causes.

    `outside` is a pin outside pin_dirs. `secrets` are files that the process may not read.
    """
    reopen = Audit.reopen
    openings: list[None] = []

    def reopened(audit: Audit) -> None:
        openings.append(None)
        if len(openings) == 1:
            reopen(audit)
        else:
            print(f"ATTACK {json.dumps(_attack(outside, secrets))}", flush=True)

    vars_of: Any = Audit
    vars_of.reopen = reopened


def _attack(outside: str, secrets: list[str]) -> dict[str, str]:
    """Try every attack. The outcome of each is the name of an errno, or "done"."""
    gc.unfreeze()
    keeper = next(each for each in gc.get_objects() if isinstance(each, KeeperClient))
    kept = next(each for each in gc.get_objects() if isinstance(each, KeeperKernel))
    linux, pid = LinuxKernel(), keeper.pid
    tried: dict[str, Callable[[], object]] = {
        "open a pin outside": lambda: linux.obj_get(outside),
        "open a pin outside by the keeper": lambda: kept.obj_get(outside),
        "pin outside by the keeper": lambda: kept.obj_pin(kept.map_create(MapType.PROG_ARRAY, 4, 4, 1), outside + "2"),
        "unpin by the keeper": lambda: kept.unpin(outside),
        "load a program": lambda: linux.prog_load(ProgType.XDP, asm.returns(1), "bad"),
        "make a map": lambda: linux.map_create(MapType.PROG_ARRAY, 4, 4, 1),
        "get a program by id": lambda: linux.prog_get_fd_by_id(1),
        "walk all ids": lambda: _bpf(_PROG_GET_NEXT_ID, 0),
        "attach the program that reads tables": lambda: _attach(kept.table_programs().reader or -1),
        "attach a program": _attach,
        "load an iterator": iterators.load,
        "list the links": lambda: _bpf(_LINK_GET_NEXT_ID, 0),
        "read from the keeper's files": lambda: keeper.open(Op.READ, text=secrets[0]),
        "ptrace the keeper": lambda: _call(_libc.ptrace(_PTRACE_ATTACH, pid, 0, 0)),
        "read the keeper's memory": Path(f"/proc/{pid}/mem").read_bytes,
        "list the keeper's files": lambda: list(Path(f"/proc/{pid}/fd").iterdir()),
        "kill the keeper": lambda: os.kill(pid, signal.SIGKILL),
        "become root": lambda: os.setuid(0),
        "mount": lambda: _call(_libc.mount(b"bpf", b"/tmp", b"bpf", 0, None)),
        "a mount namespace": lambda: _call(_libc.unshare(_CLONE_NEWNS)),
        "rights in a user namespace": _in_a_user_namespace,
        **{f"read {Path(secret).name}": Path(secret).read_text for secret in secrets},
    }
    outcome = {name: _outcome(do) for name, do in tried.items()}
    outcome["garbage"] = _garbage(keeper)
    return outcome


def _outcome(do: Callable[[], object]) -> str:
    try:
        do()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "done"


def _call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _attach(program: int = 0) -> None:
    """Attach a program that this process has open to the loopback device, by BPF_LINK_CREATE."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            program = program or int(link.name) if "bpf-prog" in str(link.readlink()) else program
    assert program > 0
    _bpf(_LINK_CREATE, program, _LOOPBACK, _XDP, 0)


def _bpf(command: int, *words: int) -> None:
    """Make a bpf(2) command that the service itself never makes."""
    fields = (ctypes.c_uint32 * len(words))(*words)
    _call(_libc.syscall(NUMBER, command, ctypes.byref(fields), ctypes.sizeof(fields)) < 0)


def _in_a_user_namespace() -> None:
    """Try bpf(2) in a new user namespace. Capabilities there do not count for bpf(2)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        number = 0
        try:
            _call(_libc.unshare(_CLONE_NEWUSER))
            LinuxKernel().prog_get_fd_by_id(1)
        except OSError as error:
            number = error.errno or 0
        os.write(write, bytes([number]))
        os._exit(0)
    os.waitpid(child, 0)
    number = os.read(read, 1)[0]
    os.close(read)
    os.close(write)
    raise OSError(number, os.strerror(number))


def _garbage(keeper: KeeperClient) -> str:
    """Send the keeper thousands of random requests, some with file descriptors."""
    chance = random.Random(1)
    keeper._channel.settimeout(10)
    for _ in range(3000):
        said = chance.randbytes(chance.randrange(0, 64))
        if chance.random() < 0.5:
            said = REQUEST.pack(chance.randrange(0, 16), chance.randrange(0, 1 << 32), 0) + said
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * chance.randrange(0, 9)))]
        keeper._channel.sendmsg([said], beside)
        fds = array.array("i")
        _, told, _, _ = keeper._channel.recvmsg(1 << 17, socket.CMSG_LEN(4))
        for _, _, content in told:
            fds.frombytes(content)
        for fd in fds:
            os.close(fd)
    return "answered"
