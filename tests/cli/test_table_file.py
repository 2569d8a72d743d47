"""Files of tables: what is read, and what is told of mistakes."""

import json

import pytest

from app.cli.table_file import TableFileError, read_tables

TABLES = {"jump_table": {0: "pass", 3: {"pinned": "/sys/fs/bpf/drop"}, 7: {"id": 812}}, "second": {1: "tx"}}

YAML = """
maps:
  jump_table:
    0: pass      # with a comment
    3: {pinned: /sys/fs/bpf/drop}
    7:
      id: 812
  second: {1: tx}
"""
TOML = """
[maps.jump_table]
0 = "pass"
3 = { pinned = "/sys/fs/bpf/drop" }
7.id = 812
[maps.second]
1 = "tx"
"""
JSON = json.dumps({"maps": TABLES})


@pytest.mark.parametrize(("text", "ending"), [(YAML, "yaml"), (YAML, "yml"), (TOML, "toml"), (JSON, "json")])
def test_the_three_formats_say_the_same(text: str, ending: str) -> None:
    assert read_tables(text, f"tables.{ending}") == TABLES
    assert read_tables(text, "standard input") == TABLES


def test_the_order_of_the_file_is_kept() -> None:
    table = read_tables("maps: {jump_table: {9: a, 2: b, 5: c}}", "t.yaml")["jump_table"]
    assert list(table) == [9, 2, 5]


def test_several_documents_of_yaml_are_several_tables() -> None:
    text = "map: a\nentries: [{index: 1, program: drop}]\n---\nmaps: {b: {2: pass}}\n---\n"
    assert read_tables(text, "t.yaml") == {"a": {1: "drop"}, "b": {2: "pass"}}


def test_null_is_an_empty_entry_and_an_empty_mapping_an_empty_table() -> None:
    assert read_tables("maps:\n  a: {1: null, 2: ~}\n  b: {}\n  c:\n", "t.yaml") == {
        "a": {1: None, 2: None},
        "b": {},
        "c": {},
    }


@pytest.mark.parametrize("name", ["no", "on", "1.5", "1e3", "2026-11-22", "0x10"])
def test_yaml_takes_names_for_names(name: str) -> None:
    assert read_tables(f"maps: {{a: {{1: {name}}}}}", "t.yaml") == {"a": {1: name}}


def test_what_get_answers_is_a_table() -> None:
    program = {"name": None, "id": 812, "type": "xdp", "tag": "46728abc63e3a679", "kernel_name": "x", "loaded_at": None}
    entry = {"map": "a", "index": 3, "etag": '"1"', "program": program, "waiting": None}
    answer = {"map": "a", "max_entries": 16, "etag": '"1"', "entries": [entry], "next": None}
    assert read_tables(json.dumps(answer), "-") == {"a": {3: {"id": 812}}}
    with pytest.raises(TableFileError, match="it is a page of a table"):
        read_tables(json.dumps(answer | {"next": 4}), "-")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("maps:\n  a:\n   - x\n   y", "line 5, column 1: it is no YAML: ", id="yaml"),
        pytest.param("maps: {a: {1: b\n", "line 2, column 1: it is no YAML: ", id="end"),
        pytest.param("maps:\n\ta: 1", "line 2, column 1: it is no YAML: ", id="tab"),
        pytest.param("maps: {a: {1: b, 1: c}}", "line 1, column 18: it is no YAML: '1' is listed twice", id="twice"),
        pytest.param('{"maps": {"a": {"1": "b", "1": "c"}}}', "'1' is listed twice; list it once", id="json twice"),
        pytest.param('{"maps": ', "line 1, column 10: it is no JSON: ", id="json"),
        pytest.param("maps: {a: {010: b}}", "a: '010' is no index; write a decimal number, 0 or more", id="octal"),
        pytest.param("maps: {a: {-1: b}}", "a: '-1' is no index", id="negative"),
        pytest.param("maps: {a: [b, c]}", "map 'a': it is no mapping from index to program; ", id="list"),
        pytest.param("maps: {a: {1: [b]}}", "a, entry 1: ['b'] is no program; write its name, ", id="reference"),
        pytest.param("maps: {a: {1: {nam: b}}}", "a, entry 1: {'nam': 'b'} is no program; ", id="slip"),
        pytest.param("map: {a: {1: b}}", "unknown: 'map'; a file of tables looks like this: ", id="no maps"),
        pytest.param("drop", "it is no mapping; a file of tables looks like this: ", id="text"),
        pytest.param("# none\n", "it has no table; a file of tables looks like this: ", id="empty"),
        pytest.param("maps: {a: {}}\n---\nmaps: {a: {}}", "map 'a' is listed twice; list it once", id="map twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(text: str, said: str) -> None:
    with pytest.raises(TableFileError) as error:
        read_tables(text, "t.yaml")
    assert str(error.value).startswith(f"t.yaml: {said}")
    assert "\n" not in str(error.value)


def test_toml_tells_where() -> None:
    with pytest.raises(TableFileError, match=r"t\.toml: it is no TOML: .*line 2"):
        read_tables("[maps.a]\n0 = pass\n", "t.toml")
