"""What a caller with bounds gets to see: only what is within them.

A change or an event is shown as far as it concerns entries within the bounds. Where it concerns none of them, it does
not exist for this caller. An entry within the bounds tells the program that it points to, whichever that is.
"""

from array import array
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any

from app.access.rights import Grant
from app.service.drift.detector import DriftedEntry
from app.service.graph.graph import Graph
from app.store.number_arrays import NUMBERS
from app.store.records import Change, Event


def visible_change(grant: Grant, change: Change) -> Change | None:
    """Return a change with the entries that the caller may see. None: it may see none of them.

    It is the same object where the caller may see all of it.
    """
    if not grant.has_map(change.map):
        return None
    if grant.entries is None:
        return change
    mask = grant.entries.mask(change.entries.indexes)
    if 1 not in mask:
        return None
    return change if 0 not in mask else replace(change, entries=change.entries.chosen(mask))


def visible_entries(grant: Grant, ids: "array[int]") -> "array[int]":
    """Return a table with the entries that the caller may see, and the others empty.

    Args:
        grant: Of the caller.
        ids: By index, the id of the program that each entry points to; 0 for an empty entry.
    """
    if grant.entries is None:
        return ids
    shown = array(NUMBERS, bytes(4 * len(ids)))
    for part in grant.entries.slices(len(ids)):
        shown[part] = ids[part]
    return shown


def visible_drift(grant: Grant, drift: Iterable[DriftedEntry]) -> list[DriftedEntry]:
    """Return the drifted entries that the caller may see."""
    return [each for each in drift if grant.has_entry(each.index)]


def visible_graph(grant: Grant, graph: Graph) -> Generator[None, None, Graph]:
    """Return the part of the graph that the caller may see, when the steps end.

    Callers without bounds see all that is loaded. Others see the maps that they may read, the programs in the entries
    that they may read, and the programs within their bounds that jump there.
    """
    if grant.maps is None and grant.entries is None and grant.programs is None:
        return graph
    arrays = {}
    for id_, node in graph.arrays.items():
        if node.name is None or not grant.has_map(node.name):
            continue
        table = None if node.table is None or grant.entries is None else visible_entries(grant, node.table)
        arrays[id_] = node if table is None else (yield from node.with_table(table))
    programs = {id_ for id_, node in graph.programs.items() if grant.has_program(node.name)}
    programs.update(*(node.programs for node in arrays.values()))
    edges = []
    for edge in graph.edges:
        indexes = None if edge.indexes is None else tuple(filter(grant.has_entry, edge.indexes))
        if edge.array in arrays and edge.program in programs and indexes != ():
            edges.append(replace(edge, indexes=indexes))
    programs = {edge.program for edge in edges}.union(*(node.programs for node in arrays.values()))
    return replace(graph, edges=tuple(edges), arrays=arrays).limited(programs, arrays)


def event_view(grant: Grant) -> Callable[[Event], Event | None] | None:
    """Return what makes of the events of maps that the caller may see what it gets of them. None: it gets all of them.

    The function is for one stream: it remembers what its reader knows.
    """
    if grant.entries is None:
        return None
    quiet: set[str] = set()  # maps of which the reader knows that nothing within its bounds has drifted

    def view(event: Event) -> Event | None:
        if event.change is not None:
            change = visible_change(grant, event.change)
            return event if change is event.change else None if change is None else replace(event, change=change)
        if event.type != "drift":
            # The confirmation or expiry of a change that was pruned does not tell its entries.
            return None if event.type in {"confirmed", "expired"} else event
        event = _visible_drift_event(grant, event)
        name, count = event.map or "", (event.data or {})["count"]
        if not count and name in quiet:
            return None
        quiet.difference_update({name}) if count else quiet.add(name)
        return event

    return view


def _visible_drift_event(grant: Grant, event: Event) -> Event:
    data, entries = event.data or {}, grant.entries
    assert entries is not None
    shown = [each for each in data["drift"] if each["index"] in entries]
    runs = data.get("runs")
    count = len(shown) if runs is None else sum(entries.count(first, last) for first, last in runs)
    return replace(event, data={"map": data["map"], "count": count, "drift": shown})


def event_data(event: Event) -> dict[str, Any]:
    """Return the facts of an event without those that only `event_view` needs."""
    return {name: value for name, value in (event.data or {}).items() if name != "runs"}
