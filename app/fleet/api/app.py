"""The application of the fleet's server."""

from typing import Any, Final

from fastapi import FastAPI

from app.api.application import Application
from app.api.routes import docs, web
from app.fleet.api.routes import events, nodes, rollouts, service, tables
from app.fleet.api.state import FleetState

_DESCRIPTION: Final = """
An HTTP API for a fleet: one jump table on many nodes that run jumptable, through etcd.

* A table says once what entries are to hold on the nodes that a selector matches. PUT starts a rollout: canary first,
  then in waves. It goes back by itself when a node refuses, cuts itself off, drifts, or fails a check.
* What nodes hold does not depend on this server, nor on etcd: while either is away, no entry changes.
* Errors are `application/problem+json`; `GET /problems/{code}` explains each. Every answer has an `X-Request-ID`,
  the one of the request where it brought one.
* HEAD works wherever GET does.
"""
# The tags of the routes, in the order in which the document shows them.
_TAGS: Final = {
    "tables": "What entries are to hold, on which nodes; and the revisions of that.",
    "rollouts": "How a revision comes to its nodes; pause, resume, abort.",
    "nodes": "The nodes with their labels, and how they are.",
    "events": "What happens, as it happens; and who did what.",
    "service": "The server itself: health, version, metrics, problems.",
}


def create_app(state: FleetState, lifespan: Any = None) -> FastAPI:
    """Make the application that answers requests with `state`.

    Args:
        state: It gets a store before the first request.
        lifespan: As FastAPI takes it: what runs beside the requests.
    """
    return Application(
        state,
        title="jumptable fleet",
        description=_DESCRIPTION,
        tags=_TAGS,
        modules=(tables, rollouts, nodes, events, service, docs, web),
        lifespan=lifespan,
    )
