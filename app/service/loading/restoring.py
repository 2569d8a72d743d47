"""Loading object files again after a start: by the pins of an earlier run, or from their files."""

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Final

import structlog

from app.bpf.kernel import Kernel
from app.service.errors import JournalUnreadable, ServiceError
from app.service.loading.copies import Copies
from app.service.loading.errors import FileNotAllowed
from app.service.loading.holding import Holding
from app.service.loading.loaded_object import LoadedObject
from app.service.loading.loads import Loads
from app.service.loading.pinning import Pinning
from app.service.loading.specification import PREVIOUS
from app.store.journal import Journal, JournalFailed

_RETRY_SECONDS: Final = 30.0  # between two attempts to load an object file again that could not be loaded

log = structlog.get_logger()


class Restoring:
    """Loads object files again. Thread rule: one event loop."""

    def __init__(
        self,
        kernel: Kernel,
        journal: Journal,
        loads: Loads,
        holding: Holding,
        pinning: Pinning,
        copies: Copies | None,
    ) -> None:
        """Load nothing yet.

        Args:
            kernel: Opens pins.
            journal: Remembers what is loaded.
            loads: Loads files.
            holding: Holds what is loaded.
            pinning: Pins it where it was.
            copies: Of files that requests brought. None: there are none.
        """
        self._kernel = kernel
        self._journal = journal
        self._loads = loads
        self._holding = holding
        self._pinning = pinning
        self._copies = copies

    async def load_again(self, loaded: LoadedObject) -> None:
        """Open the pins of an earlier run, or load the file again where they are gone."""
        is_open = await self._open_pins(loaded)
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
            await self._holding.lock(stack, loaded.name)
            self._holding.hold(loaded)
        if not is_open and self._pinning.keep_dir is None:
            await self._holding.begin_arrays(loaded)  # what was journalled is about programs that are gone
        log.info("an object file is loaded again", object=loaded.name, version=loaded.version.number, same=is_open)

    async def _open_pins(self, loaded: LoadedObject) -> bool:
        """Open what is pinned since an earlier run of this boot, and return whether all of the version is there."""
        kernel = self._kernel
        opened = []
        for version in loaded.all_versions:
            try:
                if version.boot_id != kernel.boot_id or not all(each.pin for each in version.pinnable()):
                    break
                version.open_pins(kernel)
            except (OSError, ServiceError) as error:
                log.warning("a version is gone", object=loaded.name, version=version.number, reason=str(error))
                await version.close()
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
        elf = await self._loads.read(asked.file, content)
        try:
            if elf.digest != was.digest:
                message = f"the file {asked.file!r} is another one now; send PUT /objects/{loaded.name} to load that"
                raise FileNotAllowed(message)
            asked_again = replace(asked, maps=maps)
            fresh = await self._loads.load(loaded.name, elf, asked_again, None, was.attach_types, dry_run=False)
        finally:
            os.close(elf.fd)
        fresh.specification = asked
        for kept, each in zip(was.pinnable(), fresh.pinnable(), strict=False):
            each.pin = kept.pin
        fresh.number = was.number
        for pin in was.pins():
            with suppress(OSError):
                self._kernel.unpin(pin)
        try:
            self._pinning.pin(fresh)
            after = LoadedObject(loaded.name, fresh)
            await self._journal.save_object(loaded.name, after.to_json(), [])
        except (ServiceError, JournalFailed) as error:
            await fresh.close()
            raise error if isinstance(error, ServiceError) else JournalUnreadable(str(error)) from error
        loaded.version, loaded.previous = fresh, None
