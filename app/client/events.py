"""The stream of events (server-sent events, WHATWG HTML, 9.2)."""

import json
import re
from collections.abc import Callable, Generator, Iterable
from typing import Final

from app.client.answers import Event

_OPENED: Final = re.compile(r": after event (\d+)")


def events_of(parts: Iterable[str], on_open: Callable[[int], None] | None = None) -> Generator[Event]:
    """Yield the events of a stream.

    Args:
        parts: The text of the stream, as it comes.
        on_open: Called when the stream has begun, with the id after which it goes on. The service says it in a comment,
            which libraries for such streams drop. Without it a reader that is cut off before the first event would not
            know where to go on.
    """
    fields: dict[str, str] = {}
    last = 0
    for line in _lines(parts):
        opened = _OPENED.fullmatch(line)
        if opened is not None and on_open is not None:
            on_open(int(opened[1]))
        if opened is not None:
            last = int(opened[1])
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif not line and "data" in fields:
            last = int(fields.get("id", last))  # an event without one does not end what belongs together
            yield Event(last, fields["event"], json.loads(fields["data"]))
            fields = {}


def _lines(parts: Iterable[str]) -> Generator[str]:
    """Yield the lines. Only a line feed ends one, not the others of str.splitlines(): JSON may have them."""
    pending: list[str] = []
    for text in parts:
        first, *rest = text.split("\n")
        pending.append(first)
        for line in rest:
            yield "".join(pending)
            pending = [line]
