"""The client, which has a method for each operation of the service."""

import copy
import ssl
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, TypedDict, Unpack, cast
from urllib.parse import quote

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
from app.client.errors import Refused, Unexpected, Unreachable
from app.client.events import events_of

SOCKET: Final = Path("/run/jumptable/api.sock")
LOOPBACK: Final = "http://127.0.0.1:8080"
_UNIX: Final = "unix://"
_CONNECT_SECONDS: Final = 5.0
_OBJECT_SECONDS: Final = 60.0  # the service gives its loader 30
_EVENTS_SECONDS: Final = 40.0  # without events there is a comment every 15 s
_PROBLEM: Final = "application/problem+json"

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


class TableOptions(ConditionalOptions, total=False):
    """What changes of tables take.

    Attributes:
        minimal: The change in the answer comes without its `entries`.
        request_id: The id of the request: the change has it, and the log. 1 to 128 of A-Z a-z 0-9 . _ : -
    """

    minimal: bool
    request_id: str


class LoadOptions(DryRun, total=False):
    """What loading an object file takes: the same, but not `force`; `if_match` is the etag of the object file."""

    note: str | None
    confirm_within: int | None
    if_match: str | None


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
    try:
        SOCKET.stat()
    except PermissionError:
        pass  # it may be there, and to connect says what is missing
    except OSError:
        return LOOPBACK
    return f"{_UNIX}{SOCKET}"


class Client:
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
        self.url = url or default_url()
        self._http = httpx.Client(
            transport=transport or _transport(self.url),
            base_url="http://localhost" if self.url.startswith(_UNIX) else self.url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=False,  # neither a proxy nor .netrc belongs between an operator and the node
        )

        self._actor: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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
        return cast("HeldMap", self._get(_path("maps", name)))

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
        return cast("HeldMap", self._change("PUT", _path("maps", name), {**options, "force": force}, body).json())

    def release_map(self, name: str, *, force: bool = False, **options: Unpack[DryRun]) -> None:
        """Release a map. `force`: also if that may empty the array for good."""
        self._change("DELETE", _path("maps", name), {**options, "force": force})

    def list_entries(self, map: str, *, start: int | None = None, limit: int | None = None) -> Entries:  # noqa: A002
        """Return the entries that point to a program: all of them, unless `limit` is given.

        Args:
            map: The name of the map.
            start: The first index.
            limit: The most entries. `next` of the answer is the `start` of the rest.
        """
        return cast("Entries", self._get(_path("maps", map, "entries"), {"start": start, "limit": limit}))

    def get_entry(self, map: str, index: int) -> Entry:  # noqa: A002
        """Return an entry.

        Raises:
            Refused: entry-empty: it points to no program.
        """
        return cast("Entry", self._get(_path("maps", map, "entries", index)))

    def set_entry(self, map: str, index: int, program: Ref, **options: Unpack[ConditionalOptions]) -> Written:  # noqa: A002
        """Point an entry to a program. If it does already, nothing is written."""
        answer = self._change("PUT", _path("maps", map, "entries", index), dict(options), {"program": program})
        return Written(_change_id(answer), cast("Entry", answer.json()))

    def clear_entry(
        self, map: str, index: int, *, allow_missing: bool = False, **options: Unpack[ConditionalOptions]  # noqa: A002
    ) -> Written:  # fmt: skip
        """Clear an entry. `allow_missing`: it may be empty already."""
        query = {**options, "allow_missing": allow_missing}
        return Written(_change_id(self._change("DELETE", _path("maps", map, "entries", index), query)), None)

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
        answer = self._change("POST", _path("maps", name, "reconcile"), dict(options), {"to": to})
        return cast("Applied", answer.json())

    # Programs

    def list_programs(self) -> list[Program]:
        """Return all held programs."""
        return cast("list[Program]", self._get("/programs")["programs"])

    def get_program(self, name: str) -> Program:
        """Return a held program."""
        return cast("Program", self._get(_path("programs", name)))

    def hold_program(
        self, name: str, *, pinned: str | None = None, id: int | None = None, **options: Unpack[DryRun]  # noqa: A002
    ) -> Program:  # fmt: skip
        """Hold a program, or open it again, from its pin or by its id."""
        answer = self._change("PUT", _path("programs", name), dict(options), _source(pinned, id))
        return cast("Program", answer.json())

    def release_program(self, name: str, **options: Unpack[DryRun]) -> None:
        """Release a program. Entries that point to it keep it."""
        self._change("DELETE", _path("programs", name), dict(options))

    def run_program(self, name: str, packet: bytes, *, repeat: int = 1) -> Run:
        """Run a program on a packet, with its side effects on maps (BPF_PROG_TEST_RUN).

        Args:
            name: The name of the program.
            packet: 14 bytes or more.
            repeat: How often, at most 1,000,000.
        """
        body = {"packet": packet.hex(), "repeat": repeat}
        return cast("Run", self._send("POST", _path("programs", name, "run"), body=body).json())

    # Object files, and who jumps where

    def list_objects(self) -> list[dict[str, Any]]:
        """Return the object files that are loaded."""
        return cast("list[dict[str, Any]]", self._get("/objects")["objects"])

    def get_object(self, name: str) -> dict[str, Any]:
        """Return an object file that is loaded."""
        return cast("dict[str, Any]", self._get(_path("objects", name)))

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
        answer = self._change("PUT", _path("objects", name), dict(options), content, timeout=_OBJECT_SECONDS)
        return cast("LoadedObjectFile", answer.json())

    def unload_object(self, name: str, **options: Unpack[DryRun]) -> None:
        """Let go of an object file, and of its programs and arrays."""
        self._change("DELETE", _path("objects", name), dict(options))

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
        self, *, order: Literal["asc", "desc"] = "asc", limit: int = 100, **wanted: Unpack[ChangeFilter]
    ) -> Changes:
        """Return a page of the journal.

        Args:
            order: By rising or falling id.
            limit: The most changes, 1 to 1,000.
            **wanted: See `ChangeFilter`.
        """
        return cast("Changes", self._get("/changes", {**wanted, "order": order, "limit": limit}))

    def get_change(self, id: int) -> Change:  # noqa: A002
        """Return a change."""
        return cast("Change", self._get(_path("changes", id)))

    def confirm_change(self, id: int) -> Change:  # noqa: A002
        """Let a change stand that was made with `confirm_within`."""
        return cast("Change", self._send("POST", _path("changes", id, "confirm")).json())

    def revert_change(self, id: int, **options: Unpack[Options]) -> Applied:  # noqa: A002
        """Undo a change, if its entries still hold what it put there. `force`: also if later changes wrote them."""
        return cast("Applied", self._change("POST", _path("changes", id, "revert"), dict(options)).json())

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
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        timeout = httpx.Timeout(_EVENTS_SECONDS, connect=_CONNECT_SECONDS)
        request = self._http.build_request(
            "GET", "/events", params=_query({"map": map}), headers=headers, timeout=timeout
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                self._check(response)
                yield from events_of(response.iter_text(), on_open)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    # Requests

    def _change_entries(
        self, method: str, name: str, entries: Mapping[int, Ref | None], options: dict[str, Any]
    ) -> Applied:
        body = {"entries": [{"index": index, "program": program} for index, program in entries.items()]}
        return cast("Applied", self._change(method, _path("maps", name, "entries"), options, body).json())

    def _get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        return self._send("GET", path, query).json()

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

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        headers = self._actor | (headers or {})
        content: dict[str, Any] = {"json": body}
        if isinstance(body, bytes):
            headers["Content-Type"], content = "application/octet-stream", {"content": body}
        if timeout is not None:
            content["timeout"] = httpx.Timeout(timeout, connect=_CONNECT_SECONDS)
        try:
            response = self._http.request(method, path, params=_query(query or {}), headers=headers, **content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._check(response)
        return response

    def _check(self, response: httpx.Response) -> None:
        """Raise what the answer says."""
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind == _PROBLEM:
            raise Refused(response.json())
        if not response.is_success or "x-request-id" not in response.headers:
            raise Unexpected(self.url, f"{response.status_code} {kind or 'without a body'}")

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            return Unreachable(self.url, "it does not answer")
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(self.url, "it took too long", was_sent=True)
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__ or cause.__context__
        reason = str(error) if cause is None else cause.strerror or str(cause)
        number = None if cause is None else cause.errno
        return Unreachable(self.url, reason, number, was_sent=not isinstance(error, httpx.ConnectError))


def _transport(url: str) -> httpx.BaseTransport:
    """Return how the service is reached.

    Raises:
        ValueError: The URL is of none of the forms that it may have.
    """
    forms = "write unix:///PATH/OF/THE/SOCKET, http://HOST:PORT or https://HOST:PORT"
    if url.startswith(f"{_UNIX}/"):
        return httpx.HTTPTransport(uds=url.removeprefix(_UNIX), verify=False, trust_env=False)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        message = f"{url!r} is no URL: {error}; {forms}"
        raise ValueError(message) from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        message = f"{url!r} is no URL of a service; {forms}"
        raise ValueError(message)
    # The certificates that the system trusts, or those of SSL_CERT_FILE. Loading them takes time, so only where needed.
    verify = ssl.create_default_context() if parsed.scheme == "https" else False
    return httpx.HTTPTransport(verify=verify, trust_env=False)


def _path(*parts: str | int) -> str:
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def _query(values: Mapping[str, object]) -> dict[str, str]:
    """Leave out what is not given."""
    texts = {name: "true" if value is True else value for name, value in values.items()}
    return {name: str(value) for name, value in texts.items() if value is not None and value is not False}


def _source(pinned: str | None, id_: int | None) -> dict[str, Any]:
    return {name: value for name, value in (("pinned", pinned), ("id", id_)) if value is not None}


def _change_id(answer: httpx.Response) -> int | None:
    text = answer.headers.get("change-id")
    return None if text is None else int(text)
