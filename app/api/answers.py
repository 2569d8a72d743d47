"""The answers that both ways of a request give: of a read, and of a change, of one entry."""

from starlette.types import Scope

from app.api.audit import FACTS, program_fact
from app.api.authorization import check_entry
from app.api.encoding.changes import entries_chunks
from app.api.encoding.entries import entry_json, entry_of, waiting_of
from app.api.schemas import responses
from app.service.changes.entries import SetResult
from app.service.errors import EntryEmpty
from app.service.lifecycle import Service
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.records import EMPTY


def read_answer(scope: Scope, service: Service, held: HeldMap, index: int) -> responses.Answer:
    """Return the answer to a request that reads an entry.

    Raises:
        HttpProblem: forbidden: the entry is beyond the bounds of the caller.
        EntryEmpty: It points to no program.
        IndexOutOfRange: It is not below max_entries.
        MapUnavailable: The map could not be opened.
        KernelError: The kernel refuses.
    """
    check_entry(scope, index)
    array = held.opened()
    program_id = array.get(index)
    service.drift.note_read_of_entry(held, index, program_id)
    if program_id is None:
        raise EntryEmpty(index)
    summary = service.registry.programs.describe(program_id)
    etag, body = entry_json(service.registry, held.name, array.id, index, summary, waiting_of(held, index))
    return responses.Answer(200, {"ETag": etag}, body)


def set_answer(scope: Scope, registry: Registry, held: HeldMap, index: int, result: SetResult) -> responses.Answer:
    """Return the answer to a request that has set an entry."""
    waiting = waiting_of(held, index)
    etag, body = entry_json(registry, held.name, result.map_id, index, result.after, waiting)
    headers = {"ETag": etag}
    if result.change is not None:
        headers["Change-Id"] = str(result.change.id)
        scope[FACTS] = {
            "change": result.change.id,
            "map": held.name,
            "index": index,
            "before": program_fact(result.change.entries.programs.get(result.before or EMPTY)),
            "after": {"name": result.after.name, "id": result.after.id},
        }
    if result.fit is not None:
        headers["Dry-Run"] = "true"
        entry = entry_of(registry, held.name, result.map_id, index, result.after, waiting)
        dry = responses.DryEntry(**dict(entry), fit=result.fit, entries=[]).model_dump_json()
        body = b"".join(entries_chunks(dry, result.entries))
    return responses.Answer(201 if result.before is None else 200, headers, body)
