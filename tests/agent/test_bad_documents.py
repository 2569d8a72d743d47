"""What the store shows counts only if the fleet has signed it, for this node, table and rollout, and not long ago."""

from collections.abc import Callable
from typing import Any

import pytest

from app.fleet_store.documents import DesiredTable, TableState
from app.fleet_store.signatures import DESIRED_TABLE, DRY_RUN, Signer
from app.fleet_store.specification import Specification
from tests.agent.conftest import Fleet, Node

pytestmark = pytest.mark.anyio
Made = Callable[[Fleet], bytes]


def signed(fleet: Fleet, purpose: bytes = DESIRED_TABLE, signer: Signer | None = None, **said: Any) -> bytes:
    return (signer or fleet.signer).sign(purpose, fleet.document({3: "drop"}, **said).to_bytes())


def resigned(fleet: Fleet, document: bytes) -> bytes:
    return fleet.signer.sign(DESIRED_TABLE, document)


BAD: dict[str, tuple[str, Made]] = {
    "not signed": ("signature-invalid", lambda fleet: fleet.document({3: "drop"}).to_bytes()),
    "empty": ("signature-invalid", lambda _: b""),
    "signed by another key": ("signature-invalid", lambda fleet: signed(fleet, signer=Signer.generate())),
    "changed after it was signed": ("signature-invalid", lambda fleet: signed(fleet).replace(b"alice", b"mallo")),
    "signed as a dry run": ("signature-invalid", lambda fleet: signed(fleet, DRY_RUN)),
    "signature cut off": ("signature-invalid", lambda fleet: signed(fleet)[8:]),
    "no JSON": ("malformed", lambda fleet: resigned(fleet, b"{")),
    "too deep": ("malformed", lambda fleet: resigned(fleet, b'{"a":' + b"[" * 100_000)),
    "a member is missing": ("malformed", lambda fleet: resigned(fleet, b'{"node":"edge-1"}')),
    "specification of nothing": ("malformed", lambda fleet: signed(fleet, specification=b"x")),
    "specification cut off": (
        "malformed",
        lambda fleet: signed(fleet, specification=Specification.from_entries(0, 15, {}).to_bytes()[:-4]),
    ),
    "too large": ("too-large", lambda fleet: signed(fleet) + b" " * DesiredTable.max_bytes),
    "for another node": ("other-node", lambda fleet: signed(fleet, node="edge-2")),
    "for another table": ("other-table", lambda fleet: signed(fleet, table="other")),
    "of another rollout": ("other-rollout", lambda fleet: signed(fleet, rollout="jump_table-77")),
    "of a rollout of another table": ("other-rollout", lambda fleet: signed(fleet, rollout="other-1", undo=True)),
    "older than what was seen": ("older-than-seen", lambda fleet: signed(fleet, sequence=1)),
}


@pytest.mark.parametrize("what", BAD)
async def test_desired_table_that_is_wrong_is_refused_with_a_code_of_its_own(
    fleet: Fleet, node: Node, what: str
) -> None:
    code, make = BAD[what]
    await fleet.said(await fleet.want({4: "pass"}))
    status = await fleet.said(await fleet.desire(make(fleet)))
    assert (status.state, status.code, status.revision) == (TableState.REFUSED, code, 1)
    assert status.detail
    assert node.service.entries() == {4: "pass"}
    assert (await fleet.said(await fleet.want({3: "tx"}))).state is TableState.APPLIED, "the next one counts"


async def test_old_desired_table_that_is_played_again_is_refused_also_by_the_next_agent(
    fleet: Fleet, node: Node
) -> None:
    old = signed(fleet)
    await fleet.said(await fleet.desire(old))
    await fleet.said(await fleet.want({3: "pass"}))
    await node.stop_agent()
    seen = await fleet.desire(old)
    node.start_agent()
    assert (await fleet.said(seen)).code == "older-than-seen"
    assert node.service.entries() == {3: "pass"}


async def test_same_desired_table_written_again_is_applied(fleet: Fleet, node: Node) -> None:
    document = signed(fleet)
    await fleet.said(await fleet.desire(document))
    assert (await fleet.said(await fleet.desire(document))).state is TableState.APPLIED
    assert len(node.service.changes()) == 1


async def test_key_that_names_no_table_is_passed_over(fleet: Fleet, node: Node) -> None:
    for name in ("..", "a b", "ü", 65 * "a", ""):
        await fleet.etcd.put(f"/jumptable/v1/desired/edge-1/tables/{name}", signed(fleet))
    await fleet.etcd.put("/jumptable/v1/desired/edge-1/unknown", b"x")
    assert (await fleet.said(await fleet.want({3: "tx"}))).state is TableState.APPLIED
