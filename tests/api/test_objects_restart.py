"""Object files after the end of the service, and after a reboot."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.linux import LinuxKernel
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.journal import Journal
from tests import probes
from tests.api.conftest import assert_problem, client_of, started
from tests.api.test_objects import NO_ATTACH_TYPE, PARSER, files, names, options, put, send, verdict
from tests.compiled import object_file

__all__ = ["files"]  # a fixture

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
]

TABLE = "/maps/table/entries"


class Machine:
    """A machine with a bpffs and a state folder, on which the service runs now and then."""

    def __init__(self, bpffs: Path, files: Path) -> None:
        self.bpffs, self.files, self.boots = bpffs, files, 0
        self.keep: Path | None = bpffs / "keep"

    def reboot(self) -> None:
        """Lose all pins, and with them what nobody else holds."""
        for pin in [*self.bpffs.glob("keep/*"), self.bpffs / "table"]:
            pin.unlink()
        self.boots += 1

    def kept(self) -> set[str]:
        """The pins in keep_dir."""
        return {pin.name for pin in self.bpffs.glob("keep/*")}

    @asynccontextmanager
    async def service(self) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
        """Run the service. It restores the entries of `table`."""
        kernel = LinuxKernel()
        kernel.boot_id = f"boot {self.boots}"
        registry = Registry(kernel, [str(self.bpffs)])
        source = Pinned(f"{self.bpffs}/table")
        registry.maps.add(HeldMap("table", source, create_entries=16, restore=True))
        journal = Journal(self.files.parent / "journal.db", "process")
        keep = None if self.keep is None else str(self.keep)
        async with (
            started(registry, journal=journal, keep_dir=keep, objects=options(self.files)) as app,
            client_of(app) as client,
        ):
            yield app, client
        registry.close()


@pytest.fixture
def machine(bpffs: Path, files: Path) -> Machine:
    return Machine(bpffs, files)


async def ids(client: httpx.AsyncClient) -> dict[str, int]:
    told = (await client.get(PARSER)).json()
    return {each["program"]: each["id"] for each in told["programs"]}


async def test_everything_is_as_before_after_a_restart(machine: Machine) -> None:
    async with machine.service() as (_, client):
        await put(client, machine.files)
        body: dict[str, Any] = {"variables": {"label": "x"}, "maps": {"stats": {"use": "previous"}}}
        switch = {"map": "table", "index": 0, "program": "entry"}
        told = (await put(client, machine.files, **body, switch=switch)).json()["object"]
        confined = "the process that has loaded it was not confined by landlock"
        assert told["warnings"] == ([confined] if probes.landlock() else [])
    pins = machine.kept()
    async with machine.service() as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get(PARSER)).json() == told
        assert await names(client) == {1: "parser.ipv4", 2: "parser.tcp", 3: "parser.drop"}
        assert await names(client, TABLE) == {0: "parser.entry"}
        assert await verdict(client, 3) == "XDP_TX"
        assert (await client.get("/maps/parser.stages")).json()["drift"] == []
        assert machine.kept() == pins
        again = await put(client, machine.files, **body, switch=switch)
        assert (again.json()["object"]["version"], again.json()["changes"]) == (2, [])
        assert (await put(client, machine.files, **body, switch=switch, values="ignore")).json()["object"][
            "version"
        ] == 3


@pytest.mark.parametrize(("is_kept", "warnings"), [(True, 0), (False, 1)])
async def test_dry_run_warns_of_programs_that_a_restart_would_lose(
    machine: Machine, *, is_kept: bool, warnings: int
) -> None:
    machine.keep = machine.keep if is_kept else None
    async with machine.service() as (_, client):
        told = (await put(client, machine.files, f"{PARSER}?dry_run=true")).json()["object"]
    # A kernel without Landlock has one of its own.
    assert len([each for each in told["warnings"] if "confined" not in each]) == warnings


async def test_change_is_reverted_to_the_version_before_after_a_restart(machine: Machine) -> None:
    switch = {"map": "table", "index": 0, "program": "entry"}
    async with machine.service() as (_, client):
        await put(client, machine.files, switch=switch)
        first = await ids(client)
        [change] = (await put(client, machine.files, switch=switch, variables={"label": "x"})).json()["changes"]
    async with machine.service() as (_, client):
        assert (await client.post(f"/changes/{change['id']}/revert")).status_code == 200
        assert (await client.get(f"{TABLE}/0")).json()["program"]["id"] == first["entry"]


async def test_switch_that_nobody_has_confirmed_is_undone_after_a_restart(machine: Machine) -> None:
    switch = {"map": "table", "index": 0, "program": "entry"}
    async with machine.service() as (_, client):
        await put(client, machine.files, switch=switch)
        first = await ids(client)
        path = f"{PARSER}?confirm_within=1"
        answer = await put(client, machine.files, path, switch=switch, variables={"label": "x"})
        assert answer.json()["changes"][0]["state"] == "unconfirmed"
    async with machine.service() as (app, client):
        for pending in list(app.state.service.changes.confirmations._pending.values()):
            await app.state.service.changes.confirmations.undo(pending)
        assert (await client.get(f"{TABLE}/0")).json()["program"]["id"] == first["entry"]


async def test_tables_get_its_programs_back_after_a_reboot(machine: Machine) -> None:
    async with machine.service() as (_, client):
        await put(client, machine.files, programs=NO_ATTACH_TYPE, variables={"verdict": 3})
        await client.put(f"{TABLE}/5", json={"program": "parser.tcp"})
        before = await ids(client)
    machine.reboot()
    async with machine.service() as (_, client):
        assert (await client.get("/readyz")).status_code == 200, (await client.get("/readyz")).text
        assert set((await ids(client)).values()).isdisjoint(before.values())
        assert await names(client, TABLE) == {5: "parser.tcp"}
        assert await verdict(client, 2) == "XDP_TX"
        assert (await client.get("/maps/parser.stages")).json()["drift"] == []


async def test_file_that_was_sent_is_loaded_again_from_a_copy(machine: Machine) -> None:
    machine.keep = None
    copies = machine.files.parent / "copies"
    async with machine.service() as (_, client):
        told = (await send(client, object_file("parser"))).json()["object"]
        assert "pinned nowhere" in told["warnings"][0]
        assert [each.name for each in copies.iterdir()] == [told["sha256"]]
        assert copies.stat().st_mode & 0o777 == 0o700
    async with machine.service() as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        again = (await client.get(PARSER)).json()
        assert (again["version"], again["sha256"]) == (1, told["sha256"])
        assert (await client.get("/maps/parser.stages")).json()["drift"] == []
        assert await verdict(client, 3) == "XDP_DROP"
        assert (await client.delete(PARSER)).status_code == 204
        assert list(copies.iterdir()) == []


async def test_file_that_is_another_one_after_a_reboot_is_told_and_not_loaded(machine: Machine) -> None:
    async with machine.service() as (_, client):
        await put(client, machine.files)
    machine.reboot()
    (machine.files / "parser.o").write_bytes(object_file("root"))
    async with machine.service() as (app, client):
        told = (await client.get(PARSER)).json()
        assert (told["state"], told["programs"][0]["id"]) == ("unavailable", None)
        assert "is another one now" in told["reason"]
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert any("object file 'parser'" in reason for reason in ready.json()["reasons"])
        await app.state.service.open_unavailable()
        assert_problem(await client.put("/programs/parser.entry", json={"id": 1}), 409, "in-use")
        (machine.files / "parser.o").write_bytes(object_file("parser"))
        again = await put(client, machine.files)
        assert (again.status_code, again.json()["object"]["version"]) == (200, 2)
        assert await verdict(client, 3) == "XDP_DROP"
        assert (await client.get("/readyz")).status_code == 200
    assert len(machine.kept()) == 8


async def test_file_that_is_there_again_is_loaded_by_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.service.loading.restoring._RETRY_SECONDS", 0.0)
    async with machine.service() as (_, client):
        await put(client, machine.files)
    machine.reboot()
    (machine.files / "parser.o").rename(machine.files / "away.o")
    async with machine.service() as (app, client):
        assert (await client.get(PARSER)).json()["state"] == "unavailable"
        (machine.files / "away.o").rename(machine.files / "parser.o")
        await app.state.service.open_unavailable()
        assert (await client.get(PARSER)).json()["state"] == "loaded"
        assert await verdict(client, 3) == "XDP_DROP"


async def test_copies_of_files_that_come_at_the_same_time_are_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another is unloaded, whose copy goes. The disk is slow."""
    fsync = os.fsync

    def slowly(fd: int) -> None:
        time.sleep(0.1)
        fsync(fd)

    async with machine.service() as (_, client):
        await send(client, object_file("parser"))
        monkeypatch.setattr(os, "fsync", slowly)
        unload = client.delete(PARSER)
        sent = [send(client, object_file(name), f"/objects/{name}") for name in ("root", "generation")]
        assert [each.status_code for each in await asyncio.gather(*sent, unload)] == [201, 201, 204]
        told = (await client.get("/objects")).json()["objects"]
        copies = {each.name: each.read_bytes() for each in (machine.files.parent / "copies").iterdir()}
        assert {name: hashlib.sha256(content).hexdigest() for name, content in copies.items()} == {
            each["sha256"]: each["sha256"] for each in told
        }


async def test_no_pin_is_left_of_what_is_unloaded_or_was_cut_off(machine: Machine) -> None:
    async with machine.service() as (app, client):
        for verdict_ in (1, 2, 3):
            await put(client, machine.files, variables={"verdict": verdict_})
        assert len(machine.kept()) == 16, "of two versions"
        assert (await client.delete(PARSER)).status_code == 204
        assert machine.kept() == set()
        held = app.state.service.registry.maps.get("table").opened()
        LinuxKernel().obj_pin(held.fd, f"{machine.keep}/{'0' * 32}_0")  # as if it was killed before it was journalled
    async with machine.service() as (_, client):
        assert machine.kept() == set()
        assert (await client.get("/objects")).json()["objects"] == []


async def test_maps_that_ask_for_a_pin_are_kept_for_later_versions(machine: Machine) -> None:
    (machine.files / "pinned.o").write_bytes(object_file("pinned"))
    async with machine.service() as (_, client):
        found = set()
        for number in (1, 2):
            body = {"file": str(machine.files / "pinned.o"), "pinning": "hold", "variables": {"verdict": number}}
            told = (await client.put("/objects/pinned", json=body)).json()["object"]
            found |= {each["id"] for each in told["maps"] if each["map"] == "shared"}
            assert told["version"] == number
        assert len(found) == 1
    assert not (machine.bpffs / "shared").exists()
