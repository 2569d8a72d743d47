"""The client for Python."""

import errno
import gc
import inspect
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import httpx
import pytest

from app.client import Client, Refused, Unexpected, Unreachable, answers
from app.client import client as client_module
from tests.running import demo, serve, write_config

DOCUMENT = json.loads((Path(__file__).parent.parent / "api" / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
# Operations for others than callers of a client: for probes, browsers and curl.
NOT_FOR_CLIENTS = {"get_health", "explain_problem", "get_docs", "get_docs_asset", "get_openapi"}
# Members of a dry run, which the document has in schemas of their own.
DRY = {"Entry": "DryEntry", "Applied": "DryApplied", "LoadedObjectFile": "DryLoadedObjectFile"}
NO_ANSWERS = {"ProgramReference"}
if "/objects" not in DOCUMENT["paths"]:  # a service that loads no object files
    NO_ANSWERS |= {"EntriesOfMap", "LoadedObjectFile"}
ANSWERS = [name for name, each in vars(answers).items() if is_typeddict(each) and name not in NO_ANSWERS]
PROBLEM = {"content-type": "application/problem+json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with demo("--kernel", "memory") as service:
        yield service.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        client.replace_entries("jump_table", {})
        yield client


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    """A client whose service is this function."""

    def respond(request: httpx.Request) -> httpx.Response:
        response = answer(request)
        response.headers["x-request-id"] = "1"
        return response

    return Client("http://service", transport=httpx.MockTransport(respond))


class TestContract:
    def test_there_is_a_method_for_each_operation(self) -> None:
        operations = {
            operation["operationId"]
            for methods in DOCUMENT["paths"].values()
            for operation in methods.values()
            if "operationId" in operation
        }
        methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction)}
        assert operations - NOT_FOR_CLIENTS <= methods

    @pytest.mark.parametrize("name", ANSWERS)
    def test_an_answer_has_the_members_of_the_document(self, name: str) -> None:
        schema, dry = SCHEMAS[name], SCHEMAS[DRY.get(name, name)]
        always = {member for member, said in schema["properties"].items() if "default" in said}
        assert get_type_hints(getattr(answers, name)).keys() == dry["properties"].keys()
        assert getattr(answers, name).__required_keys__ == set(schema["required"]) | always

    @pytest.mark.parametrize("name", ANSWERS)
    def test_a_member_may_be_null_where_the_document_says_so(self, name: str) -> None:
        properties = SCHEMAS[DRY.get(name, name)]["properties"]
        for member, hint in get_type_hints(getattr(answers, name)).items():
            is_nullable = any(each.get("type") == "null" for each in properties[member].get("anyOf", []))
            assert (type(None) in get_args(hint)) == is_nullable, member

    def test_a_program_in_a_request_has_the_members_of_the_document(self) -> None:
        assert get_type_hints(answers.ProgramReference).keys() == SCHEMAS["ProgramObject"]["properties"].keys()

    def test_the_options_of_changes_are_those_of_the_document(self) -> None:
        parameters = DOCUMENT["paths"]["/maps/{name}/entries"]["put"]["parameters"]
        names = {each["name"].lower().replace("-", "_") for each in parameters} - {
            "name",
            "pretty",
            "if_none_match",
            "prefer",
        }
        assert get_type_hints(client_module.ConditionalOptions).keys() == names

    def test_the_filters_of_changes_are_those_of_the_document(self) -> None:
        parameters = DOCUMENT["paths"]["/changes"]["get"]["parameters"]
        names = {each["name"] for each in parameters} - {"order", "limit", "pretty"}
        assert get_type_hints(client_module.ChangeFilter).keys() == names


class TestRequests:
    def test_a_change_of_one_entry_tells_its_id(self, client: Client) -> None:
        written = client.set_entry("jump_table", 3, "drop", note="try")
        assert written.entry is not None
        assert written.entry["program"]["name"] == "drop"
        assert written.change is not None
        assert client.get_change(written.change)["note"] == "try"
        assert client.set_entry("jump_table", 3, "drop").change is None
        assert client.clear_entry("jump_table", 3).change == written.change + 1

    def test_what_an_entry_answers_can_be_sent_back(self, client: Client) -> None:
        client.update_entries("jump_table", {0: "pass", 5: "drop"})
        table = client.list_entries("jump_table")
        client.replace_entries("jump_table", {})
        client.replace_entries("jump_table", {entry["index"]: entry["program"] for entry in table["entries"]})
        assert client.list_entries("jump_table") == table

    def test_an_etag_that_is_no_longer_true_is_refused(self, client: Client) -> None:
        etag = client.list_entries("jump_table")["etag"]
        client.set_entry("jump_table", 1, "tx")
        with pytest.raises(Refused) as refused:
            client.replace_entries("jump_table", {}, if_match=etag)
        assert (refused.value.status, refused.value.code) == (412, "precondition-failed")

    def test_a_dry_run_changes_nothing(self, client: Client) -> None:
        plan = client.replace_entries("jump_table", {2: "pass"}, dry_run=True)
        assert [entry["index"] for entry in plan["entries"]] == [2]
        assert client.list_entries("jump_table")["entries"] == []

    def test_a_change_is_confirmed_and_reverted(self, client: Client) -> None:
        change = client.set_entry("jump_table", 3, "drop", confirm_within=60).change
        assert change is not None
        assert client.confirm_change(change)["state"] == "confirmed"
        assert client.revert_change(change)["cleared"] == 1
        assert client.list_changes(map="jump_table", index=3, order="desc", limit=1)["changes"][0]["reverts"] == change

    def test_a_program_runs_on_a_packet(self, client: Client) -> None:
        client.set_entry("jump_table", 3, "drop")
        assert client.run_program("entry", bytes([3]).ljust(14, b"\0"))["meaning"] == "XDP_DROP"

    def test_events_go_on_after_the_last_one(self, client: Client) -> None:
        first = client.set_entry("jump_table", 1, "drop", note="line\u2028separator").change
        second = client.set_entry("jump_table", 2, "drop").change
        events = client.watch_events(after=0)
        seen = next(event for event in events if event.data.get("id") == first)
        assert seen.data["note"] == "line\u2028separator"
        events.close()
        following = client.watch_events(after=seen.id)
        assert next(following).data["id"] == second
        following.close()

    def test_a_refused_stream_of_events_is_a_problem(self, client: Client) -> None:
        with pytest.raises(Refused, match="no map is held"):
            next(client.watch_events(map="nope"))

    def test_readiness_tells_the_reasons(self, client: Client) -> None:
        assert client.get_readiness() == (True, [])
        client.hold_map("second", pinned="/sys/fs/bpf/second", create=4)
        assert client.get_map("second")["max_entries"] == 4
        client.release_map("second", force=True)
        problem = {"status": 503, "code": "map-unavailable", "detail": "it is gone", "reasons": ["gone"]}
        with answering(lambda _: httpx.Response(503, json=problem, headers=PROBLEM)) as failing:
            assert failing.get_readiness() == (False, ["gone"])

    def test_metrics_are_text(self, client: Client) -> None:
        assert "jumptable_maps 1.0" in client.get_metrics()


class TestFailures:
    def test_a_problem_is_an_error_with_its_facts(self, client: Client) -> None:
        with pytest.raises(Refused) as refused:
            client.get_entry("jump_table", 16)
        assert refused.value.code == "index-out-of-range"
        assert refused.value.problem["max_entries"] == 16
        assert refused.value.request_id

    def test_nobody_listens(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "stale"))
        for path, number in (("none", errno.ENOENT), ("stale", errno.ECONNREFUSED)):
            with Client(f"unix://{tmp_path}/{path}") as client, pytest.raises(Unreachable) as failed:
                client.get_version()
            assert (failed.value.errno, failed.value.was_sent) == (number, False)
            del failed
        gc.collect()  # httpcore leaves it to the garbage collector to close such a socket

    def test_a_connection_that_ends_before_the_answer_leaves_it_open_what_was_done(self) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)

        with answering(answer) as client, pytest.raises(Unreachable, match="ended before the answer") as failed:
            client.set_entry("jump_table", 3, "drop")
        assert failed.value.was_sent

    def test_another_service_is_not_taken_for_it(self) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(404, html="<p>nginx"))
        with Client("http://service", transport=transport) as client, pytest.raises(Unexpected, match="404 text/html"):
            client.get_version()

    @pytest.mark.parametrize("url", ["service", "ftp://service", "http://", "unix:relative", "http://[::1"])
    def test_a_url_of_another_form_is_a_value_error(self, url: str) -> None:
        with pytest.raises(ValueError, match="write unix:///PATH"):
            Client(url)

    def test_names_cannot_lead_to_another_path(self) -> None:
        paths = []

        def answer(request: httpx.Request) -> httpx.Response:
            paths.append(request.url.raw_path.decode())
            return httpx.Response(200, json={})

        with answering(answer) as client:
            client.get_map("a/b?c#d")
        assert paths == ["/maps/a%2Fb%3Fc%23d"]


class TestWhere:
    def test_the_unix_socket_counts_where_there_is_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client_module, "SOCKET", tmp_path / "api.sock")
        assert client_module.default_url() == "http://127.0.0.1:8080"
        (tmp_path / "api.sock").touch()
        assert client_module.default_url() == f"unix://{tmp_path}/api.sock"

    def test_a_socket_that_may_not_be_looked_at_is_no_reason_to_ask_elsewhere(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Closed:
            def stat(self) -> None:
                raise PermissionError(errno.EACCES, "Permission denied")

            def __str__(self) -> str:
                return "/run/jumptable/api.sock"

        monkeypatch.setattr(client_module, "SOCKET", Closed())
        assert client_module.default_url() == "unix:///run/jumptable/api.sock"

    def test_it_speaks_over_a_unix_socket(self, tmp_path: Path) -> None:
        config = write_config(tmp_path)
        path = tmp_path / "run" / "api.sock"
        with serve(config, path), Client(f"unix://{path}") as client:
            assert [each["name"] for each in client.list_maps()] == ["jump_table"]

    def test_neither_proxies_nor_netrc_are_asked(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with Client(url) as client:
            assert client.get_version()["name"] == "jumptable"

    def test_the_token_goes_with_each_request(self) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("authorization"))
            return httpx.Response(200, json={"maps": []}, headers={"x-request-id": "1"})

        with Client("http://service", token="jt_secret", transport=httpx.MockTransport(answer)) as client:
            client.list_maps()
        assert seen == ["Bearer jt_secret"]


def test_client_on_behalf_of_somebody_names_them_in_each_request() -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("jumptable-actor"))
        return httpx.Response(200, json={"change": None, "set": 0, "cleared": 0, "unchanged": 1})

    with answering(answer) as client:
        client.on_behalf_of("alice").update_entries("jump_table", {3: "drop"}, if_match='"1"')
        client.update_entries("jump_table", {3: "drop"})
    assert seen == ["alice", None]


def test_change_of_a_table_has_the_request_id_that_is_given_and_no_entries_if_they_are_not_wanted(
    client: Client,
) -> None:
    applied = client.update_entries("jump_table", {3: "drop", 4: "pass"}, minimal=True, request_id="a-b:c")
    assert applied["change"] is not None
    assert "entries" not in list(applied["change"])
    [change] = client.list_changes(request_id="a-b:c", order="desc", limit=1)["changes"]
    assert (change["id"], len(change["entries"])) == (applied["change"]["id"], 2)
