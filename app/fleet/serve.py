"""From the configuration to a process that serves the fleet: the API, and a controller beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from fastapi import FastAPI

from app.api.limits import Bounds, Limits
from app.fleet.api.app import create_app
from app.fleet.api.authorization import RIGHTS
from app.fleet.api.state import FleetState
from app.fleet.config import FleetSettings
from app.fleet.controller import Controller
from app.fleet_store.errors import EtcdError, VersionRefused
from app.fleet_store.etcd import Credentials, Etcd
from app.fleet_store.signatures import BadKey, Signer
from app.server import assemble
from app.server.listen import Listener
from app.server.run import Served, serve_application
from app.server.startup import StartError
from app.server.systemd import Notifier

_CHECK_SECONDS: Final = 60.0  # between two looks at the versions of etcd's members
_RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


def read_keys(settings: FleetSettings) -> tuple[Signer, Credentials]:
    """Read the fleet's private key, and what connects to etcd.

    Raises:
        StartError: A file cannot be used.
    """
    section = settings.etcd
    try:
        signer = Signer.read(settings.signing.key)
        return signer, Credentials.read(section.ca, section.certificate, section.key)
    except BadKey as error:
        raise StartError(str(error)) from error
    except OSError as error:
        message = f"{error.filename}: {error.strerror}: jumptable fleet init makes it; it has to be readable here"
        raise StartError(message) from error


def serve(settings: FleetSettings, listener: Listener, notifier: Notifier) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: The configuration.
        listener: Where to listen.
        notifier: Tells systemd.

    Raises:
        StartError: A file cannot be used.
        TlsError: The certificate cannot be used.
        ListenError: The server could not start.
    """
    signer, credentials = read_keys(settings)
    limits = settings.limits
    state = FleetState(
        signer,
        authentication=assemble.make_authentication(settings),
        limits=Limits(limits.event_readers, limits.held, limits.requests_per_second, limits.burst),
        audit=assemble.make_audit(settings, rights=RIGHTS),
    )
    app = create_app(state, lifespan=lambda app: _lifespan(app, settings, credentials))
    bounds = Bounds(limits.connections, limits.header_bytes, limits.header_seconds, limits.idle_seconds)
    tls = assemble.make_tls(settings)
    log.info("serving", **listener.address, endpoints=settings.etcd.endpoints)
    try:
        serve_application(Served(app, state.ended.set, state.audit), listener.socket, bounds, tls, notifier)
    finally:
        state.audit.close()
    log.info("ended")


@asynccontextmanager
async def _lifespan(app: FastAPI, settings: FleetSettings, credentials: Credentials) -> AsyncIterator[None]:
    """Connect to etcd, and run what runs beside the requests. Nothing of that ends the process."""
    state: FleetState = app.state  # type: ignore[assignment]  # the application was made with it
    async with Etcd(settings.etcd.endpoints, credentials) as etcd:
        state.use(etcd)
        tasks = [asyncio.create_task(_watch_versions(state, etcd)), asyncio.create_task(_lead(state, etcd, settings))]
        try:
            yield
        finally:
            state.ended.set()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _lead(state: FleetState, etcd: Etcd, settings: FleetSettings) -> None:
    """Run a controller for as long as etcd may be used. If it fails, another one is started."""
    section = settings.controller
    while True:
        await state.usable.wait()
        controller = Controller(etcd, state.signer, section.name, lease_seconds=section.lease_seconds)
        running = asyncio.create_task(controller.run())
        refused = asyncio.create_task(state.unusable.wait())
        try:
            await asyncio.wait([running, refused], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, refused):
                task.cancel()
            await asyncio.wait([running, refused])
        if not running.cancelled():
            log.error("the controller has failed; another one is started", exc_info=running.exception())
        await asyncio.sleep(_RETRY_SECONDS)


async def _watch_versions(state: FleetState, etcd: Etcd) -> None:
    """Look at the versions of etcd's members, and say whether they may be used."""
    told: list[str] = []
    while True:
        pause = _CHECK_SECONDS
        try:
            warnings = await etcd.check_versions()
        except VersionRefused as error:
            if state.refusal is None:
                log.warning("etcd must not be used", reason=str(error))
            state.refuse(str(error))
        except EtcdError as error:
            log.warning("etcd does not answer", reason=str(error))
            pause = _RETRY_SECONDS
        else:
            if state.refusal is not None:
                log.info("etcd may be used again")
            state.refuse(None)
            for warning in warnings:
                if warning not in told:
                    log.warning("etcd should be upgraded", reason=warning)
            told = warnings
        await asyncio.sleep(pause)
