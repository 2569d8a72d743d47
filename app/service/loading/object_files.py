"""The object files that are loaded, by name: loading one, replacing it by a new version, and unloading it."""

import asyncio
import hashlib
import json
import os
import uuid
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import structlog

from app.bpf.uapi import PROG_TYPE_NAMES, MapType
from app.loader.files import content_of
from app.service.changes.changes import Applied, Changes
from app.service.changes.fit import Fit, check_fit
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_not_moved
from app.service.drift.detector import DriftDetector
from app.service.errors import (
    FileNotAllowed,
    JournalUnavailable,
    JournalUnreadable,
    NameTaken,
    ObjectUnknown,
    ObjectUnsupported,
    ProgramIncompatible,
    ServiceError,
)
from app.service.loading.copies import Copies
from app.service.loading.loads import Loads, ObjectLoader, other_attach_types
from app.service.loading.moves import WantedEntries, check_unused, parts_of, wanted_entries
from app.service.loading.specification import PREVIOUS, Specification
from app.service.loading.version import LoadedMap, LoadedProgram, Version, source_at
from app.service.objects.opening import pin_failure
from app.service.objects.program_array import ProgramArray
from app.service.objects.source import checked_name
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed, ObjectEvent
from app.store.records import EntryChanges

_LOADS_AT_A_TIME: Final = 2
_RETRY_SECONDS: Final = 30.0  # between two attempts to load an object file again that could not be loaded

T = TypeVar("T")

log = structlog.get_logger()

# Is called with the entity tag of what is loaded so far (None: nothing is), and raises what forbids the change.
ObjectPrecondition = Callable[[str | None], None]


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """How the service loads object files.

    Attributes:
        loader: Reads and loads them. None: there is no kernel to load into.
        max_bytes: The largest file.
        upload: Whether a request may bring a file.
        copies: Keeps copies of files that requests bring. None: they cannot be loaded again.
    """

    loader: ObjectLoader | None = None
    max_bytes: int = 8 << 20
    upload: bool = False
    copies: Copies | None = None


NO_LOADER: Final = ObjectOptions()


@dataclass(eq=False)
class LoadedObject:
    """An object file under a name.

    Attributes:
        name: The name.
        version: The version that counts.
        previous: The version before, which is kept until there is another one. None: there is none, or it is gone.
        reason: Why the version is not loaded, as after a restart. None: it is.
        not_before: When it is tried again, in seconds of the event loop's clock.
    """

    name: str
    version: Version
    previous: Version | None = None
    reason: str | None = None
    not_before: float = 0.0

    @property
    def etag(self) -> str:
        """The entity tag: it changes with each version."""
        return f'"{self.version.number}-{self.version.digest[:16]}"'

    @property
    def versions(self) -> list[Version]:
        """The versions that are loaded, the newest first."""
        return [] if self.reason is not None else [self.version, *([] if self.previous is None else [self.previous])]


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """What became of loading an object file.

    Attributes:
        loaded: The object file. After a dry run: as it would be.
        is_new: The name is new.
        applied: What became of the changes of entries, with the name of each map.
        fit: After a dry run: how surely the programs fit the entries.
    """

    loaded: LoadedObject
    is_new: bool
    applied: list[tuple[str, Applied]] = field(default_factory=list)
    fit: Fit | None = None

    @property
    def entries(self) -> list[tuple[str, EntryChanges]]:
        """What a dry run would change, by the name of the map.

        Programs that were loaded for it alone are told by the names that they would have. Their ids are gone with them.
        """
        loaded = self.loaded.version.programs
        names = {each.id: f"{self.loaded.name}.{program}" for program, each in loaded.items()}
        found = []
        for map_, applied in self.applied:
            if applied.entries is not None:
                programs = {
                    number: replace(each, name=names[each.id], id=0) if each.name is None and each.id in names else each
                    for number, each in applied.entries.programs.items()
                }
                found.append((map_, replace(applied.entries, programs=programs)))
        return found


class ObjectFiles:
    """The object files that are loaded. Thread rule: one event loop."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        changes: Changes,
        drift: DriftDetector,
        options: ObjectOptions = NO_LOADER,
        keep_dir: str | None = None,
    ) -> None:
        """Nothing is loaded yet; `restore` loads what an earlier run had.

        Args:
            registry: Holds the programs and arrays of object files.
            journal: Remembers what is loaded.
            changes: The way to change entries.
            drift: Learns what the entries of new arrays are expected to hold.
            options: How they are loaded.
            keep_dir: The folder in bpffs where programs and maps are pinned, so that they outlive the service.
        """
        self._registry = registry
        self._journal = journal
        self._changes = changes
        self._drift = drift
        self._keep_dir = keep_dir
        self.options = options
        self._copies = options.copies
        self._loader = options.loader
        self.loads = Loads(registry, options.loader, options.max_bytes, can_hold_pins=keep_dir is not None)
        self._objects: dict[str, LoadedObject] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(_LOADS_AT_A_TIME)
        self._running: set[asyncio.Task[Any]] = set()
        changes.undo_pins.others = self._pins

    def __iter__(self) -> Iterator[LoadedObject]:
        return iter(sorted(self._objects.values(), key=lambda each: each.name))

    @property
    def are_kept(self) -> bool:
        """Whether programs and maps of what is loaded from now on are pinned, so that they outlive the service."""
        return self._keep_dir is not None

    def get(self, name: str) -> LoadedObject:
        """Return the object file under a name.

        Raises:
            ObjectUnknown: There is none.
        """
        if name not in self._objects:
            raise ObjectUnknown(name)
        return self._objects[name]

    def find(self, name: str) -> LoadedObject | None:
        """Return the object file under a name. None: there is none."""
        return self._objects.get(name)

    def unavailable(self) -> list[LoadedObject]:
        """Return those that could not be loaded again."""
        return [each for each in self._objects.values() if each.reason is not None]

    def _pins(self) -> list[str]:
        """Return the pins of all versions, also of those that are not loaded."""
        versions = [each for loaded in self._objects.values() for each in (loaded.version, loaded.previous)]
        return [pin for version in versions if version is not None for pin in version.pins()]

    # Loading

    async def put(
        self,
        name: str,
        content: bytes | None,
        asked: Specification,
        context: RequestContext,
        *,
        precondition: ObjectPrecondition,
        dry_run: bool,
    ) -> ObjectResult:
        """Load an object file, or a new version of it. The same file with the same options is not loaded again.

        Args:
            name: The name of the object file.
            content: What the request brought, where it names no file.
            asked: How to load it.
            context: Who asks.
            precondition: Forbids the change by what is loaded so far.
            dry_run: Check everything, also whether the kernel takes the programs, and keep nothing.

        Raises:
            ServiceError: It cannot be loaded, or the entries cannot be changed. Then everything is as before.
        """
        return await self._in_task(self._put(name, content, asked, context, precondition=precondition, dry_run=dry_run))

    async def _in_task(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something to its end, also where the request is given up: it must not be left half done."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget_task)
        await asyncio.wait([task])
        return task.result()

    def _forget_task(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also where nobody waits for it any more

    async def _put(
        self,
        name: str,
        content: bytes | None,
        asked: Specification,
        context: RequestContext,
        *,
        precondition: ObjectPrecondition,
        dry_run: bool,
    ) -> ObjectResult:
        async with self._locks.setdefault(name, asyncio.Lock()):
            loaded = self._objects.get(name)
            precondition(None if loaded is None else loaded.etag)
            if content is not None and self._loader is not None and not self.options.upload:
                raise FileNotAllowed(
                    "a request may not bring an object file; name a file below objects.object_dirs, or set "
                    "objects.upload"
                )
            elf = await self.loads.read(asked.file, content)
            try:
                digest, size = await asyncio.to_thread(_digest, elf), os.fstat(elf).st_size
                if loaded is not None and self._is_same(loaded, digest, asked):
                    return await self._move_on(loaded, asked, context, dry_run=dry_run)
                async with self._slots:
                    fresh = await self._load_fitting(name, loaded, (elf, digest, size), asked, dry_run=dry_run)
                try:
                    result = await self._install(name, loaded, fresh, content, context, dry_run=dry_run)
                except BaseException:
                    fresh.close()
                    raise
                if dry_run:
                    fresh.close()
                return result
            finally:
                os.close(elf)

    def _is_same(self, loaded: LoadedObject, digest: str, asked: Specification) -> bool:
        """Whether a request asks for what is loaded already: the same file, options and maps in the place of others."""
        version = loaded.version
        if loaded.reason is not None or version.digest != digest or not version.specification.loads_like(asked):
            return False
        for each in version.maps.values():
            held = None if each.use is None else self._registry.maps.find(each.use)
            if held is not None and (held.object is None or held.object.id != each.id):
                return False
        return True

    async def _load_fitting(
        self,
        name: str,
        loaded: LoadedObject | None,
        elf: tuple[int, str, int],
        asked: Specification,
        *,
        dry_run: bool,
    ) -> Version:
        """Load a version whose programs also fit the entries that they are to be put into."""
        before = None if loaded is None or loaded.reason is not None else loaded.version
        attach_types: Mapping[int, int] = {} if before is None else before.attach_types
        tried: list[Mapping[int, int]] = []
        while True:
            fresh = await self.loads.load(name, elf, asked, before, attach_types, dry_run=dry_run)
            tried += (attach_types, fresh.attach_types)
            try:
                await self._check_fit(name, loaded, fresh)
            except ProgramIncompatible as error:
                fresh.close()
                type_ = PROG_TYPE_NAMES.index(error.program_type)
                other = other_attach_types(fresh.attach_types, type_, tried)
                if other is None:
                    raise
                attach_types = other
            except BaseException:
                fresh.close()
                raise
            else:
                return fresh

    async def _check_fit(self, name: str, loaded: LoadedObject | None, fresh: Version) -> None:
        earlier = [] if loaded is None else loaded.versions
        wanted = wanted_entries(self._registry, name, fresh, earlier, await self._registry.maps.uses())
        for map_, entries in wanted.entries.items():
            held = self._registry.maps.get(map_)
            for each in entries.values():
                await check_fit(self._registry, held, [each.opened()])

    async def _install(
        self,
        name: str,
        loaded: LoadedObject | None,
        fresh: Version,
        content: bytes | None,
        context: RequestContext,
        *,
        dry_run: bool,
    ) -> ObjectResult:
        """Hold a version that was loaded, and change the entries that lead to it: all of it, or nothing."""
        fresh.number = 1 if loaded is None else loaded.version.number + 1
        earlier = [] if loaded is None else loaded.versions
        after = LoadedObject(name, fresh, earlier[0] if earlier else None)
        before = [] if loaded is None else [loaded.version, loaded.previous]
        doomed = [each for each in before if each is not None and each is not after.previous]
        async with AsyncExitStack() as stack:
            wanted = wanted_entries(self._registry, name, fresh, earlier, await self._registry.maps.uses())
            await self._lock(stack, name, wanted)
            self._check_names(name, fresh)
            self._check_releasable(name, fresh, doomed)
            parts = parts_of(self._registry, wanted, await self._read(wanted))
            for part in parts:
                check_not_moved(part.held, context)
            if dry_run:
                applied = await self._changes.apply_together(parts, context, dry_run=True)
                fit: Fit = "type-only" if any(each.fit == "type-only" for each in applied) else "tried"
                names = [part.held.name for part in parts]
                return ObjectResult(after, loaded is None, list(zip(names, applied, strict=True)), fit)
            await self._keep(name, after, content, context)
            self._hold(after)
            try:
                applied = await self._changes.apply_together(parts, context) if parts else []
            except BaseException:
                await self._take_back(name, loaded, fresh, context)
                raise
        self._objects[name] = after
        self._drop(doomed)
        await self._begin_arrays(fresh, name)
        return ObjectResult(after, loaded is None, list(zip([part.held.name for part in parts], applied, strict=True)))

    async def _move_on(
        self, loaded: LoadedObject, asked: Specification, context: RequestContext, *, dry_run: bool
    ) -> ObjectResult:
        """Change the entries that are still to be moved or switched, of an object file that is loaded already."""
        asked = replace(asked, values="ignore" if asked.values == "set" else asked.values)
        version = replace(loaded.version, specification=asked)
        earlier = loaded.versions[1:]
        async with AsyncExitStack() as stack:
            uses = await self._registry.maps.uses()
            wanted = wanted_entries(self._registry, loaded.name, version, earlier, uses)
            for map_ in sorted(wanted.maps()):
                await stack.enter_async_context(self._registry.maps.get(map_).lock)
            parts = parts_of(self._registry, wanted, await self._read(wanted))
            for part in parts:
                check_not_moved(part.held, context)
            applied = await self._changes.apply_together(parts, context, dry_run=dry_run) if parts else []
        fit: Fit | None = None
        if dry_run:
            fit = "type-only" if any(each.fit == "type-only" for each in applied) else "tried"
        names = [part.held.name for part in parts]
        return ObjectResult(loaded, is_new=False, applied=list(zip(names, applied, strict=True)), fit=fit)

    # The steps of holding a version

    def _check_names(self, name: str, fresh: Version) -> None:
        """Check that all names can be given.

        Raises:
            ObjectUnsupported: One is no name.
            NameTaken: Something else is held under it.
        """
        for full, held in (
            *((full, self._registry.programs.find(full)) for full in _program_names(name, fresh)),
            *((full, self._registry.maps.find(full)) for full in _array_names(name, fresh)),
        ):
            try:
                checked_name(full)
            except ValueError as error:
                reason = f"it would be held as {full!r}, and {error}; choose a shorter name for the object file"
                raise ObjectUnsupported(reason) from None
            if held is not None and held.part_of != name:
                raise NameTaken(full, "the name is held already; release that one, or choose another for the object")

    async def _lock(self, stack: AsyncExitStack, name: str, wanted: WantedEntries) -> None:
        """Lock the names, the maps that are written, and everything that is held of the object file, in this order."""
        registry = self._registry
        await stack.enter_async_context(registry.programs.holding)
        await stack.enter_async_context(registry.maps.holding)
        concerned: list[HeldMap | HeldProgram] = [
            *(each for each in registry.maps if each.part_of == name or each.name in wanted.entries),
            *(each for each in registry.programs if each.part_of == name),
        ]
        for each in sorted(concerned, key=lambda held: (held.kind, held.name)):
            await stack.enter_async_context(each.lock)

    async def _read(self, wanted: WantedEntries) -> dict[str, "array[int]"]:
        return {map_: await self._registry.maps.get(map_).read() for map_ in wanted.entries}

    def _check_releasable(self, name: str, fresh: Version | None, doomed: Sequence[Version]) -> None:
        """Check that nothing which will be gone is needed by the undo of a change that waits."""
        confirmations, kept = self._changes.confirmations, set[int]()
        if fresh is not None:
            kept = {each.id for each in fresh.maps.values()}
        for held in self._registry.maps:
            if held.part_of == name and held.object is not None and held.object.id not in kept:
                confirmations.check_releasable(held)
        for version in doomed:
            confirmations.check_programs_releasable(name, version.program_ids())

    async def _keep(self, name: str, after: LoadedObject, content: bytes | None, context: RequestContext) -> None:
        """Pin what was loaded, keep a copy of what was sent, and journal it: all of it, or nothing."""
        fresh = after.version
        try:
            self._pin(fresh)
            if content is not None and self._copies is not None:
                await asyncio.to_thread(self._copies.save, fresh.digest, content)
            await self._journal.save_object(name, _record(after), _events(after, "held", context))
        except BaseException as error:
            self._unpin(fresh)
            self._clean_copies()
            if isinstance(error, JournalFailed):
                raise JournalUnavailable(str(error), put_back=True, left=[]) from error
            if isinstance(error, OSError):
                reason = f"no copy of the file can be kept: {error}"
                raise JournalUnavailable(reason, put_back=True, left=[]) from error
            raise

    def _pin(self, version: Version) -> None:
        """Pin what a version keeps. On failure some pins may be there; `_unpin` removes them."""
        if self._keep_dir is None:
            return
        token = uuid.uuid4().hex
        for place, each in enumerate(version.pinnable()):
            opened = each.object
            assert opened is not None  # it was just loaded
            path = each.pin or f"{self._keep_dir}/{token}_{place}"
            try:
                self._registry.kernel.make_folder(self._keep_dir)
                self._registry.kernel.obj_pin(opened.fd, path)
            except OSError as error:
                raise pin_failure(self._registry.kernel, path, "OBJ_PIN", error) from error
            each.pin = path

    def _unpin(self, version: Version) -> None:
        for each in version.pinnable():
            if each.pin is not None:
                try:
                    self._registry.kernel.unpin(each.pin)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    log.warning("a pin that is not needed any more stays", pin=each.pin, reason=str(error))
                each.pin = None

    def _hold(self, after: LoadedObject) -> None:
        """Hold the programs and arrays of a version under their names, and no others. Call it under their locks."""
        name, version, registry = after.name, after.version, self._registry
        programs, arrays = _program_names(name, version), _array_names(name, version)
        for full, program in programs.items():
            registry.programs.replace(full, source_at(program.pin), program.opened().copy(), name)
        for full, map_ in arrays.items():
            assert isinstance(map_.object, ProgramArray)
            registry.maps.replace(full, source_at(map_.pin), map_.object.copy(), name)
        for held in registry.programs:
            if held.part_of == name and held.name not in programs:
                registry.programs.remove(held.name)
        for held_map in registry.maps:
            if held_map.part_of == name and held_map.name not in arrays:
                registry.maps.remove(held_map.name)
        self._objects[name] = after

    async def _take_back(self, name: str, before: LoadedObject | None, fresh: Version, context: RequestContext) -> None:
        """Hold the version before again, as the entries could not be changed. Call it under the locks."""
        if before is None or before.reason is not None:
            self._let_go(name)
        else:
            self._hold(before)
        if before is not None and before.reason is not None:
            self._hold_unavailable(before)
        try:
            if before is None:
                del self._objects[name]
                gone = LoadedObject(name, fresh)
                await self._journal.remove_object(name, _events(gone, "released", context))
            else:
                self._objects[name] = before
                await self._journal.save_object(name, _record(before), _events(before, "held", context))
        except JournalFailed as error:
            log.warning("the journal still has a version that was taken back", object=name, reason=str(error))
        self._unpin(fresh)
        self._clean_copies()

    def _let_go(self, name: str) -> None:
        """Hold nothing of an object file any more. Call it under the locks."""
        for held in self._registry.programs:
            if held.part_of == name:
                self._registry.programs.remove(held.name)
        for held_map in self._registry.maps:
            if held_map.part_of == name:
                self._registry.maps.remove(held_map.name)

    def _drop(self, versions: Sequence[Version]) -> None:
        """Let go of versions that nothing needs any more."""
        for version in versions:
            self._changes.replaced_programs.discard(version.program_ids())
            version.close()
            self._unpin(version)
        self._clean_copies()

    def _clean_copies(self) -> None:
        if self._copies is not None:
            versions = [each for loaded in self._objects.values() for each in (loaded.version, loaded.previous)]
            self._copies.keep_only({each.digest for each in versions if each is not None})

    async def _begin_arrays(self, version: Version, name: str) -> None:
        """Learn what the entries of new arrays are expected to hold: what they hold now."""
        for full in _array_names(name, version):
            held = self._registry.maps.find(full)
            if held is not None:
                await self._drift.begin(held, anew=True)

    # Unloading

    async def delete(
        self, name: str, context: RequestContext, *, precondition: ObjectPrecondition, dry_run: bool
    ) -> None:
        """Unload an object file.

        Raises:
            ObjectUnknown: There is none under the name.
            ObjectInUse: Entries hold its programs.
            InUse: The undo of a change that waits needs one of its programs or arrays.
            JournalUnreadable: It cannot be journalled.
        """
        await self._in_task(self._delete(name, context, precondition, dry_run=dry_run))

    async def _delete(
        self, name: str, context: RequestContext, precondition: ObjectPrecondition, *, dry_run: bool
    ) -> None:
        self.get(name)
        async with self._locks.setdefault(name, asyncio.Lock()), AsyncExitStack() as stack:
            loaded = self.get(name)
            precondition(loaded.etag)
            await self._lock(stack, name, WantedEntries())
            check_unused(self._registry, name, loaded.versions, await self._registry.maps.uses())
            self._check_releasable(name, None, loaded.versions)
            if dry_run:
                return
            try:
                await self._journal.remove_object(name, _events(loaded, "released", context))
            except JournalFailed as error:
                raise JournalUnreadable(str(error)) from error
            self._let_go(name)
            del self._objects[name]
            self._drop([each for each in (loaded.version, loaded.previous) if each is not None])

    # Starting and ending

    async def restore(self) -> None:
        """After a start: open, or load again, what was loaded before.

        Raises:
            JournalFailed: The journal cannot be read.
        """
        for name, content in self._journal.objects():
            facts = json.loads(content)
            version = Version.of_json(facts["version"])
            previous = None if facts["previous"] is None else Version.of_json(facts["previous"])
            loaded = LoadedObject(name, version, previous, reason="not loaded yet")
            self._objects[name] = loaded
            self._hold_unavailable(loaded)
            await self._load_again(loaded)

    async def retry(self) -> None:
        """Try to load again what could not be loaded."""
        now = asyncio.get_running_loop().time()
        for loaded in self.unavailable():
            async with self._locks.setdefault(loaded.name, asyncio.Lock()):
                if self._objects.get(loaded.name) is loaded and loaded.not_before <= now:
                    await self._load_again(loaded)

    def _hold_unavailable(self, loaded: LoadedObject) -> None:
        """Hold the names, so that nobody else takes them, and readiness tells that they are unavailable."""
        registry, name = self._registry, loaded.name
        for full, program in _program_names(name, loaded.version).items():
            if program.pin is not None and registry.programs.find(full) is None:
                registry.programs.add(HeldProgram(full, source_at(program.pin), part_of=name))
        for full, map_ in _array_names(name, loaded.version).items():
            if map_.pin is not None and registry.maps.find(full) is None:
                registry.maps.add(HeldMap(full, source_at(map_.pin), part_of=name, created_here=True))

    async def _load_again(self, loaded: LoadedObject) -> None:
        """Open the pins of an earlier run, or load the file again where they are gone."""
        is_open = self._open_pins(loaded)
        if not is_open:
            try:
                await self._load_same(loaded)
            except ServiceError as error:
                if loaded.reason != str(error):
                    log.warning("an object file cannot be loaded again", object=loaded.name, reason=str(error))
                loaded.reason = str(error)
                loaded.not_before = asyncio.get_running_loop().time() + _RETRY_SECONDS
                return
        loaded.reason = None
        async with AsyncExitStack() as stack:
            await self._lock(stack, loaded.name, WantedEntries())
            self._hold(loaded)
        if not is_open and self._keep_dir is None:
            await self._begin_arrays(loaded.version, loaded.name)  # what was journalled is about programs that are gone
        log.info("an object file is loaded again", object=loaded.name, version=loaded.version.number, same=is_open)

    def _open_pins(self, loaded: LoadedObject) -> bool:
        """Open what is pinned since an earlier run of this boot, and return whether all of the version is there."""
        kernel = self._registry.kernel
        versions = [each for each in (loaded.version, loaded.previous) if each is not None]
        opened = []
        for version in versions:
            try:
                if version.boot_id != kernel.boot_id or not all(each.pin for each in version.pinnable()):
                    break
                version.open_pins(kernel)
            except (OSError, ServiceError) as error:
                log.warning("a version is gone", object=loaded.name, version=version.number, reason=str(error))
                version.close()
                break
            opened.append(version)
        if loaded.previous not in opened:
            loaded.previous = None
        return loaded.version in opened

    async def _load_same(self, loaded: LoadedObject) -> None:
        """Load the same file with the same options, and pin it where it was pinned: entries are found again by that.

        Raises:
            ServiceError: It cannot be loaded.
        """
        was, content = loaded.version, None
        asked = was.specification
        # The version before is gone: what it had would be empty, as a new map is.
        maps = {map_: each for map_, each in asked.maps.items() if each.use != PREVIOUS}
        if asked.file is None:
            try:
                content = None if self._copies is None else await asyncio.to_thread(self._copies.read, was.digest)
            except OSError as error:
                content, reason = None, str(error)
            else:
                reason = "there is no copy of it"
            if content is None:
                message = f"the file that a request brought is gone ({reason}); send it again"
                raise FileNotAllowed(message)
        elf = await self.loads.read(asked.file, content)
        try:
            digest = await asyncio.to_thread(_digest, elf)
            if digest != was.digest:
                message = f"the file {asked.file!r} is another one now; send PUT /objects/{loaded.name} to load that"
                raise FileNotAllowed(message)
            async with self._slots:
                fresh = await self.loads.load(
                    loaded.name,
                    (elf, digest, was.size),
                    replace(asked, maps=maps),
                    None,
                    was.attach_types,
                    dry_run=False,
                )
        finally:
            os.close(elf)
        fresh.specification = asked
        for kept, each in zip(was.pinnable(), fresh.pinnable(), strict=False):
            each.pin = kept.pin
        fresh.number = was.number
        for pin in was.pins():
            with suppress(OSError):
                self._registry.kernel.unpin(pin)
        try:
            self._pin(fresh)
            after = LoadedObject(loaded.name, fresh)
            await self._journal.save_object(loaded.name, _record(after), [])
        except (ServiceError, JournalFailed) as error:
            fresh.close()
            raise error if isinstance(error, ServiceError) else JournalUnreadable(str(error)) from error
        loaded.version, loaded.previous = fresh, None

    def stop(self) -> None:
        """Give up what is being loaded."""
        if self._loader is not None:
            self._loader.close()

    async def finish(self) -> None:
        """Wait until what was given up is as it was."""
        self.stop()
        if self._running:
            await asyncio.wait(self._running)

    def close(self) -> None:
        """Let go of everything. Pins stay."""
        for loaded in self._objects.values():
            for version in (loaded.version, loaded.previous):
                if version is not None:
                    version.close()
        self._objects.clear()
        if self._copies is not None:
            self._copies.close()


def _program_names(name: str, version: Version) -> dict[str, LoadedProgram]:
    """Return the programs of a version by the names under which they are held."""
    return {f"{name}.{each}": program for each, program in version.programs.items()}


def _array_names(name: str, version: Version) -> dict[str, LoadedMap]:
    """Return the program arrays that a version keeps by the names under which they are held."""
    return {
        f"{name}.{each}": map_
        for each, map_ in version.maps.items()
        if map_.is_owned and map_.facts.type == MapType.PROG_ARRAY
    }


def _record(loaded: LoadedObject) -> str:
    previous = None if loaded.previous is None else loaded.previous.to_json()
    return json.dumps({"version": loaded.version.to_json(), "previous": previous})


def _events(loaded: LoadedObject, happened: str, context: RequestContext) -> list[ObjectEvent]:
    who = {"object": loaded.name, "actor": context.actor, "request_id": context.request_id}
    events: list[ObjectEvent] = []
    for full, program in _program_names(loaded.name, loaded.version).items():
        id_ = None if program.program is None else program.program.id
        events.append(("program", full, {"program": full, "happened": happened, "id": id_, **who}))
    for full, map_ in _array_names(loaded.name, loaded.version).items():
        events.append(("map", full, {"map": full, "happened": happened, "id": map_.id or None, **who}))
    return events


def _digest(elf: int) -> str:
    return hashlib.sha256(content_of(elf)).hexdigest()
