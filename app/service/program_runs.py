"""Test runs of programs, in slices.

A test run may be repeated very often. It runs in slices of a limited time, so that it delays neither other test runs
nor the end of the service.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from app.service.errors import ProgramUnknown
from app.service.objects.program import RunResult
from app.service.registry.held import HeldProgram

_RUNS_IN_FIRST_SLICE: Final = 100  # enough to measure how long one run takes
_SLICE_NANOSECONDS: Final = 50_000_000

# All test runs share one thread, apart from the threads of asyncio.to_thread: there they could delay writes to entries.
_thread: Final = ThreadPoolExecutor(1, "test-run")


async def run_program(held: HeldProgram, packet: bytes, repeat: int, stopping: Callable[[], bool]) -> RunResult | None:
    """Run a held program `repeat` times on a packet.

    Each run gets the packet as the run before left it.
    Kernel: bpf_test_run() in net/bpf/test_run.c does the same within one call.

    Args:
        held: The program.
        packet: The packet for the first run.
        repeat: The number of runs, from 1 on.
        stopping: Asked after each slice. If it returns True, the test run ends.

    Returns:
        The result of the last run, with the mean duration of all runs. None if `stopping` returned True before the
        last slice.

    Raises:
        ProgramUnknown: The name is held for another program now.
        ProgramUnavailable: The program is not open.
        ServiceError: See `Program.run`.
    """
    first_id = held.opened().id
    count, done, total_nanoseconds = min(repeat, _RUNS_IN_FIRST_SLICE), 0, 0
    while True:
        async with held.lock:
            program = held.opened()
            if program.id != first_id:
                raise ProgramUnknown(held.name)
            result = await asyncio.get_running_loop().run_in_executor(_thread, program.run, packet, count)
        done, total_nanoseconds, packet = done + count, total_nanoseconds + result.duration * count, result.packet
        if done == repeat:
            return replace(result, duration=total_nanoseconds // done)
        if stopping():
            return None
        count = min(repeat - done, max(1, _SLICE_NANOSECONDS // max(result.duration, 1)))
