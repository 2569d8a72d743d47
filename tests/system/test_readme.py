"""The README: what it shows is what happens."""

import re
import subprocess
from pathlib import Path

import pytest

from app.api.problems import PROBLEMS
from app.config import Audit, Client, Limits, Map, Peer, Program, Server, Tls, Tokens
from tests.conftest import tool
from tests.running import demo

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def examples() -> list[tuple[str, str]]:
    """(command, what it prints) of every console block, in order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def masked(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r'"(id|duration_ns)":\d+', r'"\1":0', text)
    text = re.sub(r'"(request_id|loaded_at|at|confirm_by)":"[^"]*"', r'"\1":""', text)
    text = re.sub(r'"tag":"[0-9a-f]{16}"', '"tag":""', text)
    return re.sub(r'\\"[0-9a-f]{8}(-[0-9a-f]+)+\\"', "", text)


@pytest.mark.parametrize("kernel", ["memory", pytest.param("linux", marks=pytest.mark.kernel)])
@pytest.mark.parametrize("_curl", ["curl"] if tool("curl") else [])
def test_the_curls_answer_what_is_shown(kernel: str, _curl: str) -> None:
    shown = examples()
    assert len(shown) >= 5
    with demo("--kernel", kernel) as service:
        for command, output in shown:
            real = command.replace("http://127.0.0.1:8080", service.url).replace("curl ", "curl -s ", 1)
            done = subprocess.run(["bash", "-c", real], capture_output=True, text=True, check=True)
            assert masked(done.stdout) == masked(output), command


def test_every_problem_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", README, re.MULTILINE)
    told = {
        code: int(status) for status, codes in rows for code in re.findall(r"`([a-z-]+)`", codes) if code in PROBLEMS
    }
    assert {code: kind.status for code, kind in PROBLEMS.items()} == told


def test_every_key_of_the_configuration_is_told() -> None:
    for model in (Server, Map, Program, Peer, Tokens, Limits, Audit, Tls, Client):
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", README), key
