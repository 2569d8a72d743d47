"""The command `jumptable fleet serve`: the server of the fleet."""

import contextlib
import os
from pathlib import Path

import click

from app.cli.common import fail
from app.config import ConfigurationError
from app.fleet.config import FILE, FleetSettings, load
from app.fleet.serve import serve
from app.sandbox.process_name import set_process_name
from app.server import logging
from app.server.listen import ListenError, open_listener, passed_socket
from app.server.run import raise_open_files
from app.server.startup import StartError
from app.server.systemd import Notifier
from app.server.tls import TlsError

CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=FILE,
    show_default=True,
    metavar="FILE",
    help="The configuration of the server (TOML).",
)


@click.command("serve", epilog="Example: jumptable fleet serve --config /etc/jumptable/fleet.toml")
@CONFIG
@click.option("--show-config", is_flag=True, help="Print the configuration with all defaults, as JSON, and exit.")
def serve_command(file: Path, show_config: bool) -> None:
    """Serve the fleet: its API, and a controller that leads rollouts if it is elected.

    Two or three of them are enough for a fleet. It runs outside of the nodes.
    """
    settings = load_or_fail(file)
    if show_config:
        click.echo(settings.model_dump_json(indent=2, exclude_none=True))
        return
    logging.configure()
    set_process_name("jumptable: fleet")
    raise_open_files()
    os.umask(0o077)
    try:
        with contextlib.ExitStack() as at_exit:
            listener = open_listener(settings, None, passed_socket(settings))
            at_exit.callback(listener.close)
            notifier = Notifier()
            at_exit.callback(notifier.close)
            serve(settings, listener, notifier)
    except (ListenError, StartError, TlsError, OSError) as error:
        fail(str(error), 1)
    finally:
        logging.finish()


def load_or_fail(file: Path) -> FleetSettings:
    """Read the configuration of the server. On mistakes in it, print a line for each and exit with status 2."""
    try:
        return load(file)
    except ConfigurationError as error:
        for message in error.messages[:-1]:
            click.echo(f"jumptable: {message}", err=True)
        fail(error.messages[-1], 2)
