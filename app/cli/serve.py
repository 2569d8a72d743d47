"""The command `jumptable serve`: the service."""

import contextlib
import os
import sys
from pathlib import Path

import click
import structlog

from app.cli.common import CONFIG, fail, load_or_fail
from app.config import Settings
from app.sandbox.process_name import set_process_name
from app.server import assemble, logging, startup
from app.server.keeper_watch import KeeperWatch
from app.server.listen import ListenError, open_listener, passed_socket
from app.server.open_files import share_open_files
from app.server.reload import Reload
from app.server.run import preload, raise_memlock, raise_open_files, serve
from app.server.systemd import Notifier, is_restarted
from app.server.tls import TlsError
from app.service.registry.registry import Registry
from app.store.journal import JournalDamaged, JournalFailed

log = structlog.get_logger()


@click.command("serve")
@CONFIG
@click.option("--show-config", is_flag=True, help="Print the configuration with all defaults, as JSON, and exit.")
def serve_command(file: Path, show_config: bool) -> None:
    """Serve the maps and programs that the configuration names."""
    settings = load_or_fail(file)
    if show_config:
        click.echo(settings.model_dump_json(indent=2, exclude_none=True))
        return
    logging.configure()
    set_process_name("jumptable: listener")
    raise_open_files()
    try:
        if settings.server.kernel == "linux":
            raise_memlock()
        _serve(settings, file.absolute())
    except (ListenError, startup.StartError, TlsError, JournalDamaged, JournalFailed, OSError) as error:
        fail(str(error), 1)
    finally:
        logging.finish()


def _serve(settings: Settings, file: Path) -> None:
    """Start, serve until the process is told to stop, and clear up in the reverse order."""
    server = settings.server
    with contextlib.ExitStack() as at_exit:
        # Find out what could end the start, before anything is changed.
        user = startup.service_user(settings)
        passed = passed_socket(settings)
        share_open_files(settings, len(settings.maps) + len(settings.programs))

        # Lock the state folder.
        lock = startup.lock_state(server.state_dir)
        at_exit.callback(os.close, lock)

        # Start the keeper, which keeps the privileges of this process.
        keeper = startup.start_keeper(settings, user, has_passed_socket=passed is not None, config_file=file)
        notifier = Notifier()
        at_exit.callback(notifier.close)
        if keeper is not None:
            at_exit.callback(keeper.close)

        # Open what the configuration names.
        kernel = assemble.make_kernel(server.kernel, keeper, server.keep_dir)
        startup.check_bpf_allowed(kernel)
        registry = Registry(kernel, [str(folder) for folder in server.pin_dirs])
        at_exit.callback(registry.close)
        assemble.hold_configured(registry, settings)
        tls = assemble.make_tls(settings, keeper)

        # Listen.
        listener = open_listener(settings, user, passed)
        at_exit.callback(listener.close)

        # Switch to the service's user. All that this process makes from now on is private to that user.
        preload(os.geteuid() if user is None else user.pw_uid)
        startup.switch_to_service_user(settings, user, lock)
        os.umask(0o077)

        # Open the journal as that user, who has to own it.
        journal = startup.open_journal(settings)
        copies = assemble.open_copies(settings)

        # Give up all other rights.
        startup.give_up_rights(kernel)

        # Serve.
        files = share_open_files(settings, assemble.held_at_start(settings, journal))
        if files.is_reduced:
            log.warning("the limits are lower than configured", reason=str(files), remedy="raise LimitNOFILE=")
        state = assemble.make_state(settings, registry, journal, keeper, files, copies)
        at_exit.callback(state.audit.close)
        at_exit.callback(state.service.close)
        pids = {} if keeper is None else {"keeper": keeper.pid}
        log.info("serving", **listener.address, kernel=kernel.name, uid=os.geteuid(), **pids)
        watch = None if keeper is None else KeeperWatch(keeper, registry, is_restarted=is_restarted())
        reload = Reload(file, settings, state, keeper)
        serve(state, listener.socket, assemble.connection_bounds(settings, files), tls, notifier, watch, reload)
    log.info("ended")
    if watch is not None and watch.has_ended_service:
        sys.exit(1)  # with 0, systemd would not start it again
