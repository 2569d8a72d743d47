"""A desired table as the store has it: whether the fleet has signed it, and whether it is for this node.

The store is not trusted. Whoever can write there can show a node only what the fleet has signed for this very node and
table, and nothing older than what the node has seen.
"""

import hashlib
from dataclasses import dataclass

from app.fleet_store import keys
from app.fleet_store.documents import BadDocument, Check, DesiredTable
from app.fleet_store.items import Item
from app.fleet_store.signatures import DESIRED_TABLE, BadSignature, Verifier
from app.fleet_store.specification import BadSpecification, Specification


class No(Exception):
    """The node does not do what is desired. The text is a sentence that says why.

    Attributes:
        code: A code, as problems have them.
        change: The id of the change that was made and taken back, if there was one.
    """

    def __init__(self, code: str, detail: str, change: int | None = None) -> None:
        super().__init__(detail)
        self.code, self.change = code, change


@dataclass(frozen=True, slots=True)
class Desired:
    """What a table is to hold.

    Attributes:
        table: The name of the table, which is that of the map.
        rollout: The rollout that wants it.
        revision: The revision of the table; None if `specification` is.
        specification: What it is to hold. None: the node takes back what the rollout has changed.
        confirm_within: Seconds; None: the change counts at once.
        checks: What the node must pass before it confirms.
        sequence: Rises with each desired table of this node.
        by: Who has asked for it; empty: it is not known.
        note: The note of its change, which says to people what it was made for.
        request_id: The id of the request that makes it, by which the agent finds the change in the journal.
    """

    table: str
    rollout: str
    revision: int | None
    specification: Specification | None
    confirm_within: int | None
    checks: tuple[Check, ...]
    sequence: int
    by: str
    note: str
    request_id: str

    @property
    def actor(self) -> str | None:
        """Whom the agent names to the service; None: nobody."""
        return "".join(each if " " <= each <= "~" else "?" for each in self.by).strip()[:128] or None


def digest(item: Item) -> str:
    """Return what tells a desired table from all others, whatever happens to the store's revisions."""
    return hashlib.sha256(item.value).hexdigest()


def read(item: Item, purpose: bytes, verifier: Verifier, node: str) -> Desired:
    """Return what a value says, after a look at all that can be wrong with it.

    Args:
        item: The key and its value.
        purpose: DESIRED_TABLE or DRY_RUN: what it must have been signed for.
        verifier: Knows the fleet's keys.
        node: The name of this node.

    Raises:
        No: It is not signed by the fleet, is meant for something else, or makes no sense.
    """
    if len(item.value) > DesiredTable.max_bytes:
        raise No("too-large", f"it has {len(item.value)} bytes; at most {DesiredTable.max_bytes} are allowed")
    try:
        document = DesiredTable.from_bytes(verifier.document(purpose, item.value))
        packed = document.specification
        specification = None if packed is None else Specification.from_bytes(packed)
    except BadSignature as error:
        raise No("signature-invalid", str(error)) from error
    except (BadDocument, BadSpecification) as error:
        raise No("malformed", str(error)) from error
    if document.node != node:
        raise No("other-node", f"it is signed for node {document.node}, and this one is {node}")
    if purpose == DESIRED_TABLE:
        _check_place(document, keys.last_part(item.key))
    return Desired(
        table=document.table,
        rollout=document.rollout,
        revision=document.revision,
        specification=specification,
        confirm_within=None if document.undo else document.confirm_within,
        checks=() if document.undo else document.checks,
        sequence=document.sequence,
        by=document.by,
        note=f"fleet {document.rollout} {item.mod_revision}",
        request_id=f"fleet-{item.mod_revision}-{digest(item)[:32]}",
    )


def _check_place(document: DesiredTable, table: str) -> None:
    """Check that a desired table is that of its key, and that of the rollout for which it is signed."""
    if document.table != table:
        raise No("other-table", f"it is signed for table {document.table}, and stands where {table} belongs")
    # A rollout brings the revision that its id names. One that sets a node back brings an earlier one, or none.
    of_table, _, number = document.rollout.rpartition("-")
    if of_table != document.table or not (document.undo or number == str(document.revision)):
        what = f"revision {document.revision} of {document.table}"
        raise No("other-rollout", f"it is {what}, and signed for the rollout {document.rollout}")
