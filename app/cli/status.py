"""The command `jumptable status`: the whole node on one screen."""

import platform
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from app.agent import status_file
from app.cli.options import connects, outputs
from app.cli.output import MAX_ENTRIES_TOLD, Cell, ago, entries_text, entry_text, length, plural, say, show, table
from app.client import Client
from app.client.answers import CallerRights, Change, ChangedEntry, Drift, HeldMap, Program
from app.client.client import SOCKET

_MAX_ROWS: Final = 8  # of each table, so that all of it fits on a screen
_LAST_CHANGES: Final = 5


@click.command("status", epilog="Example: jumptable status || jumptable status -o json | jq .reasons")
@connects
@outputs("json", "yaml")
def status_command(client: Client, output: str | None) -> None:
    """Show the node on one screen. Exit 1: it is not ready."""
    version, readiness, caller = client.get_version(), client.get_readiness(), client.get_index()["caller"]
    maps, programs = client.list_maps(), client.list_programs(uses=0)
    waiting = client.list_changes(state="unconfirmed", order="desc", entries=MAX_ENTRIES_TOLD)["changes"]
    last = client.list_changes(order="desc", limit=_LAST_CHANGES, entries=MAX_ENTRIES_TOLD)["changes"]
    agent = status_file.read() if client.url.startswith("unix:") else None  # that of this machine
    answer: dict[str, Any] = {
        "url": client.url,
        "ready": readiness.ready,
        "reasons": readiness.reasons,
        "version": version,
        "caller": caller,
        "maps": maps,
        "programs": programs,
        "waiting": waiting,
        "changes": last,
        "fleet": agent,
    }

    def people() -> None:
        state = Cell("ready", "green") if readiness.ready else Cell("NOT READY", "red")
        node = platform.node() if client.url == f"unix://{SOCKET}" else client.url  # another may be forwarded by ssh
        kernel = (
            f"Linux {version['kernel_release']}" if version["kernel"] == "linux" else "a kernel in memory: not real"
        )
        say(state, f"   jumptable {version['version']} on {node}, {kernel}", *_since(version))
        for reason in readiness.reasons:
            say(Cell(f"  {reason}", "red"))
        _show_bounds(caller)
        if agent is not None:
            _show_fleet(agent)
        _show_maps(maps)
        _show_waiting(waiting)
        _show_programs(programs)
        _show_changes(last)

    show(output, answer, list, people)
    sys.exit(0 if readiness.ready else 1)


def _since(version: Mapping[str, Any]) -> list[str | Cell]:
    """Return since when it runs, and whether its keeper does, where the service tells that."""
    uptime, keeper = version.get("uptime_seconds"), version.get("keeper")
    since: list[str | Cell] = [] if uptime is None else [f", up {length(uptime)}"]
    return since if keeper is None else [*since, ", keeper ", Cell(keeper, "green" if keeper == "running" else "red")]


def _show_bounds(caller: CallerRights | None) -> None:
    """Show what of the node the caller sees, where that is not all of it."""
    if caller is None:
        return
    bounds = [
        f"{what} {', '.join(bound)}"
        for what, bound in (("maps", caller["maps"]), ("entries", caller["entries"]))
        if bound is not None
    ]
    if bounds:
        say(f"  {caller['actor']} sees only the {' and the '.join(bounds)}")


def _show_fleet(agent: Mapping[str, Any]) -> None:
    """Show what the node's agent tells of the fleet."""
    if not agent["running"]:
        say(Cell("  fleet: the agent does not run, or hangs: systemctl status jumptable-agent", "red"))
        return
    state = Cell("connected", "green") if agent["connected"] else Cell(f"NOT CONNECTED: {agent['error']}", "red")
    say(f"  fleet: node {agent['node']}, ", state, f", for {length(max(time.time() - agent['since'], 0))}")
    for warning in agent["warnings"]:
        say(Cell(f"  fleet: {warning}", "yellow"))
    if not agent["tables"]:
        return
    click.echo()
    rows = [_fleet_row(name, status, agent["troubles"]) for name, status in agent["tables"].items()]
    table(("of the fleet", "revision", "state"), rows[:_MAX_ROWS])
    _more(len(rows), "jumptable status -o json")


def _fleet_row(name: str, status: Mapping[str, Any], troubles: Mapping[str, str]) -> tuple[str | Cell, ...]:
    """Return the name, the revision that the node holds, and how it is, of a table that the fleet desires."""
    revision = str(status.get("revision") or "none")
    if name in troubles:
        return (Cell(name, "bold"), revision, Cell(f"{status['state']}, and stuck: {troubles[name]}", "red"))
    style = {"applied": "green", "unconfirmed": "yellow"}.get(status["state"], "red")
    detail = status.get("detail")
    return (Cell(name, "bold"), revision, Cell(status["state"] + (f": {detail}" if detail else ""), style))


def _show_maps(maps: list[HeldMap]) -> None:
    click.echo()
    if not maps:
        say("No map is held: `jumptable hold map NAME --pinned PATH` holds one.")
        return
    table(("map", "entries", "drift", "waiting", "state"), [map_row(each) for each in maps[:_MAX_ROWS]])
    _more(len(maps), "jumptable maps")
    drifted = [(held["name"], drift_text(each)) for held in maps for each in held["drift"]]
    for name, text in drifted[:_MAX_ROWS]:
        say(Cell(f"  {name} {text}", "red"), f"  (jumptable reconcile {name})")
    _more(len(drifted), "jumptable maps NAME")


def drift_text(drift: Drift) -> str:
    """Return an entry that has drifted, on one line: what is journalled, and what is there."""
    entry: ChangedEntry = {"index": drift["index"], "before": drift["journal"], "after": drift["kernel"]}
    return f"{entry_text(entry)}, by another tool"


def map_row(held: HeldMap) -> tuple[str | Cell, ...]:
    """Return name, fill, drift, what waits, and the state of a map."""
    drift, waiting = len(held["drift"]), sum(len(each["entries"]) for each in held["waiting"])
    fill = "" if held["used"] is None else f"{held['used']:,} of {held['max_entries']:,}"
    return (
        Cell(held["name"], "bold"),
        fill,
        Cell(str(drift), "red" if drift else "dim"),
        Cell(str(waiting), "yellow" if waiting else "dim"),
        state_cell(held),
    )


def state_cell(held: HeldMap | Program) -> Cell:
    """Return the state of what is held, with what is wrong. Warnings are counted; in full they are shown one by one."""
    if held["state"] == "unavailable":
        return Cell(f"unavailable: {held['reason']}", "red")
    if held["warnings"]:
        return Cell(f"held, {plural(len(held['warnings']), 'warning')}", "yellow")
    return Cell("held", "green")


def _show_waiting(waiting: list[Change]) -> None:
    if not waiting:
        return
    click.echo()
    say(Cell("Undone unless confirmed:", "yellow"))
    for change in waiting[:_MAX_ROWS]:
        say(
            f"  {change['id']}  {change['map']}  {entries_text(change['entries'], change['entry_count'])}  ",
            Cell(ago(change["confirm_by"]), "yellow"),
            f"  (jumptable confirm {change['id']})",
        )
    _more(len(waiting), "jumptable log --state unconfirmed")


def _show_programs(programs: list[Program]) -> None:
    click.echo()
    wrong = [each for each in programs if each["state"] == "unavailable"]
    unused = sum(not each["use_count"] for each in programs)
    say(f"{plural(len(programs), 'program')} held, {unused} of them in no entry")
    for each in wrong[:_MAX_ROWS]:
        say(f"  {each['name']}  ", state_cell(each))
    _more(len(wrong), "jumptable programs")


def _show_changes(last: list[Change]) -> None:
    if not last:
        return
    click.echo()
    table(("last changes", "when", "who", "map", "what"), [change_row(each) for each in last])


def change_row(change: Change) -> tuple[str | Cell, ...]:
    """Return a change in a row: id, when, who, map, and what."""
    return (str(change["id"]), ago(change["at"]), change["actor"], change["map"], what_text(change))


def what_text(change: Change) -> str:
    """Return what a change did, with its state where that is no matter of course, and its note."""
    parts = [f"{change['kind']} {entries_text(change['entries'], change['entry_count'])}".strip()]
    if change["reverts"] is not None:
        parts.append(f"undoes {change['reverts']}")
    if change["state"] == "unconfirmed":
        parts.append(f"UNCONFIRMED, undone {ago(change['confirm_by'])}")
    elif change["state"] != "applied":
        parts.append(change["state"])
    if change["note"]:
        parts.append(f"“{change['note']}”")
    return "; ".join(parts)


def _more(number: int, command: str) -> None:
    if number > _MAX_ROWS:
        say(Cell(f"… and {number - _MAX_ROWS} more: {command}", "dim"))
