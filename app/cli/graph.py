"""The command `jumptable graph`: which programs jump where."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, Literal

import click

from app.cli.options import MAP, PROGRAM, connects, outputs
from app.cli.output import Cell, as_json, plural, say
from app.client import Client

_MAX_LINES: Final = 20  # entries of one array that are shown
_INDENT: Final = "   "
_MAX_DEPTH: Final = 80  # indents: 40 programs below each other. The kernel makes 33 jumps for a packet
_WHY: Final = {
    "no-caller": "no loaded program jumps through the array",
    "no-jump": "no loaded program jumps there",
    "not-reached": "only programs do that are never reached themselves",
}


@click.command("graph", epilog="Example: jumptable graph -o dot | dot -Tsvg > graph.svg")
@click.option("--map", "map_", type=MAP, metavar="MAP", help="Only what is connected with this map.")
@click.option("--program", type=PROGRAM, metavar="NAME", help="Only what is connected with this program.")
@connects
@outputs("json", "dot", "mermaid")
def graph_command(
    client: Client, map_: str | None, program: str | None, output: Literal["json", "dot", "mermaid"] | None
) -> None:
    """Show which programs jump into which entries, and what is wrong with that.

    It begins with the programs that are attached, or that no entry leads to.
    """
    if output == "dot" or output == "mermaid":  # noqa: PLR1714 - so that the type checker knows
        click.echo(client.draw_graph(output, map=map_, program=program).rstrip("\n"))
        return
    graph = client.get_graph(map=map_, program=program)
    if output == "json":
        click.echo(as_json(graph, indent=2))
        return
    picture = Picture(graph)
    for line in picture.lines():
        say(*line)
    for finding, style in picture.findings():
        say(Cell(finding, style))


class Picture:
    """A graph as text: each program once, with the arrays that it jumps through below it, and their entries."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self._graph = graph
        self._programs: dict[int, dict[str, Any]] = {each["id"]: each for each in graph["programs"]}
        self._arrays: dict[int, dict[str, Any]] = {each["id"]: each for each in graph["arrays"]}
        self._edges: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for edge in graph["edges"]:
            self._edges[edge["program"]].append(edge)
        self._places: dict[int, list[str]] = defaultdict(list)
        for each in graph["attachments"]:
            self._places[each["program"]].append(" ".join(filter(None, (each["kind"], each["where"]))))
        self._shown: set[int] = set()

    def lines(self) -> Iterator[list[str | Cell]]:
        """Yield the lines of the picture, in their parts."""
        inside = {entry["program"] for array in self._arrays.values() for entry in array["entries"] or ()}
        attached = [id_ for id_ in self._programs if id_ in self._places]
        first = [id_ for id_ in self._edges if id_ not in inside and id_ not in self._places]
        rest = [id_ for id_ in self._edges if id_ in inside]  # of cycles that nothing leads to, and what is too deep
        for id_ in (*attached, *first, *rest):
            if id_ not in self._shown and id_ in self._programs:
                yield from self._program(id_, "", "")
        if not self._shown:
            yield ["No program jumps through an array."]

    def _program(self, id_: int, indent: str, entry: str) -> Iterator[list[str | Cell]]:
        places = f"  attached: {', '.join(self._places[id_])}" if id_ in self._places else ""
        has_jumps, is_deep = bool(self._edges.get(id_)), len(indent) >= _MAX_DEPTH * len(_INDENT)
        again = "" if not has_jumps else "  (above)" if id_ in self._shown else "  (below)" if is_deep else ""
        yield [f"{indent}{entry}", Cell(self._name(id_), "bold"), Cell(places, "green"), Cell(again, "dim")]
        if id_ in self._shown or (is_deep and has_jumps):
            return
        self._shown.add(id_)
        for edge in self._edges.get(id_, ()):
            yield from self._edge(edge, indent + _INDENT)

    def _edge(self, edge: dict[str, Any], indent: str) -> Iterator[list[str | Cell]]:
        array, indexes = self._arrays.get(edge["array"]), edge["indexes"]
        name = self._array(edge["array"])
        if array is None or array["entries"] is None:
            yield [f"{indent}→ {name}, whose entries could not be read"]
            return
        by_index = {each["index"]: each["program"] for each in array["entries"]}
        which = "any entry" if indexes is None else f"{'entry' if len(indexes) == 1 else 'entries'} {_listed(indexes)}"
        maybe = "" if edge["certain"] or indexes is None else ", maybe"
        yield [f"{indent}→ {name}, {which}{maybe}"]
        leads = sorted(by_index) if indexes is None else indexes
        width = len(str(max(leads, default=0)))
        for index in leads[:_MAX_LINES]:
            if index in by_index:
                yield from self._program(by_index[index], indent + _INDENT, f"{index:>{width}}  ")
            else:
                yield [f"{indent}{_INDENT}{index:>{width}}  ", Cell("empty: falls through", "yellow")]
        if len(leads) > _MAX_LINES:
            yield [f"{indent}{_INDENT}… and {len(leads) - _MAX_LINES:,} more"]

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield what follows from the graph, a line each, and its colour."""
        graph = self._graph
        for jump in graph["empty_jumps"]:
            what = "beyond the end" if jump["reason"] == "out-of-range" else "empty"
            maybe = "" if jump["certain"] else ", maybe"
            target = f"{self._array(jump['array'])} {jump['index']}"
            yield f"falls through: {self._name(jump['program'])} → {target} ({what}{maybe})", "yellow"
        for entries in graph["unreached"]["entries"]:
            number, array = plural(entries["count"], "entry"), self._array(entries["array"])
            yield (
                f"never reached: {number} of {array} ({_listed(entries['indexes'])}): {_WHY[entries['reason']]}",
                "yellow",
            )
        for cycle in graph["cycles"]:
            names = [*cycle["programs"], *cycle["programs"][:1]]
            maybe = "" if cycle["certain"] else ", maybe"
            yield f"a cycle{maybe}: {' → '.join(map(self._name, names))}", "red"
        chain = graph["longest_chain"]
        if chain is not None:
            ids = chain["programs"]
            shown = ids if len(ids) <= _MAX_LINES else [*ids[:3], None, *ids[-2:]]
            way = " → ".join("…" if id_ is None else self._name(id_) for id_ in shown)
            style = "red" if chain["exceeds_limit"] else "dim"
            beyond = ": those beyond fall through" if chain["exceeds_limit"] else ""
            yield f"longest chain: {plural(chain['jumps'], 'jump')} of {chain['limit']}{beyond}: {way}", style
        for sentence in graph["unseen"]:
            yield f"not seen: {sentence}", "dim"

    def _name(self, id_: int) -> str:
        program = self._programs.get(id_, {})
        name: str | None = program.get("name")
        return name or f"{program.get('kernel_name') or 'program'} (id {id_})"

    def _array(self, id_: int) -> str:
        array = self._arrays.get(id_, {})
        name: str | None = array.get("name")
        return name or f"{array.get('kernel_name') or 'array'} (id {id_})"


def _listed(indexes: list[int]) -> str:
    """Return indexes with their ranges, such as 0-3, 7. Of many ranges, only the first."""
    ranges: list[list[int]] = []
    for index in indexes:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MAX_LINES]]
    return ", ".join(texts) + (", …" if len(ranges) > _MAX_LINES else "")
