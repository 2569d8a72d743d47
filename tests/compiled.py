"""Programs in C, compiled with clang and loaded with bpftool, as somebody else's loader would."""

import subprocess
from pathlib import Path

from app.bpf.linux import LinuxKernel
from tests.conftest import tool

_SOURCES = Path(__file__).parent / "programs"


def compile_object(name: str, folder: Path) -> Path:
    """Compile tests/programs/NAME.bpf.c into a folder, and return the object file."""
    assert tool("clang")
    target = folder / f"{name}.o"
    command = ["clang", "-O2", "-g", "-Wall", "-Wno-unused-function", "-target", "bpf", "-c"]
    subprocess.run([*command, str(_SOURCES / f"{name}.bpf.c"), "-o", str(target)], check=True)
    return target


def load_object(name: str, folder: Path, pins: Path, *options: str) -> dict[str, int]:
    """Load tests/programs/NAME.bpf.c, and pin its programs and maps in the new folder `pins`.

    Returns:
        The id of each program and each map by its name.
    """
    assert tool("bpftool")
    pins.mkdir()
    (pins / "programs").mkdir()
    (pins / "maps").mkdir()
    where = ["loadall", str(compile_object(name, folder)), str(pins / "programs"), "pinmaps", str(pins / "maps")]
    subprocess.run(["bpftool", "prog", *where, *options], check=True, capture_output=True)
    kernel, found = LinuxKernel(), {}
    for pin in (*(pins / "programs").iterdir(), *(pins / "maps").iterdir()):
        fd = kernel.obj_get(str(pin))
        is_program = kernel.obj_kind(fd) == "prog"
        found[pin.name] = kernel.prog_info(fd).id if is_program else kernel.map_info(fd).id
        kernel.close(fd)
    return found
