"""What happens in the fleet, as server-sent events, and what was done: /fleet/events and /fleet/history."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.access.rights import Grant
from app.api.authorization import ACTOR, grant_of, may_still
from app.api.encoding.responses import Json
from app.api.event_stream import EVENT_HEADERS, LAST_EVENT_ID, EventStream, last_event_id
from app.api.openapi import Responses, answers
from app.api.problems import HttpProblem
from app.api.schemas.fields import Name
from app.api.scope import IS_HEAD
from app.fleet.api import authorization, reading
from app.fleet.api.parameters import state_of
from app.fleet.api.reading import StoredRollout
from app.fleet.api.route import STORE, FleetRoute, problems
from app.fleet.api.schemas import responses
from app.fleet.api.schemas.responses import moment
from app.fleet.api.state import FleetState
from app.fleet_store import keys
from app.fleet_store.documents import (
    Action,
    BadDocument,
    DesiredTable,
    Leader,
    Node,
    NodeFacts,
    Rollout,
    TableHead,
    TableStatus,
)
from app.fleet_store.errors import Compacted, Refused
from app.fleet_store.items import Event, Events
from app.fleet_store.signatures import unverified_document

router = APIRouter(route_class=FleetRoute, tags=["events"])

_SILENCE_SECONDS: Final = 15.0  # after which a comment is sent, so that nothing on the way takes the stream for dead
_ASK_SECONDS: Final = 1.0  # between two looks at whether a reader may still read
_RESPONSES: Final[Responses] = {
    200: {
        "description": "Each event has its type as `event`, and JSON as `data`. `table`: a table has a new revision, "
        "or was deleted. `rollout`: its phase, wave and reason. `node`: its labels, or it was removed. `desired`: a "
        "rollout has asked a node for a revision, or sets it back (`undo`). `status`: what a node says of a table. "
        "`facts`: what it says of itself. `presence`: whether its agent is connected. `controller`: who leads. The "
        "`id` is a revision of etcd. What one revision has changed comes together, and only the last of these events "
        "has the id. Every 15 s without any: a comment.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/fleet/events",
    operation_id="watch_events",
    summary="Follow what happens",
    response_class=EventStream,
    responses=_RESPONSES | problems("malformed-header", "events-expired", *STORE),
    openapi_extra=LAST_EVENT_ID,
)
async def watch_events(
    request: Request,
    table: Annotated[Name | None, Query(description="Only of this table and its rollouts.")] = None,
) -> Response:
    """Follow events; `curl -N` is enough. The stream ends with the server.

    Last-Event-ID continues it with no gap and no repeat, also at another server of the fleet.
    """
    state = state_of(request)
    if table is not None:
        authorization.check_table(request.scope, table)
    state.limits.check_readers(request.scope[ACTOR].sender)
    nodes = await state.etcd.range(keys.NODES)
    after = last_event_id(request)
    if after is None:
        after = nodes.revision
    else:
        await _check_there(state, after, nodes.revision)
    if request.scope[IS_HEAD]:
        return Response(headers=EVENT_HEADERS, media_type=EventStream.media_type)
    labels = {keys.last_part(key): Node.from_bytes(item.value).labels for key, item in nodes.items.items()}
    view = _View(grant_of(request.scope), table, labels)
    return EventStream(_stream(state, after, view, request), state.ended)


async def _check_there(state: FleetState, after: int, newest: int) -> None:
    """Check that etcd still has all that came after a revision.

    Raises:
        HttpProblem: events-expired.
    """
    try:
        is_there = after <= newest
        if is_there and after > 0:
            await state.etcd.range(keys.CONTROLLER, revision=after, keys_only=True)
        elif after == 0:
            await state.etcd.range(keys.CONTROLLER, revision=1, keys_only=True)
    except (Compacted, Refused):
        is_there = False
    if not is_there:
        detail = f"etcd does not have what came after revision {after}; read the fleet anew, and go on from there"
        raise HttpProblem("events-expired", detail, facts={"newest": newest})


class _View:
    """What one reader gets to see.

    Args:
        grant: Of the reader.
        table: Only this table; None: all.
        labels: The labels of nodes, by name. They are kept up to date.
    """

    def __init__(self, grant: Grant, table: str | None, labels: dict[str, dict[str, str]]) -> None:
        self._grant, self._table, self._labels = grant, table, labels

    def events(self, event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the type and the data of what a key of etcd says. Nothing, where it is not for this reader."""
        kind, _, rest = event.key.removeprefix(keys.PREFIX).partition("/")
        value = None if event.item is None else event.item.value
        try:
            if kind == "nodes":
                yield from self._node(rest, value)
            elif kind == "status":
                yield from self._status(rest, value)
            elif kind == "desired" and value is not None:
                yield from self._desired(rest, value)
            elif kind == "tables" and self._has_table(rest):
                yield (
                    "table",
                    {"table": rest, "revision": None if value is None else TableHead.from_bytes(value).revision},
                )
            elif kind == "rollouts" and value is not None:
                yield from self._rollout(Rollout.from_bytes(value))
            elif kind == "controller" and self._table is None:
                yield "controller", {"name": None if value is None else Leader.from_bytes(value).name}
        except BadDocument:
            return  # a node may write what it likes below its own keys

    def _has_table(self, table: str) -> bool:
        return self._table in {None, table} and self._grant.has_map(table)

    def _node(self, node: str, value: bytes | None) -> Iterator[tuple[str, dict[str, Any]]]:
        before = self._labels.pop(node, {})
        labels = None if value is None else Node.from_bytes(value).labels
        if labels is not None:
            self._labels[node] = labels
        if self._table is None and self._grant.has_labels(before if labels is None else labels):
            yield "node", {"node": node, "labels": labels}

    def _has_node(self, node: str) -> bool:
        return node in self._labels and self._grant.has_labels(self._labels[node])

    def _desired(self, rest: str, value: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        node, _, what = rest.partition("/")
        kind, _, table = what.partition("/")
        if kind == "tables" and self._has_node(node) and self._has_table(table):
            desired = DesiredTable.from_bytes(unverified_document(value))
            yield (
                "desired",
                {
                    "node": node,
                    "table": table,
                    "rollout": desired.rollout,
                    "revision": desired.revision,
                    "undo": desired.undo,
                },
            )

    def _status(self, rest: str, value: bytes | None) -> Iterator[tuple[str, dict[str, Any]]]:
        node, _, what = rest.partition("/")
        if not self._has_node(node):
            return
        kind, _, table = what.partition("/")
        if kind == "tables" and value is not None and self._has_table(table):
            status = TableStatus.from_bytes(value)
            yield (
                "status",
                {
                    "node": node,
                    "table": table,
                    "state": status.state,
                    "revision": status.revision,
                    "code": status.code,
                    "detail": status.detail,
                    "change": status.change,
                },
            )
        elif kind == "facts" and value is not None and self._table is None:
            facts = NodeFacts.from_bytes(value)
            yield "facts", {"node": node, "ready": facts.ready, "detail": facts.detail, "version": facts.version}
        elif kind == "alive" and self._table is None:
            yield "presence", {"node": node, "alive": value is not None}

    def _rollout(self, rollout: Rollout) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._has_table(rollout.table):
            yield (
                "rollout",
                {
                    "id": rollout.id,
                    "table": rollout.table,
                    "revision": rollout.revision,
                    "phase": rollout.phase,
                    "wave": rollout.wave,
                    "by": rollout.history[-1].by if rollout.history else rollout.by,
                    "reason": rollout.reason,
                    "since": moment(rollout.since).isoformat().replace("+00:00", "Z"),
                },
            )


async def _stream(state: FleetState, after: int, view: _View, request: Request) -> AsyncGenerator[bytes, None]:
    yield b": after event %d\n\n" % after
    clock, asked = asyncio.get_running_loop().time, -math.inf
    async with aclosing(_with_silence(state, after)) as batches:
        async for batch in batches:
            if clock() >= asked + _ASK_SECONDS:
                if not may_still(request.scope, "watch_events"):
                    return  # its token was revoked, or is over
                asked = clock()
            yield b":\n\n" if batch is None else b"".join(_encoded(batch, view))


async def _with_silence(state: FleetState, after: int) -> AsyncGenerator[Events | None, None]:
    """Yield what etcd tells, and None whenever it tells nothing for a while. Ends where etcd has compacted too much."""
    async with aclosing(state.etcd.watch(keys.PREFIX, after)) as events:
        following = asyncio.ensure_future(anext(events))
        try:
            while True:
                done, _ = await asyncio.wait([following], timeout=_SILENCE_SECONDS)
                if not done:
                    yield None
                    continue
                try:
                    batch = following.result()
                except Compacted:
                    return
                following = asyncio.ensure_future(anext(events))
                yield batch
        finally:
            following.cancel()
            await asyncio.wait([following])


def _encoded(batch: Events, view: _View) -> Iterator[bytes]:
    """Encode events. Only the last of one revision has the id: a reader that was cut off before it gets all again."""
    by_revision: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for event in batch.events:
        by_revision.setdefault(event.revision, []).extend(view.events(event))
    for revision, events in by_revision.items():
        for number, (kind, data) in enumerate(events, 1):
            if number == len(events):
                yield b"id: %d\n" % revision
            yield f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


@router.get(
    "/fleet/history",
    operation_id="list_history",
    summary="Tell who did what",
    response_model=responses.FleetHistory,
    responses=answers(responses.FleetHistory, "The newest first.") | problems(*STORE),
)
async def list_history(
    request: Request,
    table: Annotated[Name | None, Query(description="Of this table only.")] = None,
    node: Annotated[Name | None, Query(description="Of this node only: its labels, and that it was removed.")] = None,
    by: Annotated[
        str | None, Query(max_length=256, description="By this actor only.", examples=["token:alice"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> Response:
    """List what persons and controllers have done: rollouts that they started, paused or ended, nodes, tables.

    Of each table the last 100 rollouts count. What was done to nodes is known for 400 days.
    """
    state = state_of(request)
    if table is not None:
        authorization.check_table(request.scope, table)
    found = [action for stored in await reading.read_rollouts(state.etcd) for action in _transitions(stored)]
    for item in (await state.etcd.range(keys.ACTIONS)).items.values():
        action = Action.from_bytes(item.value)
        found.append(
            responses.FleetAction(
                at=moment(action.at), by=action.by, what=action.what, table=action.table, revision=None, rollout=None,
                phase=None, wave=None, node=action.node, note=action.note,
            )
        )  # fmt: skip
    shown = [
        each
        for each in found
        if table in {None, each.table}
        and node in {None, each.node}
        and by in {None, each.by}
        and (each.table is None or authorization.may_see_table(request, each.table))
    ]
    if grant_of(request.scope).labels is not None:  # labels of nodes that are gone are not known any more
        shown = [each for each in shown if each.node is None]
    shown.sort(key=lambda each: each.at, reverse=True)
    return Json(responses.FleetHistory(actions=shown[:limit]))


def _transitions(stored: StoredRollout) -> Iterator[responses.FleetAction]:
    rollout = stored.rollout
    for each in rollout.history:
        yield responses.FleetAction(
            at=moment(each.at), by=each.by, what="rollout", table=rollout.table, revision=rollout.revision,
            rollout=rollout.id, phase=each.phase, wave=each.wave, node=None, note=each.reason,
        )  # fmt: skip
