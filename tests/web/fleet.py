"""A fleet to look at: its server on a real etcd, and nodes whose agents are played."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser

from app.access.rights import Role
from app.access.tokens import Token, TokenFile
from tests.fleet.played_nodes import WAIT_SECONDS, PlayedNodes, played_nodes
from tests.fleet.serving import write_config
from tests.fleet_store.cluster import Cluster
from tests.running import running
from tests.web.browser import Watched


@dataclass
class ServedFleet:
    """A server of the fleet with its controller, and nodes.

    Attributes:
        url: Where it listens, without a slash at its end.
        tokens: Its callers.
        nodes: Its nodes.
        client: An admin.
    """

    url: str
    tokens: TokenFile
    nodes: PlayedNodes
    client: httpx.Client

    def token(self, role: Role, **bounds: Any) -> str:
        """A new token."""
        return self.tokens.add(Token(f"{role}{time.monotonic_ns()}", "", role, time.time(), **bounds))

    def put(self, *programs: str | None, note: str = "", **strategy: Any) -> str:
        """Start a rollout of jump_table, and return its id."""
        body = {
            "selector": {"match": {"role": "edge"}},
            "range": "0-15",
            "programs": [*programs] or ["parse", "parse", None, "drop"],
            "strategy": {"waves": [1, "20%", "100%"], "max_unavailable": 100, "bake_seconds": 0, **strategy},
        }
        answer = self.client.put("/fleet/tables/jump_table", json=body, params={"note": note})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["rollout"])

    def wait_until(self, rollout: str, phase: str) -> None:
        """Wait until a rollout is in a phase."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (now := self.client.get(f"/fleet/rollouts/{rollout}").json())["phase"] != phase:
            assert time.monotonic() < deadline, now
            time.sleep(0.05)

    def watched(self, browser: Browser, role: Role = "admin", **options: Any) -> Watched:
        """A context of the browser in which somebody with this role has signed in already."""
        secret = self.token(role, **options.pop("bounds", {}))
        watched = Watched(browser, self.url, **options)
        watched.context.add_init_script(
            f"if (location.origin !== 'null') sessionStorage.setItem('jumptable.token', '{secret}')"
        )
        return watched


@contextmanager
def served_fleet(cluster: Cluster, folder: Path) -> Iterator[ServedFleet]:
    """Run a server of the fleet on a free port, and play its nodes."""
    (folder / "state").mkdir()
    config = write_config(cluster, folder, "[tokens]", server='host = "127.0.0.1"\nport = 0')
    tokens = TokenFile(folder / "state" / "tokens.json")
    secret = tokens.add(Token("deploy", "", "admin", time.time()))
    with played_nodes(cluster) as nodes, running("fleet", "serve", "--config", str(config)) as service:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=WAIT_SECONDS) as client:
            deadline = time.monotonic() + WAIT_SECONDS
            while not _leads(client):
                assert time.monotonic() < deadline, "no controller leads"
                time.sleep(0.05)
            yield ServedFleet(url, tokens, nodes, client)


def _leads(client: httpx.Client) -> bool:
    try:
        answer = client.get("/readyz")
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and answer.json()["leader"] is not None
