"""The hot step: what is done for each request of the fast path, and so is written for speed.

It goes through requests whose meaning is known: look up the entry, overwrite it where another program is to be there,
and fill the numbers into the text of the answer. Whatever is unusual falls back to the regular way.
"""

import errno
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pydantic_core import from_json, to_json

from app.access.rights import Actor
from app.api.audit import Audit, program_fact
from app.api.encoding.entries import entry_template
from app.api.json_members import RepeatedMembers, check_members
from app.api.middleware import new_request_id
from app.api.schemas.requests import SetEntry, program_ref
from app.service.changes.entries import write_entry
from app.service.changes.origin import RequestContext
from app.service.errors import ServiceError
from app.service.lifecycle import Service
from app.service.objects.program import Program
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.programs import ByName
from app.store.records import EMPTY, EntryWrite, ProgramRecord

if TYPE_CHECKING:
    from app.server.fast_path import FastConnection

_MAX_FACTS: Final = 4096
_MAX_TARGETS: Final = 4096  # of one map
_STATUS_LINES: Final = {200: "HTTP/1.1 200 OK\r\n", 201: "HTTP/1.1 201 Created\r\n"}


class Target:
    """A held program that requests put into entries."""

    __slots__ = ("held", "id", "program")

    def __init__(self, held: HeldProgram, program: Program) -> None:
        self.held, self.program, self.id = held, program, program.id


class HotMap:
    """A held map, with what its requests have in common.

    Attributes:
        held: The map.
        array: Its array.
        fd: The fd of the array.
        targets: By the body of a request, the program that it names.
    """

    __slots__ = ("array", "fd", "held", "targets")

    def __init__(self, held: HeldMap) -> None:
        """Take a map that is open."""
        self.held, self.array = held, held.opened()
        self.fd = self.array.fd
        self.targets: dict[bytes, Target] = {}


class Meaning:
    """What the head of a request means.

    Attributes:
        map: The map.
        operation: The operation id: `set_entry` or `get_entry`.
        is_write: It is `set_entry`.
        actor: Who sends it.
        is_bounded: The actor may not do everything with every entry of the map.
        body_bytes: The length of the body.
        path: The path without the index.
        audit: The beginning of the line of the audit, in JSON, behind the request id.
    """

    __slots__ = ("actor", "audit", "body_bytes", "is_bounded", "is_write", "map", "operation", "path")

    def __init__(self, map_: HotMap, operation: str, actor: Actor, body_bytes: int, path: str) -> None:
        self.map, self.operation, self.actor, self.body_bytes, self.path = map_, operation, actor, body_bytes, path
        self.is_write = operation == "set_entry"
        grant, protected = actor.grant, map_.held.protected.parts
        assert grant is not None  # else the request was refused
        has_all = grant.entries is None and grant.programs is None
        self.is_bounded = not has_all or (self.is_write and grant.role != "admin" and bool(protected))
        self.audit = f'"actor":{to_json(actor.name).decode()},"outcome":"done","status":'


class FastRequest:
    """A request that the fast path has taken.

    Attributes:
        connection: Where it comes from.
        meaning: What its head means.
        index: The entry, u32. It may be beyond the end.
        body: Its body.
        data: All its bytes.
        request_id: The request id that it gives. None: it gets a new one.
        began: When it came, in seconds of time.perf_counter().
        keep_alive: The connection stays open after the answer.
        is_counted: It counts against requests_per_second already.
        before: Of a set that succeeded: the id of the program that was there, or EMPTY.
        after: The id of the program that is there. EMPTY: the request has fallen back.
        is_written: The entry was overwritten.
    """

    __slots__ = (
        "after", "before", "began", "body", "connection", "data", "index", "is_counted", "is_written", "keep_alive",
        "meaning", "request_id",
    )  # fmt: skip

    def __init__(
        self,
        connection: "FastConnection",
        meaning: Meaning,
        index: int,
        body: bytes,
        data: bytes,
        request_id: str | None,
    ) -> None:
        self.connection, self.meaning, self.index, self.body, self.data = connection, meaning, index, body, data
        self.request_id = request_id or new_request_id()
        self.began = time.perf_counter()
        self.keep_alive, self.is_counted, self.is_written = True, False, False
        self.before = self.after = EMPTY


class HotStep:
    """Goes through requests, many at a time."""

    def __init__(self, service: Service, audit: Audit) -> None:
        self._service, self._audit = service, audit
        self._registry, self._changes = service.registry, service.changes
        self._replaced = service.changes.replaced_programs
        self._kernel = service.registry.kernel
        self._facts: dict[int, tuple[ProgramRecord, str]] = {}  # by a program's id: what the audit tells of it

    def read(self, requests: Sequence[FastRequest]) -> None:
        """Read the entries of these requests. `finish` has to follow."""
        lookup = self._kernel.map_lookup
        for request in requests:
            meaning, index = request.meaning, request.index
            hot = meaning.map
            held, array = hot.held, hot.array
            expected = held.expected
            try:
                if (
                    held.object is array
                    and index < array.max_entries
                    and not meaning.is_bounded
                    and held.unconfirmed is None
                ):
                    id_ = lookup(hot.fd, index)
                    if expected is None or expected.table.numbers[index] == id_:
                        request.after = id_
            except OSError:  # it is empty, or the kernel refuses
                pass

    def write(self, hot: HotMap, requests: Sequence[FastRequest]) -> list[EntryWrite]:
        """Write the entries of one map under its lock. `finish` has to follow.

        Returns:
            What is to be journalled.
        """
        held, array, fd, writes = hot.held, hot.array, hot.fd, list[EntryWrite]()
        is_usual = held.object is array and held.moved is None and held.unconfirmed is None
        lookup, update, replaced = self._kernel.map_lookup, self._kernel.map_update, self._replaced
        map_, map_id, max_entries, targets = held.name, array.id, array.max_entries, hot.targets
        for request in requests:
            target, index, meaning = targets.get(request.body), request.index, request.meaning
            if target is None or target.held.object is not target.program:
                target = self._target(hot, request.body)
            if target is None or not is_usual or index >= max_entries:
                continue
            if meaning.is_bounded or target.held.moved is not None:
                self._write_bounded(request, target, writes)
                continue
            after = target.id
            try:
                before = lookup(fd, index)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    continue
                before = EMPTY
            if before != after:
                if before:
                    replaced.acquire_one(before)
                try:
                    update(fd, index, target.program.fd, 0)
                except OSError:
                    if before:
                        replaced.release((before,))
                    continue
                writes.append(EntryWrite(map_, map_id, index, before, after, meaning.actor.name, request.request_id))
                request.is_written = True
            request.before, request.after = before, after
        return writes

    def _target(self, hot: HotMap, body: bytes) -> Target | None:
        """Return the program that a body names. None: it says something else, or there is none of that name."""
        name = _program_named_by(body)
        held = None if name is None else self._registry.programs.find(name)
        if held is None or held.object is None:
            return None
        if len(hot.targets) >= _MAX_TARGETS:
            hot.targets.clear()
        target = hot.targets[body] = Target(held, held.object)
        return target

    def _write_bounded(self, request: FastRequest, target: Target, writes: list[EntryWrite]) -> None:
        """Write an entry for an actor whose rights have to be looked at each time."""
        actor = request.meaning.actor
        assert actor.grant is not None
        context = RequestContext(actor.name, request.request_id, grant=actor.grant)
        try:
            result, written = write_entry(
                self._changes, request.meaning.map.held, request.index, target.held.name, context
            )
        except ServiceError:
            return
        request.before, request.after = result.before or EMPTY, result.after.id
        if written is not None:
            writes.append(written)
            request.is_written = True

    def finish(self, requests: Sequence[FastRequest], first_id: int, error: BaseException | None) -> None:
        """Answer the requests, or let them fall back.

        Args:
            requests: What `read` or `write` has gone through.
            first_id: The id of the first change.
            error: Why what was written is put back.
        """
        if error is not None:
            for request in requests:
                if request.is_written:
                    request.after = EMPTY
                    request.connection.fall_back(request, error)
            requests = [request for request in requests if not request.is_written]
        self._answer(requests, first_id)

    def _answer(self, requests: Sequence[FastRequest], change_id: int) -> None:
        """Send the answers. `change_id`: the id of the first change."""
        if not requests:
            return
        now, lines, answered = time.perf_counter(), list[str](), 0
        registry, add_request = self._registry, self._service.counters.add_request
        describe = registry.programs.describe
        date = requests[0].connection.default_header_lines().decode("latin-1")
        for request in requests:
            connection, after = request.connection, request.after
            if after == EMPTY:
                connection.fall_back(request)
                continue
            meaning, index, request_id = request.meaning, request.index, request.request_id
            hot, status, change = meaning.map, 200, ""
            template = entry_template(registry, hot.held.name, hot.array.id, describe(after))
            if meaning.is_write:
                line = f'"request_id":"{request_id}",{meaning.audit}'
                if request.is_written:
                    if request.before == EMPTY:
                        status = 201
                    change = f"change-id: {change_id}\r\n"
                    line += (
                        f'{status},"path":"{meaning.path}{index}","change":{change_id},"map":"{hot.held.name}",'
                        f'"index":{index},"before":{self._fact(request.before)},"after":{self._fact(after)}'
                    )
                    change_id += 1
                else:
                    line += f'200,"path":"{meaning.path}{index}"'
                lines.append(line)
            tag = f"{template.tag_start}{index:x}{template.tag_end}"
            entry = f'"index":{index},"etag":"\\"{tag}\\""'
            connection.answer(
                request,
                (
                    f'{_STATUS_LINES[status]}{date}etag: "{tag}"\r\n{change}'
                    f"content-length: {template.size + len(entry) + 1}\r\ncontent-type: application/json\r\n"
                    f"x-request-id: {request_id}\r\n\r\n{template.before}{entry}{template.after}\n"
                ).encode(),
            )
            add_request(meaning.operation, status, now - request.began)
            answered += 1
        self._service.counters.fast_requests += answered
        if lines:
            self._audit.add("set_entry", lines)

    def _fact(self, id_: int) -> str:
        """Return what the audit tells of a program, as JSON."""
        if id_ == EMPTY:
            return "null"
        record = self._registry.programs.record(id_)
        known = self._facts.get(id_)
        if known is None or known[0] is not record:
            if len(self._facts) >= _MAX_FACTS:
                self._facts.clear()
            known = self._facts[id_] = record, to_json(program_fact(record)).decode()
        return known[1]


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
