"""From selectors and strategies to plans."""

from typing import Any

import pytest

from app.fleet.plan import make_plan, matching, waves
from app.fleet_store.documents import DesiredTable, Node, Strategy, TableRevision
from app.fleet_store.specification import ProgramName, Specification

_TWENTY = [f"edge-{number:02}" for number in range(20)]


def _sizes(*sizes: int | str, count: int = 20) -> list[int]:
    return [len(wave) for wave in waves(Strategy(waves=sizes), _TWENTY[:count])]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((1, 5, "100%"), 20, [1, 4, 15]),
        ((1, "10%", "100%"), 20, [1, 1, 18]),
        (("1%", "50%", "100%"), 20, [1, 9, 10]),
        ((1, 5), 20, [1, 4, 15]),  # what is left over is a last wave
        ((5, 1, "100%"), 20, [5, 15]),
        ((1, "100%"), 1, [1]),
        ((50, "100%"), 20, [20]),
        (("33%", "66%", "100%"), 3, [1, 1, 1]),
        (("100%",), 20, [20]),
    ],
)
def test_waves_are_as_the_strategy_says(sizes: tuple[int | str, ...], count: int, expected: list[int]) -> None:
    assert _sizes(*sizes, count=count) == expected


def test_each_node_has_one_turn() -> None:
    for count in range(1, 21):
        for sizes in ((1, "10%", "100%"), ("7%", 3, "50%"), (2, 2, 2)):
            cut = waves(Strategy(waves=sizes), _TWENTY[:count])
            assert [name for wave in cut for name in wave] == _TWENTY[:count]
            assert all(cut)


def test_selector_wants_all_of_its_labels() -> None:
    nodes = {
        "a": Node(labels={"role": "edge", "site": "1"}, user="a", by="alice", at=0),
        "c": Node(labels={"role": "edge"}, user="c", by="alice", at=0),
        "b": Node(labels={"role": "core", "site": "1"}, user="b", by="alice", at=0),
    }
    assert matching({"role": "edge"}, nodes) == ["a", "c"]
    assert matching({"role": "edge", "site": "1"}, nodes) == ["a"]
    assert matching({}, nodes) == ["a", "b", "c"]
    assert matching({"role": "none"}, nodes) == []


def _revision(number: int, first: int, last: int, **strategy: Any) -> TableRevision:
    programs = [ProgramName(f"program{number}")] * (last - first + 1)
    return TableRevision(
        table="t",
        revision=number,
        selector={},
        strategy=Strategy(**strategy),
        specification=Specification.from_programs(first, programs).to_bytes(),
        by="alice",
        at=0,
    )


def _desired(node: str, revision: TableRevision | None) -> DesiredTable:
    return DesiredTable(
        node=node,
        table="t",
        rollout="t-1",
        revision=None if revision is None else revision.revision,
        specification=None if revision is None else revision.specification,
        undo=revision is None,
        sequence=1,
        at=0,
    )


def test_nodes_that_are_connected_come_first() -> None:
    plan = make_plan(_revision(1, 0, 7, waves=(1, "100%")), ["a", "b", "c", "d"], {"c", "d"}, {})
    assert plan.waves == (("c",), ("d", "a", "b"))


def test_node_goes_back_to_the_revision_that_it_was_to_hold() -> None:
    old, older = _revision(2, 0, 7), _revision(1, 0, 63)
    desired = {"a": _desired("a", old), "b": _desired("b", older), "c": _desired("c", None)}
    plan = make_plan(_revision(3, 0, 7), ["a", "b", "c", "d"], set(), desired)
    assert plan.base == {"a": 2, "b": 1}


def test_revision_of_a_smaller_range_does_not_say_what_the_other_entries_held() -> None:
    """The node takes back what the rollout has changed, instead."""
    desired = {"a": _desired("a", _revision(1, 8, 15)), "b": _desired("b", _revision(2, 0, 15))}
    assert make_plan(_revision(3, 0, 15), ["a", "b"], set(), desired).base == {"b": 2}


def test_plan_has_the_strategy() -> None:
    revision = _revision(
        1, 0, 7, max_unavailable=3, bake_seconds=1.5, confirm_within=9, deadline=7.0, on_failure="halt"
    )
    plan = make_plan(revision, ["a"], set(), {})
    strategy = revision.strategy
    for name in ("max_unavailable", "bake_seconds", "confirm_within", "deadline", "on_failure", "checks"):
        assert getattr(plan, name) == getattr(strategy, name)
