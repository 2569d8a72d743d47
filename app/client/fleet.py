"""The client of a fleet's server, which has a method for each of its operations."""

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack, cast

import httpx

from app.client.answers import Event
from app.client.errors import Refused
from app.client.fleet_answers import (
    FleetAction,
    FleetIndex,
    FleetNode,
    FleetNodes,
    FleetRollout,
    FleetTable,
    FleetTableSummary,
    FleetVersion,
    RolloutNodes,
    RolloutSummary,
    StartedRollout,
    TableDryRun,
    TableRevisions,
)
from app.client.http_client import HttpClient, path_of, url_of

SOCKET: Final = Path("/run/jumptable-fleet/api.sock")
LOOPBACK: Final = "http://127.0.0.1:8090"
_DRY_RUN_SECONDS: Final = 30.0  # the server gives nodes 10 to answer


class FleetOptions(TypedDict, total=False):
    """What everything that changes something takes.

    Attributes:
        note: Why; kept in the history. At most 1,000 characters.
        dry_run: Check it, and change nothing.
    """

    note: str | None
    dry_run: bool


class TaggedFleetOptions(FleetOptions, total=False):
    """What changes of tables and nodes take.

    Attributes:
        if_match: The etag that it still has to have.
        if_none_match: `*`: it must not be there.
    """

    if_match: str | None
    if_none_match: str | None


class FleetReadiness(TypedDict):
    """Whether etcd answers. `reason`: why not; `leader`: the controller that leads."""

    ready: bool
    reason: str | None
    leader: str | None
    warnings: list[str]


def default_fleet_url() -> str:
    """Return where the fleet's server is unless something else is said: its unix socket if it is there, or loopback."""
    return url_of(SOCKET, LOOPBACK)


class FleetClient(HttpClient):
    """Talks to a server of the fleet, over connections that are kept open. It may be used by several threads.

    Every method raises `Refused` where the server refuses, and `Unreachable` where it cannot be reached.

    Args:
        url: `unix:///PATH`, `http://…` or `https://…`; by default what `default_fleet_url()` says.
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
        super().__init__(url or default_fleet_url(), token, timeout, transport)

    # The server

    def get_index(self) -> FleetIndex:
        """Say who asks, and what the caller may do."""
        return cast("FleetIndex", self._get("/"))

    def get_readiness(self) -> FleetReadiness:
        """Say whether etcd answers, and who leads."""
        try:
            answer = self._get("/readyz")
        except Refused as error:
            if error.status != 503:
                raise
            return FleetReadiness(ready=False, reason=error.detail, leader=None, warnings=[])
        return FleetReadiness(ready=True, reason=None, leader=answer["leader"], warnings=answer["warnings"])

    def get_version(self) -> FleetVersion:
        """Return what is running."""
        return cast("FleetVersion", self._get("/version"))

    def get_metrics(self) -> str:
        """Return the metrics, in the text format of Prometheus."""
        return self._send("GET", "/metrics").text

    # Tables

    def list_tables(self) -> list[FleetTableSummary]:
        """Return all tables, without what they hold."""
        return cast("list[FleetTableSummary]", self._get("/fleet/tables")["tables"])

    def get_table(self, table: str) -> FleetTable:
        """Return a table: its newest revision."""
        return cast("FleetTable", self._get(path_of("fleet", "tables", table)))

    def put_table(
        self, table: str, body: Mapping[str, Any], **options: Unpack[TaggedFleetOptions]
    ) -> StartedRollout | TableDryRun:
        """Say what a table is to hold, and start its rollout.

        Args:
            table: Its name: that of the map on the nodes.
            body: `selector`, `range`, `programs` or `runs`, and `strategy`: see PutFleetTable in the OpenAPI document.
            **options: See `TaggedFleetOptions`.

        Returns:
            With `dry_run`, what the nodes say to it.
        """
        answer = self._change_fleet("PUT", path_of("fleet", "tables", table), body, options)
        return cast("StartedRollout | TableDryRun", answer.json())

    def delete_table(self, table: str, **options: Unpack[TaggedFleetOptions]) -> None:
        """Take a table out of the fleet. Nodes keep what they hold."""
        self._change_fleet("DELETE", path_of("fleet", "tables", table), None, options)

    def list_revisions(self, table: str, *, before: int | None = None, limit: int = 10) -> TableRevisions:
        """Return a page of the revisions of a table, the newest first."""
        query = {"before": before, "limit": limit}
        return cast("TableRevisions", self._get(path_of("fleet", "tables", table, "revisions"), query))

    # Rollouts

    def start_rollout(
        self, table: str, revision: int, **options: Unpack[TaggedFleetOptions]
    ) -> StartedRollout | TableDryRun:
        """Bring a revision to its nodes again, or go back to it."""
        body = {"table": table, "revision": revision}
        return cast("StartedRollout | TableDryRun", self._change_fleet("POST", "/fleet/rollouts", body, options).json())

    def list_rollouts(
        self, *, table: str | None = None, phase: str | None = None, limit: int = 100
    ) -> list[RolloutSummary]:
        """Return rollouts, the newest first."""
        query = {"table": table, "phase": phase, "limit": limit}
        return cast("list[RolloutSummary]", self._get("/fleet/rollouts", query)["rollouts"])

    def get_rollout(self, rollout: str) -> FleetRollout:
        """Return a rollout, with how far its nodes are."""
        return cast("FleetRollout", self._get(path_of("fleet", "rollouts", rollout)))

    def list_rollout_nodes(
        self, rollout: str, *, state: str | None = None, after: str | None = None, limit: int = 1000
    ) -> RolloutNodes:
        """Return a page of the nodes of a rollout, in the order of their turns."""
        query = {"state": state, "after": after, "limit": limit}
        return cast("RolloutNodes", self._get(path_of("fleet", "rollouts", rollout, "nodes"), query))

    def pause_rollout(self, rollout: str, **options: Unpack[FleetOptions]) -> FleetRollout:
        """Open no more nodes."""
        return self._move(rollout, "pause", options)

    def resume_rollout(self, rollout: str, **options: Unpack[FleetOptions]) -> FleetRollout:
        """Go on with a rollout that is paused or halted."""
        return self._move(rollout, "resume", options)

    def abort_rollout(self, rollout: str, **options: Unpack[FleetOptions]) -> FleetRollout:
        """Set all nodes back, at once."""
        return self._move(rollout, "abort", options)

    # Nodes

    def list_nodes(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> FleetNodes:
        """Return a page of the nodes, by name."""
        label = ",".join(f"{name}={value}" for name, value in (labels or {}).items()) or None
        query = {"label": label, "state": state, "after": after, "limit": limit}
        return cast("FleetNodes", self._get("/fleet/nodes", query))

    def get_node(self, node: str) -> FleetNode:
        """Return a node."""
        return cast("FleetNode", self._get(path_of("fleet", "nodes", node)))

    def put_node(
        self, node: str, labels: Mapping[str, str], user: str | None = None, **options: Unpack[TaggedFleetOptions]
    ) -> FleetNode:
        """Add a node, or change its labels.

        Args:
            node: Its name.
            labels: What selectors match.
            user: Its user in etcd: the CommonName of its certificate. By default the name.
            **options: See `TaggedFleetOptions`.
        """
        body = {"labels": dict(labels)} | ({} if user is None else {"user": user})
        return cast("FleetNode", self._change_fleet("PUT", path_of("fleet", "nodes", node), body, options).json())

    def delete_node(self, node: str, **options: Unpack[TaggedFleetOptions]) -> None:
        """Remove a node with its user in etcd and all of its keys. The node keeps what it holds."""
        self._change_fleet("DELETE", path_of("fleet", "nodes", node), None, options)

    # What happens, and what was done

    def watch_events(
        self, *, table: str | None = None, after: int | None = None, on_open: Callable[[int], None] | None = None
    ) -> Generator[Event]:
        """Yield what happens, as it happens, until the server ends the stream.

        Args:
            table: Only of this table and its rollouts.
            after: Go on after the event with this id, without a gap. None: what is next.
            on_open: Called when the stream has begun, with the id of the event after which it goes on.

        Raises:
            Unreachable: The connection ended. Call it again with the id of the last event.
        """
        yield from self._watch("/fleet/events", {"table": table}, after, on_open)

    def list_history(
        self, *, table: str | None = None, node: str | None = None, by: str | None = None, limit: int = 100
    ) -> Sequence[FleetAction]:
        """Return what was done, the newest first."""
        query = {"table": table, "node": node, "by": by, "limit": limit}
        return cast("list[FleetAction]", self._get("/fleet/history", query)["actions"])

    def _move(self, rollout: str, step: str, options: FleetOptions) -> FleetRollout:
        path = path_of("fleet", "rollouts", rollout, step)
        return cast("FleetRollout", self._send("POST", path, dict(options)).json())

    def _change_fleet(
        self, method: str, path: str, body: Mapping[str, Any] | None, options: TaggedFleetOptions
    ) -> httpx.Response:
        query = dict(options)
        tags = {"If-Match": query.pop("if_match", None), "If-None-Match": query.pop("if_none_match", None)}
        headers = {name: str(value) for name, value in tags.items() if value is not None}
        return self._send(method, path, query, body, headers, _DRY_RUN_SECONDS)
