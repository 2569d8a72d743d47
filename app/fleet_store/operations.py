"""What a transaction of etcd compares and does."""

from app.fleet_store import rpc_pb2 as rpc


def unchanged(key: str, mod_revision: int) -> rpc.Compare:
    """Compare: the key was last written in this revision. 0: it is not there."""
    return rpc.Compare(key=key.encode(), target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=mod_revision)


def created_in(key: str, revision: int) -> rpc.Compare:
    """Compare: the key was created in this revision, and is there since. 0: it is not there."""
    return rpc.Compare(key=key.encode(), target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=revision)


def is_absent(key: str) -> rpc.Compare:
    """Compare: the key is not there."""
    return created_in(key, 0)


def is_there(key: str) -> rpc.Compare:
    """Compare: the key is there."""
    return rpc.Compare(key=key.encode(), target=rpc.Compare.VERSION, result=rpc.Compare.GREATER, version=0)


def put(key: str, value: bytes, lease: int = 0) -> rpc.RequestOp:
    """Operation: write a key."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value, lease=lease))


def delete(key: str) -> rpc.RequestOp:
    """Operation: remove a key, if it is there."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))


def delete_prefix(prefix: str) -> rpc.RequestOp:
    """Operation: remove all keys that begin so."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=prefix.encode(), range_end=end_of(prefix)))


def end_of(prefix: str) -> bytes:
    """Return the first key after all those that begin with `prefix`, whose last character is ASCII."""
    key = prefix.encode()
    return key[:-1] + bytes([key[-1] + 1])
