"""Questions to the person at the terminal, and changes that wait for the answer."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final, TextIO

import click

from app.cli.options import UNREACHABLE
from app.cli.output import Cell, say
from app.client import Client, Refused, Unreachable

_TICK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0


@contextlib.contextmanager
def terminal() -> Iterator[TextIO | None]:
    """Give the terminal to read answers from; None: nobody is there. Standard input may be a file, or a pipe."""
    if sys.stdin is not None and sys.stdin.isatty():
        yield sys.stdin
    elif sys.stderr.isatty():
        try:
            opened = open("/dev/tty")  # noqa: PTH123, SIM115 - closed below
        except OSError:
            yield None
            return
        with opened:
            yield opened
    else:
        yield None


def is_agreed(tty: TextIO, question: str) -> bool:
    """Ask a question; only "y" or "yes" agrees."""
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    return _is_yes(tty.readline())


def settle(client: Client, ids: Sequence[int], seconds: int | None, made_at: float) -> None:
    """Ask whether changes are to stay, and confirm them. Without a "y" in time they are undone.

    Where nobody can be asked, it says how to confirm them.

    Args:
        client: The service.
        ids: The changes.
        seconds: The time that they have, their `confirm_within`. None: they stand without a confirmation.
        made_at: When the first was requested, by `time.monotonic()`.
    """
    if seconds is None or not ids:
        return
    deadline = made_at + seconds
    with terminal() as tty:
        if tty is None:
            left = max(deadline - time.monotonic(), 0)
            for id_ in ids:
                say(f"It is undone in {left:.0f} s, unless: jumptable confirm {id_}", err=True)
            return
        try:
            answer = _answer_in_time(tty, deadline)
        except KeyboardInterrupt:
            click.echo(err=True)
            answer = False
    if answer is None:
        _tell_outcome(client, ids)
    elif answer:
        _confirm(client, ids, deadline)
    else:
        _undo(client, ids)


def _answer_in_time(tty: TextIO, deadline: float) -> bool | None:
    """Return whether the answer is yes; None: none came in time."""
    while (left := deadline - time.monotonic()) > 0:
        click.echo(f"\rKeep it? [y/N] (undone in {left:.0f} s) ", nl=False, err=True)
        if select.select([tty], [], [], min(_TICK_SECONDS, left))[0]:
            return _is_yes(os.read(tty.fileno(), 1024).decode(errors="replace"))
    click.echo(err=True)
    return None


def _is_yes(line: str) -> bool:
    return line.strip().lower() in {"y", "yes"}


def _confirm(client: Client, ids: Sequence[int], deadline: float) -> None:
    """Confirm the changes. While the service cannot be reached, go on trying until it has undone them."""
    for id_ in ids:
        while True:
            try:
                client.confirm_change(id_)
            except Unreachable as error:
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    say(Cell(f"Not confirmed, so the service undoes it: {error}", "red"), err=True)
                    sys.exit(UNREACHABLE)
                time.sleep(_RETRY_SECONDS)
            except Refused as error:
                if error.code != "already-confirmed":
                    raise
                _tell_outcome(client, [id_])
                break
            else:
                say(Cell(f"Change {id_} stands.", "green"))
                break


def _undo(client: Client, ids: Sequence[int]) -> None:
    """Undo the changes now, the last one first, and exit with 1."""
    for id_ in reversed(ids):
        client.revert_change(id_, note="not confirmed")
        say(Cell(f"Change {id_} is undone.", "yellow"))
    sys.exit(1)


def _tell_outcome(client: Client, ids: Sequence[int]) -> None:
    """Say what became of changes whose time is over. Exits with 1 unless all stand."""
    states = {}
    for id_ in ids:
        wait_until = time.monotonic() + 2 * _RETRY_SECONDS
        while (state := client.get_change(id_)["state"]) == "unconfirmed" and time.monotonic() < wait_until:
            time.sleep(_TICK_SECONDS / 10)
        states[id_] = state
        stands = state in {"confirmed", "applied"}
        said = "stands: somebody has confirmed it." if stands else f"is undone: nobody confirmed it ({state})."
        say(Cell(f"Change {id_} {said}", "green" if stands else "yellow"))
    if not {"confirmed", "applied"}.issuperset(states.values()):
        sys.exit(1)
