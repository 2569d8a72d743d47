"""The command `jumptable graph`: which programs jump where."""

import click

from app.cli.options import MAP, PROGRAM, connects, outputs
from app.cli.output import as_json
from app.client import Client


@click.command("graph", epilog="Example: jumptable graph -o dot | dot -Tsvg > graph.svg")
@click.option("--map", "map_", type=MAP, metavar="MAP", help="Only what is connected with this map.")
@click.option("--program", type=PROGRAM, metavar="NAME", help="Only what is connected with this program.")
@connects
@outputs("json", "dot", "mermaid")
def graph_command(client: Client, map_: str | None, program: str | None, output: str | None) -> None:
    """Show which programs jump into which entries, from what is attached onwards.

    By default it is Mermaid, which can be read as it is, and pasted into Markdown.
    """
    if output == "json":
        click.echo(as_json(client.get_graph(map=map_, program=program), indent=2))
    else:
        click.echo(client.draw_graph("dot" if output == "dot" else "mermaid", map=map_, program=program).rstrip("\n"))
