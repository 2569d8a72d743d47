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

    def differences(self, program: Program) -> list[str]:
        """Return in what a program differs from what the array requires, a clause each. Empty: nothing is known."""
        owner = None if self.owner_type is None else prog_type_name(self.owner_type)
        if owner is None:
            return []
        if owner != program.type:
            return [f"the array takes only programs of type {owner}, and this one is {program.type}"]
        required, found = self.owner, self.loaded.get(program.id)
        if required is None or found is None:
            return []
        differences = []
        if required.attach_type not in {None, found.attach_type}:
            needed, has = self._attach_types(program)
            differences.append(
                f"the array takes only programs with the expected attach type {needed}, and this one has {has}"
            )
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

    def refusal(self, program: Program) -> ProgramIncompatible:
        """Return the error for a program that does not fit, with the reason as far as it can be told."""
        owner = None if self.owner_type is None else prog_type_name(self.owner_type)
        needed, has = self._attach_types(program)
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

    def _attach_types(self, program: Program) -> tuple[str | None, str | None]:
        """Return the name of the attach type that the array requires, and of the program's. None: not known."""
        required, found = self.owner, self.loaded.get(program.id)
        needed = None
        if required is not None and required.attach_type is not None:
            needed = attach_type_name(required.attach_type, required.prog_type)
        if found is None or found.attach_type is None:
            return needed, None
        return needed, attach_type_name(found.attach_type, found.type)


def _with(condition: bool) -> str:
    return "with" if condition else "without"


def _compiled(condition: bool) -> str:
    return "compiled" if condition else "not compiled"
