"""The commands `jumptable fleet …`: one table on many nodes. They need the extra `jumptable[fleet]`."""

from typing import Final

import click

from app.cli.main import Entry, LazyGroup

COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "See": {
        "status": Entry("fleet_status:status_command", "the fleet on one screen, a table, or a rollout"),
        "nodes": Entry("fleet_nodes:nodes_command", "the nodes, or one in full"),
        "history": Entry("fleet_status:history_command", "who did what, when and why"),
        "diff": Entry("fleet_tables:diff_command", "what apply would change on each node"),
    },
    "Change": {
        "apply": Entry("fleet_tables:apply_command", "bring tables to their nodes, in waves"),
        "rollout": Entry("fleet_tables:rollout_command", "bring a revision again, or go back to it"),
        "pause": Entry("fleet_status:pause_command", "open no more nodes"),
        "resume": Entry("fleet_status:resume_command", "go on with a rollout"),
        "abort": Entry("fleet_status:abort_command", "set all nodes back, at once"),
    },
    "Set up": {
        "init": Entry("fleet_init:init_command", "certificates, keys, and users in etcd"),
        "node": Entry("fleet_node:node_group", "add, label and remove nodes"),
        "token": Entry("fleet_token:token_group", "make and revoke tokens"),
    },
    "Serve": {
        "serve": Entry("fleet_serve:serve_command", "the server of the fleet"),
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
            message = f"{cmd_name} needs {error.name}, which is not installed: pip install 'jumptable[fleet]'"
            raise click.UsageError(message) from error


@click.group("fleet", cls=_FleetGroup, sections=COMMANDS, epilog="Begin with jumptable fleet init.")
def fleet_group() -> None:
    """One table on many nodes, on etcd.

    The commands look for a server of the fleet at unix:///run/jumptable-fleet/api.sock, else at http://127.0.0.1:8090;
    --url or JUMPTABLE_FLEET_URL say otherwise.
    """
