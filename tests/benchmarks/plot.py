"""The pictures of a run, as SVG that is readable on light and on dark."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from tests.benchmarks.curves import MEMORY, Curve
from tests.benchmarks.table import Row, told

_STYLE = """<style>
.ground { fill: #ffffff } text { fill: #1f2328; font: 12px sans-serif } .faint { fill: #59636e }
.grid { stroke: #d1d9e0 } .peer { stroke: #1f2328 } .goal { stroke: #1f2328; stroke-width: 3 }
.reached { fill: #2f81d6 } .missed { fill: #d9822b }
.line { fill: none; stroke-width: 2 } .linear { stroke: #59636e; stroke-dasharray: 3 4 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117 } text { fill: #f0f6fc } .faint { fill: #9198a1 }
  .grid { stroke: #3d444d } .peer, .goal { stroke: #f0f6fc } .linear { stroke: #9198a1 }
}
</style>"""
_COLOURS = ("#2f81d6", "#d9822b", "#2ea06b", "#b065d6", "#c9506b")

Point = tuple[float, float]


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">\n{_STYLE}\n'
        f'<rect class="ground" width="{width:g}" height="{height:g}" rx="6"/>\n{inside}\n</svg>\n'
    )


def _text(at: Point, text: str, anchor: str = "start", kind: str = "", colour: str = "") -> str:
    style = f' style="fill: {colour}"' if colour else ""
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" class="{kind}"{style}>{escape(text)}</text>'


def _line(begin: Point, end: Point, kind: str) -> str:
    return f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" class="{kind}"/>'


def bars(rows: Iterable[Row]) -> str:
    """How many times as fast as its peer each work is, on a logarithmic axis, with the goals."""
    shown = [row for row in rows if row.speed is not None]
    speeds = [each for row in shown for each in (row.speed, row.goal_speed, 1.0) if each is not None]
    low, high = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)))
    left, width, top, step = 470.0, 300.0, 60.0, 22.0
    bottom = top + step * len(shown)

    def x(speed: float) -> float:
        return left + (math.log10(speed) - low) / max(1, high - low) * width

    parts = [
        _text((12, 22), "How many times as fast as its peer, or as small: to the right is better."),
        _text((12, 40), "Line at 1: as the peer. Thick mark: the goal; orange: not reached.", kind="faint"),
    ]
    for power in range(low, high + 1):
        parts.append(_line((x(10.0**power), top), (x(10.0**power), bottom), "grid"))
        parts.append(_text((x(10.0**power), bottom + 16), f"{10.0**power:g}", "middle", "faint"))
    for number, row in enumerate(shown):
        assert row.speed is not None
        y = top + step * number
        begin, end = sorted((x(1.0), x(row.speed)))
        kind = "reached" if row.reached else "missed"
        parts.append(_text((left - 10, y + 15), row.work, "end"))
        parts.append(
            f'<rect class="{kind}" x="{begin:.1f}" y="{y + 4:.1f}" '
            f'width="{max(1, end - begin):.1f}" height="{step - 8:g}"/>'
        )
        parts.append(_text((left + width + 12, y + 15), f"{row.speed:.2g} x {row.peer}", kind="faint"))
        if row.goal_speed is not None:
            parts.append(_line((x(row.goal_speed), y + 2), (x(row.goal_speed), y + step - 2), "goal"))
    parts.append(_line((x(1.0), top), (x(1.0), bottom), "peer"))
    return _svg(left + width + 150, bottom + 30, parts)


def curves(found: Sequence[Curve]) -> str:
    """Time to the left, memory to the right, a line of panels for each curve; both axes logarithmic."""
    width, height = 430.0, 230.0
    parts = [_text((12, 22), "Both axes are logarithmic. Dashed: what is linear.")]
    for number, curve in enumerate(found):
        names = [name for name in curve.points[0][1] if name != MEMORY]
        at = 34 + number * height
        parts += _panel((0, at), curve, names, "s")
        parts += _panel((width, at), curve, [MEMORY], "B")
    return _svg(2 * width, 34 + height * len(found), parts)


def _panel(corner: Point, curve: Curve, names: list[str], unit: str) -> list[str]:
    left, top, width, height = corner[0] + 70, corner[1] + 40, 330.0, 140.0
    numbers = [number for number, _ in curve.points]
    values = [figures[name] for _, figures in curve.points for name in names]
    first, decades = math.log10(numbers[0]), math.log10(numbers[-1] / numbers[0])
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values) * 1.01))

    def at(number: float, value: float) -> Point:
        x = left + (math.log10(number) - first) / decades * width
        return x, top + height - (math.log10(value) - low) / (high - low) * height

    parts = []
    for power in range(low, high + 1):
        begin = at(numbers[0], 10.0**power)
        parts.append(_line(begin, (left + width, begin[1]), "grid"))
        parts.append(_text((left - 6, begin[1] + 4), told(10.0**power, unit), "end", "faint"))
    parts += [_text((at(each, 1.0)[0], top + height + 16), f"{each:,}", "middle", "faint") for each in numbers]
    parts.append(_text((left + width / 2, top + height + 32), curve.of, "middle"))
    rise = min(decades, high - low)
    parts.append(_line(at(numbers[0], 10.0**low), at(numbers[0] * 10**rise, 10.0 ** (low + rise)), "line linear"))
    legend = left
    for name, colour in zip(names, _COLOURS, strict=False):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(number, each[name]) for number, each in curve.points))
        parts.append(f'<polyline class="line" style="stroke: {colour}" points="{points}"/>')
        parts.append(_text((legend, top - 10), name, colour=colour))
        legend += 7 * len(name) + 14
    return parts
