"""Run the tests of the kernel on other kernels: see README.md in this folder."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.debian import Missing
from tests.kernels import image
from tests.kernels.machine import MACHINES, Verdict, boot
from tests.kernels.packages import Archive, KernelPackage

# What runs in each guest, as arguments of pytest. Whatever else speaks to the kernel is added here. A test that a
# kernel cannot run says why, by tests/probes.py.
TESTS: Final = [
    "tests/bpf", "tests/kernels/test_service.py", "tests/loader", "tests/api/test_objects.py",
    "tests/api/test_objects_refused.py", "tests/api/test_objects_restart.py", "tests/api/test_graph.py",
]  # fmt: skip
QUICK_TESTS: Final = ["tests/bpf/test_contract.py", "tests/bpf/test_iterators.py", "tests/kernels/test_service.py"]
_QUICK_SERIES: Final = ("5.10", "6.1", "6.12")  # and the newest
_LIMIT_SECONDS: Final = 7200.0
_QUICK_LIMIT_SECONDS: Final = 1200.0  # many times what it takes on a quiet machine


def main() -> int:
    """Run the matrix, and return the exit status: 0 if all is well on every kernel."""
    options = _options()
    try:
        return _run(options)
    except Missing as error:
        print(f"tests.kernels: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels", description="Run the kernel tests on other kernels."
    )
    parser.add_argument("--quick", action="store_true", help="few tests on few kernels, as .ci/run does")
    parser.add_argument("--kernel", nargs="+", metavar="6.1", help="only these; `newest` is one of them")
    parser.add_argument("--arch", choices=list(MACHINES), default=platform.machine(), help="the machine to emulate")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many guests run at a time")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="what pytest runs in the guest instead")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write what each guest has printed")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    archive = Archive(MACHINES[options.arch].debian)
    archive.update()
    kernels = choose(archive.kernels(), options.kernel or ([*_QUICK_SERIES, "newest"] if options.quick else None))
    tests = options.tests or (QUICK_TESTS if options.quick else TESTS)
    limit = _QUICK_LIMIT_SECONDS if options.quick else _LIMIT_SECONDS
    with tempfile.TemporaryDirectory(prefix="jumptable-kernels-") as folder:
        initramfs = Path(folder) / "initramfs"
        image.build(options.arch, initramfs, archive)
        folders = [archive.kernel_folder(each) for each in kernels]
        print(f"{len(kernels)} kernels, prepared in {time.monotonic() - started:.0f} s", flush=True)
        print(HEADER, flush=True)

        def judged(kernel: KernelPackage, folder: Path) -> Verdict:
            return boot(options.arch, folder, initramfs, tests, ".".join(map(str, kernel.release)), limit)

        verdicts = []
        with ThreadPoolExecutor(options.jobs) as pool:
            for verdict in pool.map(judged, kernels, folders):
                verdicts.append(verdict)
                print("\n".join(lines(verdict)), flush=True)
                if options.output is not None:
                    options.output.mkdir(parents=True, exist_ok=True)
                    (options.output / f"{verdict.release}-{verdict.machine}.log").write_text(verdict.output)
    bad = sum(not each.is_good for each in verdicts)
    print(f"{len(verdicts) - bad} of {len(verdicts)} kernels are well, after {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


def choose(kernels: list[KernelPackage], wanted: list[str] | None) -> list[KernelPackage]:
    """Return the kernels of these series. None: all of them.

    Args:
        kernels: What there is, by rising version.
        wanted: Series as `6.1`, or `newest`.

    Raises:
        Missing: There is none of a series.
    """
    if wanted is None:
        return kernels
    by_series = {each.series: each for each in kernels} | {"newest": kernels[-1]}
    if missing := [each for each in wanted if each not in by_series]:
        message = f"no kernel {', '.join(missing)}: there are {', '.join(each.series for each in kernels)}"
        raise Missing(message)
    return sorted({by_series[each] for each in wanted})


# The words are other than those of pytest, which has a summary of its own in the gate.
HEADER: Final = f"{'kernel':10} {'machine':8} {'good':>5} {'bad':>4} {'cannot':>7} {'s':>5}"


def lines(verdict: Verdict) -> Iterator[str]:
    """Yield the line of a kernel, then why tests cannot run there, and what went wrong."""
    cannot = sum(verdict.skipped.values())
    yield (
        f"{verdict.release:10} {verdict.machine:8} {verdict.passed:5} {len(verdict.failed):4} {cannot:7} "
        f"{verdict.seconds:5.0f}"
    )
    for reason, number in sorted(verdict.skipped.items()):
        yield f"    {number} cannot: {reason}"
    for test, why in verdict.failed.items():
        yield f"    BAD {test}\n{why}"


if __name__ == "__main__":
    sys.exit(main())
