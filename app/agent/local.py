"""The node's own service, as the agent asks it.

The client of the service waits for its answers, so each request is made by a thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, ParamSpec, TypeVar

from app.agent.desired import Desired, No
from app.client import Client, Refused
from app.client.answers import Change, Program
from app.fleet_store.documents import OpenMap
from app.fleet_store.specification import ProgramName

_PAGE_ENTRIES: Final = 4096  # a whole table of 65,536 entries in one answer would take 60 MB here
_PAGE_CHANGES: Final = 10  # each has all of its entries
_MAX_PAGES: Final = 50  # of the journal, that are searched
_THREADS: Final = 2  # what a large answer leaves behind, each thread keeps
_TRANSIENT: Final = {408, 429, 503}  # statuses of problems that may be over a little later

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """What a map holds.

    Attributes:
        etag: The entity tag of all of it.
        programs: The id of the program, by index. Entries beyond the bounds of the agent are not there.
        names: The name of each program, by id; None: the service does not hold it.
    """

    etag: str
    programs: dict[int, int]
    names: dict[int, str | None]


@dataclass(frozen=True, slots=True)
class Opened:
    """What the node's configuration opens to the fleet.

    Attributes:
        actor: How the service names the agent itself.
        writes: Whether the agent may change anything.
        maps: The names of the maps; None: all.
        ranges: The first and the last index of each range; None: all.
        programs: The names of the programs; None: all.
        version: The version of the service.
    """

    actor: str
    writes: bool
    maps: frozenset[str] | None
    ranges: tuple[tuple[int, int], ...] | None
    programs: frozenset[str] | None
    version: str

    def closed(self, desired: Desired) -> str | None:
        """Return what of a desired table is not open to the fleet, as a sentence; None: all of it is open."""
        if not self.writes or (self.maps is not None and desired.table not in self.maps):
            return f"the node does not open {desired.table} to the fleet"
        specification = desired.specification
        if specification is None:
            return None
        if self.ranges is not None and not _covered(specification.first, specification.last, self.ranges):
            opened = ", ".join(f"{first}-{last}" for first, last in self.ranges) or "none"
            wanted = f"{specification.first}-{specification.last}"
            return f"the node opens the entries {opened} of {desired.table} to the fleet, and not all of {wanted}"
        if self.programs is not None:
            beyond = [each.name for each in specification.programs() if each.name not in self.programs]
            if beyond:
                return f"the node does not open the program {beyond[0]} to the fleet"
        return None


def _covered(first: int, last: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    for start, end in sorted(ranges):
        if start > first:
            return False
        first = max(first, end + 1)
        if first > last:
            return True
    return False


class LocalService:
    """Asks the node's service. Thread rule: one event loop.

    Its methods raise the errors of `app.client`.
    """

    def __init__(self, client: Client) -> None:
        """Take the client of the service, which it closes at the end."""
        self._client = client
        self._threads = ThreadPoolExecutor(_THREADS, "service")

    def close(self) -> None:
        """Close the connections. Requests that are under way are waited for."""
        self._threads.shutdown()
        self._client.close()

    async def call(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Return what a function returns, which is called by a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **named))

    # What there is

    async def opened(self) -> Opened:
        """Return what is open to the fleet."""
        index = await self.call(self._client.get_index)
        caller = index["caller"]
        if caller is None:
            return Opened("", writes=False, maps=None, ranges=None, programs=None, version=index["version"])
        entries = caller["entries"]
        return Opened(
            actor=caller["actor"],
            writes=caller["role"] in {"writer", "admin"} and not index["read_only"],
            maps=None if caller["maps"] is None else frozenset(caller["maps"]),
            ranges=None if entries is None else tuple(map(_range, entries)),
            programs=None if caller["programs"] is None else frozenset(caller["programs"]),
            version=index["version"],
        )

    async def open_maps(self, opened: Opened) -> tuple[OpenMap, ...]:
        """Return the held maps that are open to the fleet."""
        if not opened.writes:
            return ()
        return tuple(
            OpenMap(name=each["name"], max_entries=each["max_entries"], ranges=opened.ranges)
            for each in await self.call(self._client.list_maps)
            if each["max_entries"] is not None
        )

    async def readiness(self) -> tuple[bool, str, str]:
        """Return whether the service is ready, why it is not, and the kernel's release."""
        ready = await self.call(self._client.get_readiness)
        version = await self.call(self._client.get_version)
        return ready.ready, "; ".join(ready.reasons), f"{version['kernel']} {version['kernel_release']}"

    async def metrics(self) -> str:
        """Return the metrics of the service, as text."""
        return await self.call(self._client.get_metrics)

    async def programs(self) -> dict[str, Program]:
        """Return the held programs by name, as far as they are open to the fleet."""
        return {each["name"]: each for each in await self.call(self._client.list_programs, uses=0)}

    async def table(self, name: str) -> Table:
        """Return what a map holds. It is read in pages, which are all of one state of the map."""
        while True:
            programs: dict[int, int] = {}
            names: dict[int, str | None] = {}
            etags: set[str] = set()
            start: int | None = 0
            while start is not None:
                page = await self.call(self._client.list_entries, name, start=start, limit=_PAGE_ENTRIES)
                etags.add(page["etag"])
                for entry in page["entries"]:
                    program = entry["program"]
                    programs[entry["index"]] = program["id"]
                    names[program["id"]] = program["name"]
                start = page["next"]
            if len(etags) == 1:
                return Table(etags.pop(), programs, names)

    async def etag(self, name: str) -> str:
        """Return the tag of all that a map holds."""
        return (await self.call(self._client.list_entries, name, start=0, limit=1))["etag"]

    # Changes

    async def find_change(self, desired: Desired) -> Change | None:
        """Return the change that was made for a desired table; None: there is none."""
        page = await self.call(self._client.list_changes, map=desired.table, request_id=desired.request_id)
        return next((change for change in page["changes"] if change["kind"] == "update"), None)

    async def changes_of_rollout(self, desired: Desired) -> list[Change]:
        """Return the changes of a map that were made for a rollout, the newest first. They are not far apart."""
        found: list[Change] = []
        before: int | None = None
        for _ in range(_MAX_PAGES):
            page = await self.call(
                self._client.list_changes, map=desired.table, order="desc", before=before, limit=_PAGE_CHANGES
            )
            here = [change for change in page["changes"] if _is_of(desired.rollout, change)]
            found += here
            before = page["next"]
            if before is None or (found and not here):
                break
        return found

    async def waiting_changes(self, table: str) -> list[Change]:
        """Return the changes of a map that were made for the fleet and wait for a confirmation."""
        page = await self.call(self._client.list_changes, map=table, state="unconfirmed")
        return [change for change in page["changes"] if (change["note"] or "").startswith("fleet ")]

    async def get_change(self, id_: int) -> Change:
        """Return a change as it is now."""
        return await self.call(self._client.get_change, id_)

    async def try_update(self, desired: Desired, entries: dict[int, str | None], etag: str) -> None:
        """Try to change entries of a map, and change nothing.

        The service answers with all entries that it would change, so they are tried in pieces.

        Args:
            desired: What they are to be changed for.
            entries: The program of each index; None: it is cleared.
            etag: The tag of the map when it was read.
        """
        client, pieces = self._for(desired), iter(entries.items())
        while piece := dict(islice(pieces, _PAGE_ENTRIES)):
            await self.call(client.update_entries, desired.table, piece, if_match=etag, dry_run=True)

    async def update(self, desired: Desired, entries: dict[int, str | None], etag: str) -> int | None:
        """Change entries of a map, if it is still as it was read.

        Returns:
            The id of the change. None: nothing was changed.
        """
        applied = await self.call(
            self._for(desired).update_entries,
            desired.table,
            entries,
            if_match=etag,
            note=desired.note,
            confirm_within=desired.confirm_within,
            request_id=desired.request_id,
            minimal=True,
        )
        return None if applied["change"] is None else applied["change"]["id"]

    async def confirm(self, desired: Desired, change: int) -> None:
        """Let a change stand. One that stands already is none the worse."""
        try:
            await self.call(self._for(desired).confirm_change, change)
        except Refused as error:
            if error.code != "already-confirmed":
                raise

    async def revert(self, desired: Desired, change: int) -> None:
        """Undo a change."""
        await self.call(self._for(desired).revert_change, change)

    async def run(self, program: str, packet: bytes) -> int:
        """Return what a program returns for a packet."""
        return (await self.call(self._client.run_program, program, packet))["returned"]

    def _for(self, desired: Desired) -> Client:
        return self._client if desired.actor is None else self._client.on_behalf_of(desired.actor)


def _is_of(rollout: str, change: Change) -> bool:
    """Whether a change was made for a rollout. Undos have the note of what they undo."""
    return change["kind"] == "update" and (change["note"] or "").startswith(f"fleet {rollout} ")


def is_transient(error: Refused) -> bool:
    """Whether the service may answer otherwise a little later."""
    return error.status in _TRANSIENT


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def differing(table: Table, desired: Desired, programs: dict[str, Program]) -> dict[int, ProgramName | None]:
    """Return the entries that do not hold what they are to hold, with what that is.

    Programs are compared by id, as one can be held under several names.

    Raises:
        No: A program that the node holds is not the one that the fleet means.
    """
    assert desired.specification is not None
    ids: dict[ProgramName | None, int | None] = {None: None}
    for wanted in desired.specification.programs():
        held = programs.get(wanted.name)
        if held is not None and wanted.tags and held["tag"] not in wanted.tags:
            allowed = ", ".join(wanted.tags)
            detail = f"the program {wanted.name} has the tag {held['tag']} here, and the fleet allows {allowed}"
            raise No("program-tag-mismatch", detail)
        ids[wanted] = -1 if held is None or held["id"] is None else held["id"]  # -1 is in no entry
    return {
        index: wanted for index, wanted in desired.specification.entries() if table.programs.get(index) != ids[wanted]
    }
