"""The application: FastAPI with the routes. `app.api.deferred` loads it."""

from typing import Final

from fastapi import FastAPI

from app.api.application import Application
from app.api.routes import changes, docs, entries, events, graph, health, maps, metrics, problems, programs, tables, web
from app.api.routes import objects as object_routes
from app.api.state import State

_DESCRIPTION: Final = """
An HTTP API for eBPF program arrays (`BPF_MAP_TYPE_PROG_ARRAY`): the jump tables of `bpf_tail_call()`.

* Every read asks the kernel; an ETag changes also when somebody else's tool has written.
* A change of program is one overwrite: a packet sees the old or the new program, never an empty entry.
* Errors are `application/problem+json`; `GET /problems/{code}` explains each. Every answer has an `X-Request-ID`,
  the one of the request where it brought one.
* HEAD works wherever GET does.
"""
# The tags of the routes, in the order in which the document shows them.
_TAGS: Final = {
    "entries": "The entries of a map, one by one and as a whole table.",
    "maps": "Program arrays, held under names.",
    "programs": "Programs, held under names.",
    "objects": "Object files, with their programs and arrays held as NAME.program and NAME.map.",
    "graph": "Who jumps where: all loaded programs and arrays.",
    "changes": "The journal of changes: confirm, revert, reconcile, follow.",
    "service": "The service itself: health, version, metrics, problems.",
}
_MODULES: Final = (
    entries, tables, changes, events, maps, programs, object_routes, graph, health, problems, docs, metrics, web,
)  # fmt: skip


def create_app(state: State) -> FastAPI:
    """Make the application that answers requests with `state`. Its service has to be started."""
    return _Application(state)


class _Application(Application):
    """The application of a node, which also collects metrics."""

    def __init__(self, state: State) -> None:
        super().__init__(
            state, title="jumptable", description=_DESCRIPTION, tags=_TAGS, modules=_MODULES, has_agents=True
        )
        self.collectors = metrics.collectors(state.service)
