"""Test runs that take long, in slices: so that they keep nobody waiting, neither other runs nor the service's end."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from app.service.errors import ProgramUnknown
from app.service.objects.program import RunResult
from app.service.registry.held import HeldProgram

_FIRST_SLICE: Final = 100  # runs
_SLICE: Final = 50_000_000  # ns

# A thread of their own, which runs of several programs take in turns: clears have those of asyncio.to_thread.
_thread: Final = ThreadPoolExecutor(1, "test-run")


async def run_program(held: HeldProgram, packet: bytes, repeat: int, stopping: Callable[[], bool]) -> RunResult | None:
    """Run a held program `repeat` times; as in the kernel, each run gets the packet that the one before left.

    None where `stopping` became true in between. Errors: as Program.run; ProgramUnknown, ProgramUnavailable.
    """
    first = held.opened().id
    count, done, spent = min(repeat, _FIRST_SLICE), 0, 0
    while True:
        async with held.lock:
            program = held.opened()
            if program.id != first:
                raise ProgramUnknown(held.name)
            result = await asyncio.get_running_loop().run_in_executor(_thread, program.run, packet, count)
        done, spent, packet = done + count, spent + result.duration * count, result.packet
        if done == repeat:
            return replace(result, duration=spent // done)
        if stopping():
            return None
        count = min(repeat - done, max(1, _SLICE // max(result.duration, 1)))
