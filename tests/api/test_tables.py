"""PUT and PATCH of whole tables: checks, order of writes, and rollback."""

import asyncio
import errno
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import BPF_F_XDP_HAS_FRAGS, ProgType
from app.cli import demo
from app.service.objects.opening import make_array
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem, client_on_registry
from tests.conftest import application, load

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"


async def names(client: httpx.AsyncClient, url: str = TABLE) -> dict[int, str]:
    """The held names, by index."""
    return {each["index"]: each["program"]["name"] for each in (await client.get(url)).json()["entries"]}


def listed(**programs: str | None) -> dict[str, Any]:
    """A request body. `_3="drop"` lists index 3."""
    return {"entries": [{"index": int(index[1:]), "program": program} for index, program in programs.items()]}


class TestUpdateEntries:
    async def test_update_changes_only_the_listed_entries(self, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass", "tx"]})
        response = await client.patch(TABLE, json=listed(_0="pass", _1=None, _5="count", _2="tx", _7=None))
        assert response.status_code == 200
        counts = {name: response.json()[name] for name in ("set", "cleared", "unchanged")}
        assert counts == {"set": 2, "cleared": 1, "unchanged": 2}
        assert await names(client) == {0: "pass", 2: "tx", 5: "count"}
        assert response.headers["change-id"] == str(response.json()["change"]["id"])

    async def test_entries_are_written_in_the_given_order(self) -> None:
        """A caller can so set callees before the entries that lead to them."""
        writes: list[int] = []

        class Watched(MemoryKernel):
            def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
                if self.map_info(fd).name == "jump_table":
                    writes.append(index)
                super().map_update(fd, index, value, flags)

            def map_delete(self, fd: int, index: int) -> None:
                writes.append(-index)
                super().map_delete(fd, index)

        registry = Registry(Watched())
        demo.fill(registry)
        async with client_on_registry(registry) as client:
            await client.patch(TABLE, json=listed(_9="drop", _2="pass", _5="tx"))
            await client.put(TABLE, json=listed(_7="drop", _1="pass"))
        registry.close()
        assert writes == [9, 2, 5, 7, 1, -9, -5, -2], "sets as listed, then clears by falling index"

    async def test_update_without_difference_is_no_change(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        response = await client.patch(TABLE, json=listed(_3="drop", _4=None))
        assert response.json() == {"change": None, "set": 0, "cleared": 0, "unchanged": 2}
        assert "change-id" not in response.headers
        assert len((await client.get("/changes")).json()["changes"]) == 1


class TestReturnMinimal:
    """Prefer: return=minimal (RFC 7240)."""

    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    async def test_change_is_told_without_its_entries(self, client: httpx.AsyncClient, method: str) -> None:
        answer = await client.request(method, TABLE, json=listed(_3="drop"), headers={"Prefer": "return=minimal"})
        assert answer.headers["preference-applied"] == "return=minimal"
        change = (await client.get(f"/changes/{answer.headers['change-id']}")).json()
        del change["entries"]
        assert answer.json() == {"change": change, "set": 1, "cleared": 0, "unchanged": 0}
        assert await names(client) == {3: "drop"}

    async def test_nothing_to_write_is_told_likewise(self, client: httpx.AsyncClient) -> None:
        answer = await client.patch(TABLE, json=listed(_3=None), headers={"Prefer": "return=minimal"})
        assert answer.headers["preference-applied"] == "return=minimal"
        assert answer.json() == {"change": None, "set": 0, "cleared": 0, "unchanged": 1}

    @pytest.mark.parametrize(
        "lines",
        [["respond-async, Return=minimal; foo=1"], ["wait=10", 'return="minimal"'], ["x=\"a, b\", return = minimal"],
         ["return=minimal, return=representation"]],
    )  # fmt: skip
    async def test_it_is_found_among_other_preferences(self, client: httpx.AsyncClient, lines: list[str]) -> None:
        answer = await client.put(TABLE, json=listed(_3="drop"), headers=[("Prefer", line) for line in lines])
        assert answer.headers["preference-applied"] == "return=minimal"

    @pytest.mark.parametrize(
        "line",
        ["return=representation, return=minimal", 'x="return=minimal"', 'x="a, return=minimal"', "return", "minimal",
         'return="minimal, x', ""],
    )  # fmt: skip
    async def test_any_other_preference_is_ignored(self, client: httpx.AsyncClient, line: str) -> None:
        answer = await client.put(TABLE, json=listed(_3="drop"), headers={"Prefer": line})
        assert "preference-applied" not in answer.headers
        assert len(answer.json()["change"]["entries"]) == 1

    async def test_dry_run_tells_the_entries_all_the_same(self, client: httpx.AsyncClient) -> None:
        answer = await client.put(
            TABLE, json=listed(_3="drop"), params={"dry_run": True}, headers={"Prefer": "return=minimal"}
        )
        assert "preference-applied" not in answer.headers
        assert [each["index"] for each in answer.json()["entries"]] == [3]

    async def test_refusal_is_told_in_full(self, client: httpx.AsyncClient) -> None:
        answer = await client.put(TABLE, json=listed(_99="drop"), headers={"Prefer": "return=minimal"})
        assert_problem(answer, 422, "index-out-of-range")


class TestReplaceEntries:
    async def test_unlisted_entries_are_cleared(self, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", None, "pass"]})
        response = await client.put(TABLE, json=listed(_2="tx", _3="drop"))
        assert (response.json()["set"], response.json()["cleared"]) == (2, 1)
        assert await names(client) == {2: "tx", 3: "drop"}
        assert (await client.put(TABLE, json={"entries": []})).json()["cleared"] == 2
        assert await names(client) == {}

    async def test_answer_of_get_can_be_put_to_another_map(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        registry.maps.adopt("other", make_array(kernel, "other", 16))
        with load(kernel, name="foreign") as foreign:
            await client.put(TABLE, json={"programs": ["drop", None, {"id": foreign.id}]})
        got = (await client.get(TABLE)).json()
        await client.put("/maps/other/entries/9", json={"program": "tx"})
        response = await client.put("/maps/other/entries", json=got)
        assert (response.status_code, response.json()["set"], response.json()["cleared"]) == (200, 2, 1)
        copied = (await client.get("/maps/other/entries")).json()["entries"]
        assert [(each["index"], each["program"]) for each in copied] == [
            (each["index"], each["program"]) for each in got["entries"]
        ]

    async def test_page_is_refused_as_a_whole_table(self, client: httpx.AsyncClient) -> None:
        await client.put(TABLE, json={"programs": ["drop", "pass"]})
        page = (await client.get(f"{TABLE}?limit=1")).json()
        assert_problem(await client.put(TABLE, json=page), 422, "validation")
        assert await names(client) == {0: "drop", 1: "pass"}

    async def test_table_of_65536_entries_is_replaced_read_and_reverted(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        """It is replaced in one PUT, read back, and reverted."""
        registry.maps.adopt("large", make_array(kernel, "large", 65_536))
        programs = [("drop", "pass", "tx")[number % 3] for number in range(65_536)]
        put = await client.put("/maps/large/entries", json={"programs": programs})
        assert (put.status_code, put.json()["set"]) == (200, 65_536)
        back = (await client.get("/maps/large/entries")).json()["entries"]
        assert [each["program"]["name"] for each in back] == programs
        reverted = await client.post(f"/changes/{put.headers['change-id']}/revert")
        assert (reverted.status_code, reverted.json()["cleared"]) == (200, 65_536)
        assert (await client.get("/maps/large/entries")).json()["entries"] == []


class TestChecks:
    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    async def test_everything_is_checked_before_the_first_write(
        self, kernel: Kernel, client: httpx.AsyncClient, method: str
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        with load(kernel, type_=ProgType.SOCKET_FILTER) as other, load(kernel, flags=BPF_F_XDP_HAS_FRAGS) as frags:
            for entry, status, code in (
                ({"index": 16, "program": "drop"}, 422, "index-out-of-range"),
                ({"index": 0, "program": "pass"}, 422, "duplicate-index"),
                ({"index": 1, "program": "nope"}, 422, "program-not-found"),
                ({"index": 1, "program": {"id": other.id}}, 422, "program-incompatible"),
                ({"index": 1, "program": {"id": frags.id}}, 422, "program-incompatible"),
                ({"index": 1, "program": {"pinned": "/etc/passwd"}}, 403, "pin-not-allowed"),
                ({"index": 1}, 422, "validation"),
                ({"index": -1, "program": "drop"}, 422, "validation"),
                ({"index": "1", "program": "drop"}, 422, "validation"),
                ({"index": 1, "program": "drop", "flags": 0}, 422, "validation"),
            ):
                body = {"entries": [{"index": 0, "program": "pass"}, entry]}
                for url in (TABLE, f"{TABLE}?dry_run=true"):
                    assert_problem(await client.request(method, url, json=body), status, code)
        assert await names(client) == {3: "drop"}
        assert len((await client.get("/changes")).json()["changes"]) == 1

    @pytest.mark.parametrize(
        "body", [{}, {"programs": ["drop"], "entries": []}, {"entries": None}, [], {"entries": {}}]
    )
    async def test_body_of_the_wrong_shape_is_a_validation_error(self, client: httpx.AsyncClient, body: object) -> None:
        assert_problem(await client.put(TABLE, json=body), 422, "validation")

    async def test_two_program_types_are_refused_for_an_empty_array(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient
    ) -> None:
        """The first program would fix the owner of the array. The second is refused before either is written."""
        registry.maps.adopt("fresh", make_array(kernel, "fresh", 4))
        with load(kernel, type_=ProgType.SOCKET_FILTER) as other:
            response = await client.put("/maps/fresh/entries", json={"programs": ["drop", {"id": other.id}]})
        assert_problem(response, 422, "program-incompatible")
        assert (await client.get("/maps/fresh")).json()["owner"] is None

    async def test_body_limit_grows_with_the_table(self, registry: Registry, client: httpx.AsyncClient) -> None:
        large = json.dumps({"programs": []}).encode() + b" " * (64 * 1024 + 512 * 16)
        headers = {"Content-Type": "application/json"}
        refused = await client.put(TABLE, content=large, headers=headers)
        assert_problem(refused, 413, "body-too-large")
        assert refused.json()["max_bytes"] == 64 * 1024 + 512 * 16
        assert (await client.put(TABLE, content=large[:-100], headers=headers)).status_code == 200

    async def test_if_match_applies_to_the_whole_table(self, client: httpx.AsyncClient) -> None:
        etag = (await client.get(TABLE)).headers["etag"]
        assert (await client.put(TABLE, json=listed(_1="drop"), headers={"If-Match": etag})).status_code == 200
        late = await client.patch(TABLE, json=listed(_1="pass"), headers={"If-Match": etag})
        assert_problem(late, 412, "precondition-failed")
        assert late.json()["current"]["etag"] == (await client.get(TABLE)).headers["etag"]
        assert await names(client) == {1: "drop"}

    @pytest.mark.field
    @pytest.mark.parametrize("query", ["", "?dry_run=true"])
    @pytest.mark.parametrize("others", [[], [{"index": 7, "program": "drop"}]])
    async def test_problem_of_one_entry_names_entry_and_program(
        self, registry: Registry, pins: Path, client: httpx.AsyncClient, others: list[Any], query: str
    ) -> None:
        """Field 6: a misfit among many entries that names neither the entry nor the program."""
        registry.programs.adopt("misfit", load(registry.kernel, 1, ProgType.SOCKET_FILTER))
        misfit = registry.programs.get("misfit").opened().id
        gone, not_pinned = (1 << 31) - 1, f"{pins}/nothing"
        for program, code in [
            ("misfit", "program-incompatible"), ({"id": misfit}, "program-incompatible"), ("none", "program-not-found"),
            ({"id": gone}, "program-not-found"), ({"pinned": not_pinned}, "pin-unusable"),
            ({"pinned": "/elsewhere"}, "pin-not-allowed"),
        ]:  # fmt: skip
            bad = {"entries": [*others, {"index": 5, "program": program}]}
            for method in ("PUT", "PATCH"):
                refused = await client.request(method, f"{TABLE}{query}", json=bad)
                assert refused.json()["code"] == code, refused.text
                assert (refused.json()["index"], refused.json()["program"]) == (5, program)
        beyond = {"entries": [*others, {"index": 16, "program": "drop"}]}
        refused = await client.patch(f"{TABLE}{query}", json=beyond)
        assert (refused.json()["code"], refused.json()["program"]) == ("index-out-of-range", "drop")

    async def test_dry_run_tells_the_counts_and_writes_nothing(self, client: httpx.AsyncClient) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        dry = await client.put(f"{TABLE}?dry_run=true", json=listed(_1="pass"))
        told = {each["index"]: (each["before"], each["after"]) for each in dry.json().pop("entries")}
        assert dry.json() | {"entries": []} == {
            "change": None, "set": 1, "cleared": 1, "unchanged": 0, "fit": "tried", "entries": [],
        }  # fmt: skip
        assert (told[1][0], told[1][1]["name"], told[3][0]["name"], told[3][1]) == (None, "pass", "drop", None)
        assert (dry.headers["dry-run"], "change-id" in dry.headers) == ("true", False)
        assert await names(client) == {3: "drop"}

    @pytest.mark.field
    async def test_dry_run_tells_the_entries_that_the_change_then_has(
        self, registry: Registry, client: httpx.AsyncClient
    ) -> None:
        """Field 5: a dry run tells how many entries it would change, and not which."""
        pass_id = registry.programs.get("pass").opened().id
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        await client.put(TABLE, json={"programs": ["drop", "drop", None, "tx"]})
        for method, path, body in [
            ("PUT", TABLE, {"programs": ["pass", {"id": pass_id}, None, None, "drop"]}),
            ("PATCH", TABLE, {"entries": [{"index": 9, "program": "drop"}, {"index": 0, "program": None}]}),
            ("POST", "/changes/3/revert", None),
            ("PUT", ENTRY, {"program": "count"}),
            ("PUT", ENTRY, {"program": {"id": pass_id}}),
            ("POST", "/maps/jump_table/reconcile", {"to": "journal"}),
            ("POST", "/maps/jump_table/reconcile", {"to": "kernel"}),
        ]:
            if "reconcile" in path:
                registry.kernel.map_update(array.fd, 1, tx.fd)
            dry = await client.request(method, f"{path}?dry_run=true", json=body)
            assert (dry.headers["dry-run"], "change-id" in dry.headers) == ("true", False)
            if body != {"to": "kernel"}:
                waiting = await client.request(method, f"{path}?dry_run=true&confirm_within=60", json=body)
                assert waiting.content == dry.content
            made = await client.request(method, path, json=body)
            change = (await client.get(f"/changes/{made.headers['change-id']}")).json()
            assert dry.json()["entries"] == change["entries"] != []
            if "revert" not in path and "reconcile" not in path:
                again = await client.request(method, f"{path}?dry_run=true", json=body)
                assert again.json()["entries"] == []
        gone = await client.delete(f"{ENTRY}?dry_run=true")
        assert (gone.status_code, gone.content) == (204, b"")

    async def test_frozen_map_refuses_writes(self, registry: Registry, client: httpx.AsyncClient) -> None:
        registry.kernel.map_freeze(registry.maps.get("jump_table").opened().fd)
        assert_problem(await client.put(TABLE, json=listed(_1="pass")), 409, "map-frozen")
        assert (await client.put(TABLE, json={"entries": []})).status_code == 200


class Refusing(MemoryKernel):
    """A kernel that refuses writes to the index `refused`."""

    refused: int | None = None

    def map_update(self, fd: int, index: int, value: int, flags: int = 0) -> None:
        if index == self.refused and self.map_info(fd).name == "jump_table":
            raise OSError(errno.ENOMEM, "refused")
        super().map_update(fd, index, value, flags)


class TestRollback:
    async def test_kernel_error_midway_puts_everything_back(self) -> None:
        kernel = Refusing()
        registry = Registry(kernel)
        demo.fill(registry)
        async with client_on_registry(registry) as client:
            await client.put(TABLE, json={"programs": ["drop", "drop", None, "drop"]})
            before = (await client.get(TABLE)).json()
            kernel.refused = 2
            response = await client.put(TABLE, json={"programs": ["pass", None, "pass", "pass"]})
            # The clear of entry 1 comes last, so it was not made.
            assert_problem(response, 500, "kernel-error")
            facts = response.json()
            assert (facts["index"], facts["put_back"], facts["left"], facts["errno"]) == (2, True, [], "ENOMEM")
            assert (await client.get(TABLE)).json() == before
            assert len((await client.get("/changes")).json()["changes"]) == 1
        registry.close()

    async def test_entries_that_cannot_be_put_back_are_listed(self) -> None:
        kernel = Refusing()
        registry = Registry(kernel)
        demo.fill(registry)

        async with client_on_registry(registry) as client:
            await client.put(TABLE, json={"programs": ["drop", "drop"]})
            update = kernel.map_update

            def then_nothing(fd: int, index: int, value: int, flags: int = 0) -> None:
                if kernel.refused is not None and kernel.map_info(fd).name == "jump_table":
                    raise OSError(errno.ENOMEM, "refused")
                update(fd, index, value, flags)
                if index == 0 and kernel.map_info(fd).name == "jump_table":
                    kernel.refused = 99

            kernel.map_update = then_nothing  # type: ignore[method-assign]
            response = await client.put(TABLE, json={"programs": ["pass", "pass"]})
            assert_problem(response, 500, "kernel-error")
            assert (response.json()["put_back"], response.json()["left"]) == (False, [0])
        registry.close()


class TestShutdown:
    async def test_change_interrupted_by_the_shutdown_is_put_back(self) -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Slow(MemoryKernel):
            def map_delete(self, fd: int, index: int) -> None:
                loop.call_soon_threadsafe(began.set)
                threading.Event().wait(0.005)
                super().map_delete(fd, index)

        registry = Registry(Slow())
        demo.fill(registry)
        registry.maps.adopt("large", make_array(registry.kernel, "large", 2000))
        with application(registry) as app:
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jumptable")
            await client.put("/maps/large/entries", json={"programs": ["drop"] * 2000})
            clearing = asyncio.create_task(client.put("/maps/large/entries", json={"programs": []}))
            await asyncio.wait_for(began.wait(), 10)
            clearing.cancel()
            await app.state.service.changes.finish()
            answer = await clearing
            assert_problem(answer, 503, "draining")
            assert len(registry.maps.get("large").opened().indices()) == 2000
            assert [change.id for change in app.state.service.journal.changes()[0]] == [1]
        registry.close()


class TestJournalUnavailable:
    async def test_failed_journal_write_puts_the_kernel_back(
        self, app: FastAPI, registry: Registry, monkeypatch: pytest.MonkeyPatch, client: httpx.AsyncClient
    ) -> None:
        await client.put(TABLE, json={"programs": ["drop", None, "drop"]})
        before = (await client.get(TABLE)).json()
        journal = app.state.service.journal
        journal._database.writer.execute("PRAGMA query_only = 1")
        for response in (
            await client.put("/maps/jump_table/entries/0", json={"program": "pass"}),
            await client.delete("/maps/jump_table/entries/0"),
            await client.put("/maps/jump_table/entries/5", json={"program": "pass"}),
            await client.put(TABLE, json={"programs": ["tx", "tx"]}),
            await client.post("/changes/1/revert"),
        ):
            assert_problem(response, 503, "journal-unavailable")
            assert response.json()["put_back"] is True
            assert (await client.get(TABLE)).json() == before
        journal._database.writer.execute("PRAGMA query_only = 0")
        assert (await client.put(TABLE, json={"programs": ["tx", "tx"]})).headers["change-id"] == "2"


class TestForeignPrograms:
    async def test_unchanged_program_need_not_be_opened(
        self, registry: Registry, kernel: Kernel, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without CAP_SYS_ADMIN a program that the service does not hold cannot be opened by its id."""
        with load(kernel, 1, name="foreign") as foreign:
            registry.maps.get("jump_table").opened().set(0, foreign)
        table = (await client.get(TABLE)).json()

        def refused(_: int) -> int:
            raise PermissionError(1, "refused")

        monkeypatch.setattr(kernel, "prog_get_fd_by_id", refused)
        table["entries"].append({"index": 1, "program": "drop"})
        changed = await client.put(TABLE, json=table)
        assert (changed.status_code, changed.json()["set"], changed.json()["unchanged"]) == (200, 1, 1)
