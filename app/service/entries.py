"""Changing one entry: checked, then written at once, or only checked."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from app.bpf.uapi import BPF_ANY
from app.service.errors import EntryEmpty, MapFrozen, ServiceError, UnsupportedFlags
from app.service.fit import Fit, check_fit
from app.service.held import HeldMap
from app.service.program import Program, ProgramSummary
from app.service.program_array import ProgramArray
from app.service.programs import ProgramRef
from app.service.registry import Registry

# Called with the id of the entry's program (None: empty), under the map's lock, and raises what forbids the change.
Precondition = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class SetResult:
    """`map_id`: of the array; `before`: the id of the program that was there; `fit`: how surely a dry run knows it."""

    map_id: int
    before: int | None
    after: ProgramSummary
    fit: Fit | None = None


async def set_entry(
    registry: Registry,
    held: HeldMap,
    index: int,
    ref: ProgramRef,
    *,
    flags: int = 0,
    precondition: Precondition,
    dry_run: bool = False,
) -> SetResult:
    """Point an entry to a program, by one overwrite. What is there already is not written again.

    Errors: those of ProgramArray.set, Programs.resolve and `precondition`; MapUnavailable.
    """
    async with held.lock:
        array = held.opened()
        array.check_index(index)
        if flags != BPF_ANY:
            raise UnsupportedFlags(flags)
        seeds = await registry.seeds_for(held) if dry_run else []
        with registry.programs.resolve(ref) as program:  # and no await in here: its name may be released meanwhile
            before = array.get(index)
            precondition(before)
            fit: Fit | None = "tried" if dry_run else None
            if before != program.id:
                if dry_run:
                    fit = _dry_set(registry, array, program, seeds)
                else:
                    array.set(index, program, flags)
            after = registry.programs.describe(program.id, program)
    return SetResult(array.id, before, after, fit)


def _dry_set(registry: Registry, array: ProgramArray, program: Program, refs: list[ProgramRef]) -> Fit:
    _check_not_frozen(array)
    with ExitStack() as stack:
        seeds = []
        for ref in refs:
            with contextlib.suppress(ServiceError):  # gone in the meantime, or no right to open it by id
                seeds.append(stack.enter_context(registry.programs.resolve(ref)))
        return check_fit(registry.kernel, array, program, seeds)


async def clear_entry(
    held: HeldMap,
    index: int,
    *,
    precondition: Precondition,
    allow_missing: bool = False,
    dry_run: bool = False,
) -> int | None:
    """Empty an entry; the id of the program that was there, None where it was empty (`allow_missing`).

    Errors: EntryEmpty unless `allow_missing`; those of ProgramArray.clear_index and `precondition`; MapUnavailable.
    """
    async with held.lock:
        array = held.opened()
        before = array.get(index)
        if before is None and not allow_missing:
            raise EntryEmpty(index)
        precondition(before)
        if before is None:
            return None
        if dry_run:
            _check_not_frozen(array)
            return before
        try:
            # In a thread: it may wait for an RCU grace period, and holds nobody up but this map's own writers.
            await asyncio.to_thread(array.clear_index, index)
        except EntryEmpty:
            # Somebody else's tool was faster.
            if not allow_missing:
                raise
            return None
    return before


def _check_not_frozen(array: ProgramArray) -> None:
    if array.state().frozen:
        raise MapFrozen
