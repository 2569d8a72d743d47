"""Users and roles in etcd: what a node and the fleet's server may do there. Every call may be repeated."""

from app.fleet_store import keys
from app.fleet_store.etcd import Etcd
from app.fleet_store.operations import delete, delete_prefix

_ROOT = "root"  # etcd's own name of the user and of the role that may do everything


async def enable(etcd: Etcd) -> None:
    """Turn on authentication, with `root` as the user that may do everything. Its certificate has that CommonName.

    Raises:
        EtcdError: It is not turned on.
    """
    await etcd.add_user(_ROOT)
    await etcd.add_role(_ROOT)
    await etcd.grant_role(_ROOT, _ROOT)
    await etcd.enable_auth()


async def add_server(etcd: Etcd, user: str) -> None:
    """Add the user of `jumptable fleet serve`. It adds users of nodes itself, which takes the role `root`.

    Raises:
        EtcdError: It is not complete.
    """
    await etcd.add_user(user)
    await etcd.grant_role(user, _ROOT)


async def add_node(etcd: Etcd, node: str, user: str) -> None:
    """Add the user of a node, which may read what is desired of that node and write its status, and nothing else.

    Raises:
        EtcdError: It is not complete.
    """
    role = _role(node)
    await etcd.add_user(user)
    await etcd.add_role(role)
    await etcd.permit(role, keys.desired(node), read=True)
    await etcd.permit(role, keys.status(node), read=True, write=True)
    await etcd.grant_role(user, role)


async def remove_node(etcd: Etcd, node: str, user: str) -> None:
    """Remove the user of a node, and all keys of the node. A watch that is open outlives its user, but reads nothing.

    Raises:
        EtcdError: It is not complete.
    """
    await etcd.delete_user(user)
    await etcd.delete_role(_role(node))
    await etcd.commit(
        [], [delete(keys.node(node)), delete_prefix(keys.desired(node)), delete_prefix(keys.status(node))]
    )


def _role(node: str) -> str:
    return f"jumptable-node-{node}"
