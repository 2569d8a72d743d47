"""What the agent tells on the node: the status file and `jumptable status`, metrics, and systemd."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.agent import status_file
from tests.agent.conftest import NODE, TABLE, Fleet, Node, until
from tests.agent.process import agent_process

pytestmark = pytest.mark.anyio


def status(node: Node, *arguments: str) -> str:
    """What `jumptable status` prints on the node."""
    variables = {
        "JUMPTABLE_URL": f"unix://{node.service.socket}",
        "JUMPTABLE_AGENT_STATUS": str(node.settings.status_file),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "app", "status", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout


async def connected(node: Node) -> bool:
    return bool(node.report["connected"] and TABLE in node.report["tables"])


async def test_status_shows_the_connection_and_the_revision(fleet: Fleet, node: Node) -> None:
    await fleet.said(await fleet.want({3: "drop"}))
    await until(lambda: connected(node))
    shown = status(node)
    assert f"fleet: node {NODE}, connected, for " in shown
    assert next(line.split() for line in shown.splitlines() if line.startswith(TABLE)) == [TABLE, "1", "applied"]
    told = json.loads(status(node, "-o", "json"))["fleet"]
    assert (told["running"], told["connected"], told["node"]) == (True, True, NODE)
    assert told["tables"][TABLE]["revision"] == 1
    assert any("3.5.30" in each for each in told["warnings"]) or not told["warnings"]


async def test_status_shows_a_no_with_its_sentence(fleet: Fleet, node: Node) -> None:
    await fleet.said(await fleet.want({3: "absent"}))
    await until(lambda: connected(node))
    assert "refused: there is no program 'absent'" in status(node)


async def test_status_tells_that_the_agent_is_gone(fleet: Fleet, node: Node) -> None:
    await fleet.said(await fleet.want({3: "drop"}))
    await until(lambda: connected(node))
    file = node.settings.status_file
    old = file.read_bytes()
    await node.stop_agent()
    assert "fleet: node" not in status(node), "it ended in order, and nothing says that there should be one"
    report = json.loads(old)
    report["beat"] -= 3 * status_file.BEAT_SECONDS + 1
    file.write_text(json.dumps(report))
    assert "the agent does not run, or hangs" in status(node)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"beat": "x"}', "null"])
def test_status_file_that_makes_no_sense_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "status").write_text(content)
    monkeypatch.setenv("JUMPTABLE_AGENT_STATUS", str(tmp_path / "status"))
    assert status_file.read() is None


async def test_metrics_tell_the_connection_and_the_tables(fleet: Fleet, node: Node) -> None:
    await node.stop_agent()
    number = os.getpid() % (1 << 16)
    address = f"127.3.{number // 256}.{number % 256}:9105"  # nobody else's
    with agent_process(node, more=f'metrics = "{address}"'):
        await fleet.said(await fleet.want({3: "drop"}))
        await fleet.said(await fleet.want({3: "absent"}))

        async def told() -> str | None:
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"http://{address}/metrics")).text
            return text if f'{{state="refused",table="{TABLE}"}} 1.0' in text else None

        text = await until(told)
    assert "\njumptable_agent_connected 1.0\n" in text
    assert "\njumptable_agent_connections_total 1.0\n" in text
    assert f'\njumptable_agent_table_revision{{table="{TABLE}"}} 1.0\n' in text
    assert f'\njumptable_agent_table_state{{state="applied",table="{TABLE}"}} 0.0\n' in text
    assert f'\njumptable_agent_table_stuck{{table="{TABLE}"}} 0.0\n' in text


async def test_systemd_is_told_how_the_agent_is_and_that_it_lives(fleet: Fleet, node: Node, tmp_path: Path) -> None:
    await node.stop_agent()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with agent_process(
            node, env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        ) as process:
            texts = [manager.recv(1000).decode()]
            while "STATUS=connected to the fleet" not in texts[-1]:
                texts.append(manager.recv(1000).decode())
            assert texts[0].startswith("READY=1\nSTATUS=")
            assert "WATCHDOG=1" in texts
            process.process.terminate()
            while manager.recv(1000) != b"STOPPING=1":
                pass
            assert process.process.wait(30) == 0
