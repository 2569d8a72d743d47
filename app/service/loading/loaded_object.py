"""An object file under a name, with its versions."""

from dataclasses import dataclass
from typing import Self

from pydantic_core import from_json, to_json

from app.service.changes.origin import RequestContext
from app.service.loading.version import LoadedMap, LoadedProgram, Version
from app.store.journal import ObjectEvent


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

    @property
    def all_versions(self) -> list[Version]:
        """Both versions, also where they are not loaded."""
        return [self.version, *([] if self.previous is None else [self.previous])]

    def programs(self) -> dict[str, LoadedProgram]:
        """Return the programs of the version that counts, by the names under which they are held."""
        return {f"{self.name}.{each}": program for each, program in self.version.programs.items()}

    def arrays(self) -> dict[str, LoadedMap]:
        """Return the program arrays that the version keeps, by the names under which they are held."""
        return {f"{self.name}.{each}": map_ for each, map_ in self.version.arrays().items()}

    def to_json(self) -> str:
        """Return what the journal remembers of it."""
        previous = None if self.previous is None else self.previous.to_json()
        return to_json({"version": self.version.to_json(), "previous": previous}).decode()

    @classmethod
    def of_json(cls, name: str, content: str) -> Self:
        """Return what `to_json` was made from. Nothing of it is loaded."""
        facts = from_json(content)
        previous = None if facts["previous"] is None else Version.of_json(facts["previous"])
        return cls(name, Version.of_json(facts["version"]), previous, reason="not loaded yet")

    def events(self, happened: str, context: RequestContext) -> list[ObjectEvent]:
        """Return the events of its programs and arrays.

        Args:
            happened: `held` or `released`.
            context: Who did it.
        """
        who = {"object": self.name, "actor": context.actor, "request_id": context.request_id}
        events: list[ObjectEvent] = []
        for full, program in self.programs().items():
            id_ = None if program.program is None else program.program.id
            events.append(("program", full, {"program": full, "happened": happened, "id": id_, **who}))
        for full, map_ in self.arrays().items():
            events.append(("map", full, {"map": full, "happened": happened, "id": map_.id or None, **who}))
        return events
