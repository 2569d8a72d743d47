"""The commands `jumptable set` and `jumptable clear`: one entry."""

import time
from typing import Any

import click

from app.cli.confirmation import settle
from app.cli.options import CONFIRM_WITHIN, DRY_RUN, FORCE, INDEX, MAP, NOTE, REFERENCE, connects, outputs
from app.cli.output import entries_text, say, show
from app.client import Client
from app.client.answers import ChangedEntry, ProgramReference, Written


@click.command("set", epilog="Example: jumptable set jump_table 3 drop --confirm-within 60s")
@click.argument("map_", metavar="MAP", type=MAP)
@click.argument("index", type=INDEX)
@click.argument("program", type=REFERENCE)
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@FORCE
@connects
@outputs("json", "yaml", "name")
def set_command(
    client: Client,
    map_: str,
    index: int,
    program: str | ProgramReference,
    output: str | None,
    **options: Any,
) -> None:
    """Point an entry to a program.

    PROGRAM is the name of a held one, id:812, or the path of its pin. Packets see the old program or the new one,
    never an empty entry.
    """
    made_at = time.monotonic()
    written = client.set_entry(map_, index, program, **options)
    dry = None if written.entry is None else written.entry.get("entries")
    _show_written(client, map_, written, dry, output, as_it_is=f"{map_} {index} points to it already")
    if written.change is not None and output is None:
        settle(client, [written.change], options["confirm_within"], made_at)


@click.command("clear", epilog="Example: jumptable clear jump_table 3 --note 'ticket 4711'")
@click.argument("map_", metavar="MAP", type=MAP)
@click.argument("index", type=INDEX)
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@FORCE
@connects
@outputs("json", "yaml", "name")
def clear_command(client: Client, map_: str, index: int, output: str | None, **options: Any) -> None:
    """Clear an entry: jumps to it fall through.

    To exchange a program, use set: it leaves no gap.
    """
    made_at = time.monotonic()
    if options["dry_run"]:  # of a PATCH, as a DELETE does not tell what it would clear
        written, dry = Written(None, None), client.update_entries(map_, {index: None}, **options).get("entries")
    else:
        written, dry = client.clear_entry(map_, index, allow_missing=True, **options), None
    _show_written(client, map_, written, dry, output, as_it_is=f"{map_} {index} is empty already")
    if written.change is not None and output is None:
        settle(client, [written.change], options["confirm_within"], made_at)


def _show_written(
    client: Client, map_: str, written: Written, dry: list[ChangedEntry] | None, output: str | None, *, as_it_is: str
) -> None:
    change = None if written.change is None else client.get_change(written.change)

    def people() -> None:
        if change is not None:
            say(f"change {change['id']}: {map_} {entries_text(change['entries'])}")
        elif dry:
            say(f"would change {map_} {entries_text(dry)}; nothing was written")
        else:
            say(f"{as_it_is}; nothing was written")

    show(output, {"change": change, "entries": dry or []}, lambda: [] if change is None else [change["id"]], people)
