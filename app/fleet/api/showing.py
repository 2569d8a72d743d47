"""Makes answers of what etcd holds."""

from collections import Counter
from collections.abc import Mapping

from app.access.rights import Ranges
from app.fleet.api.reading import StoredNode, StoredRollout, StoredTable, etag_of
from app.fleet.api.schemas import responses
from app.fleet.api.schemas.responses import NodeInRollout, moment
from app.fleet_store import documents, keys
from app.fleet_store.documents import Plan, Rollout, TableState
from app.fleet_store.specification import Specification


def range_text(specification: Specification) -> str:
    """Return the range of a table, such as "8-63"."""
    return f"{specification.first}-{specification.last}"


def revision_of(revision: documents.TableRevision) -> responses.TableRevision:
    """Return the answer for a revision of a table."""
    specification = Specification.from_bytes(revision.specification)
    return responses.TableRevision.model_construct(
        table=revision.table,
        revision=revision.revision,
        selector=responses.TableSelector(match=revision.selector),
        range=range_text(specification),
        runs=[responses.FleetRun.of(run) for run in specification.runs if run.program is not None],
        strategy=responses.TableStrategy.of(revision.strategy),
        by=revision.by,
        at=moment(revision.at),
        note=revision.note,
        same_as=revision.same_as,
    )


def table_of(table: StoredTable) -> responses.FleetTable:
    """Return the answer for a table."""
    told = dict(revision_of(table.newest))
    return responses.FleetTable.model_construct(**told, etag=table.etag, rollout=table.active)


def table_summary_of(table: StoredTable) -> responses.FleetTableSummary:
    """Return the answer for a table in a list."""
    newest = table.newest
    return responses.FleetTableSummary(
        table=newest.table,
        revision=newest.revision,
        selector=responses.TableSelector(match=newest.selector),
        range=range_text(Specification.from_bytes(newest.specification)),
        by=newest.by,
        at=moment(newest.at),
        note=newest.note,
        etag=table.etag,
        rollout=table.active,
    )


def node_of(node: StoredNode) -> responses.FleetNode:
    """Return the answer for a node."""
    facts = node.facts
    return responses.FleetNode(
        node=node.name,
        labels=node.node.labels,
        user=node.node.user,
        by=node.node.by,
        at=moment(node.node.at),
        etag=etag_of(node.item),
        state=node.state,  # type: ignore[arg-type]  # one of these words
        alive=node.presence is not None,
        since=None if node.presence is None else moment(node.presence.since),
        facts=None
        if facts is None
        else responses.NodeFacts(
            version=facts.version,
            kernel=facts.kernel,
            ready=facts.ready,
            detail=facts.detail,
            maps=[
                responses.OpenRange(
                    name=each.name,
                    max_entries=each.max_entries,
                    ranges=None if each.ranges is None else Ranges(each.ranges).texts(),
                )
                for each in facts.maps
            ],
            at=moment(facts.at),
        ),
        tables=[_node_table(name, node) for name in sorted(node.tables)],
    )


def _node_table(name: str, node: StoredNode) -> responses.NodeTable:
    table = node.tables[name]
    status, answer = table.status, table.answer
    return responses.NodeTable(
        table=name,
        revision=None if status is None else status.revision,
        wanted=None if table.desired is None else table.desired.revision,
        state=None if answer is None else answer.state,
        code=None if answer is None else answer.code,
        detail="" if answer is None else answer.detail,
        change=None if status is None else status.change,
        indexes=[] if answer is None else list(answer.indexes),
        at=None if status is None else moment(status.at),
    )


def summary_of(stored: StoredRollout) -> responses.RolloutSummary:
    """Return the answer for a rollout in a list."""
    rollout = stored.rollout
    return responses.RolloutSummary(
        id=rollout.id,
        table=rollout.table,
        revision=rollout.revision,
        phase=rollout.phase,
        wave=rollout.wave,
        since=moment(rollout.since),
        by=rollout.by,
        reason=rollout.reason,
        etag=etag_of(stored.item),
    )


def rollout_of(stored: StoredRollout, plan: Plan, nodes: Mapping[str, StoredNode]) -> responses.FleetRollout:
    """Return the answer for a rollout."""
    rollout = stored.rollout
    told = rollout_nodes_of(rollout, plan, nodes)
    states = Counter[str](each.state for each in told)
    by_wave = [Counter[str](each.state for each in told if each.wave == wave) for wave in range(len(plan.waves))]
    return responses.FleetRollout(
        **dict(summary_of(stored)),
        waves=[
            responses.WaveCounts(size=len(wave), states=dict(counts))
            for wave, counts in zip(plan.waves, by_wave, strict=True)
        ],
        states=dict(states),
        away=sum(not each.alive for each in told),
        failures=[
            responses.RolloutFailure(node=each.node, state=str(each.state), code=each.code, detail=each.detail)
            for each in rollout.failures
        ],
        history=[
            responses.RolloutTransition(
                at=moment(each.at), by=each.by, phase=each.phase, wave=each.wave, reason=each.reason
            )
            for each in rollout.history
        ],
    )


def rollout_nodes_of(rollout: Rollout, plan: Plan, nodes: Mapping[str, StoredNode]) -> list[responses.RolloutNode]:
    """Return the answers for the nodes of a rollout, in the order of their turns."""
    told = []
    for wave, names in enumerate(plan.waves):
        for name in names:
            node = nodes.get(name)
            status = None if node is None or rollout.table not in node.tables else node.tables[rollout.table].answer
            told.append(
                responses.RolloutNode(
                    node=name,
                    wave=wave,
                    state=_state_in(rollout, node),
                    alive=node is not None and node.presence is not None,
                    code=None if status is None else status.code,
                    detail="" if status is None else status.detail,
                    change=None if status is None else status.change,
                )
            )
    return told


def _state_in(rollout: Rollout, node: StoredNode | None) -> NodeInRollout:
    """Return the state of a node in a rollout, by what is desired of it and what it says."""
    table = None if node is None else node.tables.get(rollout.table)
    desired = None if table is None else table.desired
    if table is None or desired is None:
        return "waiting"
    if desired.rollout != rollout.id:
        return "superseded" if keys.revision_of(desired.rollout) > rollout.revision else "waiting"
    answer = table.answer
    if desired.undo and (answer is None or not answer.state.failed):
        return "back" if answer is not None and answer.state is TableState.APPLIED else "going_back"
    if answer is None:
        return "told"
    states: dict[TableState, NodeInRollout] = {
        TableState.APPLIED: "applied",
        TableState.UNCONFIRMED: "unconfirmed",
        TableState.REFUSED: "refused",
        TableState.UNHEALTHY: "unhealthy",
        TableState.REVERTED: "reverted",
        TableState.DRIFTED: "drifted",
    }
    return states[answer.state]
