"""The command line `jumptable`, with its commands."""

import importlib
from typing import Final

import click

_COMMANDS: Final = {
    "check": "app.cli.check:check_command",
    "demo": "app.cli.demo:demo_command",
    "serve": "app.cli.serve:serve_command",
    "token": "app.cli.token:token_group",
}


class _Commands(click.Group):
    """Imports a command when it is used, so that none waits for what only others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, or None if there is none with this name."""
        module, _, name = _COMMANDS.get(cmd_name, "").partition(":")
        if not module:
            return None
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jumptable", prog_name="jumptable")
def cli() -> None:
    """An HTTP API for eBPF program arrays: the jump tables of bpf_tail_call()."""
