"""The command `jumptable completion`: what a shell needs to complete commands, options and names."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_JUMPTABLE_COMPLETE"  # set by the script while it asks for completions


@click.command(
    "completion",
    epilog="""\b
Example:  jumptable completion bash > /etc/bash_completion.d/jumptable
          jumptable completion zsh > "${fpath[1]}/_jumptable"
          jumptable completion fish > ~/.config/fish/completions/jumptable.fish""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@click.pass_context
def completion_command(ctx: click.Context, shell: str | None) -> None:
    """Print the completion script for a shell; by default for yours.

    It completes names of maps and programs by asking the service.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name)
    if kind is None:
        raise click.UsageError("name the shell: bash, zsh or fish")
    click.echo(kind(ctx.find_root().command, {}, "jumptable", _VARIABLE).source())
