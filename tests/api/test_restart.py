"""Objects that requests hold are held again after a restart."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.service.objects.opening import make_array
from app.service.objects.source import Pinned
from app.service.registry.held import HeldMap
from app.service.registry.registry import Registry
from app.store.journal import Journal, JournalFailed
from tests.api.conftest import assert_problem, client_of, started
from tests.conftest import load

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def prepared(kernel: Kernel, pins: Path) -> Iterator[tuple[int, int]]:
    """The ids of an array and a program, pinned as `table` and `program` and kept open by the test."""
    with make_array(kernel, "table", 4) as array, load(kernel, 1) as program:
        kernel.obj_pin(array.fd, f"{pins}/table")
        kernel.obj_pin(program.fd, f"{pins}/program")
        yield array.id, program.id


async def names(client: httpx.AsyncClient) -> dict[str, str]:
    """The state of every held object, by name."""
    maps = (await client.get("/maps")).json()["maps"]
    programs = (await client.get("/programs")).json()["programs"]
    return {each["name"]: each["state"] for each in (*maps, *programs)}


async def hold_all(kernel: Kernel, pins: Path, file: Path, ids: tuple[int, int]) -> None:
    """Run a service that holds two objects by pin, one by id and one it creates, releases one more, and ends."""
    registry = Registry(kernel, [str(pins)])
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        for path, body in (
            ("/maps/table", {"pinned": f"{pins}/table"}),
            ("/maps/made", {"pinned": f"{pins}/made", "create": {"max_entries": 7}}),
            ("/programs/pinned", {"pinned": f"{pins}/program"}),
            ("/programs/by_id", {"id": ids[1]}),
            ("/programs/released", {"id": ids[1]}),
        ):
            assert (await client.put(path, json=body)).status_code == 201
            dry = await client.put(f"{path}_dry?dry_run=true", json=body)
            assert dry.is_success or dry.json()["code"] == "name-taken"
        assert (await client.delete("/programs/released")).status_code == 204
    registry.close()


async def test_all_holds_but_released_ones_survive_a_restart(
    kernel: Kernel, pins: Path, file: Path, prepared: tuple[int, int]
) -> None:
    await hold_all(kernel, pins, file, prepared)
    registry = Registry(kernel, [str(pins)])
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        assert await names(client) == dict.fromkeys(("table", "made", "pinned", "by_id"), "held")
        assert (await client.get("/maps/table")).json()["id"] == prepared[0]
        assert (await client.get("/maps/made")).json()["max_entries"] == 7
    registry.close()


async def test_configuration_takes_precedence_over_journalled_holds(
    kernel: Kernel, pins: Path, file: Path, prepared: tuple[int, int]
) -> None:
    await hold_all(kernel, pins, file, prepared)
    registry = Registry(kernel, [str(pins)])
    with make_array(kernel, "new", 9) as array:
        kernel.obj_pin(array.fd, f"{pins}/new")
    registry.maps.add(HeldMap("table", Pinned(f"{pins}/new")))
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        assert (await client.get("/maps/table")).json()["max_entries"] == 9
    registry.close()


async def test_missing_program_is_unavailable_until_its_pin_is_back(
    kernel: Kernel, pins: Path, file: Path, prepared: tuple[int, int]
) -> None:
    await hold_all(kernel, pins, file, prepared)
    kernel.unpin(f"{pins}/program")
    registry = Registry(kernel, [str(pins)])
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        assert (await names(client))["pinned"] == "unavailable"
        assert (await client.get("/readyz")).status_code == 503
        with load(kernel, 1) as program:
            kernel.obj_pin(program.fd, f"{pins}/program")
        await app.state.service.open_unavailable()
        assert (await names(client))["pinned"] == "held"
        assert [event.type for event in app.state.service.journal.events(0, 100)][-1] == "program"
    registry.close()


async def test_holds_by_id_do_not_survive_a_reboot(file: Path) -> None:
    pins = Path("/sys/fs/bpf")
    kernel = MemoryKernel()
    with make_array(kernel, "table", 4) as array, load(kernel, 1) as program:
        kernel.obj_pin(array.fd, f"{pins}/table")
        kernel.obj_pin(program.fd, f"{pins}/program")
        await hold_all(kernel, pins, file, (array.id, program.id))
    registry = Registry(MemoryKernel(), [str(pins)])
    async with started(registry, journal=Journal(file, "process")) as app, client_of(app) as client:
        assert await names(client) == {"table": "unavailable", "made": "held", "pinned": "unavailable"}
    registry.close()


async def test_hold_or_release_that_cannot_be_journalled_is_refused(
    kernel: Kernel, pins: Path, prepared: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(kernel, [str(pins)])
    async with started(registry) as app, client_of(app) as client:
        await client.put("/programs/first", json={"id": prepared[1]})
        with monkeypatch.context() as patch:
            for name in ("save_hold", "remove_hold"):
                patch.setattr(app.state.service.journal, name, raise_journal_failed)
            for method, path, body in (
                ("PUT", "/maps/made", {"pinned": f"{pins}/made", "create": {"max_entries": 7}}),
                ("PUT", "/maps/table", {"pinned": f"{pins}/table"}),
                ("PUT", "/programs/other", {"id": prepared[1]}),
                ("DELETE", "/programs/first", None),
            ):
                assert_problem(await client.request(method, path, json=body), 503, "journal-unavailable")
        assert await names(client) == {"first": "held"}
        with pytest.raises(FileNotFoundError):
            kernel.obj_get(f"{pins}/made")
    registry.close()


async def raise_journal_failed(*_: object) -> None:
    message = "the disk is full"
    raise JournalFailed(message)
