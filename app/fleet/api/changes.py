"""What requests change in etcd: tables, rollouts and nodes. Each change is one transaction with compares."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from app.api.problems import HttpProblem
from app.fleet.api.reading import (
    StoredNode,
    StoredRollout,
    StoredTable,
    etag_of,
    find_table,
    read_node,
    read_nodes,
    read_plan,
    read_rollout,
    read_rollouts,
    read_table,
    table_unknown,
)
from app.fleet.plan import make_plan, matching
from app.fleet.state_machine import ACTIONS
from app.fleet_store import accounts, keys
from app.fleet_store.documents import (
    Action,
    DesiredTable,
    Node,
    NodeFacts,
    OpenMap,
    Phase,
    Plan,
    Rollout,
    TableHead,
    TableRevision,
    Transition,
)
from app.fleet_store.etcd import MAX_OPERATIONS, MAX_REQUEST_BYTES, Etcd
from app.fleet_store.items import Item
from app.fleet_store.operations import delete, is_absent, put, unchanged
from app.fleet_store.specification import Specification

_ATTEMPTS: Final = 8  # to change a rollout while its controller changes it as well
_ACTION_SECONDS: Final = 400 * 86_400  # for so long it is recorded what was done to nodes
_MAX_TOLD: Final = 20  # nodes in a problem

# Checks the entity tag of what is there (None: nothing is), and raises what forbids the change.
Precondition = Callable[[str | None], None]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who changes something.

    Attributes:
        name: As it is recorded.
        request_id: Of the request.
        note: Why.
    """

    name: str
    request_id: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A rollout that can be started.

    Attributes:
        before: The table as it is; None: there is none of that name.
        revision: The revision to write.
        plan: Where it goes to.
        nodes: All nodes of the fleet, by name.
        is_known: Whether the table has this content already, on all of its nodes.
    """

    before: StoredTable | None
    revision: TableRevision
    plan: Plan
    nodes: dict[str, StoredNode]
    is_known: bool


async def plan_table(etcd: Etcd, wanted: TableRevision, precondition: Precondition) -> Planned:
    """Plan a rollout, and change nothing.

    Args:
        etcd: The store.
        wanted: The revision, whose number is set here.
        precondition: Of the request.

    Raises:
        HttpProblem: precondition-failed, no-node-matches or nodes-not-ready; rollout-in-progress: the table has one.
    """
    table = wanted.table
    before = await find_table(etcd, table)
    precondition(None if before is None else before.etag)
    if before is not None and before.active is not None:
        detail = f"rollout {before.active} of table {table!r} has not ended; wait for it, or abort it"
        raise HttpProblem("rollout-in-progress", detail, facts={"table": table, "rollout": before.active})
    written = await etcd.range(keys.revisions(table), keys_only=True)  # also those of a table that was deleted
    numbers = [int(keys.last_part(key)) for key in written.items]
    revision = msgspec.structs.replace(wanted, revision=max(numbers, default=0) + 1)
    nodes = await read_nodes(etcd)
    names = matching(revision.selector, {name: node.node for name, node in nodes.items()})
    if not names:
        labels = ", ".join(f"{name}={value}" for name, value in revision.selector.items()) or "any labels"
        detail = f"no node has {labels}; GET /fleet/nodes shows the labels of all"
        raise HttpProblem("no-node-matches", detail, facts={"selector": revision.selector})
    _check_ready(revision, [nodes[name] for name in names])
    alive = {name for name in names if nodes[name].presence is not None}
    desired = {name: found for name in names if (found := _desired(nodes[name], table)) is not None}
    plan = await asyncio.to_thread(make_plan, revision, names, alive, desired)
    return Planned(before, revision, plan, nodes, await _is_known(etcd, before, revision, plan))


def _desired(node: StoredNode, table: str) -> DesiredTable | None:
    return node.tables[table].desired if table in node.tables else None


def _check_ready(revision: TableRevision, nodes: Sequence[StoredNode]) -> None:
    """Check that not all nodes are away, nor more than the strategy allows, and that no other is known to refuse."""
    specification = Specification.from_bytes(revision.specification)
    away, refusing = [], []
    for node in nodes:
        if node.presence is None:
            away.append({"node": node.name, "reason": "its agent is not connected"})
            continue
        reason = _reason_against(node.facts, revision.table, specification)
        if reason is not None:
            refusing.append({"node": node.name, "reason": reason})
    is_too_many = len(away) > revision.strategy.max_unavailable or len(away) == len(nodes)
    bad = [*refusing, *away] if is_too_many else refusing
    if bad:
        first = bad[0]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        detail = f"node {first['node']}: {first['reason']}{more}; mend them, or leave them out of selector"
        raise HttpProblem("nodes-not-ready", detail, facts={"nodes": bad[:_MAX_TOLD], "count": len(bad)})


def _reason_against(facts: NodeFacts | None, table: str, specification: Specification) -> str | None:
    """Return why a node would refuse a table, by what it says of itself. None: nothing is known against it."""
    if facts is None:
        return "its agent has not said yet what is open to the fleet"
    if not facts.ready:
        return f"its service is not ready: {facts.detail}"
    opened = next((each for each in facts.maps if each.name == table), None)
    if opened is None:
        return f"its configuration does not open the map {table!r} to the fleet"
    if specification.last >= opened.max_entries:
        return f"its map {table!r} has {opened.max_entries} entries only"
    if not _is_open(opened, specification):
        return f"its configuration does not open all entries of {specification.first}-{specification.last} to the fleet"
    return None


def _is_open(opened: OpenMap, specification: Specification) -> bool:
    if opened.ranges is None:
        return True
    following = specification.first
    for first, last in sorted(opened.ranges):
        if first <= following <= last:
            following = last + 1
    return following > specification.last


async def _is_known(etcd: Etcd, before: StoredTable | None, revision: TableRevision, plan: Plan) -> bool:
    """Whether the newest revision has the same content, and has come to all of the same nodes."""
    if before is None:
        return False
    newest = before.newest
    if (newest.selector, newest.strategy, newest.specification) != (
        revision.selector,
        revision.strategy,
        revision.specification,
    ):
        return False
    try:
        last = await read_rollout(etcd, keys.rollout_id(newest.table, newest.revision))
    except HttpProblem:
        return False
    if last.rollout.phase is not Phase.COMPLETE:
        return False
    return set((await read_plan(etcd, last.rollout.id)).nodes()) == set(plan.nodes())


async def start(etcd: Etcd, planned: Planned) -> StoredTable:
    """Write a revision, and start its rollout.

    Returns:
        The table.

    Raises:
        HttpProblem: spec-too-large; rollout-in-progress or precondition-failed: another caller was first.
    """
    revision, before = planned.revision, planned.before
    table, by, at = revision.table, revision.by, revision.at
    rollout = keys.rollout_id(table, revision.revision)
    started = Rollout(
        id=rollout,
        table=table,
        revision=revision.revision,
        phase=Phase.PROGRESSING,
        wave=0,
        since=at,
        by=by,
        reason=revision.note,
        history=(Transition(at=at, by=by, phase=Phase.PROGRESSING, wave=0, reason=revision.note),),
    )
    values = {
        keys.table(table): TableHead(revision=revision.revision).to_bytes(),
        keys.revision(table, revision.revision): revision.to_bytes(),
        keys.active(table): rollout.encode(),
        keys.rollout(rollout): started.to_bytes(),
        keys.plan(rollout): planned.plan.to_bytes(),
    }
    size = sum(len(key) + len(value) for key, value in values.items())
    if size > MAX_REQUEST_BYTES:
        detail = (
            f"the table and its plan take {size} bytes; at most {MAX_REQUEST_BYTES} are allowed: select fewer nodes"
        )
        raise HttpProblem("spec-too-large", detail, facts={"bytes": size, "max_bytes": MAX_REQUEST_BYTES})
    compares = [
        unchanged(keys.table(table), 0 if before is None else before.head.mod_revision),
        *map(is_absent, list(values)[1:]),
    ]
    operations = [put(key, value) for key, value in values.items()]
    written = await etcd.commit(compares, operations, witness=keys.rollout(rollout))
    if written is None:
        now = await find_table(etcd, table)
        active = None if now is None else now.active
        if active is not None:
            detail = f"somebody else has just started rollout {active} of table {table!r}; wait for it, or abort it"
            raise HttpProblem("rollout-in-progress", detail, facts={"table": table, "rollout": active})
        raise _changed_meanwhile("table", table, None if now is None else now.etag)
    return await read_table(etcd, table)


def _changed_meanwhile(kind: str, name: str, etag: str | None) -> HttpProblem:
    detail = f"somebody else has changed {kind} {name!r} meanwhile; look at it, and send the request again"
    return HttpProblem("precondition-failed", detail, facts={"current": None if etag is None else {"etag": etag}})


async def delete_table(etcd: Etcd, table: str, caller: Caller, precondition: Precondition, *, dry_run: bool) -> None:
    """Remove a table from the fleet. Nodes keep what they hold, and nothing is desired of them any more.

    Its revisions and rollouts stay, as its history.

    Raises:
        HttpProblem: table-unknown, precondition-failed or rollout-in-progress.
    """
    found = await find_table(etcd, table)
    precondition(None if found is None else found.etag)
    if found is None:
        raise table_unknown(table)
    if found.active is not None:
        detail = f"rollout {found.active} of table {table!r} has not ended; wait for it, or abort it"
        raise HttpProblem("rollout-in-progress", detail, facts={"table": table, "rollout": found.active})
    if dry_run:
        return
    desired = await etcd.range(keys.DESIRED, keys_only=True)
    places = [key for key in desired.items if key == keys.desired_table(keys.node_of(key), table)]
    still = [unchanged(keys.table(table), found.head.mod_revision), is_absent(keys.active(table))]
    action = Action(at=time.time(), by=caller.name, what="table_deleted", table=table, note=caller.note)
    # The head goes last: a request that ends in between can be sent again.
    size = MAX_OPERATIONS - 3
    batches = [places[start : start + size] for start in range(0, len(places), size)] or [[]]
    for number, batch in enumerate(batches, 1):
        operations = [delete(key) for key in batch]
        if number == len(batches):
            operations += [delete(keys.table(table)), *await _recorded(etcd, action, caller)]
        if await etcd.commit(still, operations) is None:
            now = await find_table(etcd, table)
            raise _changed_meanwhile("table", table, None if now is None else now.etag)


async def _recorded(etcd: Etcd, action: Action, caller: Caller) -> list[Any]:
    """Return the operation that records an action."""
    lease = await etcd.grant(_ACTION_SECONDS)
    return [put(keys.action(action.at, caller.request_id), action.to_bytes(), lease.id)]


async def move_rollout(
    etcd: Etcd,
    rollout: str,
    step: str,
    caller: Caller,
    check: Callable[[StoredRollout], Awaitable[None]],
    *,
    dry_run: bool,
) -> StoredRollout:
    """Pause, resume or abort a rollout. One that is in that phase already stays as it is.

    Args:
        etcd: The store.
        rollout: The id of the rollout.
        step: pause, resume or abort.
        caller: Who does it.
        check: Raises what forbids it. It may be asked several times.
        dry_run: Change nothing.

    Raises:
        HttpProblem: rollout-unknown, rollout-finished, rollout-phase-conflict, or what `check` raises.
    """
    phases, phase = ACTIONS[step]
    for _ in range(_ATTEMPTS):
        stored = await read_rollout(etcd, rollout)
        await check(stored)
        now = stored.rollout
        if now.phase is phase:
            return stored
        if now.phase.finished:
            detail = f"rollout {rollout} has ended: it is {now.phase}; POST /fleet/rollouts starts another one"
            raise HttpProblem("rollout-finished", detail, facts={"rollout": rollout, "phase": now.phase})
        if now.phase not in phases:
            detail = f"rollout {rollout} is {now.phase}, so there is nothing to {step}; wait until it ends"
            raise HttpProblem("rollout-phase-conflict", detail, facts={"rollout": rollout, "phase": now.phase})
        if dry_run:
            return stored
        key = keys.rollout(rollout)
        moved = now.moved(at=time.time(), by=caller.name, phase=phase, reason=caller.note or f"{step} by {caller.name}")
        operations = [put(key, moved.to_bytes())]
        if await etcd.commit([unchanged(key, stored.item.mod_revision)], operations, witness=key) is not None:
            return await read_rollout(etcd, rollout)
    detail = f"rollout {rollout} changes all the time; send the request again"
    raise HttpProblem("store-unavailable", detail)


@dataclass(frozen=True, slots=True)
class WantedNode:
    """What a node is to be.

    Attributes:
        name: Its name.
        labels: Its labels.
        user: Its user in etcd.
    """

    name: str
    labels: dict[str, str]
    user: str


async def put_node(
    etcd: Etcd,
    wanted: WantedNode,
    caller: Caller,
    precondition: Precondition,
    check: Callable[[StoredNode], None],
    *,
    dry_run: bool,
) -> tuple[StoredNode, bool]:
    """Add a node, or change its labels. Its user in etcd gets the right to its own keys, and to no others.

    Args:
        etcd: The store.
        wanted: What it is to be.
        caller: Who does it.
        precondition: Of the request.
        check: Raises what forbids a change of the node that is there.
        dry_run: Change nothing.

    Returns:
        The node, and whether it is new.

    Raises:
        HttpProblem: precondition-failed, or what `check` raises.
    """
    key = keys.node(wanted.name)
    item = await etcd.get(key)
    before = None if item is None else await read_node(etcd, wanted.name)
    if before is not None:
        check(before)
    precondition(None if before is None else etag_of(before.item))
    node = Node(labels=wanted.labels, user=wanted.user, by=caller.name, at=time.time())
    if dry_run:
        return before or StoredNode(wanted.name, Item(key, b"", 0, 0), node), before is None
    if before is not None and before.node.user != wanted.user:
        await etcd.delete_user(before.node.user)  # a certificate that was replaced counts no more
    await accounts.add_node(etcd, wanted.name, wanted.user)  # also of a node that is there: it may not be complete
    if before is not None and (before.node.labels, before.node.user) == (wanted.labels, wanted.user):
        return before, False
    action = Action(at=node.at, by=caller.name, what="node", node=wanted.name, note=caller.note)
    compares = [unchanged(key, 0 if item is None else item.mod_revision)]
    operations = [put(key, node.to_bytes()), *await _recorded(etcd, action, caller)]
    if await etcd.commit(compares, operations, witness=key) is None:
        now = await etcd.get(key)
        raise _changed_meanwhile("node", wanted.name, None if now is None else etag_of(now))
    return await read_node(etcd, wanted.name), before is None


async def delete_node(
    etcd: Etcd,
    name: str,
    caller: Caller,
    precondition: Precondition,
    check: Callable[[StoredNode], None],
    *,
    dry_run: bool,
) -> None:
    """Remove a node with its user in etcd and all of its keys. The node itself keeps what it holds.

    Raises:
        HttpProblem: node-unknown, node-in-use, precondition-failed, or what `check` raises.
    """
    node = await read_node(etcd, name)
    check(node)
    precondition(etag_of(node.item))
    for stored in await read_rollouts(etcd):
        rollout = stored.rollout
        if not rollout.phase.finished and name in (await read_plan(etcd, rollout.id)).nodes():
            detail = f"rollout {rollout.id} goes to node {name!r}; wait until it ends, or abort it"
            raise HttpProblem("node-in-use", detail, facts={"node": name, "rollout": rollout.id})
    if dry_run:
        return
    action = Action(at=time.time(), by=caller.name, what="node_deleted", node=name, note=caller.note)
    await etcd.commit([], await _recorded(etcd, action, caller))
    await accounts.remove_node(etcd, name, node.node.user)
