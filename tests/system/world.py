"""A table in the kernel, a service that is killed again and again, and checks that hold after every kill."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests.system.nursery import Nursery

Table = dict[int, int]
WANTED: dict[int, str | None] = {0: "pass", 1: None, 2: "drop", 3: "tx"}  # each differs from the first table


class World:
    """An array in the kernel, and a service that is killed again and again.

    `first` is the table to which each round returns.
    """

    kills = 0  # of all worlds

    def __init__(self, nursery: Nursery, pins: Path, folder: Path) -> None:
        self.nursery, self.pins, self.folder = nursery, pins, folder
        self.client = self.connection()
        self.kernel = LinuxKernel()
        self.array = self.kernel.map_create(MapType.PROG_ARRAY, 4, 4, 16, "table")
        self.kernel.obj_pin(self.array, str(pins / "table"))
        self.ids: dict[str | None, int] = {}
        for name in ("drop", "pass", "tx"):
            fd = self.kernel.obj_get(str(pins / name))
            self.ids[name] = self.kernel.prog_info(fd).id
            if name != "drop":
                self.kernel.map_update(self.array, {"pass": 1, "tx": 2}[name], fd)
            self.kernel.close(fd)
        self._fds = [self.array, self.kernel.prog_load(ProgType.XDP, asm.returns(7), "lonely")]  # pinned nowhere
        self.kernel.map_update(self.array, 0, self._fds[1])
        self.first = self.table()
        self.answered: list[int] = []
        self.pid, self.later = 0, 0.0
        self.wrong: list[str] = []

    def connection(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.folder / "api.sock"), verify=False)
        return httpx.Client(transport=transport, base_url="http://jumptable", timeout=30)

    def close_unpinned_program(self) -> None:
        """Close the unpinned program, so that only the array and the service keep it."""
        self.kernel.close(self._fds.pop())

    def close(self) -> None:
        """Kill the service, close everything, and remove the pins."""
        self.client.close()
        if self.pid:
            self.kill()
        for fd in self._fds:
            self.kernel.close(fd)
        for path in [self.pins / "table", *self.kept()]:
            path.unlink()

    def table(self) -> Table:
        return dict(self.kernel.map_entries(self.array, 0, 16))

    def kept(self) -> list[Path]:
        return list((self.pins / "keep").glob("*"))

    def start(self, kill_at: int = 0) -> bool:
        """Start the service. False if it was killed during the start."""
        self.pid, status = self.nursery.start(
            self.folder / "jumptable.toml", self.folder / "log", kill_at=kill_at, later=self.later
        )
        return status is None or self._is_killed(status)

    def _is_killed(self, status: int) -> bool:
        self.pid = 0
        assert os.WIFSIGNALED(status), (self.folder / "log").read_text()
        assert os.WTERMSIG(status) == signal.SIGKILL
        World.kills += 1
        return False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._is_killed(self.nursery.wait())

    def ask(self, method: str, url: str, body: object = None, **query: object) -> Any:
        """The answer to a request, or None if the service was killed by it."""
        params = {name: str(value) for name, value in query.items() if value is not None}
        try:
            answer = self.client.request(method, url, json=body, params=params)
        except httpx.TransportError:
            self._is_killed(self.nursery.wait())
            return None
        assert answer.is_success, f"{answer.text}\n{(self.folder / 'log').read_text()[-5000:]}"
        told = answer.json()
        if isinstance(told, dict) and (change := told.get("change")) is not None:
            self.answered.append(change["id"])
        return told

    def change(self, verb: str, note: str | None = None, confirm_within: int | None = None) -> Any:
        """Request the entries WANTED by PATCH (`update`) or by PUT (`replace`)."""
        listed = [{"index": index, "program": name} for index, name in WANTED.items() if name or verb == "update"]
        method = {"update": "PATCH", "replace": "PUT"}[verb]
        return self.ask(method, "/maps/table/entries", {"entries": listed}, note=note, confirm_within=confirm_within)

    def wanted(self) -> Table:
        return {index: self.ids[name] for index, name in WANTED.items() if name is not None}

    def changes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while (page := self.ask("GET", "/changes", after=found[-1]["id"] if found else 0, limit=1000))["changes"]:
            found += page["changes"]
        return found

    def drift(self) -> dict[int, tuple[int | None, int | None]]:
        told = self.ask("GET", "/maps/table")["drift"]
        return {each["index"]: (_id(each["journal"]), _id(each["kernel"])) for each in told}

    def check(self) -> list[dict[str, Any]]:
        """Check what holds after every kill, and return the changes."""
        changes = self.changes()
        assert [each["id"] for each in changes] == list(range(1, len(changes) + 1))
        assert set(self.answered) <= {each["id"] for each in changes}, "no answered change is missing"
        journal: dict[int, int | None] = dict(self.first)
        for entry in (entry for change in changes for entry in change["entries"]):
            journal[entry["index"]] = _id(entry["after"])
        kernel = self.table()
        differ = {at: (journal.get(at), kernel.get(at)) for at in range(16) if journal.get(at) != kernel.get(at)}
        assert self.drift() == differ, "journal and kernel agree, or the difference is told"
        if not any(each["state"] == "unconfirmed" for each in changes):
            assert self.kept() == [], "nothing is left pinned once nothing waits"
        return changes

    def check_table(self) -> None:
        """Check that each entry holds the old or the new program."""
        kernel, wanted = self.table(), self.wanted()
        assert all(kernel.get(at) in {self.first.get(at), wanted.get(at)} for at in range(16))

    def go_back(self) -> None:
        """Return to the first table by confirm, reconcile and revert."""
        drift, last = self.drift(), self.changes()[-1:]
        if last and last[0]["state"] == "unconfirmed" and drift:
            self.ask("POST", f"/changes/{last[0]['id']}/confirm")
        if drift:
            self.ask("POST", "/maps/table/reconcile", {"to": "journal"})
        if self.table() != self.first:
            self.ask("POST", f"/changes/{last[0]['id']}/revert", force="true")
        assert self.table() == self.first
        for path in self.kept():  # already recorded as a failure
            path.unlink()

    @contextmanager
    def recording_failure(self, step: int) -> Iterator[None]:
        """Record a failure at this step, and continue with the other steps."""
        try:
            yield
        except AssertionError as error:
            self.wrong.append(f"killed at point {step}: {error}")


def _id(program: dict[str, Any] | None) -> int | None:
    return None if program is None else program["id"]
