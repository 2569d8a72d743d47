"""jumptable serve: the service."""

import contextlib
import os
from pathlib import Path

import click
import structlog

from app.cli.common import CONFIG, fail, load_or_fail
from app.config import Settings
from app.server import assemble, logging, startup
from app.server.listen import ListenError
from app.server.run import preload, raise_open_files, serve
from app.server.systemd import Notifier
from app.server.tls import TlsError
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalDamaged, JournalFailed

log = structlog.get_logger()


@click.command("serve")
@CONFIG
@click.option("--show-config", is_flag=True, help="Print the configuration as it is in effect, and end.")
def serve_command(file: Path, show_config: bool) -> None:
    """Serve what the configuration names."""
    settings = load_or_fail(file)
    if show_config:
        click.echo(settings.model_dump_json(indent=2, exclude_none=True))
        return
    logging.configure()
    raise_open_files()
    try:
        _serve(settings)
    except (ListenError, startup.StartError, TlsError, JournalDamaged, JournalFailed, OSError) as error:
        fail(str(error), 1)


def _serve(settings: Settings) -> None:
    user = startup.user_of(settings)
    given = assemble.given_listener(settings)
    lock = startup.lock_state(settings.server.state_dir)
    keeper = startup.start_keeper(settings, user, is_given=given is not None)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock)
        manager = Notifier()
        stack.callback(manager.close)
        if keeper is not None:
            stack.callback(keeper.close)
        kernel = startup.make_kernel(settings.server.kernel, keeper, settings.server.keep_dir)
        registry = Registry(kernel, [str(each) for each in settings.server.pin_dirs])
        stack.callback(registry.close)
        startup.configure(registry, settings)
        tls = assemble.tls_of(settings, keeper)
        listener, told, end = assemble.listen(settings, user, given)
        stack.callback(end)
        preload()
        startup.become_user(settings, user, lock)
        os.umask(0o077)
        journal = Journal(settings.server.state_dir / "journal.db", settings.server.durability)
        startup.give_up_rights(kernel)
        app = assemble.make_app(settings, registry, journal, keeper)
        stack.callback(app.state.audit.close)
        stack.callback(app.state.service.close)
        log.info(
            "serving",
            **told,
            kernel=kernel.name,
            uid=os.geteuid(),
            **({} if keeper is None else {"keeper": keeper.pid}),
        )
        serve(app, listener, assemble.bounds_of(settings), tls, manager)
    log.info("ended")
