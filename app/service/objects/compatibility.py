"""What a program array requires of its programs, and in what a program differs from that."""

from dataclasses import dataclass
from typing import Self

from app.bpf.inventory import ArrayOwner, LoadedProgram
from app.bpf.kernel import Kernel
from app.bpf.uapi import attach_type_name, prog_type_name
from app.service.errors import ProgramIncompatible, kernel_failure
from app.service.objects.program import Program


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an array requires of its programs, as far as it can be told.

    The first program that was put in, or that was loaded to jump through the array, has fixed it for good.

    Attributes:
        owner_type: One of enum bpf_prog_type. None: there is no owner yet.
        owner: All that the kernel compares. None: there is no owner yet, or it cannot be told.
        loaded: The programs, by id, with what the kernel compares of each. Empty: it cannot be told.
    """

    owner_type: int | None
    owner: ArrayOwner | None
    loaded: dict[int, LoadedProgram]

    @classmethod
    def of(cls, kernel: Kernel, fd: int) -> Self:
        """Ask the kernel.

        Args:
            kernel: The kernel.
            fd: The program array.

        Raises:
            KernelPermission, KernelError: The kernel reports nothing about it.
        """
        try:
            owner_type, id_ = kernel.map_state(fd).owner_type, kernel.map_info(fd).id
        except OSError as error:
            raise kernel_failure("fdinfo", error) from error
        try:
            loaded = kernel.loaded()
        except OSError:  # no iterators, or no keeper: the kernel still refuses what does not fit
            return cls(owner_type, None, {})
        array = loaded.arrays.get(id_)
        return cls(owner_type, None if array is None else array.owner, loaded.programs)

    @property
    def attach_type(self) -> str | None:
        """The name of the expected attach type that the array requires. None: it is not known."""
        required = self.owner
        if required is None or required.attach_type is None:
            return None
        return attach_type_name(required.attach_type, required.prog_type)

    def differences(self, program: Program) -> list[str]:
        """Return in what a program differs from what the array requires, a clause each. Empty: nothing is known."""
        found = self.loaded.get(program.id)
        difference = self.difference_of_types(program.type, None if found is None else _attach_type(found))
        if self.owner_type is not None and prog_type_name(self.owner_type) != program.type:
            return [] if difference is None else [difference]
        required = self.owner
        if required is None or found is None:
            return []
        differences = [] if difference is None else [difference]
        if required.xdp_frags != found.xdp_frags:
            differences.append(
                f"the array takes only programs {_with(required.xdp_frags)} XDP frags (BPF_F_XDP_HAS_FRAGS), and this "
                f"one is {_with(found.xdp_frags)}"
            )
        if required.jited != found.jited:
            differences.append(
                f"the array takes only programs that are {_compiled(required.jited)} (net.core.bpf_jit_enable), and "
                f"this one is {_compiled(found.jited)}"
            )
        return differences

    def difference_of_types(self, type_: str, attach_type: str | None) -> str | None:
        """Return in what the types of a program, which may not be loaded, differ from what the array requires.

        Args:
            type_: The name of its type.
            attach_type: The name of its expected attach type. None: it is not known.

        Returns:
            A clause. None: they do not differ, or it cannot be told.
        """
        owner = type_ if self.owner_type is None else prog_type_name(self.owner_type)
        if owner != type_:
            return f"the array takes only programs of type {owner}, and this one is {type_}"
        if None not in {self.attach_type, attach_type} and self.attach_type != attach_type:
            return (
                f"the array takes only programs with the expected attach type {self.attach_type}, and this one has "
                f"{attach_type}"
            )
        return None

    def refusal(self, program: Program) -> ProgramIncompatible:
        """Return the error for a program that does not fit, with the reason as far as it can be told."""
        owner = None if self.owner_type is None else prog_type_name(self.owner_type)
        found = self.loaded.get(program.id)
        needed, has = self.attach_type, None if found is None else _attach_type(found)
        differences = self.differences(program)
        remedy = (
            "load it as the programs in the array were loaded (same section name and flags), or use a new array: "
            "clearing every entry does not reset which programs the array takes"
        )
        if owner is not None and owner != program.type:
            remedy = f"use a program of type {owner}, or a new array: the first program fixes the type for good"
        elif differences and needed != has:
            remedy = (
                f"load it with the expected attach type {needed} (libbpf: bpf_program__set_expected_attach_type), or "
                "use a new array: clearing every entry does not reset which programs the array takes"
            )
        return ProgramIncompatible(
            reason="; ".join(differences) or self._possible_reason(),
            remedy=remedy,
            owner_program_type=owner,
            program_type=program.type,
            owner_attach_type=needed,
            attach_type=has,
            program_id=program.id,
        )

    def _possible_reason(self) -> str:
        """Return what may be the reason where no difference is known."""
        others = "attach prototype or cgroup storage"
        if self.owner is None:
            others = "expected_attach_type, XDP frags, attach prototype, cgroup storage or JIT"
        if self.owner_type is None:
            return f"the kernel does not report what the array takes; the program's type, {others} may rule it out"
        same = "the type is" if self.owner is None else "type and attach type are"
        return f"{same} the same, so {others} must differ from those of the first program"


def _attach_type(program: LoadedProgram) -> str | None:
    """Return the name of the expected attach type of a program. None: it is not known."""
    return None if program.attach_type is None else attach_type_name(program.attach_type, program.type)


def _with(condition: bool) -> str:
    return "with" if condition else "without"


def _compiled(condition: bool) -> str:
    return "compiled" if condition else "not compiled"
