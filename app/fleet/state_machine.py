"""How a rollout goes on: a pure function from what a controller has read to the next transaction.

What is read may be old by the time the transaction arrives. That is safe, as each step is one transaction, which
compares that the rollout, the controller's own election, and every desired table that it writes are as they were read.
`tests/fleet/model.py` goes through every order in which controllers, nodes and faults can meet.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from app.fleet_store.documents import Phase, TableState

MAX_NODES_A_STEP: Final = 100  # etcd takes 128 operations in a transaction, and each node takes one


class NodeView(NamedTuple):
    """What a controller knows of a node, for one rollout.

    Attributes:
        opened: The rollout has given it the new table, and has not set it back since.
        undone: The rollout has set it back.
        answer: What the node says of the table that it is to hold now; None: nothing yet.
        alive: Its agent is connected.
        late: It was opened, and the deadline for its answer is over.
    """

    opened: bool
    undone: bool
    answer: TableState | None
    alive: bool
    late: bool

    @property
    def applied(self) -> bool:
        """Whether it holds what it is to hold now."""
        return self.answer is TableState.APPLIED

    @property
    def failed(self) -> bool:
        """Whether its answer is a no."""
        return self.answer is not None and self.answer.failed


class RolloutView(NamedTuple):
    """What a controller knows of a rollout.

    Attributes:
        phase: How far it is.
        wave: The wave that is open, from 0.
        waves: The nodes of each wave. Those that have left the fleet are not among them.
        nodes: All of these nodes.
        max_unavailable: How many nodes may be changing or down at a time.
        rolls_back: Whether a failure leads back, and not to a halt.
        baked: Whether the open wave was watched for long enough since all its nodes have applied the table.
        overdue: Whether nothing has gone on for longer than the deadline.
        max_nodes: How many nodes a step may write to, at most MAX_NODES_A_STEP.
    """

    phase: Phase
    wave: int
    waves: Sequence[Sequence[str]]
    nodes: Mapping[str, NodeView]
    max_unavailable: int
    rolls_back: bool
    baked: bool
    overdue: bool
    max_nodes: int = MAX_NODES_A_STEP


class Step(NamedTuple):
    """A transaction.

    Attributes:
        phase: The phase after it.
        wave: The wave after it.
        opened: Nodes that get the new table.
        undone: Nodes that are set back.
        reason: Why the phase changes, in a sentence; empty if it does not, or needs no reason.
        failed: The nodes that are the reason.
        finished: Whether the rollout needs no controller any more.
    """

    phase: Phase
    wave: int
    opened: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    reason: str = ""
    failed: tuple[str, ...] = ()
    finished: bool = False


def answer(version: int, seen: int, state: TableState) -> TableState | None:
    """Return what a node's status says of its desired table; None: it speaks of an older one.

    Args:
        version: The desired table's mod_revision.
        seen: The mod_revision that the status speaks of.
        state: What it says.
    """
    return state if seen == version else None


def step(rollout: RolloutView) -> Step | None:
    """Return the next transaction; None: there is none until something happens."""
    match rollout.phase:
        case Phase.PROGRESSING:
            return _progress(rollout)
        case Phase.ROLLING_BACK:
            return _roll_back(rollout)
        case Phase.COMPLETE:
            return _give_to_absent(rollout)
        case _:
            return None  # only a person leads out of it, or nothing does


def _progress(rollout: RolloutView) -> Step | None:
    nodes = rollout.nodes
    failed = [name for name, node in nodes.items() if node.opened and (node.failed or (node.late and not node.applied))]
    if failed:
        return _stop(rollout, failed, "failed")
    in_flight = [name for name, node in nodes.items() if node.opened and not node.applied]
    down = [name for name, node in nodes.items() if not node.alive and not (node.opened and not node.applied)]
    unopened = [name for wave in rollout.waves[: rollout.wave + 1] for name in wave if not nodes[name].opened]
    ready = [name for name in unopened if nodes[name].alive]
    room = min(rollout.max_unavailable - len(in_flight) - len(down), rollout.max_nodes)
    if ready and room > 0:
        return Step(rollout.phase, rollout.wave, opened=tuple(ready[:room]))
    if in_flight:
        return None
    was_tried = any(nodes[name].opened for name in rollout.waves[rollout.wave]) or not rollout.waves[rollout.wave]
    if ready or (unopened and not was_tried) or len(down) > rollout.max_unavailable:
        # A wave of which no node is there is not passed over: a canary that is down is no canary.
        return _stop(rollout, down, "down") if rollout.overdue else None
    return _advance(rollout) if rollout.baked else None


def _advance(rollout: RolloutView) -> Step:
    """Leave a wave whose nodes have applied the table. Those that are down are passed over."""
    if rollout.wave + 1 < len(rollout.waves):
        return Step(rollout.phase, rollout.wave + 1)
    return _give_to_absent(rollout) or Step(Phase.COMPLETE, rollout.wave, finished=True)


def _stop(rollout: RolloutView, names: Sequence[str], what: str) -> Step:
    phase = Phase.ROLLING_BACK if rollout.rolls_back else Phase.HALTED
    return Step(phase, rollout.wave, reason=f"{_count(names)} {what}", failed=tuple(names))


def _give_to_absent(rollout: RolloutView) -> Step | None:
    """Give the table to the nodes that were down at their turn. They apply it when they come back."""
    absent = [name for name, node in rollout.nodes.items() if not node.opened]
    if not absent:
        return None
    some = tuple(absent[: rollout.max_nodes])
    reason = f"{_count(absent)} away: what comes back gets the table"
    return Step(Phase.COMPLETE, rollout.wave, opened=some, reason=reason, finished=len(some) == len(absent))


def _roll_back(rollout: RolloutView) -> Step | None:
    """Set back all that was opened, at once: without waves, and without a limit on how many change at a time."""
    nodes = rollout.nodes
    opened = [name for name, node in nodes.items() if node.opened]
    if opened:
        return Step(rollout.phase, rollout.wave, undone=tuple(opened[: rollout.max_nodes]))
    open_answers = [name for name, node in nodes.items() if node.undone and not node.applied and not node.failed]
    if open_answers and not rollout.overdue:
        return None
    failed = [
        name for name, node in nodes.items() if node.undone and (node.failed or (not node.applied and node.alive))
    ]
    if failed:
        reason = f"{_count(failed)} did not go back"
        return Step(Phase.ROLLBACK_FAILED, rollout.wave, reason=reason, failed=tuple(failed), finished=True)
    reason = f"{_count(open_answers)} away: what comes back goes back" if open_answers else ""
    return Step(Phase.ROLLED_BACK, rollout.wave, reason=reason, finished=True)


def _count(names: Iterable[str]) -> str:
    """Return the names for a sentence, not too many of them."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


# What a person may do: the phases in which it may be done, and the phase to which it leads.
ACTIONS: Final[Mapping[str, tuple[frozenset[Phase], Phase]]] = {
    "pause": (frozenset({Phase.PROGRESSING}), Phase.PAUSED),
    "resume": (frozenset({Phase.PAUSED, Phase.HALTED}), Phase.PROGRESSING),
    "abort": (frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.HALTED}), Phase.ROLLING_BACK),
}
