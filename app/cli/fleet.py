"""The commands `jumptable fleet …`: one table on many nodes. They need the extra `jumptable[fleet]`."""

from typing import Final

import click

from app.cli.common import fail
from app.cli.main import Entry, LazyGroup

COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "Serve": {
        "agent": Entry("fleet_agent:agent_command", "the agent of a node"),
    },
}
_PACKAGES: Final = {"cryptography", "google", "grpc", "msgspec"}


class _FleetGroup(LazyGroup):
    """Says which packages are missing, where the extra is not installed."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return super().get_command(ctx, cmd_name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _PACKAGES:
                raise
            fail(f"the fleet needs {error.name}, which is not installed: pip install 'jumptable[fleet]'", 2)


@click.group("fleet", cls=_FleetGroup, sections=COMMANDS, epilog="Example: jumptable fleet agent --config agent.toml")
def fleet_group() -> None:
    """One table on many nodes, on etcd."""
