"""The bodies of requests."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from app.access.rights import Ranges
from app.api.schemas.fields import U32, Name
from app.api.schemas.requests import Input
from app.fleet_store import documents
from app.fleet_store.specification import MAX_ENTRIES, ProgramName, Run, Specification

_WAVE: Final = re.compile(r"(100|[1-9][0-9]?)%")
_TAG_PATTERN: Final = "^[0-9a-f]{16}$"
_MAX_TAGS: Final = 16

Labels = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=63)]],
    Field(max_length=64),
]


def _range(text: str) -> str:
    [(first, last)] = Ranges.of([text]).parts
    if last - first >= MAX_ENTRIES:
        message = f"has {last - first + 1} entries; at most {MAX_ENTRIES} are allowed"
        raise ValueError(message)
    return text


def _wave(value: int | str) -> int | str:
    if isinstance(value, str) and not _WAVE.fullmatch(value):
        message = 'is neither a number of nodes nor a share like "10%"'
        raise ValueError(message)
    return value


class TaggedProgram(Input):
    """A program by the name under which the nodes hold it, and the tags that it may have there."""

    name: Name
    tags: list[Annotated[str, Field(pattern=_TAG_PATTERN)]] = Field(
        default=[],
        max_length=_MAX_TAGS,
        description="The program must have one of these tags. Kernels differ in how they compute them. By default any.",
        examples=[["46728abc63e3a679"]],
    )


def _form(value: object) -> str:
    return "<object>" if isinstance(value, dict | TaggedProgram) else "<name>"


# A place in angle brackets is left out of errors.
Program = (
    Annotated[Annotated[Name, Tag("<name>")] | Annotated[TaggedProgram, Tag("<object>")], Discriminator(_form)] | None
)


def _program_name(program: str | TaggedProgram | None) -> ProgramName | None:
    if isinstance(program, TaggedProgram):
        return ProgramName(program.name, tuple(program.tags))
    return None if program is None else ProgramName(program)


class EntryRun(Input):
    """Neighbouring entries that hold the same program."""

    first: U32 = Field(examples=[8])
    last: U32 = Field(examples=[63], description="Included.")
    program: Program = Field(description="null: they are empty.", examples=["parse_v2"])


class Selector(Input):
    """Which nodes a table is for."""

    match: Labels = Field(
        description="Labels that a node must have, all of them. Without any, every node.", examples=[{"role": "edge"}]
    )


class HealthCheck(Input):
    """What a node must pass before it confirms: a test run of a program on a packet, or a metric within bounds."""

    program: Name | None = Field(default=None, description="The held program to run.", examples=["entry"])
    packet: str | None = Field(
        default=None,
        pattern="^([0-9a-f]{2})*$",
        min_length=28,
        max_length=8192,
        description="The packet, in hexadecimal digits.",
        examples=["0b00000000000000000000000000"],
    )
    returned: U32 | None = Field(default=None, description="What the run must return.", examples=[2])
    metric: str | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="A sample of the node's /metrics, with its labels.",
        examples=['jumptable_drift_entries{map="jump_table"}'],
    )
    at_least: float | None = Field(default=None, examples=[0.0])
    at_most: float | None = Field(default=None, examples=[10.0])

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        runs = (self.program, self.packet, self.returned)
        bounds = (self.at_least, self.at_most)
        is_run = None not in runs and self.metric is None and bounds == (None, None)
        is_metric = self.metric is not None and runs == (None, None, None) and bounds != (None, None)
        if not (is_run or is_metric):
            raise ValueError("give program, packet and returned; or metric with at_least, at_most or both")
        return self

    def document(self) -> documents.Check:
        """The check as etcd holds it."""
        if self.metric is not None:
            return documents.MetricCheck(metric=self.metric, at_least=self.at_least, at_most=self.at_most)
        assert self.program is not None  # else it is of no kind
        assert self.packet is not None
        assert self.returned is not None
        return documents.PacketCheck(program=self.program, packet=self.packet, returned=self.returned)


class RolloutStrategy(Input):
    """How a table goes to its nodes."""

    waves: list[Annotated[int | str, AfterValidator(_wave)]] = Field(
        default=[1, "10%", "100%"],
        min_length=1,
        max_length=documents.MAX_WAVES,
        description='How many nodes have it after each wave: a number, or a share of all. The last one is "100%". By '
        'default 1, "10%", "100%".',
        examples=[[1, "10%", "100%"]],
    )
    max_unavailable: int = Field(
        default=5, ge=1, le=documents.MAX_NODES, description="Nodes that may be changing or away at a time. Default: 5."
    )
    bake_seconds: float = Field(
        default=30.0, ge=0, le=86_400, description="For how long a wave is watched once it has the table. Default: 30."
    )
    confirm_within: int = Field(
        default=60,
        ge=1,
        le=3600,
        description="Seconds in which a node must reach etcd after the change, or takes it back. Default: 60.",
    )
    deadline: float = Field(
        default=300.0, ge=1, le=86_400, description="Seconds in which a node must answer. Default: 300."
    )
    on_failure: Literal["rollback", "halt"] = Field(
        default="rollback",
        description="rollback: all nodes go back at once. halt: a person decides. Default: rollback.",
    )
    checks: list[HealthCheck] = Field(default=[], max_length=16, description="What a node must pass. Default: none.")

    @model_validator(mode="after")
    def _ends_with_all(self) -> Self:
        if self.waves[-1] != "100%":
            raise ValueError('the last of waves is "100%", so that all nodes get the table')
        if any(isinstance(each, int) and not 1 <= each <= documents.MAX_NODES for each in self.waves):
            message = f"a wave has 1 to {documents.MAX_NODES} nodes"
            raise ValueError(message)
        return self

    def document(self) -> documents.Strategy:
        """The strategy as etcd holds it."""
        return documents.Strategy(
            waves=tuple(self.waves),
            max_unavailable=self.max_unavailable,
            bake_seconds=self.bake_seconds,
            confirm_within=self.confirm_within,
            deadline=self.deadline,
            on_failure=self.on_failure,
            checks=tuple(each.document() for each in self.checks),
        )


class PutFleetTable(Input):
    """What a table is to hold, and on which nodes. What GET answers can be sent back: its other members are ignored."""

    selector: Selector
    range: Annotated[str, AfterValidator(_range)] = Field(
        description="The entries that the fleet cares for. All others are left alone.", examples=["8-63"]
    )
    programs: list[Program] | None = Field(
        default=None,
        max_length=MAX_ENTRIES,
        description="What the entries of the range hold, from its first on; null, and what is left out: empty.",
        examples=[["parse_v2", "parse_v2", None, "drop"]],
    )
    runs: list[EntryRun] | None = Field(
        default=None,
        max_length=MAX_ENTRIES,
        description="The same for neighbours with the same program. What no run has is empty. Give programs or runs.",
        examples=[[{"first": 8, "last": 63, "program": "parse_v2"}]],
    )
    strategy: RolloutStrategy | None = Field(default=None, description="By default that of RolloutStrategy.")
    table: Any = Field(default=None, description="Ignored, as are all further ones: they are in what GET answers.")
    revision: Any = None
    etag: Any = None
    by: Any = None
    at: Any = None
    note: Any = None
    same_as: Any = None
    rollout: Any = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.programs is None) == (self.runs is None):
            raise ValueError("give exactly one of programs and runs")
        first, last = self.bounds()
        if self.programs is not None and len(self.programs) > last - first + 1:
            message = f"programs has {len(self.programs)} entries, but the range only {last - first + 1}"
            raise ValueError(message)
        after = first
        for run in sorted(self.runs or [], key=lambda run: run.first):
            if not after <= run.first <= run.last <= last:
                message = (
                    f"the run {run.first}-{run.last} is not within the range {self.range}, or overlaps another one"
                )
                raise ValueError(message)
            after = run.last + 1
        return self

    def bounds(self) -> tuple[int, int]:
        """The first and the last entry of the range."""
        [bounds] = Ranges.of([self.range]).parts
        return bounds

    def specification(self) -> Specification:
        """What the table is to hold.

        Raises:
            BadSpecification: It is none.
        """
        first, last = self.bounds()
        if self.programs is not None:
            programs = [*map(_program_name, self.programs)]
            missing = last - first + 1 - len(programs)
            return Specification.from_programs(first, programs + [None] * missing)
        runs: list[Run] = []
        for run in sorted(self.runs or [], key=lambda run: run.first):
            _append(runs, run.first, run.last, _program_name(run.program), first)
        _append(runs, last + 1, last, None, first)
        return Specification(first, last, tuple(runs))


def _append(runs: list[Run], first: int, last: int, program: ProgramName | None, start: int) -> None:
    """Add a run to those before it, with empty entries between them. Neighbours with the same program become one."""
    begin = runs[-1].last + 1 if runs else start
    for run in (Run(begin, first - 1, None), Run(first, last, program)):
        if run.first > run.last:
            continue
        if runs and runs[-1].program == run.program:
            runs[-1] = Run(runs[-1].first, run.last, run.program)
        else:
            runs.append(run)


class StartRollout(Input):
    """Which revision of a table its nodes are to have: the newest one again, or an earlier one."""

    table: Name
    revision: Annotated[int, Field(ge=1, le=99_999_999)] = Field(examples=[3])


class PutNode(Input):
    """A node of the fleet."""

    labels: Labels = Field(description="What selectors match.", examples=[{"role": "edge", "site": "fra"}])
    user: Name | None = Field(
        default=None,
        description="Its user in etcd: the CommonName of its certificate. By default the node's name.",
        examples=["edge-1"],
    )
    node: Any = Field(default=None, description="Ignored, as are all further ones: they are in what GET answers.")
    etag: Any = None
    by: Any = None
    at: Any = None
    state: Any = None
    alive: Any = None
    since: Any = None
    facts: Any = None
    tables: Any = None
