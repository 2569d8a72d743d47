"""The alerts and the dashboard in deploy/: they ask for what the service tells."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.client import Client
from app.service.counters import TIMED_CALLS
from tests.conftest import tool
from tests.running import demo

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "jumptable.rules.yml").read_text())["groups"][0]["rules"]
TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "jumptable.test.yml").read_text())["tests"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "jumptable.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SHOWN = {f"{panel['title']}: {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES}

SELECTOR = re.compile(r"\b((?:jumptable|process)_[a-z_]+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
FROM_PROMETHEUS = {"job", "instance"}  # labels that it adds to what it scrapes


@pytest.fixture(scope="module")
def metrics() -> Iterator[dict[str, set[str]]]:
    """Of a service that has done something: the labels of each metric that it tells."""
    with demo("--kernel", "memory") as service, Client(service.url) as client:
        client.set_entry("jump_table", 3, "drop", confirm_within=600)
        found: dict[str, set[str]] = {"up": set()}
        for family in text_string_to_metric_families(client.get_metrics()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        yield found


def with_values(expression: str) -> str:
    """The expression as Grafana sends it."""
    for name, value in {"$instance": ".*", "$__rate_interval": "1m", "$__interval": "1m"}.items():
        expression = expression.replace(name, value)
    return expression


def check(expression: str, metrics: dict[str, set[str]]) -> None:
    """Every metric that is asked for is told, and with the labels that are asked for."""
    selectors = SELECTOR.findall(expression)
    assert selectors
    for name, matchers in selectors:
        assert name in metrics
        for label, operator, value in MATCHER.findall(matchers):
            assert label in metrics[name] | FROM_PROMETHEUS, f"{name} has no label {label}"
            assert (label, operator) != ("call", "=") or value in TIMED_CALLS
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        known = set().union(*(metrics[name] for name, _ in selectors)) | FROM_PROMETHEUS
        assert {label.strip() for label in labels.split(",")} <= known


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_asks_for_what_the_service_tells(metrics: dict[str, set[str]], name: str) -> None:
    check(ALERTS[name], metrics)


@pytest.mark.parametrize("name", SHOWN)
def test_a_panel_asks_for_what_the_service_tells(metrics: dict[str, set[str]], name: str) -> None:
    check(with_values(SHOWN[name]), metrics)


def test_the_variable_of_the_dashboard_is_made_of_what_the_service_tells(metrics: dict[str, set[str]]) -> None:
    [query] = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert re.fullmatch(r"label_values\((\w+), instance\)", query)[1] in metrics  # type: ignore[index]


def test_everything_that_is_measured_is_shown(metrics: dict[str, set[str]]) -> None:
    base = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for text in SHOWN.values() for name, _ in SELECTOR.findall(text)}
    # Nobody watches these over time: the version, and how much is held.
    in_words = {"jumptable_info", "jumptable_maps", "jumptable_programs", "jumptable_objects"}
    assert {name for name in base if name.startswith("jumptable_")} - in_words <= shown


@pytest.mark.skipif(not tool("promtool"), reason="promtool is not installed: apt-get install prometheus")
class TestPromtool:
    """What Prometheus itself says. The expressions of the dashboard are checked as if they were rules."""

    def test_the_alerts_do_what_their_tests_say(self) -> None:
        run("test", "rules", "jumptable.test.yml")

    def test_the_rules_are_valid(self) -> None:
        run("check", "rules", "jumptable.rules.yml")

    def test_the_configuration_is_valid(self) -> None:
        run("check", "config", "--syntax-only", "prometheus.yml")

    def test_the_expressions_of_the_dashboard_are_valid(self, tmp_path: Path) -> None:
        rules = [{"record": f"panel:{number}", "expr": with_values(text)} for number, text in enumerate(SHOWN.values())]
        file = tmp_path / "rules.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
        run("check", "rules", str(file))


def run(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_and_to_be_silent() -> None:
    checked = [each for test in TESTS for each in test.get("alert_rule_test", [])]
    assert {each["alertname"] for each in checked if each.get("exp_alerts")} == set(ALERTS)
    assert {each["alertname"] for each in checked if not each.get("exp_alerts")} == set(ALERTS)


@pytest.mark.parametrize("rule", RULES, ids=ALERTS)
def test_a_runbook_is_there(rule: dict[str, Any]) -> None:
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (DEPLOY.parent / file).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestLayout:
    def test_panels_have_ids_of_their_own_and_do_not_overlap(self) -> None:
        ids = [panel["id"] for panel in DASHBOARD["panels"]]
        assert len(ids) == len(set(ids))
        taken: set[tuple[int, int]] = set()
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_every_question_goes_to_the_source_that_is_chosen(self) -> None:
        for panel in PANELS:
            for each in (panel, *panel["targets"]):
                assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
