"""Booting a kernel under qemu, and what it says of the tests that ran in it."""

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.kernels.image import need, with_modules

_MEMORY_MIB: Final = 1024


@dataclass(frozen=True)
class Machine:
    """A machine that qemu emulates.

    Attributes:
        debian: Debian's name of its architecture.
        qemu: The emulator.
        package: The package that has the emulator.
        options: The processor, the board, and where the serial ports lead: {0} is the console, {1} the report.
        console: The name of the console in the guest.
        report: The name of the port of the report in the guest.
    """

    debian: str
    qemu: str
    package: str
    options: tuple[str, ...]
    console: str
    report: str


# The processor without cx16: qemu 7.2 emulates cmpxchg16b in a way that Linux 6.12 does not survive.
# Software emulation always, also where /dev/kvm is there: opening it does not tell whether it works.
MACHINES: Final = {
    "x86_64": Machine(
        "amd64",
        "qemu-system-x86_64",
        "qemu-system-x86",
        ("-M", "q35", "-cpu", "max,-cx16", "-serial", "file:{0}", "-serial", "file:{1}"),
        "ttyS0 tsc=reliable",
        "ttyS1",
    ),
    "aarch64": Machine(
        "arm64",
        "qemu-system-aarch64",
        "qemu-system-arm",
        ("-M", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on", "-serial", "file:{0}",
         "-chardev", "file,id=report,path={1}", "-device", "pci-serial,chardev=report"),
        "ttyAMA0",
        "ttyS0",
    ),
}  # fmt: skip


@dataclass
class Verdict:
    """What came of a guest.

    Attributes:
        release: The version of the kernel.
        machine: The machine.
        passed: How many tests passed.
        failed: Why, by test. Also the guest itself, where it ended without a result.
        skipped: How many tests the kernel cannot run, by reason.
        seconds: From the start of the emulator to its end.
        output: Everything that the guest has printed.
    """

    release: str
    machine: str
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    output: str = ""

    @property
    def is_good(self) -> bool:
        """Whether no test failed, and some were run."""
        return not self.failed and self.passed > 0


def boot(name: str, kernel: Path, image: Path, tests: list[str], release: str, limit_seconds: float) -> Verdict:
    """Boot a kernel, and wait until the tests in it have run.

    Args:
        name: A name of MACHINES.
        kernel: The folder with the kernel and its modules.
        image: The initramfs, without the modules.
        tests: What pytest is to run: paths in the project.
        release: The version of the kernel.
        limit_seconds: After so long the guest is ended.
    """
    machine, started = MACHINES[name], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jumptable-guest-") as folder:
        console, report = Path(folder) / "console", Path(folder) / "report"
        initramfs = Path(folder) / "initramfs"
        with_modules(image, kernel, initramfs)
        told_to_guest = f"report={machine.report} tests={','.join(tests)}"
        command = [
            *("setpriv", "--pdeathsig", "KILL"),  # the guest ends with this process, however that ends
            need(machine.qemu, machine.package),
            *("-accel", "tcg", "-smp", "1", "-m", str(_MEMORY_MIB)),
            *("-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"),
            *(option.format(console, report) for option in machine.options),
            *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(initramfs)),
            *("-append", f"console={machine.console} quiet panic=-1 oops=panic {told_to_guest}"),
        ]
        ended = "the guest ended without a result"
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_seconds, check=False,
                env={**os.environ, "TMPDIR": folder},
            )  # fmt: skip
            if done.returncode:
                ended = f"qemu ended with status {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        except subprocess.TimeoutExpired:
            ended = f"the guest was ended after {limit_seconds:.0f} s"
        told = "".join(each.read_text(errors="replace") for each in (report, console) if each.exists())
    verdict = judge(told, ended, release, name)
    verdict.seconds = time.monotonic() - started
    return verdict


def judge(told: str, ended: str, release: str, machine: str) -> Verdict:
    """Return what a guest has told.

    Args:
        told: Everything that it printed.
        ended: How the guest ended, for one that has told no result.
        release: The version of the kernel that was booted.
        machine: What machine it was.
    """
    line = next((line for line in told.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        return Verdict(release, machine, failed={"guest": f"{ended}; its last lines:\n{told[-3000:]}"}, output=told)
    result = json.loads(line.removeprefix("RESULT "))
    failed = result["failed"]
    if result["status"] and not failed:
        failed = {"pytest": f"it ended with status {result['status']}:\n{told[-3000:]}"}
    series = ".".join(release.split(".")[:2])
    if result["machine"] != machine or not result["release"].startswith(f"{series}."):
        failed = {**failed, "guest": f"it is {result['release']} on {result['machine']}"}
    skipped = {reason: len(tests) for reason, tests in result["skipped"].items()}
    return Verdict(release, machine, len(result["passed"]), failed, skipped, output=told)
