"""The controller: one of several is elected, and drives all rollouts, one transaction after the other.

It keeps nothing that a successor would need: what a rollout has done so far is in the store.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgspec
import structlog

from app.fleet.mirror import Desired, Mirror, Versioned
from app.fleet.state_machine import NodeView, RolloutView, Step, answer, step
from app.fleet_store import keys
from app.fleet_store.documents import (
    BadDocument,
    DesiredTable,
    Failure,
    FailureState,
    Leader,
    Phase,
    Plan,
    Rollout,
    TableRevision,
)
from app.fleet_store.errors import EtcdError, OutcomeUnknown, Refused
from app.fleet_store.etcd import Etcd, Lease
from app.fleet_store.operations import created_in, delete, delete_prefix, is_absent, put, unchanged
from app.fleet_store.signatures import DESIRED_TABLE, Signer

LEASE_SECONDS: Final = 5
COMPACTION_SECONDS: Final = 3600.0  # the store keeps the past for at least as long: watches that are cut off resume
_STEP_BYTES: Final = 1 << 20  # of desired tables in a transaction
_LOOK_SECONDS: Final = 0.5  # between two looks at deadlines
_GATHER_SECONDS: Final = 0.02  # statuses that come together are looked at together
_RETRY_SECONDS: Final = 0.5
_REVOKE_SECONDS: Final = 1.0

log = structlog.get_logger()


class _Deposed(Exception):
    """The controller leads no more, or cannot know whether it does."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What of a rollout does not change."""

    plan: Plan
    revision: TableRevision


def _cut(next_step: Step, count: int) -> Step:
    """Return a step that writes to the first of its nodes only. The rest is another step."""
    opened, undone = next_step.opened[:count], next_step.undone[: max(0, count - len(next_step.opened))]
    return next_step._replace(opened=opened, undone=undone, finished=False)


def _give_up(rollout: Rollout, reason: str) -> Step:
    """Return the step of a rollout that cannot go on. A rollback is not halted, as it must not go forward again."""
    phases = {Phase.PROGRESSING: Phase.HALTED, Phase.ROLLING_BACK: Phase.ROLLBACK_FAILED}
    phase = phases.get(rollout.phase, rollout.phase)
    return Step(phase, rollout.wave, reason=reason, finished=phase.finished)


class Controller:
    """A controller. `run` takes part in the election, and drives rollouts while it leads."""

    def __init__(
        self,
        etcd: Etcd,
        signer: Signer,
        name: str,
        *,
        lease_seconds: int = LEASE_SECONDS,
        compaction_seconds: float = COMPACTION_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            etcd: The store. Its user may write everything.
            signer: Signs what nodes are to hold.
            name: For people. A few random letters are added, as no two controllers may have the same name.
            lease_seconds: How long its election lasts after it was last heard of.
            compaction_seconds: How long the past of the store is kept.
            clock: Seconds since 1970.
        """
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.mirror = Mirror(etcd)
        self._etcd = etcd
        self._signer = signer
        self._lease_seconds = lease_seconds
        self._compaction_seconds = compaction_seconds
        self._clock = clock
        self._election = 0  # the revision that elected it; 0: it does not lead
        self._fixed: dict[str, _Fixed] = {}
        self._away: dict[str, tuple[frozenset[str], float]] = {}  # by rollout: nodes that are away, and since when
        self._baking: dict[str, tuple[int, float]] = {}  # by rollout: the wave, and since when all of it is applied

    @property
    def leads(self) -> bool:
        """Whether it is the elected one, as far as it knows."""
        return self._election > 0

    async def run(self) -> None:
        """Take part in the election, and lead whenever elected. Never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mirror.follow())
            while True:
                try:
                    await self._lead_once()
                except (EtcdError, _Deposed) as error:
                    log.warning("the controller does not lead any more", controller=self.name, reason=str(error))
                    await asyncio.sleep(_RETRY_SECONDS)

    # Election

    async def _lead_once(self) -> None:
        """Wait until nobody leads, stand for election, and lead until deposed."""
        while self.mirror.revision == 0 or self.mirror.leader is not None:
            await self._changes(self._lease_seconds)
        lease = await self._etcd.grant(self._lease_seconds)
        try:
            value = Leader(name=self.name, since=self._clock()).to_bytes()
            elected = await self._etcd.commit(
                [is_absent(keys.CONTROLLER)], [put(keys.CONTROLLER, value, lease.id)], witness=keys.CONTROLLER
            )
            if elected is None:
                await self._changes(_LOOK_SECONDS)
                return
            log.info("the controller leads", controller=self.name)
            await self._lead(lease, elected)
        finally:
            self._election = 0
            with contextlib.suppress(EtcdError, TimeoutError):  # the next one need not wait until it ends
                async with asyncio.timeout(_REVOKE_SECONDS):
                    await lease.revoke()

    async def _lead(self, lease: Lease, elected: int) -> None:
        """Drive rollouts for as long as the lease lasts.

        Raises:
            _Deposed: It has ended.
            EtcdError: The store cannot be reached.
        """
        await self.mirror.load()
        self._election = elected
        self._fixed.clear()
        self._away.clear()
        self._baking.clear()
        working = [asyncio.ensure_future(each) for each in (self._renew(lease), self._drive(), self._keep_house())]
        try:
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in working:
                each.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _renew(self, lease: Lease) -> None:
        """Renew the lease until it cannot be, or somebody else leads."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._lease_seconds / 4)
            with contextlib.suppress(EtcdError):  # another member may answer, for as long as the lease lasts
                if not await lease.renew():
                    raise _Deposed("its lease has ended")
                last = time.monotonic()
            if time.monotonic() - last > self._lease_seconds:
                raise _Deposed("it could not renew its lease")

    # Rollouts

    async def _drive(self) -> None:
        """Advance all rollouts whenever something changes.

        Raises:
            _Deposed: Somebody else leads.
            EtcdError: The store cannot be reached.
        """
        while True:
            wait = _LOOK_SECONDS
            for active in list(self.mirror.active.values()):
                while await self._advance(active.value):
                    pass
                wait = min(wait, self._bakes_for(active.value))
            await self._changes(wait)
            await asyncio.sleep(_GATHER_SECONDS)

    async def _advance(self, id_: str) -> bool:
        """Make the next transaction of a rollout, and return whether there may be another one."""
        known = self.mirror.rollouts.get(id_)
        if known is None or known.value.phase in {Phase.PAUSED, Phase.HALTED}:
            self._baking.pop(id_, None)
            self._away.pop(id_, None)
            return False
        try:
            fixed = await self._fixed_of(known.value)
            next_step = step(self._view(known.value, fixed))
            if next_step is None:
                return False
            return await self._commit(known, *await self._values(known, fixed, next_step))
        except (BadDocument, Refused) as error:  # the other rollouts go on
            log.warning("a rollout cannot go on", rollout=id_, reason=str(error))
            return await self._commit(known, _give_up(known.value, str(error)), {})

    def _view(self, rollout: Rollout, fixed: _Fixed) -> RolloutView:
        """Put together what is known of a rollout. Nodes that have left the fleet are left out."""
        plan, now = fixed.plan, self._clock()
        waves = [[node for node in wave if node in self.mirror.nodes] for wave in plan.waves]
        nodes: dict[str, NodeView] = {}
        last = rollout.since
        for node in (node for wave in waves for node in wave):
            desired = self._desired_of(node, rollout)
            if desired is None:
                nodes[node] = NodeView(
                    opened=False, undone=False, answer=None, alive=node in self.mirror.alive, late=False
                )
                continue
            last = max(last, desired.value.at)
            status = self.mirror.statuses.get((node, rollout.table))
            nodes[node] = NodeView(
                opened=not desired.value.undo,
                undone=desired.value.undo,
                answer=None if status is None else answer(desired.version, status.value.seen, status.value.state),
                alive=node in self.mirror.alive,
                late=not desired.value.undo and now - max(desired.value.at, rollout.since) > plan.deadline,
            )
        return RolloutView(
            phase=rollout.phase,
            wave=rollout.wave,
            waves=waves,
            nodes=nodes,
            max_unavailable=plan.max_unavailable,
            rolls_back=plan.on_failure == "rollback",
            baked=self._is_baked(rollout, plan, nodes.values()),
            overdue=now - last > plan.deadline and self._away_for(rollout, nodes) > plan.deadline,
        )

    def _away_for(self, rollout: Rollout, nodes: Mapping[str, NodeView]) -> float:
        """Return for how many seconds the same nodes are away. A new leader begins to count anew.

        Nodes that go away after a wave has baked for long get their time, too.
        """
        away = frozenset(name for name, node in nodes.items() if not node.alive)
        known, since = self._away.get(rollout.id, (None, 0.0))
        if known != away:
            since = time.monotonic()
            self._away[rollout.id] = away, since
        return time.monotonic() - since

    def _desired_of(self, node: str, rollout: Rollout) -> Versioned[Desired] | None:
        """Return what a rollout has given a node; None: nothing."""
        desired = self.mirror.desired.get((node, rollout.table))
        return None if desired is None or desired.value.rollout != rollout.id else desired

    def _is_baked(self, rollout: Rollout, plan: Plan, nodes: Iterable[NodeView]) -> bool:
        """Whether all opened nodes have held the table for long enough. A new leader begins to count anew."""
        if rollout.phase is not Phase.PROGRESSING or any(node.opened and not node.applied for node in nodes):
            self._baking.pop(rollout.id, None)
            return False
        wave, since = self._baking.get(rollout.id, (-1, 0.0))
        if wave != rollout.wave:
            since = time.monotonic()
            self._baking[rollout.id] = rollout.wave, since
        return time.monotonic() - since >= plan.bake_seconds

    def _bakes_for(self, id_: str) -> float:
        """Return in how many seconds a rollout's wave is baked, at most _LOOK_SECONDS."""
        if id_ not in self._baking or id_ not in self._fixed:
            return _LOOK_SECONDS
        left = self._baking[id_][1] + self._fixed[id_].plan.bake_seconds - time.monotonic()
        return left if 0 < left < _LOOK_SECONDS else _LOOK_SECONDS

    async def _fixed_of(self, rollout: Rollout) -> _Fixed:
        """Return what of a rollout does not change, read once.

        Raises:
            BadDocument: It is not there, or garbage.
            EtcdError: It cannot be read.
        """
        if rollout.id not in self._fixed:
            plan = await self._etcd.get(keys.plan(rollout.id))
            if plan is None:
                raise BadDocument("its plan is not in the store")
            revision = await self._revision(rollout.table, rollout.revision)
            self._fixed[rollout.id] = _Fixed(Plan.from_bytes(plan.value), revision)
        return self._fixed[rollout.id]

    async def _revision(self, table: str, number: int) -> TableRevision:
        item = await self._etcd.get(keys.revision(table, number))
        if item is None:
            message = f"revision {number} of {table} is not in the store"
            raise BadDocument(message)
        return TableRevision.from_bytes(item.value)

    async def _values(self, known: Versioned[Rollout], fixed: _Fixed, next_step: Step) -> tuple[Step, dict[str, bytes]]:
        """Return the desired tables that a step writes, signed, by key. A step that is too large is cut off.

        Raises:
            EtcdError: A revision to which nodes go back cannot be read.
        """
        rollout, plan = known.value, fixed.plan
        bases: dict[int | None, bytes | None] = {None: None}  # by revision; without one, there is nothing to go back to
        values: dict[str, bytes] = {}
        size = 0
        for number, node in enumerate((*next_step.opened, *next_step.undone)):
            undo = number >= len(next_step.opened)
            revision = plan.base.get(node) if undo else rollout.revision
            specification: bytes | None = fixed.revision.specification
            if undo:
                if revision is not None and revision not in bases:
                    bases[revision] = await self._base(rollout.table, revision)
                specification = bases[revision]
            table = DesiredTable(
                node=node,
                table=rollout.table,
                rollout=rollout.id,
                revision=None if specification is None else revision,
                specification=specification,
                undo=undo,
                sequence=known.version,
                at=self._clock(),
                by=rollout.by,
                # What is set back counts at once. If it were undone, the node would hold the new table again.
                confirm_within=None if undo else plan.confirm_within,
                checks=() if undo else plan.checks,
            )
            value = self._signer.sign(DESIRED_TABLE, table.to_bytes())
            size += len(value)
            if values and size > _STEP_BYTES:
                return _cut(next_step, number), values
            values[keys.desired_table(node, rollout.table)] = value
        return next_step, values

    async def _base(self, table: str, revision: int) -> bytes | None:
        """Return the specification of an earlier revision; None: it is gone, and nodes take back what was changed."""
        try:
            return (await self._revision(table, revision)).specification
        except BadDocument as error:
            log.warning("a revision to go back to is gone", table=table, revision=revision, error=str(error))
            return None

    async def _commit(self, known: Versioned[Rollout], next_step: Step, desired: Mapping[str, bytes]) -> bool:
        """Make a transaction, and return whether it was made.

        Raises:
            _Deposed: Somebody else leads.
            EtcdError: The store cannot be reached.
        """
        rollout = known.value
        after = msgspec.structs.replace(rollout, steps=rollout.steps + 1, controller=self.name)
        if (next_step.phase, next_step.wave) != (rollout.phase, rollout.wave):
            after = after.moved(
                at=self._clock(),
                by=self.name,
                phase=next_step.phase,
                wave=next_step.wave,
                reason=self._reason(rollout, next_step),
                failures=tuple(self._failure(node, rollout) for node in next_step.failed[:10]),
            )
        key, active = keys.rollout(rollout.id), keys.active(rollout.table)
        versions = {
            each: 0
            if (table := self.mirror.desired.get((keys.node_of(each), rollout.table))) is None
            else table.version
            for each in desired
        }
        compares = [created_in(keys.CONTROLLER, self._election), unchanged(key, known.version)]
        compares += [unchanged(each, version) for each, version in versions.items()]
        values: dict[str, bytes | None] = {key: after.to_bytes(), **desired}
        if next_step.finished and rollout.table in self.mirror.active:
            values[active] = None
        operations = [delete(each) if value is None else put(each, value) for each, value in values.items()]
        try:
            revision = await self._etcd.commit(compares, operations, witness=key)
        except OutcomeUnknown:
            log.warning("the outcome of a step is not known", rollout=rollout.id)
            await self._read_anew()
            return True
        if revision is None:
            log.info("a step came too late", rollout=rollout.id)
            await self._read_anew()
            return True
        self.mirror.note_written(revision, values)
        log.info(
            "step",
            rollout=rollout.id,
            phase=after.phase.value,
            wave=after.wave,
            opened=len(next_step.opened),
            undone=len(next_step.undone),
            reason=after.reason,
        )
        return True

    async def _read_anew(self) -> None:
        """Read everything anew, as something else has happened than what is known.

        Raises:
            _Deposed: Somebody else leads.
        """
        await asyncio.sleep(_GATHER_SECONDS)
        await self.mirror.load()
        if self.mirror.leader != self._election:
            raise _Deposed("another controller leads, or none does")

    def _reason(self, rollout: Rollout, next_step: Step) -> str:
        """Return the reason of a step, with the sentence of the first node that is the reason."""
        if not next_step.failed:
            return next_step.reason
        first = self._failure(next_step.failed[0], rollout)
        sentence = f": {first.node} is {first.state}" + (f", {first.detail}" if first.detail else "")
        return next_step.reason + sentence

    def _failure(self, node: str, rollout: Rollout) -> Failure:
        """Return why a rollout goes no further because of a node."""
        desired, status = self._desired_of(node, rollout), self.mirror.statuses.get((node, rollout.table))
        if desired is not None and status is not None and status.value.seen == desired.version:
            state = cast("FailureState", status.value.state.value)
            if status.value.state.failed:
                return Failure(node=node, state=state, code=status.value.code, detail=status.value.detail)
        away = node not in self.mirror.alive
        return Failure(node=node, state="late", detail="its agent is not connected" if away else "it has not answered")

    # House-keeping

    async def _keep_house(self) -> None:
        """Forget the past of the store from time to time.

        Raises:
            EtcdError: The store cannot be reached.
        """
        while True:
            revision = self.mirror.revision
            await asyncio.sleep(self._compaction_seconds)
            await self._remove_leftovers()
            await self._etcd.compact(revision)
            log.info("the past of the store is forgotten", before_revision=revision)

    async def _remove_leftovers(self) -> None:
        """Remove what was written for nodes while they were leaving the fleet.

        Raises:
            EtcdError: The store cannot be reached.
        """
        left = {node for node, _ in (*self.mirror.desired, *self.mirror.statuses)} - self.mirror.nodes
        for node in left:
            await self._etcd.commit(
                [is_absent(keys.node(node))], [delete_prefix(keys.desired(node)), delete_prefix(keys.status(node))]
            )

    async def _changes(self, seconds: float) -> None:
        """Wait until something changes in the store, or for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 may swallow that its task is cancelled
                await self.mirror.changed.wait()
        self.mirror.changed.clear()
