"""A model of controllers, agents, etcd and faults, around the state machine that the controller runs.

`check` goes through every order in which they can meet, breadth first, with a budget of faults: controllers that die,
or lose their election and do not know it yet; agents that die or are cut off; tables that are changed by hand; people
who pause and abort. What a controller or an agent knows may be old at any time. A node that is connected answers before
its deadline; one that is not may miss it.

    python -m tests.fleet.model --faults 2          # more faults than the gate tries
    python -m tests.fleet.model --walks 1000        # random ways through a larger fleet
"""

import argparse
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from app.fleet import state_machine
from app.fleet.state_machine import NodeView, RolloutView, Step, answer
from app.fleet_store.documents import Phase, TableState

# What a desired table is, and what is in the table of a node: BASE and UNDONE are the same entries.
BASE, NEW, UNDONE = 0, 1, 2
# Whether a controller leads. DEPOSED: it does not any more, and does not know it.
FOLLOWS, LEADS, DEPOSED, DEAD = 0, 1, 2, 3
# Who holds the key of the election.
NOBODY, LEADER, A_DEAD_ONE = 0, 1, 2
# States of tables as plain words, which are quicker to hash.
APPLIED, UNCONFIRMED, REFUSED, REVERTED, DRIFTED = "applied", "unconfirmed", "refused", "reverted", "drifted"
_NO: Final = {REFUSED, REVERTED}
_BAD: Final = {*_NO, DRIFTED}
_STATES: Final = {str(state): state for state in TableState}


class Node(NamedTuple):
    """A node: its keys in etcd, its agent, and its service.

    Attributes:
        desired: What its desired table is: BASE, NEW or UNDONE.
        version: The mod_revision of that.
        seen: The version that its status speaks of.
        state: What its status says.
        up: Whether its agent runs.
        linked: Whether its network reaches etcd.
        table: What its table holds: BASE or NEW.
        before: What it held before the change that waits for its confirmation; -1: none waits.
        changed_for: The version for which the last change was made.
        to_tell: The status that is to be written; None: none.
        wanted: The newest desired table that the agent has heard of, with its version; None: none yet.
    """

    desired: int = BASE
    version: int = 1
    seen: int = 1
    state: str = APPLIED
    up: bool = True
    linked: bool = True
    table: int = BASE
    before: int = -1
    changed_for: int = 1
    to_tell: tuple[int, str] | None = None
    wanted: tuple[int, int] | None = (BASE, 1)

    @property
    def answered(self) -> bool:
        """Whether its status speaks of its desired table, and is final."""
        return self.seen == self.version and self.state != UNCONFIRMED


Rollout = tuple[Phase, int, int]  # phase, wave, version
Seen = tuple[tuple[int, int, int, str, bool], ...]  # of each node: desired, version, seen, state, alive
View = tuple[Rollout, Seen]  # what a controller has read
Controller = tuple[int, View | None]


class State(NamedTuple):
    """The whole world."""

    election: int
    rollout: Rollout
    nodes: tuple[Node, ...]
    controllers: tuple[Controller, ...]
    faults: int


@dataclass(frozen=True)
class Rules:
    """What the world holds to. A mutant breaks one of them.

    Attributes:
        compares_rollout: Transactions compare that the rollout is as it was read.
        compares_desired: Transactions compare that the desired tables that they write are as they were read.
        compares_election: Transactions compare that their controller still leads.
        tells_versions_apart: A status counts only for the version that it speaks of.
        ignores_stale: Agents ignore desired tables that are older than what they have seen.
        undo_counts_at_once: What is set back is not made with `confirm_within`.
        step: The state machine.
    """

    compares_rollout: bool = True
    compares_desired: bool = True
    compares_election: bool = True
    tells_versions_apart: bool = True
    ignores_stale: bool = True
    undo_counts_at_once: bool = True
    step: Callable[[RolloutView], Step | None] = state_machine.step


class Violation(Exception):
    """The model has found a way to something that must not be. The text tells the way."""


@dataclass
class Model:
    """A rollout to some nodes.

    Attributes:
        waves: The nodes of each wave, by number.
        kinds: What each node is like: `ok`, `refuses` the new table, `cutoff` from etcd by the new table, `stuck`
            (refuses to go back), or `away` for ever.
        max_unavailable: As in a plan.
        rolls_back: As in a plan.
        rules: What the world holds to.
    """

    waves: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    max_unavailable: int = 1
    rolls_back: bool = True
    rules: Rules = field(default_factory=Rules)
    _steps: dict[tuple[View, bool], Step | None] = field(default_factory=dict)

    def initial(self, faults: int) -> State:
        nodes = tuple(Node(linked=kind != "away") for kind in self.kinds)
        return State(NOBODY, (Phase.PROGRESSING, 0, 1), nodes, ((FOLLOWS, None), (FOLLOWS, None)), faults)

    # What can happen

    def successors(self, state: State, *, healing: bool = False) -> Iterator[tuple[str, State]]:
        """Yield all that can happen next. `healing`: without faults, and nothing expires that is connected."""
        for number in range(len(state.controllers)):
            yield from self._controller(state, number)
        if state.election == A_DEAD_ONE:
            yield "a dead leader's lease ends", state._replace(election=NOBODY)
        for number in range(len(state.nodes)):
            for what, changed in self._agent(state.nodes[number], self.kinds[number], healing=healing):
                yield f"node {number} {what}", _with_node(state, number, changed)
        if not healing and state.faults:
            for what, after in self._faults(state):
                yield what, after._replace(faults=state.faults - 1)

    def _controller(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        role, view = state.controllers[number]
        if role == DEAD:
            yield f"controller {number} starts", _with_controller(state, number, (FOLLOWS, None))
            return
        now: View = (
            state.rollout,
            tuple((n.desired, n.version, n.seen, n.state, n.up and n.linked) for n in state.nodes),
        )
        if role == FOLLOWS:
            if state.election == NOBODY:
                elected = _with_controller(state, number, (LEADS, now))
                yield f"controller {number} is elected", elected._replace(election=LEADER)
            return
        if role == DEPOSED:
            yield f"controller {number} learns that it is deposed", _with_controller(state, number, (FOLLOWS, None))
        elif view != now:
            yield f"controller {number} reads", _with_controller(state, number, (LEADS, now))
        assert view is not None
        # At any time, a node that is away may be past its deadline.
        for late in (False, True) if not all(alive for *_, alive in view[1]) else (False,):
            step = self._step(view, late=late)
            if step is not None and self._commits(state, role, view, step):
                yield f"controller {number}: {_told(step)}", self._after(state, number, view, step)

    def _step(self, view: View, *, late: bool) -> Step | None:
        known = (view, late)
        if known not in self._steps:
            (phase, wave, _), seen = view
            nodes = {
                str(number): NodeView(
                    desired == NEW,
                    desired == UNDONE,
                    answer(version, about if self.rules.tells_versions_apart else version, _STATES[state]),
                    alive,
                    late and not alive and desired == NEW,
                )
                for number, (desired, version, about, state, alive) in enumerate(seen)
            }
            waves = [[str(number) for number in each] for each in self.waves]
            overdue = late and all(
                node.applied or node.failed or not (node.alive and (node.opened or node.undone))
                for node in nodes.values()
            )
            rollout = RolloutView(
                phase, wave, waves, nodes, self.max_unavailable, self.rolls_back, baked=True, overdue=overdue
            )
            self._steps[known] = self.rules.step(rollout)
        return self._steps[known]

    def _commits(self, state: State, role: int, view: View, step: Step) -> bool:
        """Whether etcd takes the transaction."""
        rules = self.rules
        if rules.compares_election and role != LEADS:
            return False
        if rules.compares_rollout and view[0] != state.rollout:
            return False
        written = map(int, (*step.opened, *step.undone))
        return not rules.compares_desired or all(view[1][each][1] == state.nodes[each].version for each in written)

    @staticmethod
    def _after(state: State, number: int, view: View, step: Step) -> State:
        nodes, seen = list(state.nodes), list(view[1])
        for names, desired in ((step.opened, NEW), (step.undone, UNDONE)):
            for each in map(int, names):
                version = nodes[each].version + 1
                nodes[each] = nodes[each]._replace(desired=desired, version=version)
                seen[each] = (desired, version, *seen[each][2:])
        rollout = (step.phase, step.wave, state.rollout[2] + 1)
        after = state._replace(rollout=rollout, nodes=tuple(nodes))
        return _with_controller(after, number, (state.controllers[number][0], (rollout, tuple(seen))))

    def _agent(self, node: Node, kind: str, *, healing: bool) -> Iterator[tuple[str, Node]]:
        waits = node.before != -1
        linked = node.linked and not (kind == "cutoff" and node.table == NEW)
        if waits and not (healing and linked and node.up):  # the clock of the service needs no agent
            to_tell = (node.changed_for, REVERTED) if node.up else None
            yield "expires", node._replace(table=node.before, before=-1, to_tell=to_tell)
        if not node.up:
            yield "agent starts", node._replace(up=True, to_tell=None, wanted=None)
            return
        if linked and (node.wanted is None or node.wanted[1] < node.version):
            yield "hears", node._replace(wanted=(node.desired, node.version))
        if linked and not self.rules.ignores_stale and node.wanted == (UNDONE, node.version):
            yield "hears an old event", node._replace(wanted=(NEW, node.version - 1))
        if node.to_tell is not None:
            if linked:
                seen, state = node.to_tell
                yield f"writes {state}", node._replace(seen=seen, state=state, to_tell=None)
        elif waits and (node.seen, node.state) == (node.changed_for, UNCONFIRMED):
            # That it could write this proves that the change has not cut it off.
            yield "confirms", node._replace(before=-1, to_tell=(node.changed_for, APPLIED))
        elif waits and node.wanted is not None:  # found after the agent has started again
            if node.wanted[1] == node.changed_for:
                yield "adopts", node._replace(to_tell=(node.changed_for, UNCONFIRMED))
            else:
                yield "takes back", node._replace(table=node.before, before=-1)
        elif node.wanted is not None:
            yield from self._reach(node, kind, *node.wanted)

    def _reach(self, node: Node, kind: str, wanted: int, version: int) -> Iterator[tuple[str, Node]]:
        """What an agent without a waiting change does about its desired table."""
        table = NEW if wanted == NEW else BASE
        if version == node.seen and node.state != UNCONFIRMED:  # it has given its answer
            if node.state == APPLIED and node.table != table:
                yield "sees drift", node._replace(to_tell=(version, DRIFTED))
        elif node.table == table:
            yield "has it", node._replace(changed_for=version, to_tell=(version, APPLIED))
        elif node.changed_for == version and node.state == UNCONFIRMED:
            yield "finds it undone", node._replace(to_tell=(version, REVERTED))
        elif (kind, wanted) in {("refuses", NEW), ("stuck", UNDONE)}:
            yield "refuses", node._replace(changed_for=version, to_tell=(version, REFUSED))
        elif wanted == UNDONE and self.rules.undo_counts_at_once:
            yield "goes back", node._replace(table=table, changed_for=version, to_tell=(version, APPLIED))
        else:
            change = node._replace(table=table, before=node.table, changed_for=version)
            yield "applies", change._replace(to_tell=(version, UNCONFIRMED))

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        for number, (role, _) in enumerate(state.controllers):
            if role in {LEADS, DEPOSED}:
                ended = _with_controller(state, number, (DEAD, None))
                yield f"controller {number} dies", ended._replace(election=A_DEAD_ONE) if role == LEADS else ended
            if role == LEADS:
                deposed = _with_controller(state, number, (DEPOSED, state.controllers[number][1]))
                yield f"the lease of controller {number} ends", deposed._replace(election=NOBODY)
        phase, wave, version = state.rollout
        for action, (before, after) in state_machine.ACTIONS.items():
            if phase in before:
                yield action, state._replace(rollout=(after, wave, version + 1))
        for number, node in enumerate(state.nodes):
            if node.up:
                dead = node._replace(up=False, to_tell=None, wanted=None)
                yield f"node {number} agent dies", _with_node(state, number, dead)
            if node.linked:
                yield f"node {number} is cut off", _with_node(state, number, node._replace(linked=False))
            if node.before == -1 and node.table == NEW and node.state == APPLIED and node.to_tell is None:
                yield f"node {number} is changed by hand", _with_node(state, number, node._replace(table=BASE))

    # What must never be

    def violations(self, before: State, what: str, state: State) -> Iterator[str]:
        (old_phase, old_wave, _), (phase, wave, _) = before.rollout, state.rollout
        nodes = state.nodes
        in_flight = [number for number, node in enumerate(nodes) if node.desired == NEW and not node.answered]
        if phase is Phase.PROGRESSING:
            if len(in_flight) > self.max_unavailable:
                yield f"{in_flight} change at a time, and {self.max_unavailable} may"
            if wave > old_wave and in_flight:
                yield f"wave {wave} begins while {in_flight} of the wave before have not answered"
            if wave > old_wave and any(node.desired == NEW and node.answered and node.state in _NO for node in nodes):
                yield f"wave {wave} begins though a node has said no"
            if wave > old_wave and not any(nodes[number].desired == NEW for number in self.waves[old_wave]):
                yield f"nobody has tried wave {old_wave}"
            if any(nodes[number].desired == NEW for each in self.waves[wave + 1 :] for number in each):
                yield "a node is opened before its turn"
        opened = [n for n, node in enumerate(nodes) if node.desired == NEW and before.nodes[n].desired != NEW]
        if opened and (phase not in {Phase.PROGRESSING, Phase.COMPLETE} or old_phase in _GOES_BACK):
            yield f"{opened} are opened while the rollout is {phase}"
        by_person = what in state_machine.ACTIONS
        if old_phase != phase and (phase not in _LEADS_TO[old_phase] or (old_phase in _WAITS and not by_person)):
            yield f"{old_phase} became {phase}"
        if any(node.seen < old.seen for node, old in zip(nodes, before.nodes, strict=True)):
            yield "a status speaks of an older table than before"
        if phase in {Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED} and any(node.desired == NEW for node in nodes):
            yield f"the rollout is {phase}, and a node is to hold the new table"
        if any(node.table == NEW and node.desired == BASE for node in nodes):
            yield "a node holds what it was never given"

    def end_violation(self, state: State) -> str | None:
        """Return what is wrong with a state in which nothing happens any more, after all faults are mended."""
        phase, nodes = state.rollout[0], state.nodes
        if phase is Phase.PROGRESSING or phase is Phase.ROLLING_BACK:
            return f"it is stuck: {phase}"
        undone = [node for node, kind in zip(nodes, self.kinds, strict=True) if node.desired != NEW and kind != "stuck"]
        if any(node.table == NEW for node in undone):
            return f"it is {phase}, and a node that is to hold the old table holds the new one"
        if phase is Phase.ROLLBACK_FAILED and "stuck" not in self.kinds and not any(n.state == DRIFTED for n in nodes):
            return "a rollback failed though every node could go back"
        if phase is Phase.COMPLETE:
            for node, kind in zip(nodes, self.kinds, strict=True):
                if node.desired != NEW:
                    return "it is complete, and a node is not to hold the new table"
                if kind == "ok" and node.table != NEW and node.state not in _BAD:
                    return "it is complete, and a node holds the old table and does not say so"
        return None


_WAITS: Final = {Phase.PAUSED, Phase.HALTED}
_GOES_BACK: Final = {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED}
_LEADS_TO: Final = {
    Phase.PROGRESSING: {Phase.PAUSED, Phase.HALTED, Phase.ROLLING_BACK, Phase.COMPLETE},
    Phase.PAUSED: {Phase.PROGRESSING, Phase.ROLLING_BACK},
    Phase.HALTED: {Phase.PROGRESSING, Phase.ROLLING_BACK},
    Phase.ROLLING_BACK: {Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED},
    Phase.COMPLETE: set[Phase](),
    Phase.ROLLED_BACK: set[Phase](),
    Phase.ROLLBACK_FAILED: set[Phase](),
}


def _with_node(state: State, number: int, node: Node) -> State:
    return state._replace(nodes=(*state.nodes[:number], node, *state.nodes[number + 1 :]))


def _with_controller(state: State, number: int, controller: Controller) -> State:
    """Controllers are alike, so they are kept in order of their roles: that halves the states."""
    other = state.controllers[1 - number]
    both = (controller, other) if number == 0 else (other, controller)
    return state._replace(controllers=both if both[0][0] <= both[1][0] else (both[1], both[0]))


def _told(step: Step) -> str:
    parts = [f"opens {', '.join(step.opened)}"] if step.opened else []
    parts += [f"sets back {', '.join(step.undone)}"] if step.undone else []
    return " and ".join([*parts, f"{step.phase} in wave {step.wave}"])


class Result(NamedTuple):
    """How much was gone through."""

    states: int
    steps: int
    healed: int
    ends: dict[Phase, int]


def check(model: Model, faults: int, max_states: int = 5_000_000) -> Result:
    """Go through everything that can happen.

    Raises:
        Violation: Something that must not be can happen.
    """
    start = model.initial(faults)
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    backlog, steps = deque([start]), 0
    while backlog:
        state = backlog.popleft()
        for what, after in model.successors(state):
            steps += 1
            if after in came_from:
                continue
            for violation in model.violations(state, what, after):
                raise Violation(_way(came_from, state, [what], violation))
            came_from[after] = (state, what)
            backlog.append(after)
            if len(came_from) > max_states:
                message = f"more than {max_states} states"
                raise AssertionError(message)
    healed, ends = _check_ends(model, came_from)
    return Result(len(came_from), steps, healed, ends)


def _check_ends(model: Model, came_from: dict[State, tuple[State, str] | None]) -> tuple[int, dict[Phase, int]]:
    """From each state on, once all faults are mended, whatever happens must end well."""
    known: set[State] = set()
    ends: dict[Phase, int] = {}
    for state in came_from:
        backlog = [_mended(model, state)]
        while backlog:
            each = backlog.pop()
            if each in known:
                continue
            known.add(each)
            further = [after for _, after in model.successors(each, healing=True) if after != each]
            backlog.extend(further)
            if not further:
                violation = model.end_violation(each)
                if violation is not None:
                    raise Violation(_way(came_from, state, ["all faults are mended", f"… {each}"], violation))
                ends[each.rollout[0]] = ends.get(each.rollout[0], 0) + 1
    return len(known), ends


def _way(came_from: dict[State, tuple[State, str] | None], state: State, last: list[str], violation: str) -> str:
    way = list(reversed(last))
    while (link := came_from[state]) is not None:
        state, what = link
        way.append(what)
    return "\n    ".join([violation, *reversed(way)])


def walk(model: Model, faults: int, seed: int) -> Phase:
    """Go one random way through a model that is too large for `check`, mend all faults, and return how it ends.

    Raises:
        Violation: Something that must not be has happened.
    """
    source = random.Random(seed)
    state, way = model.initial(faults), [f"seed {seed}"]
    for _ in range(_WALK_STEPS):
        ways = list(model.successors(state))
        if not ways:
            break
        calm = [each for each in ways if each[1].faults == state.faults and not each[0].endswith("expires")]
        what, after = source.choice(ways if not calm or source.random() < _FAULT_SHARE else calm)
        state = _checked(model, state, what, after, way)
    state = _mended(model, state)
    way.append("all faults are mended")
    while further := [each for each in model.successors(state, healing=True) if each[1] != state]:
        what, after = source.choice(further)
        state = _checked(model, state, what, after, way)
    violation = model.end_violation(state)
    if violation is not None:
        raise Violation("\n    ".join([violation, *way]))
    return state.rollout[0]


def _checked(model: Model, state: State, what: str, after: State, way: list[str]) -> State:
    way.append(what)
    for violation in model.violations(state, what, after):
        raise Violation("\n    ".join([violation, *way]))
    return after


def _mended(model: Model, state: State) -> State:
    nodes = zip(state.nodes, model.kinds, strict=True)
    return state._replace(nodes=tuple(node._replace(linked=kind != "away") for node, kind in nodes), faults=0)


_WALK_STEPS: Final = 400
_FAULT_SHARE: Final = 0.1  # of the steps of a walk
WALK_WAVES: Final = ((0,), (1, 2), (3, 4, 5, 6))


def random_kinds(seed: int) -> tuple[str, ...]:
    """Return what the nodes of a walk are like: most are fine."""
    return tuple(random.Random(seed).choices(("ok", "refuses", "cutoff", "stuck", "away"), (30, 1, 1, 1, 1), k=7))


WAVES: Final = ((0,), (1, 2))
KINDS: Final = (
    ("ok", "ok", "ok"),
    ("ok", "refuses", "ok"),
    ("ok", "ok", "cutoff"),
    ("cutoff", "ok", "ok"),
    ("stuck", "refuses", "ok"),
    ("ok", "away", "ok"),
)


def main() -> None:
    """Check more than the gate does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=2, help="how many faults may come together")
    parser.add_argument(
        "--walks", type=int, default=0, help="instead: so many random ways of seven nodes and 12 faults"
    )
    options = parser.parse_args()
    if options.walks:
        found = Counter(walk(Model(WALK_WAVES, random_kinds(seed), 2), 12, seed) for seed in range(options.walks))
        print(f"{options.walks} walks; ends: {', '.join(f'{number} {phase}' for phase, number in found.items())}")
        return
    for kinds in KINDS:
        for rolls_back in (True, False):
            begin = time.monotonic()
            result = check(Model(WAVES, kinds, rolls_back=rolls_back), options.faults)
            seconds = time.monotonic() - begin
            ends = ", ".join(f"{number} {phase}" for phase, number in result.ends.items())
            after = "rolls back" if rolls_back else "halts"
            print(
                f"{', '.join(kinds)}; {after}; {options.faults} faults: {result.states} states, {result.steps} steps, "
                f"{result.healed} after all is mended; ends: {ends}; {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
