"""Object files for the tests, compiled by clang from C."""

import functools
import platform
import subprocess
import tempfile
from pathlib import Path

from tests.conftest import tool

SOURCES = Path(__file__).parent / "objects"


def has_clang() -> bool:
    """Whether clang is installed; with KERNEL_TESTS=required it has to be."""
    return tool("clang")


@functools.cache
def object_file(name: str) -> bytes:
    """The object file of tests/objects/NAME.bpf.c."""
    return compiled((SOURCES / f"{name}.bpf.c").read_text(), f"{name}.bpf.c")


@functools.cache
def compiled(source: str, name: str = "test.bpf.c") -> bytes:
    """The object file of a source. `name`: how the file is called in what it tells of its lines."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        includes = f"-I/usr/include/{platform.machine()}-linux-gnu"  # of linux/types.h on Debian
        command = ["clang", "-g", "-O2", "-target", "bpf", includes, "-c", name, "-o", "test.o"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
        return Path(folder, "test.o").read_bytes()
