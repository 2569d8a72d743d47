"""Who may do what with the fleet: the right of each operation, and the bounds of callers."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.types import Scope

from app.access.rights import Right
from app.api.authorization import ASK, forbidden, grant_of
from app.fleet_store.specification import Specification

# By operation id. Every route must be here.
RIGHTS: Final[dict[str, Right]] = {
    "get_liveness": Right.NONE,
    "get_readiness": Right.NONE,
    "explain_problem": Right.NONE,
    "get_index": Right.DOCS,
    "get_web_file": Right.DOCS,
    "get_docs": Right.DOCS,
    "get_docs_asset": Right.DOCS,
    "get_openapi": Right.DOCS,
    "get_version": Right.READ,
    "get_metrics": Right.METRICS,
    "list_tables": Right.READ,
    "get_table": Right.READ,
    "list_revisions": Right.READ,
    "list_rollouts": Right.READ,
    "get_rollout": Right.READ,
    "list_rollout_nodes": Right.READ,
    "list_nodes": Right.READ,
    "get_node": Right.READ,
    "list_history": Right.READ,
    "watch_events": Right.READ,
    "put_table": Right.WRITE,
    "delete_table": Right.WRITE,
    "start_rollout": Right.WRITE,
    "pause_rollout": Right.WRITE,
    "resume_rollout": Right.WRITE,
    "abort_rollout": Right.WRITE,
    "put_node": Right.ADMIN,
    "delete_node": Right.ADMIN,
}


def check_table(scope: Scope, table: str) -> None:
    """Check that a table is within the bounds of the caller.

    Raises:
        HttpProblem: forbidden.
    """
    if not grant_of(scope).has_map(table):
        raise forbidden(scope, f"table {table!r} is not among the tables of this caller; {ASK}")


def check_labels(scope: Scope, labels: Mapping[str, str], what: str) -> None:
    """Check that labels, of a node or of a selector, are within the bounds of the caller.

    Args:
        scope: Of the request.
        labels: The labels.
        what: Whose labels they are, for the detail.

    Raises:
        HttpProblem: forbidden.
    """
    grant = grant_of(scope)
    if not grant.has_labels(labels):
        wanted = ", ".join(f"{name}={value}" for name, value in sorted(grant.labels or ()))
        raise forbidden(scope, f"{what} does not have all of the labels of this caller ({wanted}); {ASK}")


def check_specification(scope: Scope, specification: Specification) -> None:
    """Check that a table names only entries and programs within the bounds of the caller.

    Raises:
        HttpProblem: forbidden.
    """
    grant = grant_of(scope)
    first, last = specification.first, specification.last
    if grant.entries is not None and grant.entries.count(first, last) != last - first + 1:
        allowed = ", ".join(grant.entries.texts())
        raise forbidden(scope, f"the range {first}-{last} is not within the entries of this caller ({allowed}); {ASK}")
    for program in specification.programs():
        if not grant.has_program(program.name):
            raise forbidden(scope, f"program {program.name!r} is not among the programs of this caller; {ASK}")


def may_see_table(request: Request, table: str) -> bool:
    """Whether lists show a table to the caller."""
    return grant_of(request.scope).has_map(table)


def may_see_node(request: Request, labels: Mapping[str, str]) -> bool:
    """Whether lists show a node with these labels to the caller."""
    return grant_of(request.scope).has_labels(labels)
