"""A process with the real service over the demo's table, that takes whoever connects for the agent of a fleet.

    python -m tests.agent.service SOCKET STATE_DIR KERNEL GRANT

The tests run as root, whom the service would let do everything, so here the user at the other end does not count.
"""

import json
import sys
from pathlib import Path
from typing import Any

from app.access.peers import Peer, PeerRule, Peers
from app.access.rights import Actor, Grant, Ranges
from app.api.authorization import Authentication
from app.api.state import State
from app.bpf.linux import LinuxKernel
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.server import logging
from app.server.listen import listen_unix
from app.server.run import serve
from app.service.registry.registry import Registry
from app.store.journal import Journal

AGENT = 23456


class AgentOnly(Peers):
    """Takes everybody for the agent."""

    def actor(self, peer: Peer) -> Actor:
        return super().actor(Peer(AGENT, frozenset()))


def grant_of(said: dict[str, Any]) -> Grant:
    names = {key: None if said.get(key) is None else frozenset(said[key]) for key in ("maps", "programs")}
    entries = None if said.get("entries") is None else Ranges.of(said["entries"])
    return Grant(said.get("role", "writer"), names["maps"], entries, names["programs"])


def main() -> None:
    socket, folder, kernel, said = sys.argv[1:]
    logging.configure()
    Path(folder).mkdir(exist_ok=True)
    registry = Registry(MemoryKernel() if kernel == "memory" else LinuxKernel(), ["/nowhere"])
    demo.fill(registry)
    options = json.loads(said)
    rule = PeerRule("fleet", grant_of(options), uid=AGENT, on_behalf=options.get("on_behalf", True))
    peers = AgentOnly([rule])
    journal = Journal(Path(folder) / "journal.db", "process")
    state = State(registry, journal, drift_interval=0.2, authentication=Authentication(peers=peers))
    try:
        serve(state, listen_unix(Path(socket), 0, 0))
    finally:
        state.service.close()
        registry.close()


if __name__ == "__main__":
    main()
