"""What all tests share: the two kernels, a bpffs of their own, and the search for what was left open."""

import contextlib
import gc
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from app.api.app import create_app
from app.api.state import State
from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import MapType, ProgType
from app.cli import demo
from app.server.run import raise_memlock
from app.service.objects.program import Program
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests import field_report, private_mounts
from tests.debian import Missing
from tests.probes import NOTHING_MAY_LACK, REQUIRED

if TYPE_CHECKING:  # other kernels have no gRPC
    from tests.fleet_store.cluster import Cluster


# Before it is imported: at a fork, gRPC would close and open files of its own, and children would start without theirs.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

_CLOSED_SECONDS = 3.0  # gRPC closes its connections a little after they are given up


def kernel_refuses() -> str | None:
    """Why kernel tests cannot run here; None where they can."""
    if os.geteuid() != 0:
        return "kernel tests need root: sudo .venv/bin/pytest"
    try:
        raise_memlock()
        kernel = LinuxKernel()
        kernel.close(kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1))
        private_mounts.enter()
    except OSError as error:
        return f"this kernel refuses: {error}; run on Linux 5.2 or later with CAP_BPF and CAP_SYS_ADMIN"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Report what people ran into, a line for each. Children can be interrupted, also if this runs in background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(field_report)


def pytest_report_header() -> str:
    """The first lines of a run tell what it runs on, and whether kernel tests may be skipped."""
    kernel_tests = "skipped where they cannot run (KERNEL_TESTS=required: they fail there)"
    if REQUIRED:
        kernel_tests = "required" if NOTHING_MAY_LACK else "required, but for what this kernel lacks"
    return f"kernel: {platform.system()} {platform.release()} {platform.machine()}; kernel tests: {kernel_tests}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip kernel tests where they cannot run; with KERNEL_TESTS=required or =probed they fail there instead."""
    marked = [item for item in items if item.get_closest_marker("kernel")]
    why = kernel_refuses() if marked else None
    if why is None:
        return
    for item in marked:
        item.add_marker(pytest.mark.usefixtures("kernel_is_missing") if REQUIRED else pytest.mark.skip(reason=why))


@pytest.fixture
def kernel_is_missing() -> None:
    pytest.fail(f"kernel tests are required, but {kernel_refuses()}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def table_programs() -> None:
    """What this process loads once, and keeps: before anybody counts its files."""
    with contextlib.suppress(OSError):
        LinuxKernel().table_programs()
        LinuxKernel().iterators()


@pytest.fixture(autouse=True)
def no_fd_is_left(table_programs: None) -> Iterator[None]:
    """Every test closes what it opens."""
    before = _fds()
    yield
    if _opened_since(before):
        gc.collect()  # what is in cycles of references
    deadline = time.monotonic() + _CLOSED_SECONDS
    # What was open before may be closed meanwhile: gRPC does that for the test before.
    while _opened_since(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _opened_since(before), "file descriptors were left open"


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    """Each test begins with it. A command that serves sets another one, also where a test calls it in this process."""
    os.umask(0o022)


def _opened_since(before: dict[str, str]) -> dict[str, str]:
    return dict(_fds().items() - before.items())


def _fds() -> dict[str, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[link.name] = str(link.readlink())
    return found


@pytest.fixture(scope="session")
def etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cluster]":
    """Three members of etcd for all tests of this process. Use `cluster`."""
    from tests.fleet_store.cluster import running_cluster  # noqa: PLC0415 - other kernels have no gRPC

    try:
        with running_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
            yield cluster
    except Missing as error:
        if NOTHING_MAY_LACK:
            pytest.fail(f"kernel tests are required, and those of the fleet with them, but {error}")
        pytest.skip(str(error))


@pytest.fixture
def cluster(etcd_cluster: "Cluster") -> "Iterator[Cluster]":
    """Three members of etcd without any key. A test may kill and freeze them."""
    etcd_cluster.empty()
    yield etcd_cluster
    etcd_cluster.repair()


@pytest.fixture(params=["memory", pytest.param("linux", marks=pytest.mark.kernel)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each test that asks for it runs on both kernels."""
    return MemoryKernel() if request.param == "memory" else LinuxKernel()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs that only this test sees."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    private_mounts.mount_bpffs(folder)
    yield folder
    private_mounts.unmount(folder)


@pytest.fixture
def pins(kernel: Kernel, request: pytest.FixtureRequest) -> Path:
    """A folder to pin in: in a bpffs on Linux, in thought in memory."""
    if kernel.name == "linux":
        folder: Path = request.getfixturevalue("bpffs")
        return folder
    return Path("/sys/fs/bpf")


@pytest.fixture
def registry(kernel: Kernel, pins: Path) -> Iterator[Registry]:
    """What the demo serves: `jump_table` of 16 entries, and entry, drop, pass, tx and count."""
    registry = Registry(kernel, [str(pins)])
    demo.fill(registry)
    yield registry
    registry.close()


@contextlib.contextmanager
def application(registry: Registry, journal: Journal | None = None, **options: Any) -> Iterator[FastAPI]:
    """The application over it, with a journal in memory unless one is given."""
    app = create_app(State(registry, journal or Journal(Path(":memory:"), "process"), **options))
    yield app
    app.state.service.close()


def load(kernel: Kernel, value: int = 2, type_: int = ProgType.XDP, *, name: str = "other", flags: int = 0) -> Program:
    """A program that returns a number."""
    return Program(kernel, kernel.prog_load(type_, asm.returns(value), name, flags=flags))


def tool(name: str) -> bool:
    """Whether a command is installed; where kernel tests are required it has to be."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
    assert found or not REQUIRED, f"kernel tests are required, but {name} is not installed: apt-get install {name}"
    return found
