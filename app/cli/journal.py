"""The commands `jumptable log`, `confirm`, `revert` and `reconcile`: changes that were made."""

import time
from typing import Any, Final, Literal, get_args

import click

from app.cli.confirmation import settle
from app.cli.options import CHANGE, CONFIRM_WITHIN, DRY_RUN, INDEX, MAP, MOMENT, NOTE, connects, outputs
from app.cli.output import (
    MAX_ENTRIES_TOLD,
    Cell,
    ago,
    entries_text,
    plural,
    say,
    show,
    show_difference,
    show_warnings,
    table,
)
from app.cli.status import change_row
from app.client import Client
from app.client.answers import Applied, Change, Kind, State

_PAGE: Final = 1000  # the most that the service answers at once


@click.command("log", epilog="Example: jumptable log --map jump_table --entry 3 --since 2d")
@click.argument("id_", metavar="[ID]", type=CHANGE, required=False)
@click.option("--map", "map_", type=MAP, metavar="MAP", help="Only of this map.")
@click.option("--entry", type=INDEX, metavar="INDEX", help="Only those that wrote this entry.")
@click.option("--actor", metavar="WHO", help="Only by this actor, such as token:deploy.")
@click.option("--kind", type=click.Choice(get_args(Kind)), metavar="KIND", help="Only set, clear, replace, revert, …")
@click.option("--state", type=click.Choice(get_args(State)), metavar="STATE", help="Only unconfirmed, reverted, …")
@click.option("--since", type=MOMENT, metavar="TIME", help="Not older: 2h, 3d, 2026-11-22T15:04:05Z.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Older than that.")
@click.option("-n", "--number", type=click.IntRange(1), default=20, metavar="N", show_default=True, help="How many.")
@connects
@outputs("json", "yaml", "name")
def log_command(client: Client, id_: int | None, number: int, output: str | None, **filters: Any) -> None:
    """Show who changed what, when and why, newest first; or one change in full."""
    if id_ is not None:
        change = client.get_change(id_)
        show(output, change, lambda: [id_], lambda: _show_change(change))
        return
    changes = _newest(client, number, filters, None if output in {"json", "yaml"} else MAX_ENTRIES_TOLD)

    def people() -> None:
        if changes:
            table(("id", "when", "who", "map", "what"), [change_row(each) for each in changes])
        else:
            say("No change is in the journal." if not any(filters.values()) else "No change is like that.")

    show(output, {"changes": changes}, lambda: [each["id"] for each in changes], people)


def _newest(client: Client, number: int, filters: dict[str, Any], entries: int | None) -> list[Change]:
    """Return so many of the newest changes, from as many pages as they take. `entries`: of each, None for all."""
    changes: list[Change] = []
    before: int | None = None
    query = {"map": filters.pop("map_"), "index": filters.pop("entry"), **filters}
    while len(changes) < number:
        limit = min(number - len(changes), _PAGE)
        page = client.list_changes(**query, order="desc", before=before, limit=limit, entries=entries)
        changes += page["changes"]
        before = page["next"]
        if before is None:
            break
    return changes


def _show_change(change: Change) -> None:
    facts = {
        "change": f"{change['id']}, {change['state']}",
        "map": change["map"],
        "kind": change["kind"] + ("" if change["reverts"] is None else f", undoes {change['reverts']}"),
        "when": f"{ago(change['at'])} ({change['at']})",
        "who": change["actor"],
        "why": change["note"] or "",
        "request": change["request_id"],
    }
    if change["confirm_by"] is not None:
        facts["confirm"] = f"until {change['confirm_by']}"
    if change["confirmed_by"] is not None:
        facts["confirm"] = f"by {change['confirmed_by']}, {ago(change['confirmed_at'])}"
    for name, value in facts.items():
        say(Cell(f"{name:8} ", "bold"), value)
    show_difference(change["entries"])


@click.command("confirm", epilog="Example: jumptable confirm 17")
@click.argument("id_", metavar="ID", type=CHANGE)
@connects
@outputs("json", "yaml", "name")
def confirm_command(client: Client, id_: int, output: str | None) -> None:
    """Let a change stand that waits for its confirmation."""
    change = client.confirm_change(id_)
    show(output, change, lambda: [id_], lambda: say(f"Change {id_} of {change['map']} stands."))


@click.command("revert", epilog="Example: jumptable revert 17 --dry-run && jumptable revert 17 --note 'ticket 4711'")
@click.argument("id_", metavar="ID", type=CHANGE)
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@click.option("--force", is_flag=True, help="Also if a later change wrote one of the entries.")
@connects
@outputs("json", "yaml", "name")
def revert_command(client: Client, id_: int, output: str | None, **options: Any) -> None:
    """Undo a change, if its entries still hold what it put there.

    The undo is a change as well, and can be reverted.
    """
    made_at = time.monotonic()
    applied = client.revert_change(id_, **options)
    _finish(client, applied, output, f"change {id_} undone", made_at=made_at, **options)


@click.command("reconcile", epilog="Example: jumptable reconcile jump_table --to journal --note 'bpftool by mistake'")
@click.argument("map_", metavar="MAP", type=MAP)
@click.option(
    "--to",
    type=click.Choice(["journal", "kernel"]),
    required=True,
    help="journal: put back what is journalled. kernel: accept what is there.",
)
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@click.option("--force", is_flag=True, help="Also if a pin leads to another object by now.")
@connects
@outputs("json", "yaml", "name")
def reconcile_command(
    client: Client, map_: str, to: Literal["journal", "kernel"], output: str | None, **options: Any
) -> None:
    """End the drift of a map: entries that another tool has written."""
    made_at = time.monotonic()
    applied = client.reconcile_map(map_, to, **options)
    done = f"{map_} is as the journal says" if to == "journal" else f"what {map_} holds is journalled"
    _finish(client, applied, output, done, made_at=made_at, **options)


def _finish(client: Client, applied: Applied, output: str | None, done: str, *, made_at: float, **options: Any) -> None:
    """Show what was done, and ask whether it is to stay where that was asked for."""
    change = applied["change"]

    def people() -> None:
        entries = applied.get("entries", [])
        if options["dry_run"] and entries:
            say(f"would change {plural(len(entries), 'entry')}; nothing was written")
            show_difference(entries)
            show_warnings(applied)
        elif change is None:
            say("nothing had to be changed")
        else:
            say(f"change {change['id']}: {done}: {entries_text(change['entries'])}")

    show(output, applied, lambda: [] if change is None else [change["id"]], people)
    if change is not None and output is None:
        settle(client, [change["id"]], options["confirm_within"], made_at)
