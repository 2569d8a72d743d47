"""The command line: demo, serve, check, token."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import click
import structlog

from app import __version__
from app.api.app import create_app
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.cli.check import findings
from app.cli.common import fail, load_or_fail
from app.cli.token import token_group
from app.server import assemble as serving
from app.server import logging as logs
from app.server import run as server
from app.server import startup as start
from app.server.settings import Settings
from app.server.systemd import Manager
from app.server.tls import TlsError
from app.service.errors import ServiceError
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalDamaged, JournalFailed

log = structlog.get_logger()

CONFIG = click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="The configuration, in TOML."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jumptable")
def cli() -> None:
    """An HTTP API for eBPF program arrays: the jump tables of bpf_tail_call()."""


@cli.command("demo")
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--kernel", type=click.Choice(["auto", "linux", "memory"]), default="auto", show_default=True)
def demo_command(host: str, port: int, kernel: str) -> None:
    """Serve a jump table with programs to try, with nothing prepared and without authentication."""
    logs.configure()
    server.raise_open_files()
    try:
        listener = server.listen_tcp(host, port, only_loopback=True)
        registry, why = _demo_registry(kernel)
    except (server.ListenError, start.StartError) as error:
        fail(str(error), 1)
    address, number = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{number}"
    click.echo(_demo_text(url, why))
    with tempfile.TemporaryDirectory(prefix="jumptable-") as folder:
        app = create_app(registry, Journal(Path(folder) / "journal.db", "process"))
        try:
            server.serve(app, listener)
        finally:
            app.state.changes.close()
    registry.close()


def _demo_registry(kernel: str) -> tuple[Registry, str]:
    """What the demo serves, and on which kernel and why."""
    if kernel != "memory":
        registry = Registry(start.make_kernel("linux"), ["/sys/fs/bpf"])
        try:
            demo.fill(registry)
        except (ServiceError, OSError) as error:
            registry.close()
            if kernel == "linux":
                message = f"{error}; run as root with all capabilities, or with --kernel memory"
                raise start.StartError(message) from error
            why = f"a kernel in memory, since {error} (root with all capabilities gets the real one)"
        else:
            return registry, "the real kernel of this machine"
    else:
        why = "a kernel in memory, as you asked: nothing here is real"
    registry = Registry(MemoryKernel(), ["/sys/fs/bpf"])
    demo.fill(registry)
    return registry, why


def _demo_text(url: str, why: str) -> str:
    return f"""jumptable {__version__} demo on {why}.

The program `entry` reads a packet's first byte i and jumps to entry i of `jump_table`. Try, in another terminal:

  curl --json '{{"program": "drop"}}' -X PUT {url}/maps/jump_table/entries/3
  curl --json '{{"packet": "0300000000000000000000000000"}}' {url}/programs/entry/run
  curl --json '{{"program": "pass"}}' -X PUT {url}/maps/jump_table/entries/3
  curl {url}/maps/jump_table/entries
  curl -X DELETE {url}/maps/jump_table/entries/3

All of it: {url}/docs     Stop with Ctrl-C; nothing is left behind."""


@cli.command("serve")
@CONFIG
@click.option("--show-config", is_flag=True, help="Print the configuration as it is in effect, and end.")
def serve_command(file: Path, show_config: bool) -> None:
    """Serve what the configuration names."""
    settings = load_or_fail(file)
    if show_config:
        click.echo(settings.model_dump_json(indent=2, exclude_none=True))
        return
    logs.configure()
    server.raise_open_files()
    try:
        _serve(settings)
    except (server.ListenError, start.StartError, TlsError, JournalDamaged, JournalFailed, OSError) as error:
        fail(str(error), 1)


def _serve(settings: Settings) -> None:
    user = start.user_of(settings)
    given = serving.given_listener(settings)
    lock = start.lock_state(settings.server.state_dir)
    keeper = start.start_keeper(settings, user, is_given=given is not None)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock)
        manager = Manager()
        stack.callback(manager.close)
        if keeper is not None:
            stack.callback(keeper.close)
        kernel = start.make_kernel(settings.server.kernel, keeper, settings.server.keep_dir)
        registry = Registry(kernel, [str(each) for each in settings.server.pin_dirs])
        stack.callback(registry.close)
        start.configure(registry, settings)
        tls = serving.tls_of(settings, keeper)
        listener, told, end = serving.listen(settings, user, given)
        stack.callback(end)
        server.preload()
        start.become_user(settings, user, lock)
        os.umask(0o077)
        journal = Journal(settings.server.state_dir / "journal.db", settings.server.durability)
        start.give_up_rights(kernel)
        app = serving.make_app(settings, registry, journal, keeper)
        stack.callback(app.state.audit.close)
        stack.callback(app.state.changes.close)
        log.info(
            "serving",
            **told,
            kernel=kernel.name,
            uid=os.geteuid(),
            **({} if keeper is None else {"keeper": keeper.pid}),
        )
        server.serve(app, listener, serving.bounds_of(settings), tls, manager)
    log.info("ended")


@cli.command("check")
@CONFIG
def check_command(file: Path) -> None:
    """Open all that serve would, change nothing, and tell what is wrong and how to mend it."""
    settings = load_or_fail(file)
    wrong = False
    for finding in findings(settings):
        wrong |= finding.is_wrong
        click.echo(finding.text)
    sys.exit(1 if wrong else 0)


cli.add_command(token_group)
