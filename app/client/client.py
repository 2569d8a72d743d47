"""The client, which has a method for each operation of the service."""

import copy
import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, Unpack, cast

import httpx

from app.client.answers import (
    Applied,
    Change,
    Changes,
    Entries,
    Entry,
    EntryProgram,
    Event,
    Graph,
    HeldMap,
    Kind,
    LoadedObjectFile,
    Program,
    ProgramReference,
    Readiness,
    Run,
    ServiceIndex,
    State,
    Version,
    Written,
)
from app.client.errors import Refused
from app.client.http_client import HttpClient, path_of, url_of

SOCKET: Final = Path("/run/jumptable/api.sock")
LOOPBACK: Final = "http://127.0.0.1:8080"
_CONNECT_SECONDS: Final = 5.0
_OBJECT_SECONDS: Final = 60.0  # the service gives its loader 30

# A held name, or the program as an answer shows it, or one by name, id or pin.
Ref = str | EntryProgram | ProgramReference


class DryRun(TypedDict, total=False):
    """What everything that changes something takes. `dry_run`: check it, and change nothing."""

    dry_run: bool


class Options(DryRun, total=False):
    """What every change of entries takes.

    Attributes:
        note: Why it is made; kept with the change. At most 1,000 characters.
        confirm_within: Seconds, 1 to 86400: it is undone then, unless it is confirmed before.
        force: Also if the pin of the map or of a program leads to another object by now.
    """

    note: str | None
    confirm_within: int | None
    force: bool


class ConditionalOptions(Options, total=False):
    """What changes of named entries take: `if_match`, the etag that the entry or the table still has to have."""

    if_match: str | None


class SettingOptions(ConditionalOptions, total=False):
    """What setting entries takes: `warnings`: tell what that makes worse for the jumps, as a dry run always does."""

    warnings: bool


class TableOptions(SettingOptions, total=False):
    """What changes of tables take.

    Attributes:
        minimal: The change in the answer comes without its `entries`.
        request_id: The id of the request: the change has it, and the log. 1 to 128 of A-Z a-z 0-9 . _ : -
    """

    minimal: bool
    request_id: str


class LoadOptions(DryRun, total=False):
    """What loading an object file takes: the same, but not `force`; `if_match` is the etag of the object file.

    Attributes:
        options: How an ELF that is sent is to be loaded: what its JSON would say beside `file`.
    """

    note: str | None
    confirm_within: int | None
    if_match: str | None
    options: Mapping[str, Any] | None


class ChangeFilter(TypedDict, total=False):
    """Which changes are wanted. What is left out, or None, does not matter.

    Attributes:
        map: Of this map.
        index: Those that wrote this entry.
        actor: By this actor.
        kind: Of this kind.
        state: In this state.
        request_id: Of this request.
        since: Made at this time or later, in RFC 3339.
        until: Made before this time.
        after: With a larger id.
        before: With a smaller id.
    """

    map: str | None
    index: int | None
    actor: str | None
    kind: Kind | None
    state: State | None
    request_id: str | None
    since: str | None
    until: str | None
    after: int | None
    before: int | None


def default_url() -> str:
    """Return where the service is unless something else is said: its unix socket if there is one, else loopback."""
    return url_of(SOCKET, LOOPBACK)


class Client(HttpClient):
    """Talks to one service, over connections that are kept open. It may be used by several threads.

    Every method raises `Refused` where the service refuses, and `Unreachable` where it cannot be reached.

    Args:
        url: `unix:///run/jumptable/api.sock`, `http://…` or `https://…`; by default what `default_url()` says.
        token: The bearer token, if one is needed.
        timeout: How long to wait for an answer, in seconds.
        transport: Another transport of httpx, for tests.

    Raises:
        ValueError: The URL is of no such form.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url or default_url(), token, timeout, transport)

    def on_behalf_of(self, actor: str) -> "Client":
        """Return a client that names who asks, over the same connections.

        The service lets only the agent of a fleet do so: a peer with `on_behalf = true`.

        Args:
            actor: 1 to 128 printable ASCII characters.
        """
        client = copy.copy(self)
        client._actor = {"Jumptable-Actor": actor}
        return client

    # The service

    def get_index(self) -> ServiceIndex:
        """Say who asks, and what the caller may do."""
        return cast("ServiceIndex", self._get("/"))

    def get_readiness(self) -> Readiness:
        """Say whether everything that is held could be opened, and whether the journal can be written."""
        try:
            self._get("/readyz")
        except Refused as error:
            if error.status != 503:
                raise
            return Readiness(ready=False, reasons=error.problem.get("reasons") or [error.detail])
        return Readiness(ready=True, reasons=[])

    def get_version(self) -> Version:
        """Return what is running."""
        return cast("Version", self._get("/version"))

    def get_metrics(self) -> str:
        """Return the metrics, in the text format of Prometheus."""
        return self._send("GET", "/metrics").text

    # Maps and entries

    def list_maps(self) -> list[HeldMap]:
        """Return all held maps."""
        return cast("list[HeldMap]", self._get("/maps")["maps"])

    def get_map(self, name: str) -> HeldMap:
        """Return a held map."""
        return cast("HeldMap", self._get(path_of("maps", name)))

    def hold_map(
        self,
        name: str,
        *,
        pinned: str | None = None,
        id: int | None = None,  # noqa: A002
        create: int | None = None,
        force: bool = False,
        **options: Unpack[DryRun],
    ) -> HeldMap:
        """Hold a map, or open it again.

        Args:
            name: The name to hold it under.
            pinned: Where it is pinned.
            id: Or the kernel's id of it.
            create: How many entries it gets if the pin does not exist: it is made then.
            force: Also if the array that was held so far may be emptied for good.
            **options: See `DryRun`.
        """
        body = _source(pinned, id) | ({} if create is None else {"create": {"max_entries": create}})
        return cast("HeldMap", self._change("PUT", path_of("maps", name), {**options, "force": force}, body).json())

    def release_map(self, name: str, *, force: bool = False, **options: Unpack[DryRun]) -> None:
        """Release a map. `force`: also if that may empty the array for good."""
        self._change("DELETE", path_of("maps", name), {**options, "force": force})

    def list_entries(self, map: str, *, start: int | None = None, limit: int | None = None) -> Entries:  # noqa: A002
        """Return the entries that point to a program: all of them, unless `limit` is given.

        Args:
            map: The name of the map.
            start: The first index.
            limit: The most entries. `next` of the answer is the `start` of the rest.
        """
        return cast("Entries", self._get(path_of("maps", map, "entries"), {"start": start, "limit": limit}))

    def get_entry(self, map: str, index: int, *, warnings: bool = False) -> Entry:  # noqa: A002
        """Return an entry. `warnings`: also what it makes worse for the jumps by not being empty.

        Raises:
            Refused: entry-empty: it points to no program.
        """
        return cast("Entry", self._get(path_of("maps", map, "entries", index), {"warnings": warnings}))

    def set_entry(self, map: str, index: int, program: Ref, **options: Unpack[SettingOptions]) -> Written:  # noqa: A002
        """Point an entry to a program. If it does already, nothing is written."""
        answer = self._change("PUT", path_of("maps", map, "entries", index), dict(options), {"program": program})
        return Written(_change_id(answer), cast("Entry", answer.json()))

    def clear_entry(
        self, map: str, index: int, *, allow_missing: bool = False, **options: Unpack[ConditionalOptions]  # noqa: A002
    ) -> Written:  # fmt: skip
        """Clear an entry. `allow_missing`: it may be empty already."""
        query = {**options, "allow_missing": allow_missing}
        return Written(_change_id(self._change("DELETE", path_of("maps", map, "entries", index), query)), None)

    def replace_entries(
        self, map: str, entries: Mapping[int, Ref | None], **options: Unpack[TableOptions]  # noqa: A002
    ) -> Applied:  # fmt: skip
        """Replace a whole table: entries that are not listed are cleared. All of it is done, or nothing.

        Args:
            map: The name of the map.
            entries: The programs by index, in the order in which they are written.
            **options: See `TableOptions`.
        """
        return self._change_entries("PUT", map, entries, dict(options))

    def update_entries(
        self, map: str, entries: Mapping[int, Ref | None], **options: Unpack[TableOptions]  # noqa: A002
    ) -> Applied:  # fmt: skip
        """Change several entries, as `replace_entries` does, and leave the others. None clears an entry."""
        return self._change_entries("PATCH", map, entries, dict(options))

    def reconcile_map(self, name: str, to: Literal["journal", "kernel"], **options: Unpack[Options]) -> Applied:
        """End the drift of a map: put back what is journalled, or accept what the kernel holds."""
        answer = self._change("POST", path_of("maps", name, "reconcile"), dict(options), {"to": to})
        return cast("Applied", answer.json())

    # Programs

    def list_programs(self, *, uses: int | None = None) -> list[Program]:
        """Return all held programs. `uses`: the most entries in `used_by` of each. None: all."""
        return cast("list[Program]", self._get("/programs", {"uses": uses})["programs"])

    def get_program(self, name: str, *, uses: int | None = None) -> Program:
        """Return a held program. `uses`: the most entries in `used_by`. None: all."""
        return cast("Program", self._get(path_of("programs", name), {"uses": uses}))

    def hold_program(
        self, name: str, *, pinned: str | None = None, id: int | None = None, **options: Unpack[DryRun]  # noqa: A002
    ) -> Program:  # fmt: skip
        """Hold a program, or open it again, from its pin or by its id."""
        answer = self._change("PUT", path_of("programs", name), dict(options), _source(pinned, id))
        return cast("Program", answer.json())

    def release_program(self, name: str, **options: Unpack[DryRun]) -> None:
        """Release a program. Entries that point to it keep it."""
        self._change("DELETE", path_of("programs", name), dict(options))

    def run_program(self, name: str, packet: bytes, *, repeat: int = 1) -> Run:
        """Run a program on a packet, with its side effects on maps (BPF_PROG_TEST_RUN).

        Args:
            name: The name of the program.
            packet: 14 bytes or more.
            repeat: How often, at most 1,000,000.
        """
        body = {"packet": packet.hex(), "repeat": repeat}
        return cast("Run", self._send("POST", path_of("programs", name, "run"), body=body).json())

    # Object files, and who jumps where

    def list_objects(self) -> list[dict[str, Any]]:
        """Return the object files that are loaded."""
        return cast("list[dict[str, Any]]", self._get("/objects")["objects"])

    def get_object(self, name: str) -> dict[str, Any]:
        """Return an object file that is loaded."""
        return cast("dict[str, Any]", self._get(path_of("objects", name)))

    def load_object(
        self, name: str, content: bytes | Mapping[str, Any], **options: Unpack[LoadOptions]
    ) -> LoadedObjectFile:
        """Load an object file, or a new version of it.

        Args:
            name: The name of the object. Its programs are held as `NAME.program`, its arrays as `NAME.map`.
            content: The ELF itself, or an object of JSON that names a file of the service and how to load it.
            **options: See `LoadOptions`.

        Raises:
            Refused: object-refused: the verifier refuses a program. `problem` has what it says, and about which line.
        """
        how = options.get("options")
        query = {**options, "options": None if how is None else json.dumps(how)}
        answer = self._change("PUT", path_of("objects", name), query, content, timeout=_OBJECT_SECONDS)
        return cast("LoadedObjectFile", answer.json())

    def unload_object(self, name: str, **options: Unpack[DryRun]) -> None:
        """Let go of an object file, and of its programs and arrays."""
        self._change("DELETE", path_of("objects", name), dict(options))

    def get_graph(self, *, map: str | None = None, program: str | None = None) -> Graph:  # noqa: A002
        """Return which programs jump where, as far as the caller may see it.

        Args:
            map: Only what is connected with this map.
            program: Only what is connected with this program.
        """
        return cast("Graph", self._get("/graph", {"map": map, "program": program}))

    def draw_graph(
        self, format: Literal["dot", "mermaid"], *, map: str | None = None, program: str | None = None  # noqa: A002
    ) -> str:  # fmt: skip
        """Return the same as text for Graphviz or Mermaid."""
        return self._send("GET", "/graph", {"map": map, "program": program, "format": format}).text

    # Changes and events

    def list_changes(
        self,
        *,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 100,
        entries: int | None = None,
        **wanted: Unpack[ChangeFilter],
    ) -> Changes:
        """Return a page of the journal.

        Args:
            order: By rising or falling id.
            limit: The most changes, 1 to 1,000.
            entries: The most entries of each change, 0 to 1,000: the first ones, or with `index` those from that on.
                None: all.
            **wanted: See `ChangeFilter`.
        """
        query = {**wanted, "order": order, "limit": limit, "entries": entries}
        return cast("Changes", self._get("/changes", query))

    def get_change(self, id: int) -> Change:  # noqa: A002
        """Return a change."""
        return cast("Change", self._get(path_of("changes", id)))

    def confirm_change(self, id: int) -> Change:  # noqa: A002
        """Let a change stand that was made with `confirm_within`."""
        return cast("Change", self._send("POST", path_of("changes", id, "confirm")).json())

    def revert_change(self, id: int, **options: Unpack[Options]) -> Applied:  # noqa: A002
        """Undo a change, if its entries still hold what it put there. `force`: also if later changes wrote them."""
        return cast("Applied", self._change("POST", path_of("changes", id, "revert"), dict(options)).json())

    def watch_events(
        self, *, map: str | None = None, after: int | None = None, on_open: Callable[[int], None] | None = None  # noqa: A002
    ) -> Generator[Event]:  # fmt: skip
        """Yield what happens, as it happens, until the service ends the stream.

        Args:
            map: Only events of this map.
            after: Go on after the event with this id, without a gap; 0: from the very first. None: what is next.
            on_open: Called when the stream has begun, with the id of the event after which it goes on.

        Raises:
            Unreachable: The connection ended. Call it again with the id of the last event.
        """
        yield from self._watch("/events", {"map": map}, after, on_open)

    # Requests

    def _change_entries(
        self, method: str, name: str, entries: Mapping[int, Ref | None], options: dict[str, Any]
    ) -> Applied:
        body = {"entries": [{"index": index, "program": program} for index, program in entries.items()]}
        return cast("Applied", self._change(method, path_of("maps", name, "entries"), options, body).json())

    def _change(
        self, method: str, path: str, options: dict[str, Any], body: object = None, timeout: float | None = None
    ) -> httpx.Response:
        etag = options.pop("if_match", None)
        headers = {} if etag is None else {"If-Match": etag}
        if options.pop("minimal", False):
            headers["Prefer"] = "return=minimal"
        if "request_id" in options:
            headers["X-Request-ID"] = options.pop("request_id")
        return self._send(method, path, options, body, headers, timeout)


def _source(pinned: str | None, id_: int | None) -> dict[str, Any]:
    return {name: value for name, value in (("pinned", pinned), ("id", id_)) if value is not None}


def _change_id(answer: httpx.Response) -> int | None:
    text = answer.headers.get("change-id")
    return None if text is None else int(text)
