"""Loading one version of an object file: what takes the place of its maps, and how its programs are tried."""

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol, TypeVar

from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, errno_name, prog_type_name
from app.loader.files import content_of
from app.loader.messages import LoadAnswer, LoadRequest, ProgramChoice
from app.service.errors import ServiceError, Stopping, kernel_failure
from app.service.loading.errors import (
    FileChanging,
    FileNotAllowed,
    FileUnusable,
    JumpIncompatible,
    LoaderUnavailable,
    MapNotHeld,
    NoPreviousMap,
    ObjectTooLarge,
    ObjectUnsupported,
)
from app.service.loading.refusals import RefusedProgram, refusal_of, refused_program
from app.service.loading.specification import PREVIOUS, MapOptions, Specification
from app.service.loading.version import LoadedMap, LoadedProgram, Version, owned_map
from app.service.objects.compatibility import Requirements
from app.service.objects.program import OwnedFd, Program
from app.service.objects.program_array import ProgramArray
from app.service.registry.registry import Registry

_REMEDIES: Final = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENODEV: "it is no regular file",
    errno.EMLINK: "it has several names (hard links): copy it",
    errno.EACCES: "its mode and owner deny the service access",
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "the path is too long",
    errno.EINVAL: "the path must be absolute, in UTF-8 and without NUL characters",
}
_NO_ATTACH_TYPE: Final = 0
_LOADS_AT_A_TIME: Final = 2

T = TypeVar("T")


class ObjectLoader(Protocol):
    """Reads and loads object files. `app.loader` and `app.keeper` have one each."""

    def read_file(self, path: str) -> int:
        """Return the fd of sealed memory with the content of a file: see `app.loader.files.read_file`."""

    def seal(self, content: bytes) -> int:
        """Return the fd of sealed memory with this content."""

    def load(self, request: LoadRequest, elf: int, maps: Sequence[int]) -> tuple[LoadAnswer, list[int]]:
        """Load an object file: see `app.loader.client.DirectLoader.load`. May take long: call it in a worker thread."""

    def close(self) -> None:
        """End what is being loaded."""


class SealedFile(NamedTuple):
    """An object file in sealed memory: its fd, its SHA-256 in hex, and its size in bytes."""

    fd: int
    digest: str
    size: int


def _sealed(read: Callable[[T], int], source: T) -> SealedFile:
    """Return the file that this function reads."""
    fd = read(source)
    try:
        return SealedFile(fd, hashlib.sha256(content_of(fd)).hexdigest(), os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a map.

    Attributes:
        use: See LoadedMap.
        object: The open map.
    """

    use: str
    object: OwnedFd

    @property
    def is_ownerless(self) -> bool:
        """Whether it is an array that takes any program so far: the first that jumps through it fixes what fits."""
        return isinstance(self.object, ProgramArray) and self.object.state().owner_type is None


class Loads:
    """Loads versions. Thread rule: one event loop."""

    def __init__(self, registry: Registry, loader: ObjectLoader | None, max_bytes: int, *, can_hold_pins: bool) -> None:
        """Load nothing yet.

        Args:
            registry: What is held.
            loader: Reads and loads files. None: there is no kernel to load into.
            max_bytes: The largest file.
            can_hold_pins: There is a folder where the service pins what it loads.
        """
        self._registry = registry
        self._loader = loader
        self._max_bytes = max_bytes
        self._can_hold_pins = can_hold_pins
        self._slots = asyncio.Semaphore(_LOADS_AT_A_TIME)

    @property
    def loader(self) -> ObjectLoader:
        """What reads and loads files.

        Raises:
            LoaderUnavailable: There is nothing.
        """
        if self._loader is None:
            raise LoaderUnavailable("the kernel in memory loads no object files")
        return self._loader

    async def read(self, path: str | None, content: bytes | None) -> SealedFile:
        """Return an object file in sealed memory. The caller owns the fd.

        Args:
            path: The path of the file. None: a request brought it.
            content: What the request brought.

        Raises:
            FileNotAllowed, FileUnusable, FileChanging, ObjectTooLarge: The file cannot be read.
            KeeperGone: Not now.
        """
        loader = self.loader
        if path is None:
            return await asyncio.to_thread(_sealed, loader.seal, content or b"")
        try:
            return await asyncio.to_thread(_sealed, loader.read_file, path)
        except ValueError:
            raise FileUnusable(path, "EINVAL", _REMEDIES[errno.EINVAL]) from None
        except OSError as error:
            raise self._read_failure(path, error) from error

    def _read_failure(self, path: str, error: OSError) -> ServiceError:
        if error.errno == errno.EXDEV:
            return FileNotAllowed(
                f"the file {path!r} is not below one of objects.object_dirs, links resolved; name one that is, by an "
                "absolute path"
            )
        if error.errno == errno.EFBIG:
            return ObjectTooLarge(None, self._max_bytes + 1, self._max_bytes)
        if error.errno == errno.EAGAIN:
            return FileChanging(path)
        if error.errno in _REMEDIES:
            return FileUnusable(path, errno_name(error.errno), _REMEDIES[error.errno])
        return kernel_failure("READ_OBJECT", error)

    async def load(
        self,
        name: str,
        elf: SealedFile,
        asked: Specification,
        before: Version | None,
        attach_types: Mapping[int, int],
        *,
        dry_run: bool,
    ) -> Version:
        """Load a version. Nothing is held or pinned yet.

        Where it jumps through an array that has no owner yet, it is first tried on another one, as the kernel lets a
        program that is loaded claim such an array for good.

        Args:
            name: The name of the object file.
            elf: The file.
            asked: How to load it.
            before: The version before. None: there is none.
            attach_types: See LoadRequest.
            dry_run: Touch no array that is in use.

        Returns:
            The version. The caller closes it.

        Raises:
            ServiceError: It cannot be loaded.
        """
        if asked.pinning == "hold" and not self._can_hold_pins:
            raise ObjectUnsupported('"pinning": "hold" keeps maps by pins in server.keep_dir, which is not set')
        async with self._slots:
            with ExitStack() as stack:
                taking_places = self._replacements(asked, before, stack)
                known: Mapping[int, int] = {**self._attach_types_of(taking_places), **attach_types}
                stand_ins = self._stand_ins(taking_places, stack)
                if stand_ins:
                    tried = await self._load_fitting(name, elf, asked, taking_places | stand_ins, known)
                    if dry_run:
                        return tried
                    known = tried.attach_types
                    await tried.close()
                return await self._load_fitting(name, elf, asked, taking_places, known)

    def _attach_types_of(self, taking_places: Mapping[str, Replacement]) -> dict[int, int]:
        """Return by type of program the expected_attach_type that the arrays take, where it can be told."""
        found = {}
        for each in taking_places.values():
            if isinstance(each.object, ProgramArray):
                owner = self._registry.kernel.owner_of(each.object.id)
                if owner is not None and owner.attach_type is not None:
                    found[owner.prog_type] = owner.attach_type
        return found

    def _replacements(self, asked: Specification, before: Version | None, stack: ExitStack) -> dict[str, Replacement]:
        """Open what takes the place of maps, for as long as the stack, by the name of the map."""
        found = {}
        for map_, options in asked.maps.items():
            use, object_ = self._replacement(map_, options, before)
            if object_ is not None:
                found[map_] = Replacement(use, stack.enter_context(object_))
        for map_, loaded in (before.maps if before is not None and asked.pinning == "hold" else {}).items():
            if loaded.facts.is_pinned_by_name and loaded.object is not None and map_ not in found:
                found[map_] = Replacement(PREVIOUS, stack.enter_context(_copy(self._registry.kernel, loaded.object)))
        return found

    def _replacement(self, map_: str, options: MapOptions, before: Version | None) -> tuple[str, OwnedFd | None]:
        kernel, maps = self._registry.kernel, self._registry.maps
        if options.use == PREVIOUS:
            loaded = None if before is None else before.maps.get(map_)
            if loaded is not None and loaded.object is None and loaded.use is not None:
                options = replace(options, use=loaded.use)  # a held map has taken its place before
            elif loaded is None or loaded.object is None:
                raise NoPreviousMap(map_, [])
            else:
                return PREVIOUS, _copy(kernel, loaded.object)
        if options.pinned is not None:
            return options.pinned, maps.open_pinned(options.pinned)
        if options.use is None:
            return "", None
        held = maps.find(options.use)
        if held is None:
            raise MapNotHeld(options.use)
        return options.use, held.opened().copy()

    def _stand_ins(self, taking_places: Mapping[str, Replacement], stack: ExitStack) -> dict[str, Replacement]:
        """Make an array of the same shape for each that has no owner yet."""
        kernel, found = self._registry.kernel, {}
        for map_, each in taking_places.items():
            if each.is_ownerless and isinstance(each.object, ProgramArray):
                try:
                    fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, each.object.max_entries, "scratch")
                except OSError as error:
                    raise kernel_failure("MAP_CREATE", error) from error
                found[map_] = Replacement(each.use, stack.enter_context(ProgramArray(kernel, fd)))
        return found

    async def _load_fitting(
        self,
        name: str,
        elf: SealedFile,
        asked: Specification,
        taking_places: Mapping[str, Replacement],
        attach_types: Mapping[int, int],
    ) -> Version:
        """Load a version. Where the kernel refuses it for its attach type, as it seems, the other one is tried."""
        tried: list[Mapping[int, int]] = []
        while True:
            tried.append(attach_types)
            request = _request(name, asked, taking_places, attach_types)
            answer, fds = await self._ask(request, elf.fd, [taking_places[map_].object.fd for map_ in request.replaced])
            misfit = refused_program(answer) if taking_places else None
            other = None if misfit is None else other_attach_types(attach_types, misfit.type, tried)
            if misfit is not None and other is None:
                raise self._misfit(misfit, taking_places)
            if other is None:
                break
            attach_types = other
        error = refusal_of(answer)
        if error is not None:
            raise error
        return await self._version(elf, asked, taking_places, attach_types, answer, fds)

    def _misfit(self, program: RefusedProgram, taking_places: Mapping[str, Replacement]) -> JumpIncompatible:
        """Return the error for a program that fits none of the arrays that it may have to do with."""
        kernel = self._registry.kernel
        required = {
            map_: Requirements.of(kernel, each.object.fd)
            for map_, each in sorted(taking_places.items())
            if isinstance(each.object, ProgramArray)
        }
        differences = {
            map_: each.difference_of_types(program.type_name, program.attach_type_name)
            for map_, each in required.items()
        }
        # Those that are known to differ; where none is, it may be any.
        maps = [map_ for map_, difference in differences.items() if difference is not None] or list(required)
        owner = next((required[map_] for map_ in maps if required[map_].owner_type is not None), None)
        known = next((differences[map_] for map_ in maps if differences[map_] is not None), None)
        return JumpIncompatible(
            program=program.name,
            maps=maps,
            reason=known or "the kernel does not tell how it differs from the programs there",
            owner_program_type=None if owner is None else prog_type_name(owner.owner_type or 0),
            program_type=program.type_name,
            owner_attach_type=None if owner is None else owner.attach_type,
            attach_type=program.attach_type_name,
        )

    async def _ask(self, request: LoadRequest, elf: int, maps: list[int]) -> tuple[LoadAnswer, list[int]]:
        try:
            return await asyncio.to_thread(self.loader.load, request, elf, maps)
        except PermissionError:
            raise FileNotAllowed(
                "a request may not bring an object file, as objects.upload is not set; name a file below "
                "objects.object_dirs, as it is now"
            ) from None
        except OSError as error:
            if error.errno == errno.ESHUTDOWN:
                raise Stopping from error
            if error.errno == errno.EBUSY:
                raise LoaderUnavailable("others are being loaded; send the request again in a moment") from error
            raise kernel_failure("LOAD_OBJECT", error) from error

    async def _version(
        self,
        elf: SealedFile,
        asked: Specification,
        taking_places: Mapping[str, Replacement],
        attach_types: Mapping[int, int],
        answer: LoadAnswer,
        fds: Sequence[int],
    ) -> Version:
        """Make a version of the answer, and take over the fds. Others have their turn after each program and map."""
        kernel, left = self._registry.kernel, list(fds)
        version = Version(0, asked, elf.digest, elf.size, time.time(), kernel.boot_id, attach_types)
        version.values, version.unconfined = list(answer.values), tuple(answer.unconfined)
        try:
            for facts in answer.programs:
                if facts.is_loaded:
                    version.programs[facts.name] = LoadedProgram(facts)
                    version.programs[facts.name].open(Program(kernel, left.pop(0)))
                    await asyncio.sleep(0)
            for map_facts in answer.maps:
                replacement = taking_places.get(map_facts.name)
                await asyncio.sleep(0)
                if replacement is None:
                    fd = left.pop(0)
                    id_ = kernel.map_info(fd).id
                    version.maps[map_facts.name] = LoadedMap(
                        map_facts, None, id_, None, owned_map(kernel, fd, map_facts)
                    )
                    continue
                kept = _copy(kernel, replacement.object) if replacement.use == PREVIOUS else None
                id_ = kernel.map_info(replacement.object.fd).id
                version.maps[map_facts.name] = LoadedMap(map_facts, replacement.use, id_, None, kept)
        except BaseException:
            version.close_now()
            for fd in left:
                kernel.close(fd)
            raise
        return version


def other_attach_types(
    attach_types: Mapping[int, int], type_: int, tried: Sequence[Mapping[int, int]]
) -> dict[int, int] | None:
    """Return what is to be tried where programs of a type do not fit. None: everything was tried.

    Before there were sections that fix an expected_attach_type, programs had none (0). Where the kernel does not tell
    what an array takes, it is likely the one or the other.

    Args:
        attach_types: What was tried last: see LoadRequest.
        type_: The number of the type.
        tried: All that was tried.
    """
    without = {each: attach for each, attach in attach_types.items() if each != type_}
    for other in ({**attach_types, type_: _NO_ATTACH_TYPE}, without):
        if other not in tried:
            return other
    return None


def _request(
    name: str,
    asked: Specification,
    taking_places: Mapping[str, Replacement],
    attach_types: Mapping[int, int],
) -> LoadRequest:
    return LoadRequest(
        name=name,
        programs={
            program: ProgramChoice(each.type_number, each.attach_type, each.load)
            for program, each in asked.programs.items()
        },
        max_entries={map_: each.max_entries for map_, each in asked.maps.items() if each.max_entries is not None},
        replaced=list(taking_places),
        variables=asked.variables,
        values="refuse" if asked.values == "refuse" else "report",
        allow_pinning=asked.pinning != "refuse",
        attach_types=attach_types,
    )


def _copy(kernel: Kernel, object_: OwnedFd) -> OwnedFd:
    """Return the same map with an fd of its own."""
    if isinstance(object_, ProgramArray):
        return object_.copy()
    try:
        return OwnedFd(kernel, kernel.dup(object_.fd))
    except OSError as error:
        raise kernel_failure("dup", error) from error
