"""What a run leaves: the table in the README, and the pictures."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks import plot, table
from tests.benchmarks.curves import Curve
from tests.benchmarks.table import Row

ROWS = [
    Row("memory", "ours 100 MB"),
    Row("set", "ours 50 /s, Go 100 /s", 0.5, "Go", "≥ 1", reached=False, speed=0.5, goal_speed=1.0),
    Row("list <64>", "ours 2 s, Go 4 s", 0.5, "Go", "≤ 0.6", speed=2.0, goal_speed=1 / 0.6),
]


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_goal_that_is_not_reached_is_marked() -> None:
    assert table.markdown(ROWS).splitlines()[2:] == [
        "| memory | ours 100 MB |  |  |",
        "| set | ours 50 /s, Go 100 /s | 0.50 x Go | ≥ 1 (not reached) |",
        "| list <64> | ours 2 s, Go 4 s | 0.50 x Go | ≤ 0.6 |",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(12345.6, "/s", "12,346 /s"), (0.0123, "s", "12.3 ms"), (4.2e-5, "s", "42 µs"), (12.0, "s", "12 s"),
     (1.2e8, "B", "120 MB")],
)  # fmt: skip
def test_figures_are_told_in_their_unit(value: float, unit: str, said: str) -> None:
    assert table.told(value, unit) == said


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- run -->\nold\n<!-- /run -->\nafter\n")
    for block in ("longer than it was", "new"):
        table.write("run", block, file)
    assert file.read_text() == "before\n<!-- run -->\nnew\n<!-- /run -->\nafter\n"


@pytest.mark.parametrize("text", ["none", "<!-- run -->", "<!-- /run --> <!-- run -->", "<!-- run -->" * 2])
def test_without_the_marks_nothing_is_written(text: str, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match="once each"):
        table.write("run", "new", file)
    assert file.read_text() == text


def test_the_readme_has_the_marks() -> None:
    readme = table.README.read_text()
    for name in ("benchmarks", "pure Python", "curves"):
        assert readme.count(f"<!-- {name} -->") == readme.count(f"<!-- /{name} -->") == 1


def test_the_bars_are_of_what_has_a_peer() -> None:
    svg = plot.bars(ROWS)
    said = texts(svg)
    assert "memory" not in said
    assert {"set", "list <64>", "0.5 x Go", "2 x Go"} <= set(said)
    assert svg.count('class="missed"') == svg.count('class="reached"') == 1
    assert "prefers-color-scheme: dark" in svg


def test_a_curve_tells_its_growth() -> None:
    points = [(10, {"set": 1e-3, "memory": 1e8}), (1000, {"set": 1e-3, "memory": 1e10})]
    curve = Curve("entries", points)
    assert curve.markdown().splitlines()[-1] == "| growth | 0.00 | 1.00 |"
    assert {"set", "memory", "entries", "10", "1,000"} <= set(texts(plot.curves([curve])))
