"""/changes: the list of changes, and how to revert them."""

import asyncio
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.service.changes.changes import Changes
from app.service.changes.entries import set_entry
from app.service.changes.origin import RequestContext
from app.service.changes.revert import revert_change
from app.service.changes.tables import RequestedEntries, change_table
from app.service.errors import ChangeNotRevertible
from app.service.objects.opening import make_array
from app.service.objects.source import ById
from app.service.registry.programs import ByName
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests.api.conftest import ENTRY, assert_problem
from tests.conftest import load

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"


@pytest.mark.usefixtures("both_ways")
class TestChangeId:
    async def test_every_applied_change_has_an_id_also_with_204(self, client: httpx.AsyncClient) -> None:
        ids = [
            (await client.put(ENTRY, json={"program": "drop"})).headers["change-id"],
            (await client.put(ENTRY, json={"program": "pass"})).headers["change-id"],
            (await client.delete(ENTRY)).headers["change-id"],
        ]
        assert ids == ["1", "2", "3"]

    async def test_requests_that_change_nothing_have_no_id(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        for response in (
            await client.put(ENTRY, json={"program": "drop"}),
            await client.put(f"{ENTRY}?dry_run=true", json={"program": "pass"}),
            await client.delete(f"{TABLE}/9?allow_missing=true"),
            await client.delete(f"{ENTRY}?dry_run=true"),
        ):
            assert response.is_success
            assert "change-id" not in response.headers


class TestGetChange:
    async def test_change_tells_actor_time_note_and_entries(
        self, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        headers = {"X-Request-ID": "deploy-7"}
        await client.put(f"{ENTRY}?note=because", json={"program": "pass"}, headers=headers)
        told = (await client.get("/changes/2")).json()
        assert abs(datetime.now(UTC) - datetime.fromisoformat(told.pop("at"))) < timedelta(seconds=10)
        drop, pass_ = (registry.programs.get(name).opened().summary() for name in ("drop", "pass"))
        assert told == {
            "id": 2,
            "actor": "tcp:127.0.0.1",
            "request_id": "deploy-7",
            "note": "because",
            "map": "jump_table",
            "kind": "set",
            "entries": [
                {
                    "index": 3,
                    "before": {"name": "drop", "id": drop.id, "tag": drop.tag, "pinned": None},
                    "after": {"name": "pass", "id": pass_.id, "tag": pass_.tag, "pinned": None},
                }
            ],
            "entry_count": 1,
            "confirm_by": None,
            "confirmed_by": None,
            "confirmed_at": None,
            "state": "applied",
            "reverts": None,
        }
        assert_problem(await client.get("/changes/3"), 404, "change-unknown")
        for bad in ("0x1", "-1", "01", "x", "99999999999"):
            assert_problem(await client.get(f"/changes/{bad}"), 422, "validation")

    async def test_list_is_paged_and_filtered(self, client: httpx.AsyncClient) -> None:
        for index in range(5):
            headers = {"X-Request-ID": f"r{index}"}
            await client.put(f"{TABLE}/{index}", json={"program": "drop"}, headers=headers)
        page = (await client.get("/changes?limit=2")).json()
        assert ([each["id"] for each in page["changes"]], page["next"]) == ([1, 2], 2)
        page = (await client.get("/changes?limit=2&after=2")).json()
        assert ([each["id"] for each in page["changes"]], page["next"]) == ([3, 4], 4)
        page = (await client.get("/changes?limit=2&after=4")).json()
        assert ([each["id"] for each in page["changes"]], page["next"]) == ([5], None)
        assert [each["id"] for each in (await client.get("/changes?request_id=r3")).json()["changes"]] == [4]
        for query in ("limit=0", "limit=1001", "after=x", "map=a/b", "since=3", "order=up", "state=new", "index=-1"):
            assert_problem(await client.get(f"/changes?{query}"), 422, "validation")

    @pytest.mark.field
    async def test_list_is_read_from_its_newest_end(self, client: httpx.AsyncClient) -> None:
        """Field 10: who changed this entry: the last changes come first, page by page."""
        for index in range(5):
            await client.put(f"{TABLE}/{index}", json={"program": "drop"})
        ids, query = [], "order=desc&limit=2"
        while query:
            page = (await client.get(f"/changes?{query}")).json()
            ids.append([each["id"] for each in page["changes"]])
            query = page["next"] and f"order=desc&limit=2&before={page['next']}"
        assert ids == [[5, 4], [3, 2], [1]]
        page = (await client.get("/changes?order=desc&after=2")).json()
        assert ([each["id"] for each in page["changes"]], page["next"]) == ([5, 4, 3], None)

    @pytest.mark.field
    async def test_list_is_searched_by_entry_state_actor_kind_and_time(self, client: httpx.AsyncClient) -> None:
        """Field 10: who changed this entry: each filter alone, several at once, and times as they are told."""
        await client.put(f"{TABLE}/3", json={"program": "drop"})
        await client.put(f"{TABLE}/4", json={"program": "drop"})
        await client.patch(TABLE, json={"entries": [{"index": 9, "program": "tx"}, {"index": 3, "program": "pass"}]})
        await client.put(f"{TABLE}/3?confirm_within=60", json={"program": "tx"})
        await client.post("/changes/2/revert")

        async def found(query: str) -> list[int]:
            response = await client.get(f"/changes?{query}")
            assert response.status_code == 200, response.text
            return [each["id"] for each in response.json()["changes"]]

        times = {each["id"]: each["at"] for each in (await client.get("/changes")).json()["changes"]}
        assert await found("index=3") == [1, 3, 4]
        assert await found("index=3&order=desc&limit=1") == [4]
        assert await found("index=4&kind=revert") == [5]
        assert await found("map=jump_table&index=4294967295") == []
        assert (await found("state=unconfirmed"), await found("state=reverted")) == ([4], [2])
        assert await found("state=applied") == [1, 3, 5]
        assert (await found("kind=update"), await found("actor=nobody")) == ([3], [])
        actor = (await client.get("/changes/1")).json()["actor"]
        assert await found(f"actor={actor}&order=desc") == [5, 4, 3, 2, 1]
        assert await found(f"since={times[3]}") == [3, 4, 5]
        assert await found(f"until={times[3]}") == [1, 2]
        assert await found(f"since={times[2]}&until={times[4].replace('Z', '%2B00:00')}") == [2, 3]
        for bad in ("2026-11-22", "2026-11-22T15:04:05", "2026-02-30T15:04:05Z", "1800000000"):
            assert_problem(await client.get(f"/changes?since={bad}"), 422, "validation")

    @pytest.mark.field
    async def test_map_that_is_not_held_is_no_empty_list(self, client: httpx.AsyncClient) -> None:
        """Field 10: who changed this entry: a slip in the map's name is told."""
        for path in ("/changes?map=typo", "/events?map=typo"):
            assert_problem(await client.get(path), 404, "map-unknown")

    @pytest.mark.field
    async def test_change_tells_who_confirmed_it(self, client: httpx.AsyncClient) -> None:
        """Field 10: who let this change stand, and when."""
        await client.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"})
        waiting = (await client.get("/changes/1")).json()
        assert (waiting["confirmed_by"], waiting["confirmed_at"]) == (None, None)
        confirmed = (await client.post("/changes/1/confirm")).json()
        assert confirmed["confirmed_by"] == confirmed["actor"]
        assert confirmed["at"] <= confirmed["confirmed_at"] <= confirmed["confirm_by"]
        assert (await client.get("/changes/1")).json() == confirmed


class TestLargeChanges:
    async def test_page_ends_early_when_it_has_many_entries(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("large", make_array(kernel, "large", 3000))
        for program in ("drop", "pass", "tx"):
            await client.put("/maps/large/entries", json={"programs": [program] * 3000})
        seen: list[list[int]] = []
        after: int | None = 0
        while after is not None:
            page = (await client.get(f"/changes?after={after}")).json()
            seen.append([each["id"] for each in page["changes"]])
            after = page["next"]
        assert [id_ for page in seen for id_ in page] == [1, 2, 3]
        assert len(seen[0]) == 2

    async def test_only_so_many_entries_of_each_change_are_told(
        self, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("large", make_array(registry.kernel, "large", 5000))
        await client.put("/maps/jump_table/entries/3", json={"program": "drop"})
        for program in ("drop", "pass"):
            await client.put("/maps/large/entries", json={"programs": [program] * 5000})
        answer = (await client.get("/changes", params={"order": "desc", "entries": 2})).json()
        told = [
            (each["id"], each["entry_count"], [one["index"] for one in each["entries"]]) for each in answer["changes"]
        ]
        assert told == [(3, 5000, [0, 1]), (2, 5000, [0, 1]), (1, 1, [3])]
        assert answer["next"] is None
        query: dict[str, str | int] = {"map": "large", "index": 777, "entries": 1}
        [first, second] = (await client.get("/changes", params=query)).json()["changes"]
        assert [each["index"] for each in first["entries"]] == [777]
        assert second["entries"][0]["before"]["name"] == "drop"
        counts = (await client.get("/changes", params={"entries": 0})).json()["changes"]
        assert [(each["entry_count"], each["entries"]) for each in counts] == [(1, []), (5000, []), (5000, [])]


class TestPinnedProgram:
    async def test_change_records_the_pin_path_of_a_program(
        self, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        with load(kernel, 1, name="loose") as loose:
            kernel.obj_pin(loose.fd, f"{pins}/loose")
        await client.put(ENTRY, json={"program": {"pinned": f"{pins}/loose"}})
        await client.put(ENTRY, json={"program": "drop"})
        await client.post("/changes/2/revert")
        changes = (await client.get("/changes")).json()["changes"]
        sides = [
            changes[0]["entries"][0]["after"],
            changes[1]["entries"][0]["before"],
            changes[2]["entries"][0]["after"],
        ]
        assert [side["pinned"] for side in sides] == [f"{pins}/loose"] * 3


class TestRevert:
    async def test_revert_of_a_set_a_clear_and_a_table_restores_the_table(self, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass"]})
        before = (await client.get(TABLE)).json()
        for method, url, body in (
            ("PUT", f"{TABLE}/0", {"program": "tx"}),
            ("DELETE", f"{TABLE}/1", None),
            ("PUT", TABLE, {"programs": [None, "tx", "tx"]}),
        ):
            change = await client.request(method, url, json=body)
            reverted = await client.post(f"/changes/{change.headers['change-id']}/revert?note=back")
            assert reverted.status_code == 200
            record = reverted.json()["change"]
            assert (record["kind"], str(record["reverts"]), record["note"]) == (
                "revert",
                change.headers["change-id"],
                "back",
            )
            assert reverted.headers["change-id"] == str(record["id"])
            assert (await client.get(f"/changes/{record['reverts']}")).json()["state"] == "reverted"
            assert (await client.get(TABLE)).json() == before

    async def test_revert_can_be_reverted(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.post("/changes/1/revert")
        assert (await client.get(ENTRY)).status_code == 404
        await client.post("/changes/2/revert")
        assert (await client.get(ENTRY)).json()["program"]["name"] == "drop"

    async def test_revert_conflicts_with_a_later_change(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(ENTRY, json={"program": "pass"})
        refused = await client.post("/changes/1/revert")
        assert_problem(refused, 409, "change-conflict")
        assert refused.json()["entries"][0]["index"] == 3
        assert refused.json()["entries"][0]["holds"]["name"] == "pass"
        assert (await client.get(ENTRY)).json()["program"]["name"] == "pass"

    async def test_change_can_be_reverted_only_once(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.post("/changes/1/revert")
        assert_problem(await client.post("/changes/1/revert"), 409, "change-not-revertible")
        assert_problem(await client.post("/changes/9/revert"), 404, "change-unknown")

    @pytest.mark.field
    async def test_superseded_change_is_reverted_only_by_force(self, client: httpx.AsyncClient) -> None:
        """Field 3: a revert undoes what later changes have written, as it is the same again."""
        for program in ("drop", "pass", "drop"):
            await client.put(ENTRY, json={"program": program})
        await client.put("/maps/jump_table/entries/4", json={"program": "drop"})
        for query in ("?dry_run=true", ""):
            refused = await client.post(f"/changes/1/revert{query}")
            assert_problem(refused, 409, "change-conflict")
            assert (refused.json()["change"], refused.json()["entries"]) == (3, [])
        assert_problem(await client.post("/changes/2/revert?force=true"), 409, "change-conflict")
        assert (await client.post("/changes/1/revert?force=true")).json()["cleared"] == 1
        assert (await client.get(ENTRY)).status_code == 404

    @pytest.mark.field
    async def test_changes_that_were_undone_do_not_supersede(self, client: httpx.AsyncClient) -> None:
        """Field 3: a revert undoes what later changes have written; but of these nothing is left."""
        for program in ("drop", "pass", "tx"):
            await client.put(ENTRY, json={"program": program})
        for id_ in (3, 2):
            assert (await client.post(f"/changes/{id_}/revert")).status_code == 200
        await client.post("/changes/5/revert")  # so change 2 stands again
        assert_problem(await client.post("/changes/1/revert"), 409, "change-conflict")
        await client.post("/changes/6/revert")
        assert (await client.post("/changes/1/revert")).json()["cleared"] == 1

    async def test_dry_run_reverts_nothing(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        dry = await client.post("/changes/1/revert?dry_run=true")
        assert (dry.status_code, dry.headers["dry-run"], dry.json()["cleared"]) == (200, "true", 1)
        assert (await client.get(ENTRY)).status_code == 200
        assert (await client.get("/changes/1")).json()["state"] == "applied"

    async def test_revert_restores_a_program_that_only_the_service_keeps_alive(
        self, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        """Nothing else refers to the overwritten program. The service keeps it alive for a revert."""
        with load(kernel, 3, name="foreign") as foreign:
            id_ = foreign.id
            await client.put(ENTRY, json={"program": {"id": id_}})
        await client.put(ENTRY, json={"program": "drop"})
        assert (await client.post("/changes/2/revert")).status_code == 200
        assert (await client.get(ENTRY)).json()["program"]["id"] == id_
        run = await client.post("/programs/entry/run", json={"packet": "03" + "00" * 13})
        assert run.json()["meaning"] == "XDP_TX"

    async def test_dry_run_makes_the_same_checks(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        assert (await client.post("/changes/1/revert?dry_run=true")).json()["fit"] == "tried"
        registry.kernel.map_freeze(registry.maps.get("jump_table").opened().fd)
        for query in ("?dry_run=true", ""):
            assert_problem(await client.post(f"/changes/1/revert{query}"), 409, "map-frozen")

    async def test_revert_is_refused_on_another_array_of_the_same_name(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.delete("/maps/jump_table?force=true")
        registry.maps.adopt("jump_table", make_array(kernel, "other", 16))
        await client.put(ENTRY, json={"program": "drop"})
        refused = await client.post("/changes/1/revert")
        assert_problem(refused, 409, "change-not-revertible")
        assert "another array" in refused.json()["detail"]

    async def test_revert_is_refused_after_a_reboot(self, tmp_path: Path) -> None:
        """After a reboot the same ids belong to other arrays and programs."""
        for boot in range(2):
            registry = Registry(MemoryKernel())
            demo.fill(registry)
            changes = Changes(registry, Journal(tmp_path / "journal.db", "process"))
            held, origin = registry.maps.get("jump_table"), RequestContext("unix", "one")
            await set_entry(changes, held, 3, ByName("drop"), origin, precondition=lambda _: None)
            if boot:
                with pytest.raises(ChangeNotRevertible, match="another array"):
                    await revert_change(changes, 1, origin)
            changes.close()
            registry.close()

    async def test_concurrent_reverts_undo_a_change_only_once(self, registry: Registry, tmp_path: Path) -> None:
        """Between two reverts another request sets the entry to the same program. That set stays."""
        changes = Changes(registry, Journal(tmp_path / "journal.db", "power"))
        held, origin = registry.maps.get("jump_table"), RequestContext("unix", "one")
        for name in ("drop", "pass"):
            await set_entry(changes, held, 0, ByName(name), origin, precondition=lambda _: None)
        results = await asyncio.gather(
            revert_change(changes, 2, origin),
            set_entry(changes, held, 0, ByName("pass"), origin, precondition=lambda _: None),
            revert_change(changes, 2, origin),
            return_exceptions=True,
        )
        assert isinstance(results[2], ChangeNotRevertible)
        assert held.opened().get(0) == registry.programs.get("pass").opened().id
        changes.close()

    async def test_large_revert_needs_few_file_descriptors(
        self, kernel: Kernel, registry: Registry, tmp_path: Path
    ) -> None:
        registry.maps.adopt("large", make_array(kernel, "large", 2048))
        changes = Changes(registry, Journal(tmp_path / "journal.db", "process"))
        held, origin = registry.maps.get("large"), RequestContext("unix", "one")
        for name in ("drop", "pass"):
            wanted = RequestedEntries.of(range(2048), [name] * 2048, ByName)
            await change_table(changes, held, wanted, origin, replace=True, precondition=lambda *_: None)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        try:
            await revert_change(changes, 2, origin)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert held.opened().get(2047) == registry.programs.get("drop").opened().id
        changes.close()

    async def test_revert_after_a_restart_fails_only_if_the_program_is_gone(
        self, registry: Registry, kernel: Kernel, tmp_path: Path
    ) -> None:
        """A program that is held is found again. A program that nothing keeps is reported as gone."""
        journal = Journal(tmp_path / "journal.db", "process")
        changes = Changes(registry, journal)
        origin = RequestContext("unix", "one")
        held = registry.maps.get("jump_table")
        with load(kernel, name="foreign") as foreign:
            for index, ref in ((0, ByName("pass")), (0, ByName("drop")), (1, ById(foreign.id)), (1, ByName("drop"))):
                await set_entry(changes, held, index, ref, origin, precondition=lambda _: None)
        changes.close()
        again = Changes(registry, Journal(tmp_path / "journal.db", "process"))
        assert (await revert_change(again, 2, origin)).change is not None
        assert held.opened().get(0) == registry.programs.get("pass").opened().id
        with pytest.raises(ChangeNotRevertible, match="is gone"):
            await revert_change(again, 4, origin)
        again.close()
