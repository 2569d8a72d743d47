"""No packet falls through while programs are changed."""

import asyncio
import threading
from pathlib import Path

import pytest

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.service.changes.changes import Changes
from app.service.changes.entries import set_entry
from app.service.changes.origin import RequestContext
from app.service.changes.tables import RequestedEntries, change_table
from app.service.objects.opening import make_array
from app.service.objects.program import Program
from app.service.registry.programs import ByName
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests.conftest import load

pytestmark = pytest.mark.kernel

CHANGES = 100_000
ORIGIN = RequestContext("unix", "one")


def counting_entry(array_fd: int, counter_fd: int) -> bytes:
    """A program that tail-calls entry 3, and counts the calls that fall through."""
    jump = asm.map_fd(2, array_fd) + asm.mov(3, 3) + asm.tail_call()
    return jump + asm.map_value(1, counter_fd) + asm.mov(2, 1) + asm.atomic_add(1, 2) + asm.returns(0)


@pytest.mark.slow
def test_no_packet_falls_through_while_programs_are_changed() -> None:
    kernel = LinuxKernel()
    registry = Registry(kernel)
    held = registry.maps.adopt("table", make_array(kernel, "table", 8))
    for name, value in (("drop", 1), ("pass", 2)):
        registry.programs.adopt(name, load(kernel, value, name=name))
    changes = Changes(registry, Journal(Path(":memory:"), "process"))
    counter = kernel.map_create(MapType.ARRAY, 4, 8, 1)
    code = counting_entry(held.opened().fd, counter)
    entry = Program(kernel, kernel.prog_load(ProgType.XDP, code))
    done = threading.Event()
    runs = 0

    def traffic() -> None:
        nonlocal runs
        while not done.is_set():
            assert entry.run(bytes(14), 100_000).returned in {1, 2}
            runs += 100_000

    async def change() -> None:
        for number in range(CHANGES):
            ref = ByName(("drop", "pass")[number % 2])
            if number % 10:
                await set_entry(changes, held, 3, ref, ORIGIN, precondition=lambda _: None)
            else:
                wanted = RequestedEntries.of([1, 3], [ref, ref], lambda ref: ref)
                await change_table(changes, held, wanted, ORIGIN, replace=True, precondition=lambda *_: None)

    asyncio.run(set_first(changes, held.name))
    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        asyncio.run(change())
    finally:
        done.set()
        thread.join()
    fell_through = kernel.map_lookup(counter, 0, 8)
    applied = changes.journal.changes(after=CHANGES - 10, limit=20)[0][-1].id
    entry.close()
    kernel.close(counter)
    changes.close()
    registry.close()
    assert runs > 0
    assert applied == CHANGES + 1, "every one of them was a change"
    assert fell_through == 0


async def set_first(changes: Changes, name: str) -> None:
    held = changes.registry.maps.get(name)
    await set_entry(changes, held, 3, ByName("pass"), ORIGIN, precondition=lambda _: None)
