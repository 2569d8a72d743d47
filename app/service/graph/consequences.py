"""What a change of entries does to the jumps: what is never reached then, cycles, and chains beyond the limit."""

from array import array
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Final

from app.bpf.uapi import MAX_TAIL_CALL_CNT
from app.service.graph.findings import Findings, Reason, find
from app.service.graph.graph import ArrayNode, Graph
from app.store.records import EntryChanges

_ENTRIES_PER_STEP: Final = 4096
_MAX_LISTED: Final = 8  # indexes or programs in one sentence
_WHY: Final[dict[Reason, str]] = {
    "no-caller": "no loaded program jumps through this array",
    "no-jump": "no loaded program jumps to this index",
    "not-reached": "only programs jump there that are never reached themselves",
}


def consequences(
    graph: Graph, part: Graph, array_id: int, entries: EntryChanges, *, is_made: bool
) -> Generator[None, None, list[str]]:
    """Find what a change makes worse.

    Args:
        graph: The graph as it is, before the change or after it.
        part: What may be told of; consequences for anything else are left out.
        array_id: The array whose entries change.
        entries: Which ones, and how.
        is_made: The change was made; else the sentences tell what would be.

    Returns:
        A sentence each, when the steps end.
    """
    node = graph.arrays.get(array_id)
    if node is None or node.table is None:
        return []
    earlier = graph.with_array((yield from _with_entries(node, entries, entries.before)))
    later = graph.with_array((yield from _with_entries(node, entries, entries.after)))
    before = yield from find(earlier)
    # What runs for another reason than a jump does so after the change as well.
    after = yield from find(later, before.starts)
    # Whoever may read the entries that would change may read what they would hold.
    programs = part.programs.keys() | {*entries.after}
    sentences = _Sentences(graph, part, frozenset(programs), before, after, is_made=is_made)
    return [*sentences.unreached(array_id, entries), *sentences.empty(), *sentences.cycles(), *sentences.chain()]


def _with_entries(node: ArrayNode, entries: EntryChanges, programs: "array[int]") -> Generator[None, None, ArrayNode]:
    """Return the node with these programs in the entries that change."""
    assert node.table is not None  # else nothing is known of what changes
    table = array(node.table.typecode, node.table)
    changed = zip(entries.indexes, programs, strict=True)
    while some := list(islice(changed, _ENTRIES_PER_STEP)):
        for index, program in some:
            table[index] = program
        yield
    return (yield from node.with_table(table))


class _Sentences:
    """Tells the differences between two findings."""

    def __init__(
        self,
        graph: Graph,
        part: Graph,
        programs: frozenset[int],
        before: Findings,
        after: Findings,
        *,
        is_made: bool,
    ) -> None:
        self._graph, self._part, self._programs = graph, part, programs
        self._before, self._after, self._is_made = before, after, is_made

    def _program(self, id_: int) -> str:
        node = self._graph.programs.get(id_)
        name = None if node is None else node.name or node.loaded.name
        return f"program {id_}" if name is None else f"program {name!r} ({id_})"

    def _array(self, id_: int) -> str:
        node = self._graph.arrays[id_]
        return repr(node.name or node.loaded.name or id_)

    def unreached(self, array_id: int, entries: EntryChanges) -> Iterator[str]:
        """Tell entries with a program to which nothing would lead."""
        changed = {*entries.indexes}
        for id_, reasons in self._after.unreached_entries.items():
            if id_ not in self._part.arrays:
                continue
            was = {index for each in self._before.unreached_entries.get(id_, {}).values() for index in each}
            for reason, indexes in reasons.items():
                new = [
                    index
                    for index in indexes
                    if index not in was
                    and (self._part.arrays[id_].get(index) or (id_ == array_id and index in changed))
                ]
                if new:
                    entry = f"entry {new[0]}" if len(new) == 1 else f"entries {_listed(new)}"
                    is_not = "would not be" if not self._is_made else "is not" if len(new) == 1 else "are not"
                    yield f"{entry} of {self._array(id_)} {is_not} reached: {_WHY[reason]}"

    def empty(self) -> Iterator[str]:
        """Tell jumps to entries that are empty then."""
        is_ = "is" if self._is_made else "would be"
        was = {(each.edge.program, each.edge.array, each.index) for each in self._before.empty_jumps}
        for each in self._after.empty_jumps:
            edge = each.edge
            is_seen = edge.program in self._part.programs and edge.array in self._part.arrays
            if is_seen and (edge.program, edge.array, each.index) not in was:
                yield (
                    f"{self._program(edge.program)} jumps to entry {each.index} of {self._array(edge.array)}, which "
                    f"{is_} empty: the jump falls through"
                )

    def cycles(self) -> Iterator[str]:
        """Tell programs that lead to each other then."""
        was = [{*each.programs} for each in self._before.cycles]
        for each in self._after.cycles:
            programs = {*each.programs}
            if any(programs <= old for old in was) or not programs <= self._programs:
                continue
            is_one, leads = len(programs) == 1, "might lead"
            if each.certain:
                leads = "would lead" if not self._is_made else "leads" if is_one else "lead"
            who = ", ".join(map(self._program, each.programs[:_MAX_LISTED]))
            who += ", …" if len(programs) > _MAX_LISTED else ""
            limit = f"the kernel makes {MAX_TAIL_CALL_CNT} jumps at most, and the next falls through"
            yield f"a cycle: {who} {leads} to {'itself' if is_one else 'each other'}; {limit}"

    def chain(self) -> Iterator[str]:
        """Tell a chain that is too long then."""
        old, new = self._before.longest_chain, self._after.longest_chain
        if new is None or not new.exceeds_limit or (old is not None and old.jumps >= new.jumps):
            return
        if {*new.programs} <= self._programs:
            first, last = self._program(new.programs[0]), self._program(new.programs[-1])
            yield (
                f"a chain of {new.jumps} jumps from {first} to {last}: the kernel makes {MAX_TAIL_CALL_CNT} at most, "
                "and the next falls through"
            )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_MAX_LISTED])) + (", …" if len(numbers) > _MAX_LISTED else "")
