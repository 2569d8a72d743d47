"""Where the pins of held maps and programs lead by now."""

from app.bpf.kernel import Kernel
from app.service.errors import KernelError, NotAProgram, NotAProgramArray, PinUnusable, ServiceError
from app.service.objects.opening import open_array, open_program
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram, MovedPin


def follow_pin(kernel: Kernel, held: HeldMap | HeldProgram) -> None:
    """Open the pin of what is held, and mark it as moved if the pin leads to another object by now.

    Where that cannot be seen now, as without the keeper, nothing changes.

    Kernel:
        OBJ_GET, Linux 4.4.
    """
    source = held.source
    if held.object is None or not isinstance(source, Pinned):
        held.moved = None
        return
    found: int | None
    try:
        with open_array(kernel, source) if held.kind == "map" else open_program(kernel, source) as opened:
            found = opened.id
    except (NotAProgramArray, NotAProgram):
        found = None
    except KernelError:
        return
    except ServiceError as error:
        held.is_pinned = False
        if isinstance(error, PinUnusable) and error.errno == "ENOENT":
            held.moved = None
        return
    held.is_pinned = found == held.object.id
    held.moved = None if held.is_pinned else MovedPin(source.path, found)


def moved_warning(held: HeldMap | HeldProgram) -> str | None:
    """Return a sentence if what is held is marked as moved."""
    if held.moved is None or held.object is None:
        return None
    noun, with_force = ("array", ", with ?force=true where the old one has entries") if held.kind == "map" else (
        "program", "; entries that hold the old one keep it"
    )  # fmt: skip
    other = f"no {noun}" if held.moved.id is None else f"another {noun} now (id {held.moved.id})"
    return (
        f"the pin of {held.kind} {held.name!r} leads to {other}, while id {held.object.id} is held; "
        f"PUT /{held.kind}s/NAME with the same pin opens the new one{with_force}"
    )
