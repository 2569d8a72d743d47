"""The command `jumptable watch`: what happens, as it happens."""

import sys
import time
from datetime import datetime
from typing import Any, Final

import click

from app.cli.options import MAP, connects, outputs
from app.cli.output import Cell, as_json, entries_text, moment, plural, say
from app.cli.status import what_text
from app.client import Client, Unreachable
from app.client.answers import Change, Event

_RETRY_SECONDS: Final = 1.0
_MAX_RETRY_SECONDS: Final = 4.0


@click.command("watch", epilog="Example: jumptable watch --after 0 -o json | jq 'select(.type == \"drift\")'")
@click.option("--map", "map_", type=MAP, metavar="MAP", help="Only of this map.")
@click.option("--after", type=click.IntRange(0), metavar="ID", help="Go on after this event; 0: from the very first.")
@connects
@outputs("json")
def watch_command(client: Client, map_: str | None, after: int | None, output: str | None) -> None:
    """Follow changes, drift, and what is held, until Ctrl-C.

    When it is cut off it says so, comes back, and misses nothing. With -o json each event is one line.
    """
    pause, was_cut_off = _RETRY_SECONDS, False

    def opened(start: int) -> None:
        nonlocal after, pause, was_cut_off
        after, pause, was_cut_off = start, _RETRY_SECONDS, False
        if output is None:
            say(Cell(f"following {client.url}; Ctrl-C ends it", "dim"), err=True)

    while True:
        reason = "the service has ended the stream"
        try:
            for event in client.watch_events(map=map_, after=after, on_open=opened):
                _show(event, output)
                after = event.id
        except Unreachable as error:
            if after is None:  # it was not there in the first place
                raise
            reason = str(error)
        except KeyboardInterrupt:
            sys.exit(0)
        if not was_cut_off:
            say(Cell(f"cut off: {reason}; trying again", "yellow"), err=True)
        was_cut_off = True
        try:
            time.sleep(pause)
        except KeyboardInterrupt:
            sys.exit(0)
        pause = min(2 * pause, _MAX_RETRY_SECONDS)


def _show(event: Event, output: str | None) -> None:
    if output == "json":
        click.echo(as_json({"id": event.id, "type": event.type, "data": event.data}))
        return
    text, style = _text(event)
    say(Cell(_time(event), "dim"), f"  {event.id:>5}  ", Cell(f"{event.type:9}", style), f"  {text}")


def _time(event: Event) -> str:
    """Return when it happened. Only changes say so; of others it is when they are heard of."""
    at = moment(event.data["at"]).astimezone() if event.type == "change" else datetime.now().astimezone()
    return f"{at:%H:%M:%S}"


def _text(event: Event) -> tuple[str, str]:
    """Return what to say of an event, and in which colour."""
    data: dict[str, Any] = event.data
    if event.type in {"change", "confirmed", "expired"} and "entries" in data:
        return _change_text(event.type, data)
    if event.type == "drift":
        if not data["count"]:
            return f"{data['map']}: the kernel is as the journal says again", "green"
        shown = [{"index": e["index"], "before": e["journal"], "after": e["kernel"]} for e in data["drift"]]
        number = plural(data["count"], "entry")
        return f"{data['map']}: {number} not as journalled: {entries_text(shown)}", "red"  # type: ignore[arg-type]
    if event.type in {"map", "program"}:
        moved = f": {data['pinned']} leads to another object now" if data.get("happened") == "moved" else ""
        style = "yellow" if data.get("happened") == "moved" else ""
        return f"{data.get(event.type)} {data.get('happened')}{moved}", style
    return as_json(data), ""


def _change_text(type_: str, data: Any) -> tuple[str, str]:
    change: Change = data
    subject = f"{change['map']}  change {change['id']} by {change['actor']}"
    if type_ == "change":
        return f"{subject}: {what_text(change)}", "bold"
    if type_ == "confirmed":
        return f"{subject} stands: {change['confirmed_by']} confirmed it", "green"
    return f"{subject} was undone: nobody confirmed it", "yellow"
