"""A table of four programs that changes under traffic: by one overwrite, and by a PUT of the table for comparison."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf import attr
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf
from app.bpf.uapi import Cmd
from tests.api.test_objects import app, client, files, kernel
from tests.compiled import object_file

__all__ = ["app", "client", "files", "kernel"]  # fixtures

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

STEPS = ("first", "second", "third", "last")
SWITCHES = 1_000
PACKETS = 1_000_000
PACKETS_AT_A_TIME = 20_000


class Traffic:
    """Packets that run through a program in a thread, until it is stopped."""

    def __init__(self, program: int) -> None:
        self.packets = 0
        self._program, self._stopped, self._kernel = program, threading.Event(), LinuxKernel()

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._kernel.prog_test_run(self._program, bytes(64), PACKETS_AT_A_TIME)
            self.packets += PACKETS_AT_A_TIME


class Counts:
    """The map `counts` of generation.bpf.c: how many packets have seen two generations, one, or none."""

    def __init__(self, told: dict[str, Any]) -> None:
        """Open that of an object file."""
        self._kernel = LinuxKernel()
        [map_id] = [each["id"] for each in told["maps"] if each["map"] == "counts"]
        self.fd = bpf(Cmd.MAP_GET_FD_BY_ID, attr.GetId(id=map_id))

    def read(self) -> tuple[int, int, int]:
        mixed, whole, fell_through = (self._kernel.map_lookup(self.fd, each, 8) for each in range(3))
        return mixed, whole, fell_through

    def close(self) -> None:
        self._kernel.close(self.fd)


async def load(client: httpx.AsyncClient, name: str, file: Path, **body: Any) -> dict[str, Any]:
    answer = await client.put(f"/objects/{name}", json={"file": str(file), **body})
    assert answer.status_code < 300, answer.text
    told: dict[str, Any] = answer.json()["object"]
    return told


@pytest.fixture
async def root(client: httpx.AsyncClient, app: FastAPI, files: Path) -> int:
    """The fd of the program that packets come to. It jumps to entry 0 of `root.root`."""
    for name in ("generation", "root"):
        (files / f"{name}.o").write_bytes(object_file(name))
    await load(client, "root", files / "root.o")
    fd: int = app.state.service.registry.programs.get("root.start").opened().fd
    return fd


SWITCH = {"map": "root.root", "index": 0, "program": "first"}


async def test_no_packet_sees_a_mix_of_two_versions(client: httpx.AsyncClient, files: Path, root: int) -> None:
    """Each switch is one overwrite of the entry that leads to the version: by the API, to and fro between two."""
    first = await load(client, "g", files / "generation.o", switch=SWITCH)
    counts = Counts(first)
    body: dict[str, Any] = {"maps": {"counts": {"use": "previous"}}, "switch": SWITCH}
    second = await load(client, "g", files / "generation.o", **body, variables={"generation": 2})
    entries = [{"program": {"id": second["previous"]["program_ids"]["first"]}}, {"program": "g.first"}]
    switches = 0
    with Traffic(root).running() as traffic:
        while switches < SWITCHES or traffic.packets < PACKETS:
            answer = await client.put("/maps/root.root/entries/0", json=entries[switches % 2])
            assert answer.status_code == 200
            switches += 1
            await asyncio.sleep(0)
        for generation in range(3, 8):  # new versions, too
            await load(client, "g", files / "generation.o", **body, variables={"generation": generation})
    mixed, whole, fell_through = counts.read()
    counts.close()
    print(f"{switches} switches, {traffic.packets} packets: {mixed} mixed, {whole} whole, {fell_through} fell through")
    assert (mixed, fell_through) == (0, 0)
    assert whole == traffic.packets >= PACKETS


async def test_a_table_that_is_put_shows_packets_a_mix(client: httpx.AsyncClient, app: FastAPI, files: Path) -> None:
    """Why there is a switch: the entries of one array change one after the other, here callees first."""
    for name in ("generation", "root"):
        (files / f"{name}.o").write_bytes(object_file(name))
    first = await load(client, "g", files / "generation.o")
    counts = Counts(first)
    await load(client, "root", files / "root.o", maps={"root": {"use": "g.steps"}})
    keep = {"steps": {"use": "previous"}, "counts": {"use": "previous"}}
    second = await load(
        client, "g", files / "generation.o", maps=keep, variables={"generation": 2}, values="ignore"
    )  # fmt: skip
    ids = [{each["program"]: each["id"] for each in told["programs"]} for told in (first, second)]
    tables = [
        {"entries": [{"index": place, "program": {"id": by_name[STEPS[place]]}} for place in (3, 2, 1, 0)]}
        for by_name in ids
    ]
    await client.put("/maps/g.steps/entries", json=tables[0])
    switches = 0
    with Traffic(app.state.service.registry.programs.get("root.start").opened().fd).running() as traffic:
        while not counts.read()[0] or traffic.packets < PACKETS:
            switches += 1
            answer = await client.put("/maps/g.steps/entries", json=tables[switches % 2])
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(0)
    mixed, whole, fell_through = counts.read()
    counts.close()
    print(f"{switches} tables, {traffic.packets} packets: {mixed} mixed, {whole} whole, {fell_through} fell through")
    assert mixed > 0
    assert fell_through == 0, "each entry changes by one overwrite"
