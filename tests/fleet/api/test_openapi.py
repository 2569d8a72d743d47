"""The OpenAPI document of the fleet is complete, and it equals a snapshot, so that every change of it is seen."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from app.access.tokens import TokenFile, Tokens
from app.api.authorization import Authentication
from app.api.problems import FLEET_PROBLEMS
from app.fleet.api.app import create_app
from app.fleet.api.authorization import RIGHTS
from app.fleet.api.routes.service import PROBLEM_TYPES
from app.fleet.api.state import FleetState
from app.fleet_store.signatures import Signer
from tests.api.test_openapi import TAKEN, operations, parameters, schemas

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(FleetState(Signer.generate())).openapi()


def test_document_equals_the_snapshot(document: dict[str, Any]) -> None:
    """After a wanted change run UPDATE_SNAPSHOT=1 pytest tests/fleet/api/test_openapi.py, and read the difference."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert json.loads(SNAPSHOT.read_text()) == json.loads(text)


def test_every_operation_has_an_id_a_summary_and_its_errors(document: dict[str, Any]) -> None:
    assert {each["operationId"] for each in operations(document)} | {
        "get_docs",
        "get_docs_asset",
        "get_openapi",
    } == set(RIGHTS)
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert {"422", "500", "503"} <= set(operation["responses"])
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                for code, example in response["content"]["application/problem+json"]["examples"].items():
                    assert example["value"]["status"] == int(status) == PROBLEM_TYPES[code].status


def test_every_problem_is_documented_by_some_route(document: dict[str, Any]) -> None:
    documented = {
        code
        for operation in operations(document)
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    assert set(PROBLEM_TYPES) - documented == {"method-not-allowed"}
    assert documented <= set(PROBLEM_TYPES)
    assert set(FLEET_PROBLEMS) <= documented


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    for name in re.findall(r"#/components/schemas/([\w-]+)", json.dumps(document)):
        assert name in document["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_document_names_the_configured_authentication() -> None:
    tokens = Tokens(TokenFile(Path("/nonexistent")))
    app = create_app(FleetState(Signer.generate(), authentication=Authentication(tokens=tokens)))
    assert set(app.openapi()["components"]["securitySchemes"]) == {"token"}


def test_generators_of_clients_understand_it(document: dict[str, Any]) -> None:
    assert document["components"]["schemas"].keys() & TAKEN == set()
    for place, schema in schemas(document):
        assert not isinstance(schema.get("title"), str), place
        if schema.get("type") == "integer":
            assert "format" in schema, place
        if schema.get("type") == "null":
            assert re.search(r"/(anyOf|oneOf)/[0-9]+$", place)
    for operation in operations(document):
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            members = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
            assert {name for name, each in members.items() if "default" in each} == set(), reference
    tags = {each["name"] for each in document["tags"] if each["description"]}
    assert {tag for operation in operations(document) for tag in operation["tags"]} == tags


def test_examples_are_valid(document: dict[str, Any]) -> None:
    tried = 0
    for _, schema in schemas(document):
        examples = schema.get("examples", [])
        validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})
        for each in examples if isinstance(examples, list) else []:
            validator.validate(each)
            tried += 1
    for _, parameter in parameters(document):
        if "example" in parameter:
            jsonschema_rs.validator_for(parameter["schema"]).validate(parameter["example"])
            tried += 1
    assert tried > 40
