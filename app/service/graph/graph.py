"""The graph: programs, arrays, and the jumps between them, as of one moment."""

from array import array
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from app.bpf.inventory import Attachment, LoadedArray, LoadedProgram
from app.store.records import EMPTY

_ENTRIES_PER_STEP: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a program may jump.

    Attributes:
        program: The id of the program.
        array: The id of the array.
        indexes: The indexes, rising; some may be beyond the end of the array. None: any.
        certain: Each of the indexes has a place in the code that jumps there and nowhere else. Else the code chooses,
            maybe also from other arrays.
    """

    program: int
    array: int
    indexes: tuple[int, ...] | None
    certain: bool


@dataclass(frozen=True, slots=True)
class ProgramNode:
    """A program of the graph.

    Attributes:
        loaded: What the kernel lists of it.
        name: The name under which the service holds it. None: it does not hold it.
        is_read: Its code could be read. Else it may jump through any array that it uses, to any index.
    """

    loaded: LoadedProgram
    name: str | None
    is_read: bool


@dataclass(frozen=True, slots=True)
class ArrayNode:
    """A program array of the graph.

    Attributes:
        loaded: What the kernel lists of it.
        name: The name under which the service holds it. None: it does not hold it.
        table: By index, the id of the program that the entry points to; 0: empty. None: it could not be read.
        programs: The ids of all programs that entries point to.
        used: How many entries point to a program.
    """

    loaded: LoadedArray
    name: str | None
    table: "array[int] | None"
    programs: frozenset[int] = frozenset()
    used: int = 0

    def with_table(self, table: "array[int]") -> "Generator[None, None, ArrayNode]":
        """Return the node with this table, when the steps end. Each takes less than a millisecond."""
        programs, used = set[int](), 0
        for start in range(0, len(table), _ENTRIES_PER_STEP):
            part = table[start : start + _ENTRIES_PER_STEP]
            programs.update(part)
            used += len(part) - part.count(EMPTY)
            yield
        return replace(self, table=table, programs=frozenset(programs - {EMPTY}), used=used)

    def get(self, index: int) -> int:
        """Return the id of the program that an entry points to; 0 for an empty entry and for one beyond the end."""
        return self.table[index] if self.table is not None and index < len(self.table) else EMPTY

    def targets(self, indexes: Iterable[int] | None) -> frozenset[int]:
        """Return the ids of the programs that these entries point to; None: all entries."""
        return self.programs if indexes is None else frozenset(map(self.get, indexes)) - {EMPTY}

    def filled(self, most: int) -> list[tuple[int, int]]:
        """Return (index, id of the program) of the first entries that point to one."""
        return list(islice(((index, id_) for index, id_ in enumerate(self.table or ()) if id_ != EMPTY), most))


@dataclass(frozen=True)
class Graph:
    """Programs, arrays, and the jumps between them.

    Attributes:
        programs: By id.
        arrays: By id.
        edges: Where programs may jump.
        attachments: Where programs are attached.
        unseen: What could not be looked at, a sentence each.
    """

    programs: Mapping[int, ProgramNode] = field(default_factory=dict)
    arrays: Mapping[int, ArrayNode] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    unseen: tuple[str, ...] = ()

    def with_array(self, node: ArrayNode) -> "Graph":
        """Return the graph as it would be with this array in the place of the one with its id."""
        return replace(self, arrays={**self.arrays, node.loaded.id: node})

    def around(self, programs: Iterable[int], arrays: Iterable[int]) -> "Graph":
        """Return the part of the graph that is connected with these programs and arrays, in whichever direction."""
        neighbours: dict[tuple[str, int], set[tuple[str, int]]] = {}

        def connect(program: int, array_id: int) -> None:
            ends = ("program", program), ("array", array_id)
            for one, other in (ends, ends[::-1]):
                neighbours.setdefault(one, set()).add(other)

        for edge in self.edges:
            connect(edge.program, edge.array)
        for id_, node in self.arrays.items():
            for program in node.programs:
                connect(program, id_)
        waiting = [*(("program", each) for each in programs), *(("array", each) for each in arrays)]
        seen = set(waiting)
        while waiting:
            for each in neighbours.get(waiting.pop(), ()):
                if each not in seen:
                    seen.add(each)
                    waiting.append(each)
        return self.limited(
            {id_ for kind, id_ in seen if kind == "program"}, {id_ for kind, id_ in seen if kind == "array"}
        )

    def limited(self, programs: Iterable[int], arrays: Iterable[int]) -> "Graph":
        """Return the graph with only these programs and arrays, and what is between them."""
        kept_programs = {id_: node for id_, node in self.programs.items() if id_ in set(programs)}
        kept_arrays = {id_: node for id_, node in self.arrays.items() if id_ in set(arrays)}
        return replace(
            self,
            programs=kept_programs,
            arrays=kept_arrays,
            edges=tuple(each for each in self.edges if each.program in kept_programs and each.array in kept_arrays),
            attachments=tuple(each for each in self.attachments if each.program in kept_programs),
        )
