"""The commands `jumptable fleet token new|rotate|revoke|list`. A running server sees each change at once."""

import time
from pathlib import Path
from typing import get_args

import click

from app.access.rights import Ranges, Role
from app.access.tokens import Token
from app.cli.common import fail
from app.cli.fleet_options import LABELS
from app.cli.fleet_serve import CONFIG, load_or_fail
from app.cli.token import line_of, print_result, seconds_of
from app.service.objects.source import checked_name


@click.group("token")
def token_group() -> None:
    """Manage the bearer tokens of the fleet's servers.

    Only hashes are stored: in the file of [tokens], or in tokens.json in state_dir.
    """


@token_group.command(
    "new", epilog="Example: jumptable fleet token new alice --role writer --table jump_table -l role=edge"
)
@CONFIG
@click.argument("name")
@click.option("--role", type=click.Choice(get_args(Role)), required=True, help="What the token may do.")
@click.option("--table", "tables", multiple=True, help="Only for this table. Can be repeated.")
@click.option("--entries", multiple=True, help='Only for these entries, such as "8-15". Can be repeated.')
@click.option("--program", "programs", multiple=True, help="Only for this program. Can be repeated.")
@LABELS
@click.option("--expires", help="How long the token is valid, such as 90d or 12h. Default: for ever.")
def token_new(
    file: Path, name: str, role: Role, tables: tuple[str, ...], entries: tuple[str, ...], programs: tuple[str, ...],
    labels: tuple[tuple[str, str], ...], expires: str | None,
) -> None:  # fmt: skip
    """Make a token and print its secret. It cannot be shown again.

    With labels it is only for nodes that have all of them, and for tables whose selector asks for all of them.
    """
    try:
        for each in (name, *tables, *programs):
            checked_name(each)
        Ranges.of(entries)
        until = None if expires is None else time.time() + seconds_of(expires)
    except ValueError as error:
        fail(str(error), 2)
    token = Token(
        name, "", role, time.time(), list(tables) or None, list(entries) or None, list(programs) or None, until,
        dict(labels) or None,
    )  # fmt: skip
    print_result(load_or_fail(file), file, lambda tokens: tokens.add(token))


@token_group.command("rotate", epilog="Example: jumptable fleet token rotate alice")
@CONFIG
@click.argument("name")
def token_rotate(file: Path, name: str) -> None:
    """Print a new secret for a token. The old secret is invalid at once."""
    print_result(load_or_fail(file), file, lambda tokens: tokens.rotate(name))


@token_group.command("revoke", epilog="Example: jumptable fleet token revoke alice")
@CONFIG
@click.argument("name")
def token_revoke(file: Path, name: str) -> None:
    """Remove a token. It is invalid at once, also for a running server."""
    print_result(load_or_fail(file), file, lambda tokens: tokens.revoke(name))


@token_group.command("list", epilog="Example: jumptable fleet token list")
@CONFIG
def token_list(file: Path) -> None:
    """List the tokens: name, role, restrictions and end."""
    print_result(
        load_or_fail(file),
        file,
        lambda tokens: (
            "\n".join(line_of(token).replace(" --map ", " --table ") for token in tokens.read().values()) or None
        ),
    )
