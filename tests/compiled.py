"""Object files for the tests, compiled by clang from C, and loaded with bpftool, as somebody else's loader would."""

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.bpf.linux import LinuxKernel
from tests.conftest import tool
from tests.probes import needs

SOURCES = Path(__file__).parent / "objects"
# A folder with NAME.o for each source there: where there is no compiler, as in the guests of tests/kernels.
READY = os.environ.get("COMPILED_OBJECTS")


@functools.cache
def object_file(name: str) -> bytes:
    """The object file of tests/objects/NAME.bpf.c."""
    if READY is not None:
        return Path(READY, f"{name}.o").read_bytes()
    return compiled((SOURCES / f"{name}.bpf.c").read_text(), f"{name}.bpf.c")


@functools.cache
def compiled(source: str, name: str = "test.bpf.c") -> bytes:
    """The object file of a source. `name`: how the file is called in what it tells of its lines."""
    needs(None if shutil.which("clang") else "clang is not installed: apt-get install clang libbpf-dev")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        # The second folder has linux/types.h on Debian.
        includes = [f"-I{SOURCES}", f"-I/usr/include/{platform.machine()}-linux-gnu"]
        command = ["clang", "-g", "-O2", "-target", "bpf", *includes, "-c", name, "-o", "test.o"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
        return Path(folder, "test.o").read_bytes()


def load_object(name: str, folder: Path, pins: Path, *options: str) -> dict[str, int]:
    """Load tests/objects/NAME.bpf.c with bpftool, and pin its programs and maps in the new folder `pins`.

    Returns:
        The id of each program and each map by its name.
    """
    assert tool("bpftool")
    file = folder / f"{name}.o"
    file.write_bytes(object_file(name))
    pins.mkdir()
    (pins / "programs").mkdir()
    (pins / "maps").mkdir()
    where = ["loadall", str(file), str(pins / "programs"), "pinmaps", str(pins / "maps")]
    subprocess.run(["bpftool", "prog", *where, *options], check=True, capture_output=True)
    kernel, found = LinuxKernel(), {}
    for pin in (*(pins / "programs").iterdir(), *(pins / "maps").iterdir()):
        fd = kernel.obj_get(str(pin))
        is_program = kernel.obj_kind(fd) == "prog"
        found[pin.name] = kernel.prog_info(fd).id if is_program else kernel.map_info(fd).id
        kernel.close(fd)
    return found
