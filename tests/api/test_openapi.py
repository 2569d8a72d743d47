"""The OpenAPI document is complete, and it equals a snapshot, so that every change of it is seen."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from app.access.peers import Peers
from app.access.rights import Actor, Right
from app.access.tokens import TokenFile, Tokens
from app.api.authorization import RIGHTS, Authentication
from app.api.problems import PROBLEMS
from app.bpf.memory.kernel import MemoryKernel
from app.service.registry.registry import Registry
from tests.conftest import application

SNAPSHOT = Path(__file__).with_name("openapi.json")

OPERATIONS = {
    "list_maps", "get_map", "hold_map", "release_map", "list_entries", "get_entry", "set_entry", "clear_entry",
    "list_programs", "get_program", "hold_program", "release_program", "run_program", "explain_problem",
    "get_health", "get_readiness", "get_version", "replace_entries", "update_entries", "list_changes", "get_change",
    "revert_change", "confirm_change", "reconcile_map", "watch_events", "get_metrics",
}  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with application(Registry(MemoryKernel())) as app:
        return app.openapi()


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_document_equals_the_snapshot(document: dict[str, Any]) -> None:
    """After a wanted change run UPDATE_SNAPSHOT=1 pytest tests/api/test_openapi.py, and add a line to the changelog."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert json.loads(SNAPSHOT.read_text()) == json.loads(text)


def test_every_operation_has_an_id_a_summary_and_its_errors(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert {operation["operationId"] for operation in operations(document)} == OPERATIONS
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert {"422", "500", "503"} <= set(operation["responses"])
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                media = response["content"]["application/problem+json"]
                assert media["schema"] == {"$ref": "#/components/schemas/Problem"}
                for code, example in media["examples"].items():
                    assert int(status) in {PROBLEMS[code].status, 422}
                    assert example["value"]["status"] == int(status)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    for name in re.findall(r"#/components/schemas/([\w-]+)", json.dumps(document)):
        assert name in document["components"]["schemas"]


def test_no_default_error_of_the_framework_is_left(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_problem_is_documented_by_some_route(document: dict[str, Any]) -> None:
    documented = {
        code
        for operation in operations(document)
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    # The router and the connection answer these, so they belong to no route.
    assert set(PROBLEMS) - documented == {"method-not-allowed", "method-unknown"}


def test_document_names_the_configured_authentication(document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"], "nothing is asked for"
    tokens = Tokens(TokenFile(Path("/nonexistent")))
    actors = {"a.example.org": Actor("certificate:a", None)}
    cases: list[tuple[Authentication, list[dict[str, list[str]]]]] = [
        (Authentication(tokens=tokens), [{"token": []}]),
        (Authentication(tokens=tokens, certificates=actors), [{"token": []}, {"certificate": []}]),
        (Authentication(tokens=tokens, peers=Peers([])), [{"token": []}, {}]),
    ]
    for authentication, wanted in cases:
        with application(Registry(MemoryKernel()), authentication=authentication) as app:
            told = app.openapi()
        assert set(told["components"]["securitySchemes"]) == {name for each in wanted for name in each}
        for operation in operations(told):
            is_open = RIGHTS[operation["operationId"]] is Right.NONE
            assert operation.get("security") == (None if is_open else wanted)
            assert {"401", "403"} <= set(operation["responses"])
