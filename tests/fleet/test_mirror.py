"""A controller's copy of the store is what the store holds, however it is read."""

import asyncio
import contextlib
import random
from typing import Any

import pytest

from app.fleet.mirror import Mirror
from app.fleet_store import keys
from app.fleet_store.documents import Leader, Node, Presence, TableState, TableStatus
from app.fleet_store.operations import delete, put
from tests.fleet_store.cluster import Cluster

pytestmark = pytest.mark.anyio


def _copy(mirror: Mirror) -> dict[str, Any]:
    names = ("rollouts", "active", "nodes", "alive", "desired", "statuses", "leader")
    return {name: getattr(mirror, name) for name in names}


def _random_operation(source: random.Random) -> Any:
    node = f"n{source.randrange(4)}"
    key, value = source.choice(
        [
            (keys.node(node), Node(labels={}, user=node, by="alice", at=0).to_bytes()),
            (keys.alive(node), Presence(since=0).to_bytes()),
            (
                keys.table_status(node, "t"),
                TableStatus(seen=1, state=TableState.APPLIED, at=source.random()).to_bytes(),
            ),
            (keys.table_status(node, "t"), b"garbage"),
            (
                keys.desired_table(node, "t"),
                b'signature\n{"rollout":"t-1","undo":false,"at":%d}' % source.randrange(99),
            ),
            (keys.desired_table(node, "t"), b"garbage"),
            (keys.active("t"), f"t-{source.randrange(9)}".encode()),
            (keys.CONTROLLER, Leader(name="a", since=0).to_bytes()),
            (keys.facts(node), b"nobody decides by this"),
        ]
    )
    return delete(key) if source.random() < 0.3 else put(key, value)


async def test_copy_is_what_the_store_holds_after_any_changes(cluster: Cluster) -> None:
    source = random.Random(1)
    async with cluster.client() as etcd:
        mirror = Mirror(etcd)
        following = asyncio.create_task(mirror.follow())
        try:
            last = 0
            for number in range(300):
                written = await etcd.commit([], [_random_operation(source)])
                assert written is not None
                last = written
                if number % 25 == 0:
                    await mirror.load()  # while the watch goes on
            last = await etcd.put(f"{keys.PREFIX}end", b"")
            async with asyncio.timeout(20):
                while mirror.revision < last:
                    await asyncio.sleep(0.01)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        fresh = Mirror(etcd)
        await fresh.load()
        assert _copy(mirror) == _copy(fresh)
        assert any(_copy(fresh).values())


async def test_older_events_do_not_undo_what_the_controller_has_written(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        mirror = Mirror(etcd)
        key = keys.active("t")
        first = await etcd.put(key, b"t-1")
        await mirror.load()
        mirror.note_written(first + 5, {key: b"t-2"})
        mirror.note_written(first + 3, {key: b"late"})
        assert mirror.active["t"].value == "t-2"
        mirror.note_written(first + 6, {key: None})
        assert mirror.active == {}
