"""One table of the node: brought to what the fleet desires, and watched from then on.

    dry run → change, to be undone unless confirmed → status `unconfirmed` → checks → confirmed → status `applied`

That the status `unconfirmed` arrives in the store proves that the change has not cut off the node. If it does not, or
the agent dies, the service undoes the change by itself. Whatever the agent finds when it looks again, it finds in the
journal of the service: a change of its own that waits is adopted, and one that was undone is a no.

A no stays a no until something else is desired. Nothing is ever undone because the store is away.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
import structlog

from app.agent import desired as desired_tables
from app.agent.checks import failed_check
from app.agent.desired import Desired, No
from app.agent.local import LocalService, differing, is_transient
from app.agent.state import Known, StateFile
from app.client import JumptableError, Refused
from app.client.answers import Change
from app.fleet_store.documents import MAX_DETAIL_CHARACTERS, TableState, TableStatus
from app.fleet_store.errors import EtcdError
from app.fleet_store.items import Item
from app.fleet_store.signatures import DESIRED_TABLE, Verifier

_MAX_INDEXES: Final = 10  # of entries that have drifted, that are told
_ATTEMPTS: Final = 5  # at a change while others change the table as well
# For how long the service may be unable to work (503) before that counts as a no.
PATIENCE_SECONDS: Final = 30.0
# Between two looks at whether somebody else has changed the table; and between two comparisons with what is desired, as
# names of programs may have got another meaning. Each takes a small share of a processor, however large the table is.
_LOOK_SECONDS: Final = 2.0
_COMPARE_SECONDS: Final = 60.0
_PAUSE_PER_SECOND: Final = 100.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LAST_PAUSE_SECONDS: Final = 5.0

log = structlog.get_logger()


class Teller(Protocol):
    """Tells the fleet how a table is."""

    async def last(self, table: str) -> TableStatus | None:
        """Return what the fleet was told last, by this agent or by one before it. None: nothing.

        Raises:
            EtcdError: It is not known.
        """

    async def tell(self, table: str, status: TableStatus | None) -> None:
        """Write a status into the store, and return when it is there. None: the table is the fleet's no more.

        Raises:
            EtcdError: It may not be there.
        """


class TableWorker:
    """Brings one table to what is desired. Thread rule: one event loop.

    Attributes:
        name: The name of the table.
        trouble: Why it gets no further at present; empty if it does.
    """

    def __init__(
        self, name: str, node: str, service: LocalService, teller: Teller, state: StateFile, verifier: Verifier
    ) -> None:
        """Do nothing yet.

        Args:
            name: The name of the table.
            node: The name of the node.
            service: The node's service.
            teller: Tells the fleet.
            state: What outlives the agent.
            verifier: Knows the fleet's keys.
        """
        self.name, self._node, self._service, self._teller = name, node, service, teller
        self._state, self._verifier = state, verifier
        self._item: Item | None = None
        self._changed = asyncio.Event()
        self._rest = _LOOK_SECONDS
        self._etag = ""  # of the table when it was compared last
        self._compare_at = 0.0  # when it is compared again in any case, on the loop's clock
        self._is_checked = False  # whether a no was held against the journal since the agent runs
        self.trouble = ""

    @property
    def status(self) -> TableStatus | None:
        """What the fleet is told of the table; None: nothing yet."""
        known = self._state.get(self.name)
        return None if known is None else known.status

    def desire(self, item: Item | None) -> None:
        """Take what the store has for the table. None: nothing any more."""
        self._item = item
        self._changed.set()

    async def run(self) -> None:
        """Work until it is cancelled, or until the table is the fleet's no more."""
        pauses, busy_since = _pauses(), 0.0
        await self._changed.wait()  # until it is known what the store has
        while True:
            await happens(self._changed, self._rest)
            self._changed.clear()
            self._rest = _LOOK_SECONDS
            item = self._item
            try:
                if item is None:
                    await self._forget()
                    if self._item is None:
                        return
                    continue
                await self._bring(item, is_late=bool(busy_since) and time.monotonic() - busy_since > PATIENCE_SECONDS)
            except (JumptableError, EtcdError, OSError) as error:
                if self.trouble != str(error):
                    log.warning("the table gets no further", table=self.name, reason=str(error))
                self.trouble = str(error)
                busy_since = (busy_since or time.monotonic()) if isinstance(error, Refused) else 0.0
                await happens(self._changed, next(pauses))
                self._changed.set()
            else:
                pauses, busy_since, self.trouble = _pauses(), 0.0, ""

    async def _forget(self) -> None:
        """Leave the table as it is, and tell nothing of it any more. What was seen stays known, against old ones."""
        await self._teller.tell(self.name, None)
        known = self._state.get(self.name)
        if known is not None:
            self._state.set(self.name, Known(digest="", sequence=known.sequence, holds=known.holds))
        log.info("the table is no longer the fleet's; it stays as it is", table=self.name)

    # From what is desired to what is told

    async def _bring(self, item: Item, *, is_late: bool) -> None:
        """Bring the table to what is desired, or find out that it is, and tell it.

        Args:
            item: What the store has.
            is_late: The service could not work for long: that is a no now.
        """
        known = self._state.get(self.name)
        said = None if known is None or known.digest != desired_tables.digest(item) else known.status
        if said is None:
            # A node that was restored from an image has told the fleet more than it remembers. A no stays a no.
            told = await self._teller.last(self.name)
            said = told if told is not None and told.state.failed else None
        if said is not None and said.seen == item.mod_revision and said.state is not TableState.UNCONFIRMED:
            await self._stand(item, said)
            return
        wanted: Desired | None = None
        try:
            wanted = self._read(item)
            await self._reach(wanted, item)
        except No as no:
            await self._refuse(item, no.code, str(no))
        except Refused as error:
            if is_transient(error) and not is_late:
                raise
            await self._refuse(item, error.code, error.detail)

    def _read(self, item: Item) -> Desired:
        wanted = desired_tables.read(item, DESIRED_TABLE, self._verifier, self._node)
        known = self._state.get(self.name)
        if known is not None and wanted.sequence < known.sequence:
            raise No(
                "older-than-seen",
                f"its sequence is {wanted.sequence}, and the node has seen {known.sequence}: somebody plays an old one "
                "again, or the fleet's store was restored from a backup",
            )
        return wanted

    async def _stand(self, item: Item, said: TableStatus) -> None:
        """Stay at what was said. Only whether the table has drifted is looked at again."""
        if said.state.failed and said.state is not TableState.DRIFTED:
            if not self._is_checked:  # the agent was killed between a no and the undo that belongs to it
                with contextlib.suppress(Refused, No):
                    await self._take_back_waiting(self._read(item))
            self._is_checked = True
            await self._say(item, said)
            return
        clock = asyncio.get_running_loop().time
        began = clock()
        is_same = began < self._compare_at and await self._service.etag(self.name) == self._etag
        self._rest = max(_LOOK_SECONDS, _PAUSE_PER_SECOND * (clock() - began))
        if is_same:
            await self._say(item, said)
            return
        try:
            await self._compare(self._read(item), item, said.change)
        except No as no:  # the program of that name is another one by now
            await self._say(item, self._status(item, TableState.DRIFTED, no.code, str(no), said.change))

    async def _reach(self, wanted: Desired, item: Item) -> None:
        """Bring the table to what is desired, from wherever it is."""
        opened = await self._service.opened()
        closed = opened.closed(wanted)
        if closed is not None:
            raise No("not-open", closed)
        self._begin(wanted, item)
        mine = await self._service.find_change(wanted)
        await self._take_back_waiting(wanted, but=mine)
        if wanted.specification is None:
            await self._take_back(wanted)
            await self._compare(wanted, item, None)
            return
        if mine is None:
            change = await self._change(wanted)
        elif mine["state"] in {"expired", "reverted"}:
            await self._say_undone(wanted, item, mine["id"])
            return
        else:
            change = mine["id"]
        is_waiting = mine["state"] == "unconfirmed" if mine is not None else wanted.confirm_within is not None
        if change is not None and is_waiting and not await self._confirm(wanted, item, change):
            return
        await self._compare(wanted, item, change)

    def _begin(self, wanted: Desired, item: Item) -> None:
        """Remember that this is the newest that was desired, before anything is done for it."""
        known = self._state.get(self.name)
        digest = desired_tables.digest(item)
        if known is None or known.digest != digest:
            holds = None if known is None else known.holds
            self._state.set(self.name, Known(digest=digest, sequence=wanted.sequence, holds=holds))

    # Steps

    async def _change(self, wanted: Desired) -> int | None:
        """Change the table, and return the id of the change. None: it is as it should be already."""
        for attempt in range(1, _ATTEMPTS + 1):
            programs, table = await self._service.programs(), await self._service.table(wanted.table)
            entries = {
                index: None if program is None else program.name
                for index, program in differing(table, wanted, programs).items()
            }
            if not entries:
                return None
            try:
                await self._service.try_update(wanted, entries, table.etag)
                change = await self._service.update(wanted, entries, table.etag)
            except Refused as error:
                if error.code != "precondition-failed" or attempt == _ATTEMPTS:
                    raise
            else:
                return change
        raise AssertionError("the last attempt returns or raises")

    async def _confirm(self, wanted: Desired, item: Item, change: int) -> bool:
        """Tell that the change is made, check it, and confirm it. Returns False if it does not stand in the end."""
        await self._say(item, self._status(item, TableState.UNCONFIRMED, change=change))
        failure = await failed_check(self._service, wanted.checks)
        if failure is not None:
            # The no comes first: an agent that is killed now must not find the change undone, and not know why.
            unhealthy = self._keep(item, self._status(item, TableState.UNHEALTHY, "check-failed", failure, change))
            self._is_checked = False
            with contextlib.suppress(Refused):  # then the service undoes it when its time is over
                await self._service.revert(wanted, change)
            await self._say(item, unhealthy)
            return False
        if self._item is not item:  # something else is desired by now
            return False
        try:
            await self._service.confirm(wanted, change)
        except Refused:
            now = await self._service.get_change(change)
            if now["state"] not in {"expired", "reverted"}:
                raise
            await self._say_undone(wanted, item, change)
            return False
        return True

    async def _compare(self, wanted: Desired, item: Item, change: int | None) -> None:
        """Tell whether the table is as it should be."""
        clock, indexes = asyncio.get_running_loop().time, tuple[int, ...]()
        began = clock()
        if wanted.specification is not None:
            programs, table = await self._service.programs(), await self._service.table(wanted.table)
            indexes = tuple(sorted(differing(table, wanted, programs)))
            self._etag = table.etag
        self._compare_at = clock() + max(_COMPARE_SECONDS, _PAUSE_PER_SECOND * (clock() - began))
        if not indexes:
            await self._say(item, self._status(item, TableState.APPLIED, change=change, revision=wanted.revision))
            return
        count = f"{len(indexes)} entries are" if len(indexes) > 1 else "1 entry is"
        detail = f"{count} not what the fleet has applied: somebody else has changed the table"
        status = self._status(item, TableState.DRIFTED, "drifted", detail, change, indexes=indexes[:_MAX_INDEXES])
        await self._say(item, status)

    async def _say_undone(self, wanted: Desired, item: Item, change: int) -> None:
        within = f" within {wanted.confirm_within} s" if wanted.confirm_within else ""
        detail = f"change {change} was undone, as it was not confirmed{within}"
        await self._say(item, self._status(item, TableState.REVERTED, "not-confirmed", detail, change))

    async def _take_back(self, wanted: Desired) -> None:
        """Undo the changes that the rollout has made here."""
        for change in await self._service.changes_of_rollout(wanted):
            if change["state"] not in {"expired", "reverted"}:
                await self._service.revert(wanted, change["id"])

    async def _take_back_waiting(self, wanted: Desired, but: Change | None = None) -> None:
        """Undo changes that were made for something that is no longer desired, and wait for their confirmation."""
        for change in await self._service.waiting_changes(wanted.table):
            if but is None or change["id"] != but["id"]:
                await self._service.revert(wanted, change["id"])

    # What is told

    async def _refuse(self, item: Item, code: str, detail: str) -> None:
        log.warning("the table is refused", table=self.name, code=code, reason=detail)
        await self._say(item, self._status(item, TableState.REFUSED, code, detail))

    async def _say(self, item: Item, status: TableStatus) -> None:
        """Remember how the table is, and tell it."""
        await self._teller.tell(self.name, self._keep(item, status))

    def _status(
        self,
        item: Item,
        state: TableState,
        code: str | None = None,
        detail: str = "",
        change: int | None = None,
        *,
        revision: int | None = None,
        indexes: tuple[int, ...] = (),
    ) -> TableStatus:
        known = self._state.get(self.name)
        holds = revision if state is TableState.APPLIED else None if known is None else known.holds
        return TableStatus(
            seen=item.mod_revision,
            state=state,
            at=max(time.time(), 0.0),
            revision=holds,
            code=code,
            detail=detail[:MAX_DETAIL_CHARACTERS],
            change=change,
            indexes=indexes,
        )

    def _keep(self, item: Item, status: TableStatus) -> TableStatus:
        """Remember a status across a restart of the agent. Returns it, with its time of before if it is no new one."""
        known = self._state.get(self.name)
        sequence, holds = (0, None) if known is None else (known.sequence, known.holds)
        if status.state is TableState.APPLIED:
            holds = status.revision
        before = None if known is None else known.status
        if before is not None and _without_time(before) == _without_time(status):
            status = before  # nothing new, so that the file is not written for each look
        digest = desired_tables.digest(item)
        self._state.set(self.name, Known(digest=digest, sequence=sequence, holds=holds, status=status))
        if before is None or before.state is not status.state:
            log.info(
                "the table is", table=self.name, state=status.state, revision=status.revision, change=status.change
            )
        return status


def _without_time(status: TableStatus) -> TableStatus:
    return msgspec.structs.replace(status, at=0.0)


async def happens(what: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most for some seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 may swallow that its task is cancelled
            await what.wait()


def _pauses() -> Iterator[float]:
    """Yield how many seconds to wait before each further attempt."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LAST_PAUSE_SECONDS)
