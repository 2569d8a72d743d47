"""The fast path: answers a read or a change of one entry without ASGI and FastAPI.

Most requests are of this kind, and the general way costs several times what they need. The fast path decides nothing of
its own. What the head of a request means is found out once, by the parser, the routes and the access rights of the
general way, and kept by its bytes: a `Meaning`. The next request with the same head has the same meaning.

The requests for one map that arrive in one pass of the event loop are gone through together: a `Turn`. Its sets are a
part of a group commit, so they share a row of the journal. The functions of `hot_step` do what is to be done for each.

Only what succeeds is answered here. Any other request falls back: its bytes go to the parser, as if they came just now.
One that was tried and failed falls back with its error, which the general way answers with, and is not tried again.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httptools
import structlog
from pydantic_core import from_json, to_json
from starlette.types import Scope

from app import native
from app.access.rights import Actor
from app.api.audit import Audit, program_fact
from app.api.authorization import ACTOR, AUTHORIZATION, Authentication, check_access
from app.api.encoding.entries import EntryTemplate, entry_template
from app.api.json_members import MAX_BYTES, RepeatedMembers, check_members
from app.api.limits import Limits
from app.api.preferences import prefers_minimal
from app.api.problems import HttpProblem
from app.api.schemas.requests import SetEntry, program_ref
from app.api.scope import new_request_id, request_id_of
from app.api.state import State
from app.server import hot_step
from app.server.fast_tables import OPERATIONS as TABLE_OPERATIONS
from app.server.fast_tables import FastTables, TableMeaning, split_table_head
from app.server.framing import Headers
from app.server.hot_step import AnswerText, FastRequest
from app.service.changes.entries import write_entry
from app.service.changes.origin import RequestContext
from app.service.errors import ServiceError
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.programs import ByName
from app.store.records import EMPTY, EntryWrite, ProgramRecord

if native.is_used:
    from app.server import _hot_step as hot_step_in_c

_OPERATIONS: Final = {b"GET": "get_entry", b"PUT": "set_entry"}
_MAX_BODY_BYTES: Final = 256  # bytes of one that names a program
_MAX_MEANINGS: Final = 4096
_MAX_HEADER_BYTES: Final = 4096  # of all header fields of a request
_MAX_BODIES: Final = 4096  # whose program is known, and programs whose text is known, of one map
_ENTRIES_PATH: Final = re.compile("/maps/([^/]+)/entries")
# With one of these headers, a request means more than is looked at here.
_UNUSUAL_HEADERS: Final = frozenset(
    {
        b"content-encoding",
        b"expect",
        b"if-match",
        b"if-none-match",
        b"jumptable-actor",
        b"prefer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Headers that differ from request to request, and change nothing but the request id.
_PASSING_HEADER: Final = re.compile(rb"\r\n(?i:x-request-id|traceparent|tracestate):[ -~]*(?=\r\n|\Z)")
_REQUEST_ID: Final = re.compile(rb"\r\n(?i:x-request-id): *([ -~]*?) *(?=\r\n|\Z)")
_UNLIMITED: Final = Limits()

log = structlog.get_logger()


class FastConnection(Protocol):
    """What the fast path needs of a connection.

    Attributes:
        identity: Who connects: the address of the client, and then everything else that tells connections apart.
        scope: What the ASGI scopes of all requests have in common.
        meanings: The meanings that are known of its requests; FastPath puts them there.
        is_lost: The client has gone.
    """

    identity: tuple[Any, ...]
    scope: dict[str, Any]
    meanings: "Meanings | None"
    is_lost: bool

    def answer(self, request: FastRequest, answer: bytes) -> None:
        """Send the answer to a request."""

    def fall_back(self, request: FastRequest, failure: BaseException | None = None) -> None:
        """Let the application answer the request instead. `failure`: it was tried, and this is why it failed."""

    def default_header_lines(self) -> bytes:
        """Return the headers of every answer."""


@dataclass(eq=False, slots=True)
class Meanings:
    """What heads mean, for connections of one identity.

    Attributes:
        owner: What has found them out: another one takes its place when the configuration is read anew.
        epoch: They count for as long as this is the owner's epoch.
        by_head: By the bytes of the request line up to the index, or all of it for a table, and those of the header
            fields.
    """

    owner: "FastPath"
    epoch: int
    by_head: "dict[tuple[bytes, bytes], Meaning | TableMeaning]"


class HotMap:
    """A held map, with what its requests have in common.

    Attributes:
        held: The map.
        array: Its array.
        epoch: What is known of it counts for as long as this is the epoch of the FastPath.
        programs: By the body of a request, the program that it names.
        texts: By the id of a program, the text of an answer, and what that was made of.
    """

    def __init__(self, held: HeldMap, epoch: int) -> None:
        """Take a map that is open."""
        self.held, self.array, self.epoch = held, held.opened(), epoch
        self.programs: dict[bytes, HeldProgram] = {}
        self.texts: dict[int, tuple[EntryTemplate, bytes, AnswerText]] = {}


class Meaning:
    """What the head of a request means.

    Attributes:
        map: The map.
        operation: The operation id: `set_entry` or `get_entry`.
        is_write: It is `set_entry`.
        actor: Who sends it.
        grant: What the actor may do.
        is_bounded: The actor may not do everything with every entry of the map.
        body_bytes: The length of the body.
        audit: Of a set, parts of the line of the audit, in JSON: those between the request id and the status, between
            the status and the index, and between the id of the change and the index. None: it is a read.
    """

    __slots__ = (
        "actor", "audit", "body_bytes", "grant", "is_bounded", "is_write", "map", "operation",
    )  # fmt: skip

    def __init__(self, map_: HotMap, operation: str, actor: Actor, body_bytes: int, folder: str) -> None:
        """Take what was found out. `folder`: the path without the index."""
        self.map, self.operation, self.actor, self.body_bytes = map_, operation, actor, body_bytes
        self.is_write = operation == "set_entry"
        grant, protected = actor.grant, map_.held.protected.parts
        assert grant is not None  # else the request was refused
        self.grant = grant
        has_all = grant.entries is None and grant.programs is None
        self.is_bounded = not has_all or (self.is_write and grant.role != "admin" and bool(protected))
        self.audit: tuple[bytes, bytes, bytes] | None = None
        if self.is_write:
            who = b'","actor":%b,"outcome":"done","status":' % to_json(actor.name)
            self.audit = who, f',"path":"{folder}'.encode(), f',"map":"{map_.held.name}","index":'.encode()


class FastPath:
    """Answers requests that may go the fast way. Thread rule: one event loop.

    Attributes:
        step: `hot_step`, or the same in C.
        service: What is worked on.
        audit: Records the requests.
        sets: By map, the sets that gather for the next group commit.
    """

    def __init__(self, state: State) -> None:
        """Know nothing yet. `state`: its access rights and service count."""
        self.step: Any = hot_step_in_c if native.is_used and state.service.registry.kernel.name == "linux" else hot_step
        self.service: Service = state.service
        self.audit: Audit = state.audit
        self._authentication: Authentication = state.authentication
        self._limits: Limits = state.limits
        self._meanings: dict[tuple[Any, ...], Meanings] = {}  # by what tells connections apart
        self._count = 0  # of meanings
        self._epoch = 0  # of the meanings: it ends when they are forgotten
        self._tokens_version = 0  # of the tokens by which the meanings were found
        self._maps: dict[HeldMap, HotMap] = {}
        self._facts: dict[int, tuple[ProgramRecord, bytes]] = {}  # by a program's id: what the audit tells of it
        self._reads: dict[HotMap, Turn] = {}  # that arrived in this turn of the event loop
        self.sets: dict[HotMap, Turn] = {}
        self._tables = FastTables(state.service, state.audit, self.is_current)

    def take(self, connection: FastConnection, data: bytes) -> "FastRequest | int | None":
        """Take a request off what a connection has received, if it may go the fast way.

        Args:
            connection: It has no other request under way.
            data: What it has received.

        Returns:
            The request, which is answered soon, or falls back; an int: so many bytes of its body are still to come;
            None: it is for the parser.
        """
        parts = self.step.split_head(data) or split_table_head(data)
        if parts is None:
            return None
        front, index, fields, body = parts
        if len(front) + len(fields) > _MAX_HEADER_BYTES:
            return None
        known = connection.meanings
        if known is None or known.epoch != self._epoch or known.owner is not self:
            known = connection.meanings = self._meanings_of(connection)
        meaning, request_id = known.by_head.get((front, fields)), None
        if meaning is None:
            meaning, request_id = self._find(connection, known, front, index, fields)
            if meaning is None:
                return None
        missing = meaning.body_bytes - len(body)
        if missing > 0:
            return missing
        if missing < 0:
            body, data = body[:missing], data[:missing]
        request: FastRequest = self.step.FastRequest(connection, meaning, index, body, data)
        request.request_id = request_id
        return request if self._admit(request) else None

    def _admit(self, request: FastRequest) -> bool:
        """Put a request where it is answered from. Returns False where the regular way would refuse it."""
        meaning = request.meaning
        if meaning.actor.expires is not None and time.time() >= meaning.actor.expires:
            return False
        if self._limits.requests_per_second is not None:
            try:
                self._limits.check_rate(meaning.actor.name)
            except HttpProblem:
                return False
            request.is_counted = True
        if isinstance(meaning, TableMeaning):
            self._tables.begin(request)
            return True
        turns = self.sets if meaning.is_write else self._reads
        turn = turns.get(meaning.map)
        if turn is None:
            turn = turns[meaning.map] = Turn(self, meaning.map)
            if meaning.is_write:
                self.service.changes.group.submit(turn)
            elif len(turns) == 1:
                asyncio.get_running_loop().call_soon(self._answer_reads)
        turn.requests.append(request)
        return True

    def _answer_reads(self) -> None:
        """Answer the reads of this turn one after another, so that no client wakes up in between."""
        reads, self._reads = self._reads, {}
        for turn in reads.values():
            failure: Exception | None = None
            try:
                turn.read()
            except Exception as error:
                log.exception("internal error in the fast path", map=turn.held.name)
                failure = error
            turn.finish(0, failure)

    def is_current(self, epoch: int) -> bool:
        """Whether what was found out in this epoch still counts. It does not if tokens have changed since.

        Ask this right before a request is carried out, and not only when it comes: a token may be revoked in between.
        While the service ends, nothing counts.
        """
        self._look_at_tokens()
        return epoch == self._epoch and not self.service.is_stopping

    def _look_at_tokens(self) -> None:
        tokens = self._authentication.tokens
        if tokens is not None and self._tokens_version != (version := tokens.version()):
            self._tokens_version = version
            self.forget()

    def forget(self) -> None:
        """Forget all meanings. An epoch ends."""
        self._epoch += 1
        self._meanings, self._maps, self._count = {}, {}, 0

    def fact(self, id_: int) -> bytes:
        """Return what the audit tells of a program, as JSON."""
        if id_ == EMPTY:
            return b"null"
        record, known = self.service.registry.programs.record(id_), self._facts.get(id_)
        if known is None or known[0] != record:
            if len(self._facts) >= _MAX_BODIES:
                self._facts.clear()
            known = self._facts[id_] = record, to_json(program_fact(record))
        return known[1]

    # What the regular way knows

    def _meanings_of(self, connection: FastConnection) -> Meanings:
        # Where callers prove who they are, the address means nothing.
        identity = connection.identity if self._authentication.is_open else connection.identity[1:]
        known = self._meanings.get(identity)
        if known is None:
            if len(self._meanings) >= _MAX_MEANINGS:
                self.forget()
            known = self._meanings[identity] = Meanings(self, self._epoch, by_head={})
        return known

    def _find(
        self, connection: FastConnection, known: Meanings, front: bytes, index: int, fields: bytes
    ) -> tuple[Meaning | TableMeaning | None, str | None]:
        """Return what a head means whose bytes were not seen before, and the request id that it gives."""
        fields = b"\r\n" + fields
        sent = _REQUEST_ID.findall(fields)
        if len(sent) > 1:
            return None, None
        rest = _PASSING_HEADER.sub(b"", fields)[2:]
        meaning = known.by_head.get((front, rest))
        if meaning is None:
            self._look_at_tokens()  # so that what is found now is known to count
            if self._count >= _MAX_MEANINGS:
                self.forget()
            line = front if front.endswith(b"\r\n") else b"%b/entries/%d HTTP/1.1\r\n" % (front, index)
            meaning = self._meaning(connection, b"%b%b\r\n\r\n" % (line, rest))
            if meaning is None:
                return None, None
            if known.epoch == self._epoch:
                self._count += 1
                known.by_head[front, rest] = meaning
        request_id = request_id_of({b"x-request-id": sent[0]}) if sent else None
        return meaning, request_id

    def _meaning(self, connection: FastConnection, head: bytes) -> Meaning | TableMeaning | None:
        """Find out what a head means. None: it is not for the fast path, or the regular way would refuse it."""
        parsed = _Head.parsed(head)
        if parsed is None:
            return None
        operation = (TABLE_OPERATIONS if parsed.is_table else _OPERATIONS)[parsed.method]
        fields = dict(parsed.headers)
        path = parsed.target.decode()
        folder = path if parsed.is_table else path.rpartition("/")[0]
        scope: Scope = {**connection.scope, "headers": parsed.headers, "path": path, "method": parsed.method.decode()}
        scope[AUTHORIZATION] = fields.get(b"authorization")
        found = _ENTRIES_PATH.fullmatch(folder)
        if found is None:
            return None
        name = found[1]
        length = int(fields.get(b"content-length", b"0"))
        with suppress(HttpProblem, ServiceError):
            check_access(scope, operation, name, self._authentication, _UNLIMITED)
            actor: Actor = scope[ACTOR]
            held = self.service.registry.maps.get(name)
            held.opened()
            if parsed.is_table:
                is_minimal = prefers_minimal([fields.get(b"prefer", b"").decode("latin-1")])
                return TableMeaning(name, operation, actor, length, path, self._epoch, is_minimal=is_minimal)
            hot = self._maps.get(held)
            if hot is None or held.object is not hot.array:
                hot = self._maps[held] = HotMap(held, self._epoch)
            return Meaning(hot, operation, actor, length, f"{folder}/")
        return None


class _Head:
    """Parses the head of a request as a connection does."""

    def __init__(self) -> None:
        self.method, self.target = b"", b""
        self.headers: Headers = []
        self.is_complete = False

    @classmethod
    def parsed(cls, head: bytes) -> "_Head | None":
        """Return the parts of a head. None: the regular way has to look at it."""
        found = cls()
        parser = httptools.HttpRequestParser(found)
        try:
            parser.feed_data(head)
        except httptools.HttpParserError:
            return None
        found.method = parser.get_method()
        if not found.is_complete or parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return None
        return found if found._is_usual() else None

    @property
    def is_table(self) -> bool:
        """Whether it is about a table, and not about an entry."""
        return self.target.endswith(b"/entries")

    def _is_usual(self) -> bool:
        names = [name for name, _ in self.headers]
        fields = dict(self.headers)
        operations, unusual, most_bytes = _OPERATIONS, _UNUSUAL_HEADERS, _MAX_BODY_BYTES
        if self.is_table:
            operations, unusual, most_bytes = TABLE_OPERATIONS, _UNUSUAL_HEADERS - {b"prefer"}, MAX_BYTES
        if self.method not in operations or not self.target.startswith(b"/maps/") or b"host" not in fields:
            return False
        if len(fields) != len(names) or not unusual.isdisjoint(fields):
            return False
        if any(mark in self.target for mark in b"?#%") or b"jt_" in self.target:
            return False
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return False
        if self.method == b"GET":
            return b"content-length" not in fields
        is_json = fields.get(b"content-type") == b"application/json"
        return is_json and 0 < int(fields.get(b"content-length", b"0")) <= most_bytes

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


class Turn:
    """Requests for one map that are gone through together: sets, which are a part of a group commit, or reads."""

    def __init__(self, fast_path: FastPath, map_: HotMap) -> None:
        self._fast_path, self._map, self.held = fast_path, map_, map_.held
        self._service = fast_path.service
        self.requests: list[FastRequest] = []
        self._failures: dict[FastRequest, Exception] = {}  # of requests that were tried one by one

    def read(self) -> None:
        """Read the entries. `finish` has to follow."""
        expected = self.held.expected
        if self._is_usual() and expected is not None and not self._has_bounded():
            self._go_through(None)
            numbers = expected.table.numbers
            for request in self.requests:
                if request.after != EMPTY and numbers[request.index] != request.after:
                    request.after = EMPTY  # somebody else has written there, or a change of ours is not journalled yet

    def write(self) -> Sequence[EntryWrite]:
        """Write the entries under the map's lock. From here on, sets of this map gather for the next group."""
        del self._fast_path.sets[self._map]
        if not self._is_usual() or self.held.moved is not None:
            return ()
        if self._has_bounded():
            return self._write_one_by_one()
        targets = {}
        for body in {request.body for request in self.requests}:
            program = self._program(body)
            if program is not None and program.object is not None and program.moved is None:
                targets[body] = program.object.id, program.object.fd
        self._go_through(targets)
        map_, map_id, writes = self.held.name, self._map.array.id, list[EntryWrite]()
        for each in self.requests:
            if each.is_written:
                id_ = each.request_id = each.request_id or new_request_id()
                actor = each.meaning.actor.name
                writes.append(EntryWrite(map_, map_id, each.index, each.before, each.after, actor, id_))
            elif each.before != EMPTY and each.after == EMPTY:  # the kernel has refused
                self._service.changes.replaced_programs.release_one(each.before)
        return writes

    def _go_through(self, targets: dict[bytes, tuple[int, int]] | None) -> None:
        registry, array, replaced = self._service.registry, self._map.array, self._service.changes.replaced_programs
        try:
            lookups, updates = self._fast_path.step.go_through(
                self.requests, registry.untimed_kernel, array.fd, array.max_entries, targets, replaced.acquire_one
            )
        except Exception:  # what was written counts all the same
            log.exception("internal error in the fast path", map=self.held.name)
        else:
            registry.kernel_timings["map_lookup"].add_several(*lookups)
            registry.kernel_timings["map_update"].add_several(*updates)

    def finish(self, first_id: int, error: BaseException | None) -> None:
        """Answer the requests, or let them fall back.

        Args:
            first_id: The id of the change of the first set that has written.
            error: Why nothing could be journalled: what was written is put back.
        """
        done: list[FastRequest] = []
        for request in self.requests:
            if request.is_written and error is not None:
                self._fall_back(request, error)
            elif request.after == EMPTY or error is not None:  # what has found its program there saw what is put back
                self._fall_back(request, self._failures.get(request))
            else:
                done.append(request)
        if done:
            self._answer(done, first_id)

    def _fall_back(self, request: FastRequest, failure: BaseException | None) -> None:
        if failure is not None and request.connection.is_lost:  # nobody is answered, but the attempt is recorded
            meaning = request.meaning
            path = f"/maps/{self.held.name}/entries/{request.index}"
            self._fast_path.audit.aborted(meaning.actor, meaning.operation, path, request.request_id or "", failure)
        request.connection.fall_back(request, failure)

    def _is_usual(self) -> bool:
        if self.held.object is not self._map.array:  # the map is released, or has another array now
            self._fast_path.forget()
        return self._fast_path.is_current(self._map.epoch) and self.held.unconfirmed is None

    def _has_bounded(self) -> bool:
        return any(meaning.is_bounded for meaning in {request.meaning for request in self.requests})

    def _write_one_by_one(self) -> list[EntryWrite]:
        """Write the entries for actors whose rights have to be looked at each time."""
        writes: list[EntryWrite] = []
        for request in self.requests:
            program, actor = self._program(request.body), request.meaning.actor
            if program is None:
                continue
            request.request_id = request.request_id or new_request_id()
            context = RequestContext(actor.name, request.request_id, grant=request.meaning.grant)
            try:
                result, written = write_entry(self._service.changes, self.held, request.index, program.name, context)
            except Exception as error:  # noqa: BLE001 - the general way answers with it
                self._failures[request] = error
                continue
            request.before, request.after = result.before or EMPTY, result.after.id
            if written is not None:
                request.is_written = True
                writes.append(written)
        return writes

    def _program(self, body: bytes) -> HeldProgram | None:
        """Return the program that a body names. None: it says something else, or there is none of that name."""
        programs = self._map.programs
        held = programs.get(body)
        if held is None or held.released:
            name = _program_named_by(body)
            held = None if name is None else self._service.registry.programs.find(name)
            if held is not None:
                if len(programs) >= _MAX_BODIES:
                    programs.clear()
                programs[body] = held
        return held

    def _answers(self, requests: list[FastRequest], first_id: int) -> tuple[list[bytes], list[bytes]]:
        """Return the answers, and the lines of the audit."""
        for request in requests:
            if request.request_id is None:
                request.request_id = new_request_id()
        first = requests[0]
        date = first.connection.default_header_lines()
        texts = {id_: self._text(id_, date) for id_ in {request.after for request in requests}}
        facts: dict[int, bytes] = {}
        if first.meaning.is_write:
            facts = {id_: self._fast_path.fact(id_) for id_ in {*texts, *[request.before for request in requests]}}
        found: tuple[list[bytes], list[bytes]] = self._fast_path.step.answers(requests, first_id, texts, facts)
        return found

    def _answer(self, requests: list[FastRequest], first_id: int) -> None:
        try:
            made, lines = self._answers(requests, first_id)
        except Exception as error:
            log.exception("internal error in the fast path", map=self.held.name)
            for request in requests:
                self._fall_back(request, error)
            return
        first, now = requests[0], time.perf_counter()
        counters, operation = self._service.counters, first.meaning.operation
        for request, answer in zip(requests, made, strict=True):
            request.connection.answer(request, answer)
        created = [now - each.began for each in requests if each.is_written and each.before == EMPTY]
        if created:
            counters.timing(operation, 201).add_several(len(created), sum(created), max(created))
        if len(created) < len(requests):
            rest = [now - each.began for each in requests if not each.is_written or each.before != EMPTY]
            counters.timing(operation, 200).add_several(len(rest), sum(rest), max(rest))
        counters.fast_requests += len(requests)
        if lines:
            self._fast_path.audit.add(operation, lines)

    def _text(self, id_: int, date: bytes) -> AnswerText:
        """Return the text of the answers that tell of this program. `date`: the headers of every answer."""
        hot, registry = self._map, self._service.registry
        template = entry_template(registry, self.held.name, hot.array.id, registry.programs.describe(id_))
        known = hot.texts.get(id_)
        if known is not None and known[0] is template and known[1] == date:
            return known[2]
        tag_start, tag_end, before, after = (
            part.encode() for part in (template.tag_start, template.tag_end, template.before, template.after)
        )
        text = AnswerText(
            ok=b'HTTP/1.1 200 OK\r\n%betag: "%b' % (date, tag_start),
            created=b'HTTP/1.1 201 Created\r\n%betag: "%b' % (date, tag_start),
            tag_end=b'%b"\r\n' % tag_end,
            middle=b"content-type: application/json\r\nx-request-id: ",
            before_index=b'\r\n\r\n%b"index":' % before,
            before_tag=b',"etag":"\\"%b' % tag_start,
            end=b'%b\\""%b\n' % (tag_end, after),
            size=len(before) + len(tag_start) + len(tag_end) + len(after) + len(b'"index":,"etag":"\\"\\""\n'),
        )
        if len(hot.texts) >= _MAX_BODIES:
            hot.texts.clear()
        hot.texts[id_] = template, date, text
        return text


def _program_named_by(body: bytes) -> str | None:
    """Return the held name of a program, if a body says nothing else."""
    try:
        value = from_json(body, allow_inf_nan=False)
        check_members(body, value)
        given = SetEntry.model_validate(value)
    except (ValueError, RepeatedMembers):
        return None
    ref = program_ref(given.program)
    return ref.name if isinstance(ref, ByName) and given.flags == 0 else None
