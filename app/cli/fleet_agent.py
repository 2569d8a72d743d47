"""The command `jumptable fleet agent`: the agent of a node."""

import asyncio
import os
import signal
import sys
from pathlib import Path

# structlog imports it for tracebacks on a terminal, where it can: 4 MB in each agent. None says that it is not there.
if not sys.stderr.isatty():
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

import click
import structlog

from app.agent.agent import Agent
from app.agent.settings import FILE, Settings, SettingsError, load
from app.agent.state import StateError, StateFile
from app.cli.common import fail
from app.fleet_store.etcd import Credentials
from app.fleet_store.signatures import BadKey, Verifier
from app.sandbox.process_name import set_process_name
from app.server.systemd import Notifier

log = structlog.get_logger()


@click.command("agent", epilog="Example: jumptable fleet agent --config /etc/jumptable/agent/agent.toml")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, readable=False),  # whether it can be read, reading it says
    default=FILE,
    show_default=True,
    metavar="FILE",
)
def agent_command(file: Path) -> None:
    """Bring this node's tables to what the fleet desires, and tell the fleet how they are."""
    try:
        settings = load(file)
        verifier = Verifier.read(settings.public_keys)
        etcd = settings.etcd
        credentials = Credentials.read(etcd.ca, etcd.certificate, etcd.key)
    except (SettingsError, BadKey) as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}; {file} names it", 2)
    if os.geteuid() == 0:
        # The service lets root do everything, and nothing in its configuration would bound the fleet.
        fail("the agent does not run as root: give it a user of its own, and a rule with on_behalf in [peers]", 1)
    set_process_name("jumptable: agent")
    _configure_log()
    try:
        state = StateFile(settings.state_dir)
    except StateError as error:
        fail(f"{file}: {error}", 1)
    if state.trouble:
        log.warning("what the agent remembered is lost", reason=state.trouble)
    try:
        asyncio.run(_run(settings, Agent(settings, state, verifier, credentials)))
    except OSError as error:
        fail(f"metrics: {settings.metrics}: {error.strerror}; name another address", 1)
    finally:
        state.close()


async def _run(settings: Settings, agent: Agent) -> None:
    """Run the agent until the process is told to stop."""
    if settings.metrics is not None:
        from app.agent.metrics import serve  # noqa: PLC0415 - a megabyte, which most agents do without

        serve(agent.reporter, settings.metrics)
    notifier, last = Notifier(), ""
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)

    def beat(text: str) -> None:
        nonlocal last
        if text != last:
            notifier.notify(f"READY=1\nSTATUS={text}")
            last = text
        notifier.notify_watchdog()

    log.info("the agent runs", node=settings.node, service=settings.service, endpoints=settings.etcd.endpoints)
    try:
        await agent.run(beat)
    except asyncio.CancelledError:
        notifier.notify("STOPPING=1")
        log.info("the agent ends")
    finally:
        notifier.close()


def _configure_log() -> None:
    """One line for each event on standard error: JSON, or text on a terminal."""
    last = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
