"""Fixtures: a browser, a demo, and a service that knows its callers by tokens, both on the real kernel."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from app.access.rights import Role
from app.access.tokens import Token, TokenFile
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.cli.demo import entry
from tests.running import Service, demo, running
from tests.web.browser import Watched, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file. It is closed with them: while it runs, asyncio.run() is not possible."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def service() -> Iterator[Service]:
    """A demo on the real kernel, without authentication."""
    with demo("--kernel", "linux") as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client on the demo: what somebody else does."""
    with service.client() as client:
        yield client


@pytest.fixture
def watched(browser: Browser, service: Service) -> Iterator[Watched]:
    """A context of the browser on the demo."""
    with Watched(browser, service.url) as watched:
        yield watched


@dataclass
class Guarded:
    """A service that knows its callers by tokens, with `jump_table` of 16 entries and the programs of the demo.

    Object files may be loaded from `objects`.
    """

    service: Service
    tokens: TokenFile
    pins: Path
    objects: Path

    def token(self, role: Role, **bounds: Any) -> str:
        """A new token."""
        return self.tokens.add(Token(f"{role}{time.monotonic_ns()}", "", role, time.time(), **bounds))


def _pin(folder: Path) -> None:
    """Pin an empty array, and programs of the demo."""
    kernel = LinuxKernel()
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "jump_table")
    kernel.obj_pin(array, str(folder / "jump_table"))
    for name, code in (("drop", asm.returns(1)), ("pass", asm.returns(2)), ("entry", entry(array))):
        fd = kernel.prog_load(ProgType.XDP, code, name)
        kernel.obj_pin(fd, str(folder / name))
        kernel.close(fd)
    kernel.close(array)


_CONFIG = """
[server]
host = "127.0.0.1"
port = 0
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
keep_dir = "{pins}/kept"
[tokens]
[objects]
object_dirs = ["{folder}/objects"]
upload = true
[maps.jump_table]
pinned = "{pins}/jump_table"
protected = ["0-3"]
[programs]
drop = {{ pinned = "{pins}/drop" }}
pass = {{ pinned = "{pins}/pass" }}
entry = {{ pinned = "{pins}/entry" }}
"""


@pytest.fixture
def guarded(bpffs: Path, tmp_path: Path) -> Iterator[Guarded]:
    """Such a service, on the real kernel, with the keeper."""
    _pin(bpffs)
    (bpffs / "kept").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "objects").mkdir()
    config = tmp_path / "jumptable.toml"
    config.write_text(_CONFIG.format(folder=tmp_path, pins=bpffs))
    tokens = TokenFile(tmp_path / "state" / "tokens.json")
    with running("serve", "--config", str(config)) as service:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        service.wait_for("serving")
        service.url = f"http://127.0.0.1:{port}"
        yield Guarded(service, tokens, bpffs, tmp_path / "objects")
