"""The client of etcd against a real cluster: what it promises when members die, freeze and forget."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from app.fleet_store import accounts, keys
from app.fleet_store.errors import Compacted, OutcomeUnknown, PermissionDenied, Refused, Unavailable, VersionRefused
from app.fleet_store.etcd import Etcd
from app.fleet_store.items import Event, Events, Snapshot
from app.fleet_store.operations import created_in, delete, is_absent, is_there, put, unchanged
from app.fleet_store.versions import version_warning
from tests.fleet_store.cluster import Cluster

pytestmark = pytest.mark.anyio
_KEY = f"{keys.PREFIX}test/key"
_PREFIX = f"{keys.PREFIX}test/"


async def test_key_is_read_as_it_was_written(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        assert await etcd.get(_KEY) is None
        first = await etcd.put(_KEY, b"one")
        second = await etcd.put(_KEY, b"\0two\xff")
        item = await etcd.get(_KEY)
        assert item is not None
        assert (item.value, item.create_revision, item.mod_revision) == (b"\0two\xff", first, second)
        assert etcd.connection.connected


async def test_range_of_many_pages_is_of_one_revision(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        names = [f"{_PREFIX}{number:05}" for number in range(1234)]
        for start in range(0, len(names), 100):
            await etcd.commit([], [put(name, b"x") for name in names[start : start + 100]])
        snapshot = await etcd.range(_PREFIX)
        assert list(snapshot.items) == names
        await etcd.commit([], [delete(names[0]), put(names[1], b"y")])
        before = await etcd.range(_PREFIX, revision=snapshot.revision)
        assert before == snapshot
        assert len((await etcd.range(_PREFIX)).items) == 1233
        assert {item.value for item in (await etcd.range(_PREFIX, keys_only=True)).items.values()} == {b""}


async def test_transaction_is_made_whole_or_not_at_all(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        one, two = f"{_PREFIX}1", f"{_PREFIX}2"
        created = await etcd.commit([is_absent(one)], [put(one, b"1"), put(two, b"1")])
        assert created is not None
        for compare in (is_absent(one), unchanged(one, created + 1), created_in(one, 0), is_there(f"{_PREFIX}3")):
            assert await etcd.commit([compare], [put(one, b"2"), delete(two)]) is None
        for compare in (is_there(one), unchanged(one, created), created_in(one, created), unchanged(f"{_PREFIX}3", 0)):
            assert await etcd.commit([compare, is_there(two)], [put(f"{_PREFIX}4", b"")]) is not None
        item = await etcd.get(two)
        assert item is not None
        assert (item.value, item.mod_revision) == (b"1", created)


async def test_request_that_is_too_large_is_refused(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        with pytest.raises(Refused, match=r"too large|larger"):
            await etcd.put(_KEY, b"x" * (2 << 20))
        with pytest.raises(Refused, match="too many operations"):
            await etcd.commit([], [put(f"{_PREFIX}{number}", b"") for number in range(129)])
        assert (await etcd.range(_PREFIX)).items == {}


async def test_lease_takes_its_keys_with_it(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        lease = await etcd.grant(2)
        await etcd.put(_KEY, b"", lease=lease.id)
        for _ in range(3):
            await asyncio.sleep(lease.seconds / 2)
            assert await lease.renew()
        assert await etcd.get(_KEY) is not None
        begin = time.monotonic()
        async with asyncio.timeout(30), aclosing(etcd.follow(_PREFIX)) as stream:
            async for each in stream:
                if isinstance(each, Events) and any(event.item is None for event in each.events):
                    break
        assert time.monotonic() - begin > 1.0
        assert not await lease.renew()
        await lease.revoke()  # which is over already


async def test_lease_that_is_revoked_ends_at_once(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        lease = await etcd.grant(60)
        await etcd.put(_KEY, b"", lease=lease.id)
        await lease.revoke()
        assert await etcd.get(_KEY) is None


class _Reader:
    """Follows a prefix, and keeps what it hears."""

    def __init__(self, etcd: Etcd) -> None:
        self.snapshots: list[Snapshot] = []
        self.events: list[Event] = []
        self.state: dict[str, bytes] = {}
        self.changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(etcd))

    async def _read(self, etcd: Etcd) -> None:
        async with aclosing(etcd.follow(_PREFIX)) as stream:
            async for each in stream:
                if isinstance(each, Snapshot):
                    self.snapshots.append(each)
                    self.state = {key: item.value for key, item in each.items.items()}
                else:
                    self.events += each.events
                    for event in each.events:
                        self.state.pop(event.key, None)
                        if event.item is not None:
                            self.state[event.key] = event.item.value
                self.changed.set()

    async def until(self, key: str, value: bytes) -> None:
        async with asyncio.timeout(40):
            while self.state.get(key) != value:
                self.changed.clear()
                await self.changed.wait()

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def _reader(etcd: Etcd) -> AsyncIterator[_Reader]:
    reader = _Reader(etcd)
    try:
        yield reader
    finally:
        await reader.end()


async def test_watch_tells_each_write_once_and_in_order(cluster: Cluster) -> None:
    async with cluster.client() as etcd, _reader(etcd) as reader:
        await etcd.put(_KEY, b"0")
        await reader.until(_KEY, b"0")
        for number in range(1, 200):
            await etcd.put(_KEY, str(number).encode())
        await etcd.commit([], [delete(_KEY), put(f"{_PREFIX}end", b"")])
        await reader.until(f"{_PREFIX}end", b"")
        revisions = [event.revision for event in reader.events if event.key == _KEY]
        assert revisions == sorted(set(revisions))
        values = [event.item.value for event in reader.events if event.key == _KEY and event.item is not None]
        assert values[-199:] == [str(number).encode() for number in range(1, 200)]
        assert reader.events[-1].revision == reader.events[-2].revision
        assert _KEY not in reader.state


@pytest.mark.slow
async def test_watch_loses_nothing_when_its_member_dies_or_freezes(cluster: Cluster) -> None:
    async with (
        cluster.client(timeout=1.0, keepalive=5.0) as writer,
        cluster.client(keepalive=5.0) as etcd,
        _reader(etcd) as reader,
    ):
        written = 0

        async def write(count: int) -> None:
            nonlocal written
            for _ in range(count):
                written += 1
                with contextlib.suppress(OutcomeUnknown):
                    await writer.put(_KEY, str(written).encode())

        for member in cluster.members:
            await write(50)
            member.kill()
            await write(50)
            await asyncio.to_thread(cluster.repair)
        for member in cluster.members:
            member.freeze()
            await write(20)
            member.thaw()
        # Not the last value of the key: a member that was frozen may still make a write that it got before.
        while await writer.get(f"{_PREFIX}end") is None:
            with contextlib.suppress(OutcomeUnknown):
                await writer.put(f"{_PREFIX}end", b"")
        await reader.until(f"{_PREFIX}end", b"")
        assert len(reader.snapshots) == 1
        revisions = [event.revision for event in reader.events]
        assert revisions == sorted(set(revisions))
        async with asyncio.timeout(20), aclosing(writer.watch(_PREFIX, reader.snapshots[0].revision)) as past:
            told = 0
            async for events in past:
                told += len(events.events)
                if told >= len(reader.events):
                    break
        assert told == len(reader.events)


async def _read_all(etcd: Etcd, prefix: str, after: int) -> None:
    async with aclosing(etcd.watch(prefix, after)) as stream:
        async for _ in stream:
            pass


async def test_watch_from_a_revision_that_is_gone_says_so(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        first = await etcd.put(_KEY, b"1")
        last = [await etcd.put(_KEY, str(number).encode()) for number in range(5)][-1]
        await etcd.compact(last)
        await etcd.compact(last)  # somebody else was first
        with pytest.raises(Compacted) as caught:
            await _read_all(etcd, _PREFIX, first)
        assert caught.value.revision == last
        with pytest.raises(Compacted):
            await etcd.range(_PREFIX, revision=first)


async def test_follower_that_has_missed_a_compaction_gets_everything_anew(cluster: Cluster) -> None:
    async with cluster.client() as writer, cluster.client(keepalive=5.0) as etcd, _reader(etcd) as reader:
        await writer.put(_KEY, b"1")
        await writer.put(f"{_PREFIX}gone", b"1")
        await reader.until(f"{_PREFIX}gone", b"1")
        for member in cluster.members:
            member.kill()
        await asyncio.to_thread(cluster.members[0].start)
        await asyncio.to_thread(cluster.members[1].start)
        await writer.commit([], [delete(f"{_PREFIX}gone"), put(_KEY, b"2")])
        await writer.compact(await writer.put(_KEY, b"3"))
        await reader.until(_KEY, b"3")
        async with asyncio.timeout(20):
            while f"{_PREFIX}gone" in reader.state:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_writes_are_neither_lost_nor_repeated_while_leaders_die(cluster: Cluster) -> None:
    """Each write is a transaction on what the writer has read. One whose outcome is not known is looked up."""
    async with cluster.client(timeout=1.0) as etcd:
        version = await etcd.put(_KEY, b"0")
        number, unknown = 0, 0
        ended = asyncio.Event()

        async def write() -> None:
            nonlocal version, number, unknown
            while not ended.is_set():
                value = str(number + 1).encode()
                try:
                    written = await etcd.commit([unchanged(_KEY, version)], [put(_KEY, value)], witness=_KEY)
                except Unavailable:
                    unknown += 1
                    await asyncio.sleep(0.05)
                    continue
                if written is None:  # it was made after all, late
                    item = await etcd.get(_KEY)
                    assert item is not None
                    assert item.value == value
                    written = item.mod_revision
                version, number = written, number + 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            for _ in range(2):
                await asyncio.sleep(0.5)
                leader = await asyncio.to_thread(cluster.leader)
                leader.kill()
                await asyncio.sleep(2.5)
                await asyncio.to_thread(cluster.repair)
            leader = await asyncio.to_thread(cluster.leader)
            leader.freeze()
            await asyncio.sleep(2.5)
            leader.thaw()
            await asyncio.sleep(0.5)
            ended.set()
        item = await etcd.get(_KEY)
        assert item is not None
        assert item.value == str(number).encode()
        assert number > 50
        values = []
        async with asyncio.timeout(20), aclosing(etcd.watch(_PREFIX, item.create_revision - 1)) as past:
            async for events in past:
                values += [int(event.item.value) for event in events.events if event.item is not None]
                if values[-1] == number:
                    break
        assert values == list(range(number + 1))


class _Lossy(Etcd):
    """A client to which the answers to writes do not come."""

    made = True

    async def _write(self, *arguments: Any) -> Any:
        if self.made:
            await super()._write(*arguments)
        raise OutcomeUnknown("lost")


async def test_witness_tells_how_a_transaction_went(cluster: Cluster) -> None:
    async with cluster.client() as etcd, _Lossy(cluster.endpoints, cluster.files("fleet").read()) as lossy:
        operations = [put(_KEY, b"ours"), put(f"{_PREFIX}2", b"")]
        created = await lossy.commit([is_absent(_KEY)], operations, witness=_KEY)
        item = await etcd.get(_KEY)
        assert item is not None
        assert created == item.mod_revision
        with pytest.raises(OutcomeUnknown):  # without a witness, nobody knows
            await lossy.commit([is_there(_KEY)], operations)
        lossy.made = False
        theirs = await etcd.put(_KEY, b"theirs")
        assert await lossy.commit([is_absent(_KEY)], operations, witness=_KEY) is None
        assert await lossy.commit([unchanged(_KEY, created)], operations, witness=_KEY) is None
        with pytest.raises(OutcomeUnknown, match="not made so far"):  # it may be made yet
            await lossy.commit([unchanged(_KEY, theirs)], operations, witness=_KEY)


async def test_outcome_that_is_not_known_is_looked_up_by_its_witness(cluster: Cluster) -> None:
    async with cluster.client(timeout=0.5, patience=20.0) as etcd:
        version = await etcd.put(_KEY, b"before")
        for member in cluster.members:
            member.freeze()
        committing = asyncio.create_task(etcd.commit([unchanged(_KEY, version)], [put(_KEY, b"ours")], witness=_KEY))
        await asyncio.sleep(1.0)  # longer than the client waits for the answer
        assert not committing.done()
        for member in cluster.members:
            member.thaw()
        with contextlib.suppress(OutcomeUnknown):  # it came too late, or comes yet
            written = await committing
            item = await etcd.get(_KEY)
            assert item is not None
            assert (item.value, item.mod_revision) == (b"ours", written)


@pytest.mark.slow
async def test_nothing_answers_without_a_quorum_and_says_so(cluster: Cluster) -> None:
    async with cluster.client(timeout=0.5, patience=2.0) as etcd:
        await etcd.put(_KEY, b"1")
        for member in cluster.members[1:]:
            member.kill()
        begin = time.monotonic()
        with pytest.raises(Unavailable):
            await etcd.get(_KEY)
        with pytest.raises(Unavailable):
            await etcd.put(_KEY, b"2")
        assert time.monotonic() - begin < 15
        assert not etcd.connection.connected
        assert etcd.connection.error
        await asyncio.to_thread(cluster.repair)
        await etcd.get(_KEY)
        assert etcd.connection.connected


async def test_node_reads_what_is_desired_of_it_and_writes_its_status_and_nothing_else(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        for name in ("edge-1", "edge-10"):
            await accounts.add_node(etcd, name, name)
            await accounts.add_node(etcd, name, name)  # which may be repeated
            await etcd.put(keys.desired_table(name, "t"), name.encode())
        async with cluster.client("edge-1", patience=1.0) as node:
            item = await node.get(keys.desired_table("edge-1", "t"))
            assert item is not None
            assert item.value == b"edge-1"
            await node.put(keys.table_status("edge-1", "t"), b"mine")
            lease = await node.grant(5)
            await node.put(keys.alive("edge-1"), b"", lease=lease.id)
            for forbidden in (
                node.get(keys.desired_table("edge-10", "t")),
                node.range(keys.desired("edge-10")),
                node.range(keys.DESIRED),
                node.range(keys.PREFIX),
                node.put(keys.desired_table("edge-1", "t"), b"forged"),
                node.put(keys.table_status("edge-10", "t"), b"forged"),
                node.commit([is_there(keys.desired_table("edge-10", "t"))], []),
                node.commit([], [put(keys.table_status("edge-1", "t"), b""), put(keys.CONTROLLER, b"")]),
                node.commit([], [delete(keys.desired_table("edge-1", "t"))]),
                node.compact(2),
                accounts.add_server(node, "edge-1"),
                accounts.add_node(node, "edge-1", "edge-1"),
            ):
                with pytest.raises(PermissionDenied):
                    await forbidden
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_read_all(node, keys.desired("edge-10"), 1), 1.0)
            assert "permission denied" in node.connection.error


async def test_node_that_is_removed_has_no_rights_any_more_and_nothing_is_left_of_it(cluster: Cluster) -> None:
    async with cluster.client() as etcd, cluster.client("edge-1", patience=0.5) as node:
        await accounts.add_node(etcd, "edge-1", "edge-1")
        await etcd.put(keys.node("edge-1"), b"{}")
        await etcd.put(keys.desired_table("edge-1", "t"), b"x")
        await node.put(keys.facts("edge-1"), b"{}")
        for _ in range(2):  # which may be repeated
            await accounts.remove_node(etcd, "edge-1", "edge-1")
        assert (await etcd.range(keys.PREFIX)).items == {}
        assert await etcd.user_roles("edge-1") is None
        with pytest.raises((PermissionDenied, Refused)):
            await node.put(keys.facts("edge-1"), b"{}")


async def test_writes_go_on_while_users_are_added_and_removed(cluster: Cluster) -> None:
    """etcd refuses requests that it has received before a change of users and not done by then."""
    async with cluster.client() as etcd, cluster.client("edge-1") as node, asyncio.timeout(60):
        await accounts.add_node(etcd, "edge-1", "edge-1")

        async def write() -> None:
            for _ in range(10):
                await node.put(keys.facts("edge-1"), b"{}")

        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(write()) for _ in range(4)]
            while not all(writer.done() for writer in writers):
                await accounts.add_node(etcd, "edge-2", "edge-2")
                await accounts.remove_node(etcd, "edge-2", "edge-2")


async def test_certificate_of_nobody_is_refused(cluster: Cluster) -> None:
    async with cluster.client("nobody-knows-me", patience=1.0) as stranger:
        with pytest.raises((PermissionDenied, Refused)):
            await stranger.get(_KEY)
    async with Etcd(cluster.endpoints, None, timeout=0.5, patience=1.0) as plain:
        with pytest.raises(Unavailable):
            await plain.get(_KEY)


async def test_versions_of_all_members_are_looked_at(cluster: Cluster) -> None:
    async with cluster.client() as etcd:
        members = await etcd.members()
        assert [member.endpoint for member in members] == cluster.endpoints
        assert len({member.leader for member in members}) == 1
        warnings = await etcd.check_versions()
        assert warnings == [w for m in members if (w := version_warning(m.version, m.endpoint)) is not None]


@pytest.mark.parametrize(
    "version", ["3.3.27", "3.4.23", "3.4.41", "3.5.16", "3.5.27", "3.6.8", "2.3.8", "x", "", "3.5"]
)
def test_version_in_which_nodes_can_write_the_keys_of_others_is_refused(version: str) -> None:
    with pytest.raises(VersionRefused, match="somewhere"):
        version_warning(version, "somewhere")


@pytest.mark.parametrize("version", ["3.4.42", "3.5.28", "3.5.32", "3.6.9", "3.6.13", "3.7.0"])
def test_version_in_which_nodes_can_read_the_keys_of_others_is_warned_of(version: str) -> None:
    warning = version_warning(version, "somewhere")
    assert warning is not None
    assert "upgrade it to 3.5.33, 3.6.14, 3.7.1 or later" in warning


@pytest.mark.parametrize("version", ["3.5.33", "3.6.14", "3.7.1", "3.8.0", "4.0.0", "3.7.1-rc.0+git"])
def test_later_versions_are_fine(version: str) -> None:
    assert version_warning(version, "somewhere") is None


async def test_large_values_are_read_and_told_whole(cluster: Cluster) -> None:
    """Together they are larger than an answer may be."""
    async with cluster.client() as etcd, _reader(etcd) as reader:
        begin = await etcd.put(_KEY, b"begin")
        for number in range(60):
            await etcd.put(f"{_PREFIX}{number:02}", os.urandom(1_400_000))
        await etcd.put(_KEY, b"end")
        await reader.until(_KEY, b"end")
        assert {len(value) for value in reader.state.values()} == {3, 1_400_000}
        assert {key: item.value for key, item in (await etcd.range(_PREFIX)).items.items()} == reader.state
        told: list[Event] = []
        async with asyncio.timeout(60), aclosing(etcd.watch(_PREFIX, begin)) as past:  # as after a long pause
            async for events in past:
                told += events.events
                if told[-1].key == _KEY:
                    break
        assert {event.key: event.item.value for event in told if event.item is not None} == reader.state
