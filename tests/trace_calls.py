"""How far a request travels through the code: .venv/bin/python -m tests.trace_calls  (as root, on the real kernel)

For each kind of request it counts the modules of app/ that take part, the calls of their functions, and the returns:
calls into a module that the flow has left before. Few returns mean that a reader can follow the request from top to
bottom.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import httpx
import structlog

from app.api.app import create_app
from app.api.state import State
from app.bpf.linux import LinuxKernel
from app.cli.demo import fill
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests import private_mounts
from tests.over_wire import OverWire

_APP: Final = f"{Path(__file__).parents[1] / 'app'}/"
_TABLE: Final = "/maps/jump_table/entries"


class Trace:
    """Counts while it is entered. `modules`: by path below app/, in the order of their first call."""

    def __init__(self) -> None:
        self.modules: dict[str, None] = {}
        self.calls = self.returns = 0
        self._current = ""
        self._frames: dict[int, FrameType] = {}  # kept, so that no other frame gets the same place in memory

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(_APP):
            return
        if event == "call":
            if id(frame) not in self._frames:  # else a coroutine goes on
                self._frames[id(frame)] = frame
                self.calls += 1
                self.returns += file != self._current and file in self.modules
                self.modules[file] = None
            self._current = file
        elif event == "return" and frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(_APP):
            self._current = frame.f_back.f_code.co_filename


async def _trace(name: str, do: Callable[[], Awaitable[Any]]) -> None:
    with Trace() as trace:
        await do()
    print(f"{name:32} {len(trace.modules):7} {trace.calls:6} {trace.returns:8}")


async def _main(folder: Path) -> None:
    print(f"{'':32} {'modules':>7} {'calls':>6} {'returns':>8}")
    kernel = LinuxKernel()
    kernel.table_programs()
    registry = Registry(kernel, [str(folder)])
    fill(registry)
    app = create_app(State(registry, Journal(Path(":memory:"), "process")))
    service = app.state.service
    await service.start()
    regular, fast = (
        httpx.AsyncClient(transport=transport, base_url="http://jumptable")
        for transport in (httpx.ASGITransport(app), OverWire(app))
    )
    for way, client in (("regular", regular), ("fast", fast)):
        for program in ("drop", "pass", "tx", "drop", "pass"):
            await client.put(f"{_TABLE}/3", json={"program": program})
        await _trace(f"PUT of one entry, {way} way", partial(client.put, f"{_TABLE}/3", json={"program": "tx"}))
        await _trace(f"GET of one entry, {way} way", partial(client.get, f"{_TABLE}/3"))
    for programs in (["drop", "pass", "tx"], ["pass", "tx", "drop"]):
        await regular.put(_TABLE, json={"programs": programs})
    await _trace("PUT of a table of three", lambda: regular.put(_TABLE, json={"programs": ["tx", "drop", "pass"]}))
    await regular.put(f"{_TABLE}/5?confirm_within=60", json={"program": "drop"})
    put = {"program": "drop"}
    await _trace("PUT with confirm_within", lambda: regular.put(f"{_TABLE}/4?confirm_within=60", json=put))
    confirmations = service.changes.confirmations
    *_, pending = service.journal.pending()
    await _trace("its expiry", lambda: confirmations.undo(pending))
    for name in ("first", "second"):
        fd = kernel.map_create(3, 4, 4, 16, name)
        kernel.obj_pin(fd, f"{folder}/{name}")
        kernel.close(fd)
    await regular.put("/maps/first", json={"pinned": f"{folder}/first"})
    await _trace("PUT of a map (hold_map)", lambda: regular.put("/maps/second", json={"pinned": f"{folder}/second"}))
    await service.finish()
    service.close()
    registry.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    private_mounts.enter()
    with tempfile.TemporaryDirectory() as temporary:
        bpffs = Path(temporary)
        private_mounts.mount_bpffs(bpffs)
        try:
            asyncio.run(_main(bpffs))
        finally:
            private_mounts.unmount(bpffs)
