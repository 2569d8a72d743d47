"""What a controller knows of the store: a copy in memory of what it decides by, kept up to date by a watch.

All of it is of one revision of the store, but for what the controller has written itself since.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import msgspec
import structlog

from app.fleet_store import keys
from app.fleet_store.documents import BadDocument, Rollout, TableStatus
from app.fleet_store.errors import Compacted, EtcdError
from app.fleet_store.etcd import Etcd
from app.fleet_store.items import Item
from app.fleet_store.signatures import unverified_document

_PREFIXES: Final = (keys.ROLLOUTS, keys.ACTIVE, keys.NODES, keys.STATUS, keys.DESIRED)
_RETRY_SECONDS: Final = 0.5

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

log = structlog.get_logger()


class Desired(msgspec.Struct, frozen=True):
    """What of a desired table a controller decides by. The specification, which may be large, is left out."""

    rollout: str
    undo: bool
    at: float
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class Versioned(Generic[_T]):
    """What a key holds, and the revision of the store that wrote it (mod_revision)."""

    value: _T
    version: int


@dataclass
class Mirror:
    """The copy.

    Attributes:
        rollouts: Rollouts by id.
        active: The id of the unfinished rollout, by table.
        nodes: The nodes of the fleet.
        alive: The nodes whose agents are connected.
        desired: Desired tables, by node and table.
        statuses: What nodes say, by node and table.
        leader: The revision in which the elected controller's key was created; None: nobody is elected.
        revision: The revision of the store up to which everything is known.
        changed: Is set whenever something changes.
    """

    etcd: Etcd
    rollouts: dict[str, Versioned[Rollout]] = field(default_factory=dict)
    active: dict[str, Versioned[str]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    desired: dict[tuple[str, str], Versioned[Desired]] = field(default_factory=dict)
    statuses: dict[tuple[str, str], Versioned[TableStatus]] = field(default_factory=dict)
    leader: int | None = None
    revision: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _versions: dict[str, int] = field(default_factory=dict)  # of the keys that are there
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _since: list[tuple[str, Item | None, int]] | None = None  # what was noted while everything is read anew
    _loaded: int = 0  # the revision in which everything was read: what is not there was removed before

    async def follow(self) -> None:
        """Keep the copy up to date. Never ends by itself."""
        while True:
            try:
                await self.load()
                async with aclosing(self.etcd.watch(keys.PREFIX, self.revision)) as stream:
                    async for events in stream:
                        for event in events.events:
                            self._note(event.key, event.item, event.revision)
                        self.revision = max(self.revision, events.revision)
                        self.changed.set()
            except Compacted:
                continue
            except EtcdError as error:
                log.warning("the store cannot be read", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)

    async def load(self) -> None:
        """Read everything anew.

        Raises:
            EtcdError: It cannot be read. The copy is as it was.
        """
        async with self._loading:
            self._since = []
            try:
                leader = await self.etcd.range(keys.CONTROLLER)
                items = dict(leader.items)
                for prefix in _PREFIXES:
                    items.update((await self.etcd.range(prefix, revision=leader.revision)).items)
            finally:
                since, self._since = self._since, None
            copies = (self.rollouts, self.active, self.nodes, self.alive, self.desired, self.statuses, self._versions)
            for each in copies:
                each.clear()
            self.leader = None
            self._loaded = 0
            for key, item in items.items():
                self._note(key, item, item.mod_revision)
            self._loaded = leader.revision
            for event in since:
                self._note(*event)
            self.revision = max(self.revision, leader.revision)
            self.changed.set()

    def note_written(self, revision: int, values: dict[str, bytes | None]) -> None:
        """Note what the controller has written itself, so that it need not wait until the watch tells it.

        Args:
            revision: The revision of the store that wrote it.
            values: By key; None: it was removed.
        """
        for key, value in values.items():
            item = None if value is None else Item(key, value, revision, revision)
            self._note(key, item, revision)

    def _note(self, key: str, item: Item | None, revision: int) -> None:
        """Note what a key holds, unless something newer is known of it."""
        if self._since is not None:
            self._since.append((key, item, revision))
        if revision <= self._versions.get(key, self._loaded):
            return
        self._versions[key] = revision
        try:
            self._keep(key, item, revision)
        except BadDocument as error:
            log.warning("a value in the store is ignored", key=key, error=str(error))
            self._keep(key, None, revision)
        if item is None:
            del self._versions[key]

    def _keep(self, key: str, item: Item | None, revision: int) -> None:
        kind, _, rest = key.removeprefix(keys.PREFIX).partition("/")
        match kind, *rest.split("/"):
            case "rollouts", str(rollout):
                _put(
                    self.rollouts,
                    rollout,
                    None if item is None else Versioned(Rollout.from_bytes(item.value), revision),
                )
            case "active", str(table):
                _put(
                    self.active,
                    table,
                    None if item is None else Versioned(item.value.decode(errors="replace"), revision),
                )
            case "nodes", str(node):
                _mark(self.nodes, node, there=item is not None)
            case "status", str(node), "alive":
                _mark(self.alive, node, there=item is not None)
            case "status", str(node), "tables", str(table):
                _put(
                    self.statuses,
                    (node, table),
                    None if item is None else Versioned(TableStatus.from_bytes(item.value), revision),
                )
            case "desired", str(node), "tables", str(table):
                _put(self.desired, (node, table), None if item is None else Versioned(_desired(item.value), revision))
            case "controller", "":
                self.leader = None if item is None else item.create_revision
            case _:
                pass


def _desired(value: bytes) -> Desired:
    try:
        return msgspec.json.decode(unverified_document(value), type=Desired)
    except msgspec.DecodeError as error:
        message = f"no DesiredTable: {error}"
        raise BadDocument(message) from error


def _put(values: dict[_K, _V], key: _K, value: _V | None) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value


def _mark(names: set[str], name: str, *, there: bool) -> None:
    (names.add if there else names.discard)(name)
