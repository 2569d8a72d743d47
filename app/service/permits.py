"""Whether whoever asks may change these entries: asked of every change, wherever it comes from."""

from collections.abc import Iterable, Sequence

from app.access.rights import Grant
from app.service.errors import EntryProtected, Forbidden
from app.service.held import ById, HeldMap, HeldProgram, Pinned
from app.service.programs import ProgramRef, Programs
from app.service.writing import Step


def check_entries(held: HeldMap, indexes: Iterable[int], actor: str, grant: Grant) -> None:
    """Forbidden, EntryProtected where the map or one of the entries is beyond the bounds."""
    if grant.is_unbounded:
        return
    is_admin = grant.role == "admin"
    for index in indexes:
        if not grant.has_map(held.name):
            raise Forbidden(actor, index, f"map {held.name!r} is not among its maps")
        if not grant.has_entry(index):
            raise Forbidden(actor, index, "it is not among its entries")
        if not is_admin and index in held.protected:
            raise EntryProtected(index)


def check_steps(programs: Programs, held: HeldMap, steps: Sequence[Step], actor: str, grant: Grant) -> None:
    """The same, also where one of the programs is."""
    if grant.is_unbounded:
        return
    check_entries(held, (step.index for step in steps), actor, grant)
    if grant.programs is not None:
        named = {each.object.id for each in programs if each.object is not None and each.name in grant.programs}
        for step in steps:
            if step.after is not None and step.after not in named:
                raise Forbidden(actor, step.index, f"program {step.after} is not among its programs")


def check_reference(
    programs: Programs, index: int, ref: ProgramRef, there: Iterable[int], actor: str, grant: Grant
) -> None:
    """Forbidden where others than admins name a program by id or pin that is neither held nor in the table already."""
    if grant.role == "admin":
        return
    if isinstance(ref, ById):
        known = programs.held_as(ref.id) is not None or ref.id in set(there)
    else:
        known = not isinstance(ref, Pinned) or any(_is_at(held, ref) for held in programs)
    if not known:
        raise Forbidden(actor, index, "to name a program by id or pin that is not held takes the role admin")


def _is_at(held: HeldProgram, ref: Pinned) -> bool:
    return held.source == ref
