"""The command `jumptable demo`: a program array and XDP programs to try, with nothing prepared."""

import tempfile
from pathlib import Path
from typing import Final

import click

from app import __version__
from app.api.state import State
from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import MapType, ProgType
from app.cli.common import fail
from app.loader.client import DirectLoader
from app.loader.messages import ObjectLimits
from app.sandbox.process_name import set_process_name
from app.server import logging
from app.server.assemble import make_kernel
from app.server.listen import ListenError, listen_tcp
from app.server.run import raise_memlock, raise_open_files, serve
from app.server.startup import StartError
from app.service.errors import ServiceError, kernel_failure
from app.service.loading.object_files import ObjectOptions
from app.service.objects.opening import make_array
from app.service.objects.program import Program
from app.service.registry.registry import Registry
from app.store.journal import Journal

MAX_ENTRIES: Final = 16
NAME: Final = "jump_table"
_COUNTER_BYTES: Final = 8
_PIN_DIRS: Final = ["/sys/fs/bpf"]


@click.command("demo")
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option(
    "--kernel",
    type=click.Choice(["auto", "linux", "memory"]),
    default="auto",
    show_default=True,
    help="The kernel of this machine, a simulated one in memory, or (auto) the first if the privileges suffice.",
)
def demo_command(host: str, port: int, kernel: str) -> None:
    """Serve a jump table and programs to try.

    Nothing has to be prepared. There is no authentication, so it listens on loopback alone.
    """
    logging.configure()
    set_process_name("jumptable: demo")
    raise_open_files()
    try:
        if kernel != "memory":
            raise_memlock()
        _demo(host, port, kernel)
    finally:
        logging.finish()


def _demo(host: str, port: int, kernel: str) -> None:
    try:
        listener = listen_tcp(host, port, only_loopback=True)
        registry, kernel_and_reason = _make_registry(kernel)
    except (ListenError, StartError) as error:
        fail(str(error), 1)
    address, number = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{number}"
    click.echo(_instructions(url, kernel_and_reason))
    with tempfile.TemporaryDirectory(prefix="jumptable-") as folder:
        limits = ObjectLimits(upload=True)
        loader = DirectLoader(limits) if registry.kernel.name == "linux" else None
        objects = ObjectOptions(loader, limits.max_bytes, limits.upload)
        state = State(registry, Journal(Path(folder) / "journal.db", "process"), objects=objects)
        try:
            serve(state, listener)
        finally:
            state.service.close()
    registry.close()


def _make_registry(kernel: str) -> tuple[Registry, str]:
    """The registry with the demo's objects; and which kernel they are in, and why."""
    if kernel == "memory":
        return _simulated(), "a kernel in memory, as you asked: nothing here is real"
    registry = Registry(make_kernel("linux"), _PIN_DIRS)
    try:
        fill(registry)
    except (ServiceError, OSError) as error:
        registry.close()
        if kernel == "linux":
            message = f"{error}; run as root with all capabilities, or with --kernel memory"
            raise StartError(message) from error
        return _simulated(), f"a kernel in memory, since {error} (as root with all capabilities: the real one)"
    return registry, "the real kernel of this machine"


def _simulated() -> Registry:
    registry = Registry(MemoryKernel(), _PIN_DIRS)
    fill(registry)
    return registry


def _instructions(url: str, kernel_and_reason: str) -> str:
    return f"""jumptable {__version__} demo on {kernel_and_reason}.

The program `entry` reads a packet's first byte i and jumps to entry i of `jump_table`. Try, in another terminal:

  curl --json '{{"program": "drop"}}' -X PUT {url}/maps/jump_table/entries/3
  curl --json '{{"packet": "0300000000000000000000000000"}}' {url}/programs/entry/run
  curl --json '{{"program": "pass"}}' -X PUT {url}/maps/jump_table/entries/3
  curl {url}/maps/jump_table/entries
  curl -X DELETE {url}/maps/jump_table/entries/3

The page, for a browser: {url}/     All routes: {url}/docs     Stop with Ctrl-C; nothing is left behind."""


def fill(registry: Registry) -> None:
    """Create the array and the programs, and hold them.

    Raises:
        ServiceError: The kernel refuses the array or a program.
        OSError: The kernel refuses the map of the counter.
    """
    kernel = registry.kernel
    array = make_array(kernel, NAME, MAX_ENTRIES)
    registry.maps.adopt(NAME, array)
    counter = kernel.map_create(MapType.ARRAY, 4, _COUNTER_BYTES, 1, "counter")
    programs = {
        "entry": entry(array.fd),
        "drop": asm.returns(1),
        "pass": asm.returns(2),
        "tx": asm.returns(3),
        "count": count(counter),
    }
    try:
        for name, instructions in programs.items():
            registry.programs.adopt(name, _load(kernel, name, instructions))
    finally:
        kernel.close(counter)  # the program `count` keeps the map alive


def _load(kernel: Kernel, name: str, instructions: bytes) -> Program:
    try:
        return Program(kernel, kernel.prog_load(ProgType.XDP, instructions, name))
    except OSError as error:
        raise kernel_failure("PROG_LOAD", error) from error


def entry(array_fd: int) -> bytes:
    """XDP: tail-call the entry that the packet's first byte names. If it is empty, return XDP_ABORTED (0)."""
    return b"".join(
        (
            asm.load(asm.WORD, 2, 1, 0),  # r2 = xdp_md.data
            asm.load(asm.WORD, 3, 1, 4),  # r3 = xdp_md.data_end
            asm.mov_reg(4, 2),
            asm.add(4, 1),
            asm.jump_gt(4, 3, 4),  # an empty packet: to the end
            asm.load(asm.BYTE, 3, 2),  # r3 = the packet's first byte
            asm.map_fd(2, array_fd),  # two instructions
            asm.tail_call(),  # r1 is still the context
            asm.returns(0),
        )
    )


def count(counter_fd: int) -> bytes:
    """XDP: add one to the first value of an array map, and return XDP_PASS."""
    return asm.map_value(1, counter_fd) + asm.mov(2, 1) + asm.atomic_add(1, 2) + asm.returns(2)
