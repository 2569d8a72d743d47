"""The table of a run: its rows, in Markdown, and their place in the README beside this file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parent / "README.md"


@dataclass(frozen=True)
class Row:
    """One line. `goal`: as text, "" for none; `reached`: whether it was.

    `speed`: how many times as fast as `peer`, or as small, and `goal_speed` the least of it that the goal asks for;
    None: there is no peer, or no such goal.
    """

    work: str
    figures: str
    ratio: float | None = None
    peer: str = ""
    goal: str = ""
    reached: bool = True
    speed: float | None = None
    goal_speed: float | None = None


def told(value: float, unit: str) -> str:
    """A figure, to read. `unit`: "/s", "B" or "s"."""
    if unit == "/s":
        return f"{value:,.0f} /s"
    if unit == "B":
        return f"{value / 1e6:,.0f} MB"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = ["| work | medians | ratio | goal |", "|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x {row.peer}"
        goal = row.goal + ("" if row.reached else " (not reached)")
        lines.append(f"| {row.work} | {row.figures} | {ratio} | {goal} |")
    return "\n".join(lines)


def write(name: str, block: str, file: Path = README) -> None:
    """Put this between `<!-- NAME -->` and `<!-- /NAME -->` of the file. ValueError where they are not there once."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = file.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        message = f"{file} has to have {begin} and {end}, once each"
        raise ValueError(message)
    before, after = text.partition(begin)[0], text.partition(end)[2]
    file.write_text(f"{before}{begin}\n{block}\n{end}{after}")
