"""The commands of the client, against a demo in memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml

from app.api.problems import PROBLEMS
from app.cli import options
from app.cli.main import COMMANDS, cli
from app.client import Client
from app.client.answers import Readiness
from tests.cli.conftest import Command
from tests.running import demo, serve, write_config

CLIENTS = [name for section in ("See", "Change", "Hold") for name in COMMANDS[section]]
TABLE = "maps: {jump_table: {0: pass, 3: drop}}"


def every() -> list[str]:
    return [name for section in COMMANDS.values() for name in section]


def loaded(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


class TestHelp:
    def test_it_fits_a_screen(self, command: Command) -> None:
        done = command("--help")
        lines = done.out.splitlines()
        assert done.status == 0
        assert len(lines) <= 50
        assert max(map(len, lines)) <= 80
        assert set(every()) <= {line.split()[0] for line in lines if line.startswith("  ")}

    @pytest.mark.parametrize("name", CLIENTS)
    def test_that_of_a_command_fits_a_screen_and_has_an_example(self, command: Command, name: str) -> None:
        done = command(name, "--help")
        assert done.status == 0
        assert len(done.out.splitlines()) <= 35
        assert f"Example: jumptable {name} " in done.out or f"jumptable {name}" in done.out.split("Example:")[1]

    @pytest.mark.parametrize("name", CLIENTS)
    def test_an_example_is_no_error_of_usage(self, name: str) -> None:
        epilog = loaded(name).epilog or ""
        example = epilog.removeprefix("Example: ").split("   (")[0]
        for part in example.replace("||", ";").replace("&&", ";").replace("|", ";").split(";"):
            words = part.split(" > ")[0].replace("$map", "jump_table").split()
            if words[:1] == ["jumptable"]:
                arguments = [word.strip("'") for word in words[2:]]
                if "--note" in arguments:
                    del arguments[arguments.index("--note") + 1 :]
                    arguments.append("a note")
                loaded(words[1]).make_context(words[1], arguments)


class TestMan:
    def test_every_command_is_on_the_page(self, command: Command) -> None:
        lines = command("man").out.splitlines()
        described = {line.split()[2] for line in lines if line.startswith(".SS jumptable ")}
        assert described == set(every())
        assert ".SS jumptable token new [OPTIONS] NAME" in lines
        assert r"\fB\-\-confirm\-within TIME\fR" in lines

    def test_no_text_is_taken_for_a_request_of_roff(self, command: Command) -> None:
        requests = {line.split()[0] for line in command("man").out.splitlines() if line.startswith((".", "'"))}
        assert requests == {".TH", ".SH", ".SS", ".B", ".TP", ".PP"}


class TestStart:
    @pytest.mark.parametrize(
        "arguments", [["--help"], ["status"], ["get", "jump_table", "-o", "json"], ["apply", "--help"]]
    )
    def test_it_needs_nothing_of_the_service(self, url: str, arguments: list[str]) -> None:
        code = (
            "import sys\ntry:\n from app.__main__ import main; main()\nfinally:\n print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, check=True, env={**os.environ, "JUMPTABLE_URL": url},
        )  # fmt: skip
        modules = {name for line in done.stderr.splitlines() for name in line.split()}
        ours = {name.split(".")[1] for name in modules if name.startswith("app.")}
        assert ours <= {"__main__", "agent", "cli", "client"}  # of the agent, where its status is
        assert not {"fastapi", "pydantic", "starlette", "uvicorn", "structlog", "rich", "yaml"} & modules


@pytest.mark.usefixtures("client")
class TestSeeing:
    def test_status_is_the_node_on_one_screen(self, command: Command, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop", note="try \x1b[2J", confirm_within=600)
        done = command("status")
        assert done.status == 0
        assert done.out.startswith("ready   jumptable ")
        assert "jump_table  1 of 16  0      1" in done.out
        assert "jump_table  3: empty → drop  in 9 min  (jumptable confirm" in done.out
        assert "5 programs held, 4 of them in no entry" in done.out
        assert "“try \\x1b[2J”" in done.out
        assert len(done.out.splitlines()) <= 24

    def test_status_names_the_socket_where_it_may_be_that_of_another_machine(
        self, command: Command, tmp_path: Path
    ) -> None:
        with serve(write_config(tmp_path), tmp_path / "run" / "api.sock") as service:
            url = f"unix://{service.socket}"
            assert f" on {url}, " in command("status", url=url).out

    def test_log_of_one_entry_begins_with_it(self, command: Command, client: Client) -> None:
        client.replace_entries("jump_table", dict.fromkeys(range(10), "drop"))
        shown = command("log", "--map", "jump_table", "--entry", "7", "-n", "1").out
        assert "replace 7: empty → drop, 8: empty → drop, 9: empty → drop, and 7 more" in shown
        whole = json.loads(command("log", "--map", "jump_table", "--entry", "7", "-n", "1", "-o", "json").out)
        assert len(whole["changes"][0]["entries"]) == 10

    def test_status_of_a_node_that_is_not_ready_exits_with_1(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        readiness = Readiness(ready=False, reasons=["the keeper has ended"])
        monkeypatch.setattr(Client, "get_readiness", lambda _: readiness)
        done = command("status", "-o", "json")
        assert done.status == 1
        assert json.loads(done.out)["reasons"] == ["the keeper has ended"]
        assert "NOT READY" in command("status").out

    def test_status_says_since_when_it_runs_where_the_service_tells(
        self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = {**client.get_version(), "uptime_seconds": 7300, "keeper": "failing"}
        monkeypatch.setattr(Client, "get_version", lambda _: told)
        assert command("status").out.splitlines()[0].endswith(", up 2 h, keeper failing")

    def test_status_says_what_a_bounded_caller_sees(
        self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise it looks as if there were no more: the service leaves out what the caller may not see."""
        assert "sees only" not in command("status").out
        caller = {"actor": "token:edit", "role": "writer", "maps": ["a", "b"], "entries": ["8-15"], "programs": None}
        told = {**client.get_index(), "caller": caller}
        monkeypatch.setattr(Client, "get_index", lambda _: told)
        assert command("status").out.splitlines()[1] == "  token:edit sees only the maps a, b and the entries 8-15"
        assert json.loads(command("status", "-o", "json").out)["caller"] == caller

    def test_drift_is_shown_with_what_ends_it(
        self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody else can write into the kernel in memory."""
        journal = {"name": "tx", "id": 1, "tag": "t", "pinned": None}
        held = {**client.get_map("jump_table"), "drift": [{"index": 7, "journal": journal, "kernel": None}]}
        monkeypatch.setattr(Client, "list_maps", lambda _: [held])
        monkeypatch.setattr(Client, "get_map", lambda *_: held)
        assert (
            "  jump_table 7: tx → empty, by another tool  (jumptable reconcile jump_table)\n" in command("status").out
        )
        assert "drift    7: tx → empty, by another tool\n" in command("maps", "jump_table").out

    def test_warnings_of_a_dry_run_are_shown(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Client.update_entries

        def update(*arguments: Any, **options: Any) -> Any:
            return {**real(*arguments, **options), "warnings": ["entry 3 would not be reached"]}

        monkeypatch.setattr(Client, "update_entries", update)
        for arguments in (["clear", "jump_table", "3", "--dry-run"], ["diff", "-f", "-", "--partial"]):
            done = command(*arguments, stdin="maps: {jump_table: {3: drop}}")
            assert done.out.endswith("  warning: entry 3 would not be reached\n")

    def test_get_shows_the_entries(self, command: Command, client: Client) -> None:
        assert command("get", "jump_table").out == "All 16 entries are empty.\n"
        client.set_entry("jump_table", 3, "drop")
        lines = command("get", "jump_table").out.splitlines()
        assert lines[0].split() == ["INDEX", "PROGRAM", "TYPE", "ID", "TAG", "LOADED"]
        assert lines[1].split()[:3] == ["3", "drop", "xdp"]
        assert command("get", "jump_table", "3", "-o", "name").out == "3\n"

    def test_scripts_get_what_the_service_answers(self, command: Command, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop")
        entries = client.list_entries("jump_table")
        assert json.loads(command("get", "jump_table", "-o", "json").out) == entries
        assert yaml.safe_load(command("get", "jump_table", "-o", "yaml").out) == entries
        assert json.loads(command("programs", "-o", "json").out) == {"programs": client.list_programs()}
        assert command("maps", "-o", "name").out == "jump_table\n"
        assert command("programs", "-o", "name").out.split() == ["count", "drop", "entry", "pass", "tx"]

    def test_one_map_and_one_program_are_shown_in_full(self, command: Command, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop")
        assert "takes    programs of type xdp" in command("maps", "jump_table").out
        assert "used by  jump_table 3" in command("programs", "drop").out

    def test_log_is_newest_first_and_filtered(self, command: Command, client: Client) -> None:
        first = client.set_entry("jump_table", 3, "drop", note="first").change
        second = client.set_entry("jump_table", 3, "pass").change
        client.set_entry("jump_table", 4, "pass")
        ids = command("log", "--map", "jump_table", "--entry", "3", "-n", "2", "-o", "name").out.split()
        assert ids == [str(second), str(first)]
        assert "set 3: empty → drop; “first”" in command("log", "--entry", "3").out
        assert "why      first" in command("log", str(first)).out
        assert command("log", "--since", "1h", "--until", "30m").out == "No change is like that.\n"

    def test_log_goes_on_over_pages(self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.cli.journal._PAGE", 2)
        for program in ("drop", "pass", "tx", "drop", "pass"):
            client.set_entry("jump_table", 3, program)
        ids = [int(each) for each in command("log", "-n", "5", "-o", "name").out.split()]
        assert ids == list(range(ids[0], ids[0] - 5, -1))

    def test_run_shows_where_the_packet_came_out(self, command: Command, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop")
        assert command("run", "entry", "--packet", "03").out.startswith("entry returned 1 (XDP_DROP), ")
        packet = json.loads(command("run", "entry", "--packet", "0x03:00", "-o", "json").out)["packet"]
        assert packet == "03".ljust(28, "0")


@pytest.mark.usefixtures("client")
class TestChanging:
    def test_set_and_clear_say_what_they_did(self, command: Command, client: Client) -> None:
        assert command("set", "jump_table", "3", "drop").out.endswith(": jump_table 3: empty → drop\n")
        assert (
            command("set", "jump_table", "3", "drop").out == "jump_table 3 points to it already; nothing was written\n"
        )
        assert command("set", "jump_table", "3", "pass", "--dry-run").out == (
            "would change jump_table 3: drop → pass; nothing was written\n"
        )
        assert command("clear", "jump_table", "3", "--dry-run").out == (
            "would change jump_table 3: drop → empty; nothing was written\n"
        )
        assert command("clear", "jump_table", "3", "--note", "why").out.endswith(": jump_table 3: drop → empty\n")
        assert command("clear", "jump_table", "3").out == "jump_table 3 is empty already; nothing was written\n"
        kinds = [(each["kind"], each["note"]) for each in client.list_changes(order="desc", limit=2)["changes"]]
        assert kinds == [("clear", "why"), ("set", None)]

    def test_a_program_is_also_given_by_its_id(self, command: Command, client: Client) -> None:
        id_ = client.get_program("drop")["id"]
        assert command("set", "jump_table", "3", f"id:{id_}").status == 0
        assert client.get_entry("jump_table", 3)["program"]["name"] == "drop"

    def test_revert_undoes(self, command: Command, client: Client) -> None:
        change = client.set_entry("jump_table", 3, "drop").change
        assert "would change 1 entry" in command("revert", str(change), "--dry-run").out
        assert f": change {change} undone: 3: drop → empty" in command("revert", str(change)).out
        assert client.list_entries("jump_table")["entries"] == []

    def test_what_waits_is_confirmed_by_another_command(self, command: Command, client: Client) -> None:
        done = command("set", "jump_table", "3", "drop", "--confirm-within", "10m")
        change = client.list_changes(order="desc", limit=1)["changes"][0]
        assert change["state"] == "unconfirmed"
        assert done.err.endswith(f"unless: jumptable confirm {change['id']}\n")
        assert command("confirm", str(change["id"])).out == f"Change {change['id']} of jump_table stands.\n"
        assert client.get_change(change["id"])["state"] == "confirmed"

    def test_reconcile_without_drift_changes_nothing(self, command: Command) -> None:
        assert command("reconcile", "jump_table", "--to", "journal").out == "nothing had to be changed\n"

    def test_set_tells_what_gets_worse_for_the_jumps(self, command: Command) -> None:
        command("hold", "map", "second", "--pinned", "/sys/fs/bpf/second", "--create", "4")
        why = "entry 1 of 'second' is not reached: no loaded program jumps through this array"
        done = command("set", "second", "1", "drop")
        assert why in done.out + done.err
        assert "warnings" not in command("set", "second", "2", "drop", "-o", "json").out
        assert command("release", "map", "second", "--force").status == 0

    def test_a_map_is_held_and_released(self, command: Command) -> None:
        done = command("hold", "map", "second", "--pinned", "/sys/fs/bpf/second", "--create", "4")
        assert done.out.startswith("map second is held: id ")
        assert command("release", "map", "second").out == "map second is released\n"
        assert command("release", "map", "second").status == 1
        assert command("hold", "program", "p", "--id", "1", "--create", "4").status == 2
        assert command("hold", "program", "p").err == (
            "jumptable: give one of --pinned PATH and --id ID; see jumptable hold --help\n"
        )


@pytest.mark.usefixtures("client")
class TestTables:
    def test_diff_exits_with_1_where_something_differs(self, command: Command, client: Client, tmp_path: Path) -> None:
        file = tmp_path / "t.yaml"
        file.write_text(TABLE)
        client.update_entries("jump_table", {3: "tx", 5: "tx"})
        done = command("diff", "-f", str(file))
        assert done.status == 1
        assert done.out == (
            "jump_table: 2 to set, 1 to clear, 0 as they are\n  0  empty → pass\n  3  tx → drop\n  5  tx → empty\n"
        )
        assert "5" not in command("diff", "-f", str(file), "--partial").out.partition("\n")[2]
        assert command("apply", "-f", str(file), "--yes").status == 0
        assert command("diff", "-f", str(file)).status == 0
        assert [entry["index"] for entry in client.list_entries("jump_table")["entries"]] == [0, 3]

    def test_what_get_prints_can_be_applied(self, command: Command, client: Client) -> None:
        client.update_entries("jump_table", {3: "tx", 5: "drop"})
        before = client.list_entries("jump_table")
        printed = command("get", "jump_table", "-o", "yaml").out
        client.replace_entries("jump_table", {})
        assert command("apply", "-f", "-", "--yes", stdin=printed).status == 0
        assert client.list_entries("jump_table") == before

    def test_apply_asks_nobody_without_a_terminal(self, command: Command, client: Client) -> None:
        done = command("apply", "-f", "-", stdin=TABLE)
        assert (done.status, client.list_entries("jump_table")["entries"]) == (2, [])
        assert "nobody can be asked here, so add --yes" in done.err

    def test_a_table_that_was_changed_meanwhile_is_left(
        self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextmanager
        def terminal() -> Iterator[object]:
            client.set_entry("jump_table", 9, "tx")
            yield object()

        monkeypatch.setattr("app.cli.tables.terminal", terminal)
        monkeypatch.setattr("app.cli.tables.is_agreed", lambda *_: True)
        done = command("apply", "-f", "-", stdin=TABLE)
        assert done.status == 1
        assert done.err.endswith("; somebody has changed the table meanwhile: look again, and repeat the command\n")
        assert [entry["index"] for entry in client.list_entries("jump_table")["entries"]] == [9]

    def test_of_several_tables_it_is_told_what_is_done_when_one_is_refused(
        self, command: Command, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client.hold_map("second", pinned="/sys/fs/bpf/second", create=4)
        real = Client.replace_entries

        def replace(self: Client, map: str, *arguments: object, **given: object) -> object:  # noqa: A002
            if map == "second" and not given.get("dry_run"):
                real(self, "second", {2: "tx"})  # somebody else
            return real(self, map, *arguments, **given)  # type: ignore[arg-type]

        monkeypatch.setattr(Client, "replace_entries", replace)
        done = command("apply", "-f", "-", "--yes", stdin="maps: {jump_table: {1: drop}, second: {1: drop}}")
        monkeypatch.undo()
        change = client.list_changes(map="jump_table", order="desc", limit=1)["changes"][0]["id"]
        client.release_map("second", force=True)
        assert done.status == 1
        assert f"Done before that: 1 change ({change}); `jumptable revert` undoes them. Not: second" in done.err

    def test_a_mistake_in_the_file_changes_nothing_and_is_one_line(self, command: Command) -> None:
        done = command("apply", "-f", "-", "--yes", stdin="maps:\n  jump_table:\n    0 drop\n  x")
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("jumptable: standard input: line ")
        assert done.err.count("\n") == 1


class TestMistakes:
    @pytest.mark.usefixtures("client")
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["get", "jmp_table"], "no map is held under the name 'jmp_table'; did you mean 'jump_table'?"),
            (["get", "other"], "no map is held under the name 'other'; there are jump_table"),
            (["programs", "dorp"], "no program is held under the name 'dorp'; did you mean 'drop'?"),
            (["set", "jump_table", "1", "zzz"], "there is no program 'zzz'; there are count, drop, entry, pass, tx"),
            (["set", "jump_table", "16", "drop"], "index 16 is out of range; the indexes are 0 to 15"),
            (["get", "jump_table", "2"], "entry 2 is empty; `jumptable set` points it to a program"),
            (["revert", "9999"], "there is no change 9999, or it was pruned because of its age; `jumptable log` lists"),
            (["release", "map", "jump_table"], "map 'jump_table' has no pin that the service knows"),
        ],
    )  # fmt: skip
    def test_a_refusal_is_one_line_with_the_remedy_and_exits_with_1(
        self, command: Command, arguments: list[str], said: str
    ) -> None:
        done = command(*arguments)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"jumptable: {said}")
        assert done.err.count("\n") == 1
        assert not {"PUT", "?force", "GET"} & set(done.err.split())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["stats"], "there is no command 'stats'; did you mean 'status'?"),
            (["--url", "x", "status"], "there is no option --url before the command; write it after the command"),
            (["get"], "Missing argument 'MAP'"),
            (["set", "jump_table", "x", "drop"], "Invalid value for 'INDEX': 'x' is no index"),
            (["get", ""], "Invalid value for 'MAP': '' is no name"),
            (["log", "--since", "yesterday"], "Invalid value for '--since': 'yesterday' is no time: write 2h"),
            (["run", "entry", "--packet", "0z"], "Invalid value for '--packet': a packet is written in hex"),
            (["status", "--url", "localhost:8080"], "'localhost:8080' is no URL of a service; write unix:///PATH"),
            (["status", "--token-file", "/nope"], "cannot read the token in /nope: No such file or directory"),
            (["apply", "-f", "/nope"], "cannot read /nope: No such file or directory"),
        ],
    )  # fmt: skip
    def test_an_error_of_usage_is_one_line_and_exits_with_2(
        self, command: Command, arguments: list[str], said: str
    ) -> None:
        done = command(*arguments)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"jumptable: {said}")
        assert done.err.count("\n") == 1

    @pytest.mark.usefixtures("refused_sockets")
    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "unix:///nope/api.sock"])
    def test_a_service_that_is_not_there_exits_with_3(self, command: Command, url: str) -> None:
        done = command("status", url=url)
        assert done.status == 3
        assert done.err.startswith(f"jumptable: cannot connect to {url}: ")
        assert "is it running (systemctl status jumptable" in done.err
        assert done.err.count("\n") == 1

    def test_every_remedy_is_for_a_problem_that_there_is(self) -> None:
        assert options._REMEDIES.keys() <= PROBLEMS.keys() | {"object-unknown"}  # of services that load object files

    def test_something_else_at_the_url_exits_with_3(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, html="<p>nginx"))
        monkeypatch.setattr("app.client.http_client._transport", lambda _: transport)
        done = command("status", url="http://other")
        assert done.status == 3
        assert done.err == (
            "jumptable: http://other does not answer as jumptable does: 200 text/html; check --url and JUMPTABLE_URL\n"
        )

    def test_a_token_file_with_something_else_is_not_sent(self, command: Command, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("name: jt_secret\n")
        done = command("status", "--token-file", str(file))
        assert (done.status, "jt_secret" in done.err) == (2, False)
        assert f"{file} has no token: write the one that `jumptable token new` printed into it" in done.err

    @pytest.mark.parametrize(
        "arguments", [["log", "-n", "1000"], ["programs", "-o", "json"], ["watch", "--after", "0", "-o", "json"]]
    )
    def test_nobody_reads_the_output(self, url: str, client: Client, arguments: list[str]) -> None:
        """As in `jumptable log | head -0`: no traceback, and the status of a program that SIGPIPE ends."""
        client.set_entry("jump_table", 3, "drop")
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as closed:
            done = subprocess.run(
                [sys.executable, "-m", "app", *arguments, "--url", url],
                stdout=closed, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (141, "")

    def test_a_terminal_without_arrows_gets_their_numbers(self, url: str, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop")
        done = subprocess.run(
            [sys.executable, "-m", "app", "log", "-n", "1", "--url", url],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        )  # fmt: skip
        assert "set 3: empty \\u2192 drop" in done.stdout


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_there_is_a_script_for_each_shell(self, command: Command, shell: str) -> None:
        assert "_JUMPTABLE_COMPLETE" in command("completion", shell).out

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("jumptable get ju", ["jump_table"]),
            ("jumptable set jump_table 3 d", ["drop"]),
            ("jumptable run e", ["entry"]),
            ("jumptable release program t", ["tx"]),
            ("jumptable re", ["revert", "reconcile", "release"]),
            ("jumptable log --map j", ["jump_table"]),
        ],
    )
    def test_names_are_those_that_the_service_holds(self, client: Client, words: str, found: list[str]) -> None:
        assert completed(client.url, words) == found

    def test_confirm_completes_what_waits(self, client: Client) -> None:
        change = client.set_entry("jump_table", 3, "drop", confirm_within=600).change
        client.set_entry("jump_table", 4, "drop")
        assert completed(client.url, "jumptable confirm ") == [str(change)]

    def test_without_the_service_there_are_none_and_no_error(self) -> None:
        assert completed("http://127.0.0.1:9", "jumptable get j") == []


def completed(url: str, words: str) -> list[str]:
    """What bash completes after these words."""
    environment = {
        **os.environ,
        "_JUMPTABLE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "JUMPTABLE_URL": url,
    }
    done = subprocess.run(
        [sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.kernel
def test_a_packet_takes_the_way_that_set_points_to(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with demo("--kernel", "linux") as service:
        assert command("run", "entry", "--packet", "03", url=service.url).out.startswith(
            "entry returned 0 (XDP_ABORTED)"
        )
        assert command("set", "jump_table", "3", "drop", url=service.url).status == 0
        assert command("run", "entry", "--packet", "03", url=service.url).out.startswith("entry returned 1 (XDP_DROP)")
