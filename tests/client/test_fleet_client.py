"""The client of the fleet's server, held against the OpenAPI document of the fleet."""

import inspect
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import httpx
import pytest

from app.client import Refused, Unexpected
from app.client import fleet as fleet_module
from app.client import fleet_answers as answers
from app.client.events import events_of
from app.client.fleet import FleetClient, TaggedFleetOptions, default_fleet_url

DOCUMENT = json.loads((Path(__file__).parent.parent / "fleet" / "api" / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
# Operations for others than callers of a client: for probes and browsers.
NOT_FOR_CLIENTS = {"get_liveness", "explain_problem"}
ANSWERS = [name for name, each in vars(answers).items() if is_typeddict(each)]


def operations() -> dict[str, Any]:
    return {each["operationId"]: each for methods in DOCUMENT["paths"].values() for each in methods.values()}


def test_there_is_a_method_for_each_operation() -> None:
    methods = {name for name, _ in inspect.getmembers(FleetClient, inspect.isfunction)}
    assert operations().keys() - NOT_FOR_CLIENTS <= methods


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_has_the_members_of_the_document(name: str) -> None:
    schema, hints = SCHEMAS[name], get_type_hints(getattr(answers, name))
    assert hints.keys() == schema["properties"].keys()
    for member, hint in hints.items():
        said = schema["properties"][member]
        is_nullable = any(each.get("type") == "null" for each in said.get("anyOf", []))
        assert (type(None) in get_args(hint)) == is_nullable, member


def test_the_phases_are_those_of_the_document() -> None:
    assert set(get_args(answers.Phase)) == set(SCHEMAS["Phase"]["enum"])


def test_the_options_of_changes_are_those_of_the_document() -> None:
    for operation in ("put_table", "delete_table", "start_rollout", "put_node", "delete_node"):
        places = {"query", "header"}
        given = {each["name"] for each in operations()[operation]["parameters"] if each["in"] in places}
        names = {each.lower().replace("-", "_") for each in given} - {"pretty"}
        assert get_type_hints(TaggedFleetOptions).keys() == names, operation


def answering(status: int, body: Any, kind: str = "application/json") -> tuple[FleetClient, list[httpx.Request]]:
    """A client whose server always answers this, and what it was asked."""
    asked: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        headers = {"content-type": kind, "x-request-id": "1"}
        return httpx.Response(status, content=json.dumps(body), headers=headers)

    return FleetClient("http://fleet", transport=httpx.MockTransport(respond)), asked


class TestRequests:
    def test_options_become_the_query_and_conditions(self) -> None:
        client, asked = answering(200, {})
        client.put_table("jump_table", {"range": "0-1"}, note="why", dry_run=True, if_match='"7"')
        assert str(asked[0].url) == "http://fleet/fleet/tables/jump_table?note=why&dry_run=true"
        assert asked[0].headers["if-match"] == '"7"'
        assert json.loads(asked[0].content) == {"range": "0-1"}
        client.delete_node("n1", note=None, dry_run=False, if_none_match=None)
        assert str(asked[1].url) == "http://fleet/fleet/nodes/n1"
        client.list_nodes(labels={"role": "edge", "site": "fra"}, limit=5)
        assert dict(asked[2].url.params) == {"label": "role=edge,site=fra", "limit": "5"}

    def test_a_server_without_its_store_is_not_ready_and_says_why(self) -> None:
        problem = {"status": 503, "code": "store-unavailable", "detail": "etcd does not answer"}
        client, _ = answering(503, problem, "application/problem+json")
        assert client.get_readiness() == {
            "ready": False, "reason": "etcd does not answer", "leader": None, "warnings": [],
        }  # fmt: skip
        with pytest.raises(Refused):
            client.list_tables()

    def test_something_else_at_the_url_is_unexpected(self) -> None:
        client, _ = answering(404, "nothing here", "text/html")
        with pytest.raises(Unexpected):
            client.list_tables()

    def test_the_socket_is_where_it_is_looked_for_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fleet_module, "SOCKET", tmp_path / "fleet.sock")
        assert default_fleet_url() == "http://127.0.0.1:8090"
        (tmp_path / "fleet.sock").touch()
        assert default_fleet_url() == f"unix://{tmp_path}/fleet.sock"


def test_events_of_one_revision_have_the_id_of_the_last_before_until_their_own_comes() -> None:
    text = ": after event 7\n\nevent: a\ndata: 1\n\nid: 8\nevent: b\ndata: 2\n\nevent: c\ndata: 3\n\n"
    assert [(each.id, each.type) for each in events_of([text])] == [(7, "a"), (8, "b"), (8, "c")]
