"""Why an object file is not loaded: the answer of the process that loads it, as an error of the service."""

import errno
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from app.bpf.uapi import attach_type_name, errno_name, prog_type_name
from app.loader.messages import LoadAnswer, Refusal
from app.service.errors import KernelError, ServiceError, kernel_failure
from app.service.loading import errors
from app.service.loading.verifier_log import Finding, finding

_LIBBPF_ERRNOS: Final = range(4000, 5000)  # libbpf's own numbers: enum libbpf_errno of libbpf.h
_REFUSED_PROGRAM: Final = re.compile(r"prog '([^']+)': (?:BPF program load failed|failed to load)")
# An initialiser of an array that does not take its program (EINVAL).
_REFUSED_INITIALISER: Final = re.compile(r"map '([^']+)': failed to initialize slot \[\d+\] to prog '([^']+)' .*: -22")
_MISSING_FUNCTION: Final = re.compile(r"extern \(func ksym\) '([^']+)': not found")
_MISSING_EXTERN: Final = re.compile(
    r"extern (?:\(\w+(?: ksym)?\) )?'?([\w.]+)'?.*(?:not found|not resolved|not supported)"
)
_FAILED_RELOCATION: Final = re.compile(r"prog '([^']+)': relo #\d+: (.*)")
_POISONED: Final = re.compile(
    r"invalid CO-RE relocation|failed to resolve CO-RE relocation|invalid func unknown#195896080"
)
_MAX_WARNINGS: Final = 8


class RefusedProgram(NamedTuple):
    """A program that the kernel refuses: its name, and the numbers of its type and expected attach type."""

    name: str
    type: int
    attach_type: int

    @property
    def type_name(self) -> str:
        """The name of its type."""
        return prog_type_name(self.type)

    @property
    def attach_type_name(self) -> str:
        """The name of its expected attach type."""
        return attach_type_name(self.attach_type, self.type)


def refusal_of(answer: LoadAnswer) -> ServiceError | None:
    """Return the error for the answer of the process. None: the file was loaded."""
    if answer.refusal is None:
        return None
    try:
        return _error_of(answer, answer.refusal)
    except (AttributeError, KeyError, TypeError, ValueError):  # the file has taken the process over
        return errors.ObjectUnreadable("the process that loads it answered nonsense", None)


def _error_of(answer: LoadAnswer, refusal: Refusal) -> ServiceError:
    warnings = [line.removeprefix("libbpf: ") for line in answer.warnings.splitlines() if line.strip()]
    if refusal.code == "object-refused":
        return _of_load(refusal, warnings)
    if refusal.code == "object-unreadable":
        return errors.ObjectUnreadable(_why_unreadable(refusal, warnings), refusal.facts.get("signal"))
    make = _BY_CODE.get(refusal.code)
    return errors.ObjectUnreadable("its loader gave no reason", None) if make is None else make(refusal.facts)


def refused_program(answer: LoadAnswer) -> RefusedProgram | None:
    """Return the program that the kernel refuses without saying why (EINVAL).

    That is how it refuses a program that does not fit an array that it jumps through. None: it says why, or refuses
    nothing.
    """
    refusal, found = answer.refusal, _REFUSED_PROGRAM.search(answer.warnings)
    if refusal is None or refusal.errno != errno.EINVAL or found is None or finding(refusal.log).message:
        return None
    return _named_in(refusal, found[1])


def _named_in(refusal: Refusal, name: str) -> RefusedProgram | None:
    """Return a program by its name, as the refusal tells of it. None: it does not."""
    try:
        type_, attach_type = refusal.facts["types"][name]
        return RefusedProgram(name, int(type_), int(attach_type))
    except (KeyError, TypeError, ValueError):  # also where the file has taken the process over
        return None


def _of_load(refusal: Refusal, warnings: list[str]) -> ServiceError:
    """Return the error for a file that was opened, and that libbpf or the kernel does not load."""
    text, seen = "\n".join(warnings), finding(refusal.log)
    missing = _MISSING_FUNCTION.search(text)
    if missing is not None:
        return errors.KfuncMissing(missing[1])
    refused = _REFUSED_PROGRAM.search(text)
    program = None if refused is None else refused[1]
    relocation = _FAILED_RELOCATION.search(text)
    if relocation is not None or _POISONED.search(refusal.log):
        told = [line for line in seen.tail if "failed to resolve" in line]
        detail = relocation[2] if relocation is not None else told[0] if told else seen.message
        return errors.RelocationFailed(program if relocation is None else relocation[1], detail)
    extern = _MISSING_EXTERN.search(text) if refused is None else None
    if extern is not None:
        return errors.RelocationFailed(None, extern[0])
    misfit = _REFUSED_INITIALISER.search(text)
    misfit_program = None if misfit is None else _named_in(refusal, misfit[2])
    if misfit is not None and misfit_program is not None:
        reason = "another program of the file, which jumps through the array or is in it, has fixed what it takes"
        return errors.JumpIncompatible(
            misfit_program.name, [misfit[1]], reason, None, misfit_program.type_name, None,
            misfit_program.attach_type_name,
        )  # fmt: skip
    if refusal.errno in {errno.EPERM, errno.EACCES} and not refusal.log:
        return kernel_failure("MAP_CREATE" if refused is None else "PROG_LOAD", OSError(refusal.errno, ""))
    return _of_verifier(refusal, program, seen, warnings)


def _of_verifier(refusal: Refusal, program: str | None, seen: Finding, warnings: list[str]) -> ServiceError:
    message = seen.message or (warnings[0] if warnings else "the kernel gives no reason")
    number = errno.EACCES if refusal.errno == errno.ENOSPC and refusal.log else refusal.errno
    source = seen.source
    if source is not None and source["line"] is None and refusal.facts.get("line"):  # an old kernel: the file tells
        file, line = refusal.facts["line"]
        source = source | {"file": str(file), "line": int(line)}
    return errors.ObjectRefused(
        program, _name_of(number), message, seen.instruction, source, seen.tail or warnings[-_MAX_WARNINGS:]
    )


def _why_unreadable(refusal: Refusal, warnings: list[str]) -> str:
    if "reason" in refusal.facts:
        return str(refusal.facts["reason"])
    said = "; ".join(warnings[-2:])
    return said or f"libbpf answers {_name_of(refusal.errno)}"


def _name_of(number: int) -> str:
    return f"libbpf error {number}" if number in _LIBBPF_ERRNOS else errno_name(number)


def _not_allowed(facts: Mapping[str, Any]) -> ServiceError:
    return errors.ProgramTypeNotAllowed(facts["program"], facts["section"], prog_type_name(int(facts["type"])))


# What the process itself has found.
_BY_CODE: Final[Mapping[str, Callable[[Mapping[str, Any]], ServiceError]]] = {
    "loader-unavailable": lambda facts: errors.LoaderUnavailable(f"libbpf.so.1 cannot be loaded ({facts['reason']})"),
    "object-unsupported": lambda facts: errors.ObjectUnsupported(facts["reason"]),
    "object-timeout": lambda _: errors.ObjectTimeout(),
    "object-too-large": lambda facts: errors.ObjectTooLarge(**facts),
    "program-not-found": lambda facts: errors.ProgramNotInObject(**facts),
    "map-not-found": lambda facts: errors.MapNotInObject(**facts),
    "program-type-unknown": lambda facts: errors.ProgramTypeUnknown(**facts),
    "program-type-not-allowed": _not_allowed,
    "map-not-replaceable": lambda facts: errors.MapNotReplaceable(facts["map"], facts["differences"]),
    "variable-unknown": lambda facts: errors.VariableUnknown(**facts),
    "variable-too-long": lambda facts: errors.VariableTooLong(**facts),
    "values-on-replaced-map": lambda facts: errors.ValuesOnReplacedMap(**facts),
    "pinning-refused": lambda facts: errors.PinningRefused(facts["map"]),
    "kernel-error": lambda facts: KernelError(**facts),
}
