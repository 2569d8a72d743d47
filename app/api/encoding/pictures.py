"""Pictures of the graph, as text for Graphviz (dot) and for Mermaid.

A picture has the programs that jump or are jumped to, the arrays with their entries, and what is attached. What is
dashed may happen: the code leaves it open. What is red goes nowhere, or is never reached.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from app.service.graph.findings import Findings
from app.service.graph.graph import ArrayNode, Edge, Graph
from app.store.records import EMPTY

MAX_DRAWN: Final = 100  # programs, beyond which those that end a chain are only named in the entries: see `_Selection`
_MAX_ROWS: Final = 64  # entries of one array that are drawn
_MAX_LISTED: Final = 8  # indexes at one arrow


@dataclass(frozen=True, slots=True)
class _Selection:
    """What a picture shows.

    Graphviz lays out 50 programs in 0.3 s and 200 in a minute. So in a larger graph a program that neither jumps nor is
    attached is no node of its own; the entries that point to it have its name.

    Attributes:
        graph: The graph.
        programs: The programs that are nodes, by id.
        never: The programs that are never reached.
        hit: By the id of the array, whether an entry is reached.
    """

    graph: Graph
    programs: frozenset[int]
    never: frozenset[int]
    unreached: dict[int, frozenset[int]]

    @classmethod
    def of(cls, graph: Graph, findings: Findings) -> "_Selection":
        jumping = {edge.program for edge in graph.edges}
        drawn = jumping.union(*(node.programs for node in graph.arrays.values())) & graph.programs.keys()
        if len(drawn) > MAX_DRAWN:
            drawn &= jumping | {each.program for each in graph.attachments}
        unreached = {
            id_: frozenset(index for indexes in reasons.values() for index in indexes)
            for id_, reasons in findings.unreached_entries.items()
        }
        return cls(graph, frozenset(drawn), frozenset(findings.unreached_programs), unreached)

    def name(self, program: int) -> str:
        """Return how a program is called in the picture."""
        node = self.graph.programs.get(program)
        return f"#{program}" if node is None else node.name or node.loaded.name or f"#{program}"

    def rows(self, node: ArrayNode) -> list[tuple[int, int]]:
        """Return (index, id of the program) of the entries that are drawn."""
        return node.filled(_MAX_ROWS)

    def attachments(self) -> Iterator[tuple[str, int]]:
        """Yield (where, id of the program) of what is attached."""
        for each in self.graph.attachments:
            if each.program in self.programs:
                namespace = f" ({each.namespace})" if each.namespace else ""
                yield f"{each.kind} {each.where or f'link {each.link}'}{namespace}", each.program


def dot(graph: Graph, findings: Findings) -> str:
    """Return the graph in the language of Graphviz."""
    selection = _Selection.of(graph, findings)
    lines = [
        "digraph jumps {",
        "  rankdir=LR; bgcolor=white;",
        '  node [fontname="sans-serif" fontsize=11]; edge [fontname="sans-serif" fontsize=9 color="#475569"];',
    ]
    for number, (where, program) in enumerate(selection.attachments()):
        lines.append(f'  a{number} [shape=cds style=filled fillcolor="#dbeafe" label={_quoted(where)}];')
        lines.append(f"  a{number} -> p{program};")
    for program in sorted(selection.programs):
        color = "#fee2e2" if program in selection.never else "#f1f5f9"
        label = _quoted(selection.name(program))
        lines.append(f'  p{program} [shape=box style="rounded,filled" fillcolor="{color}" label={label}];')
    for id_, node in graph.arrays.items():
        lines += _dot_array(selection, id_, node)
    for edge in graph.edges:
        node = graph.arrays[edge.array]
        drawn = {index for index, _ in selection.rows(node)}
        for index, label, is_empty in _arrows(edge, node, drawn):
            style = ' color="#dc2626" fontcolor="#dc2626"' if is_empty else ""
            style += "" if edge.certain else " style=dashed"
            port = "name" if index is None else f"i{index}"
            lines.append(f"  p{edge.program} -> m{edge.array}:{port} [label={_quoted(label)}{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_array(selection: _Selection, id_: int, node: ArrayNode) -> Iterator[str]:
    """Yield the lines of an array: a table with a row for each entry, and an arrow from each."""
    name = _markup(node.name or node.loaded.name or f"#{id_}")
    unreached = selection.unreached.get(id_, frozenset())
    rows = [f'<tr><td port="name" bgcolor="#e2e8f0"><b>{name}</b> [{node.loaded.max_entries}]</td></tr>']
    drawn = selection.rows(node)
    for index, program in drawn:
        color = "#fee2e2" if index in unreached else "#dcfce7"
        text = str(index) if program in selection.programs else f"{index}: {_markup(selection.name(program))}"
        rows.append(f'<tr><td port="i{index}" bgcolor="{color}">{text}</td></tr>')
    more = _more(node, len(drawn))
    if more:
        rows.append(f"<tr><td>{more}</td></tr>")
    table = f'<table border="0" cellborder="1" cellspacing="0">{"".join(rows)}</table>'
    yield f"  m{id_} [shape=plain label=<{table}>];"
    for index, program in drawn:
        if program in selection.programs:
            yield f"  m{id_}:i{index} -> p{program};"


def mermaid(graph: Graph, findings: Findings) -> str:
    """Return the graph as a flowchart of Mermaid."""
    selection = _Selection.of(graph, findings)
    lines = ["flowchart LR"]
    for number, (where, program) in enumerate(selection.attachments()):
        lines.append(f"  a{number}>{_escaped(where)}] --> p{program}")
    for program in sorted(selection.programs):
        lines.append(f"  p{program}({_escaped(selection.name(program))})")
        if program in selection.never:
            lines.append(f"  style p{program} fill:#fee2e2,stroke:#dc2626")
    for id_, node in graph.arrays.items():
        drawn = selection.rows(node)
        title = f"{node.name or node.loaded.name or f'#{id_}'} [{node.loaded.max_entries}]"
        named = [f"{index}: {selection.name(each)}" for index, each in drawn if each not in selection.programs]
        more = _more(node, len(drawn))
        lines.append(f"  m{id_}[({_escaped(title, *named, *([more] if more else []))})]")
        by_program: dict[int, list[int]] = {}
        for index, program in drawn:
            if program in selection.programs:
                by_program.setdefault(program, []).append(index)
        for program, indexes in by_program.items():
            lines.append(f"  m{id_} -->|{_escaped(_listed(indexes))}| p{program}")
    for edge in graph.edges:
        arrow = "-->" if edge.certain else "-.->"
        node = graph.arrays[edge.array]
        for _, label, is_empty in _arrows(edge, node, ()):
            text = f"{label}: empty" if is_empty else label
            lines.append(f"  p{edge.program} {arrow}|{_escaped(text)}| m{edge.array}")
    return "\n".join(lines) + "\n"


def _arrows(edge: Edge, node: ArrayNode, rows: Iterable[int]) -> Iterator[tuple[int | None, str, bool]]:
    """Yield the arrows of a jump: (the entry that one leads to, or None for the array itself; its text; goes nowhere).

    `rows`: the entries that are drawn. Each index that has one gets an arrow of its own.
    """
    if edge.indexes is None:
        yield None, "any", False
        return
    filled: Callable[[int], bool] = lambda index: node.table is None or node.get(index) != EMPTY  # noqa: E731
    drawn = {*rows}
    for index in edge.indexes:
        if index in drawn:
            yield index, "", False
    rest = [index for index in edge.indexes if index not in drawn]
    for is_empty in (False, True):
        indexes = [index for index in rest if filled(index) is not is_empty]
        if indexes:
            yield None, _listed(indexes), is_empty


def _listed(indexes: list[int]) -> str:
    """Return indexes as text, runs as `0-3`."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(texts[:_MAX_LISTED]) + (", …" if len(texts) > _MAX_LISTED else "")


def _more(node: ArrayNode, drawn: int) -> str:
    """Return what stands below the entries that are drawn."""
    if node.table is None:
        return "not readable"
    left = node.used - drawn
    return f"and {left} more" if left else "" if drawn else "empty"


def _quoted(text: str) -> str:
    """Return a text for dot, in quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _markup(text: str) -> str:
    """Return a text within the markup of a label."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(*lines: str) -> str:
    """Return lines of text for Mermaid, in quotes."""
    text = "<br/>".join(_markup(line.replace("#", "#35;")).replace('"', "#quot;") for line in lines)
    return f'"{text}"'
