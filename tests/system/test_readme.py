"""The READMEs: what they show is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from app.agent import settings as agent_settings
from app.api.problems import PROBLEMS
from app.config import Audit, Client, Limits, Map, Objects, Peer, Program, Server, Tls, Tokens
from tests.conftest import tool
from tests.running import demo

ROOT = Path(__file__).parent.parent.parent
API = "app/api/README.md"
CLI = "app/cli/README.md"
OPERATING = "deploy/README.md"


def text_of(file: str) -> str:
    return (ROOT / file).read_text()


def examples(file: str) -> list[tuple[str, str]]:
    """(command, what it prints) of every console block of the file, in order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text_of(file), re.DOTALL):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def masked(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r'"(id|duration_ns)":\d+', r'"\1":0', text)
    text = re.sub(r'"(request_id|loaded_at|at|confirm_by|confirmed_at)":"[^"]*"', r'"\1":""', text)
    text = re.sub(r'"tag":"[0-9a-f]{16}"', '"tag":""', text)
    text = re.sub(r"\b\d+ s( ago|,)", r"N s\1", text)
    text = re.sub(r"[\d,]+ ns$", "N ns", text, flags=re.MULTILINE)
    text = re.sub(r"^(ID .*|INDEX .*|MAP .*|\d+ .*|jump_table  .*)$", _cells, text, flags=re.MULTILINE)
    return re.sub(r'\\"[0-9a-f]{8}(-[0-9a-f]+)+\\"', "", text)


def _cells(line: re.Match[str]) -> str:
    """A line of a table without its widths, ids, tags and times."""
    first, *cells = re.split(r"  +", line[0])
    return " | ".join((first, *(re.sub(r"^(\d+|[0-9a-f]{16}|now|N s ago)$", "X", cell) for cell in cells)))


def test_there_are_examples_to_try() -> None:
    assert examples("README.md")
    assert len(examples("README.md") + examples(API)) >= 5


@pytest.mark.parametrize("file", ["README.md", API, pytest.param(CLI, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["memory", pytest.param("linux", marks=pytest.mark.kernel)])
@pytest.mark.parametrize("_curl", ["curl"] if tool("curl") else [])
def test_the_curls_answer_what_is_shown(file: str, kernel: str, _curl: str) -> None:
    """Each file's examples run in order against a demo of their own."""
    first = f'jumptable() {{ {sys.executable} -m app "$@" 2>&1; }}\n'
    with demo("--kernel", kernel) as service:
        for command, output in examples(file):
            real = command.replace("http://127.0.0.1:8080", service.url).replace("curl ", "curl -s ", 1)
            done = subprocess.run(
                ["bash", "-c", first + real.replace(".venv/bin/jumptable", "jumptable")],
                capture_output=True,
                text=True,
                check=not output.startswith("jumptable: ") and " diff " not in command,
                env={**os.environ, "JUMPTABLE_URL": service.url},
            )
            assert masked(done.stdout) == masked(output), command


def test_every_problem_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", text_of(API), re.MULTILINE)
    told = {
        code: int(status) for status, codes in rows for code in re.findall(r"`([a-z-]+)`", codes) if code in PROBLEMS
    }
    assert {code: kind.status for code, kind in PROBLEMS.items()} == told


def test_every_key_of_the_configuration_is_told() -> None:
    text = text_of(OPERATING)
    for model in (Server, Map, Program, Peer, Tokens, Limits, Objects, Audit, Tls, Client):
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", text), key
    for agents in (agent_settings.Settings, agent_settings.Etcd):
        for field in msgspec.structs.fields(agents):
            assert re.search(rf"^(# )?{field.name} = |^\[{field.name}\]$", text, re.MULTILINE), field.name
