"""What each key of the fleet holds, as JSON. Whatever is read is checked, and garbage is refused with a reason.

Times are seconds since 1970. They are for people, and for deadlines of the controller that wrote them; nothing that
must be safe depends on a clock. Unknown members are ignored, so that versions can differ for a while.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

import msgspec

from app.fleet_store.keys import NAME_PATTERN
from app.fleet_store.specification import MAX_BYTES as MAX_SPECIFICATION_BYTES

MAX_NODES: Final = 10_000
MAX_WAVES: Final = 100
MAX_TRANSITIONS: Final = 100
MAX_FAILURES: Final = 10
MAX_DETAIL_CHARACTERS: Final = 1000
_MAX_PACKET_HEX: Final = 2 * 4096
_MAX_CHECKS: Final = 16

# In Python, $ also matches before a line break at the end.
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN.replace("$", r"\Z"))]
Text = Annotated[str, msgspec.Meta(max_length=MAX_DETAIL_CHARACTERS)]
By = Annotated[str, msgspec.Meta(max_length=256)]
Code = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
LabelValue = Annotated[str, msgspec.Meta(max_length=63)]
Labels = Annotated[dict[Label, LabelValue], msgspec.Meta(max_length=64)]
RolloutId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}-[1-9][0-9]{0,7}\Z")]
RevisionNumber = Annotated[int, msgspec.Meta(ge=1, le=99_999_999)]
StoreRevision = Annotated[int, msgspec.Meta(ge=0)]  # a revision of etcd: it rises with each write of the whole store
Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Time = Annotated[float, msgspec.Meta(ge=0)]
PackedSpecification = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_SPECIFICATION_BYTES)]


class BadDocument(ValueError):
    """A value in etcd is not what its key is to hold. The text is one line: what is wrong with it."""


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key holds."""

    max_bytes: ClassVar[int] = 64 << 10

    def to_bytes(self) -> bytes:
        """Return the document as JSON.

        Raises:
            BadDocument: It is larger than documents of its kind may be.
        """
        value = msgspec.json.encode(self)
        self._check_size(value)
        return value

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        """Return the document that a value holds.

        Raises:
            BadDocument: It holds none.
        """
        cls._check_size(value)
        try:
            return msgspec.json.decode(value, type=cls)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            message = f"no {cls.__name__}: {error}"
            raise BadDocument(message) from error

    @classmethod
    def _check_size(cls, value: bytes) -> None:
        if len(value) > cls.max_bytes:
            message = f"no {cls.__name__}: it has {len(value)} bytes; at most {cls.max_bytes} are allowed"
            raise BadDocument(message)


class Node(Document, frozen=True, kw_only=True):
    """A node of the fleet. Labels are written by admins alone, as they decide what a node gets.

    Attributes:
        labels: What selectors match.
        user: The node's user in etcd: the CommonName of its certificate.
        by: Who has added it or changed its labels last.
        at: When.
    """

    labels: Labels
    user: Name
    by: By
    at: Time


class PacketCheck(msgspec.Struct, frozen=True, kw_only=True, tag="packet", tag_field="kind"):
    """A test run of a program on a packet, which must return a number.

    Attributes:
        program: The held program to run.
        packet: The packet, in hexadecimal digits.
        returned: What the run must return, u32.
    """

    program: Name
    packet: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=_MAX_PACKET_HEX)]
    returned: Index


class MetricCheck(msgspec.Struct, frozen=True, kw_only=True, tag="metric", tag_field="kind"):
    """A value of the node's service, as its /metrics shows it, which must lie within bounds.

    Attributes:
        metric: The name of the sample with its labels, as in `jumptable_map_drifted_entries{map="jump_table"}`.
        at_least: The lower bound; None: there is none.
        at_most: The upper bound; None: there is none.
    """

    metric: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    at_least: float | None = None
    at_most: float | None = None


Check = PacketCheck | MetricCheck


class Strategy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a table goes to its nodes.

    Attributes:
        waves: How many nodes have it after each wave: a number, or a share of all as in `10%`. The last is `100%`.
        max_unavailable: How many nodes may be changing or down at a time.
        bake_seconds: For how long a wave is watched after all its nodes have applied the table.
        confirm_within: Seconds in which a node's agent must reach etcd after the change, or the node takes it back.
        deadline: Seconds in which a node must answer after it was told.
        on_failure: What a failure leads to: `rollback`, or `halt`, which waits for a person.
        checks: What a node must pass before it confirms.
    """

    waves: Annotated[
        tuple[
            Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES)]
            | Annotated[str, msgspec.Meta(pattern=r"^(100|[1-9][0-9]?)%\Z")],
            ...,
        ],
        msgspec.Meta(min_length=1, max_length=MAX_WAVES),
    ] = (1, "10%", "100%")
    max_unavailable: Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES)] = 5
    bake_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    confirm_within: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    deadline: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    on_failure: Literal["rollback", "halt"] = "rollback"
    checks: Annotated[tuple[Check, ...], msgspec.Meta(max_length=_MAX_CHECKS)] = ()


class TableHead(Document, frozen=True, kw_only=True):
    """Which revision of a table counts. Its place in etcd (mod_revision) is the table's entity tag.

    Attributes:
        revision: The number of the newest revision.
    """

    revision: RevisionNumber


class TableRevision(Document, frozen=True, kw_only=True):
    """What somebody has said that a table is to hold, and where. Written once.

    Attributes:
        table: Its name.
        revision: Its number: 1, 2, and so on for each table.
        selector: Labels that a node must have, all of them. Without any, every node matches.
        strategy: How it goes to the nodes.
        specification: What the table is to hold: see `Specification.from_bytes`.
        by: Who said so.
        at: When.
        note: Why.
        same_as: The earlier revision whose content it has, if somebody went back or asked again.
    """

    max_bytes: ClassVar[int] = 1 << 20

    table: Name
    revision: RevisionNumber
    selector: Labels
    strategy: Strategy
    specification: PackedSpecification
    by: By
    at: Time
    note: Text = ""
    same_as: RevisionNumber | None = None


class Phase(StrEnum):
    """How far a rollout is.

    progressing: Waves are opened, one after the other.
    paused: A person has stopped it. Nodes keep what they have.
    halted: A node failed, and a person decides.
    rolling_back: What was opened is set back, all at once.
    complete: All nodes have the table, or are away and get it when they come back.
    rolled_back: All nodes have what they had before, or are away and get it when they come back.
    rollback_failed: The same, but some nodes have answered that they cannot go back.
    """

    PROGRESSING = "progressing"
    PAUSED = "paused"
    HALTED = "halted"
    ROLLING_BACK = "rolling_back"
    COMPLETE = "complete"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"

    @property
    def finished(self) -> bool:
        """Whether nothing leads out of it."""
        return self in {Phase.COMPLETE, Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED}


class TableState(StrEnum):
    """What a node says of a table.

    applied: It holds what is desired.
    unconfirmed: It holds it, and takes it back unless it gets further in time.
    refused: It does not take it. `code` and `detail` say why.
    unhealthy: It took it back, as a check failed.
    reverted: It took it back, as it was not confirmed in time.
    drifted: Somebody else has changed it since.
    """

    APPLIED = "applied"
    UNCONFIRMED = "unconfirmed"
    REFUSED = "refused"
    UNHEALTHY = "unhealthy"
    REVERTED = "reverted"
    DRIFTED = "drifted"

    @property
    def failed(self) -> bool:
        """Whether it is a no: it stays one until something else is desired."""
        return self in {TableState.REFUSED, TableState.UNHEALTHY, TableState.REVERTED, TableState.DRIFTED}


FailureState = Literal["refused", "unhealthy", "reverted", "drifted", "late"]


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node because of which a rollout went no further.

    Attributes:
        node: Its name.
        state: What it said, or `late` if it said nothing in time.
        code: A problem's code.
        detail: A sentence.
    """

    node: Name
    state: FailureState
    code: Code | None = None
    detail: Text = ""


class Transition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to a rollout.

    Attributes:
        at: When.
        by: Who did it: a person, or the name of a controller.
        phase: The phase from then on.
        wave: The wave from then on, from 0.
        reason: Why, in a sentence.
    """

    at: Time
    by: By
    phase: Phase
    wave: Annotated[int, msgspec.Meta(ge=0, lt=MAX_WAVES)]
    reason: Text = ""


class Rollout(Document, frozen=True, kw_only=True):
    """How one revision of a table goes to its nodes. Who has what is not in it: it follows from the desired tables.

    Attributes:
        id: `keys.rollout_id(table, revision)`.
        table: The table.
        revision: The revision that it brings.
        phase: How far it is.
        wave: The wave that is open, from 0.
        since: When it came into this phase and wave.
        by: Who has started it.
        reason: Why it is in this phase, in a sentence.
        failures: The first nodes because of which it went no further.
        steps: How many transactions its controllers have made.
        controller: Which controller has made the last of them.
        history: What happened to it, in order. Only the last MAX_TRANSITIONS are kept.
    """

    max_bytes: ClassVar[int] = 256 << 10

    id: RolloutId
    table: Name
    revision: RevisionNumber
    phase: Phase
    wave: Annotated[int, msgspec.Meta(ge=0, lt=MAX_WAVES)]
    since: Time
    by: By
    reason: Text = ""
    failures: Annotated[tuple[Failure, ...], msgspec.Meta(max_length=MAX_FAILURES)] = ()
    steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    controller: By = ""
    history: Annotated[tuple[Transition, ...], msgspec.Meta(max_length=MAX_TRANSITIONS)] = ()

    def moved(
        self,
        *,
        at: float,
        by: str,
        phase: Phase,
        wave: int | None = None,
        reason: str = "",
        failures: tuple[Failure, ...] = (),
    ) -> Self:
        """Return the rollout after a transition, with the transition in its history."""
        reason = reason[:MAX_DETAIL_CHARACTERS]
        wave = self.wave if wave is None else wave
        transition = Transition(at=at, by=by, phase=phase, wave=wave, reason=reason)
        return msgspec.structs.replace(
            self,
            phase=phase,
            wave=wave,
            since=at,
            reason=reason,
            failures=failures[:MAX_FAILURES] or self.failures,
            history=(*self.history, transition)[-MAX_TRANSITIONS:],
        )


class Plan(Document, frozen=True, kw_only=True):
    """Which nodes a rollout goes to, and in which order. Written once, with the rollout.

    Attributes:
        waves: The nodes of each wave. No node is in two.
        base: The revision to which a node is set back, by node. A node that is not among them takes back what this
            rollout has changed on it, as the fleet does not know what it held before.
        max_unavailable: See `Strategy`, as are the others.
        bake_seconds: Seconds.
        confirm_within: Seconds.
        deadline: Seconds.
        on_failure: `rollback` or `halt`.
        checks: What each node must pass.
    """

    max_bytes: ClassVar[int] = 1 << 20

    waves: Annotated[tuple[tuple[Name, ...], ...], msgspec.Meta(min_length=1, max_length=MAX_WAVES)]
    base: dict[Name, RevisionNumber]
    max_unavailable: Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES)]
    bake_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)]
    confirm_within: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    deadline: Annotated[float, msgspec.Meta(ge=1, le=86_400)]
    on_failure: Literal["rollback", "halt"]
    checks: Annotated[tuple[Check, ...], msgspec.Meta(max_length=_MAX_CHECKS)] = ()

    def __post_init__(self) -> None:
        nodes = [node for wave in self.waves for node in wave]
        if len(nodes) > MAX_NODES:
            message = f"{len(nodes)} nodes; at most {MAX_NODES} are allowed"
            raise ValueError(message)
        if len(set(nodes)) != len(nodes):
            raise ValueError("a node is in two waves")

    def nodes(self) -> list[str]:
        """Return all nodes, in the order of their turns."""
        return [node for wave in self.waves for node in wave]


class DesiredTable(Document, frozen=True, kw_only=True):
    """What one table is to hold on one node. Signed as a whole: see `app.fleet_store.signatures`.

    Attributes:
        node: The node that it is for.
        table: The table.
        rollout: The rollout that has written it.
        revision: The revision of the table; None if `specification` is.
        specification: What the table is to hold. None: the node takes back what this rollout has changed on it.
        undo: Whether the rollout sets the node back. It is then applied at once: without `confirm_within` and checks.
        confirm_within: Seconds; None: the change counts at once.
        checks: What the node must pass before it confirms.
        sequence: Rises with each desired table of a node, so that an old one that is played again is recognised. It is
            the revision of etcd that the rollout had when its controller decided this.
        at: When it was written.
        by: Who has asked for it. The node's journal names them. Empty: it names the agent.
    """

    max_bytes: ClassVar[int] = 1 << 20

    node: Name
    table: Name
    rollout: RolloutId
    revision: RevisionNumber | None
    specification: PackedSpecification | None
    undo: bool
    sequence: StoreRevision
    at: Time
    by: By = ""
    confirm_within: Annotated[int, msgspec.Meta(ge=1, le=3600)] | None = None
    checks: Annotated[tuple[Check, ...], msgspec.Meta(max_length=_MAX_CHECKS)] = ()

    def __post_init__(self) -> None:
        if self.specification is None and not self.undo:
            raise ValueError("without a specification, there is nothing to apply")
        if (self.specification is None) != (self.revision is None):
            raise ValueError("a specification has a revision, and nothing else has one")


class TableStatus(Document, frozen=True, kw_only=True):
    """What a node says of one table.

    Attributes:
        seen: The desired table that it speaks of: its mod_revision in etcd.
        state: What the node says.
        revision: The revision that the node holds, as far as it knows; None: none of the fleet's.
        code: A problem's code, if it failed.
        detail: A sentence, if it failed.
        change: The id of the change in the node's journal.
        indexes: Some of the entries that differ, if it drifted.
        at: When, by the node's clock.
    """

    seen: StoreRevision
    state: TableState
    at: Time
    revision: RevisionNumber | None = None
    code: Code | None = None
    detail: Text = ""
    change: StoreRevision | None = None
    indexes: Annotated[tuple[Index, ...], msgspec.Meta(max_length=10)] = ()


class DryRunAnswer(Document, frozen=True, kw_only=True):
    """What a table would change on a node.

    Attributes:
        seen: The dry run that it answers: its mod_revision in etcd.
        accepted: Whether the node would take it.
        changed: How many entries would change; None if it is not known.
        code: A problem's code, if it would not.
        detail: A sentence, if it would not.
        diff: The first entries that would change: index, program before, program after (None: empty).
        at: When, by the node's clock.
    """

    seen: StoreRevision
    accepted: bool
    at: Time
    changed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    code: Code | None = None
    detail: Text = ""
    diff: Annotated[tuple[tuple[Index, str | None, str | None], ...], msgspec.Meta(max_length=100)] = ()


class OpenMap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A map that the node's own configuration opens to the fleet.

    Attributes:
        name: Its held name, which is the name of the table.
        max_entries: How many entries it has.
        ranges: The indexes that are open, first and last; None: all.
    """

    name: Name
    max_entries: Index
    ranges: tuple[tuple[Index, Index], ...] | None = None


class NodeFacts(Document, frozen=True, kw_only=True):
    """What a node says of itself.

    Attributes:
        version: The version of jumptable there.
        kernel: The kernel's release.
        maps: What is open to the fleet.
        at: When, by the node's clock.
        ready: Whether its service is ready; `detail` says why not.
        detail: A sentence.
    """

    version: Annotated[str, msgspec.Meta(max_length=64)]
    kernel: Annotated[str, msgspec.Meta(max_length=128)]
    at: Time
    maps: Annotated[tuple[OpenMap, ...], msgspec.Meta(max_length=256)] = ()
    ready: bool = True
    detail: Text = ""


class Presence(Document, frozen=True, kw_only=True):
    """A node's agent is connected. The key is leased: it goes when the agent does.

    Attributes:
        since: Since when, by the node's clock.
    """

    since: Time


class Action(Document, frozen=True, kw_only=True):
    """Something that somebody has done, of which no revision and no rollout tells.

    Attributes:
        at: When.
        by: Who.
        what: A node was added or changed, or a node or a table was deleted.
        table: The table.
        node: The node.
        note: Why.
    """

    at: Time
    by: By
    what: Literal["node", "node_deleted", "table_deleted"]
    table: Name | None = None
    node: Name | None = None
    note: Text = ""


class Leader(Document, frozen=True, kw_only=True):
    """The controller that is elected. The key is leased.

    Attributes:
        name: Its name.
        since: Since when.
    """

    name: By
    since: Time
