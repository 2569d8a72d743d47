"""The answers about object files."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas.responses import FIT, REASON, WOULD_CHANGE, Change, ChangedEntry, optional_list
from app.bpf.uapi import map_type_name, prog_type_name
from app.service.loading.loaded_object import LoadedObject
from app.service.loading.version import LoadedMap, LoadedProgram, Version


class ObjectProgram(BaseModel):
    """A program of an object file."""

    name: str = Field(description="The name under which it is held.", examples=["parser.entry"])
    program: str = Field(description="Its name in the file.", examples=["entry"])
    section: str = Field(examples=["xdp"])
    type: str = Field(examples=["xdp"])
    attach_type: int = Field(description="Its expected_attach_type, a number of enum bpf_attach_type.", examples=[37])
    instructions: int
    id: int | None = Field(description="The kernel's id; null: it is not loaded.", examples=[812])
    pins: list[str]

    @staticmethod
    def of(name: str, each: LoadedProgram) -> "ObjectProgram":
        """Return the model for a program of the object file with this name."""
        facts = each.facts
        return ObjectProgram(
            name=f"{name}.{facts.name}", program=facts.name, section=facts.section, type=prog_type_name(facts.type),
            attach_type=facts.attach_type, instructions=facts.instructions,
            id=each.id or None, pins=[] if each.pin is None else [each.pin],
        )  # fmt: skip


class ObjectMap(BaseModel):
    """A map of an object file. Those that hold variables have the name of their section."""

    name: str | None = Field(
        description="The name under which it is held; null: it is no program array, or another has taken its place.",
        examples=["parser.jumps"],
    )
    map: str = Field(description="Its name in the file.", examples=["jumps"])
    type: str = Field(examples=["prog_array"])
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    use: str | None = Field(
        description="What has taken its place: a held map, a pin, or `previous` (the map of the version before); "
        "null: it was made for this version."
    )
    id: int | None = Field(description="The kernel's id; null: it is not loaded.", examples=[41])
    pins: list[str]

    @staticmethod
    def of(name: str, each: LoadedMap) -> "ObjectMap":
        """Return the model for a map of the object file with this name."""
        facts, is_held = each.facts, each.is_owned and map_type_name(each.facts.type) == "prog_array"
        return ObjectMap(
            name=f"{name}.{facts.name}" if is_held else None, map=facts.name, type=map_type_name(facts.type),
            key_size=facts.key_size, value_size=facts.value_size, max_entries=facts.max_entries, flags=facts.flags,
            use=each.use, id=each.id or None, pins=[] if each.pin is None else [each.pin],
        )  # fmt: skip


class PreviousVersion(BaseModel):
    """The version before, which is kept until there is another one, so that its entries can be put back."""

    version: int
    sha256: str
    loaded_at: datetime
    program_ids: dict[str, int] = Field(description="The kernel's ids of its programs, by their names in the file.")


class ObjectFile(BaseModel):
    """An object file that is loaded."""

    name: str = Field(examples=["parser"])
    version: int = Field(description="1 for the first one under this name, and one more for each after.", examples=[2])
    etag: str
    file: str | None = Field(
        description="The path that it was read from; null: a request brought it.",
        examples=["/etc/jumptable/objects/parser.o"],
    )
    sha256: str
    bytes: int
    loaded_at: datetime
    programs: list[ObjectProgram]
    maps: list[ObjectMap]
    previous: PreviousVersion | None
    state: Literal["loaded", "unavailable"]
    reason: str | None = Field(description=REASON)
    warnings: list[str]

    @staticmethod
    def of(loaded: LoadedObject, *, will_be_pinned: bool = False) -> "ObjectFile":
        """Return the model for an object file. `will_be_pinned`: after a dry run, as nothing is pinned by that."""
        version, previous = loaded.version, loaded.previous
        return ObjectFile(
            name=loaded.name,
            version=version.number,
            etag=loaded.etag,
            file=version.specification.file,
            sha256=version.digest,
            bytes=version.size,
            loaded_at=_time(version),
            programs=[ObjectProgram.of(loaded.name, each) for each in version.programs.values()],
            maps=[ObjectMap.of(loaded.name, each) for each in version.maps.values()],
            previous=None
            if previous is None
            else PreviousVersion(
                version=previous.number,
                sha256=previous.digest,
                loaded_at=_time(previous),
                program_ids={name: id_ for id_, name in previous.program_ids().items()},
            ),
            state="loaded" if loaded.reason is None else "unavailable",
            reason=loaded.reason,
            warnings=_warnings(version, will_be_pinned=will_be_pinned),
        )


class ObjectFiles(BaseModel):
    """All object files that are loaded."""

    objects: list[ObjectFile]
    upload: bool = Field(description="Whether a request may bring an object file.")
    object_dirs: list[str] = Field(description="The folders in which files may be that requests name.")


class LoadedObjectFile(BaseModel):
    """An object file that was loaded, and the changes of entries that were made with it."""

    object: ObjectFile
    changes: list[Change] = Field(description="One for each map whose entries were changed, in this order.")


class EntriesOfMap(BaseModel):
    """What would be changed in one map."""

    map: str = Field(examples=["jump_table"])
    entries: list[ChangedEntry]


class DryLoadedObjectFile(LoadedObjectFile):
    """What loading an object file would do, from a dry run. The kernel has taken its programs, and let go of them."""

    fit: Literal["tried", "type-only"] = Field(description=FIT)
    entries: list[EntriesOfMap] = optional_list(WOULD_CHANGE)


def _time(version: Version) -> datetime:
    return datetime.fromtimestamp(version.at, UTC)


def _warnings(version: Version, *, will_be_pinned: bool) -> list[str]:
    found = []
    if version.programs and not will_be_pinned and not any(each.pin for each in version.programs.values()):
        found.append(
            "its programs and maps are pinned nowhere, as server.keep_dir is not set: after a restart of the service "
            "the file is loaded again, and entries keep the programs of before"
        )
    if version.unconfined:
        found.append(f"the process that has loaded it was not confined by {', '.join(version.unconfined)}")
    return found
