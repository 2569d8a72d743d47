"""The commands `jumptable token new|rotate|revoke|list`. A running service sees each change at its next request."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

import click

from app.access.rights import Ranges, Role
from app.access.tokens import Token, TokenFile, TokensUnusable
from app.cli.common import fail, load_or_fail
from app.config import ServiceSettings
from app.service.objects.source import checked_name
from app.store import journal

_SECONDS_PER_UNIT: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_LIFETIME_SECONDS: Final = 100 * 366 * 86_400

_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=Path("/etc/jumptable/jumptable.toml"),
    show_default=True,
    help="The configuration file (TOML).",
)


@click.group("token")
def token_group() -> None:
    """Manage bearer tokens.

    Only hashes are stored: in the file of [tokens], or in tokens.json in state_dir.
    """


@token_group.command("new")
@_CONFIG
@click.argument("name")
@click.option("--role", type=click.Choice(get_args(Role)), required=True, help="What the token may do.")
@click.option("--map", "maps", multiple=True, help="Only for this map. Can be repeated.")
@click.option("--entries", multiple=True, help='Only for these entries, such as "8-15". Can be repeated.')
@click.option("--program", "programs", multiple=True, help="Only for this program. Can be repeated.")
@click.option("--expires", help="How long the token is valid, such as 90d or 12h. Default: for ever.")
def token_new(
    file: Path, name: str, role: Role, maps: tuple[str, ...], entries: tuple[str, ...], programs: tuple[str, ...],
    expires: str | None,
) -> None:  # fmt: skip
    """Make a token and print its secret. It cannot be shown again."""
    try:
        for each in (name, *maps, *programs):
            checked_name(each)
        Ranges.of(entries)
        until = None if expires is None else time.time() + seconds_of(expires)
    except ValueError as error:
        fail(str(error), 2)
    _warn_of_unknown_names(file, maps, programs)
    token = Token(name, "", role, time.time(), list(maps) or None, list(entries) or None, list(programs) or None, until)
    print_result(load_or_fail(file), file, lambda tokens: tokens.add(token))


def _warn_of_unknown_names(file: Path, maps: tuple[str, ...], programs: tuple[str, ...]) -> None:
    """Warn of names that are not held. The token is made all the same: they may be held later."""
    settings = load_or_fail(file)
    known: dict[str, set[str]] = {"map": {*settings.maps}, "program": {*settings.programs}}
    if known["map"].issuperset(maps) and known["program"].issuperset(programs):
        return
    recorded = settings.server.state_dir / "journal.db"
    if recorded.exists():
        try:
            for hold in journal.check(recorded):
                known[hold.kind].add(hold.name)
        except (journal.JournalDamaged, journal.JournalFailed):
            return  # what it knows cannot be asked
    for kind, names in (("map", maps), ("program", programs)):
        for name in sorted({*names} - known[kind]):
            there = ", ".join(sorted(known[kind])) or "none"
            click.echo(
                f"jumptable: no {kind} is held under the name {name!r}, so this right is of no use until one is. "
                f"Held: {there}",
                err=True,
            )


@token_group.command("rotate")
@_CONFIG
@click.argument("name")
def token_rotate(file: Path, name: str) -> None:
    """Print a new secret for a token. The old secret is invalid at once."""
    print_result(load_or_fail(file), file, lambda tokens: tokens.rotate(name))


@token_group.command("revoke")
@_CONFIG
@click.argument("name")
def token_revoke(file: Path, name: str) -> None:
    """Remove a token. It is invalid at once, also for a running service."""
    print_result(load_or_fail(file), file, lambda tokens: tokens.revoke(name))


@token_group.command("list")
@_CONFIG
def token_list(file: Path) -> None:
    """List the tokens: name, role, restrictions and end."""
    print_result(
        load_or_fail(file), file, lambda tokens: "\n".join(line_of(token) for token in tokens.read().values()) or None
    )


def print_result(settings: ServiceSettings, file: Path, action: Callable[[TokenFile], str | None]) -> None:
    """Print what `action` returns for the configured file of tokens. Exit with status 1 where the file is unusable.

    Args:
        settings: The configuration.
        file: Where it is.
        action: What is done with the tokens.
    """
    if settings.tokens is None:
        click.echo(f"jumptable: {file} has no section [tokens], so serve accepts no token: add the section", err=True)
    try:
        result = action(TokenFile(settings.token_file()))
    except TokensUnusable as error:
        fail(str(error), 1)
    if result is not None:
        click.echo(result)


def seconds_of(text: str) -> float:
    """Return the length of "90d", "12h" or "30m".

    Raises:
        ValueError: It is no such text, or more than 100 years.
    """
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _SECONDS_PER_UNIT or not int(number):
        message = f"{text!r} is no time like 90d, 12h or 30m"
        raise ValueError(message)
    seconds = int(number) * _SECONDS_PER_UNIT[unit]
    if seconds > _MAX_LIFETIME_SECONDS:
        message = f"{text!r} is longer than 100 years: leave --expires out"
        raise ValueError(message)
    return seconds


def line_of(token: Token) -> str:
    """Return a token as it is listed: its name, its role, what it is restricted to, and its end."""
    restrictions = "".join(
        f" --{option} {each}"
        for option, values in (("map", token.maps), ("entries", token.entries), ("program", token.programs))
        for each in values or ()
    ) + "".join(f" --label {name}={value}" for name, value in (token.labels or {}).items())
    if token.expires is None:
        return f"{token.name}: {token.role}{restrictions}"
    until = f"{datetime.fromtimestamp(token.expires, UTC):%Y-%m-%d %H:%M} UTC"
    expired = " (expired)" if token.expires <= time.time() else ""
    return f"{token.name}: {token.role}{restrictions} until {until}{expired}"
