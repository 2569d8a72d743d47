"""The HTTP form of every error: application/problem+json (RFC 9457).

`PROBLEMS` is the one table from a problem's code to its status, title and remedy. `FLEET_PROBLEMS` has those that only
the API of a fleet can answer. Routes raise `HttpProblem` or a `ServiceError`; `error_response` of
`app.api.error_responses` turns either into a response.
"""

import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

MEDIA_TYPE: Final = "application/problem+json"
INTERNAL_DETAIL: Final = "an internal error occurred; report it with this request_id, under which the log has more"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One type of problem: its HTTP status, its title, and what the caller can do about it."""

    status: int
    title: str
    remedy: str


PROBLEMS: Final[dict[str, ProblemType]] = {
    "malformed-json": ProblemType(
        400, "The body is not JSON", "Send one JSON value in UTF-8. The detail says where the body is malformed."
    ),
    "malformed-header": ProblemType(
        400,
        "A header is malformed",
        'The detail names the header. Entity tags are quoted (If-Match: "…") or *; copy one from an ETag header.',
    ),
    "unauthenticated": ProblemType(
        401, "The caller is not authenticated", "Send a token: Authorization: Bearer TOKEN."
    ),
    "forbidden": ProblemType(
        403,
        "The caller has no right to do this",
        "The detail names what is not allowed. Ask an administrator of the service for the right.",
    ),
    "actor-not-allowed": ProblemType(
        403,
        "The caller may not name who asks",
        "Leave out the header Jumptable-Actor. It is for the agent of a fleet: a peer on the unix socket whose rule in "
        "[peers] has on_behalf = true.",
    ),
    "entry-protected": ProblemType(403, "The entry is protected", "Only a caller with the role admin may change it."),
    "read-only": ProblemType(
        403, "The service is read-only", "Remove read_only from the configuration and reload the service."
    ),
    "pin-not-allowed": ProblemType(
        403,
        "Requests may not use this path",
        "Use a path below one of the folders in pin_dirs, or add a folder to pin_dirs and restart the service.",
    ),
    "file-not-allowed": ProblemType(
        403,
        "Requests may not load this object file",
        "Name a file below one of objects.object_dirs, or let an operator add a folder there, or set objects.upload.",
    ),
    "program-type-not-allowed": ProblemType(
        403,
        "Programs of this type may not be loaded",
        "Leave the program out (programs.NAME.load = false), or let an operator add the type to objects.program_types.",
    ),
    "object-unknown": ProblemType(
        404, "No such object file", "GET /objects lists those that are loaded. PUT /objects/{name} loads one."
    ),
    "map-unknown": ProblemType(
        404, "No such map", "GET /maps lists the held maps. PUT /maps/{name} holds another one."
    ),
    "program-unknown": ProblemType(
        404, "No such program", "GET /programs lists the held programs. PUT /programs/{name} holds another one."
    ),
    "change-unknown": ProblemType(404, "No such change", "GET /changes lists the changes that the journal has."),
    "entry-empty": ProblemType(
        404, "The entry is empty", "PUT a program there. DELETE accepts an empty entry with ?allow_missing=true."
    ),
    "index-out-of-range": ProblemType(404, "No such entry", "Use an index from 0 to max_entries - 1."),
    "not-found": ProblemType(
        404,
        "No such resource",
        "Check the path for slips, and leave out a slash at its end. GET /openapi.json lists all paths.",
    ),
    "method-not-allowed": ProblemType(
        405, "The resource does not support this method", "Use one of the methods in the Allow header."
    ),
    "method-unknown": ProblemType(
        501, "The service does not know this method", "Use GET, HEAD, PUT, PATCH, POST or DELETE."
    ),
    "request-timeout": ProblemType(
        408,
        "The request did not arrive in time",
        "Send the request faster, and check that Content-Length is the length of the body.",
    ),
    "change-conflict": ProblemType(
        409,
        "The request conflicts with the state of a change",
        "If a change of the same entries waits for confirmation, confirm or revert it. To revert an older change, "
        "revert the later changes of its entries first, or set the entries yourself.",
    ),
    "change-not-revertible": ProblemType(
        409,
        "The previous programs cannot be put back",
        "Pin the programs, or configure keep_dir. To go on without an undo, set the entries yourself.",
    ),
    "already-confirmed": ProblemType(
        409,
        "The change does not wait for confirmation",
        "There is nothing to confirm. POST /changes/{id}/revert undoes the change.",
    ),
    "in-use": ProblemType(
        409,
        "Something else needs the object",
        "The detail says what: confirm or revert a change, move or clear entries, or unload the object file.",
    ),
    "file-changing": ProblemType(
        409, "The object file changed while it was read", "Send the request again when the file is complete."
    ),
    "name-taken": ProblemType(
        409,
        "The name or the object is already held",
        "Choose another name, or release what is held under the name that the detail gives.",
    ),
    "last-reference": ProblemType(
        409,
        "Releasing the array would empty it for good",
        "Pin the array first. If it may be emptied, send ?force=true.",
    ),
    "pin-moved": ProblemType(
        409,
        "The pin leads to another object now",
        "PUT the map or program that the detail names with the same pin, which opens the new object. To use the one "
        "that is held, send ?force=true.",
    ),
    "program-busy": ProblemType(409, "A freplace program extends the program", "Detach the freplace program first."),
    "map-frozen": ProblemType(
        409, "The array is frozen", "A frozen array can never be changed again. Create a new array."
    ),
    "events-expired": ProblemType(
        410,
        "Not all of these events are there any more",
        "Read the tables again, then follow the events without Last-Event-ID.",
    ),
    "precondition-failed": ProblemType(
        412,
        "If-Match or If-None-Match does not hold",
        "current shows the present state. If you still want the change, send it again with the etag in current.",
    ),
    "body-too-large": ProblemType(
        413,
        "The body is too large",
        "A body may have up to 64 KiB. That of a table may have 512 bytes more for each of the map's max_entries, that "
        "of a table of a fleet 8 MiB.",
    ),
    "media-type-unsupported": ProblemType(
        415,
        "The body is not declared as plain JSON",
        "Send Content-Type: application/json without a Content-Encoding. With curl, use --json instead of -d.",
    ),
    "validation": ProblemType(
        422, "The request is invalid", "errors lists each invalid place in the request and what belongs there."
    ),
    "file-unusable": ProblemType(
        422, "The object file cannot be read", "Follow the remedy in the problem: name a regular file that is there."
    ),
    "object-unreadable": ProblemType(
        422,
        "The bytes are no object file",
        "Compile it anew with clang -target bpf -g, and send it whole. reason is what libbpf says.",
    ),
    "object-unsupported": ProblemType(
        422, "The object file is of a kind that is not loaded", "The detail says what is not supported."
    ),
    "object-too-large": ProblemType(
        422,
        "The object file would take too much memory",
        "Give map fewer entries (maps.NAME.max_entries), or let an operator raise the limits in [objects].",
    ),
    "object-timeout": ProblemType(
        422,
        "The object file was not loaded in time",
        "Make its programs smaller, or let an operator raise objects.timeout.",
    ),
    "object-refused": ProblemType(
        422,
        "The kernel refuses a program of the object file",
        "source and instruction show the place, message the verifier's reason, log_tail the end of its log.",
    ),
    "relocation-failed": ProblemType(
        422,
        "The object file refers to something that this kernel does not have",
        "Ask for it with bpf_core_field_exists() or bpf_core_type_exists() first, or declare it __weak.",
    ),
    "kfunc-missing": ProblemType(
        422,
        "This kernel does not have a function that the object file calls",
        "Declare function __weak, and ask whether it is there before it is called.",
    ),
    "program-type-unknown": ProblemType(
        422, "The section of a program does not tell its type", "Name it with programs.NAME.type."
    ),
    "map-not-found": ProblemType(
        422, "No such map", "Name a map of the object file, or a held one. GET /maps lists the held maps."
    ),
    "map-not-replaceable": ProblemType(
        422,
        "A map of the object file cannot be replaced by this one",
        "differences lists each field in which the two differ. Give a map of the same shape.",
    ),
    "variable-unknown": ProblemType(
        422, "The object file has no such global variable", "variables lists those that it has. Compile it with -g."
    ),
    "variable-too-long": ProblemType(422, "The value does not fit the variable", "size is that of the variable."),
    "values-on-replaced-map": ProblemType(
        422,
        "The object file has initialisers for an array that is replaced",
        'Send "values": "set" to write them as a change of entries, or "ignore" to leave them out.',
    ),
    "pinning-refused": ProblemType(
        422, "A map of the object file asks to be pinned by name", 'Send "pinning": "ignore", or "hold".'
    ),
    "program-not-found": ProblemType(
        422,
        "No such program",
        "Give the name of a held program (GET /programs lists them), the id of a loaded program, or a pin.",
    ),
    "program-incompatible": ProblemType(
        422,
        "The program does not fit the array",
        "The first program in an array fixes which programs fit. Follow the remedy in the problem.",
    ),
    "not-a-program-array": ProblemType(
        422, "The object is not a program array", "Give the pin or the id of a map of type prog_array."
    ),
    "not-a-program": ProblemType(422, "The object is not a program", "Give the pin or the id of a loaded program."),
    "program-not-runnable": ProblemType(
        422,
        "The kernel cannot test-run this type of program",
        "Run a program of a type that takes a packet, such as xdp, sched_cls or socket_filter.",
    ),
    "host-not-allowed": ProblemType(
        421,
        "Host or Origin is that of another machine",
        "On a loopback address and a unix socket, Host and Origin must be localhost or a loopback address. Elsewhere "
        "Origin of a change must be that of Host.",
    ),
    "headers-too-large": ProblemType(
        431,
        "The request line and headers are too large",
        "Send shorter headers, or raise limits.header_bytes in the configuration.",
    ),
    "too-many-requests": ProblemType(
        429, "Too many requests", "Wait for the number of seconds in the Retry-After header."
    ),
    "unsupported-flags": ProblemType(422, "The kernel does not support these flags", "Omit flags, or send 0."),
    "duplicate-index": ProblemType(422, "An index is listed twice", "List each index once."),
    "pin-unusable": ProblemType(
        422, "The pin cannot be opened", "The detail says why the kernel refuses it and what to do."
    ),
    "kernel-permission": ProblemType(
        500, "The service lacks a permission", "Give the service the capability that the detail names."
    ),
    "kernel-error": ProblemType(
        500, "The kernel refused the operation", "errno says why. The kernel log (dmesg) may say more."
    ),
    "internal": ProblemType(
        500, "An internal error of the service", "Report it with the request_id. The log has more under this id."
    ),
    "map-unavailable": ProblemType(
        503, "The map could not be opened", "Fix what reason says. The service tries again every few seconds."
    ),
    "program-unavailable": ProblemType(
        503, "The program could not be opened", "Fix what reason says. The service tries again every few seconds."
    ),
    "journal-unavailable": ProblemType(
        503,
        "The journal cannot be used",
        "Mend what the detail says. If a change was being made, put_back says whether it was undone.",
    ),
    "loader-unavailable": ProblemType(
        503,
        "Object files cannot be loaded here",
        "Install libbpf 1.0 or later (on Debian and Ubuntu: apt-get install libbpf1). All else works without it.",
    ),
    "keeper-unavailable": ProblemType(
        503,
        "The keeper cannot be asked",
        "The keeper opens and creates kernel objects and looks up tokens. If it has ended, systemd restarts the "
        "service unless that would empty an array; GET /readyz says why. Otherwise restart the service.",
    ),
    "draining": ProblemType(503, "The service is stopping", "Send the request again when the service is back."),
}

# Those that only the API of a fleet can answer.
FLEET_PROBLEMS: Final[dict[str, ProblemType]] = {
    "table-unknown": ProblemType(
        404, "No such table", "GET /fleet/tables lists the tables. PUT /fleet/tables/{name} makes one."
    ),
    "revision-unknown": ProblemType(
        404, "The table has no such revision", "GET /fleet/tables/{name}/revisions lists those that there are."
    ),
    "rollout-unknown": ProblemType(404, "No such rollout", "GET /fleet/rollouts lists the rollouts."),
    "node-unknown": ProblemType(404, "No such node", "GET /fleet/nodes lists the nodes. An admin adds one by PUT."),
    "rollout-in-progress": ProblemType(
        409,
        "The table has a rollout that has not ended",
        "Wait until it ends, or POST /fleet/rollouts/{id}/abort. rollout names it.",
    ),
    "rollout-finished": ProblemType(
        409, "The rollout has ended", "POST /fleet/rollouts with the table and a revision starts another one."
    ),
    "rollout-phase-conflict": ProblemType(
        409,
        "The rollout is in a phase in which this is not possible",
        "phase says which one. What is paused or halted can be resumed or aborted; what rolls back ends by itself.",
    ),
    "node-in-use": ProblemType(
        409,
        "A rollout needs the node",
        "Wait until the rollout ends, or abort it. rollout names it.",
    ),
    "no-node-matches": ProblemType(
        422, "No node has these labels", "Change selector, or the labels of nodes. GET /fleet/nodes shows them."
    ),
    "nodes-not-ready": ProblemType(
        422,
        "Too many nodes are not ready for this table",
        "nodes lists them with the reason of each. Mend them, select fewer, or raise strategy.max_unavailable.",
    ),
    "spec-too-large": ProblemType(
        422,
        "The table is too large for a fleet",
        "In compact form a table may have 512 KiB. Entries beside each other with the same program take little.",
    ),
    "store-unavailable": ProblemType(
        503,
        "etcd cannot be asked",
        "Send the request again when etcd has a leader; GET /readyz says why. If outcome is unknown, look first "
        "whether the change was made. No entry of any node changes meanwhile.",
    ),
    "store-refused": ProblemType(
        503,
        "etcd refuses the fleet's server",
        "The detail says why. The certificate in [etcd] needs a user with the role that jumptable fleet init makes.",
    ),
    "store-version": ProblemType(
        503,
        "This version of etcd has holes in its access control",
        "Install etcd 3.4.42, 3.5.28 or 3.6.9, or a later release of these series, on all members.",
    ),
}


def problem_type_of(code: str) -> ProblemType:
    """Return the type of a problem of any application."""
    return PROBLEMS[code] if code in PROBLEMS else FLEET_PROBLEMS[code]


class HttpProblem(Exception):
    """A request is refused for a reason that HTTP knows, not the domain.

    Args:
        code: A key of `PROBLEMS` or `FLEET_PROBLEMS`.
        detail: One sentence about this occurrence.
        headers: Headers for the response.
        facts: Members of the problem beside the standard ones.
    """

    def __init__(
        self, code: str, detail: str, *, headers: dict[str, str] | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.headers, self.facts = headers or {}, facts or {}


def problem_body(
    code: str, detail: str, request_id: str, *, facts: dict[str, Any] | None = None, in_body: bool = False
) -> tuple[int, bytes]:
    """Return the status and the JSON of a problem.

    Args:
        code: A key of `PROBLEMS` or `FLEET_PROBLEMS`.
        detail: One sentence about this occurrence.
        request_id: The id of the request.
        facts: Members of the problem beside the standard ones. They never replace a standard member.
        in_body: Whether the body of the request caused the problem. The status is then 422, not 404.
    """
    problem_type = problem_type_of(code)
    status = 422 if in_body else problem_type.status
    standard = {
        "type": f"/problems/{code}",
        "title": problem_type.title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    members = standard | {name: fact for name, fact in (facts or {}).items() if name not in standard}
    content = json.dumps(members, separators=(",", ":"), ensure_ascii=False) + "\n"
    # A fact may have characters that UTF-8 has not, such as those that stand for other bytes in a path.
    return status, content.encode("utf-8", "replace")


def bare_problem(code: str, detail: str) -> bytes:
    """Return a whole HTTP/1.1 response for bytes that did not become a request. It closes the connection."""
    number, body = problem_body(code, detail, os.urandom(16).hex())
    status = HTTPStatus(number)
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
