"""Whether whoever asks may change these entries: asked of every change, wherever it comes from."""

from collections.abc import Collection, Sequence

from app.access.rights import Grant
from app.service.changes.origin import RequestContext
from app.service.errors import EntryProtected, Forbidden
from app.service.objects.source import ById
from app.service.registry.held import HeldMap
from app.service.registry.programs import ByName, ProgramRef, Programs


def check_entries(held: HeldMap, indexes: Sequence[int], actor: str, grant: Grant) -> None:
    """Forbidden, EntryProtected where the map or one of the entries is beyond the bounds."""
    if grant.is_unbounded:
        return
    if indexes and not grant.has_map(held.name):
        raise Forbidden(actor, indexes[0], f"map {held.name!r} is not among its maps")
    if grant.entries is None and (grant.role == "admin" or not held.protected.parts):
        return
    for index in indexes:
        if not grant.has_entry(index):
            raise Forbidden(actor, index, "it is not among its entries")
        if grant.role != "admin" and index in held.protected:
            raise EntryProtected(index)


def check_programs(
    programs: Programs, held: HeldMap, indexes: Sequence[int], ids: Sequence[int], actor: str, grant: Grant
) -> None:
    """The same, also where one of the programs is; `ids`: of those that are to be there. 0: none."""
    if grant.is_unbounded:
        return
    check_entries(held, indexes, actor, grant)
    if grant.programs is not None:
        named = {each.object.id for each in programs if each.object is not None and each.name in grant.programs}
        for index, program_id in zip(indexes, ids, strict=True) if set(ids) - named - {0} else ():
            if program_id and program_id not in named:
                raise Forbidden(actor, index, f"program {program_id} is not among its programs")


def needs_no_right(programs: Programs, program_id: int, there: Collection[int]) -> bool:
    """Whether a program may be named by id or pin by others than admins: it is held, or in the table already.

    `there`: ids; 0 is that of no program.
    """
    return programs.held_as(program_id) is not None or (program_id != 0 and program_id in there)


def check_reference(
    programs: Programs,
    index: int,
    ref: ProgramRef,
    program_id: int | None,
    there: Collection[int],
    origin: RequestContext,
) -> None:
    """Forbidden where others than admins name a program by id or pin that is neither held nor in the table already.

    `program_id`: what the reference has led to; None: it was not followed yet, and a pin of nothing held is not to be.
    """
    if origin.grant.role == "admin" or isinstance(ref, ByName):
        return
    if isinstance(ref, ById):
        known = needs_no_right(programs, ref.id, there)
    elif program_id is None:
        known = any(held.source == ref for held in programs)
    else:
        known = needs_no_right(programs, program_id, there)
    if not known:
        reason = "to name a program by id or pin that is not held takes the role admin"
        raise Forbidden(origin.actor, index, reason)
