"""How answers are shown: tables and colours for people, JSON, YAML and bare names for scripts."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import click

from app.client.answers import ChangedEntry, ChangedProgram, EntryProgram

_MAX_STYLED_ROWS: Final = 1000  # rich takes 0.3 ms for each, and nobody reads more
MAX_ENTRIES_TOLD: Final = 3  # of a change, on one line
EMPTY: Final = "empty"
# Escaped in JSON too: characters that a terminal obeys, C1 controls and those that turn the direction of writing.
_OBEYED: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Cell(NamedTuple):
    """A cell of a table. `style`: a colour of rich, such as "red" or "bold"."""

    text: str
    style: str = ""


def show(output: str | None, answer: Any, names: Callable[[], Iterable[object]], people: Callable[[], None]) -> None:
    """Show an answer in the form that is asked for.

    Args:
        output: json, yaml, name, or None: for people.
        answer: What JSON and YAML show.
        names: What identifies each item, for `name`.
        people: Shows it to people.
    """
    if output == "json":
        click.echo(as_json(answer, indent=2))
    elif output == "yaml":
        import yaml  # noqa: PLC0415 - takes 15 ms

        click.echo(yaml.dump(answer, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False), nl=False)
    elif output == "name":
        click.echo("".join(f"{name}\n" for name in names()), nl=False)
    else:
        people()


def as_json(answer: Any, indent: int | None = None) -> str:
    """Return JSON. With no indent it is one line."""
    separators = None if indent else (",", ":")
    text = json.dumps(answer, indent=indent, separators=separators, ensure_ascii=False)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> None:
    """Print a table. Headers and columns are aligned; the last column may be long."""
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
    cells = [[Cell(printable(text), style) for text, style in row] for row in cells]
    if has_colours() and len(cells) <= _MAX_STYLED_ROWS:
        _styled_table(headers, cells)
        return
    lines = [[header.upper() for header in headers], *([text for text, _ in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
    click.echo(text, nl=False)


def _styled_table(headers: Sequence[str], cells: Sequence[Sequence[Cell]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - takes 30 ms, and scripts do not need it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        is_last = number == len(headers) - 1
        grid.add_column(header.upper(), no_wrap=not is_last, overflow="fold" if is_last else "ellipsis")
    for row in cells:
        grid.add_row(*(Text(text, style) for text, style in row))
    Console(highlight=False).print(grid)


def say(*parts: str | Cell, err: bool = False) -> None:
    """Print a line, of which parts may have a style."""
    cells = [each if isinstance(each, Cell) else Cell(each) for each in parts]
    if not has_colours():
        click.echo("".join(printable(text) for text, _ in cells), err=err)
        return
    click.echo("".join(click.style(printable(text), **_STYLES.get(style, {})) for text, style in cells), err=err)


_STYLES: Final[dict[str, dict[str, Any]]] = {
    "bold": {"bold": True},
    "dim": {"dim": True},
    "red": {"fg": "red"},
    "green": {"fg": "green"},
    "yellow": {"fg": "yellow"},
    "cyan": {"fg": "cyan"},
}


def has_colours() -> bool:
    """Return whether a person reads the output on a terminal that shows colours and wants them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return text in which a terminal finds nothing to obey: others may have written it, as a note for example."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


# Programs and entries


def program_text(program: EntryProgram | ChangedProgram | None) -> str:
    """Return a program in a word: its name before its pin, and its pin before its id."""
    if program is None:
        return EMPTY
    if program["name"] is not None:
        return program["name"]
    pinned = program.get("pinned")
    if isinstance(pinned, str):
        return pinned
    kernel_name = program.get("kernel_name")
    known = f" ({kernel_name})" if isinstance(kernel_name, str) else ""
    return f"tag {program['tag']}" if program["id"] is None else f"id {program['id']}{known}"


def entry_text(entry: ChangedEntry) -> str:
    """Return an entry of a change on one line: 3: pass → drop."""
    return f"{entry['index']}: {program_text(entry['before'])} → {program_text(entry['after'])}"


def entries_text(entries: Sequence[ChangedEntry], count: int | None = None) -> str:
    """Return the entries of a change on one line. Of many, only the first.

    Args:
        entries: The entries, or the first MAX_ENTRIES_TOLD of them.
        count: How many there are. None: these.
    """
    more = (len(entries) if count is None else count) - MAX_ENTRIES_TOLD
    shown = ", ".join(map(entry_text, entries[:MAX_ENTRIES_TOLD]))
    return f"{shown}, and {more:,} more" if more > 0 else shown


def show_warnings(answer: Mapping[str, Any]) -> None:
    """Print what the service warns of in the answer to a dry run."""
    for warning in answer.get("warnings", []):
        say(Cell(f"  warning: {warning}", "yellow"))


def show_difference(entries: Sequence[ChangedEntry], most: int | None = None) -> None:
    """Print what a change changes, an entry on each line."""
    width = len(str(max((entry["index"] for entry in entries), default=0)))
    for entry in entries[:most]:
        before, after = program_text(entry["before"]), program_text(entry["after"])
        style = "red" if entry["after"] is None else "green" if entry["before"] is None else "yellow"
        say(f"  {entry['index']:>{width}}  {before} → ", Cell(after, style))
    if most is not None and len(entries) > most:
        say(f"  … and {len(entries) - most:,} more")


# Times


def moment(text: str) -> datetime:
    """Return the moment that an answer has as text."""
    return datetime.fromisoformat(text)


def ago(text: str | None, now: datetime | None = None) -> str:
    """Return a time as people say it: "3 min ago", or "in 57 s"."""
    if text is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment(text)).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{length(seconds)} ago" if seconds > 0 else f"in {length(-seconds)}"


def length(seconds: float) -> str:
    """Return a length of time in its largest unit, such as "3 min"."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and unit == "min"):
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def plural(number: int, noun: str) -> str:
    """Return a number of things: "1 entry", "2 entries"."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"
