"""What etcd holds of the fleet, read for requests. Each function asks etcd, and answers with one revision of it.

What nodes have written is not trusted: garbage under a node's own keys makes this node look bad, and no other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from app.api.problems import HttpProblem
from app.fleet_store import keys
from app.fleet_store.documents import (
    BadDocument,
    DesiredTable,
    Document,
    Node,
    NodeFacts,
    Plan,
    Presence,
    Rollout,
    TableHead,
    TableRevision,
    TableState,
    TableStatus,
)
from app.fleet_store.etcd import Etcd
from app.fleet_store.items import Item, Snapshot
from app.fleet_store.signatures import unverified_document

_D = TypeVar("_D", bound=Document)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table.

    Attributes:
        head: Where its newest revision is said.
        newest: That revision.
        active: The id of its rollout that has not ended; None: there is none.
    """

    head: Item
    newest: TableRevision
    active: str | None

    @property
    def etag(self) -> str:
        """The entity tag of the table."""
        return etag_of(self.head)


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout.

    Attributes:
        item: Its key in etcd.
        rollout: What the key holds.
    """

    item: Item
    rollout: Rollout


@dataclass(frozen=True, slots=True)
class NodeTable:
    """A table on a node.

    Attributes:
        desired: What it is to hold; None: nothing of the fleet's.
        written: The revision of etcd in which that was written.
        status: What the node says of it; None: nothing, or nothing that can be read.
    """

    desired: DesiredTable | None = None
    written: int = 0
    status: TableStatus | None = None

    @property
    def answer(self) -> TableStatus | None:
        """What the node says to what is desired now; None: it has not answered yet."""
        status = self.status
        return status if status is not None and self.desired is not None and status.seen == self.written else None


@dataclass(slots=True)
class StoredNode:
    """A node.

    Attributes:
        name: Its name.
        item: Its key in etcd.
        node: What the key holds.
        presence: There while its agent is connected.
        facts: What it says of itself; None: nothing, or nothing that can be read.
        tables: Its tables, by name.
    """

    name: str
    item: Item
    node: Node
    presence: Presence | None = None
    facts: NodeFacts | None = None
    tables: dict[str, NodeTable] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """How it is in a word: see `FleetNode.state`."""
        if self.presence is None:
            return "away"
        if self.facts is None or not self.facts.ready:
            return "unready"
        wanted = [each for each in self.tables.values() if each.desired is not None]
        answers = [each.answer for each in wanted]
        if any(answer is not None and answer.state.failed for answer in answers):
            return "failed"
        is_changing = any(answer is None or answer.state is TableState.UNCONFIRMED for answer in answers)
        return "changing" if is_changing else "ready"


def etag_of(item: Item) -> str:
    """Return the entity tag of what a key holds. It changes with each write of the key."""
    return f'"{item.mod_revision}"'


async def find_table(etcd: Etcd, table: str) -> StoredTable | None:
    """Return a table; None: there is none of that name."""
    head = await etcd.get(keys.table(table))
    if head is None:
        return None
    newest = await etcd.get(keys.revision(table, TableHead.from_bytes(head.value).revision))
    active = await etcd.get(keys.active(table))
    if newest is None:  # it is written together with the head
        message = f"the newest revision of table {table!r} is missing"
        raise BadDocument(message)
    return StoredTable(head, TableRevision.from_bytes(newest.value), None if active is None else active.value.decode())


async def read_table(etcd: Etcd, table: str) -> StoredTable:
    """Return a table.

    Raises:
        HttpProblem: table-unknown.
    """
    found = await find_table(etcd, table)
    if found is None:
        raise table_unknown(table)
    return found


def table_unknown(table: str) -> HttpProblem:
    """Return the problem table-unknown."""
    detail = f"there is no table {table!r}; PUT /fleet/tables/{table} makes it"
    return HttpProblem("table-unknown", detail, facts={"table": table})


async def read_tables(etcd: Etcd) -> list[StoredTable]:
    """Return all tables, by name."""
    heads = await etcd.range(keys.TABLES)
    active = await etcd.range(keys.ACTIVE, revision=heads.revision)
    tables = []
    for key, head in heads.items.items():
        name = keys.last_part(key)
        newest = await etcd.get(keys.revision(name, TableHead.from_bytes(head.value).revision))
        if newest is not None:  # else it was removed meanwhile
            running = active.items.get(keys.active(name))
            revision = TableRevision.from_bytes(newest.value)
            tables.append(StoredTable(head, revision, None if running is None else running.value.decode()))
    return tables


async def read_revision(etcd: Etcd, table: str, number: int) -> TableRevision:
    """Return a revision of a table.

    Raises:
        HttpProblem: revision-unknown.
    """
    item = await etcd.get(keys.revision(table, number))
    if item is None:
        detail = f"table {table!r} has no revision {number}; GET /fleet/tables/{table}/revisions lists those there are"
        raise HttpProblem("revision-unknown", detail, facts={"table": table, "revision": number})
    return TableRevision.from_bytes(item.value)


async def read_rollout(etcd: Etcd, rollout: str) -> StoredRollout:
    """Return a rollout.

    Raises:
        HttpProblem: rollout-unknown.
    """
    item = await etcd.get(keys.rollout(rollout))
    if item is None:
        detail = f"there is no rollout {rollout!r}; GET /fleet/rollouts lists them"
        raise HttpProblem("rollout-unknown", detail, facts={"rollout": rollout})
    return StoredRollout(item, Rollout.from_bytes(item.value))


async def read_rollouts(etcd: Etcd) -> list[StoredRollout]:
    """Return all rollouts, the newest first."""
    found = [
        StoredRollout(item, Rollout.from_bytes(item.value)) for item in (await etcd.range(keys.ROLLOUTS)).items.values()
    ]
    return sorted(found, key=lambda each: each.item.create_revision, reverse=True)


async def read_plan(etcd: Etcd, rollout: str) -> Plan:
    """Return the plan of a rollout, which is written together with it."""
    item = await etcd.get(keys.plan(rollout))
    if item is None:
        message = f"the plan of rollout {rollout!r} is missing"
        raise BadDocument(message)
    return Plan.from_bytes(item.value)


async def read_node(etcd: Etcd, name: str) -> StoredNode:
    """Return a node.

    Raises:
        HttpProblem: node-unknown.
    """
    item = await etcd.get(keys.node(name))
    if item is None:
        detail = f"there is no node {name!r}; GET /fleet/nodes lists them"
        raise HttpProblem("node-unknown", detail, facts={"node": name})
    status = await etcd.range(keys.status(name))
    desired = await etcd.range(keys.desired_tables(name), revision=status.revision)
    node = StoredNode(name, item, Node.from_bytes(item.value))
    _fill({name: node}, status, desired)
    return node


async def read_nodes(etcd: Etcd) -> dict[str, StoredNode]:
    """Return all nodes, by name, in the order of names."""
    items = await etcd.range(keys.NODES)
    status = await etcd.range(keys.STATUS, revision=items.revision)
    desired = await etcd.range(keys.DESIRED, revision=items.revision)
    nodes = {
        keys.last_part(key): StoredNode(keys.last_part(key), item, Node.from_bytes(item.value))
        for key, item in items.items.items()
    }
    _fill(nodes, status, desired)
    return nodes


def _fill(nodes: Mapping[str, StoredNode], status: Snapshot, desired: Snapshot) -> None:
    """Add to nodes what they say, and what is desired of them."""
    for node, kind, item in _below(keys.DESIRED, desired):
        if node in nodes and kind == "tables":
            document = _read(DesiredTable, unverified_document(item.value))
            nodes[node].tables[keys.last_part(item.key)] = NodeTable(document, item.mod_revision)
    for node, kind, item in _below(keys.STATUS, status):
        if node not in nodes:
            continue
        if kind == "tables":
            name = keys.last_part(item.key)
            table = nodes[node].tables.get(name, NodeTable())
            nodes[node].tables[name] = NodeTable(table.desired, table.written, _read(TableStatus, item.value))
        elif kind == "facts":
            nodes[node].facts = _read(NodeFacts, item.value)
        elif kind == "alive":
            nodes[node].presence = _read(Presence, item.value) or Presence(since=0)


def _below(prefix: str, snapshot: Snapshot) -> Iterator[tuple[str, str, Item]]:
    """Yield each key with the node that it belongs to, and its kind."""
    for key, item in snapshot.items.items():
        node, _, rest = key.removeprefix(prefix).partition("/")
        yield node, rest.partition("/")[0], item


def _read(kind: type[_D], value: bytes) -> _D | None:
    """Return a document; None: it is none, as nodes may write what they like below their own keys."""
    try:
        return kind.from_bytes(value)
    except BadDocument:
        return None
