"""The commands `jumptable maps` and `jumptable get`: what is held, and what its entries point to."""

import click

from app.cli.options import INDEX, MAP, connects, outputs
from app.cli.output import Cell, ago, plural, program_text, say, show, table
from app.cli.status import drift_text, map_row
from app.client import Client
from app.client.answers import Entry, HeldMap


@click.command("maps", epilog="Example: for map in $(jumptable maps -o name); do jumptable get $map; done")
@click.argument("name", type=MAP, required=False)
@connects
@outputs("json", "yaml", "name")
def maps_command(client: Client, name: str | None, output: str | None) -> None:
    """List the held maps, or show one in full."""
    if name is not None:
        held = client.get_map(name)
        show(output, held, lambda: [name], lambda: _show_map(held))
        return
    maps = client.list_maps()

    def people() -> None:
        if not maps:
            say("No map is held: `jumptable hold map NAME --pinned PATH` holds one.")
            return
        rows = [(*map_row(each)[:1], _id(each["id"]), *map_row(each)[1:]) for each in maps]
        table(("map", "id", "entries", "drift", "waiting", "state"), rows)

    show(output, {"maps": maps}, lambda: [each["name"] for each in maps], people)


def _show_map(held: HeldMap) -> None:
    owner = held["owner"]
    facts = {
        "map": held["name"],
        "state": held["state"] if held["reason"] is None else f"{held['state']}: {held['reason']}",
        "entries": "" if held["used"] is None else f"{held['used']:,} of {held['max_entries']:,}",
        "takes": "any program, as it never had one" if owner is None else f"programs of type {owner['program_type']}",
        "id": f"{_id(held['id'])} ({held['kernel_name']})" if held["kernel_name"] else _id(held["id"]),
        "pins": ", ".join(held["pins"]) or "none",
        "memory": "" if held["memlock"] is None else f"{held['memlock']:,} bytes",
    }
    for name, value in facts.items():
        say(Cell(f"{name:8} ", "bold"), value)
    for warning in held["warnings"]:
        say(Cell(f"warning  {warning}", "yellow"))
    for waits in held["waiting"]:
        number, when = plural(len(waits["entries"]), "entry"), ago(waits["confirm_by"])
        say(Cell(f"waiting  change {waits['change']} of {number} is undone {when} unless it is confirmed", "yellow"))
    for drift in held["drift"]:
        say(Cell(f"drift    {drift_text(drift)}", "red"))


@click.command("get", epilog="Example: jumptable get jump_table -o yaml > table.yaml   (apply -f reads it)")
@click.argument("map_", metavar="MAP", type=MAP)
@click.argument("index", type=INDEX, required=False)
@connects
@outputs("json", "yaml", "name")
def get_command(client: Client, map_: str, index: int | None, output: str | None) -> None:
    """Show the entries of a map, or one of them.

    Only entries that point to a program are shown. With -o name these are their indexes.
    """
    if index is not None:
        entry = client.get_entry(map_, index)
        show(output, entry, lambda: [index], lambda: _show_entries([entry]))
        return
    entries = client.list_entries(map_)

    def people() -> None:
        if entries["entries"]:
            _show_entries(entries["entries"])
        else:
            say(f"All {entries['max_entries']:,} entries are empty.")

    show(output, entries, lambda: [each["index"] for each in entries["entries"]], people)


def _show_entries(entries: list[Entry]) -> None:
    rows: list[list[str | Cell]] = []
    for entry in entries:
        program, waiting = entry["program"], entry["waiting"]
        note = "" if waiting is None else f"undone {ago(waiting['confirm_by'])}: jumptable confirm {waiting['change']}"
        rows.append(
            [
                str(entry["index"]),
                Cell(program_text(program), "bold" if program["name"] else "yellow"),
                program["type"] or "",
                str(program["id"]),
                program["tag"] or "",
                ago(program["loaded_at"]),
                Cell(note, "yellow"),
            ]
        )
    table(("index", "program", "type", "id", "tag", "loaded", ""), rows)


def _id(id_: int | None) -> str:
    return "" if id_ is None else str(id_)
