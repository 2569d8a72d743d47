"""The command `jumptable fleet nodes`: the nodes of the fleet."""

from typing import Final

import click

from app.cli.fleet_options import LABELS, NODE, connects, labels_text
from app.cli.fleet_status import trouble
from app.cli.options import outputs
from app.cli.output import Cell, ago, say, show, table
from app.client.fleet import FleetClient
from app.client.fleet_answers import FleetNode

_STYLES: Final = {"ready": "green", "changing": "cyan", "away": "yellow", "unready": "red", "failed": "red"}


@click.command("nodes", epilog="Example: jumptable fleet nodes -l role=edge --state failed")
@click.argument("name", metavar="[NODE]", type=NODE, required=False)
@LABELS
@click.option("--state", type=click.Choice(list(_STYLES)), metavar="STATE", help=f"Only {', '.join(_STYLES)}.")
@connects
@outputs("json", "yaml", "name")
def nodes_command(
    client: FleetClient, name: str | None, labels: tuple[tuple[str, str], ...], state: str | None, output: str | None
) -> None:
    """Show the nodes with their labels and how they are, or one in full."""
    if name is not None:
        node = client.get_node(name)
        show(output, node, lambda: [name], lambda: _show_node(node))
        return
    nodes = _all(client, dict(labels), state)

    def people() -> None:
        if not nodes:
            say("No node is like that." if labels or state else "No node is in the fleet: jumptable fleet node add")
            return
        rows = [
            (each["node"], Cell(each["state"], _STYLES[each["state"]]), labels_text(each["labels"]), _tables(each),
             trouble(each))
            for each in nodes
        ]  # fmt: skip
        table(("node", "state", "labels", "tables", "why"), rows)

    show(output, {"nodes": nodes}, lambda: [each["node"] for each in nodes], people)


def _all(client: FleetClient, labels: dict[str, str], state: str | None) -> list[FleetNode]:
    """Return nodes from as many pages as they take."""
    nodes: list[FleetNode] = []
    after: str | None = None
    while True:
        page = client.list_nodes(labels=labels, state=state, after=after)
        nodes += page["nodes"]
        after = page["next"]
        if after is None:
            return nodes


def _tables(node: FleetNode) -> str:
    return ", ".join(f"{each['table']}:{each['revision'] or '?'}" for each in node["tables"])


def _show_node(node: FleetNode) -> None:
    facts, since = node["facts"], node["since"]
    lines: dict[str, str | Cell] = {
        "node": node["node"],
        "state": Cell(node["state"], _STYLES[node["state"]]),
        "why": trouble(node),
        "labels": labels_text(node["labels"]),
        "user": node["user"],
        "agent": "not connected" if since is None else f"connected {ago(since)}",
        "added": f"{ago(node['at'])} by {node['by']}",
    }
    if facts is not None:
        lines["runs"] = f"jumptable {facts['version']} on {facts['kernel']}"
        opened = [f"{each['name']} {', '.join(each['ranges'] or ['all'])}" for each in facts["maps"]]
        lines["open"] = "; ".join(opened) or "nothing is open to the fleet"
    for name, value in lines.items():
        say(Cell(f"{name:8} ", "bold"), value)
    for each in node["tables"]:
        detail = f": {each['detail'] or each['code']}" if each["detail"] or each["code"] else ""
        say(
            f"  {each['table']}: {each['state'] or 'no answer yet'}, holds revision {each['revision'] or '?'}, "
            f"is to hold {each['wanted'] or 'what it had'}{detail}"
        )
