"""jumptable token: made, listed, rotated, revoked; a running service sees it at its next request."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click

from app.access.rights import Ranges, Role
from app.access.tokens import Token, TokenFile, TokensUnusable
from app.cli.common import fail, load_or_fail
from app.service.objects.source import checked_name

TOKEN_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=Path("/etc/jumptable/jumptable.toml"),
    show_default=True,
    help="The configuration, in TOML.",
)


@click.group("token")
def token_group() -> None:
    """Bearer tokens: of each only a hash is kept, in tokens.json in state_dir (or tokens.file)."""


@token_group.command("new")
@TOKEN_CONFIG
@click.argument("name")
@click.option("--role", type=click.Choice(get_args(Role)), required=True)
@click.option("--map", "maps", multiple=True, help="To this map alone; again for more.")
@click.option("--entries", multiple=True, help='To these entries alone, as "8-15"; again for more.')
@click.option("--program", "programs", multiple=True, help="To this program alone; again for more.")
@click.option("--expires", help='After so long, as "90d", "12h".')
def token_new(
    file: Path, name: str, role: Role, maps: tuple[str, ...], entries: tuple[str, ...], programs: tuple[str, ...],
    expires: str | None,
) -> None:  # fmt: skip
    """Make a token, and print it: this once."""
    try:
        for each in (name, *maps, *programs):
            checked_name(each)
        Ranges.of(entries)
        until = None if expires is None else time.time() + _seconds(expires)
    except ValueError as error:
        fail(str(error), 2)
    bounds = [list(each) or None for each in (maps, entries, programs)]
    token = Token(name, "", role, time.time(), bounds[0], bounds[1], bounds[2], until)
    _token(file, lambda tokens: tokens.add(token))


@token_group.command("rotate")
@TOKEN_CONFIG
@click.argument("name")
def token_rotate(file: Path, name: str) -> None:
    """Print another secret for it; the old one is worth nothing from now on."""
    _token(file, lambda tokens: tokens.rotate(name))


@token_group.command("revoke")
@TOKEN_CONFIG
@click.argument("name")
def token_revoke(file: Path, name: str) -> None:
    """It is worth nothing from now on, also to a service that runs."""
    _token(file, lambda tokens: tokens.revoke(name))


@token_group.command("list")
@TOKEN_CONFIG
def token_list(file: Path) -> None:
    """Tell the names, and what each may do."""
    _token(file, lambda tokens: "\n".join(_told(token) for token in tokens.read().values()) or None)


def _token(file: Path, do: Callable[[TokenFile], str | None]) -> None:
    settings = load_or_fail(file)
    if settings.tokens is None:
        click.echo(f"jumptable: {file} has no section [tokens], so that serve takes none: add it", err=True)
    try:
        told = do(TokenFile(settings.token_file()))
    except TokensUnusable as error:
        fail(str(error), 1)
    if told is not None:
        click.echo(told)


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    if not text[:-1].isascii() or not text[:-1].isdigit() or text[-1:] not in units or not int(text[:-1]):
        message = f"{text!r} is no time like 90d, 12h or 30m"
        raise ValueError(message)
    seconds = int(text[:-1]) * units[text[-1]]
    if seconds > 100 * 366 * units["d"]:
        message = f"{text!r} is longer than 100 years: leave --expires out"
        raise ValueError(message)
    return seconds


def _told(token: Token) -> str:
    bounds = "".join(
        f" --{option} {each}"
        for option, values in (("map", token.maps), ("entries", token.entries), ("program", token.programs))
        for each in values or ()
    )
    until = "" if token.expires is None else f" until {datetime.fromtimestamp(token.expires, UTC):%Y-%m-%d %H:%M} UTC"
    over = " (over)" if token.expires is not None and token.expires <= time.time() else ""
    return f"{token.name}: {token.role}{bounds}{until}{over}"
