"""What runs in the guest, as its first process: /init of the image.

It mounts what the tests need, runs them, writes the result as one line of JSON to a serial port, and switches
the machine off. What is printed meanwhile goes to that port as well.
"""

import ctypes
import fcntl
import json
import os
import platform
import socket
import struct
import sys
import time
import traceback
from pathlib import Path

_MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
)
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_RB_POWER_OFF = 0x4321FEDC
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_PYTEST = ("-n", "0", "-p", "no:cacheprovider", "-o", "timeout=600", "-m", "kernel", "--tb=short",
           "--no-header", "--no-summary", "--color=no", "--durations=12", "-q")  # fmt: skip


class Report:
    """A plugin of pytest that keeps what the host is told."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}  # why, by test
        self.skipped: dict[str, list[str]] = {}  # tests, by reason

    def pytest_runtest_logreport(self, report: object) -> None:
        """Keep the outcome of a test."""
        test, outcome, when = report.nodeid, report.outcome, report.when  # type: ignore[attr-defined]
        if outcome == "failed":
            self.failed[test] = self.failed.get(test, "") + f"[{when}] {report.longreprtext}\n"  # type: ignore[attr-defined]
        elif outcome == "skipped":
            reason = report.longrepr[2].removeprefix("Skipped: ")  # type: ignore[attr-defined]
            self.skipped.setdefault(reason, []).append(test)
        elif when == "call":
            self.passed.append(test)

    def pytest_collectreport(self, report: object) -> None:
        """Keep that a file could not be imported."""
        if report.outcome == "failed":  # type: ignore[attr-defined]
            self.failed[report.nodeid] = report.longreprtext  # type: ignore[attr-defined]


def main() -> None:
    """Set up the machine, run the tests that the command line of the kernel names, and switch off."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, folder in _MOUNTS:
        Path(folder).mkdir(parents=True, exist_ok=True)
        libc.mount(b"none", folder.encode(), kind.encode(), 0, None)
    if not Path("/dev/fd").exists():
        Path("/dev/fd").symlink_to("/proc/self/fd")
    for number in (1, 2):
        os.dup2(os.open(f"/dev/{_word('report')}", os.O_WRONLY | os.O_NOCTTY), number)
    try:
        _up("lo")
        _load_modules(libc)
        print("RESULT " + json.dumps(_run()), flush=True)
    except BaseException:  # noqa: BLE001 - whatever it is, the host is told, and the machine is switched off
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os.sync()
        libc.reboot(_RB_POWER_OFF)


def _load_modules(libc: ctypes.CDLL) -> None:
    """Load what the image has of the kernel's modules. None of them needs another one."""
    for module in sorted(Path("/modules").iterdir()):
        with module.open("rb") as file:
            if libc.syscall(_FINIT_MODULE[platform.machine()], file.fileno(), b"", 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(module))


def _up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), _IFF_UP))


def _word(name: str) -> str:
    """Return what the command line of the kernel says of a name."""
    words = Path("/proc/cmdline").read_text().split()
    return next(word for word in words if word.startswith(f"{name}=")).removeprefix(f"{name}=")


def _run() -> dict[str, object]:
    tests = _word("tests").split(",")
    os.environ |= {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin", "HOME": "/root", "LC_ALL": "C.UTF-8",
                   "KERNEL_TESTS": "probed", "TEST_WAIT_SECONDS": "300", "COMPILED_OBJECTS": "/objects",
                   "PYTHONPATH": "/site:/project", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    sys.path[:0] = ["/project", "/site"]
    os.chdir("/project")
    import pytest  # noqa: PLC0415 - it is found only now

    report, started = Report(), time.monotonic()
    status = pytest.main([*_PYTEST, *tests], plugins=[report])
    return {
        "release": platform.release(),
        "machine": platform.machine(),
        "status": int(status),
        "passed": report.passed,
        "failed": report.failed,
        "skipped": report.skipped,
        "seconds": round(time.monotonic() - started, 1),
        "boot_seconds": round(started, 1),
    }


if __name__ == "__main__":
    main()
