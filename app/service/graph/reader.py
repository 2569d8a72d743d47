"""Reading the graph from the kernel, and keeping what does not change."""

import asyncio
import contextlib
import time
from array import array
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from app.bpf.inventory import ArrayOwner, Attachments, Loaded, LoadedArray, LoadedProgram, ProgramCode
from app.bpf.kernel import Kernel
from app.service.errors import MapUnavailable, MapUnknown, ServiceError
from app.service.graph.graph import ArrayNode, Edge, Graph, ProgramNode
from app.service.objects.program_array import ProgramArray
from app.service.registry.registry import Registry
from app.store.number_arrays import NUMBERS
from app.store.records import EMPTY

_SLICE_SECONDS: Final = 0.001  # in the event loop, before others have their turn
_PROGRAMS_PER_SLICE: Final = 50  # of which the graph is put together at once
_ARRAYS_TOGETHER: Final = 128  # that are open at a time
_ARRAYS_PER_TURN: Final = 16  # that the keeper opens before others have their turn
# An array that others let go of while it is open here is emptied twice. The kernel leaks it if the second time begins
# before the first has ended, which takes it 13 ms at most.
_EMPTYING_SECONDS: Final = 0.1
_ONLY_HELD: Final = "only programs and arrays that the service holds are listed, as BPF iterators cannot be had"

T = TypeVar("T")


class GraphReader:
    """Reads the graph. Thread rule: one event loop; what may wait for the kernel or the keeper runs in threads."""

    def __init__(self, registry: Registry) -> None:
        """Read nothing yet."""
        self._registry = registry
        self._codes: dict[tuple[int, int], ProgramCode] = {}  # by the id and the load time of the program
        self._reading = asyncio.Lock()

    def loaded(self) -> Loaded | None:
        """Return all programs and arrays of the kernel; None where it does not tell."""
        try:
            return self._registry.kernel.loaded()
        except OSError:
            return None

    async def read(self) -> Graph:
        """Read the graph. Others have their turn in between, so it is as of no single moment.

        The first time takes 0.1 ms for each program that makes tail calls, and later ones the time to list them.
        """
        async with self._reading:
            kernel, unseen = self._registry.kernel, list[str]()
            tables = await self._read_held()
            loaded = await asyncio.to_thread(self.loaded)
            if loaded is None:
                unseen.append(_ONLY_HELD)
                loaded = await asyncio.to_thread(_load_held, kernel, tables, self._held_programs())
            try:
                failure = kernel.failure
                if failure is not None:
                    raise failure
                codes = await asyncio.to_thread(self._read_codes, loaded)
                attachments = await asyncio.to_thread(kernel.attachments)
                others = [each for each in loaded.arrays.values() if each.id not in tables]
                foreign = await asyncio.to_thread(_read_foreign, kernel, others)
            except OSError as error:  # the keeper has ended, or hangs
                unseen.append(f"code, attachments, and arrays that are not held could not be read: {error.strerror}")
                codes, attachments, foreign = dict(self._codes), Attachments(), {}
            unseen += attachments.unseen
            return await in_slices(self._put_together(loaded, codes, {**foreign, **tables}, attachments, unseen))

    def _held_programs(self) -> set[int]:
        return {held.object.id for held in self._registry.programs if held.object is not None}

    async def _read_held(self) -> "dict[int, array[int]]":
        """Return the tables of the held maps, by the id of the array."""
        found = {}
        for held in self._registry.maps:
            with contextlib.suppress(MapUnavailable, MapUnknown):  # or released while others had their turn
                table = await held.read()
                found[held.opened().id] = table
        return found

    def _read_codes(self, loaded: Loaded) -> dict[tuple[int, int], ProgramCode]:
        """Return the codes of the programs, and forget those of programs that are gone. For a thread."""
        keys = {(each.id, each.load_time) for each in loaded.programs.values()}
        known = {key: code for key, code in self._codes.items() if key in keys}
        missing = [id_ for id_, load_time in keys if (id_, load_time) not in known]
        codes = self._registry.kernel.codes(missing) if missing else {}
        known |= {(id_, loaded.programs[id_].load_time): code for id_, code in codes.items()}
        self._codes = known
        return known

    def _put_together(
        self,
        loaded: Loaded,
        codes: Mapping[tuple[int, int], ProgramCode],
        tables: "Mapping[int, array[int]]",
        attachments: Attachments,
        unseen: Sequence[str],
    ) -> Generator[None, None, Graph]:
        programs, edges = {}, list[Edge]()
        for number, program in enumerate(loaded.programs.values()):
            code = codes.get((program.id, program.load_time))
            held = self._registry.programs.held_as(program.id)
            is_read = code is not None and code.jumps is not None
            programs[program.id] = ProgramNode(program, None if held is None else held.name, is_read)
            edges += _edges(program, code, loaded.arrays)
            if number % _PROGRAMS_PER_SLICE == 0:
                yield
        held_maps = {
            held.object.id: (held.name, held.object) for held in self._registry.maps if held.object is not None
        }
        arrays = {}
        for id_, listed in loaded.arrays.items():
            table = tables.get(id_)
            name, array_ = held_maps.get(id_, (None, None))
            if listed.owner is None and array_ is not None:
                listed = replace(listed, owner=_owner(array_))  # noqa: PLW2901 - a kernel before 5.18, or no iterators
            if table is None and not listed.users:
                table = array(NUMBERS)  # it is being emptied, or is empty for good
            node = ArrayNode(listed, name, table)
            arrays[id_] = node if table is None else (yield from node.with_table(table))
            yield
        found = tuple(each for each in attachments.found if each.program in programs)
        return Graph(programs, arrays, tuple(edges), found, tuple(unseen))


def _owner(array_: ProgramArray) -> ArrayOwner | None:
    """Return what the fdinfo of a held array tells of its owner. None: there is none, or it cannot be read."""
    try:
        state = array_.state()
    except ServiceError:
        return None
    if state.owner_type is None:
        return None
    return ArrayOwner(state.owner_type, None, jited=bool(state.owner_jited), xdp_frags=False, has_prototype=False)


def _edges(program: LoadedProgram, code: ProgramCode | None, arrays: Mapping[int, LoadedArray]) -> list[Edge]:
    """Return where a program may jump."""
    if code is None or code.jumps is None:
        # Its code is hidden, or could not be opened. The kernel's own list has the jumps by a constant index.
        by_array: dict[int, list[int]] = {}
        for array_id, index in program.constant_jumps:
            by_array.setdefault(array_id, []).append(index)
        edges = [Edge(program.id, id_, tuple(indexes), certain=True) for id_, indexes in by_array.items()]
        used = code.map_ids if code is not None else ()
        return edges + [Edge(program.id, id_, None, certain=False) for id_ in used if id_ in arrays]
    edges = []
    for jump in code.jumps:
        leads_to = [id_ for id_ in code.map_ids if id_ in arrays] if jump.array is None else [jump.array]
        edges += [Edge(program.id, id_, jump.indexes, jump.certain) for id_ in leads_to if id_ in arrays]
    return edges


def _read_foreign(kernel: Kernel, arrays: Iterable[LoadedArray]) -> "dict[int, array[int]]":
    """Return the tables of arrays that the service does not hold, as far as they may be opened. For a thread."""
    found: dict[int, array[int]] = {}
    wanted = [each for each in arrays if each.users]
    for start in range(0, len(wanted), _ARRAYS_TOGETHER):
        together = wanted[start : start + _ARRAYS_TOGETHER]
        opened: dict[int, int] = {}
        try:
            for first in range(0, len(together), _ARRAYS_PER_TURN):
                _open(kernel, [each.id for each in together[first : first + _ARRAYS_PER_TURN]], opened)
            for each in together:
                if each.id in opened:
                    with contextlib.suppress(OSError):
                        found[each.id] = kernel.map_ids(opened[each.id], 0, each.max_entries)
        finally:
            _close(kernel, opened)
    return found


def _open(kernel: Kernel, ids: Sequence[int], opened: dict[int, int]) -> None:
    """Open arrays, and add their fds to `opened`."""
    with kernel.opened_ahead((), ids, ()):
        for id_ in ids:
            with contextlib.suppress(OSError):  # gone since, or no right
                opened[id_] = kernel.map_get_fd_by_id(id_)


def _close(kernel: Kernel, opened: Mapping[int, int]) -> None:
    """Close arrays. Where others have let go of one meanwhile, first let the kernel end what it does then."""
    with contextlib.suppress(OSError):
        arrays = kernel.loaded().arrays
        if any(id_ not in arrays or arrays[id_].users == 1 for id_ in opened):
            time.sleep(_EMPTYING_SECONDS)
    for fd in opened.values():
        kernel.close(fd)


def _load_held(kernel: Kernel, tables: "Mapping[int, array[int]]", programs: Collection[int]) -> Loaded:
    """Return what the service holds, and what is in the arrays that it holds. For a thread."""
    ids = {*programs}.union(*(set(table) - {EMPTY} for table in tables.values()))
    found, arrays = {}, {}
    for id_ in sorted(ids):
        with contextlib.suppress(OSError):
            fd = kernel.prog_get_fd_by_id(id_)
            try:
                info = kernel.prog_info(fd)
            finally:
                kernel.close(fd)
            found[id_] = LoadedProgram(
                id_, info.name, info.type, None, jited=True, xdp_frags=False, has_prototype=False,
                load_time=info.load_time,
            )  # fmt: skip
    for id_, table in tables.items():
        arrays[id_] = LoadedArray(id_, "", len(table), 1, None)
    return Loaded(found, arrays)


async def in_slices(steps: Generator[None, None, T]) -> T:
    """Run a generator in the event loop, and return its result. Others have their turn every millisecond."""
    ends = time.monotonic() + _SLICE_SECONDS
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() > ends:
            await asyncio.sleep(0)
            ends = time.monotonic() + _SLICE_SECONDS
