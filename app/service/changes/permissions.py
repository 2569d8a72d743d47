"""Whether a change may be made: the one place where rights, protected entries and waiting confirmations are checked.

Also whether it would use a map or a program whose pin leads to another object by now.
"""

from collections.abc import Collection, Iterable
from typing import Final

from app.service.changes.origin import RequestContext
from app.service.changes.plan import WritePlan
from app.service.errors import EntryProtected, EntryWaits, Forbidden, PinMoved
from app.service.objects.source import ById, Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.programs import ByName, ProgramRef, Programs
from app.store.records import Change

_ASK: Final = "stay within the bounds, or ask an admin of the service for wider ones"
_NOT_AMONG: Final = f"the program is not among its programs; {_ASK}"


def check_plan(
    programs: Programs,
    held: HeldMap,
    plan: WritePlan,
    context: RequestContext,
    reverts: int | None = None,
) -> None:
    """Check that a plan may be written.

    Args:
        programs: What the service holds, to know programs by their names.
        held: The map that the plan writes.
        plan: The writes.
        context: Who asks.
        reverts: The id of the change that the plan undoes: its entries may wait for a confirmation.

    Raises:
        Forbidden: The map, an entry or a program is beyond the bounds of the caller.
        EntryProtected: An entry is for the role admin only.
        EntryWaits: An entry waits for the confirmation of another change.
    """
    check_entries(held, plan.indexes, context)
    check_writes(programs, held, plan.indexes, plan.after, context, reverts)


def check_writes(
    programs: Programs,
    held: HeldMap,
    indexes: Collection[int],
    after: Collection[int],
    context: RequestContext,
    reverts: int | None = None,
) -> None:
    """Check writes whose entries were checked already: their programs, and what waits for a confirmation.

    Args:
        programs: What the service holds, to know programs by their names.
        held: The map.
        indexes: The entries that are written.
        after: For each, the id of the program that it is to hold, or EMPTY.
        context: Who asks.
        reverts: As in `check_plan`.

    Raises:
        Forbidden: A program is beyond the bounds of the caller.
        EntryWaits: An entry waits for the confirmation of another change.
    """
    if context.grant.programs is not None:
        _check_programs(programs, indexes, after, context)
    if held.unconfirmed is not None:
        check_confirmed(held, indexes, reverts)


def check_confirmation(programs: Programs, held: HeldMap, change: Change, context: RequestContext) -> None:
    """Check that the caller may let a change stand: that takes the same rights as making it.

    Raises:
        Forbidden: The map, an entry or a program is beyond the bounds of the caller.
        EntryProtected: An entry is for the role admin only.
    """
    if not context.grant.is_unbounded:
        check_entries(held, change.entries.indexes, context)
        _check_programs(programs, change.entries.indexes, change.entries.after, context)


def check_entries(held: HeldMap, indexes: Collection[int], context: RequestContext) -> None:
    """Check that the caller may change these entries.

    Raises:
        Forbidden: The map or an entry is beyond their bounds.
        EntryProtected: An entry is for the role admin only.
    """
    grant = context.grant
    if grant.is_unbounded:
        return
    if indexes and not grant.has_map(held.name):
        raise Forbidden(context.actor, next(iter(indexes)), f"map {held.name!r} is not among its maps; {_ASK}")
    if grant.entries is None and (grant.role == "admin" or not held.protected.parts):
        return
    for index in indexes:
        if not grant.has_entry(index):
            raise Forbidden(context.actor, index, f"it is not among its entries; {_ASK}")
        if grant.role != "admin" and index in held.protected:
            raise EntryProtected(index)


def check_confirmed(held: HeldMap, indexes: Collection[int], reverts: int | None = None) -> None:
    """Check that no entry waits for a confirmation, unless of the change that is reverted.

    Raises:
        EntryWaits: An entry waits for the confirmation of another change.
    """
    if held.unconfirmed is not None:
        for index in indexes:
            if held.unconfirmed.get(index, reverts) != reverts:
                raise EntryWaits(index, held.unconfirmed[index])


def check_not_moved(held: HeldMap | HeldProgram, context: RequestContext) -> None:
    """Check that the pin of a map or program led to what is held at the last look, unless the request has force.

    This holds also for a change that would write nothing: otherwise it would say that all is as it is to be.

    Raises:
        PinMoved: The pin leads to another object now.
    """
    if held.moved is not None and not context.force:
        raise PinMoved(held.kind, held.name, held.moved.path, held.opened().id, held.moved.id)


def check_names_not_moved(programs: Programs, refs: Iterable[ProgramRef | None], context: RequestContext) -> None:
    """Check the programs that a request names by their held names.

    Raises:
        PinMoved: The pin of one of them leads to another object now.
    """
    for ref in refs:
        if isinstance(ref, ByName):
            held = programs.find(ref.name)
            if held is not None:
                check_not_moved(held, context)


def check_program(
    programs: Programs, index: int, ref: ProgramRef, program_id: int | None, context: RequestContext
) -> None:
    """Check that a program is within the bounds of whoever asks, or is in the entry already, before it is looked for.

    A program beyond the bounds and one that does not exist are refused alike.

    Args:
        programs: What the service holds.
        index: The entry that is to point to the program.
        ref: The reference.
        program_id: The id of the program that is in the entry. None or 0: none.
        context: Who asks.

    Raises:
        Forbidden: The program is beyond the bounds.
    """
    allowed = context.grant.programs
    if allowed is None or (isinstance(ref, ByName) and ref.name in allowed):
        return
    if isinstance(ref, Pinned) and context.grant.role == "admin":
        return  # what the pin leads to is checked with the plan
    if program_id and ref == ById(program_id):
        return
    for held in programs:
        if held.object is None or ref not in (ByName(held.name), ById(held.object.id), held.source):
            continue
        if held.name in allowed or held.object.id == program_id:
            return
    raise Forbidden(context.actor, index, _NOT_AMONG)


def check_reference(
    programs: Programs,
    index: int,
    ref: ProgramRef,
    program_id: int | None,
    in_table: Collection[int],
    context: RequestContext,
) -> None:
    """Check that the caller may refer to a program in this way.

    Others than admins name programs by their held names. By id or pin they name only what the service holds, or what is
    in the table already.

    Args:
        programs: What the service holds.
        index: The entry that is to point to the program.
        ref: The reference.
        program_id: What the reference leads to. None: it is not followed yet, and a pin of nothing held must not be.
        in_table: The ids of the programs in the table.
        context: Who asks.

    Raises:
        Forbidden: It takes the role admin.
    """
    if context.grant.role == "admin" or isinstance(ref, ByName):
        return
    if isinstance(ref, ById):
        known = _is_known(programs, ref.id, in_table)
    elif program_id is None:
        known = any(held.source == ref for held in programs)
    else:
        known = _is_known(programs, program_id, in_table)
    if not known:
        reason = (
            "to name a program by id or pin that is not held takes the role admin; name a held program, or ask an "
            "admin of the service to hold this one"
        )
        raise Forbidden(context.actor, index, reason)


def _check_programs(
    programs: Programs, indexes: Collection[int], ids: Collection[int], context: RequestContext
) -> None:
    """Check the programs that are put in. `ids`: one for each index; 0: none."""
    allowed = context.grant.programs
    if allowed is None:
        return
    named = {each.object.id for each in programs if each.object is not None and each.name in allowed}
    for index, program_id in zip(indexes, ids, strict=True) if set(ids) - named - {0} else ():
        if program_id and program_id not in named:
            raise Forbidden(context.actor, index, _NOT_AMONG)


def _is_known(programs: Programs, program_id: int, in_table: Collection[int]) -> bool:
    """Whether the service holds the program, or the table has it. 0 is the id of no program."""
    return programs.held_as(program_id) is not None or (program_id != 0 and program_id in in_table)
