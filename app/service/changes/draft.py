"""A change as it is to be journalled, before it is written."""

from app.service.changes.origin import RequestContext
from app.service.changes.plan import WritePlan
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.records import Change, ChangeKind, EntryChanges, ProgramRecord


def change_of(
    registry: Registry,
    held: HeldMap,
    kind: ChangeKind,
    entries: EntryChanges,
    origin: RequestContext,
    at: float,
    reverts: int | None = None,
) -> Change:
    """The change. `at`: seconds since 1970; `reverts`: the one that it undoes."""
    return Change(
        map=held.name,
        map_id=held.opened().id,
        boot_id=registry.kernel.boot_id,
        kind=kind,
        entries=entries,
        at=at,
        actor=origin.actor,
        request_id=origin.request_id,
        note=origin.note,
        state="applied" if origin.confirm_within is None else "unconfirmed",
        reverts=reverts,
        confirm_by=None if origin.confirm_within is None else at + origin.confirm_within,
    )


def entries_of(registry: Registry, held: HeldMap, steps: WritePlan) -> EntryChanges:
    """Its entries, with what is known of their programs: also a path by which one was named once."""
    record, programs = registry.programs.record, dict[int, ProgramRecord]()
    known = {} if held.expected is None else held.expected.table.programs
    for id_ in (*steps.replaced, *steps.programs):
        path = steps.pinned.get(id_)
        if path is None and id_ in known:
            path = known[id_].pinned
        programs[id_] = record(id_, path)
    return EntryChanges(steps.indexes, steps.before, steps.after, programs)
