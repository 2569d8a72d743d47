"""Tables of many entries behave like small ones, although other code writes and encodes them."""

import asyncio
import errno
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.service.objects.opening import make_array
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from tests.api.conftest import assert_problem, client_on_registry
from tests.conftest import load

pytestmark = pytest.mark.anyio

SIZE = 10_000
LARGE = "/maps/large/entries"
NAMES = ("drop", "pass", "tx")


def programs(turn: int) -> list[str | None]:
    """A table of program names. Each turn differs in every entry, except for some that are always empty."""
    return [None if index % 100 == 0 else NAMES[(index + turn) % 3] for index in range(SIZE)]


@pytest.fixture
async def large(registry: Registry, kernel: Kernel, client: httpx.AsyncClient) -> httpx.AsyncClient:
    registry.maps.adopt("large", make_array(kernel, "large", SIZE))
    return client


async def table(client: httpx.AsyncClient) -> list[str | None]:
    """The held name of each entry, as GET answers it."""
    told: list[str | None] = [None] * SIZE
    for each in (await client.get(LARGE)).json()["entries"]:
        told[each["index"]] = each["program"]["name"]
    return told


class TestReplace:
    @pytest.mark.slow
    async def test_replace_is_written_journalled_and_reverted(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        answer = await large.put(LARGE, json={"programs": programs(1)})
        assert (answer.status_code, answer.headers["change-id"]) == (200, "2")
        assert await table(large) == programs(1)
        change = answer.json()["change"]
        assert [(each["index"], each["before"]["name"], each["after"]["name"]) for each in change["entries"]] == [
            (index, programs(0)[index], name) for index, name in enumerate(programs(1)) if name is not None
        ]
        assert (await large.get("/changes/2")).json() == change
        assert (await large.get("/changes?after=1&limit=1")).json()["changes"] == [change]
        reverted = (await large.post("/changes/2/revert")).json()
        assert [each["index"] for each in reverted["change"]["entries"]] == [
            each["index"] for each in reversed(change["entries"])
        ]
        assert await table(large) == programs(0)

    async def test_entries_are_cleared_by_falling_index(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": ["drop"] * SIZE})
        answer = (await large.put(LARGE, json={"programs": ["drop"] * 100 + ["pass"] * 100})).json()
        assert (answer["set"], answer["cleared"], answer["unchanged"]) == (100, SIZE - 200, 100)
        indexes = [each["index"] for each in answer["change"]["entries"]]
        assert indexes == [*range(100, 200), *range(SIZE - 1, 199, -1)]
        assert await table(large) == ["drop"] * 100 + ["pass"] * 100 + [None] * (SIZE - 200)

    async def test_answer_of_get_can_be_put(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        told = (await large.get(LARGE)).json()
        assert (await large.put(LARGE, json=told)).json()["unchanged"] == len(told["entries"])
        await large.put(LARGE, json={"programs": []})
        told["entries"].reverse()
        assert (await large.put(LARGE, json=told)).json()["change"]["entries"][0]["index"] == SIZE - 1
        assert await table(large) == programs(0)

    async def test_confirmed_table_stays_and_an_expired_one_is_undone(
        self, app: FastAPI, large: httpx.AsyncClient
    ) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        for number, is_confirmed in ((2, True), (3, False)):
            await large.put(f"{LARGE}?confirm_within=60", json={"programs": programs(number)})
            assert_problem(await large.put(f"{LARGE}/7", json={"program": "count"}), 409, "change-conflict")
            if is_confirmed:
                assert (await large.post(f"/changes/{number}/confirm")).json()["state"] == "confirmed"
        confirmations = app.state.service.changes.confirmations
        assert await confirmations.undo(confirmations._pending[3])
        assert await table(large) == programs(2)
        assert (await large.put(f"{LARGE}/7", json={"program": "count"})).status_code == 200


class TestList:
    async def test_pages_make_up_the_whole_table(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        whole, found = (await large.get(LARGE)).json(), list[Any]()
        start: int | None = 0
        while start is not None:
            page = (await large.get(f"{LARGE}?start={start}&limit=4500")).json()
            assert page["etag"] == whole["etag"]
            found += page["entries"]
            start = page["next"]
        assert found == whole["entries"]
        assert found[4200] == (await large.get(f"{LARGE}/{found[4200]['index']}")).json()

    async def test_head_has_no_body(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        head = await large.head(LARGE)
        assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "application/json")

    async def test_large_requests_yield_to_other_tasks(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        for request in (large.get(LARGE), large.put(LARGE, json={"programs": programs(1)}), large.get("/changes/1")):
            task, turns = asyncio.ensure_future(request), 0
            while not task.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns > 2


class TestRefused:
    async def test_kernel_error_midway_puts_everything_back(self) -> None:
        class Refusing(MemoryKernel):
            refused = -1

            def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
                if index == self.refused:
                    raise OSError(errno.ENOMEM, "refused")
                super().map_update(fd, index, value, flags)

        registry = Registry(kernel := Refusing())
        demo.fill(registry)
        registry.maps.adopt("large", make_array(kernel, "large", SIZE))
        async with client_on_registry(registry) as client:
            await client.put(LARGE, json={"programs": programs(0)})
            kernel.refused = 7001
            refused = await client.put(LARGE, json={"programs": programs(1)})
            assert_problem(refused, 500, "kernel-error")
            facts = refused.json()
            assert (facts["index"], facts["put_back"], facts["left"], facts["errno"]) == (7001, True, [], "ENOMEM")
            assert await table(client) == programs(0)
        registry.close()

    async def test_incompatible_program_changes_nothing(self, large: httpx.AsyncClient, kernel: Kernel) -> None:
        await large.put(LARGE, json={"programs": ["drop"] * 100})
        with load(kernel, 1, 1) as other:
            await large.put("/programs/other", json={"id": other.id})
            refused = await large.put(LARGE, json={"programs": ["pass"] * 5000 + ["other"]})
            assert_problem(refused, 422, "program-incompatible")
        assert await table(large) == ["drop"] * 100 + [None] * (SIZE - 100)

    async def test_program_id_0_is_not_found(self, large: httpx.AsyncClient) -> None:
        """Inside the service the id 0 marks an empty entry."""
        for url in (LARGE, "/maps/jump_table/entries"):
            refused = await large.patch(url, json={"entries": [{"index": 3, "program": {"id": 0}}]})
            assert_problem(refused, 422, "program-not-found")

    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            ({"index": True, "program": "drop"}, "body.entries.1.index"),
            ({"index": -1, "program": "drop"}, "body.entries.1.index"),
            ({"index": 1 << 32, "program": "drop"}, "body.entries.1.index"),
            ({"index": 1}, "body.entries.1.program"),
            ({"index": 1, "program": "no name"}, "body.entries.1.program"),
            ({"index": 1, "program": {}}, "body.entries.1.program"),
            ({"index": 1, "program": {"id": True}}, "body.entries.1.program"),
            ({"index": 1, "program": {"id": 1, "pinned": "/sys/fs/bpf/x"}}, "body.entries.1.program"),
            ({"index": 1, "program": {"name": "drop", "what": 1}}, "body.entries.1.program"),
            ({"index": 1, "program": ["drop"]}, "body.entries.1.program"),
            ({"index": 1, "program": "drop", "what": 1}, "body.entries.1.what"),
            ("index", "body.entries.1"),
        ],
    )
    async def test_invalid_entry_is_told_with_its_location(
        self, large: httpx.AsyncClient, entry: Any, told: str
    ) -> None:
        for first in ("drop", {"id": 1}, None):
            entries = [{"index": 0, "program": first}, entry]
            refused = await large.put(LARGE, json={"entries": entries})
            assert_problem(refused, 422, "validation")
            assert refused.json()["errors"][0]["loc"].startswith(told)


class TestUses:
    async def test_program_tells_all_its_uses_or_the_first_of_them(self, large: httpx.AsyncClient) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        uses = [{"map": "large", "index": index} for index, name in enumerate(programs(0)) if name == "drop"]
        whole = (await large.get("/programs/drop")).json()
        assert whole["used_by"] == uses
        assert whole in (await large.get("/programs")).json()["programs"]
        for most in (0, 5, 4096, 4097, 1_000_000):
            told = (await large.get(f"/programs/drop?uses={most}")).json()
            assert told == {**whole, "used_by": uses[:most], "use_count": len(uses)}
            assert told in (await large.get(f"/programs?uses={most}")).json()["programs"]
        assert_problem(await large.get("/programs?uses=-1"), 422, "validation")

    async def test_uses_of_some_programs_are_those_among_all_uses(
        self, registry: Registry, large: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await large.put(LARGE, json={"programs": programs(0)})
        all_uses, maps = await registry.maps.uses(), registry.maps
        ids = {name: registry.programs.get(name).opened().id for name in (*NAMES, "entry")}
        assert {len(all_uses[ids[name]]) for name in NAMES} == {3300}
        for chosen in ({"drop"}, {"pass", "tx"}, {"entry"}):
            wanted = [ids[name] for name in chosen]
            assert await maps.uses(wanted) == {id_: all_uses[id_] for id_ in wanted if id_ in all_uses}
        monkeypatch.setattr(HeldMap, "read", None)
        assert await maps.uses([]) == {}, "and nothing is read"
