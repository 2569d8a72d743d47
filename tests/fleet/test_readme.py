"""The page about the fleet's server tells what there is: routes, problems, keys of the configuration, metrics."""

import json
import re
from pathlib import Path

import pytest

from app.api.problems import FLEET_PROBLEMS
from app.cli.fleet import COMMANDS
from app.fleet.config import Controller, Etcd, FleetSettings, Server, Signing

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "app" / "fleet" / "README.md").read_text()
DOCUMENT = json.loads((Path(__file__).parent / "api" / "openapi.json").read_text())


def test_every_route_is_told_with_its_operation() -> None:
    section = TEXT.partition("## Routes")[2].partition("\n## ")[0]
    operations = {each["operationId"] for path in DOCUMENT["paths"].values() for each in path.values()}
    assert {each for each in operations if each not in section} == set()
    told = re.findall(r"/fleet/[a-z{}/]+[a-z}]", section.partition("```json")[0])
    assert {path for path in told if path not in DOCUMENT["paths"]} == set()


def test_every_problem_is_told_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", TEXT, re.MULTILINE)
    told = {code: int(status) for status, codes in rows for code in re.findall(r"`([a-z-]+)`", codes)}
    assert told == {code: kind.status for code, kind in FLEET_PROBLEMS.items()}


@pytest.mark.parametrize("section", [Server, Etcd, Signing, Controller, FleetSettings])
def test_every_key_of_the_configuration_is_told(section: type[FleetSettings]) -> None:
    table = TEXT.partition("## Set it up")[2].partition("\n## ")[0]
    for key in section.model_fields:
        assert re.search(rf"\b{key}\b", table), key


def test_every_metric_is_told() -> None:
    source = (ROOT / "app" / "fleet" / "api" / "routes" / "service.py").read_text()
    names = set(re.findall(r'"(jumptable_fleet_\w+)"', source))
    assert len(names) > 8
    assert {name for name in names if name not in TEXT} == set()


def test_every_command_is_told() -> None:
    page = (ROOT / "app" / "cli" / "README.md").read_text().partition("## The fleet")[2].partition("\n## ")[0]
    for name in (name for section in COMMANDS.values() for name in section):
        assert re.search(rf"`(fleet )?{name}\b", page), name
