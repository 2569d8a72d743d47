"""The bodies of responses."""

import functools
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.access.rights import Role
from app.api.schemas.fields import NAME_SCHEMA
from app.fleet_store import documents
from app.fleet_store.specification import ProgramName, Run

NodeName = Annotated[str, NAME_SCHEMA, Field(examples=["edge-1"])]
TableName = Annotated[str, NAME_SCHEMA, Field(examples=["jump_table"])]
RolloutId = Annotated[str, Field(examples=["jump_table-3"])]
Revision = Annotated[int, Field(ge=1, le=99_999_999, examples=[3])]
Index = Annotated[int, Field(ge=0, le=(1 << 32) - 1, examples=[8])]
Count = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Labels = Annotated[dict[str, str], Field(examples=[{"role": "edge", "site": "fra"}])]
Note = Annotated[str, Field(examples=["parse v2"])]
Phase = Annotated[
    documents.Phase,
    Field(
        description="progressing: waves are opened. paused: a person has stopped it. halted: a node failed, and a "
        "person decides. rolling_back: all opened nodes go back. complete, rolled_back, rollback_failed: it has ended."
    ),
]
# What the answer says of a node in a rollout.
NodeInRollout = Literal[
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
# What the answer says of a node as a whole.
NodeState = Literal["ready", "away", "unready", "changing", "failed"]


def moment(seconds: float) -> datetime:
    """Return a time of etcd's documents, in seconds since 1970, as answers show it."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


class FleetProgram(BaseModel):
    """A program by the name under which the nodes hold it, and the tags that it may have there; none: any."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    name: TableName
    tags: list[str] = Field(examples=[["46728abc63e3a679"]])


class FleetRun(BaseModel):
    """Neighbouring entries that hold the same program."""

    first: Index
    last: Index
    program: FleetProgram | None

    @classmethod
    def of(cls, run: Run) -> "FleetRun":
        """Return the model of a run. A table may have many, and what etcd holds was checked: they are not again."""
        return cls.model_construct(first=run.first, last=run.last, program=program_of(run.program))


@functools.lru_cache(maxsize=4096)  # one object for all runs of a program
def program_of(program: ProgramName | None) -> FleetProgram | None:
    """Return the model of a program."""
    return None if program is None else FleetProgram(name=program.name, tags=list(program.tags))


class TableSelector(BaseModel):
    """Which nodes a table is for."""

    match: Labels = Field(description="Labels that a node must have, all of them.")


class TableCheck(BaseModel):
    """What a node must pass before it confirms: a test run of a program, or a metric. The others are null."""

    program: str | None
    packet: str | None
    returned: Index | None
    metric: str | None
    at_least: float | None
    at_most: float | None


class TableStrategy(BaseModel):
    """How a table goes to its nodes."""

    waves: list[int | str] = Field(examples=[[1, "10%", "100%"]])
    max_unavailable: Count
    bake_seconds: float
    confirm_within: Count
    deadline: float
    on_failure: Literal["rollback", "halt"]
    checks: list[TableCheck]

    @classmethod
    def of(cls, strategy: documents.Strategy) -> "TableStrategy":
        """Return the model of a strategy."""
        return cls(
            waves=list(strategy.waves),
            max_unavailable=strategy.max_unavailable,
            bake_seconds=strategy.bake_seconds,
            confirm_within=strategy.confirm_within,
            deadline=strategy.deadline,
            on_failure=strategy.on_failure,
            checks=[
                TableCheck(**{name: getattr(check, name, None) for name in TableCheck.model_fields})
                for check in strategy.checks
            ],
        )


class TableRevision(BaseModel):
    """One revision of a table."""

    table: TableName
    revision: Revision
    selector: TableSelector
    range: str = Field(examples=["8-63"])
    runs: list[FleetRun] = Field(description="What the entries of the range hold. Those without a run are empty.")
    strategy: TableStrategy
    by: str = Field(description="Who has said so.", examples=["token:alice"])
    at: datetime
    note: Note
    same_as: Revision | None = Field(description="The earlier revision whose content it has; null: it has its own.")


class FleetTable(TableRevision):
    """A table of the fleet: its newest revision."""

    etag: str = Field(examples=['"4711"'])
    rollout: RolloutId | None = Field(description="Its rollout that has not ended; null: there is none.")


class FleetTableSummary(BaseModel):
    """A table of the fleet, in a list."""

    table: TableName
    revision: Revision
    selector: TableSelector
    range: str = Field(examples=["8-63"])
    by: str = Field(examples=["token:alice"])
    at: datetime
    note: Note
    etag: str = Field(examples=['"4711"'])
    rollout: RolloutId | None = Field(description="Its rollout that has not ended; null: there is none.")


class FleetTables(BaseModel):
    """All tables, by name."""

    tables: list[FleetTableSummary]


class TableRevisions(BaseModel):
    """Revisions of a table, the newest first."""

    revisions: list[TableRevision]
    next: Revision | None = Field(description="`before` of the next page; null: this is the last one.")


class StartedRollout(BaseModel):
    """A rollout was started; or the table was as the request says already, and rollout is null."""

    table: FleetTable
    rollout: RolloutId | None
    waves: list[list[NodeName]] = Field(description="The nodes of each wave.")


class FleetDiffEntry(BaseModel):
    """An entry of a node that would change."""

    index: Index
    before: str | None = Field(description="null: it is empty.", examples=["pass"])
    after: str | None = Field(description="null: it would be empty.", examples=["parse_v2"])


class NodeDryRun(BaseModel):
    """What a node says to a table that it is asked for."""

    node: NodeName
    wave: Annotated[int, Field(ge=0, le=99, description="From 0.")]
    answer: Literal["accepts", "refuses", "away", "silent"] = Field(
        description="accepts, refuses: by the dry run of its own service. away: its agent is not connected. silent: it "
        "has not answered in time."
    )
    changed: Count | None = Field(description="How many entries would change; null: it is not known.")
    code: str | None = Field(description="Why it refuses: the code of a problem.", examples=["program-not-found"])
    detail: str = Field(description="The same in a sentence.")
    diff: list[FleetDiffEntry] = Field(description="The first entries that would change, 100 at the most.")


class TableDryRun(BaseModel):
    """What a rollout would do. Each node that is connected was asked: its service has made a dry run."""

    table: TableName
    revision: Revision = Field(description="The number that the revision would have.")
    waves: list[list[NodeName]]
    nodes: list[NodeDryRun]
    accepts: Count
    refuses: Count
    away: Count
    silent: Count
    changed: Count = Field(description="How many entries would change on all nodes together.")


class RolloutFailure(BaseModel):
    """A node because of which a rollout went no further."""

    node: NodeName
    state: str = Field(examples=["refused"])
    code: str | None = Field(examples=["program-incompatible"])
    detail: str


class RolloutTransition(BaseModel):
    """One thing that happened to a rollout."""

    at: datetime
    by: str = Field(description="A person, or a controller.", examples=["token:alice"])
    phase: Phase
    wave: Annotated[int, Field(ge=0, le=99, description="From 0.")]
    reason: str


class RolloutSummary(BaseModel):
    """A rollout, in a list."""

    id: RolloutId
    table: TableName
    revision: Revision
    phase: Phase
    wave: Annotated[int, Field(ge=0, le=99, description="The wave that is open, from 0.")]
    since: datetime = Field(description="When it came into this phase and wave.")
    by: str = Field(examples=["token:alice"])
    reason: str
    etag: str = Field(examples=['"4712"'])


class WaveCounts(BaseModel):
    """One wave: how many nodes are in which state. States that no node is in are left out."""

    size: Count
    states: dict[str, Annotated[int, Field(ge=0, le=(1 << 31) - 1)]] = Field(examples=[{"applied": 3, "told": 1}])


class FleetRollout(RolloutSummary):
    """A rollout, with how far its nodes are."""

    waves: list[WaveCounts]
    states: dict[str, Annotated[int, Field(ge=0, le=(1 << 31) - 1)]] = Field(
        description="How many nodes are in which state, in all waves.", examples=[{"applied": 3, "waiting": 16}]
    )
    away: Count = Field(description="How many of its nodes are not connected.")
    failures: list[RolloutFailure] = Field(description="The first nodes because of which it went no further.")
    history: list[RolloutTransition]


class FleetRollouts(BaseModel):
    """Rollouts, the newest first."""

    rollouts: list[RolloutSummary]


class RolloutNode(BaseModel):
    """A node in a rollout."""

    node: NodeName
    wave: Annotated[int, Field(ge=0, le=99, description="From 0.")]
    state: NodeInRollout = Field(
        description="waiting: its turn has not come. superseded: a later rollout has reached it. told: it has not "
        "answered yet. going_back, back: set back to what it had. The others: its own answer."
    )
    alive: bool = Field(description="Whether its agent is connected.")
    code: str | None = Field(examples=["program-incompatible"])
    detail: str
    change: Annotated[int, Field(ge=0, le=1 << 62)] | None = Field(description="The id of the change on the node.")


class RolloutNodes(BaseModel):
    """The nodes of a rollout, in the order of their turns."""

    nodes: list[RolloutNode]
    next: str | None = Field(description="`after` of the next page; null: this is the last one.")


class OpenRange(BaseModel):
    """A map that a node's own configuration opens to the fleet."""

    name: TableName
    max_entries: Index
    ranges: list[str] | None = Field(description="The entries that are open; null: all.", examples=[["8-63"]])


class NodeFacts(BaseModel):
    """What a node says of itself."""

    version: str = Field(examples=["0.1.0"])
    kernel: str = Field(examples=["6.18.44"])
    ready: bool
    detail: str
    maps: list[OpenRange]
    at: datetime


class NodeTable(BaseModel):
    """What a node says of a table."""

    table: TableName
    revision: Revision | None = Field(description="The revision that it holds, as far as it knows.")
    wanted: Revision | None = Field(description="The revision that it is to hold; null: that from before the fleet.")
    state: str | None = Field(description="null: it has not answered yet.", examples=["applied"])
    code: str | None = Field(examples=["program-incompatible"])
    detail: str
    change: Annotated[int, Field(ge=0, le=1 << 62)] | None = Field(description="The id of the change on the node.")
    indexes: list[Index] = Field(description="Some of the entries that differ, if it drifted.")
    at: datetime | None


class FleetNode(BaseModel):
    """A node of the fleet."""

    node: NodeName
    labels: Labels
    user: str = Field(description="Its user in etcd: the CommonName of its certificate.", examples=["edge-1"])
    by: str = Field(description="Who has added or changed it last.", examples=["token:admin"])
    at: datetime
    etag: str = Field(examples=['"4713"'])
    state: NodeState = Field(
        description="ready: all is as it is to be. away: its agent is not connected. unready: its service is not "
        "ready, or it has not said anything yet. changing: it has not answered to what is desired. failed: it has "
        "refused a table, taken it back, or drifted."
    )
    alive: bool
    since: datetime | None = Field(description="Since when its agent is connected; null: it is not.")
    facts: NodeFacts | None = Field(description="null: it has not said anything yet.")
    tables: list[NodeTable]


class FleetNodes(BaseModel):
    """Nodes, by name."""

    nodes: list[FleetNode]
    next: str | None = Field(description="`after` of the next page; null: this is the last one.")


class FleetAction(BaseModel):
    """Something that somebody has done."""

    at: datetime
    by: str = Field(examples=["token:alice"])
    what: Literal["rollout", "table_deleted", "node", "node_deleted"] = Field(
        description="rollout: it began or went on, to phase and wave. node: it was added, or has other labels."
    )
    table: str | None
    revision: Revision | None
    rollout: RolloutId | None
    phase: Phase | None
    wave: Annotated[int, Field(ge=0, le=99)] | None
    node: str | None
    note: str = Field(description="Why, in the words of whoever did it.")


class FleetHistory(BaseModel):
    """What was done, the newest first."""

    actions: list[FleetAction]


class Liveness(BaseModel):
    """The process answers requests."""

    status: Literal["ok"] = "ok"


class FleetReadiness(BaseModel):
    """etcd answers."""

    status: Literal["ready"] = "ready"
    leader: str | None = Field(description="The controller that leads rollouts; null: none does now.")
    warnings: list[str]


class FleetVersion(BaseModel):
    """What is running."""

    name: str = "jumptable fleet"
    version: str = Field(examples=["0.1.0"])
    etcd: list[str] = Field(description="The versions of etcd's members.", examples=[["3.5.30"]])
    uptime_seconds: Count = Field(examples=[86400])


class FleetCaller(BaseModel):
    """Who asks, and what the caller may do. null: no restriction."""

    actor: str = Field(examples=["token:deploy"])
    role: Role | None = Field(description="null: the caller may do nothing.")
    tables: list[str] | None
    entries: list[str] | None
    programs: list[str] | None
    labels: dict[str, str] | None


class FleetIndex(BaseModel):
    """Where to go on, and who asks."""

    name: str = "jumptable fleet"
    version: str = Field(examples=["0.1.0"])
    links: dict[str, str] = Field(description="The paths to begin with.")
    read_only: bool
    caller: FleetCaller | None = Field(description="null: it is not known who asks; send a token.")
