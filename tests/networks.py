"""Network namespaces of the tests' own, and how programs are attached in them: as other tools do it."""

import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from app.bpf import attr
from app.bpf.syscall import bpf
from app.bpf.uapi import Cmd
from tests import probes
from tests.conftest import tool

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Network:
    """A network namespace with two connected interfaces, `one` and `two`. It is gone with its only process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.path = Path(f"/proc/{pid}/ns/net")

    def run(self, command: str) -> None:
        """Run a command of iproute2 in it."""
        tool_name, *arguments = command.split()
        assert tool(tool_name)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        program = shutil.which(tool_name, path=path)
        subprocess.run(["nsenter", f"--net={self.path}", str(program), *arguments], check=True, capture_output=True)

    def call(self, do: Callable[[], T]) -> T:
        """Call a function in a thread that has entered it."""
        results: list[T] = []

        def run() -> None:
            fd = os.open(self.path, os.O_RDONLY)
            assert _libc.setns(fd, _CLONE_NEWNET) == 0
            os.close(fd)
            results.append(do())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return results[0]

    def link(self, program: int, interface: str, attach_type: int, flags: int = 0) -> int:
        """Attach a program by a link, and return its fd."""
        index = self.call(lambda: int(_ifindex(interface)))
        fields = attr.LinkCreate(prog_fd=program, target_fd=index, attach_type=attach_type, flags=flags)
        return self.call(lambda: bpf(Cmd.LINK_CREATE, fields))


def _ifindex(interface: str) -> int:
    index: int = _libc.if_nametoindex(interface.encode())
    assert index
    return index


@contextmanager
def network() -> Iterator[Network]:
    """A new network namespace. The test that calls it is skipped where the kernel has no veth."""
    probes.needs(probes.veth())
    own = Path("/proc/self/ns/net").stat().st_ino
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        made = Network(process.pid)
        deadline = time.monotonic() + 20
        while made.path.stat().st_ino == own:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        made.run("ip link add one type veth peer name two")
        made.run("ip link set one up")
        made.run("ip link set two up")
        yield made
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
