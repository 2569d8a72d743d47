"""/metrics: counters, labels and formats."""

import re

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.bpf.kernel import Kernel
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

TABLE = "/maps/jump_table/entries"


class TestMetrics:
    async def test_metrics_count_changes_requests_drift_and_readers(
        self, app: FastAPI, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        await client.put(ENTRY, json={"program": "drop"})
        await client.put(ENTRY, json={"program": "pass"})
        await client.put(f"{TABLE}/99", json={"program": "pass"})
        await client.put(f"{TABLE}/4?confirm_within=60", json={"program": "pass"})
        array, tx = registry.maps.get("jump_table").opened(), registry.programs.get("tx").opened()
        registry.kernel.map_update(array.fd, 7, tx.fd)
        await app.state.service.drift.check_all()
        counters = await scrape(client)
        for name, labels, value in (
            ("jumptable_changes_total", {"kind": "set", "outcome": "applied"}, 3),
            ("jumptable_request_seconds_count", {"operation": "set_entry", "status": "200"}, 1),
            ("jumptable_request_seconds_count", {"operation": "set_entry", "status": "404"}, 1),
            ("jumptable_drift_entries", {"map": "jump_table"}, 1),
            ("jumptable_entries_used", {"map": "jump_table"}, 3),
            ("jumptable_entries_max", {"map": "jump_table"}, 16),
            ("jumptable_unconfirmed_changes", {}, 1),
            ("jumptable_maps", {}, 1),
            ("jumptable_maps_unavailable", {}, 0),
            ("jumptable_programs", {}, 5),
            ("jumptable_event_readers", {}, 0),
            ("jumptable_journal_failing", {}, 0),
            ("jumptable_keeper_failing", {}, 0),
        ):
            assert counters[name, tuple(sorted(labels.items()))] == value, name
        assert counters["jumptable_kernel_call_seconds_count", (("call", "map_update"),)] >= 3
        assert counters["jumptable_journal_commit_seconds_count", ()] >= 3

    async def test_metrics_tell_how_long_it_is_until_a_change_is_undone(self, client: httpx.AsyncClient) -> None:
        left = ("jumptable_unconfirmed_seconds_left", ())
        assert left not in await scrape(client)
        await client.put(f"{TABLE}/4?confirm_within=600", json={"program": "pass"})
        await client.put(f"{TABLE}/5?confirm_within=60", json={"program": "pass"})
        assert 0 < (await scrape(client))[left] <= 60
        await client.post("/changes/2/confirm")
        assert 60 < (await scrape(client))[left] <= 600

    async def test_timing_the_calls_leaves_the_callers_kernel_as_it_is(self, kernel: Kernel, app: FastAPI) -> None:
        assert app.state.service.registry.kernel is not kernel
        assert not {"map_update", "map_lookup"} & vars(kernel).keys()

    async def test_request_data_never_becomes_a_label(self, client: httpx.AsyncClient) -> None:
        before = len(await scrape(client))
        for number in range(30):
            await client.get(f"/nope{number}")
            await client.get(f"/maps/nope{number}")
            await client.request(f"VERB{number}", "/maps")
            await client.put("/maps/m", json={"pinned": f"/nope{number}"})
        new = [name for name, _ in await scrape(client) if "request" in name]
        assert not [name for name in new if re.search("nope|VERB", str(name))]
        assert len(await scrape(client)) < before + 300

    async def test_metrics_have_the_text_and_the_openmetrics_format(self, client: httpx.AsyncClient) -> None:
        plain = await client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain")
        openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
