"""/maps/{name}/entries: reading, setting and clearing entries."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import BPF_F_XDP_HAS_FRAGS, ProgType
from app.cli import demo
from app.service.objects.opening import make_array
from app.service.objects.source import Made
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem, client_on_registry
from tests.conftest import load

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]


class TestSetEntry:
    async def test_set_answers_201_for_an_empty_entry_and_200_for_a_filled_one(self, client: httpx.AsyncClient) -> None:
        first = await client.put(ENTRY, json={"program": "drop"})
        second = await client.put(ENTRY, json={"program": "pass"})
        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json()["program"]["name"] == "pass"
        assert second.headers["etag"] == second.json()["etag"] != first.json()["etag"]

    async def test_put_and_get_give_the_same_answer(self, client: httpx.AsyncClient) -> None:
        put = await client.put(ENTRY, json={"program": "drop"})
        get = await client.get(ENTRY)
        assert put.text == get.text
        assert put.text.endswith("}\n")
        entry = get.json()
        assert set(entry) == {"map", "index", "etag", "program", "waiting"}
        assert (entry["map"], entry["index"]) == ("jump_table", 3)
        assert set(entry["program"]) == {"name", "id", "type", "tag", "kernel_name", "loaded_at"}
        assert entry["program"]["loaded_at"].endswith("Z")

    async def test_tail_call_reaches_the_program(self, client: httpx.AsyncClient) -> None:
        """A test run of the program `entry` ends in the program that the entry points to."""
        packet = {"packet": "03" + "00" * 13}
        for program, meaning in (("drop", "XDP_DROP"), ("tx", "XDP_TX"), ("count", "XDP_PASS")):
            await client.put(ENTRY, json={"program": program})
            assert (await client.post("/programs/entry/run", json=packet)).json()["meaning"] == meaning
        await client.delete(ENTRY)
        assert (await client.post("/programs/entry/run", json=packet)).json()["meaning"] == "XDP_ABORTED"

    async def test_setting_the_same_program_writes_nothing(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        registry.kernel.map_freeze(registry.maps.get("jump_table").opened().fd)
        again = await client.put(ENTRY, json={"program": "drop"})
        assert again.status_code == 200
        assert_problem(await client.put(ENTRY, json={"program": "pass"}), 409, "map-frozen")

    async def test_program_is_named_by_name_id_or_pin(
        self, registry: Registry, kernel: Kernel, pins: Path, client: httpx.AsyncClient
    ) -> None:
        with load(kernel) as program:
            kernel.obj_pin(program.fd, f"{pins}/other")
            drop = registry.programs.get("drop").opened()
            for reference, id_ in (
                ("drop", drop.id),
                ({"id": program.id}, program.id),
                ({"name": "drop"}, drop.id),
                ({"pinned": f"{pins}/other"}, program.id),
                ({"name": "drop", "id": program.id}, drop.id),  # the name takes precedence
                ({"name": None, "id": program.id}, program.id),
            ):
                response = await client.put(ENTRY, json={"program": reference})
                assert response.json()["program"]["id"] == id_, response.text

    async def test_answer_of_get_can_be_put(self, kernel: Kernel, client: httpx.AsyncClient) -> None:
        with load(kernel) as program:
            for reference in ("drop", {"id": program.id}):
                await client.put(ENTRY, json={"program": reference})
                got = (await client.get(ENTRY)).json()
                copy = await client.put("/maps/jump_table/entries/4", json=got)
                assert copy.json()["program"] == got["program"]

    async def test_program_that_is_not_held_has_no_name(self, kernel: Kernel, client: httpx.AsyncClient) -> None:
        with load(kernel, name="foreign") as program:
            await client.put(ENTRY, json={"program": {"id": program.id}})
        got = (await client.get(ENTRY)).json()["program"]
        assert (got["name"], got["kernel_name"], got["type"]) == (None, "foreign", "xdp")

    async def test_incompatible_program_is_refused_with_the_reason(
        self, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        with load(kernel, type_=ProgType.SOCKET_FILTER) as other, load(kernel, flags=BPF_F_XDP_HAS_FRAGS) as frags:
            for dry_run in ("false", "true"):
                url = f"{ENTRY}?dry_run={dry_run}"
                problem = await client.put(url, json={"program": {"id": other.id}})
                assert_problem(problem, 422, "program-incompatible")
                facts = problem.json()
                assert (facts["owner_program_type"], facts["program_type"]) == ("xdp", "socket_filter")
                assert facts["remedy"]
                problem = await client.put(url, json={"program": {"id": frags.id}})
                assert_problem(problem, 422, "program-incompatible")
                facts = problem.json()
                assert (facts["owner_program_type"], facts["program_type"]) == ("xdp", "xdp")
                assert (facts["owner_attach_type"], facts["attach_type"]) == ("unset", "unset")
                assert "takes only programs without XDP frags" in facts["detail"]
        assert_problem(await client.get(ENTRY), 404, "entry-empty")

    async def test_each_refusal_has_its_own_code(
        self, registry: Registry, pins: Path, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        array = registry.maps.get("jump_table").opened()
        kernel.obj_pin(array.fd, f"{pins}/table")
        for body, status, code in (
            ({"program": "nope"}, 422, "program-not-found"),
            ({"program": {"id": 0x7FFFFFFF}}, 422, "program-not-found"),
            ({"program": {"pinned": f"{pins}/none"}}, 422, "pin-unusable"),
            ({"program": {"pinned": f"{pins}/table"}}, 422, "not-a-program"),
            ({"program": {"pinned": "/etc/passwd"}}, 403, "pin-not-allowed"),
            ({"program": "drop", "flags": 1}, 422, "unsupported-flags"),
        ):
            assert_problem(await client.put(ENTRY, json=body), status, code)
        assert_problem(
            await client.put("/maps/jump_table/entries/16", json={"program": "drop"}), 404, "index-out-of-range"
        )
        assert (await client.get("/maps/jump_table/entries/16")).json()["max_entries"] == 16
        assert_problem(await client.put("/maps/nope/entries/3", json={"program": "drop"}), 404, "map-unknown")
        assert array.indices() == []


_ONLY_DRY = {"fit", "entries", "warnings"}


class TestDryRun:
    async def test_dry_run_writes_nothing(self, registry: Registry, client: httpx.AsyncClient) -> None:
        dry = await client.put(f"{ENTRY}?dry_run=true", json={"program": "drop"})
        assert (dry.status_code, dry.headers["dry-run"], dry.json()["fit"]) == (201, "true", "tried")
        assert registry.maps.get("jump_table").opened().indices() == []
        real = await client.put(ENTRY, json={"program": "drop"})
        assert "dry-run" not in real.headers
        assert real.json() == {name: value for name, value in dry.json().items() if name not in _ONLY_DRY}
        dry = await client.delete(f"{ENTRY}?dry_run=true")
        assert (dry.status_code, dry.headers["dry-run"]) == (204, "true")
        assert registry.maps.get("jump_table").opened().indices() == [3]

    async def test_dry_run_gives_the_same_refusals(self, registry: Registry, client: httpx.AsyncClient) -> None:
        assert_problem(await client.delete(f"{ENTRY}?dry_run=true"), 404, "entry-empty")
        await client.put(ENTRY, json={"program": "drop"})
        registry.kernel.map_freeze(registry.maps.get("jump_table").opened().fd)
        assert_problem(await client.put(f"{ENTRY}?dry_run=true", json={"program": "pass"}), 409, "map-frozen")
        assert_problem(await client.delete(f"{ENTRY}?dry_run=true"), 409, "map-frozen")

    async def test_fit_is_type_only_until_the_map_has_an_entry(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("fresh", make_array(kernel, "fresh", 4))
        url = "/maps/fresh/entries/0?dry_run=true"
        assert (await client.put(url, json={"program": "drop"})).json()["fit"] == "type-only"
        await client.put("/maps/fresh/entries/1", json={"program": "pass"})
        assert (await client.put(url, json={"program": "drop"})).json()["fit"] == "tried"

    async def test_refused_seed_program_does_not_refuse_the_program(self) -> None:
        """For example a program that an freplace program extends."""

        class Extended(MemoryKernel):
            def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
                if self.prog_info(value).name == "entry":
                    raise OSError(errno.EBUSY, "extended")
                super().map_update(fd, index, value, flags)

        registry = Registry(Extended())
        demo.fill(registry)
        async with client_on_registry(registry) as client:
            dry = await client.put(f"{ENTRY}?dry_run=true", json={"program": "drop"})
            assert (dry.status_code, dry.json()["fit"]) == (201, "type-only")
            await client.put(ENTRY, json={"program": "drop"})
            dry = await client.put(f"{ENTRY}?dry_run=true", json={"program": "pass"})
            assert dry.json()["fit"] == "tried"
            busy = await client.put(f"{ENTRY}?dry_run=true", json={"program": "entry"})
            assert_problem(busy, 409, "program-busy")
        registry.close()

    async def test_dry_run_does_not_fix_the_owner_of_the_map(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        """The dry run tries the program on a scratch array instead."""
        array = make_array(kernel, "fresh", 4)
        registry.maps.adopt("fresh", array)
        await client.put("/maps/fresh/entries/0?dry_run=true", json={"program": "drop"})
        assert array.state().owner_type is None


class TestClearEntry:
    async def test_clear_answers_204_and_then_404(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        gone = await client.delete(ENTRY)
        assert (gone.status_code, gone.content) == (204, b"")
        assert_problem(await client.delete(ENTRY), 404, "entry-empty")
        assert_problem(await client.get(ENTRY), 404, "entry-empty")

    async def test_allow_missing_accepts_an_empty_entry(self, client: httpx.AsyncClient) -> None:
        assert (await client.delete(f"{ENTRY}?allow_missing=true")).status_code == 204
        assert_problem(await client.delete("/maps/jump_table/entries/16?allow_missing=true"), 404, "index-out-of-range")

    async def test_slow_clear_blocks_only_writers_of_the_same_map(self) -> None:
        """While the kernel clears an entry of one map, that map can be read and other maps can be changed."""
        began, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        class Slow(MemoryKernel):
            def map_delete(self, fd: int, index: int) -> None:
                loop.call_soon_threadsafe(began.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
                super().map_delete(fd, index)

        registry = Registry(Slow())
        for name in ("slow", "quick"):
            registry.maps.adopt(name, make_array(registry.kernel, name, 4))
        registry.programs.adopt("drop", load(registry.kernel))
        async with client_on_registry(registry) as client:
            await client.put("/maps/slow/entries/0", json={"program": "drop"})
            clear = asyncio.create_task(client.delete("/maps/slow/entries/0"))
            await asyncio.wait_for(began.wait(), 10)
            assert (await client.get("/maps/slow/entries/0")).status_code == 200
            assert (await client.put("/maps/quick/entries/0", json={"program": "drop"})).status_code == 201
            queued = asyncio.create_task(client.put("/maps/slow/entries/0", json={"program": "drop"}))
            done, _ = await asyncio.wait({queued}, timeout=0.05)
            assert not done, "a writer of the same map overtook the clear"
            go_on.set()
            assert (await clear).status_code == 204
            assert (await queued).status_code == 201
        registry.close()


class TestPreconditions:
    async def test_if_match_refuses_a_stale_etag(self, client: httpx.AsyncClient) -> None:
        etag = (await client.put(ENTRY, json={"program": "drop"})).headers["etag"]
        changed = await client.put(ENTRY, json={"program": "pass"}, headers={"If-Match": etag})
        assert changed.status_code == 200
        late = await client.put(ENTRY, json={"program": "tx"}, headers={"If-Match": etag})
        assert_problem(late, 412, "precondition-failed")
        assert late.json()["current"]["program"]["name"] == "pass"
        assert_problem(await client.delete(ENTRY, headers={"If-Match": etag}), 412, "precondition-failed")
        listed = f'"other", {changed.headers["etag"]}'
        assert (await client.delete(ENTRY, headers={"If-Match": listed})).status_code == 204

    async def test_if_match_star_refuses_an_empty_entry(self, client: httpx.AsyncClient) -> None:
        refused = await client.put(ENTRY, json={"program": "drop"}, headers={"If-Match": "*"})
        assert_problem(refused, 412, "precondition-failed")
        assert refused.json()["current"] is None
        refused = await client.delete(f"{ENTRY}?allow_missing=true", headers={"If-Match": "*"})
        assert_problem(refused, 412, "precondition-failed")

    async def test_if_none_match_star_only_creates(self, client: httpx.AsyncClient) -> None:
        only_new = {"If-None-Match": "*"}
        assert (await client.put(ENTRY, json={"program": "drop"}, headers=only_new)).status_code == 201
        assert_problem(await client.put(ENTRY, json={"program": "pass"}, headers=only_new), 412, "precondition-failed")

    async def test_weak_etag_does_not_satisfy_if_match(self, client: httpx.AsyncClient) -> None:
        etag = (await client.put(ENTRY, json={"program": "drop"})).headers["etag"]
        refused = await client.put(ENTRY, json={"program": "pass"}, headers={"If-Match": f"W/{etag}"})
        assert_problem(refused, 412, "precondition-failed")
        assert (await client.get(ENTRY, headers={"If-None-Match": f"W/{etag}"})).status_code == 304

    @pytest.mark.parametrize("url", [ENTRY, "/maps/jump_table/entries"])
    async def test_get_answers_304_until_another_tool_writes(
        self, registry: Registry, client: httpx.AsyncClient, url: str
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        etag = (await client.get(url)).headers["etag"]
        same = await client.get(url, headers={"If-None-Match": etag})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        registry.maps.get("jump_table").opened().set(3, registry.programs.get("pass").opened())
        other = await client.get(url, headers={"If-None-Match": etag})
        assert other.status_code == 200
        assert other.headers["etag"] != etag

    @pytest.mark.parametrize("tag", ["abc", '"abc', "W/abc", '"a" "b"', '"a",b', "", "*, *", '"a\tb"', "," * 100])
    async def test_malformed_etag_is_refused(self, client: httpx.AsyncClient, tag: str) -> None:
        for header in ("If-Match", "If-None-Match"):
            refused = await client.put(ENTRY, json={"program": "drop"}, headers={header: tag})
            assert_problem(refused, 400, "malformed-header")
            assert_problem(await client.delete(ENTRY, headers={header: tag}), 400, "malformed-header")
        assert_problem(await client.get(ENTRY), 404, "entry-empty")

    async def test_get_ignores_if_match(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        assert (await client.get(ENTRY, headers={"If-Match": "abc"})).status_code == 200

    async def test_dry_run_checks_preconditions(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        refused = await client.put(f"{ENTRY}?dry_run=true", json={"program": "pass"}, headers={"If-Match": '"x"'})
        assert_problem(refused, 412, "precondition-failed")


class TestListEntries:
    async def fill(self, client: httpx.AsyncClient) -> None:
        for index, program in ((9, "tx"), (0, "drop"), (3, "pass")):
            await client.put(f"/maps/jump_table/entries/{index}", json={"program": program})

    async def test_list_has_only_filled_entries_in_index_order(self, client: httpx.AsyncClient) -> None:
        await self.fill(client)
        table = (await client.get("/maps/jump_table/entries")).json()
        assert set(table) == {"map", "max_entries", "etag", "entries", "next"}
        assert (table["map"], table["max_entries"], table["next"]) == ("jump_table", 16, None)
        assert [(each["index"], each["program"]["name"]) for each in table["entries"]] == [
            (0, "drop"), (3, "pass"), (9, "tx"),
        ]  # fmt: skip
        assert table["entries"][1] == (await client.get(ENTRY)).json()

    async def test_empty_table_is_an_empty_list(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/maps/jump_table/entries")
        assert (response.status_code, response.json()["entries"]) == (200, [])

    async def test_pages_make_up_the_whole_table(self, client: httpx.AsyncClient) -> None:
        await self.fill(client)
        etag = (await client.get("/maps/jump_table/entries")).headers["etag"]
        seen: list[int] = []
        start: int | None = 0
        while start is not None:
            page = await client.get("/maps/jump_table/entries", params={"start": start, "limit": 2})
            assert page.headers["etag"] == etag, "the tag is the whole table's"
            seen += [each["index"] for each in page.json()["entries"]]
            start = page.json()["next"]
        assert seen == [0, 3, 9]
        beyond = await client.get("/maps/jump_table/entries?start=16")
        assert (beyond.json()["entries"], beyond.json()["next"]) == ([], None)

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=-1",
            "limit=x",
            "start=-1",
            "start=4294967296",
            "offset=3",
            "start=+3",
            "start=03",
            "start=3.0",
            "start=%203",
            "limit=1_0",
        ],
    )
    async def test_invalid_page_parameter_is_refused(self, client: httpx.AsyncClient, query: str) -> None:
        assert_problem(await client.get(f"/maps/jump_table/entries?{query}"), 422, "validation")


class TestManyWriters:
    async def test_64_concurrent_writers_get_only_valid_answers(self, client: httpx.AsyncClient) -> None:
        """Every status is one that a set or clear may have, and the entry works as before afterwards."""

        async def one(number: int) -> list[int]:
            statuses = []
            for _ in range(4):
                put = await client.put(ENTRY, json={"program": ("drop", "pass", "tx")[number % 3]})
                statuses.append((await client.delete(ENTRY)).status_code if number % 2 else put.status_code)
                assert put.status_code in {200, 201}
            return statuses

        answers: list[Any] = await asyncio.gather(*(one(number) for number in range(64)))
        assert {status for statuses in answers for status in statuses} <= {200, 201, 204, 404}
        await client.delete(f"{ENTRY}?allow_missing=true")
        assert (await client.put(ENTRY, json={"program": "drop"})).status_code == 201


class TestHead:
    @pytest.mark.parametrize("url", ["/maps", "/maps/jump_table", "/maps/jump_table/entries", "/programs", "/healthz",
                                     ENTRY, "/maps/nope", "/docs", "/openapi.json", "/version", "/readyz"])  # fmt: skip
    async def test_head_is_get_without_the_body(self, client: httpx.AsyncClient, url: str) -> None:
        get, head = await client.get(url), await client.head(url)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("content-type", "etag", "content-length"):
            assert head.headers.get(name) == get.headers.get(name)


def test_demo_map_is_created_by_the_service(registry: Registry) -> None:
    assert isinstance(registry.maps.get("jump_table").source, Made)
