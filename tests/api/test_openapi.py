"""The OpenAPI document is complete, and it equals a snapshot, so that every change of it is seen."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
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
    "revert_change", "confirm_change", "reconcile_map", "watch_events", "get_metrics", "list_objects",
    "get_index", "get_graph", "get_object", "load_object", "unload_object",
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
    assert document["security"] == []
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
            right = RIGHTS[operation["operationId"]]
            optional = [*wanted, {}] if right is Right.DOCS and {} not in wanted else wanted
            assert operation["security"] == ([] if right is Right.NONE else optional)
            assert {"401", "403"} <= set(operation["responses"])


# Names of types that languages have themselves: a class of this name hides them, or does not compile.
TAKEN = {"Any", "Array", "Boolean", "Date", "Dict", "Error", "Event", "Function", "Index", "Integer", "Iterable",
         "Iterator", "List", "Long", "Map", "Number", "Object", "Optional", "Override", "Package", "Process", "Promise",
         "Record", "Request", "Response", "Set", "String", "Symbol", "Thread", "Type", "Union", "Void"}  # fmt: skip


def schemas(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema below a part of the document, with its place. Conditions (`if`, `not` …) describe no type."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from schemas(each, f"{place}/{number}")
    if not isinstance(node, dict):
        return
    if {"type", "$ref", "anyOf", "oneOf"} & node.keys() and not place.endswith("/properties"):
        yield place, node
    for key, each in node.items():
        is_data = {"examples", "example", "value"} & {key} and not place.endswith("/properties")
        is_condition = key in {"if", "then", "else", "not"} and not place.endswith("/properties")
        if not is_data and not is_condition:
            yield from schemas(each, f"{place}/{key}")


@pytest.mark.field
def test_no_type_is_null_alone(document: dict[str, Any]) -> None:
    """Field 14: a property of type null, for which generators of clients know no type."""
    alone = [
        place
        for place, schema in schemas(document)
        if schema.get("type") == "null" and not re.search(r"/(anyOf|oneOf)/[0-9]+$", place)
    ]
    assert alone == []
    assert [name for name, each in parameters(document) if "null" in json.dumps(each["schema"])] == []


def parameters(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{operation['operationId']} {each['name']}", each)
        for operation in operations(document)
        for each in operation.get("parameters", [])
    ]


@pytest.mark.field
def test_integers_beyond_32_bits_say_so(document: dict[str, Any]) -> None:
    """Field 14: a u32 without a format, which generators take for 32 bits with a sign."""
    integers = [(place, schema) for place, schema in schemas(document) if schema.get("type") == "integer"]
    assert len(integers) > 30
    for place, schema in integers:
        bounds = [schema[each] for each in ("minimum", "maximum") if each in schema]
        is_small = len(bounds) == 2 and all(abs(each) < 1 << 31 for each in bounds)
        assert schema["format"] == ("int32" if is_small else "int64"), place
        assert all(type(each) is int for each in bounds), place
    index = dict(parameters(document))["get_entry index"]
    assert index["schema"] == {"type": "integer", "minimum": 0, "maximum": 4294967295, "format": "int64"}


@pytest.mark.field
def test_no_schema_is_named_like_a_type_of_a_language(document: dict[str, Any]) -> None:
    """Field 14: a schema `Map`, which does not compile in Java."""
    names = document["components"]["schemas"].keys()
    assert names & TAKEN == set()
    titles = {place: schema["title"] for place, schema in schemas(document) if isinstance(schema.get("title"), str)}
    assert titles == {}, "generators name types by titles, and those of members clash"


@pytest.mark.field
def test_alternatives_are_listed_once_and_the_most_specific_first(document: dict[str, Any]) -> None:
    """Field 14: alternatives of an answer that are listed twice, or of which a client always takes the same."""
    components = document["components"]["schemas"]
    for place, schema in schemas(document):
        alternatives = schema.get("anyOf", [])
        assert [each for each in alternatives if alternatives.count(each) > 1] == [], place
        required = [
            len(components[each["$ref"].rpartition("/")[2]].get("required", ()))
            for each in alternatives
            if "$ref" in each
        ]
        assert required == sorted(required, reverse=True), place


def test_reads_have_one_schema_each(document: dict[str, Any]) -> None:
    """Generated clients return a wrapper in place of a model where there are several."""
    reads = [path["get"] for path in document["paths"].values() if "get" in path]
    bodies = [body for read in reads for body in read["responses"].get("200", {}).get("content", {}).items()]
    assert len(bodies) > 15
    for type_, body in bodies:
        assert type_ != "application/json" or "$ref" in body["schema"] or "type" in body["schema"], body


@pytest.mark.field
def test_members_of_bodies_have_no_default(document: dict[str, Any]) -> None:
    """Field 14: `flags`, which openapi-typescript takes for required since it has a default."""
    components = document["components"]["schemas"]
    for operation in operations(document):
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            members = components[reference.rpartition("/")[2]]["properties"]
            assert {name for name, each in members.items() if "default" in each} == set(), reference


@pytest.mark.field
def test_document_has_what_linters_ask_for(document: dict[str, Any]) -> None:
    """Field 14: a document that redocly and spectral complain about."""
    assert document["servers"] == [{"url": "/", "description": document["servers"][0]["description"]}]
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert "email" not in document["info"]["contact"]
    tags = {each["name"] for each in document["tags"] if each["description"]}
    assert {tag for operation in operations(document) for tag in operation["tags"]} == tags
    for operation in operations(document):
        assert any(400 <= int(status) < 500 for status in operation["responses"])


@pytest.mark.field
def test_examples_are_valid_and_unique(document: dict[str, Any]) -> None:
    """Field 14: an example that its own schema refuses."""
    tried = 0
    for place, schema in schemas(document):
        examples = schema.get("examples", [])
        if isinstance(examples, list):
            assert [each for each in examples if examples.count(each) > 1] == [], place
            validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})
            for each in examples:
                validator.validate(each)
                tried += 1
    for _, parameter in parameters(document):
        if "example" in parameter:
            jsonschema_rs.validator_for(parameter["schema"]).validate(parameter["example"])
            tried += 1
    assert tried > 50
