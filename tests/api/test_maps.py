"""/maps and /programs: reading, holding and releasing."""

import asyncio
import errno
from pathlib import Path

import httpx
import pytest

from app.bpf.kernel import Kernel, MapState
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem
from tests.conftest import load

pytestmark = pytest.mark.anyio


class TestGetMap:
    async def test_map_has_every_field(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        told = (await client.get("/maps/jump_table")).json()
        assert told == {
            "name": "jump_table",
            "id": registry.maps.get("jump_table").opened().id,
            "kernel_name": "jump_table",
            "type": "prog_array",
            "max_entries": 16,
            "used": 1,
            "flags": 0,
            "memlock": 440,
            "frozen": False,
            "owner": {"program_type": "xdp", "attach_type": "unset", "jited": True},
            "callers": [],
            "pins": [],
            "created_here": True,
            "protected": [],
            "state": "held",
            "reason": None,
            "drift": [],
            "waiting": [],
            "warnings": ["made by the service and pinned nowhere: gone when the service ends"],
        }
        assert (await client.get("/maps")).json() == {"maps": [told]}

    async def test_map_without_entries_has_no_owner(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("fresh", make_array(kernel, "fresh", 4))
        assert (await client.get("/maps/fresh")).json()["owner"] is None

    async def test_what_cannot_be_read_of_a_map_is_null_with_a_warning(
        self, kernel: Kernel, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As before Linux 5.14, when the keeper has ended."""

        def refuse(*_: object) -> MapState:
            raise PermissionError(errno.EACCES, "fdinfo")

        monkeypatch.setattr(type(kernel), "map_state", refuse)
        assert (await client.put(ENTRY, json={"program": "drop"})).status_code == 201
        told = (await client.get("/maps/jump_table")).json()
        assert (told["memlock"], told["frozen"], told["owner"], told["used"]) == (None, None, None, 1)
        assert any("memlock, frozen and owner are not known" in each for each in told["warnings"])

    async def test_unknown_map_is_refused(self, client: httpx.AsyncClient) -> None:
        for method in ("GET", "DELETE"):
            assert_problem(await client.request(method, "/maps/nope"), 404, "map-unknown")
        assert_problem(await client.get("/maps/nope/entries"), 404, "map-unknown")
        assert_problem(await client.get("/maps/nope/entries/0"), 404, "map-unknown")
        assert_problem(await client.delete("/maps/nope/entries/0"), 404, "map-unknown")


class TestHoldMap:
    async def test_map_is_created_released_and_held_again(
        self, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        body = {"pinned": f"{pins}/table", "create": {"max_entries": 8}}
        dry = await client.put("/maps/table?dry_run=true", json=body)
        assert (dry.status_code, dry.headers["dry-run"], dry.json()["max_entries"]) == (201, "true", 8)
        assert_problem(await client.get("/maps/table"), 404, "map-unknown")
        made = await client.put("/maps/table", json=body)
        assert (made.status_code, made.headers["location"]) == (201, "/maps/table")
        assert (made.json()["pins"], made.json()["created_here"]) == ([f"{pins}/table"], True)
        assert (await client.put("/maps/table", json={"pinned": f"{pins}/table"})).status_code == 200
        await client.put("/maps/table/entries/0", json={"program": "drop"})
        assert (await client.delete("/maps/table?dry_run=true")).status_code == 204
        assert (await client.delete("/maps/table")).status_code == 204
        assert_problem(await client.get("/maps/table/entries"), 404, "map-unknown")
        again = await client.put("/maps/table", json={"pinned": f"{pins}/table"})
        assert (again.status_code, again.json()["used"], again.json()["created_here"]) == (201, 1, False)

    async def test_map_held_by_id_has_a_warning(self, kernel: Kernel, client: httpx.AsyncClient) -> None:
        with make_array(kernel, "mortal", 8) as array:
            held = await client.put("/maps/mortal", json={"id": array.id})
            assert held.status_code == 201
            assert "held by id" in held.json()["warnings"][0]
            assert_problem(await client.delete("/maps/mortal"), 409, "last-reference")
            assert (await client.delete("/maps/mortal?force=true")).status_code == 204

    async def test_hold_or_release_that_would_lose_entries_is_refused(
        self, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        with make_array(kernel, "table", 8) as array:
            kernel.obj_pin(array.fd, f"{pins}/table")
        refused = await client.put("/maps/jump_table", json={"pinned": f"{pins}/table"})
        assert_problem(refused, 409, "name-taken")
        assert_problem(await client.delete("/maps/jump_table"), 409, "last-reference")
        assert (await client.get(ENTRY)).status_code == 200


class TestMovedPin:
    """A loader that runs again creates a new array and pins it at the path of the old one."""

    async def test_moved_pin_is_a_warning_and_force_opens_the_new_array(
        self, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        body = {"pinned": f"{pins}/table", "create": {"max_entries": 8}}
        first = (await client.put("/maps/table", json=body)).json()
        assert first["warnings"] == []
        await client.put("/maps/table/entries/0", json={"program": "drop"})
        kernel.unpin(f"{pins}/table")
        assert "is gone" in (await client.get("/maps/table")).json()["warnings"][0]
        assert (await client.get("/readyz")).status_code == 200
        with make_array(kernel, "second", 4) as second:
            kernel.obj_pin(second.fd, f"{pins}/table")
            assert f"leads to another array now (id {second.id})" in (await client.get("/maps/table")).text
            ready = await client.get("/readyz")
            assert_problem(ready, 503, "map-unavailable")
            assert f"id {second.id}" in ready.json()["reasons"][0]
            assert_problem(await client.put("/maps/table", json=body), 409, "last-reference")
            dry = await client.put("/maps/table?force=true&dry_run=true", json=body)
            assert (dry.status_code, dry.json()["id"]) == (200, second.id)
            assert (await client.get("/maps/table")).json()["id"] == first["id"]
            forced = await client.put("/maps/table?force=true", json=body)
            assert (forced.status_code, forced.json()["id"], forced.json()["used"]) == (200, second.id, 0)
            assert (await client.get("/readyz")).status_code == 200

    async def test_same_array_by_another_source_stays_held(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        same = await client.put("/maps/jump_table", json={"id": registry.maps.get("jump_table").opened().id})
        assert (same.status_code, same.json()["used"]) == (200, 1)


class TestConcurrentRelease:
    async def test_read_during_a_release_answers_the_state_before_or_after(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        """A large table is read in steps, and a release may come between two of them."""
        for _ in range(5):
            registry.maps.adopt("large", make_array(kernel, "large", 10_000))
            answers = await asyncio.gather(
                *(client.get(url) for url in ("/maps", "/maps/large", "/maps/large/entries", "/programs")),
                client.delete("/maps/large?force=true"),
                *(client.get(url) for url in ("/maps", "/maps/large", "/maps/large/entries", "/programs/drop")),
            )
            assert {answer.status_code for answer in answers} <= {200, 204, 404}
            assert answers[0].status_code == answers[3].status_code == 200


@pytest.mark.usefixtures("both_ways")
class TestUnavailable:
    async def test_unavailable_objects_are_reported_and_readyz_fails(
        self, registry: Registry, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        registry.maps.add(HeldMap("late", Pinned(f"{pins}/late")))
        registry.programs.add(HeldProgram("late", Pinned(f"{pins}/program")))
        registry.open_unavailable()
        told = (await client.get("/maps/late")).json()
        assert (told["state"], told["id"], told["pins"]) == ("unavailable", None, [f"{pins}/late"])
        assert "ENOENT" in told["reason"]
        assert (await client.get("/programs/late")).json()["state"] == "unavailable"
        assert_problem(await client.get("/maps/late/entries"), 503, "map-unavailable")
        assert_problem(await client.put("/maps/late/entries/0", json={"program": "drop"}), 503, "map-unavailable")
        assert_problem(await client.put(ENTRY, json={"program": "late"}), 503, "program-unavailable")
        assert_problem(await client.post("/programs/late/run", json={"packet": "00" * 14}), 503, "program-unavailable")
        ready = await client.get("/readyz")
        assert_problem(ready, 503, "map-unavailable")
        assert [reason.split(":")[0] for reason in ready.json()["reasons"]] == ["map 'late'", "program 'late'"]
        assert (await client.get("/maps/jump_table")).status_code == 200
        with make_array(kernel, "late", 8) as array, load(kernel) as program:
            kernel.obj_pin(array.fd, f"{pins}/late")
            kernel.obj_pin(program.fd, f"{pins}/program")
        assert (await client.put("/maps/late", json={"pinned": f"{pins}/late"})).status_code == 200
        assert (await client.put("/programs/late", json={"pinned": f"{pins}/program"})).status_code == 200
        assert (await client.get("/readyz")).json() == {"status": "ready", "reasons": []}


class TestPrograms:
    async def test_program_has_every_field(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "entry"})
        told = (await client.get("/programs/entry")).json()
        assert (told["name"], told["type"], told["kernel_name"], told["state"]) == ("entry", "xdp", "entry", "held")
        assert told["map_ids"] == [registry.maps.get("jump_table").opened().id]
        assert told["used_by"] == [{"map": "jump_table", "index": 3}]
        assert told["use_count"] == 1
        assert (told["gpl"], told["reason"]) == (True, None)
        listed = (await client.get("/programs")).json()["programs"]
        assert [each["name"] for each in listed] == ["count", "drop", "entry", "pass", "tx"]
        assert listed[2] == told

    async def test_program_is_held_and_released(self, kernel: Kernel, pins: Path, client: httpx.AsyncClient) -> None:
        with load(kernel) as program:
            kernel.obj_pin(program.fd, f"{pins}/other")
        dry = await client.put("/programs/other?dry_run=true", json={"pinned": f"{pins}/other"})
        assert (dry.status_code, dry.headers["dry-run"]) == (201, "true")
        assert_problem(await client.get("/programs/other"), 404, "program-unknown")
        held = await client.put("/programs/other", json={"pinned": f"{pins}/other"})
        assert (held.status_code, held.headers["location"]) == (201, "/programs/other")
        await client.put(ENTRY, json={"program": "other"})
        assert (await client.delete("/programs/other?dry_run=true")).status_code == 204
        assert (await client.delete("/programs/other")).status_code == 204
        assert_problem(await client.delete("/programs/other"), 404, "program-unknown")
        assert (await client.get(ENTRY)).json()["program"]["name"] is None

    async def test_unknown_program_is_refused(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.post("/programs/nope/run", json={"packet": "00" * 14}), 404, "program-unknown")

    async def test_run_returns_the_result_and_the_packet(self, client: httpx.AsyncClient) -> None:
        run = (await client.post("/programs/drop/run", json={"packet": "ab" * 14, "repeat": 10})).json()
        assert (run["returned"], run["meaning"], run["packet"]) == (1, "XDP_DROP", "ab" * 14)
        assert run["duration_ns"] >= 0
