"""The commands for object files and for the graph, against a transport that answers as these routes are documented."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import Command

PROGRAM = {
    "name": "parser.entry", "program": "entry", "section": "xdp", "type": "xdp", "attach_type": 37, "instructions": 12,
    "id": 812, "pins": [],
}  # fmt: skip
MAP = {
    "name": "parser.jt", "map": "jt", "type": "prog_array", "key_size": 4, "value_size": 4, "max_entries": 8,
    "flags": 0, "use": None, "id": 41, "pins": [],
}  # fmt: skip
LOADED = {
    "name": "parser", "version": 2, "etag": '"2"', "file": None, "sha256": "ab12", "bytes": 4096,
    "loaded_at": "2026-11-22T15:04:05Z", "programs": [PROGRAM], "maps": [MAP], "previous": None, "state": "loaded",
    "reason": None, "warnings": ["its programs are pinned nowhere"],
}  # fmt: skip
ENTRY = {"index": 0, "before": None, "after": {"name": "parser.entry", "id": 812, "tag": "t", "pinned": None}}
CHANGE = {
    "id": 17, "at": "2026-11-22T15:04:05Z", "actor": "unix", "request_id": "r", "note": None, "map": "root",
    "kind": "set", "entries": [ENTRY], "confirm_by": None, "confirmed_by": None, "confirmed_at": None,
    "state": "applied", "reverts": None,
}  # fmt: skip
REFUSED = {
    "status": 422, "code": "object-refused",
    "detail": "the kernel refuses program 'entry': invalid access; see p.c:12: x",
    "source": {"file": "p.c", "line": 12, "text": "x"}, "instruction": {"index": 4, "text": "r0 = *(u8 *)(r1 +20)"},
    "log_tail": ["4: r0 = *(u8 *)(r1 +20)", "invalid access"],
}  # fmt: skip


def program(id_: int, name: str | None) -> dict[str, Any]:
    return {
        "id": id_, "name": name, "kernel_name": f"k{id_}", "type": "xdp", "attach_type": "xdp", "code": "read",
        "reached": "attached",
    }  # fmt: skip


def array(id_: int, name: str, entries: dict[int, int] | None) -> dict[str, Any]:
    listed = None if entries is None else [{"index": index, "program": each} for index, each in entries.items()]
    used = None if entries is None else len(entries)
    return {
        "id": id_, "name": name, "kernel_name": name, "max_entries": 16, "owner": None, "used": used, "entries": listed,
    }  # fmt: skip


def edge(from_: int, to: int, indexes: list[int] | None, *, certain: bool = True) -> dict[str, Any]:
    return {"program": from_, "array": to, "indexes": indexes, "certain": certain}


GRAPH: dict[str, Any] = {
    "programs": [program(1, "entry"), program(2, "parse"), program(3, "drop"), program(4, None)],
    "arrays": [array(10, "first", {0: 2, 3: 3}), array(11, "second", {1: 4, 2: 2}), array(12, "hidden", None)],
    "edges": [edge(1, 10, None), edge(2, 11, [1, 5]), edge(4, 10, [0], certain=False), edge(4, 12, [0])],
    "attachments": [
        {"program": 1, "kind": "xdp", "where": "eth0 driver", "attach_type": None, "namespace": None, "link": None}
    ],
    "unreached": {"programs": [], "entries": [{"array": 11, "count": 1, "indexes": [2], "reason": "no-jump"}]},
    "empty_jumps": [{"program": 2, "array": 11, "index": 5, "reason": "empty", "certain": True}],
    "cycles": [{"programs": [2, 4], "certain": False}],
    "longest_chain": {"programs": [1, 3], "jumps": 1, "limit": 33, "exceeds_limit": False},
    "unseen": ["attachments in other network namespaces"],
}
NOTHING = GRAPH | {
    "programs": [], "arrays": [], "edges": [], "attachments": [], "unreached": {"programs": [], "entries": []},
    "empty_jumps": [], "cycles": [], "longest_chain": None, "unseen": [],
}  # fmt: skip


@pytest.fixture
def graph() -> dict[str, Any]:
    return GRAPH


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, graph: dict[str, Any]) -> list[httpx.Request]:
    """The requests that were sent."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = respond(request, graph)
        response.headers["x-request-id"] = "1"
        return response

    monkeypatch.setattr("app.client.http_client._transport", lambda _: httpx.MockTransport(answer))
    return requests


def respond(request: httpx.Request, graph: dict[str, Any]) -> httpx.Response:
    if request.url.path == "/graph":
        is_text = "format" in request.url.params
        return httpx.Response(200, text="flowchart LR\n") if is_text else httpx.Response(200, json=graph)
    if request.method == "DELETE":
        return httpx.Response(204)
    if request.method == "PUT" and b"bad" in request.content:
        return httpx.Response(422, json=REFUSED, headers={"content-type": "application/problem+json"})
    if request.method == "PUT" and request.url.params.get("dry_run"):
        entries = [{"map": "root", "entries": [ENTRY]}]
        return httpx.Response(200, json={"object": LOADED, "changes": [], "fit": "tried", "entries": entries})
    if request.method == "PUT":
        return httpx.Response(200, json={"object": LOADED, "changes": [CHANGE]}, headers={"change-id": "17"})
    return httpx.Response(200, json={"objects": [LOADED]} if request.url.path == "/objects" else LOADED)


@pytest.fixture
def command(service: list[httpx.Request], command: Command) -> Command:
    return command


class TestObjects:
    def test_objects_are_listed_and_shown(self, command: Command) -> None:
        assert [line.split()[0] for line in command("objects").out.splitlines()] == ["OBJECT", "parser"]
        assert json.loads(command("objects", "parser", "-o", "json").out) == LOADED
        shown = command("objects", "parser").out
        assert "object   parser, version 2\n" in shown
        assert "parser.entry  xdp   812  12\n" in shown
        assert "parser.jt  prog_array  41  8\n" in shown
        assert "warning  its programs are pinned nowhere\n" in shown

    def test_an_object_file_is_sent_as_it_is(
        self, command: Command, service: list[httpx.Request], tmp_path: Path
    ) -> None:
        (tmp_path / "parser.o").write_bytes(b"\x7fELF good")
        done = command("load", "parser", str(tmp_path / "parser.o"), "--dry-run")
        assert done.out == (
            "object parser, version 2, can be loaded; nothing was\nroot would change:\n  0  empty → parser.entry\n"
        )
        sent = service[-1]
        assert (sent.method, sent.url.path, dict(sent.url.params)) == ("PUT", "/objects/parser", {"dry_run": "true"})
        assert (sent.headers["content-type"], sent.content) == ("application/octet-stream", b"\x7fELF good")

    def test_a_description_of_how_to_load_is_sent_as_json(
        self, command: Command, service: list[httpx.Request], tmp_path: Path
    ) -> None:
        (tmp_path / "parser.yaml").write_text("file: /etc/jumptable/objects/parser.o\nvariables: {verdict: 3}\n")
        done = command("load", "parser", str(tmp_path / "parser.yaml"), "--note", "v2", "--confirm-within", "1m")
        assert done.out == "object parser, version 2, is loaded\nchange 17: root 0: empty → parser.entry\n"
        assert done.err.endswith("unless: jumptable confirm 17\n")
        assert json.loads(service[-1].content)["variables"] == {"verdict": 3}
        assert dict(service[-1].url.params) == {"note": "v2", "confirm_within": "60"}

    def test_what_the_verifier_says_is_shown(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "parser.o").write_bytes(b"\x7fELF bad")
        done = command("load", "parser", str(tmp_path / "parser.o"))
        assert done.status == 1
        assert done.err.splitlines() == [
            "jumptable: the kernel refuses program 'entry': invalid access; see p.c:12: x",
            "instruction 4: r0 = *(u8 *)(r1 +20)",
            "  4: r0 = *(u8 *)(r1 +20)",
            "  invalid access",
        ]

    @pytest.mark.parametrize("text", ["int entry(void) {}\n", "a: [\n", "\x00\x01"])
    def test_what_is_no_object_file_is_not_sent(
        self, command: Command, service: list[httpx.Request], tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "parser.c").write_text(text)
        done = command("load", "parser", str(tmp_path / "parser.c"))
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert "is neither an object file (ELF) nor" in done.err
        assert service == []

    def test_options_go_beside_an_object_file_that_is_sent(
        self, command: Command, service: list[httpx.Request], tmp_path: Path
    ) -> None:
        (tmp_path / "parser.o").write_bytes(b"\x7fELF good")
        (tmp_path / "how.yaml").write_text("variables: {verdict: 3}\n")
        done = command("load", "parser", str(tmp_path / "parser.o"), "--options", str(tmp_path / "how.yaml"))
        assert done.status == 0
        assert dict(service[-1].url.params) == {"options": '{"variables": {"verdict": 3}}'}
        assert service[-1].content == b"\x7fELF good"

    @pytest.mark.parametrize("text", ["verdict\n", "a: [\n"])
    def test_options_that_are_none_are_not_sent(
        self, command: Command, service: list[httpx.Request], tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "parser.o").write_bytes(b"\x7fELF good")
        (tmp_path / "how.yaml").write_text(text)
        done = command("load", "parser", str(tmp_path / "parser.o"), "--options", str(tmp_path / "how.yaml"))
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert service == []

    def test_options_do_not_go_beside_a_description(
        self, command: Command, service: list[httpx.Request], tmp_path: Path
    ) -> None:
        (tmp_path / "parser.yaml").write_text("file: /etc/jumptable/objects/parser.o\n")
        done = command("load", "parser", str(tmp_path / "parser.yaml"), "--options", str(tmp_path / "parser.yaml"))
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert service == []

    def test_an_object_is_released(self, command: Command, service: list[httpx.Request]) -> None:
        assert command("release", "object", "parser").out == "object parser is released\n"
        assert (service[-1].method, service[-1].url.path) == ("DELETE", "/objects/parser")


class TestGraph:
    def test_it_is_shown_from_what_is_attached_onwards(self, command: Command) -> None:
        assert command("graph").out.splitlines() == [
            "entry  attached: xdp eth0 driver",
            "   → first, any entry",
            "      0  parse",
            "         → second, entries 1, 5",
            "            1  k4 (id 4)",
            "               → first, entry 0, maybe",
            "                  0  parse  (above)",
            "               → hidden, whose entries could not be read",
            "            5  empty: falls through",
            "      3  drop",
            "falls through: parse → second 5 (empty)",
            "never reached: 1 entry of second (2): no loaded program jumps there",
            "a cycle, maybe: parse → k4 (id 4) → parse",
            "longest chain: 1 jump of 33: entry → drop",
            "not seen: attachments in other network namespaces",
        ]

    @pytest.mark.parametrize("graph", [NOTHING])
    def test_where_nothing_jumps_it_says_so(self, command: Command, graph: dict[str, Any]) -> None:
        assert command("graph").out == "No program jumps through an array.\n"

    @pytest.mark.parametrize(
        "graph",
        [
            NOTHING | {
                "programs": [program(id_, f"p{id_}") for id_ in range(1, 3)],
                "arrays": [array(10, "ring", {0: 1, 1: 2})],
                "edges": [edge(1, 10, [1]), edge(2, 10, [0])],
            }
        ],
    )  # fmt: skip
    def test_programs_that_lead_to_each_other_alone_are_shown(self, command: Command, graph: dict[str, Any]) -> None:
        lines = command("graph").out.splitlines()
        assert lines[0] == "p1"
        assert lines[-1].split() == ["0", "p1", "(above)"]

    @pytest.mark.parametrize(
        "graph",
        [
            NOTHING | {
                "programs": [program(id_, f"p{id_}") for id_ in range(1, 1001)],
                "arrays": [array(id_, f"a{id_}", {0: id_ + 1}) for id_ in range(1, 1000)],
                "edges": [edge(id_, id_, [0]) for id_ in range(1, 1000)],
            }
        ],
    )  # fmt: skip
    def test_a_chain_of_any_length_is_shown(self, command: Command, graph: dict[str, Any]) -> None:
        done = command("graph")
        assert done.status == 0
        assert [line.split()[-1] for line in done.out.splitlines()].count("p1000") == 1
        assert max(map(len, done.out.splitlines())) < 300

    def test_it_is_drawn_by_others(self, command: Command, service: list[httpx.Request]) -> None:
        assert command("graph", "--map", "jump_table", "-o", "mermaid").out == "flowchart LR\n"
        assert dict(service[-1].url.params) == {"map": "jump_table", "format": "mermaid"}
        assert json.loads(command("graph", "-o", "json").out) == GRAPH
        assert dict(service[-1].url.params) == {}
