"""A dry run is answered with what would change on the node, and changes nothing."""

from typing import Any

import pytest

from app.fleet_store import keys
from app.fleet_store.documents import DryRunAnswer
from app.fleet_store.signatures import DESIRED_TABLE, DRY_RUN
from tests.agent.conftest import NODE, Fleet, Node, until

pytestmark = pytest.mark.anyio


async def asked(fleet: Fleet, document: Any, purpose: bytes = DRY_RUN) -> DryRunAnswer:
    value = fleet.signer.sign(purpose, document.to_bytes())
    seen = await fleet.etcd.put(keys.desired_dry_run(NODE, "a"), value)

    async def answer() -> DryRunAnswer | None:
        item = await fleet.etcd.get(keys.dry_run_answer(NODE, "a"))
        found = None if item is None else DryRunAnswer.from_bytes(item.value)
        if found is None or found.seen != seen:
            return None
        assert item is not None
        assert item.lease != 0, "it goes by itself"
        return found

    return await until(answer)


async def test_dry_run_tells_what_would_change(fleet: Fleet, node: Node) -> None:
    node.service.set(3, "tx")
    node.service.set(4, "pass")
    answer = await asked(fleet, fleet.document({3: "drop", 4: "pass", 5: "count"}))
    assert answer.accepted
    assert (answer.changed, answer.diff) == (2, ((3, "tx", "drop"), (5, None, "count")))
    answer = await asked(fleet, fleet.document({}))
    assert (answer.changed, answer.diff) == (2, ((3, "tx", None), (4, "pass", None)))
    assert node.service.entries() == {3: "tx", 4: "pass"}
    assert await fleet.status() is None


async def test_dry_run_of_what_is_there_already_changes_nothing(fleet: Fleet, node: Node) -> None:
    answer = await asked(fleet, fleet.document({}))
    assert (answer.accepted, answer.changed, answer.diff) == (True, 0, ())


async def test_dry_run_that_would_be_refused_says_why(fleet: Fleet, node: Node) -> None:
    for document, code in (
        (fleet.document({3: "absent"}), "program-not-found"),
        (fleet.document({16: "drop"}, last=16), "index-out-of-range"),
        (fleet.document({3: "drop"}, node="edge-2"), "other-node"),
    ):
        answer = await asked(fleet, document)
        assert (answer.accepted, answer.code) == (False, code)
        assert answer.detail


async def test_dry_run_is_refused_too_where_the_node_opens_nothing(fleet: Fleet, bounded: Node) -> None:
    answer = await asked(fleet, fleet.document({3: "drop"}))
    assert (answer.accepted, answer.code) == (False, "not-open")
    answer = await asked(fleet, fleet.document({8: "drop"}, first=8, last=11))
    assert (answer.accepted, answer.changed) == (True, 1)


async def test_desired_table_is_no_dry_run(fleet: Fleet, node: Node) -> None:
    answer = await asked(fleet, fleet.document({3: "drop"}), DESIRED_TABLE)
    assert (answer.accepted, answer.code) == (False, "signature-invalid")


async def test_dry_run_is_told_when_the_service_is_away(fleet: Fleet, node: Node) -> None:
    node.service.stop()
    answer = await asked(fleet, fleet.document({3: "drop"}))
    assert (answer.accepted, answer.code) == (False, "service-unreachable")
