"""What the commands share: the configuration, or the end."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from app.config import ConfigurationError, Settings, load

CONFIG = click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="The configuration, in TOML."
)


def load_or_fail(file: Path) -> Settings:
    """The configuration, or the end, with status 2."""
    try:
        return load(file)
    except ConfigurationError as error:
        fail(str(error), 2)


def fail(message: str, status: int) -> NoReturn:
    """One line, and the end."""
    click.echo(f"jumptable: {message}", err=True)
    sys.exit(status)
