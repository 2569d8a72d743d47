"""The object files that are loaded, by name: loading one, replacing it by a new version, and unloading it."""

import asyncio
import os
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import structlog

from app.bpf.uapi import PROG_TYPE_NAMES
from app.service.changes.changes import Applied, Changes
from app.service.changes.fit import Fit, check_fit
from app.service.changes.origin import RequestContext
from app.service.changes.permissions import check_not_moved
from app.service.drift.detector import DriftDetector
from app.service.errors import JournalUnavailable, JournalUnreadable, ProgramIncompatible
from app.service.loading.copies import Copies
from app.service.loading.errors import FileNotAllowed, ObjectUnknown
from app.service.loading.holding import Holding
from app.service.loading.loaded_object import LoadedObject
from app.service.loading.loads import Loads, ObjectLoader, SealedFile, other_attach_types
from app.service.loading.moves import WantedEntries, check_unused, parts_of, wanted_entries
from app.service.loading.pinning import Pinning
from app.service.loading.restoring import Restoring
from app.service.loading.specification import Specification
from app.service.loading.version import Version
from app.service.registry.programs import Uses
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from app.store.records import EntryChanges

P = ParamSpec("P")
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
        object_dirs: The folders in which files may be that requests name.
    """

    loader: ObjectLoader | None = None
    max_bytes: int = 8 << 20
    upload: bool = False
    copies: Copies | None = None
    object_dirs: Sequence[str] = ()


NO_LOADER: Final = ObjectOptions()


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


def _to_its_end(
    work: Callable[Concatenate["ObjectFiles", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["ObjectFiles", P], Coroutine[Any, Any, T]]:
    """Do something to its end, also where the request is given up: it must not be left half done."""

    @wraps(work)
    async def do(objects: "ObjectFiles", /, *args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(work(objects, *args, **kwargs))
        objects.watch(task)
        await asyncio.wait([task])
        return task.result()

    return do


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
        self.options = options
        self._copies = options.copies
        self._loader = options.loader
        self._loads = Loads(registry, options.loader, options.max_bytes, can_hold_pins=keep_dir is not None)
        self._holding = Holding(registry, drift)
        self._pinning = Pinning(registry.kernel, keep_dir)
        self._restoring = Restoring(registry.kernel, journal, self._loads, self._holding, self._pinning, options.copies)
        self._objects: dict[str, LoadedObject] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()
        changes.undo_pins.others = self._pins

    def __iter__(self) -> Iterator[LoadedObject]:
        return iter(sorted(self._objects.values(), key=lambda each: each.name))

    @property
    def are_kept(self) -> bool:
        """Whether programs and maps of what is loaded from now on are pinned, so that they outlive the service."""
        return self._pinning.keep_dir is not None

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
        versions = [each for loaded in self._objects.values() for each in loaded.all_versions]
        return [pin for version in versions for pin in version.pins()]

    # Loading

    @_to_its_end
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
        async with self._locks.setdefault(name, asyncio.Lock()):
            loaded = self._objects.get(name)
            precondition(None if loaded is None else loaded.etag)
            if content is not None and self._loader is not None and not self.options.upload:
                raise FileNotAllowed(
                    "a request may not bring an object file; name a file below objects.object_dirs, or set "
                    "objects.upload"
                )
            elf = await self._loads.read(asked.file, content)
            try:
                if loaded is not None and self._is_same(loaded, elf.digest, asked):
                    return await self._move_on(loaded, asked, context, dry_run=dry_run)
                fresh = await self._load_fitting(name, loaded, elf, asked, dry_run=dry_run)
                try:
                    result = await self._install(name, loaded, fresh, content, context, dry_run=dry_run)
                except BaseException:
                    await fresh.close()
                    raise
                if dry_run:
                    await fresh.close()
                return result
            finally:
                os.close(elf.fd)

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
        elf: SealedFile,
        asked: Specification,
        *,
        dry_run: bool,
    ) -> Version:
        """Load a version whose programs also fit the entries that they are to be put into."""
        before = None if loaded is None or loaded.reason is not None else loaded.version
        attach_types: Mapping[int, int] = {} if before is None else before.attach_types
        tried: list[Mapping[int, int]] = []
        while True:
            fresh = await self._loads.load(name, elf, asked, before, attach_types, dry_run=dry_run)
            tried += (attach_types, fresh.attach_types)
            try:
                await asyncio.sleep(0)  # here and elsewhere: other requests have their turn
                await self._check_fit(name, loaded, fresh)
            except ProgramIncompatible as error:
                await fresh.close()
                type_ = PROG_TYPE_NAMES.index(error.program_type)
                other = other_attach_types(fresh.attach_types, type_, tried)
                if other is None:
                    raise
                attach_types = other
            except BaseException:
                await fresh.close()
                raise
            else:
                return fresh

    async def _check_fit(self, name: str, loaded: LoadedObject | None, fresh: Version) -> None:
        earlier = [] if loaded is None else loaded.versions
        wanted = wanted_entries(self._registry, name, fresh, earlier, await self._uses_of(earlier))
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
        await asyncio.sleep(0)
        async with AsyncExitStack() as stack:
            wanted = wanted_entries(self._registry, name, fresh, earlier, await self._uses_of(earlier))
            await self._holding.lock(stack, name, wanted.maps())
            self._holding.check_names(after)
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
            await asyncio.sleep(0)
            self._hold(after)
            try:
                await asyncio.sleep(0)
                applied = await self._changes.apply_together(parts, context) if parts else []
            except BaseException:
                await self._take_back(name, loaded, fresh, context)
                raise
            await self._drop(doomed)
        await asyncio.sleep(0)
        await self._holding.begin_arrays(after)
        return ObjectResult(after, loaded is None, list(zip([part.held.name for part in parts], applied, strict=True)))

    async def _move_on(
        self, loaded: LoadedObject, asked: Specification, context: RequestContext, *, dry_run: bool
    ) -> ObjectResult:
        """Change the entries that are still to be moved or switched, of an object file that is loaded already."""
        asked = replace(asked, values="ignore" if asked.values == "set" else asked.values)
        version = replace(loaded.version, specification=asked)
        earlier = loaded.versions[1:]
        async with AsyncExitStack() as stack:
            wanted = wanted_entries(self._registry, loaded.name, version, earlier, await self._uses_of(earlier))
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

    async def _uses_of(self, versions: Sequence[Version]) -> Uses:
        """Return which entries of held maps point to programs of these versions."""
        return await self._registry.maps.uses([id_ for each in versions for id_ in each.program_ids()])

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
            self._pinning.pin(fresh)
            await asyncio.sleep(0)
            if content is not None and self._copies is not None:
                await asyncio.to_thread(self._copies.save, fresh.digest, content)
            stored, events = after.to_json(), after.events("held", context)
            await asyncio.sleep(0)
            await self._journal.save_object(name, stored, events)
        except BaseException as error:
            self._pinning.unpin(fresh)
            self._clean_copies()
            if isinstance(error, JournalFailed):
                raise JournalUnavailable(str(error), put_back=True, left=[]) from error
            if isinstance(error, OSError):
                reason = f"no copy of the file can be kept: {error}"
                raise JournalUnavailable(reason, put_back=True, left=[]) from error
            raise

    def _hold(self, after: LoadedObject) -> None:
        """Let a version count from now on. Call it under its locks."""
        self._holding.hold(after)
        self._objects[after.name] = after

    async def _take_back(self, name: str, before: LoadedObject | None, fresh: Version, context: RequestContext) -> None:
        """Hold the version before again, as the entries could not be changed. Call it under the locks."""
        if before is None or before.reason is not None:
            self._holding.let_go(name)
        else:
            self._hold(before)
        if before is not None and before.reason is not None:
            self._holding.hold_unavailable(before)
        try:
            if before is None:
                del self._objects[name]
                gone = LoadedObject(name, fresh)
                await self._journal.remove_object(name, gone.events("released", context))
            else:
                self._objects[name] = before
                await self._journal.save_object(name, before.to_json(), before.events("held", context))
        except JournalFailed as error:
            log.warning("the journal still has a version that was taken back", object=name, reason=str(error))
        self._pinning.unpin(fresh)
        self._clean_copies()

    async def _drop(self, versions: Sequence[Version]) -> None:
        """Let go of versions that nothing needs any more. Call it under the locks: copies go, too."""
        for version in versions:
            self._changes.replaced_programs.discard(version.program_ids())
            await version.close()
            self._pinning.unpin(version)
        self._clean_copies()

    def _clean_copies(self) -> None:
        if self._copies is not None:
            versions = [each for loaded in self._objects.values() for each in loaded.all_versions]
            self._copies.keep_only({each.digest for each in versions})

    # Unloading

    @_to_its_end
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
        self.get(name)
        async with self._locks.setdefault(name, asyncio.Lock()), AsyncExitStack() as stack:
            loaded = self.get(name)
            precondition(loaded.etag)
            await self._holding.lock(stack, name)
            check_unused(self._registry, name, loaded.versions, await self._uses_of(loaded.versions))
            self._check_releasable(name, None, loaded.versions)
            if dry_run:
                return
            try:
                await self._journal.remove_object(name, loaded.events("released", context))
            except JournalFailed as error:
                raise JournalUnreadable(str(error)) from error
            self._holding.let_go(name)
            del self._objects[name]
            await self._drop(loaded.all_versions)

    # Starting and ending

    async def restore(self) -> None:
        """After a start: open, or load again, what was loaded before.

        Raises:
            JournalFailed: The journal cannot be read.
        """
        for name, content in self._journal.objects():
            loaded = self._objects[name] = LoadedObject.of_json(name, content)
            self._holding.hold_unavailable(loaded)
            await self._restoring.load_again(loaded)

    async def retry(self) -> None:
        """Try to load again what could not be loaded."""
        now = asyncio.get_running_loop().time()
        for loaded in self.unavailable():
            async with self._locks.setdefault(loaded.name, asyncio.Lock()):
                if self._objects.get(loaded.name) is loaded and loaded.not_before <= now:
                    await self._restoring.load_again(loaded)

    def watch(self, task: "asyncio.Task[Any]") -> None:
        """Wait for a task at the end."""
        self._running.add(task)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also where nobody waits for it any more

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
            for version in loaded.all_versions:
                version.close_now()
        self._objects.clear()
        if self._copies is not None:
            self._copies.close()
