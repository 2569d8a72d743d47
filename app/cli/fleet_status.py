"""The commands `jumptable fleet status` and `history`, and those that stop a rollout and let it go on."""

import sys
from typing import Any, Final

import click

from app.cli.fleet_options import NODE, NOTE, ROLLOUT, TABLE, connects, labels_text
from app.cli.options import Type, outputs
from app.cli.output import Cell, ago, plural, say, show, table
from app.client import Refused
from app.client.fleet import FleetClient, FleetReadiness
from app.client.fleet_answers import FleetAction, FleetNode, FleetRollout, FleetTable, FleetTableSummary

_STYLES: Final = {
    "complete": "green",
    "progressing": "cyan",
    "paused": "yellow",
    "halted": "red",
    "rolling_back": "red",
    "rolled_back": "red",
    "rollback_failed": "red",
}
_GOOD: Final = frozenset({"ready", "changing"})
_MOST_BAD: Final = 10


class _TableOrRollout(Type):
    """The name of a table, or the id of a rollout."""

    name = "table"

    def read(self, text: str) -> str:
        try:
            return str(ROLLOUT.read(text))
        except ValueError:
            return str(TABLE.read(text))


@click.command("status", epilog="Example: jumptable fleet status; jumptable fleet status jump_table-3")
@click.argument("what", metavar="[TABLE|ROLLOUT]", type=_TableOrRollout(), required=False)
@connects
@outputs("json", "yaml", "name")
def status_command(client: FleetClient, what: str | None, output: str | None) -> None:
    """Show the fleet on one screen; or one table in full; or one rollout with its waves. Exit 1: not all is well.

    What it prints of a table with -o yaml can be changed, and applied.
    """
    if what is None:
        _show_fleet(client, output)
        return
    try:
        rollout = client.get_rollout(what) if ROLLOUT.is_one(what) else None
    except Refused as error:
        if error.code != "rollout-unknown":
            raise
        rollout = None  # the name of a table may look like the id of a rollout
    if rollout is not None:
        show(output, rollout, lambda: [rollout["id"]], lambda: _show_rollout(rollout))
        sys.exit(0 if rollout["phase"] in {"complete", "progressing", "paused"} else 1)
    found = client.get_table(what)
    show(output, found, lambda: [what], lambda: _show_table(found))


def _show_fleet(client: FleetClient, output: str | None) -> None:
    readiness = client.get_readiness()
    tables: list[FleetTableSummary] = []
    nodes: list[FleetNode] = []
    rollouts = {}
    if readiness["ready"]:
        tables, nodes = client.list_tables(), client.list_nodes(limit=10_000)["nodes"]
        rollouts = {each["table"]: each for each in reversed(client.list_rollouts())}
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node["state"]] = counts.get(node["state"], 0) + 1
    answer = {"readiness": readiness, "tables": tables, "rollouts": list(rollouts.values()), "nodes": counts}
    bad = [node for node in nodes if node["state"] not in _GOOD]

    def people() -> None:
        _show_readiness(readiness, client)
        listed = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"
        say(f"nodes   {listed}")
        if tables:
            rows = []
            for each in tables:
                last = rollouts.get(each["table"])
                phase = "" if last is None else last["phase"]
                since = "" if last is None else ago(last["since"])
                reason = "" if last is None else last["reason"]
                shown = Cell(phase.replace("_", " "), _STYLES.get(phase, ""))
                rows.append(
                    (each["table"], str(each["revision"]), labels_text(each["selector"]["match"]), shown, since, reason)
                )
            table(("table", "revision", "nodes with", "rollout", "since", "why"), rows)
        _show_bad(bad)

    show(output, answer, lambda: [each["table"] for each in tables], people)
    is_well = (
        readiness["ready"]
        and not bad
        and all(each["phase"] in {"complete", "progressing", "paused"} for each in rollouts.values())
    )
    sys.exit(0 if is_well else 1)


def _show_readiness(readiness: FleetReadiness, client: FleetClient) -> None:
    if not readiness["ready"]:
        say(Cell("etcd is away", "red"), f"   {client.url}")
        say(f"  {readiness['reason']}")
        return
    leader = readiness["leader"]
    who = Cell(f"{leader} leads", "dim") if leader else Cell("no controller leads: rollouts do not go on", "red")
    say(Cell("ready", "green"), f"   {client.url}   ", who)
    for warning in readiness["warnings"]:
        say(Cell(f"  warning: {warning}", "yellow"))


def _show_bad(nodes: list[FleetNode]) -> None:
    for node in nodes[:_MOST_BAD]:
        say(f"  {node['node']}: ", Cell(f"{node['state']}: {trouble(node)}", "red"))
    if len(nodes) > _MOST_BAD:
        say(f"  … and {len(nodes) - _MOST_BAD:,} more; `jumptable fleet nodes` lists them")


def trouble(node: FleetNode) -> str:
    """Return what is wrong with a node, in a sentence."""
    if node["state"] == "away":
        return "its agent is not connected"
    facts = node["facts"]
    if facts is None:
        return "its agent has not said anything yet"
    if not facts["ready"]:
        return facts["detail"] or "its service is not ready"
    bad = [each for each in node["tables"] if each["state"] in {"refused", "unhealthy", "reverted", "drifted"}]
    return "; ".join(f"{each['table']} {each['state']}: {each['detail'] or each['code'] or ''}" for each in bad)


def _show_table(found: FleetTable) -> None:
    facts = {
        "table": f"{found['table']}, revision {found['revision']}",
        "nodes": labels_text(found["selector"]["match"]) or "all",
        "range": found["range"],
        "who": found["by"],
        "when": f"{ago(found['at'])} ({found['at']})",
        "why": found["note"],
        "rollout": found["rollout"] or "none that has not ended",
    }
    for name, value in facts.items():
        say(Cell(f"{name:8} ", "bold"), value)
    for run in found["runs"]:
        where = str(run["first"]) if run["first"] == run["last"] else f"{run['first']}-{run['last']}"
        program = run["program"]
        name = "empty" if program is None else program["name"]
        say(f"  {where:>11}  {name}")


def _show_rollout(rollout: FleetRollout) -> None:
    phase = rollout["phase"]
    since = ago(rollout["since"])
    say(
        Cell(rollout["id"], "bold"),
        "  ",
        Cell(phase.replace("_", " "), _STYLES[phase]),
        f"  {since}  {rollout['reason']}",
    )
    for number, wave in enumerate(rollout["waves"]):
        states = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in wave["states"].items())
        mark = "→" if number == rollout["wave"] and phase == "progressing" else " "
        say(f"{mark} wave {number + 1}  {plural(wave['size'], 'node')}: {states}")
    if rollout["away"]:
        say(Cell(f"  {plural(rollout['away'], 'node')} away", "yellow"))
    for failure in rollout["failures"]:
        say(f"  {failure['node']}: ", Cell(f"{failure['state']}: {failure['detail'] or failure['code'] or ''}", "red"))
    for each in rollout["history"]:
        say(
            Cell(
                f"  {ago(each['at']):>12}  {each['by']}: {each['phase'].replace('_', ' ')}, wave {each['wave'] + 1}",
                "dim",
            )
        )


@click.command("history", epilog="Example: jumptable fleet history --table jump_table -n 50")
@click.option("--table", "table_", type=TABLE, metavar="TABLE", help="Only of this table.")
@click.option("--node", type=NODE, metavar="NODE", help="Only of this node.")
@click.option("--by", metavar="WHO", help="Only by this actor, such as token:alice.")
@click.option(
    "-n", "--number", type=click.IntRange(1, 10_000), default=20, metavar="N", show_default=True, help="How many."
)
@connects
@outputs("json", "yaml")
def history_command(
    client: FleetClient, table_: str | None, node: str | None, by: str | None, number: int, output: str | None
) -> None:
    """Show who did what, newest first: rollouts, what they came to and why, and changes of nodes."""
    actions = client.list_history(table=table_, node=node, by=by, limit=number)

    def people() -> None:
        if not actions:
            say("Nothing was done.")
            return
        table(
            ("when", "who", "what", "why"),
            [(ago(each["at"]), each["by"], _what(each), each["note"]) for each in actions],
        )

    show(output, {"actions": actions}, list, people)


def _what(action: FleetAction) -> str:
    match action["what"]:
        case "rollout":
            return f"{action['rollout']} {str(action['phase']).replace('_', ' ')}, wave {(action['wave'] or 0) + 1}"
        case "node":
            return f"node {action['node']}"
        case "node_deleted":
            return f"node {action['node']} removed"
        case _:
            return f"table {action['table']} removed"


def _moves(name: str, done: str, help_text: str, example: str) -> click.Command:
    """Return a command that moves a rollout."""

    @click.command(name, epilog=f"Example: jumptable fleet {name} {example}", help=help_text)
    @click.argument("rollout", metavar="ROLLOUT", type=ROLLOUT)
    @NOTE
    @connects
    @outputs("json", "yaml", "name")
    def command(client: FleetClient, rollout: str, output: str | None, **options: Any) -> None:
        found = getattr(client, f"{name}_rollout")(rollout, **options)
        show(output, found, lambda: [rollout], lambda: say(f"{rollout} {done}"))

    return command


pause_command: Final = _moves(
    "pause",
    "is paused: no more nodes get the table",
    "Open no more nodes. Those that have the table keep it.",
    "jump_table-3",
)
resume_command: Final = _moves("resume", "goes on", "Go on with a rollout that is paused or halted.", "jump_table-3")
abort_command: Final = _moves(
    "abort",
    "goes back: all nodes get what they had, at once",
    "Set all nodes that have the table back to what they had, at once. An aborted rollout cannot go on.",
    "jump_table-3 --note 'ticket 4711'",
)
