"""What a fleet's server answers, as it is in the JSON: see `app.client.answers`."""

from typing import Literal, TypedDict

Phase = Literal["progressing", "paused", "halted", "rolling_back", "complete", "rolled_back", "rollback_failed"]


class FleetAction(TypedDict):
    """Something that somebody has done."""

    at: str
    by: str
    what: Literal["rollout", "table_deleted", "node", "node_deleted"]
    table: str | None
    revision: int | None
    rollout: str | None
    phase: Phase | None
    wave: int | None
    node: str | None
    note: str


class FleetCaller(TypedDict):
    """Who asks, and what the caller may do. null: no restriction."""

    actor: str
    role: Literal["reader", "writer", "admin", "metrics"] | None
    tables: list[str] | None
    entries: list[str] | None
    programs: list[str] | None
    labels: dict[str, str] | None


class FleetDiffEntry(TypedDict):
    """An entry of a node that would change."""

    index: int
    before: str | None
    after: str | None


class FleetIndex(TypedDict):
    """Where to go on, and who asks."""

    name: str
    version: str
    links: dict[str, str]
    read_only: bool
    caller: FleetCaller | None


class OpenRange(TypedDict):
    """A map that a node's own configuration opens to the fleet."""

    name: str
    max_entries: int
    ranges: list[str] | None


class NodeFacts(TypedDict):
    """What a node says of itself."""

    version: str
    kernel: str
    ready: bool
    detail: str
    maps: list[OpenRange]
    at: str


class NodeTable(TypedDict):
    """What a node says of a table."""

    table: str
    revision: int | None
    wanted: int | None
    state: str | None
    code: str | None
    detail: str
    change: int | None
    indexes: list[int]
    at: str | None


class FleetNode(TypedDict):
    """A node of the fleet."""

    node: str
    labels: dict[str, str]
    user: str
    by: str
    at: str
    etag: str
    state: Literal["ready", "away", "unready", "changing", "failed"]
    alive: bool
    since: str | None
    facts: NodeFacts | None
    tables: list[NodeTable]


class FleetNodes(TypedDict):
    """Nodes, by name."""

    nodes: list[FleetNode]
    next: str | None


class FleetProgram(TypedDict):
    """A program by the name under which the nodes hold it, and the tags that it may have there; none: any."""

    name: str
    tags: list[str]


class WaveCounts(TypedDict):
    """One wave: how many nodes are in which state. States that no node is in are left out."""

    size: int
    states: dict[str, int]


class RolloutFailure(TypedDict):
    """A node because of which a rollout went no further."""

    node: str
    state: str
    code: str | None
    detail: str


class RolloutTransition(TypedDict):
    """One thing that happened to a rollout."""

    at: str
    by: str
    phase: Phase
    wave: int
    reason: str


class FleetRollout(TypedDict):
    """A rollout, with how far its nodes are."""

    id: str
    table: str
    revision: int
    phase: Phase
    wave: int
    since: str
    by: str
    reason: str
    etag: str
    waves: list[WaveCounts]
    states: dict[str, int]
    away: int
    failures: list[RolloutFailure]
    history: list[RolloutTransition]


class FleetRun(TypedDict):
    """Neighbouring entries that hold the same program."""

    first: int
    last: int
    program: FleetProgram | None


class TableSelector(TypedDict):
    """Which nodes a table is for."""

    match: dict[str, str]


class TableCheck(TypedDict):
    """What a node must pass before it confirms: a test run of a program, or a metric. The others are null."""

    program: str | None
    packet: str | None
    returned: int | None
    metric: str | None
    at_least: float | None
    at_most: float | None


class TableStrategy(TypedDict):
    """How a table goes to its nodes."""

    waves: list[int | str]
    max_unavailable: int
    bake_seconds: float
    confirm_within: int
    deadline: float
    on_failure: Literal["rollback", "halt"]
    checks: list[TableCheck]


class FleetTable(TypedDict):
    """A table of the fleet: its newest revision."""

    table: str
    revision: int
    selector: TableSelector
    range: str
    runs: list[FleetRun]
    strategy: TableStrategy
    by: str
    at: str
    note: str
    same_as: int | None
    etag: str
    rollout: str | None


class FleetTableSummary(TypedDict):
    """A table of the fleet, in a list."""

    table: str
    revision: int
    selector: TableSelector
    range: str
    by: str
    at: str
    note: str
    etag: str
    rollout: str | None


class FleetVersion(TypedDict):
    """What is running."""

    name: str
    version: str
    etcd: list[str]
    uptime_seconds: int


class NodeDryRun(TypedDict):
    """What a node says to a table that it is asked for."""

    node: str
    wave: int
    answer: Literal["accepts", "refuses", "away", "silent"]
    changed: int | None
    code: str | None
    detail: str
    diff: list[FleetDiffEntry]


class RolloutNode(TypedDict):
    """A node in a rollout."""

    node: str
    wave: int
    state: Literal[
        "waiting",
        "superseded",
        "told",
        "unconfirmed",
        "applied",
        "refused",
        "unhealthy",
        "reverted",
        "drifted",
        "going_back",
        "back",
    ]
    alive: bool
    code: str | None
    detail: str
    change: int | None


class RolloutNodes(TypedDict):
    """The nodes of a rollout, in the order of their turns."""

    nodes: list[RolloutNode]
    next: str | None


class RolloutSummary(TypedDict):
    """A rollout, in a list."""

    id: str
    table: str
    revision: int
    phase: Phase
    wave: int
    since: str
    by: str
    reason: str
    etag: str


class StartedRollout(TypedDict):
    """A rollout was started; or the table was as the request says already, and rollout is null."""

    table: FleetTable
    rollout: str | None
    waves: list[list[str]]


class TableDryRun(TypedDict):
    """What a rollout would do. Each node that is connected was asked: its service has made a dry run."""

    table: str
    revision: int
    waves: list[list[str]]
    nodes: list[NodeDryRun]
    accepts: int
    refuses: int
    away: int
    silent: int
    changed: int


class TableRevision(TypedDict):
    """One revision of a table."""

    table: str
    revision: int
    selector: TableSelector
    range: str
    runs: list[FleetRun]
    strategy: TableStrategy
    by: str
    at: str
    note: str
    same_as: int | None


class TableRevisions(TypedDict):
    """Revisions of a table, the newest first."""

    revisions: list[TableRevision]
    next: int | None
