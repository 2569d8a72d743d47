"""Dry runs: each node that is connected is asked what a table would change there, and whether it takes it.

A question is a key below `desired/NODE/dry_runs/`, signed as tables are. The agent there asks its own service for a dry
run, and answers below `status/NODE/dry_runs/`. Questions hang on a lease, so that they go also if this server dies.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Final, Literal

from app.fleet.api.changes import Planned
from app.fleet.api.reading import StoredNode
from app.fleet.api.schemas.responses import FleetDiffEntry, NodeDryRun, TableDryRun
from app.fleet_store import keys
from app.fleet_store.documents import BadDocument, DesiredTable, DryRunAnswer
from app.fleet_store.errors import EtcdError
from app.fleet_store.etcd import MAX_REQUEST_BYTES, Etcd
from app.fleet_store.operations import put
from app.fleet_store.signatures import DRY_RUN, Signer

ANSWER_SECONDS: Final = 10.0  # that nodes have to answer
_LEASE_SECONDS: Final = 30
_MAX_ASKED: Final = 100  # nodes, in one transaction
_Answer = Literal["accepts", "refuses", "away", "silent"]


async def dry_run(etcd: Etcd, signer: Signer, planned: Planned, seconds: float = ANSWER_SECONDS) -> TableDryRun:
    """Ask all nodes of a plan what it would do there. Nodes that are not connected are not asked.

    Args:
        etcd: The store.
        signer: Signs the questions.
        planned: The rollout that is not started.
        seconds: For how long to wait for answers.

    Raises:
        EtcdError: The questions cannot be written, or the answers cannot be read.
    """
    asked = [name for name in planned.plan.nodes() if planned.nodes[name].presence is not None]
    answers = await _ask(etcd, signer, planned, asked, seconds) if asked else {}
    nodes = [
        _told(planned.nodes[name], wave, answers.get(name))
        for wave, names in enumerate(planned.plan.waves)
        for name in names
    ]
    counts: dict[_Answer, int] = {
        answer: sum(each.answer == answer for each in nodes) for answer in ("accepts", "refuses", "away", "silent")
    }
    return TableDryRun(
        table=planned.revision.table,
        revision=planned.revision.revision,
        waves=[list(wave) for wave in planned.plan.waves],
        nodes=nodes,
        accepts=counts["accepts"],
        refuses=counts["refuses"],
        away=counts["away"],
        silent=counts["silent"],
        changed=sum(each.changed or 0 for each in nodes),
    )


async def _ask(
    etcd: Etcd, signer: Signer, planned: Planned, asked: list[str], seconds: float
) -> Mapping[str, DryRunAnswer]:
    """Write the questions, and return the answers that come in time, by node."""
    id_ = secrets.token_hex(16)
    lease = await etcd.grant(_LEASE_SECONDS)
    written: dict[str, int] = {}  # by node, in which revision it was asked
    answers: dict[str, DryRunAnswer] = {}
    try:
        start = (await etcd.range(keys.CONTROLLER, keys_only=True)).revision
        for batch in _batches({name: _question(signer, planned, name, start) for name in asked}):
            operations = [put(keys.desired_dry_run(name, id_), value, lease.id) for name, value in batch.items()]
            revision = await etcd.commit([], operations, witness=keys.desired_dry_run(next(iter(batch)), id_))
            assert revision is not None  # there is nothing to compare
            written |= dict.fromkeys(batch, revision)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), aclosing(etcd.watch(keys.STATUS, start)) as stream:
                async for events in stream:
                    for event in events.events:
                        name = keys.node_of(event.key)
                        if event.item is None or name not in written or event.key != keys.dry_run_answer(name, id_):
                            continue
                        with contextlib.suppress(BadDocument):
                            answer = DryRunAnswer.from_bytes(event.item.value)
                            if answer.seen == written[name]:
                                answers[name] = answer
                    if len(answers) == len(asked):
                        break
    finally:
        with contextlib.suppress(EtcdError):  # the lease ends by itself
            await lease.revoke()
    return answers


def _question(signer: Signer, planned: Planned, node: str, sequence: int) -> bytes:
    revision = planned.revision
    document = DesiredTable(
        node=node,
        table=revision.table,
        rollout=keys.rollout_id(revision.table, revision.revision),
        revision=revision.revision,
        specification=revision.specification,
        undo=False,
        confirm_within=planned.plan.confirm_within,
        checks=planned.plan.checks,
        sequence=sequence,
        at=time.time(),
        by=revision.by,
    )
    return signer.sign(DRY_RUN, document.to_bytes())


def _batches(questions: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Yield the questions in parts that fit into a transaction."""
    batch: dict[str, bytes] = {}
    size = 0
    for name, question in questions.items():
        taken = len(question) + 256  # its key, and what is around both
        if batch and (len(batch) >= _MAX_ASKED or size + taken > MAX_REQUEST_BYTES):
            yield batch
            batch, size = {}, 0
        batch[name] = question
        size += taken
    if batch:
        yield batch


def _told(node: StoredNode, wave: int, answer: DryRunAnswer | None) -> NodeDryRun:
    if answer is None:
        is_away = node.presence is None
        detail = "its agent is not connected" if is_away else "its agent has not answered in time"
        kind: _Answer = "away" if is_away else "silent"
        return NodeDryRun(node=node.name, wave=wave, answer=kind, changed=None, code=None, detail=detail, diff=[])
    return NodeDryRun(
        node=node.name,
        wave=wave,
        answer="accepts" if answer.accepted else "refuses",
        changed=answer.changed,
        code=answer.code,
        detail=answer.detail,
        diff=[FleetDiffEntry(index=index, before=before, after=after) for index, before, after in answer.diff],
    )
