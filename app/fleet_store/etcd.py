"""The client of etcd: what the fleet needs of its gRPC API, over one connection at a time, with mutual TLS.

The certificate's CommonName is the user in etcd, so there are no passwords and no tokens.

- Reads are tried again, on the next member, until `patience` is over.
- Writes are sent once. If the answer does not arrive, whether they were made is not known: `OutcomeUnknown`. Then read.
- A request that etcd refuses as users have changed meanwhile is sent again, until `patience` is over: nothing was done.
- Watches go on by themselves, from the revision after the last that they have told.

Thread rule: one event loop, in which the object is made and closed.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from app.fleet_store import rpc_pb2 as rpc
from app.fleet_store.errors import (
    Compacted,
    EtcdError,
    OutcomeUnknown,
    PermissionDenied,
    Refused,
    Unavailable,
)
from app.fleet_store.items import Event, Events, Item, Snapshot
from app.fleet_store.operations import end_of
from app.fleet_store.versions import version_warning

MAX_OPERATIONS: Final = 128  # in a transaction, and as many compares: --max-txn-ops of etcd
MAX_REQUEST_BYTES: Final = 1_500_000  # a little less than --max-request-bytes of etcd

_FIRST_PAGE: Final = 16  # keys in the first answer to a range; those of the next depend on how large its values are
_PAGE_BYTES: Final = 8 << 20  # about that much in an answer
_MAX_PAGE: Final = 1000  # keys in an answer, at most
_FIRST_PAUSE_SECONDS: Final = 0.05
_LAST_PAUSE_SECONDS: Final = 2.0
_MAX_ANSWER_BYTES: Final = 64 << 20
_SERVICE: Final = "/etcdserverpb."
# Without it, a member that is cut off from the others keeps a stream open and tells nothing.
_WITH_LEADER: Final = (("hasleader", "true"),)
_NOT_CONNECTED: Final = {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}
# etcd refuses what it has received before users or roles have changed, and has not done by then. It can be sent again.
_AUTH_CHANGED: Final = "revision of auth store is old"
_AGAIN: Final = {  # answers after which another member, or the same a little later, may do better
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
}

_Answer = TypeVar("_Answer", bound=Message)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to connect with mutual TLS.

    Attributes:
        ca: The certificate authority of etcd's members, in PEM.
        certificate: Our certificate with its chain, in PEM. Its CommonName is the user in etcd.
        key: Its key, in PEM, without a password.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, ca: Path, certificate: Path, key: Path) -> Self:
        """Read the files.

        Raises:
            OSError: One cannot be read.
        """
        return cls(ca.read_bytes(), certificate.read_bytes(), key.read_bytes())


@dataclass(frozen=True, slots=True)
class Connection:
    """How the connection to etcd is.

    Attributes:
        connected: Whether the last request was answered.
        since: Since when it is so, in seconds since 1970.
        error: Why it is not; empty if it is.
    """

    connected: bool
    since: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What a member says of itself.

    Attributes:
        endpoint: Where it was asked.
        version: Its version, such as `3.5.30`.
        revision: The newest revision of the store that it knows.
        leader: The id of the leader; 0: there is none.
        database_bytes: The size of its database.
    """

    endpoint: str
    version: str
    revision: int
    leader: int
    database_bytes: int


class Etcd:
    """A client of an etcd cluster."""

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials | None,
        *,
        timeout: float = 3.0,
        patience: float = 10.0,
        keepalive: float = 10.0,
    ) -> None:
        """Connects when it is used first.

        Args:
            endpoints: The members, as `host:port`. It begins with any of them, so that clients spread.
            credentials: Certificates; None: without TLS, for trying.
            timeout: Seconds for one attempt of a request.
            patience: Seconds for all attempts of a read together, or of a request that changes of users refuse.
            keepalive: Seconds without traffic after which a ping asks whether the member still lives. etcd closes
                connections that ask more often than every 5 s.
        """
        if not endpoints:
            raise ValueError("etcd has at least one endpoint")
        self._credentials = credentials
        self._timeout = timeout
        self._patience = patience
        self._keepalive = keepalive
        self._members = [_Member(endpoint) for endpoint in endpoints]
        self._current = random.choice(self._members)  # noqa: S311 - no secret
        self._connection = Connection(connected=False, since=time.time(), error="not connected yet")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Requests and watches that are under way end with an error."""
        for member in self._members:
            channel, member.channel = member.channel, None
            if channel is not None:
                await channel.close()

    @property
    def connection(self) -> Connection:
        """How the connection is, by the last request or watch."""
        return self._connection

    # Keys

    async def get(self, key: str) -> Item | None:
        """Return a key as it is now (linearizable); None: it is not there.

        Raises:
            EtcdError: It cannot be read.
        """
        answer = await self._read("KV/Range", rpc.RangeRequest(key=key.encode()), rpc.RangeResponse)
        return _item(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Snapshot:
        """Return all keys that begin so, as they are now (linearizable), or were in an earlier revision.

        Args:
            prefix: The beginning of the keys.
            revision: The revision of the store; 0: the newest.
            keys_only: Leave the values empty.

        Raises:
            Compacted: That revision is no longer there.
            EtcdError: They cannot be read.
        """
        items: dict[str, Item] = {}
        key, end, limit = prefix.encode(), end_of(prefix), _FIRST_PAGE
        while True:
            request = rpc.RangeRequest(key=key, range_end=end, limit=limit, revision=revision, keys_only=keys_only)
            answer = await self._read("KV/Range", request, rpc.RangeResponse)
            revision = revision or answer.header.revision  # all pages are of one revision
            items.update((item.key, item) for item in map(_item, answer.kvs))
            if not answer.more:
                return Snapshot(revision, items)
            key = answer.kvs[-1].key + b"\0"
            average = answer.ByteSize() // len(answer.kvs)
            limit = max(1, min(_MAX_PAGE, _PAGE_BYTES // average))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key whatever it holds, and return the revision. For keys that have one writer.

        Raises:
            OutcomeUnknown: It may have been written.
            EtcdError: It was not written.
        """
        request = rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        return (await self._write("KV/Put", request, rpc.PutResponse)).header.revision

    async def commit(
        self, compares: Iterable[rpc.Compare], operations: Iterable[rpc.RequestOp], *, witness: str | None = None
    ) -> int | None:
        """Do all operations if all compares hold, in one revision, and return it. None: a compare does not hold.

        Args:
            compares: `unchanged`, `created_in`, `is_absent`, `is_there`.
            operations: `put`, `delete`, `delete_prefix`.
            witness: A key that the operations put, with a value that nobody else writes. If the answer does not
                arrive, it is read: it says whether the transaction was made.

        Raises:
            OutcomeUnknown: It may have been made, or be made yet.
            EtcdError: It was not made.
        """
        request = rpc.TxnRequest(compare=compares, success=operations)
        try:
            answer = await self._write("KV/Txn", request, rpc.TxnResponse)
        except OutcomeUnknown:
            if witness is None:
                raise
            return await self._outcome(request, witness)
        return answer.header.revision if answer.succeeded else None

    async def _outcome(self, request: rpc.TxnRequest, witness: str) -> int | None:
        """Find out by its witness whether a transaction was made."""
        key = witness.encode()
        ours = next(each.request_put.value for each in request.success if each.request_put.key == key)
        item = await self.get(witness)
        if item is not None and item.value == ours:
            return item.mod_revision
        modified, created = (0, 0) if item is None else (item.mod_revision, item.create_revision)
        for compare in request.compare:
            if compare.key == key and (
                (compare.target == rpc.Compare.MOD and compare.mod_revision != modified)
                or (compare.target == rpc.Compare.CREATE and compare.create_revision != created)
            ):
                return None  # somebody else was first, so that the compare never holds again
        raise OutcomeUnknown("the answer to a transaction did not arrive, and it is not made so far")

    # Watches

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Events, None]:
        """Yield what happens to keys that begin so. Never ends by itself; connects again whenever it has to.

        Args:
            prefix: The beginning of the keys.
            after: The revision after which to begin, as of a `Snapshot`.

        Raises:
            Compacted: What came next is no longer there.
        """
        pauses = _pauses()
        while True:
            try:
                async with aclosing(self._watch_once(prefix, after)) as stream:
                    async for events in stream:
                        pauses = _pauses()
                        after = events.revision
                        yield events
            except Compacted:
                raise
            except EtcdError:
                await asyncio.sleep(next(pauses))

    async def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Events, None]:
        """Yield all keys that begin so, then what happens to them. Never ends, whatever happens to etcd.

        After a compaction that it has missed, it yields a snapshot again. Whatever is not in that is gone.
        """
        pauses = _pauses()
        while True:
            try:
                snapshot = await self.range(prefix)
            except EtcdError:
                await asyncio.sleep(next(pauses))
                continue
            pauses = _pauses()
            yield snapshot
            try:
                async with aclosing(self.watch(prefix, snapshot.revision)) as events:
                    async for each in events:
                        yield each
            except Compacted:
                continue

    async def _watch_once(self, prefix: str, after: int) -> AsyncGenerator[Events, None]:
        """Yield what one stream tells, until it ends with an EtcdError."""
        member = self._current
        stream = None
        try:
            stream = (await self._ready(member)).stream_stream(
                f"{_SERVICE}Watch/Watch",
                request_serializer=rpc.WatchRequest.SerializeToString,
                response_deserializer=rpc.WatchResponse.FromString,
            )(metadata=_WITH_LEADER)
            create = rpc.WatchCreateRequest(
                key=prefix.encode(),
                range_end=end_of(prefix),
                start_revision=after + 1,
                progress_notify=True,
                fragment=True,  # what is too large for an answer comes in several
            )
            await _translated(stream.write(rpc.WatchRequest(create_request=create)))
            answer: Any = await _translated(stream.read(), self._timeout)
            parts: list[Event] = []
            while True:
                if answer is grpc.aio.EOF:
                    raise Unavailable("the member has ended the watch")
                if answer.compact_revision:
                    raise Compacted(answer.compact_revision)
                if answer.canceled:
                    raise _error(grpc.StatusCode.UNAVAILABLE, answer.cancel_reason)
                self._succeeded()
                parts += map(_event, answer.events)
                if parts and not answer.fragment:
                    yield Events(parts[-1].revision, tuple(parts))
                    parts = []
                elif not parts and not answer.created:
                    yield Events(answer.header.revision, ())
                answer = await _translated(stream.read())
        except EtcdError as error:
            self._failed(member, error)
            raise
        finally:
            if stream is not None:
                stream.cancel()

    # Leases

    async def grant(self, seconds: int) -> "Lease":
        """Return a new lease. The keys that hang on it go when it is not renewed in time.

        Args:
            seconds: How long it lasts after it was granted or renewed. etcd makes it longer than its election takes.

        Raises:
            EtcdError: There is none.
        """
        answer = await self._read("Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=seconds), rpc.LeaseGrantResponse)
        return Lease(self, answer.ID, float(answer.TTL))

    # The cluster

    async def members(self) -> list[MemberStatus]:
        """Ask each endpoint for its status. Those that do not answer are left out.

        Raises:
            EtcdError: None of them answers.
        """
        found, problem = [], EtcdError("etcd has no endpoints")
        for member in self._members:
            try:
                answer = await self._call(member, "Maintenance/Status", rpc.StatusRequest(), rpc.StatusResponse)
            except EtcdError as error:
                problem = error
                continue
            found.append(
                MemberStatus(member.endpoint, answer.version, answer.header.revision, answer.leader, answer.db_size)
            )
        if not found:
            raise problem
        return found

    async def check_versions(self) -> list[str]:
        """Return a warning for each member whose version lets nodes read the keys of others.

        Raises:
            VersionRefused: A version lets nodes write the keys of others.
            EtcdError: No member answers.
        """
        return [
            warning
            for member in await self.members()
            if (warning := version_warning(member.version, member.endpoint)) is not None
        ]

    async def compact(self, revision: int) -> None:
        """Forget what was before a revision. Keys keep their newest value.

        Raises:
            EtcdError: It was not done.
        """
        with contextlib.suppress(Compacted):  # somebody else was first
            await self._read("KV/Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse)

    # Users and roles

    async def enable_auth(self) -> None:
        """Turn on authentication. There must be a user `root` with the role `root`.

        Raises:
            EtcdError: It was not turned on.
        """
        await self._read("Auth/AuthEnable", rpc.AuthEnableRequest(), rpc.AuthEnableResponse)

    async def user_roles(self, user: str) -> list[str] | None:
        """Return the roles of a user; None: there is no such user.

        Raises:
            EtcdError: It is not known.
        """
        try:
            answer = await self._read("Auth/UserGet", rpc.AuthUserGetRequest(name=user), rpc.AuthUserGetResponse)
        except Refused as error:
            if "user name not found" in str(error):
                return None
            raise
        return list(answer.roles)

    async def add_user(self, user: str) -> None:
        """Add a user without a password, who authenticates by certificate. One that is there already stays.

        Raises:
            EtcdError: It was not added.
        """
        request = rpc.AuthUserAddRequest(name=user, options=rpc.UserAddOptions(no_password=True))
        await self._unless("user name already exists", "Auth/UserAdd", request, rpc.AuthUserAddResponse)

    async def delete_user(self, user: str) -> None:
        """Remove a user, if it is there. Its open watches go on: remove what they may read as well.

        Raises:
            EtcdError: It was not removed.
        """
        request = rpc.AuthUserDeleteRequest(name=user)
        await self._unless("user name not found", "Auth/UserDelete", request, rpc.AuthUserDeleteResponse)

    async def add_role(self, role: str) -> None:
        """Add a role without permissions. One that is there already stays.

        Raises:
            EtcdError: It was not added.
        """
        request = rpc.AuthRoleAddRequest(name=role)
        await self._unless("role name already exists", "Auth/RoleAdd", request, rpc.AuthRoleAddResponse)

    async def delete_role(self, role: str) -> None:
        """Remove a role, if it is there.

        Raises:
            EtcdError: It was not removed.
        """
        request = rpc.AuthRoleDeleteRequest(role=role)
        await self._unless("role name not found", "Auth/RoleDelete", request, rpc.AuthRoleDeleteResponse)

    async def grant_role(self, user: str, role: str) -> None:
        """Give a user a role.

        Raises:
            EtcdError: It was not given.
        """
        request = rpc.AuthUserGrantRoleRequest(user=user, role=role)
        await self._read("Auth/UserGrantRole", request, rpc.AuthUserGrantRoleResponse)

    async def permit(self, role: str, prefix: str, *, read: bool = False, write: bool = False) -> None:
        """Let a role read or write all keys that begin so.

        Raises:
            EtcdError: It was not let.
        """
        kind = rpc.Permission.READWRITE if read and write else rpc.Permission.WRITE if write else rpc.Permission.READ
        permission = rpc.Permission(permType=kind, key=prefix.encode(), range_end=end_of(prefix))
        request = rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission)
        await self._read("Auth/RoleGrantPermission", request, rpc.AuthRoleGrantPermissionResponse)

    async def _unless(self, text: str, method: str, request: Message, answer: type[_Answer]) -> None:
        """Send a request that is refused with this text if it was done already."""
        try:
            await self._read(method, request, answer)
        except Refused as error:
            if text not in str(error):
                raise

    # Requests

    async def _read(self, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        """Send a request that may be repeated, until a member answers it."""
        return await self._until_answered(lambda member: self._call(member, method, request, answer))

    async def _write(self, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        """Send a request that may not be repeated, once a member is connected."""

        async def connected(member: _Member) -> _Member:
            await self._ready(member)
            return member

        member = await self._until_answered(connected)
        try:
            return await self._call(member, method, request, answer)
        except Unavailable as error:
            self._failed(member, error)
            message = f"the answer to a write did not arrive: {error}"
            raise OutcomeUnknown(message) from error

    async def _until_answered(self, ask: Callable[["_Member"], Awaitable[_Result]]) -> _Result:
        """Ask one member after the other, until one answers or the patience is over."""
        deadline = time.monotonic() + self._patience
        pauses = _pauses()
        while True:
            member = self._current
            try:
                return await ask(member)
            except Unavailable as error:
                self._failed(member, error)
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(next(pauses))

    async def _call(self, member: "_Member", method: str, request: Message, answer: type[_Answer]) -> _Answer:
        channel = await self._ready(member)
        call: Callable[..., Awaitable[_Answer]] = channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        deadline = time.monotonic() + self._patience
        while True:
            try:
                result = await _translated(call(request, timeout=self._timeout))
            except Refused as error:
                if _AUTH_CHANGED not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                self._succeeded()
                return result
            # Nothing was done, and this passes as soon as the change of users is applied.
            await asyncio.sleep(_FIRST_PAUSE_SECONDS * random.random())  # noqa: S311 - no secret

    async def _ready(self, member: "_Member") -> grpc.aio.Channel:
        """Return the connection to a member once it is there.

        Raises:
            Unavailable: It cannot be made.
        """
        channel = member.channel = member.channel or self._connect(member.endpoint)
        try:
            async with asyncio.timeout(self._timeout):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state in _NOT_CONNECTED:
                        message = f"cannot connect to {member.endpoint}"
                        raise Unavailable(message)
                    await channel.wait_for_state_change(state)
        except TimeoutError as error:
            message = f"{member.endpoint} does not answer"
            raise Unavailable(message) from error
        return channel

    def _connect(self, endpoint: str) -> grpc.aio.Channel:
        options = [
            ("grpc.keepalive_time_ms", int(self._keepalive * 1000)),
            # Pings only while a request or a watch is open: others make etcd close the connection (too_many_pings).
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.http2.max_pings_without_data", 0),
            # How long a ping may take. keepalive_timeout_ms alone has no effect.
            ("grpc.http2.ping_timeout_ms", int(self._timeout * 1000)),
            ("grpc.keepalive_timeout_ms", int(self._timeout * 1000)),
            ("grpc.http2.bdp_probe", 0),  # they are pings as well
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", int(_LAST_PAUSE_SECONDS * 1000)),
            ("grpc.use_local_subchannel_pool", 1),  # several clients of a process do not share a connection
            ("grpc.enable_retries", 0),  # a write may not be sent twice
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(endpoint, options)
        files = self._credentials
        credentials = grpc.ssl_channel_credentials(files.ca, files.key, files.certificate)
        return grpc.aio.secure_channel(endpoint, credentials, options)

    def _failed(self, member: "_Member", error: EtcdError) -> None:
        """Note that a member does not answer, and turn to the next one unless that has been done already."""
        if member is self._current:
            self._current = self._members[(self._members.index(member) + 1) % len(self._members)]
        since = time.time() if self._connection.connected else self._connection.since
        self._connection = Connection(connected=False, since=since, error=str(error))

    def _succeeded(self) -> None:
        if not self._connection.connected:
            self._connection = Connection(connected=True, since=time.time())


@dataclass(slots=True, eq=False)
class _Member:
    """A member of the cluster, and the connection to it, once there was one."""

    endpoint: str
    channel: grpc.aio.Channel | None = None


class Lease:
    """A lease of etcd. `Etcd.grant` makes it.

    Attributes:
        id: Its id: what `put` takes.
        seconds: How long it lasts after it was granted or renewed.
    """

    def __init__(self, etcd: Etcd, id_: int, seconds: float) -> None:
        self.id = id_
        self.seconds = seconds
        self._etcd = etcd
        self._stream: tuple[_Member, Any] | None = None

    async def renew(self) -> bool:
        """Let it last from now on again. False: it is over, and its keys are gone.

        Raises:
            EtcdError: It is not known. It may be tried again for as long as the lease lasts.
        """
        etcd = self._etcd
        member, stream = self._stream or (etcd._current, None)
        try:
            if stream is None:
                stream = (await etcd._ready(member)).stream_stream(
                    f"{_SERVICE}Lease/LeaseKeepAlive",
                    request_serializer=rpc.LeaseKeepAliveRequest.SerializeToString,
                    response_deserializer=rpc.LeaseKeepAliveResponse.FromString,
                )(metadata=_WITH_LEADER)
                self._stream = member, stream
            await _translated(stream.write(rpc.LeaseKeepAliveRequest(ID=self.id)))
            answer: Any = await _translated(stream.read(), etcd._timeout)
            if answer is grpc.aio.EOF:
                raise Unavailable("the member has ended the stream")
        except BaseException as error:
            self._close()
            if isinstance(error, EtcdError):
                etcd._failed(member, error)
            raise
        etcd._succeeded()
        return bool(answer.TTL > 0)

    async def revoke(self) -> None:
        """End it, and remove its keys. One that is over already stays so.

        Raises:
            EtcdError: It is not known whether it has ended.
        """
        self._close()
        request = rpc.LeaseRevokeRequest(ID=self.id)
        await self._etcd._unless("lease not found", "Lease/LeaseRevoke", request, rpc.LeaseRevokeResponse)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].cancel()
            self._stream = None


def _pauses() -> Iterator[float]:
    """Yield how long to wait before each further attempt: longer each time, and never all clients at once."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
        pause = min(2 * pause, _LAST_PAUSE_SECONDS)


async def _translated(call: Awaitable[_Result], seconds: float | None = None) -> _Result:
    """Await a call of gRPC, at most for some seconds, and raise its errors as those of this module."""
    try:
        async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 may swallow that its task is cancelled
            return await call
    except grpc.aio.AioRpcError as error:
        raise _error(error.code(), error.details() or "") from error
    except TimeoutError as error:
        raise Unavailable("a member does not answer in time") from error
    except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
        message = f"the connection has ended: {error}"
        raise Unavailable(message) from error


def _error(code: grpc.StatusCode, text: str) -> EtcdError:
    text = " ".join(text.split()) or code.name
    if "has been compacted" in text:
        return Compacted(0)
    if "permission denied" in text or code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return PermissionDenied(text)
    return Unavailable(text) if code in _AGAIN else Refused(text)


def _item(kv: rpc.KeyValue) -> Item:
    return Item(kv.key.decode(errors="replace"), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _event(event: rpc.Event) -> Event:
    item = None if event.type == rpc.Event.DELETE else _item(event.kv)
    return Event(event.kv.key.decode(errors="replace"), item, event.kv.mod_revision)
