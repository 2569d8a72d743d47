"""The commands `jumptable set` and `jumptable clear`: one entry."""

import time
from typing import Any

import click

from app.cli.confirmation import settle
from app.cli.options import CONFIRM_WITHIN, DRY_RUN, FORCE, INDEX, MAP, NOTE, REFERENCE, connects, outputs
from app.cli.output import entries_text, say, show, show_warnings
from app.client import Client
from app.client.answers import Applied, Entry, ProgramReference, Written


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
    written = client.set_entry(map_, index, program, **options, warnings=output is None)
    dry = written.entry if options["dry_run"] else None
    _finish(client, map_, written, dry, output, as_it_is=f"{map_} {index} points to it already")
    if output is None and dry is None:
        show_warnings(written.entry or {})
    if output is None and written.change is not None:
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
    written, dry = Written(None, None), None
    if options["dry_run"]:  # of a PATCH, as a DELETE does not tell what it would clear
        dry = client.update_entries(map_, {index: None}, **options)
    else:
        written = client.clear_entry(map_, index, allow_missing=True, **options)
    _finish(client, map_, written, dry, output, as_it_is=f"{map_} {index} is empty already")
    if output is None and written.change is not None:
        settle(client, [written.change], options["confirm_within"], made_at)


def _finish(
    client: Client, map_: str, written: Written, dry: Entry | Applied | None, output: str | None, *, as_it_is: str
) -> None:
    """Show what was done, or by the answer to a dry run, what would be."""
    change = None if written.change is None else client.get_change(written.change)
    entries = [] if dry is None else dry.get("entries", [])

    def people() -> None:
        if change is not None:
            say(f"change {change['id']}: {map_} {entries_text(change['entries'])}")
        elif entries:
            say(f"would change {map_} {entries_text(entries)}; nothing was written")
        else:
            say(f"{as_it_is}; nothing was written")
        show_warnings(dry or {})

    answer = {"change": change} if dry is None else dry
    show(output, answer, lambda: [] if change is None else [change["id"]], people)
