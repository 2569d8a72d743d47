"""The commands `jumptable diff` and `jumptable apply`: whole tables, from a file."""

import functools
import sys
import time
from pathlib import Path
from typing import Any

import click

from app.cli.common import fail
from app.cli.confirmation import is_agreed, settle, terminal
from app.cli.options import CONFIRM_WITHIN, FORCE, NOTE, connects, outputs
from app.cli.output import Cell, plural, say, show, show_difference, show_warnings
from app.cli.table_file import Table, TableFileError, read_tables
from app.client import Client, JumptableError
from app.client.answers import Applied

_MOST = 40  # entries of a difference that are shown before the question

_FILE = click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="Tables in YAML, TOML or JSON; - is standard input.",
)
_PARTIAL = click.option("--partial", is_flag=True, help="Leave the entries alone that the file does not list.")


@click.command("diff", epilog="Example: jumptable get jump_table -o yaml > t.yaml; jumptable diff -f t.yaml")
@_FILE
@_PARTIAL
@FORCE
@connects
@outputs("json", "yaml", "name")
def diff_command(client: Client, file: Path, output: str | None, *, partial: bool, force: bool) -> None:
    """Show what apply would change. Exit 1: something.

    It is a dry run: the service checks all that it would check, and needs the same rights.
    """
    plans = [
        (name, _change(client, name, table, partial=partial, dry_run=True, force=force))
        for name, table in _read(file).items()
    ]
    answer = {"tables": [{"map": name, **plan} for name, plan in plans]}
    different: list[str] = [name for name, plan in plans if plan.get("entries")]

    def people() -> None:
        for name, plan in plans:
            _show_plan(name, plan)

    show(output, answer, lambda: different, people)
    sys.exit(1 if different else 0)


@click.command("apply", epilog="Example: jumptable apply -f tables.yaml --confirm-within 60s --note 'parse v2'")
@_FILE
@_PARTIAL
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")
@NOTE
@CONFIRM_WITHIN
@FORCE
@connects
@outputs("json", "yaml", "name")
def apply_command(client: Client, file: Path, output: str | None, *, partial: bool, yes: bool, **options: Any) -> None:
    """Make tables what a file says: show the difference, ask, apply.

    Entries that the file does not list are cleared. Each table is one change: all of it is done, or nothing.
    """
    tables = _read(file)
    etags = {name: client.list_entries(name, limit=1)["etag"] for name in tables}
    change = functools.partial(_change, client, partial=partial, force=options.pop("force"))
    plans = {name: change(name, table, dry_run=True) for name, table in tables.items()}
    todo = [name for name, plan in plans.items() if plan.get("entries")]
    if output is None:
        for name, plan in plans.items():
            _show_plan(name, plan, _MOST)
    if todo and not yes:
        _ask(is_asked_for_output=output is not None)
    made_at = time.monotonic()
    ids: list[int] = []
    for name in todo:
        try:
            plans[name] = change(name, tables[name], if_match=etags[name], **options)
        except JumptableError:
            _tell_what_is_done(ids, left=name)
            raise
        made = plans[name]["change"]
        if made is not None:
            ids.append(made["id"])
            if output is None:
                say(f"change {made['id']}: {name} is as the file says")
    answer = {"tables": [{"map": name, **plan} for name, plan in plans.items()]}
    show(output, answer, lambda: ids, lambda: None)
    if output is None:
        settle(client, ids, options["confirm_within"], made_at)


def _read(file: Path) -> dict[str, Table]:
    """Read the tables of a file. On a mistake, exit with 2."""
    try:
        if str(file) == "-":
            return read_tables("" if sys.stdin is None else sys.stdin.read(), "standard input")
        return read_tables(file.read_text(), str(file))
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{file} is no text in UTF-8", 2)
    except TableFileError as error:
        fail(str(error), 2)


def _change(client: Client, name: str, table: Table, *, partial: bool, **options: Any) -> Applied:
    """Replace the table, or change only what the file lists."""
    return (client.update_entries if partial else client.replace_entries)(name, table, **options)


def _show_plan(name: str, plan: Applied, most: int | None = None) -> None:
    entries = plan.get("entries", [])
    if not entries:
        say(Cell(name, "bold"), f": {plural(plan['unchanged'], 'entry')} as the file says, nothing to change")
        return
    say(Cell(name, "bold"), f": {plan['set']} to set, {plan['cleared']} to clear, {plan['unchanged']} as they are")
    show_difference(entries, most)
    if plan.get("fit") == "type-only":
        say("  Only the type was compared: whether the programs fit is known when they are written.")
    show_warnings(plan)


def _ask(*, is_asked_for_output: bool) -> None:
    """Ask whether to go on; where nobody can be asked, that is an error of usage."""
    with terminal() as tty:
        if tty is None or is_asked_for_output:
            raise click.UsageError("nobody can be asked here, so add --yes; `jumptable diff` shows what would change")
        if not is_agreed(tty, "Apply?"):
            fail("nothing was changed", 1)


def _tell_what_is_done(ids: list[int], left: str) -> None:
    if ids:
        done = ", ".join(map(str, ids))
        say(
            f"Done before that: {plural(len(ids), 'change')} ({done}); `jumptable revert` undoes them. Not: {left}",
            err=True,
        )
