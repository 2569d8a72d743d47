"""What the commands share: the option --config, and how a command ends with an error."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from app.config import Settings

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE

CONFIG = click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="The configuration file (TOML)."
)


def load_or_fail(file: Path) -> "Settings":
    """Read the configuration. On mistakes in it, print a line for each and exit with status 2."""
    from app.config import ConfigurationError, load  # noqa: PLC0415 - the client's commands do without

    try:
        return load(file)
    except ConfigurationError as error:
        for message in error.messages[:-1]:
            click.echo(f"jumptable: {message}", err=True)
        fail(error.messages[-1], 2)


def fail(message: str, status: int) -> NoReturn:
    """Print one line on standard error, and exit."""
    click.echo(f"jumptable: {message}", err=True)
    sys.exit(status)


def stop_writing() -> NoReturn:
    """End quietly, as nobody reads the output any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered goes there at the end
    sys.exit(PIPE_CLOSED)
