"""What follows from the graph: what is never reached, jumps into empty entries, cycles, and the longest chain."""

from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from app.bpf.uapi import MAX_TAIL_CALL_CNT
from app.service.graph.graph import ArrayNode, Edge, Graph
from app.store.records import EMPTY

# `attached`: it is attached, or an attached program leads to it. `unattached`: it is in no array, or only such programs
# lead to it: something may run it that the kernel does not list. `never`: it is in an array, and nothing leads to it.
Reached = Literal["attached", "unattached", "never"]
# `no-caller`: no loaded program jumps through the array. `no-jump`: none jumps there. `not-reached`: only programs do
# that are never reached themselves.
Reason = Literal["no-caller", "no-jump", "not-reached"]

_ENTRIES_PER_STEP: Final = 4096
Steps = Generator[None, None, "Findings"]


@dataclass(frozen=True, slots=True)
class EmptyJump:
    """A jump to an entry that points to no program: it falls through.

    Attributes:
        edge: The jump.
        index: The index.
        is_beyond_end: The array has no such entry.
    """

    edge: Edge
    index: int
    is_beyond_end: bool


@dataclass(frozen=True, slots=True)
class Cycle:
    """Programs that lead to each other.

    Attributes:
        programs: Their ids, rising.
        certain: Jumps that are certain suffice for it.
    """

    programs: tuple[int, ...]
    certain: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """Programs of which each jumps to the next.

    Attributes:
        programs: Their ids.
    """

    programs: tuple[int, ...]

    @property
    def jumps(self) -> int:
        """The number of jumps."""
        return len(self.programs) - 1

    @property
    def exceeds_limit(self) -> bool:
        """Whether the kernel lets the last jump fall through."""
        return self.jumps > MAX_TAIL_CALL_CNT


@dataclass(frozen=True, slots=True)
class Findings:
    """What follows from a graph.

    Attributes:
        starts: The ids of the programs that something may run that is not a jump.
        reached: How each program is reached, by id.
        unreached_programs: Why, by id.
        unreached_entries: By the id of the array, the indexes for each reason.
        empty_jumps: The jumps to entries that are empty. Jumps to any index are left out.
        cycles: Programs that lead to each other.
        longest_chain: The longest way from a start that leads to no cycle. None: no program jumps to another.
    """

    starts: frozenset[int]
    reached: Mapping[int, Reached]
    unreached_programs: Mapping[int, Reason]
    unreached_entries: Mapping[int, Mapping[Reason, tuple[int, ...]]]
    empty_jumps: tuple[EmptyJump, ...]
    cycles: tuple[Cycle, ...]
    longest_chain: Chain | None


def find_in_part(graph: Graph, part: Graph) -> Steps:
    """Find everything about a part of a graph: what is reached, by way of the whole.

    Args:
        graph: The whole.
        part: Some of its programs, arrays, edges and entries.

    Returns:
        The findings, when the steps end.
    """
    whole = yield from find(graph)
    if part is graph:
        return whole
    found = yield from find(part, whole.starts)
    entries: dict[int, dict[Reason, tuple[int, ...]]] = {}
    for id_ in part.arrays.keys() & whole.unreached_entries.keys():
        for reason, indexes in whole.unreached_entries[id_].items():
            kept = tuple(index for index in indexes if part.arrays[id_].get(index) != EMPTY)
            if kept:
                entries.setdefault(id_, {})[reason] = kept
        yield
    return replace(
        found,
        reached={id_: whole.reached[id_] for id_ in part.programs},
        unreached_programs={id_: why for id_, why in whole.unreached_programs.items() if id_ in part.programs},
        unreached_entries=entries,
    )


def find(graph: Graph, starts: Collection[int] | None = None) -> Steps:
    """Find everything, in steps of less than a millisecond or so.

    Args:
        graph: The graph.
        starts: Programs that something may run that is not a jump. None: those that are attached, and those that are
            in no array.

    Returns:
        The findings, when the steps end.
    """
    attached = {each.program for each in graph.attachments}
    if starts is None:
        in_arrays = frozenset[int]().union(*(node.programs for node in graph.arrays.values()))
        starts = attached | (graph.programs.keys() - in_arrays)
    targets: dict[int, set[int]] = {id_: set() for id_ in graph.programs}
    surely: dict[int, set[int]] = {}
    for edge in graph.edges:
        found = graph.arrays[edge.array].targets(edge.indexes)
        targets[edge.program] |= found
        if edge.certain:
            surely.setdefault(edge.program, set()).update(found)
        yield
    from_attached = yield from _reachable(targets, attached & targets.keys())
    from_starts = yield from _reachable(targets, set(starts) & targets.keys())
    reached: dict[int, Reached] = {
        id_: "attached" if id_ in from_attached else "unattached" if id_ in from_starts else "never"
        for id_ in graph.programs
    }
    yield
    jumped_to = frozenset[int]().union(*targets.values())
    programs: dict[int, Reason] = {
        id_: "not-reached" if id_ in jumped_to else "no-jump" for id_, how in reached.items() if how == "never"
    }
    entries = yield from _unreached_entries(graph, reached)
    empty = yield from _empty_jumps(graph)
    components = yield from _components(targets)
    certain = yield from _components(surely)
    sure = {id_ for component in certain for id_ in component if _is_cycle(component, surely)}
    cycles = tuple(
        Cycle(tuple(sorted(each)), certain=any(id_ in sure for id_ in each))
        for each in components
        if _is_cycle(each, targets)
    )
    chain = yield from _longest_chain(targets, components, from_starts)
    return Findings(frozenset(starts), reached, programs, entries, empty, cycles, chain)


def _reachable(targets: Mapping[int, Collection[int]], starts: Iterable[int]) -> Generator[None, None, set[int]]:
    """Return the programs that can be reached from these, with these."""
    seen = set(starts)
    waiting = list(seen)
    while waiting:
        for each in targets.get(waiting.pop(), ()):
            if each not in seen:
                seen.add(each)
                waiting.append(each)
        yield
    return seen


def _unreached_entries(
    graph: Graph, reached: Mapping[int, Reached]
) -> Generator[None, None, dict[int, dict[Reason, tuple[int, ...]]]]:
    """Return the entries with a program to which nothing leads."""
    callers: dict[int, list[Edge]] = {}
    for edge in graph.edges:
        callers.setdefault(edge.array, []).append(edge)
    found: dict[int, dict[Reason, tuple[int, ...]]] = {}
    for id_, node in graph.arrays.items():
        yield
        edges = callers.get(id_, [])
        alive = [edge for edge in edges if reached.get(edge.program, "never") != "never"]
        if any(edge.indexes is None for edge in alive) or not node.programs:
            continue
        by_reason: dict[Reason, tuple[int, ...]] = {}
        by_anybody = None if any(edge.indexes is None for edge in edges) else _indexes(edges)
        by_alive = _indexes(alive)
        filled = yield from _filled(node, by_alive)
        jumped_to = [index for index in filled if by_anybody is None or index in by_anybody]
        rest = filled if not jumped_to else sorted({*filled} - {*jumped_to})
        if jumped_to:
            by_reason["not-reached"] = tuple(jumped_to)
        if rest:
            by_reason["no-jump" if edges else "no-caller"] = tuple(rest)
        if by_reason:
            found[id_] = by_reason
    return found


def _filled(node: ArrayNode, without: Collection[int]) -> Generator[None, None, list[int]]:
    """Return the indexes of entries that point to a program, without some of them."""
    found: list[int] = []
    for start in range(0, len(node.table or ()), _ENTRIES_PER_STEP):
        part = enumerate((node.table or ())[start : start + _ENTRIES_PER_STEP], start)
        found += [index for index, program in part if program != EMPTY and index not in without]
        yield
    return found


def _indexes(edges: Iterable[Edge]) -> set[int]:
    """Return all indexes of edges that have indexes."""
    return {index for edge in edges for index in edge.indexes or ()}


def _empty_jumps(graph: Graph) -> Generator[None, None, tuple[EmptyJump, ...]]:
    """Return the jumps to an entry without a program."""
    found = []
    for edge in graph.edges:
        node = graph.arrays[edge.array]
        if node.table is not None and edge.indexes is not None:
            found += [
                EmptyJump(edge, index, is_beyond_end=index >= node.loaded.max_entries)
                for index in edge.indexes
                if node.get(index) == EMPTY
            ]
        yield
    return tuple(found)


def _components(targets: Mapping[int, Collection[int]]) -> Generator[None, None, list[list[int]]]:
    """Return the strongly connected components: Tarjan's algorithm, without recursion. Callees come before callers."""
    numbers: dict[int, int] = {}  # in the order in which programs were found
    lowest: dict[int, int] = {}
    open_: list[int] = []
    is_open: set[int] = set()
    components: list[list[int]] = []
    for root in targets:
        if root in numbers:
            continue
        path = [(root, iter(targets[root]))]
        numbers[root] = lowest[root] = len(numbers)
        open_.append(root)
        is_open.add(root)
        while path:
            yield
            program, left = path[-1]
            following = next(
                (each for each in left if each in targets and _is_new(each, program, numbers, lowest, is_open)), None
            )
            if following is not None:
                numbers[following] = lowest[following] = len(numbers)
                open_.append(following)
                is_open.add(following)
                path.append((following, iter(targets[following])))
                continue
            path.pop()
            if path:
                lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[program])
            if lowest[program] == numbers[program]:
                at = open_.index(program)
                components.append(open_[at:])
                is_open.difference_update(open_[at:])
                del open_[at:]
    return components


def _is_new(
    each: int, program: int, numbers: Mapping[int, int], lowest: dict[int, int], is_open: Collection[int]
) -> bool:
    """Return whether a program is found for the first time; else note that `program` leads back to it."""
    if each not in numbers:
        return True
    if each in is_open:
        lowest[program] = min(lowest[program], numbers[each])
    return False


def _is_cycle(component: Collection[int], targets: Mapping[int, Collection[int]]) -> bool:
    """Return whether the programs of a component lead to each other, or the only one to itself."""
    return len(component) > 1 or any(each in targets[each] for each in component)


def _longest_chain(
    targets: Mapping[int, Collection[int]], components: Iterable[Collection[int]], starts: Collection[int]
) -> Generator[None, None, Chain | None]:
    """Return the longest way through the programs that lead to no cycle."""
    jumps: dict[int, int | None] = {}  # of the longest way from there; None: it leads to a cycle
    following: dict[int, int] = {}
    for component in components:
        yield
        if _is_cycle(component, targets):
            jumps.update(dict.fromkeys(component))
            continue
        (program,) = component
        ways = {each: jumps.get(each, 0) for each in targets[program]}
        if None in ways.values():
            jumps[program] = None
            continue
        best = max(ways, key=lambda each: ways[each] or 0, default=None)
        jumps[program] = 0 if best is None else (ways[best] or 0) + 1
        if best is not None:
            following[program] = best
    lengths = {id_: length for id_, length in jumps.items() if length and id_ in starts}
    if not lengths:
        return None
    programs = [max(lengths, key=lambda id_: (lengths[id_], -id_))]
    while programs[-1] in following:
        programs.append(following[programs[-1]])
    return Chain(tuple(programs))
