"""Every key that the fleet has in etcd.

| key | writer | holds (`app.fleet_store.documents`) |
|---|---|---|
| `nodes/NODE` | fleet admins | `Node` |
| `tables/TABLE` | API, compared | `TableHead`: which revision counts |
| `revisions/TABLE/REVISION` | API, once | `TableRevision` |
| `active/TABLE` | API, created if absent; the controller removes it | the id of the table's one unfinished rollout |
| `rollouts/ROLLOUT` | API, then controller; compared | `Rollout` |
| `plans/ROLLOUT` | API, once | `Plan` |
| `desired/NODE/tables/TABLE` | controller, compared | `DesiredTable`, signed |
| `desired/NODE/dry_runs/ID` | API, leased | `DesiredTable`, signed: what a dry run asks |
| `status/NODE/tables/TABLE` | the node | `TableStatus` |
| `status/NODE/dry_runs/ID` | the node, leased | `DryRunAnswer` |
| `status/NODE/facts` | the node | `NodeFacts` |
| `status/NODE/alive` | the node, leased | `Presence` |
| `actions/TIME-REQUEST` | API, once, leased | `Action`: what nothing else records |
| `controller` | the elected controller, leased | `Leader` |

A node may read below `desired/NODE/` and write below `status/NODE/`, no more. Numbers in keys are padded with zeros, so
that the order of keys is the order of numbers.
"""

import re
from typing import Final

PREFIX: Final = "/jumptable/v1/"
CONTROLLER: Final = f"{PREFIX}controller"
NODES: Final = f"{PREFIX}nodes/"
TABLES: Final = f"{PREFIX}tables/"
REVISIONS: Final = f"{PREFIX}revisions/"
ACTIVE: Final = f"{PREFIX}active/"
ROLLOUTS: Final = f"{PREFIX}rollouts/"
PLANS: Final = f"{PREFIX}plans/"
ACTIONS: Final = f"{PREFIX}actions/"
DESIRED: Final = f"{PREFIX}desired/"
STATUS: Final = f"{PREFIX}status/"

# Names of nodes and tables. A table has the name under which each node's service holds the map.
NAME_PATTERN: Final = r"^(?!\.\.?$)[A-Za-z0-9_.-]{1,64}$"
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
_NUMBER_DIGITS: Final = 8


def checked_name(name: str) -> str:
    """Return the name of a node or of a table unchanged.

    Raises:
        ValueError: It is no such name. It could then leave its place among the keys.
    """
    if not _NAME.fullmatch(name):
        message = f"{name!r} is no name: 1 to 64 characters of A-Z a-z 0-9 _ . -, and neither . nor .."
        raise ValueError(message)
    return name


def rollout_id(table: str, revision: int) -> str:
    """Return the id of the rollout of a revision. Each revision has one rollout."""
    return f"{checked_name(table)}-{revision}"


def revision_of(rollout: str) -> int:
    """Return the revision that a rollout brings, by the rollout's id."""
    return int(rollout.rpartition("-")[2])


def action(at: float, request_id: str) -> str:
    """Return the key of something that somebody has done.

    Args:
        at: When, in seconds since 1970.
        request_id: Of the request. Only letters and digits of it count.
    """
    return f"{ACTIONS}{int(at * 1000):014}-{''.join(filter(str.isalnum, request_id))[:32]}"


def node(name: str) -> str:
    """Return the key of a node's labels."""
    return f"{NODES}{checked_name(name)}"


def table(name: str) -> str:
    """Return the key that says which revision of a table counts."""
    return f"{TABLES}{checked_name(name)}"


def revisions(name: str) -> str:
    """Return the prefix of all revisions of a table."""
    return f"{REVISIONS}{checked_name(name)}/"


def revision(name: str, number: int) -> str:
    """Return the key of one revision of a table."""
    return f"{revisions(name)}{number:0{_NUMBER_DIGITS}}"


def active(name: str) -> str:
    """Return the key of a table's unfinished rollout."""
    return f"{ACTIVE}{checked_name(name)}"


def rollout(rollout: str) -> str:
    """Return the key of a rollout, by its id."""
    return f"{ROLLOUTS}{rollout}"


def plan(rollout: str) -> str:
    """Return the key of a rollout's plan, by the rollout's id."""
    return f"{PLANS}{rollout}"


def desired(node: str) -> str:
    """Return the prefix of all that a node may read."""
    return f"{DESIRED}{checked_name(node)}/"


def desired_tables(node: str) -> str:
    """Return the prefix of a node's desired tables."""
    return f"{desired(node)}tables/"


def desired_table(node: str, table: str) -> str:
    """Return the key of what one table is to hold on a node."""
    return f"{desired_tables(node)}{checked_name(table)}"


def desired_dry_runs(node: str) -> str:
    """Return the prefix of the dry runs that a node is asked for."""
    return f"{desired(node)}dry_runs/"


def desired_dry_run(node: str, id_: str) -> str:
    """Return the key of a dry run that a node is asked for."""
    return f"{desired_dry_runs(node)}{checked_name(id_)}"


def status(node: str) -> str:
    """Return the prefix of all that a node may write."""
    return f"{STATUS}{checked_name(node)}/"


def table_status(node: str, table: str) -> str:
    """Return the key under which a node tells how one table is."""
    return f"{status(node)}tables/{checked_name(table)}"


def dry_run_answer(node: str, id_: str) -> str:
    """Return the key under which a node answers a dry run."""
    return f"{status(node)}dry_runs/{checked_name(id_)}"


def facts(node: str) -> str:
    """Return the key under which a node tells about itself."""
    return f"{status(node)}facts"


def alive(node: str) -> str:
    """Return the leased key that is there while a node's agent is connected."""
    return f"{status(node)}alive"


def last_part(key: str) -> str:
    """Return what stands after the last slash: the name of a table, the id of a rollout or of a dry run."""
    return key.rpartition("/")[2]


def node_of(key: str) -> str:
    """Return the node of a key below `nodes/`, `desired/` or `status/`."""
    return key.removeprefix(PREFIX).split("/")[1]
