"""What a node tells of itself: what runs there, whether it is ready, and what it opens to the fleet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from app.fleet_store import keys
from app.fleet_store.documents import NodeFacts, OpenMap, Presence
from tests.agent.conftest import NODE, TABLE, Fleet, Node, until

pytestmark = pytest.mark.anyio


async def told(fleet: Fleet, is_so: Callable[[NodeFacts], object] = bool) -> NodeFacts:
    async def look() -> NodeFacts | None:
        item = await fleet.etcd.get(keys.facts(NODE))
        facts = None if item is None else NodeFacts.from_bytes(item.value)
        return facts if facts is not None and is_so(facts) else None

    return await until(look)


async def test_node_tells_what_it_is_and_what_it_opens(fleet: Fleet, node: Node) -> None:
    facts = await told(fleet)
    assert (facts.version, facts.kernel.split()[0], facts.ready, facts.detail) == (__version__, "memory", True, "")
    assert facts.maps == (OpenMap(name=TABLE, max_entries=16),)


async def test_ranges_that_are_open_are_told(fleet: Fleet, bounded: Node) -> None:
    assert (await told(fleet)).maps == (OpenMap(name=TABLE, max_entries=16, ranges=((8, 9), (10, 11))),)


@pytest.mark.parametrize("grant", [{"role": "reader"}, {"maps": ["other"]}])
async def test_node_that_opens_nothing_says_so(fleet: Fleet, tmp_path: Path, grant: dict[str, Any]) -> None:
    node = Node(fleet, tmp_path / NODE, grant=grant)
    try:
        node.service.start()
        node.start_agent()
        assert (await told(fleet)).maps == ()
        assert (await fleet.said(await fleet.want({3: "drop"}))).code == "not-open"
    finally:
        await node.stop()


async def test_agent_whom_the_service_does_not_let_name_others_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    node = Node(fleet, tmp_path / NODE, grant={"on_behalf": False})
    try:
        node.service.start()
        node.start_agent()
        assert (await fleet.said(await fleet.want({3: "drop"}))).code == "actor-not-allowed"
        assert node.service.changes() == []
    finally:
        await node.stop()


async def test_presence_hangs_on_a_lease(fleet: Fleet, node: Node) -> None:
    async def presence() -> object:
        return await fleet.etcd.get(keys.alive(NODE))

    item: Any = await until(presence)
    assert item.lease != 0
    assert Presence.from_bytes(item.value).since > 0

    async def is_gone() -> bool:
        return await presence() is None

    await node.stop_agent()
    await until(is_gone)
