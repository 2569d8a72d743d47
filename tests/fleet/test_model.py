"""The state machine holds in every order in which controllers, nodes and faults can meet; each rule is needed."""

from collections.abc import Callable

import pytest

from app.fleet import state_machine
from app.fleet.state_machine import NodeView, RolloutView, Step
from app.fleet_store.documents import Phase, TableState
from tests.fleet.model import KINDS, WALK_WAVES, WAVES, Model, Rules, Violation, check, random_kinds, walk

_THREE = ("ok", "ok", "ok")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rolls_back", [True, False], ids=["rolls_back", "halts"])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_nothing_forbidden_can_happen_with_one_fault(kinds: tuple[str, ...], *, rolls_back: bool) -> None:
    result = check(Model(WAVES, kinds, rolls_back=rolls_back), faults=1)
    assert result.states > 50
    assert all(phase not in {Phase.PROGRESSING, Phase.ROLLING_BACK} for phase in result.ends)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [("ok", "ok", "cutoff"), ("ok", "away", "ok")], ids="-".join)
def test_nothing_forbidden_can_happen_when_two_nodes_may_change_at_a_time(kinds: tuple[str, ...]) -> None:
    result = check(Model(WAVES, kinds, max_unavailable=2), faults=1)
    assert result.ends[Phase.ROLLED_BACK]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [("ok", "refuses", "ok"), ("cutoff", "ok", "ok")], ids="-".join)
def test_nothing_forbidden_can_happen_with_two_faults(kinds: tuple[str, ...]) -> None:
    result = check(Model(WAVES, kinds), faults=2)
    assert result.states > 10_000
    assert result.ends[Phase.ROLLED_BACK]


def test_nothing_forbidden_happens_on_random_ways_through_a_larger_fleet() -> None:
    ends = {walk(Model(WALK_WAVES, random_kinds(seed), 2), 12, seed) for seed in range(100)}
    assert {Phase.COMPLETE, Phase.ROLLED_BACK} <= ends


@pytest.mark.parametrize("rules", [Rules(compares_election=False), Rules(compares_desired=False)])
def test_compare_of_the_rollout_alone_keeps_it_safe(rules: Rules) -> None:
    """Each step writes the rollout. The other compares save work that would be in vain."""
    check(Model(WAVES, ("ok", "refuses", "ok"), rules=rules), faults=1)


def _next_wave_before_answers(rollout: RolloutView) -> Step | None:
    nodes = {
        name: node._replace(answer=node.answer or TableState.APPLIED) if node.opened else node
        for name, node in rollout.nodes.items()
    }
    return state_machine.step(rollout._replace(nodes=nodes))


def _any_number_at_a_time(rollout: RolloutView) -> Step | None:
    return state_machine.step(rollout._replace(max_unavailable=len(rollout.nodes)))


def _without_canary(rollout: RolloutView) -> Step | None:
    waves = [[name for name in wave if rollout.nodes[name].alive] for wave in rollout.waves]
    return state_machine.step(rollout._replace(waves=waves))


def _halted_goes_on(rollout: RolloutView) -> Step | None:
    if rollout.phase is Phase.HALTED:
        return Step(Phase.PROGRESSING, rollout.wave)
    return state_machine.step(rollout)


def _aborted_goes_on(rollout: RolloutView) -> Step | None:
    unopened = [name for name, node in rollout.nodes.items() if not node.opened and not node.undone]
    if rollout.phase is Phase.ROLLING_BACK and unopened:
        return Step(rollout.phase, rollout.wave, opened=tuple(unopened))
    return state_machine.step(rollout)


def _forgets_one_when_it_goes_back(rollout: RolloutView) -> Step | None:
    step = state_machine.step(rollout)
    if step is None or not step.undone:
        return step
    return step._replace(undone=step.undone[1:]) if len(step.undone) > 1 else Step(Phase.ROLLED_BACK, rollout.wave)


def _forgets_the_absent(rollout: RolloutView) -> Step | None:
    if rollout.phase is Phase.COMPLETE:
        return None
    step = state_machine.step(rollout)
    return step._replace(opened=()) if step is not None and step.phase is Phase.COMPLETE else step


def _goes_on_in_spite_of_a_no(rollout: RolloutView) -> Step | None:
    nodes = {
        name: node._replace(answer=TableState.APPLIED) if node.failed else node for name, node in rollout.nodes.items()
    }
    return state_machine.step(rollout._replace(nodes=nodes))


def _waits_for_ever(rollout: RolloutView) -> Step | None:
    nodes = {name: node._replace(late=False) for name, node in rollout.nodes.items()}
    return state_machine.step(rollout._replace(nodes=nodes, overdue=False))


@pytest.mark.parametrize(
    ("step", "kinds", "faults", "violation"),
    [
        (_next_wave_before_answers, _THREE, 0, "have not answered"),
        (_any_number_at_a_time, _THREE, 0, "change at a time"),
        (_without_canary, _THREE, 1, "nobody has tried"),
        (_halted_goes_on, ("ok", "refuses", "ok"), 0, "halted became progressing"),
        (_aborted_goes_on, ("ok", "refuses", "ok"), 0, "are opened while"),
        (_forgets_one_when_it_goes_back, ("ok", "refuses", "ok"), 0, "is to hold the new table"),
        (_forgets_the_absent, _THREE, 1, "is not to hold the new table"),
        (_goes_on_in_spite_of_a_no, ("refuses", "ok", "ok"), 0, "said no"),
        (_waits_for_ever, ("ok", "away", "ok"), 0, "stuck"),
    ],
)
def test_state_machine_with_a_mistake_is_found_out(
    step: Callable[[RolloutView], Step | None], kinds: tuple[str, ...], faults: int, violation: str
) -> None:
    model = Model(WAVES, kinds, rolls_back=step is not _halted_goes_on, rules=Rules(step=step))
    with pytest.raises(Violation, match=violation):
        check(model, faults)


@pytest.mark.parametrize(
    ("rules", "kinds", "faults", "violation"),
    [
        (Rules(compares_rollout=False), _THREE, 1, "became progressing"),
        (Rules(tells_versions_apart=False), _THREE, 0, "change at a time|have not answered"),
        (Rules(ignores_stale=False), ("ok", "refuses", "ok"), 0, "older table"),
        (Rules(undo_counts_at_once=False), ("ok", "refuses", "ok"), 1, "holds the new one|could go back"),
    ],
)
def test_world_without_a_rule_is_not_safe(rules: Rules, kinds: tuple[str, ...], faults: int, violation: str) -> None:
    with pytest.raises(Violation, match=violation):
        check(Model(WAVES, kinds, rules=rules), faults)


def _node(
    *,
    opened: bool = False,
    undone: bool = False,
    answer: TableState | None = None,
    alive: bool = True,
    late: bool = False,
) -> NodeView:
    return NodeView(opened, undone, answer, alive, late)


def _view(
    phase: Phase, nodes: dict[str, NodeView], *, max_unavailable: int = 1000, overdue: bool = False
) -> RolloutView:
    return RolloutView(phase, 0, [list(nodes)], nodes, max_unavailable, rolls_back=True, baked=True, overdue=overdue)


def test_transaction_writes_to_a_hundred_nodes_at_most() -> None:
    fresh = {f"node{number:03}": _node() for number in range(250)}
    opening = state_machine.step(_view(Phase.PROGRESSING, fresh))
    assert opening is not None
    assert len(opening.opened) == 100
    opened = {name: _node(opened=True) for name in fresh}
    undoing = state_machine.step(_view(Phase.ROLLING_BACK, opened))
    assert undoing is not None
    assert len(undoing.undone) == 100
    away = {name: _node(alive=False) for name in fresh} | {"tried": _node(opened=True, answer=TableState.APPLIED)}
    giving = state_machine.step(_view(Phase.PROGRESSING, away))
    assert giving is not None
    assert (giving.phase, len(giving.opened), giving.finished) == (Phase.COMPLETE, 100, False)


def test_complete_rollout_goes_on_giving_the_table_to_the_absent() -> None:
    nodes = {f"node{number:03}": _node(alive=False) for number in range(130)}
    first = state_machine.step(_view(Phase.COMPLETE, nodes))
    assert first is not None
    assert not first.finished
    nodes |= {name: _node(opened=True, alive=False) for name in first.opened}
    second = state_machine.step(_view(Phase.COMPLETE, nodes))
    assert second is not None
    assert (len(second.opened), second.finished) == (30, True)
    nodes |= {name: _node(opened=True, alive=False) for name in second.opened}
    assert state_machine.step(_view(Phase.COMPLETE, nodes)) is None


def test_nodes_that_are_down_count_against_the_budget() -> None:
    nodes = {"a": _node(), "b": _node(alive=False), "c": _node(alive=False)}
    assert state_machine.step(_view(Phase.PROGRESSING, nodes, max_unavailable=2)) is None
    opening = state_machine.step(_view(Phase.PROGRESSING, nodes, max_unavailable=3))
    assert opening is not None
    assert opening.opened == ("a",)
    stopped = state_machine.step(_view(Phase.PROGRESSING, nodes, max_unavailable=2, overdue=True))
    assert stopped is not None
    assert (stopped.phase, stopped.reason) == (Phase.ROLLING_BACK, "b, c down")


def test_rollback_ends_without_the_nodes_that_stay_away_and_says_so() -> None:
    nodes = {
        "back": _node(undone=True, answer=TableState.APPLIED),
        "away": _node(undone=True, alive=False),
    }
    assert state_machine.step(_view(Phase.ROLLING_BACK, nodes)) is None
    end = state_machine.step(_view(Phase.ROLLING_BACK, nodes, overdue=True))
    assert end is not None
    assert (end.phase, end.reason) == (Phase.ROLLED_BACK, "away away: what comes back goes back")
    nodes["stuck"] = _node(undone=True, answer=TableState.REFUSED)
    end = state_machine.step(_view(Phase.ROLLING_BACK, nodes, overdue=True))
    assert end is not None
    assert (end.phase, end.failed) == (Phase.ROLLBACK_FAILED, ("stuck",))


@pytest.mark.parametrize("phase", [Phase.PAUSED, Phase.HALTED, Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED])
def test_nothing_leads_out_of_what_a_person_has_to_decide(phase: Phase) -> None:
    nodes = {"a": _node(opened=True, answer=TableState.DRIFTED, late=True), "b": _node()}
    assert state_machine.step(_view(phase, nodes, overdue=True)) is None
