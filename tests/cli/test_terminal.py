"""The client's commands with a person at a terminal."""

import os
import re
import time
from pathlib import Path

import pytest

from app.client import Client
from tests.cli.terminal import terminal
from tests.running import demo, serve, write_config

TABLE = "maps: {jump_table: {0: pass, 3: drop}}"


@pytest.fixture
def env(client: Client) -> dict[str, str]:
    return {"JUMPTABLE_URL": client.url}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE)
    return str(path)


def used(client: Client) -> list[int]:
    return [entry["index"] for entry in client.list_entries("jump_table")["entries"]]


class TestApply:
    def test_it_shows_the_difference_and_asks(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, env=env) as person:
            person.wait_for(r"0  empty → pass\n.*3  empty → drop\nApply\? \[y/N\] ")
            assert used(client) == []
            person.type("y\n")
            assert person.end() == 0
        assert used(client) == [0, 3]

    def test_it_asks_the_terminal_where_the_tables_come_by_a_pipe(self, client: Client, env: dict[str, str]) -> None:
        read, write = os.pipe()
        os.write(write, TABLE.encode())
        os.close(write)
        with terminal("apply", "-f", "-", env=env, stdin=read) as person:
            os.close(read)
            person.wait_for(r"Apply\? \[y/N\] ")
            person.type("y\n")
            assert person.end() == 0
        assert used(client) == [0, 3]

    @pytest.mark.parametrize("answer", ["n\n", "\n", "yo\n", "\x04"])
    def test_anything_but_yes_changes_nothing(
        self, client: Client, env: dict[str, str], file: str, answer: str
    ) -> None:
        with terminal("apply", "-f", file, env=env) as person:
            person.wait_for(r"Apply\?")
            person.type(answer)
            assert person.end() == 1
            assert "jumptable: nothing was changed" in person.text
        assert used(client) == []

    def test_ctrl_c_at_the_question_changes_nothing(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, env=env) as person:
            person.wait_for(r"Apply\?")
            person.interrupt()
            assert person.end() == 130
            assert "Traceback" not in person.text
        assert used(client) == []

    def test_a_yes_in_time_lets_it_stand(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, "--yes", "--confirm-within", "60s", env=env) as person:
            person.wait_for(r"Keep it\? \[y/N\] \(undone in \d+ s\)")
            person.type("y\n")
            assert person.end() == 0
            assert re.search(r"Change \d+ stands\.", person.text)
        assert client.list_changes(order="desc", limit=1)["changes"][0]["state"] == "confirmed"

    @pytest.mark.parametrize("by_signal", [False, True])
    def test_a_no_undoes_it_at_once(self, client: Client, env: dict[str, str], file: str, *, by_signal: bool) -> None:
        with terminal("apply", "-f", file, "--yes", "--confirm-within", "60s", env=env) as person:
            person.wait_for(r"Keep it\?")
            if by_signal:
                person.interrupt()
            else:
                person.type("n\n")
            assert person.end() == 1
            assert re.search(r"Change \d+ is undone\.", person.text)
        assert used(client) == []

    def test_no_answer_undoes_it(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, "--yes", "--confirm-within", "1s", env=env) as person:
            assert person.end() == 1
            assert re.search(r"Change \d+ is undone: nobody confirmed it \(expired\)\.", person.text)
        assert used(client) == []

    def test_a_lost_terminal_undoes_it(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, "--yes", "--confirm-within", "2s", env=env) as person:
            person.wait_for(r"Keep it\?")
            person.hang_up()
        changes = client.list_changes(order="desc", limit=2)["changes"]
        change = next(each for each in changes if each["kind"] not in {"expire", "revert"})  # it may be undone by now
        deadline = time.monotonic() + 60
        # Undone by the client, if that has noticed in time, or else by the service.
        while client.get_change(change["id"])["state"] not in {"expired", "reverted"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert used(client) == []

    def test_a_service_that_is_gone_by_the_yes_is_an_error_and_no_confirmation(self, file: str) -> None:
        with demo("--kernel", "memory") as service:
            env = {"JUMPTABLE_URL": service.url}
            with terminal("apply", "-f", file, "--yes", "--confirm-within", "3s", env=env) as person:
                person.wait_for(r"Keep it\?")
                service.stop()
                person.type("y\n")
                assert person.end() == 3
                assert "Not confirmed, so the service undoes it" in person.text

    def test_where_another_has_confirmed_it_stands(self, client: Client, env: dict[str, str], file: str) -> None:
        with terminal("apply", "-f", file, "--yes", "--confirm-within", "60s", env=env) as person:
            person.wait_for(r"Keep it\?")
            client.confirm_change(client.list_changes(order="desc", limit=1)["changes"][0]["id"])
            person.type("y\n")
            assert person.end() == 0
            assert "stands: somebody has confirmed it." in person.text


class TestLooks:
    def test_a_terminal_gets_colours_unless_it_wants_none(self, client: Client, env: dict[str, str]) -> None:
        client.set_entry("jump_table", 3, "drop")
        with terminal("status", env=env) as person:
            assert person.end() == 0
            assert person.has_colours
        with terminal("status", env=env | {"NO_COLOR": "1"}) as person:
            assert person.end() == 0
            assert not person.has_colours
            assert "jump_table  1 of 16" in person.text

    def test_a_large_table_is_shown_at_once(self, client: Client, env: dict[str, str]) -> None:
        client.hold_map("large", pinned="/sys/fs/bpf/large", create=4096)
        client.replace_entries("large", dict.fromkeys(range(4096), "drop"))
        with terminal("get", "large", env=env) as person:
            assert person.end() == 0
            assert person.text.count("drop") == 4096
        client.release_map("large", force=True)


class TestWatch:
    def test_events_come_as_they_happen_until_ctrl_c(self, client: Client, env: dict[str, str]) -> None:
        last = client.set_entry("jump_table", 3, "drop").change
        with terminal("watch", "--after", "0", "--map", "jump_table", env=env) as person:
            person.wait_for(rf"change {last} by tcp:127.0.0.1: set 3: empty → drop\n")
            change = client.set_entry("jump_table", 4, "pass", confirm_within=60).change
            assert change is not None
            person.wait_for(rf"change {change} by .*set 4: empty → pass; UNCONFIRMED, undone in ")
            client.confirm_change(change)
            person.wait_for(rf"change {change} by tcp:127.0.0.1 stands: tcp:127.0.0.1 confirmed it\n")
            person.interrupt()
            assert person.end() == 0
            assert "Traceback" not in person.text

    @pytest.mark.slow
    def test_it_says_when_it_is_cut_off_and_misses_nothing(self, tmp_path: Path) -> None:
        """Also if nothing has come yet when it is cut off."""
        config, socket = write_config(tmp_path), tmp_path / "run" / "api.sock"
        url = f"unix://{socket}"
        with serve(config, socket) as service, terminal("watch", env={"JUMPTABLE_URL": url}) as person:
            person.wait_for(r"following unix:")
            service.stop()
            person.wait_for(r"cut off: .*; trying again\n")
            with serve(config, socket), Client(url) as client:
                # Mostly before it comes back, which takes it a second.
                client.hold_map("second", pinned="/sys/fs/bpf/second", create=4)
                person.wait_for(r"second held\n")
                client.hold_map("third", pinned="/sys/fs/bpf/third", create=4)
                person.wait_for(r"third held\n")
                person.interrupt()
                assert person.end() == 0
                assert person.text.count("second held") == 1

    def test_each_event_is_a_line_of_json_for_scripts(self, client: Client, env: dict[str, str]) -> None:
        read, write = os.pipe()
        with terminal("watch", "--after", "0", "-o", "json", env=env, stdin=read) as person:
            person.wait_for(r'(?m)^\{"id":1,"type":"[a-z]+","data":\{.*\}\}\n')
            person.interrupt()
            assert person.end() == 0
        os.close(read)
        os.close(write)
