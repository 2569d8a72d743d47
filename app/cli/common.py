"""What the commands share: the option --config, and how a command ends with an error."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from app.config import ConfigurationError, Settings, load

CONFIG = click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="The configuration file (TOML)."
)


def load_or_fail(file: Path) -> Settings:
    """Read the configuration. On mistakes in it, print a line for each and exit with status 2."""
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
