"""An application in this process, with pinned objects and a journal on a small disk, to test faults during changes."""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.api.app import create_app
from app.api.state import State
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.service.changes import confirmations
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests import private_mounts
from tests.conftest import tool
from tests.outside import Bpftool, Script

TABLE = "/maps/table/entries"
PATCH = {"entries": [{"index": index, "program": name} for index, name in enumerate(("pass", "drop", "tx"))]}
BEFORE = {0: "drop", 1: "pass"}
AFTER = {0: "pass", 1: "drop", 2: "tx"}
MS_RDONLY, MS_REMOUNT = 1, 32
PROGRAMS = ("drop", "pass", "tx")


def mount_disk(folder: Path, flags: int = 0) -> None:
    """Mount a tmpfs of 1 MiB. With MS_REMOUNT change the flags of the mounted one."""
    private_mounts.enter()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", bytes(folder), b"tmpfs", flags, b"size=1m") == 0


def prepare(pins: Path) -> None:
    """Pin an array with the entries BEFORE, and its programs."""
    kernel = LinuxKernel()
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "table")
    kernel.obj_pin(array, str(pins / "table"))
    for value, name in enumerate(PROGRAMS, 1):
        fd = kernel.prog_load(ProgType.XDP, asm.returns(value), name)
        kernel.obj_pin(fd, str(pins / name))
        if value < 3:
            kernel.map_update(array, value - 1, fd)
        kernel.close(fd)
    kernel.close(array)


class Inside:
    """The application in this process.

    `now` is its wall clock in seconds. `later` is by how many seconds its time since boot is ahead.
    """

    def __init__(self, pins: Path, disk: Path) -> None:
        self.pins, self.disk = pins, disk
        self.now, self.later = 1_800_000_000.0, 0.0

    async def start(self) -> None:
        self.kernel = LinuxKernel()
        self.kernel.use_bulk_programs = False  # so that `before_write` comes before each entry
        self.registry = Registry(self.kernel, [str(self.pins)])
        self.registry.maps.add(HeldMap("table", Pinned(str(self.pins / "table"))))
        for name in PROGRAMS:
            self.registry.programs.add(HeldProgram(name, Pinned(str(self.pins / name))))
        self.registry.open_unavailable()
        self.journal = Journal(self.disk / "journal.db")
        app = create_app(State(self.registry, self.journal, keep_dir=str(self.pins / "keep")))
        self.service = app.state.service
        self.changes = self.service.changes
        self.changes._clock = lambda: self.now
        uptime = self.changes.confirmations.uptime
        self.changes.confirmations.uptime = lambda: uptime() + self.later
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jumptable")
        await self.service.start()

    async def stop(self) -> None:
        await self.client.aclose()
        await self.service.finish()
        self.changes.close()
        self.registry.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def table(self) -> dict[int, str]:
        """The names of the programs in the kernel, by index."""
        kernel, found = LinuxKernel(), {}
        for index, id_ in kernel.map_entries(self.registry.maps.get("table").opened().fd, 0, 16):
            fd = kernel.prog_get_fd_by_id(id_)
            found[index] = kernel.prog_info(fd).name
            kernel.close(fd)
        return found

    async def drift(self) -> list[int]:
        return [each["index"] for each in (await self.client.get("/maps/table")).json()["drift"]]

    async def states(self) -> list[tuple[str, str]]:
        """The kind and the state of every change."""
        return [(each["kind"], each["state"]) for each in (await self.client.get("/changes")).json()["changes"]]

    def kept(self) -> list[Path]:
        return list((self.pins / "keep").glob("*"))

    def before_write(self, number: int, do: Callable[[], object]) -> None:
        """Call `do` right before the set of an entry with this number, counted from now."""
        update, left, array = self.kernel.map_update, number, self.registry.maps.get("table").opened().fd

        def writing(fd: int, index: int, value: int, flags: int = 0) -> None:
            nonlocal left
            left -= fd == array  # and not the scratch array on which it is tried first
            if left == 0 and fd == array:
                do()
            update(fd, index, value, flags)

        self.kernel.map_update = writing  # type: ignore[method-assign]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait at most 10 seconds for a condition."""
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB that only this test sees."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount_disk(folder)
    yield folder
    private_mounts.unmount(folder)


@pytest.fixture
async def inside(bpffs: Path, disk: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    monkeypatch.setattr(confirmations, "_RETRY_SECONDS", 0.02)
    prepare(bpffs)
    inside = Inside(bpffs, disk)
    await inside.start()
    yield inside
    await inside.stop()


@pytest.fixture(params=[Script, *([Bpftool] if tool("bpftool") else [])])
def outside(request: pytest.FixtureRequest) -> Script | Bpftool:
    """Another tool that changes the same pinned objects."""
    made: Script | Bpftool = request.param()
    return made
