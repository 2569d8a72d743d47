"""From a selector and a strategy to the plan of a rollout: which nodes, in which waves, and where each goes back to."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from app.fleet_store.documents import DesiredTable, Node, Plan, Strategy, TableRevision
from app.fleet_store.specification import Specification


def matching(selector: Mapping[str, str], nodes: Mapping[str, Node]) -> list[str]:
    """Return the names of the nodes that have all labels of a selector, in order."""
    return sorted(name for name, node in nodes.items() if selector.items() <= node.labels.items())


def make_plan(
    revision: TableRevision, names: Iterable[str], alive: Collection[str], desired: Mapping[str, DesiredTable]
) -> Plan:
    """Return the plan of a revision's rollout.

    Args:
        revision: What is to go to the nodes.
        names: The nodes, as of `matching`.
        alive: The nodes that are connected. They come first, so that the first wave is one that can be tried.
        desired: What the nodes are to hold so far, by name.
    """
    ordered = sorted(names, key=lambda name: (name not in alive, name))
    strategy = revision.strategy
    return Plan(
        waves=waves(strategy, ordered),
        base=_base(revision, {name: desired[name] for name in ordered if name in desired}),
        max_unavailable=strategy.max_unavailable,
        bake_seconds=strategy.bake_seconds,
        confirm_within=strategy.confirm_within,
        deadline=strategy.deadline,
        on_failure=strategy.on_failure,
        checks=strategy.checks,
    )


def waves(strategy: Strategy, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Cut nodes into waves. What the strategy leaves over is a last wave. Waves without nodes are left out."""
    result, done = [], 0
    for size in (*strategy.waves, len(names)):
        end = math.ceil(len(names) * int(size[:-1]) / 100) if isinstance(size, str) else size
        if end > done and names[done:end]:
            result.append(tuple(names[done:end]))
            done = end
    return tuple(result)


def _base(revision: TableRevision, desired: Mapping[str, DesiredTable]) -> dict[str, int]:
    """Return the revision to which each node goes back. A node that is left out takes back what the rollout did.

    A revision whose range is smaller does not say what the other entries held.
    """
    new = Specification.from_bytes(revision.specification)
    covers: dict[int, bool] = {}
    base = {}
    for name, table in desired.items():
        if table.specification is None or table.revision is None:
            continue
        if table.revision not in covers:
            covers[table.revision] = Specification.from_bytes(table.specification).covers(new)
        if covers[table.revision]:
            base[name] = table.revision
    return base
