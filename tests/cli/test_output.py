"""How answers are shown."""

from datetime import UTC, datetime, timedelta

import pytest

from app.cli.output import ago, as_json, entries_text, plural, printable, program_text, table
from app.client.answers import ChangedProgram

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "now"), (1, "1 s ago"), (59, "59 s ago"), (60, "1 min ago"), (185, "3 min ago"), (7199, "119 min ago"),
        (7200, "2 h ago"), (86_400, "24 h ago"), (172_800, "2 d ago"), (-57, "in 57 s"), (-0.2, "now"),
    ],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == said


def test_a_terminal_finds_nothing_to_obey() -> None:
    assert printable("pass \x1b[2J\r\n\x9b1m\u202e") == "pass \\x1b[2J\\x0d\\x0a\\x9b1m\\x202e"
    assert as_json({"note": "\x9b\x7f\u202e ä"}) == '{"note":"\\u009b\\u007f\\u202e ä"}'


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, "empty"),
        ({"name": "drop", "id": 1, "tag": "t", "pinned": "/p"}, "drop"),
        ({"name": None, "id": 1, "tag": "t", "pinned": "/p"}, "/p"),
        ({"name": None, "id": 1, "tag": "t", "pinned": None}, "id 1"),
        ({"name": None, "id": None, "tag": "t", "pinned": None}, "tag t"),
        ({"name": None, "id": 1, "tag": "t", "kernel_name": "xdp_drop"}, "id 1 (xdp_drop)"),
    ],
)
def test_a_program_has_its_name_before_its_pin_and_its_id(program: ChangedProgram | None, said: str) -> None:
    assert program_text(program) == said


def test_of_many_entries_only_the_first_are_on_the_line() -> None:
    entries = [{"index": index, "before": None, "after": None} for index in range(5)]
    assert entries_text(entries).endswith("2: empty → empty, and 2 more")  # type: ignore[arg-type]


def test_columns_are_aligned_and_lines_end_without_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    table(("map", "entries", ""), [("a", "1 of 16", ""), ("longer", "2", "x")])
    assert capsys.readouterr().out == "MAP     ENTRIES\na       1 of 16\nlonger  2        x\n"


def test_numbers_go_with_their_noun() -> None:
    assert [plural(1, "entry"), plural(0, "entry"), plural(65_536, "program")] == [
        "1 entry",
        "0 entries",
        "65,536 programs",
    ]
